"""The depth law: equal blocks of a model are compiled once, and compute what they did."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fkd
from fkd import student, teacher, term
from fkd._blocks import op
from fkd._blocks.sharing import repeated
from fkd.loops import train_step
from fkd.losses import mse


class Block(nn.Module):
    """A residual block, with what may make one block differ from another."""

    def __init__(self, number: int = 0, drop: float = 0.0) -> None:
        super().__init__()
        self.number, self.seen = number, 0
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        y = self.drop(self.down(nn.functional.gelu(self.up(self.norm(x)))))
        return x + (y if scale is None else y * scale)


class Scaled(Block):
    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        return super().forward(x, scale) / (self.number + 1)


class Counting(Block):
    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        self.seen = self.seen + 1
        return super().forward(x, scale)


class Deep(nn.Module):
    def __init__(self, depth: int, kind: type[Block] = Block, drop: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.blocks = nn.ModuleList([kind(i, drop) for i in range(depth)])
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.first(x)
        hidden = [h]
        for block in self.blocks:
            h = block(h, scale=x.mean())
            hidden.append(h)
        return {"hidden": hidden, "logits": self.last(h)}


def objective(model: nn.Module, *, depth: int = 4, tap: bool = True) -> fkd.Objective:
    terms = {
        "logits": term(mse, student.logits, teacher.logits),
        "hidden": term(mse, student.hidden[2], teacher.hidden[depth - 1]),
    }
    if tap:
        terms["tap"] = term(mse, student.tap("blocks.1.up"), teacher.tap("blocks.0.up"))
    torch.manual_seed(7)
    return fkd.Objective(terms, student=fkd.trainable(model), teacher=fkd.frozen(Deep(depth)))


def adam(params):
    return torch.optim.AdamW(params, lr=1e-2)


def losses(what: fkd.Objective, compile, steps: int = 3, **options) -> list[Tensor]:
    """Losses, norms of gradients and parameters of a few steps."""
    step = train_step(what, adam, compile=compile, **options)
    state = step.init(seed=1)
    measured = []
    for i in range(steps):
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(i))
        state, metrics = step(state, x)
        measured += [metrics["loss/total"].clone(), metrics["grad_norm/total"].clone()]
    return [torch.stack(measured), *state.trainable["student"].values()]


@pytest.fixture(autouse=True)
def _none_known():
    before = dict(op._REGIONS)
    op._REGIONS.clear()
    yield
    op._REGIONS.update(before)


def model(depth: int = 4, kind: type[Block] = Block, drop: float = 0.0) -> Deep:
    torch.manual_seed(0)
    return Deep(depth, kind, drop)


@pytest.mark.compile
@pytest.mark.parametrize("drop", [0.0, 0.4])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_blocks_that_share_a_graph_compute_what_each_did(precision, drop):
    plain = losses(objective(model(drop=drop)), {"backend": "aot_eager"}, precision=precision)
    shared = losses(
        objective(model(drop=drop)), {"backend": "aot_eager", "blocks": 2}, precision=precision
    )
    assert op._REGIONS
    if precision == "bf16":  # what is fused keeps float32 between its operations
        torch.testing.assert_close(shared[0], plain[0], rtol=2e-3, atol=1e-3)
    else:
        torch.testing.assert_close(shared, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.compile
def test_blocks_that_share_a_graph_are_clipped_as_others_are():
    plain = losses(objective(model()), False, clip=1e-3)
    shared = losses(objective(model()), {"backend": "aot_eager", "blocks": 2}, clip=1e-3)
    for a, b in zip(plain, shared, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.compile
def test_depth_adds_no_graph():
    counts = []
    for depth in (3, 7):
        op._REGIONS.clear()
        losses(
            objective(model(depth), depth=depth, tap=False),
            {"backend": "aot_eager", "blocks": 2},
            1,
        )
        counts.append(len(op._REGIONS))
    assert counts == [2, 2]  # with a gradient, and without


@pytest.mark.compile
def test_a_tap_makes_a_block_another_one():
    losses(objective(model()), {"backend": "aot_eager", "blocks": 2}, 1)
    assert len(op._REGIONS) == 4


@pytest.mark.compile
@pytest.mark.parametrize(("kind", "regions"), [(Scaled, 5), (Counting, 1)])
def test_blocks_that_are_not_equal_are_not_taken_for_equal(kind, regions):
    options = {"backend": "aot_eager"}
    plain = losses(objective(model(kind=kind), tap=False), options)
    shared = losses(objective(model(kind=kind), tap=False), {**options, "blocks": 2})
    assert len(op._REGIONS) == regions
    torch.testing.assert_close(shared, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.compile
def test_inductor_compiles_each_half_once(monkeypatch):
    compiled = []
    one = torch._inductor.compile
    monkeypatch.setattr(
        torch._inductor, "compile", lambda *a, **k: compiled.append(a) or one(*a, **k)
    )
    deep = model(5)
    shared = losses(objective(deep, depth=5, tap=False), {"blocks": 4})
    assert len(compiled) == 3  # forward and backward of the student, forward of the teacher
    plain = losses(objective(deep, depth=5, tap=False), False)
    torch.testing.assert_close(shared, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.compile
def test_microbatches_share_blocks_too():
    options = {"backend": "aot_eager"}
    plain = losses(objective(model()), False, accumulate=2)
    shared = losses(objective(model()), {**options, "blocks": 2}, accumulate=2)
    assert op._REGIONS
    torch.testing.assert_close(shared, plain, rtol=1e-4, atol=1e-5)


def test_what_counts_as_a_block():
    assert len(repeated(Deep(4), least=4)) == 4
    assert repeated(Deep(3), least=4) == []
    assert repeated(nn.Sequential(*[nn.Linear(2, 2) for _ in range(5)]), least=2) == []


@pytest.mark.parametrize("blocks", [1, -3, 2.5, "all", None])
def test_an_option_out_of_range_is_refused(blocks):
    with pytest.raises(ValueError, match="blocks"):
        train_step(objective(model()), adam, compile={"blocks": blocks})


@pytest.mark.compile
def test_a_second_derivative_is_refused_and_not_wrong():
    def penalty(hidden: Tensor, logits: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad(logits.square().sum(), hidden, create_graph=True)
        return grad.square().sum(-1)

    terms = {
        "penalty": term(penalty, student.hidden[1], student.logits),
        "size": term(lambda x: x.square().mean(-1), student.logits),
    }
    what = fkd.Objective(terms, student=fkd.trainable(model()))
    with pytest.raises(Exception, match="second derivative"):
        losses(what, {"backend": "aot_eager", "blocks": 2}, 1)
