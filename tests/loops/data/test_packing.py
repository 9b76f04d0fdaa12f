"""Packed positions: the loss and gradient of the whole, at the cost of what counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.flop_counter import FlopCounterMode

import fkd
from fkd import batch, student, teacher, term
from fkd.loops import Packed, fit, next_tokens, pack, take, train_step
from fkd.loops._data.batch import batch_size, examples_in, normalised, split
from fkd.losses import cross_entropy, head, head_divergence, kl

VOCAB, ROWS, LENGTH = 23, 4, 6


class LanguageModel(nn.Module):
    def __init__(self, features: int, vocab: int = VOCAB) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, features)
        self.body = nn.Linear(features, features)
        self.lm_head = nn.Linear(features, vocab, bias=False)

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        hidden = self.body(self.embed(input_ids)).tanh()
        return {"hidden": hidden, "logits": self.lm_head(hidden)}


def data(*, share: float = 0.4, seed: int = 0, **options: Any) -> Any:
    """Tokens, of which a share counts; packed with the options."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCAB, (ROWS, LENGTH), generator=g)
    labels = torch.where(torch.rand(ids.shape, generator=g) < share, ids, -100)
    targets = next_tokens(labels)
    return {"input_ids": ids, "targets": targets, "packed": pack(targets != -100, **options)}


def terms(kind: str, packed: bool) -> dict[str, fkd.Term]:
    def rows(values: Any) -> Any:
        return fkd.call(take, values, batch.packed) if packed else values

    where = batch.packed.kept if packed else batch.packed.mask
    if kind == "head":
        heads = (rows(student.hidden), student.param("lm_head.weight"),
                 rows(teacher.hidden), teacher.param("lm_head.weight"))  # fmt: skip
        both = 0.7 * head.kl() + 0.3 * head.cross_entropy()
        options: Any = {"divergence": both, "strategy": "chunked", "chunk_size": 5}
        return {
            "head": term(head_divergence, *heads, labels=rows(batch.targets), where=where,
                         temperature=2.0, **options)
        }  # fmt: skip
    return {
        "kd": term(kl, rows(student.logits), rows(teacher.logits), temperature=2.0, where=where),
        "labels": term(cross_entropy, rows(student.logits), rows(batch.targets), where=where),
    }


def objective(kind: str, *, packed: bool) -> fkd.Objective:
    torch.manual_seed(0)
    small, large = LanguageModel(8).double(), LanguageModel(12).double()
    return fkd.Objective(
        terms(kind, packed), student=fkd.trainable(small), teacher=fkd.frozen(large)
    )


def value_and_gradient(made: fkd.Objective, given: Any) -> tuple[Tensor, dict[str, Tensor]]:
    parts = made.init()
    leaves = {n: p.requires_grad_() for n, p in parts.trainable["student"].items()}
    loss, _ = made(parts._replace(trainable={"student": leaves}), given)
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    zeros = (torch.zeros_like(p) for p in leaves.values())
    found = [z if g is None else g for g, z in zip(grads, zeros, strict=True)]
    return loss.detach(), dict(zip(leaves, found, strict=True))


def assert_same(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


# -- packing --------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@drawn(
    st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=4, max_size=4),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 3, 8]),
)
def test_the_positions_that_count_come_first_and_in_order(mask, parts, multiple):
    mask = torch.tensor(mask)
    found = pack(mask, multiple=multiple, parts=parts)
    capacity = found.positions.shape[1]
    per_part = mask.reshape(parts, -1)
    need = int(per_part.sum(-1).max())
    assert capacity == min(max(1, -(-need // multiple)) * multiple, per_part.shape[1])
    for part, positions, kept in zip(per_part, found.positions, found.kept, strict=True):
        assert positions[kept].tolist() == part.nonzero().flatten().tolist()
        assert kept.tolist() == sorted(kept.tolist(), reverse=True)
        assert len(set(positions.tolist())) == capacity
    values = torch.arange(40.0).reshape(4, 5, 2)
    assert torch.equal(take(values, found)[found.kept], values[mask])


def test_the_least_capacity_that_is_enough():
    mask = torch.zeros(2, 50, dtype=torch.long)
    mask[0, :9] = 1
    assert pack(mask, capacities=[64, 8, 16]).positions.shape == (1, 16)
    assert pack(mask, capacities=[500]).positions.shape == (1, 100)
    assert pack(torch.zeros(2, 50, dtype=torch.bool), capacities=[8, 16]).positions.shape == (1, 8)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            lambda: pack(torch.ones(2, 9), capacities=[4, 16]),
            r"18 positions count.*\[4, 16\] is 16",
        ),
        (lambda: pack(torch.ones(9)), r"mask \(9,\) on cpu; \[rows, length\]"),
        (lambda: pack(torch.ones(2, 9, device="meta")), "on meta; .* on the CPU is expected"),
        (lambda: pack(torch.ones(3, 9), parts=2), "parts=2, .* the mask has 3 rows"),
        (lambda: pack(torch.ones(3, 9), multiple=0), "multiple=0"),
        (
            lambda: take(torch.ones(2, 8, 5), pack(torch.ones(2, 9))),
            r"values \(2, 8, 5\) must begin with the axes of the mask that was packed, \(2, 9\)",
        ),
    ],
)
@pytest.mark.plain
def test_mistakes_are_said(bad, message):
    with pytest.raises(ValueError, match=message):
        bad()


def test_the_next_token_is_that_of_the_shifted_sequence():
    labels = torch.tensor([[-100, 5, 6], [7, 8, -100]])
    assert next_tokens(labels).tolist() == [[5, 6, -100], [8, -100, -100]]
    assert next_tokens(labels, ignore_index=0)[:, -1].tolist() == [0, 0]


# -- terms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["head", "logits"])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_loss_and_gradients_are_those_of_the_mask(kind, share):
    given = data(share=share, multiple=8)
    packed = value_and_gradient(objective(kind, packed=True), given)
    whole = value_and_gradient(objective(kind, packed=False), given)
    assert_same(packed, whole)
    assert (packed[0] > 0) == (share > 0)


def test_the_shift_is_that_of_the_head():
    """`head_divergence(shift=True)` on the labels, and packed next tokens."""
    g = torch.Generator().manual_seed(1)
    x, w = torch.randn(2, 5, 3, generator=g), torch.randn(7, 3, generator=g)
    labels = torch.tensor([[-100, -100, 3, 4, 5], [-100, 2, -100, 6, 1]])
    rule = {"divergence": head.cross_entropy(), "strategy": "materialized"}
    shifted = head_divergence(x, w, None, None, labels=labels, shift=True, **rule)
    targets = next_tokens(labels)
    found = pack(targets != -100, multiple=4)
    rows, aims = take(x, found), take(targets, found)
    packed = head_divergence(rows, w, None, None, labels=aims, where=found.kept, **rule)
    torch.testing.assert_close(packed, shifted)
    assert packed.count == 6


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["head", "logits"])
def test_what_fills_up_may_be_anything(kind, bad):
    """Values that do not count add nothing, and get a gradient of exactly 0."""
    g = torch.Generator().manual_seed(2)
    options: Any = {"generator": g, "dtype": torch.float64}
    mask = torch.rand(ROWS, LENGTH, generator=g) < 0.4
    found = pack(mask, multiple=16)
    assert not found.kept.all()
    x, y = (torch.randn(ROWS, LENGTH, 5, **options) for _ in range(2))
    w = torch.randn(5, 5, **options)

    def value(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        rows = take(x, found), take(y, found)
        if kind == "logits":
            return fkd.mean(kl(*rows, where=found.kept), where=found.kept).value
        return head_divergence(
            rows[0], w, rows[1], w.detach(), divergence=head.kl(), where=found.kept
        ).value

    def gradients(x: Tensor, y: Tensor) -> list[Tensor]:
        leaves = [x.requires_grad_(), w.requires_grad_()]
        made = value(x, y, w)
        grads = torch.autograd.grad(made, leaves, allow_unused=True)
        return [made.detach(), *(g for g in grads if g is not None)]

    clean = gradients(x.clone(), y)
    spoilt = [z.masked_fill(~mask.unsqueeze(-1), bad) for z in (x, y)]
    dirty = gradients(*spoilt)
    assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))
    assert (dirty[1][~mask] == 0).all() and len(dirty) == (3 if kind == "head" else 2)


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.5)


def trained(kind: str, loader: list[Any], *, packed: bool = True, **options: Any) -> Any:
    step = train_step(objective(kind, packed=packed), sgd, **{"compile": False, **options})
    state = step.init()
    for one in loader:
        state, _ = step(state, one)
    return state.trainable


@pytest.mark.parametrize("kind", ["head", "logits"])
@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_packed_in_parts_accumulates_to_the_whole(kind, parts):
    several = [data(seed=s, multiple=4, parts=parts) for s in range(3)]
    whole = trained(kind, [data(seed=s, multiple=4) for s in range(3)])
    assert_same(trained(kind, several, accumulate=parts), whole)
    assert_same(trained(kind, several), whole)  # and may be used whole as well
    assert_same(trained(kind, several, accumulate=2), whole)
    assert_same(trained(kind, several, packed=False), whole)


def test_a_batch_that_is_not_packed_in_parts_is_refused():
    with pytest.raises(ValueError, match=r"accumulate=2, .* packed in 1 part.*pack\(mask, parts=2"):
        trained("head", [data()], accumulate=2)
    with pytest.raises(ValueError, match=r"accumulate=4, .* packed in 2 part"):
        trained("head", [{"inside": [data(parts=2)], **data(parts=4)}], accumulate=4)


def test_a_packed_batch_is_counted_by_its_examples():
    given = {"packed": data(multiple=8)["packed"], "x": torch.ones(ROWS, 2)}
    assert examples_in(given) == batch_size(given) == ROWS
    assert isinstance(normalised(given)["packed"], Packed)
    parts = split({"packed": data(multiple=8, parts=2)["packed"]}, 2)
    assert [p["packed"].positions.shape[0] for p in parts] == [1, 1]
    assert [p["packed"].mask.shape[0] for p in parts] == [2, 2]


@pytest.mark.compile
@pytest.mark.parametrize("kind", ["head", "logits"])
def test_compiled_once_for_each_capacity(kind):
    """Many counts, two capacities; and the values are those of eager, unpacked steps."""
    shares = [0.1, 0.8, 0.3, 0.9, 0.05, 0.7]
    several = [data(share=s, seed=i, capacities=[8, 24]) for i, s in enumerate(shares)]
    assert {b["packed"].positions.shape[1] for b in several} == {8, 24}
    assert len({int(b["packed"].kept.sum()) for b in several}) > 4
    counter = CompileCounterWithBackend("aot_eager")
    compiled = trained(kind, several, compile={"backend": counter})
    assert counter.frame_count == 2
    assert_same(compiled, trained(kind, several, packed=False))


def test_fit_takes_capacities_as_they_come():
    """They differ in shape and not in structure."""
    several = [data(seed=i, share=s, multiple=2) for i, s in enumerate([0.1, 0.9, 0.5])]
    step = train_step(objective("head", packed=True), sgd, compile=False)
    events = list(fit(step, step.init(), several, epochs=1, log_every=1))
    assert [e.kind for e in events].count("log") == 3


def test_a_head_costs_what_counts():
    """Products of matrices: 40 % of the positions, 40 % of the work, forward and backward.
    (Measured on one CPU thread at [2048, 256] x 8192: 44 % of the time.)"""
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(4, 80, 16, generator=g) for _ in range(2))
    w, v = (torch.randn(50, 16, generator=g) for _ in range(2))
    x.requires_grad_(), w.requires_grad_()
    mask = torch.zeros(4, 80, dtype=torch.bool)
    mask[:, ::5] = mask[:, 1::5] = True
    found = pack(mask, multiple=32)

    def work(x: Tensor, y: Tensor, where: Tensor) -> int:
        rule: Any = {"divergence": head.kl(), "strategy": "chunked", "chunk_size": 32}
        with FlopCounterMode(display=False) as counter:
            made = head_divergence(x, w, y, v, where=where, **rule)
            torch.autograd.grad(made.value, [x, w])
        return counter.get_total_flops()

    assert work(take(x, found), take(y, found), found.kept) == 0.4 * work(x, y, mask) > 0
