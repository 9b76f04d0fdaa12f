"""Activation checkpointing of blocks: the same values and gradients, and fewer tensors kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fkd
from fkd import student, teacher, term
from fkd.loops import train_step
from fkd.losses import mse


class Block(nn.Module):
    def __init__(self, drop: float, norm: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8) if norm else nn.LayerNorm(8)
        self.up, self.down, self.drop = nn.Linear(8, 64), nn.Linear(64, 8), nn.Dropout(drop)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        return x + scale * self.drop(self.down(nn.functional.gelu(self.up(self.norm(x)))))


class Deep(nn.Module):
    def __init__(self, drop: float = 0.0, norm: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(drop, norm) for _ in range(4)])
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = [x]
        for block in self.blocks:
            hidden.append(block(hidden[-1], scale=0.5))
        return {"hidden": hidden, "logits": self.last(hidden[-1])}


def objective(chosen=False, *, tap: bool = False, **options) -> fkd.Objective:
    torch.manual_seed(0)
    terms = {
        "logits": term(mse, student.logits, teacher.logits),
        "hidden": term(mse, student.hidden[2], teacher.hidden[4]),
    }
    if tap:
        terms["tap"] = term(mse, student.tap("blocks.1.up"), teacher.tap("blocks.3.up"))
    small = fkd.trainable(Deep(**options), checkpoint_blocks=chosen)
    return fkd.Objective(terms, student=small, teacher=fkd.frozen(Deep()))


def after(what: fkd.Objective, compile, steps: int = 3, **options) -> list[Tensor]:
    """Losses, parameters and buffers of a few steps."""
    step = train_step(
        what, lambda params: torch.optim.AdamW(params, lr=1e-2), compile=compile, **options
    )
    state = step.init(seed=1)
    losses = []
    for i in range(steps):
        x = torch.randn(6, 8, generator=torch.Generator().manual_seed(i))
        state, metrics = step(state, x)
        losses.append(metrics["loss/total"].clone())
    buffers = state.buffers.get("student", {}).values()
    return [torch.stack(losses), *state.trainable["student"].values(), *buffers]


CASES = [{}, {"drop": 0.4}, {"norm": True}, {"tap": True}, {"drop": 0.4, "norm": True, "tap": True}]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(case) or "plain")
@pytest.mark.parametrize("chosen", [True, ["blocks.0", "blocks.3"], ["blocks"]])
def test_a_block_that_is_run_again_gives_the_same_bits(case, chosen):
    plain = after(objective(**case), False)
    assert_same(after(objective(chosen, **case), False), plain)


def assert_same(one: list[Tensor], other: list[Tensor]) -> None:
    assert len(one) == len(other)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.compile
@pytest.mark.parametrize("case", CASES[1:], ids="-".join)
def test_compiled_as_well(case):
    plain = after(objective(**case), False)
    again = after(objective(True, **case), {"backend": "aot_eager"})
    torch.testing.assert_close(again, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.compile
def test_a_graph_of_inductor_runs_blocks_again_too():
    plain = after(objective(drop=0.4), False, 2)
    again = after(objective(True, drop=0.4), True, 2)
    torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-5)


def test_microbatches_and_half_precision():
    for options in ({"accumulate": 2}, {"precision": "bf16"}):
        plain = after(objective(drop=0.4), False, **options)
        assert_same(after(objective(True, drop=0.4), False, **options), plain)


def kept(what: fkd.Objective) -> int:
    """Bytes that the forward pass keeps for the backward pass, besides parameters."""
    parts = what.init()
    trained = {x.data_ptr() for x in parts.trainable["student"].values()}
    sizes: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in trained:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    for x in parts.trainable["student"].values():
        x.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss, _ = what(parts, torch.randn(32, 8))
        assert loss.requires_grad
        return sum(sizes.values())


def test_only_the_inputs_of_blocks_are_kept():
    assert kept(objective(True)) < 0.4 * kept(objective())


def test_nothing_of_the_module_is_changed():
    model = Deep()
    before = [vars(part).copy() for part in model.modules()]
    fkd.Objective(
        {"size": term(lambda x: x.square().mean(-1), student.logits)},
        student=fkd.trainable(model, checkpoint_blocks=True),
    )
    assert [vars(part) for part in model.modules()] == before


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (["block.1"], "blocks.1"),
        ([""], "no part"),
        ("blocks", "list of names"),
    ],
)
def test_what_is_no_block_is_refused(chosen, message):
    with pytest.raises(ValueError, match=f"checkpoint_blocks.*{message}"):
        fkd.trainable(Deep(), checkpoint_blocks=chosen)


def test_a_model_without_blocks_says_so():
    with pytest.raises(ValueError, match="no list of blocks"):
        fkd.trainable(nn.Linear(2, 2), checkpoint_blocks=True)


def test_blocks_of_transformers_have_a_way_of_their_own():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=8,
    )  # fmt: skip
    with pytest.raises(ValueError, match="gradient_checkpointing_enable"):
        fkd.trainable(transformers.BertModel(config), checkpoint_blocks=True)
