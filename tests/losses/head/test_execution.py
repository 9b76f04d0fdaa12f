"""What a strategy costs and composes with: memory, work, other losses, tied weights."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fkd.losses import head
from fkd.losses.head import head_divergence, head_divergence_and_metrics
from tests.trees import tree_leaves

from .inputs import ALL, MIXED, call, close, grads, heads


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor that any operation returns."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [x.untyped_storage().nbytes() // x.element_size()
                 for x in tree_leaves(out) if isinstance(x, torch.Tensor)]  # fmt: skip
        self.entries = max(self.entries, *sizes, 0)
        return out


def counting() -> FlopCounterMode:
    """Counts the in-place products too, which `FlopCounterMode` does not know."""

    def in_place(total, a, b, *, out_shape=None, **_):
        return 2 * a[0] * a[1] * b[1]

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place})


@pytest.mark.parametrize("divergence", [head.kl(), MIXED, ALL[-1]], ids=repr)
def test_nothing_is_as_large_as_the_logits(divergence):
    tokens, vocab, chunk = 96, 64, 8
    given = heads(tokens, vocab)
    with Largest() as seen:
        grads(call(given, divergence, strategy="chunked", chunk_size=chunk), *given[:3])
    assert seen.entries == max(chunk * vocab, tokens * 7, vocab * 7)  # the largest input is 7 wide
    with Largest() as seen:
        grads(call(given, divergence, strategy="materialized"), *given[:3])
    assert seen.entries == tokens * vocab


@pytest.mark.parametrize(
    ("trained", "products"),
    [((), 2 * 5 + 2 * 7), ((0,), 4 * 5 + 2 * 7), ((1,), 4 * 5 + 2 * 7), ((0, 1), 6 * 5 + 2 * 7)],
    ids=["nothing", "frozen head", "frozen body", "both"],
)
def test_only_the_wanted_gradients_are_computed(trained, products):
    """2 FLOPs a product: one for the logits, one for each gradient that is asked for."""
    given = heads()
    inputs = [x.clone().requires_grad_(i in trained) for i, x in enumerate(given[:3])]
    with counting() as counter:
        total = call(given, MIXED, strategy="chunked", chunk_size=4)(*inputs)
        if trained:
            total.backward()
    assert counter.get_total_flops() == products * 11 * 23
    assert [x.grad is not None for x in inputs] == [i in trained for i in range(3)]


def test_no_grad_computes_no_gradient():
    given = heads()
    inputs = [x.clone().requires_grad_() for x in given[:3]]
    with torch.no_grad(), counting() as counter:
        total = call(given, MIXED, strategy="chunked")(*inputs)
    assert counter.get_total_flops() == (2 * 5 + 2 * 7) * 11 * 23
    assert not total.requires_grad


def test_a_divergence_without_teacher_does_not_run_it():
    given = heads()
    with counting() as counter:
        call(given, head.cross_entropy(), strategy="chunked")(*given[:3])
    assert counter.get_total_flops() == 2 * 5 * 11 * 23


def test_metrics_cost_no_matrix_product_and_change_no_gradient():
    given, flops = heads(), []
    for metrics in (False, True):
        leaves = [x.clone().requires_grad_() for x in given[:2]]
        inputs = (*leaves, given.teacher, given.teacher_weight)
        options = {"divergence": MIXED, "labels": given.labels, "strategy": "chunked"}
        with counting() as counter:
            if metrics:
                mean, values = head_divergence_and_metrics(*inputs, **options)
                assert not any(x.requires_grad for x in values.values())
            else:
                mean = head_divergence(*inputs, **options)
            mean.value.backward()
        flops.append((counter.get_total_flops(), *(x.grad for x in leaves)))
    assert flops[0][0] == flops[1][0]
    assert all(torch.equal(x, y) for x, y in zip(flops[0][1:], flops[1][1:], strict=True))


def test_the_cotangent_multiplies_and_other_losses_add():
    """A hidden-state term on the same states, and a mean instead of a sum."""
    given = heads()

    def objective(strategy: str):
        def total(student, weight, bias):
            logits = call(given, MIXED, strategy=strategy, chunk_size=4)(student, weight, bias)
            return 0.3 * logits / 11 + student.square().mean() + (weight**2).mean()

        return grads(total, *given[:3])

    close(objective("chunked"), objective("materialized"))


def test_a_tied_embedding_gets_both_gradients():
    given, tokens = heads(features=5), torch.tensor([1, 4, 4, 7, 22, 0, 1, 1, 3, 9, 2])

    def tied(strategy: str):
        def total(weight):
            states = torch.nn.functional.embedding(tokens, weight).tanh()
            return call(given, MIXED, strategy=strategy, chunk_size=4)(states, weight, given.bias)

        return grads(total, given.weight)

    close(tied("chunked"), tied("materialized"))


def test_microbatches_add_up():
    given = heads()

    def mean(cut: slice):
        x, w, b, xt, wt, labels = (given[i][cut] if i in (0, 3, 5) else given[i] for i in range(6))
        labels = labels.masked_fill(labels % 3 == 0, -100)
        return head_divergence(
            x, w, xt, wt, student_bias=b, divergence=MIXED, labels=labels, strategy="chunked"
        )

    merged = mean(slice(0, 4)).merge(mean(slice(4, 11)))
    whole = mean(slice(0, 11))
    assert merged.count == whole.count
    torch.testing.assert_close(merged.value, whole.value)


def test_weights_may_be_tensors():
    given = heads()
    weight = torch.tensor(0.7, dtype=torch.float64)
    for strategy in ("materialized", "chunked"):
        wanted = grads(call(given, 0.7 * head.kl(), strategy=strategy), *given[:3])
        close(grads(call(given, weight * head.kl(), strategy=strategy), *given[:3]), wanted)


def test_a_second_derivative_is_refused_rather_than_zero():
    given = heads()
    total = call(given, head.kl(), strategy="chunked")
    x = given.student.clone().requires_grad_()
    (first,) = torch.autograd.grad(total(x, *given[1:3]), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        first.sum().backward()
    slope = torch.func.grad(total)
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.func.grad(lambda y: slope(y, *given[1:3]).sum())(given.student)


def test_chunks_are_smaller_only_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = "fkd.losses.head._sizes._free_memory"
    found = {None: 27, 2**40: 27, 2**29: 27, 2**29 - 1: 26, 2**25 + 5: 23, 2**20: 20, 0: 20}
    for free, power in found.items():
        monkeypatch.setattr(sizes, lambda device, free=free: free)
        assert head.chunk_budget("cpu") == 2**power
    monkeypatch.setattr(sizes, lambda device: 2**24)
    assert head.chunk_tokens(8192, 32000) == 256
    assert head.chunk_tokens(8192, 32000, budget=2**28) == 1024
