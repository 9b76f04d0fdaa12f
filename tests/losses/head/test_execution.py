"""What a strategy costs and composes with: memory, work, compilers, other losses, precision."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from fkd.losses import head
from fkd.losses.head import head_divergence, head_divergence_and_metrics, head_metrics

from .inputs import ALL, NAMED, call, close, func_grads, grads, heads

MIXED = NAMED[-1]


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor that any operation returns."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [x.untyped_storage().nbytes() // x.element_size()
                 for x in tree_leaves(out) if isinstance(x, torch.Tensor)]  # fmt: skip
        self.entries = max(self.entries, *sizes, 0)
        return out


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
    with FlopCounterMode(display=False) as counter:
        total = call(given, MIXED, strategy="chunked", chunk_size=4)(*inputs)
        if trained:
            total.backward()
    assert counter.get_total_flops() == products * 11 * 23
    assert [x.grad is not None for x in inputs] == [i in trained for i in range(3)]


def test_no_grad_computes_no_gradient():
    given = heads()
    inputs = [x.clone().requires_grad_() for x in given[:3]]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        total = call(given, MIXED, strategy="chunked")(*inputs)
    assert counter.get_total_flops() == (2 * 5 + 2 * 7) * 11 * 23
    assert not total.requires_grad


def test_a_divergence_without_teacher_does_not_run_it():
    given = heads()
    with FlopCounterMode(display=False) as counter:
        call(given, head.cross_entropy(), strategy="chunked")(*given[:3])
    assert counter.get_total_flops() == 2 * 5 * 11 * 23


def test_metrics_cost_no_matrix_product_and_change_no_gradient():
    given, flops = heads(), []
    for metrics in (False, True):
        leaves = [x.clone().requires_grad_() for x in given[:2]]
        inputs = (*leaves, given.teacher, given.teacher_weight)
        options = {"divergence": MIXED, "labels": given.labels, "strategy": "chunked"}
        with FlopCounterMode(display=False) as counter:
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


@pytest.mark.compile
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("divergence", [MIXED, ALL[-1]], ids=["mixed", "elementwise"])
def test_compiled_is_eager(divergence, backend):
    given = heads()
    options = {"temperature": torch.tensor(2.0, dtype=torch.float64), "student_softcap": 5.0}
    total = call(given, divergence, strategy="chunked", chunk_size=4, **options)
    wanted = grads(total, *given[:3])
    close(grads(torch.compile(total, fullgraph=True, backend=backend), *given[:3]), wanted)


@pytest.mark.compile
@pytest.mark.parametrize("trained", [(0,), (0, 1), (0, 1, 2)])
def test_compiled_torch_func_is_eager(trained):
    """The gradient inside the compiled function, as a training step has it."""
    given = heads()
    total = call(given, MIXED, strategy="chunked", chunk_size=4)

    def step(*inputs):
        gradients, value = torch.func.grad_and_value(total, argnums=trained)(*inputs)
        return value, *gradients

    wanted = func_grads(total, *given[:3])
    wanted = wanted[0], *(wanted[1 + i] for i in trained)
    got = torch.compile(step, fullgraph=True, backend="aot_eager")(*given[:3])
    close(got, wanted)


@pytest.mark.compile
def test_a_frozen_head_is_no_work_inside_compiled_torch_func():
    given, seen = heads(), []

    def backend(graph, inputs):
        seen.append(sum(node.target in (torch.mm, torch.matmul, torch.addmm)
                        or node.target in ("addmm_", "mm", "matmul")
                        or "matmul" in str(node.target)
                        for node in graph.graph.nodes))  # fmt: skip
        return graph

    total = call(given, head.kl(), strategy="chunked", chunk_size=11)
    for trained in ((0,), (0, 1)):
        torch._dynamo.reset()
        step = torch.func.grad(total, argnums=trained)
        torch.compile(step, fullgraph=True, backend=backend)(*given[:3])
    assert seen == [3, 4]


@pytest.mark.compile
def test_one_compilation_for_moving_numbers():
    given = heads()
    counter = torch._dynamo.testing.CompileCounter()

    @torch.compile(fullgraph=True, backend=counter)
    def step(x, weight, temperature, divergence):
        return head_divergence(
            x,
            given.weight,
            given.teacher,
            given.teacher_weight,
            divergence=weight * head.kl() + divergence,
            temperature=temperature,
            strategy="chunked",
            chunk_size=4,
        ).total

    for i in range(5):
        weight, temperature = torch.tensor(0.1 * i).double(), torch.tensor(1.0 + i).double()
        step(given.student, weight, temperature, head.jsd(0.5))
    assert counter.frame_count == 1


def test_a_nearly_converged_student_has_an_accurate_gradient():
    """bfloat16 inputs, student logits = teacher's + 0.05 sigma, against float64."""
    g = torch.Generator().manual_seed(0)
    tokens, vocab, features = 64, 2048, 64
    teacher = torch.randn(tokens, features, generator=g, dtype=torch.float64)
    weight = torch.randn(vocab, features, generator=g, dtype=torch.float64) * 3 / features**0.5
    noise = torch.randn(tokens, features, generator=g, dtype=torch.float64)
    x, xt, w = ((a).bfloat16() for a in (teacher + 0.05 * noise, teacher, weight))

    def gradient(dtype, **options):
        leaf = x.to(dtype).requires_grad_()
        inputs = leaf, w.to(dtype), xt.to(dtype), w.to(dtype)
        head_divergence(*inputs, divergence=head.kl(), **options).total.backward()
        return leaf.grad.double()

    exact = gradient(torch.float64, strategy="materialized")

    def error(got):
        return float((got - exact).norm() / exact.norm())

    assert error(gradient(torch.float32, strategy="chunked", chunk_size=24)) < 1e-4
    rounded = exact.bfloat16().double()  # what storing the gradient in bfloat16 costs
    float32 = error(gradient(torch.bfloat16, strategy="chunked", chunk_size=24))
    assert float32 < error(rounded) + 1e-4
    half = error(gradient(torch.bfloat16, strategy="chunked", logits_dtype=torch.bfloat16))
    assert half > 10 * float32


def test_half_precision_weights_accumulate_in_float32():
    given = heads(tokens=256, dtype=torch.bfloat16)
    wide = type(given)(*(x.double() if x.is_floating_point() else x for x in given))
    exact = grads(call(wide, head.kl(), strategy="materialized"), *wide[:3])
    got = grads(call(given, head.kl(), strategy="chunked", chunk_size=2), *given[:3])
    for x, y in zip(got[1:], exact[1:], strict=True):
        assert x.dtype == torch.bfloat16
        torch.testing.assert_close(x.double(), y.bfloat16().double(), rtol=2**-7, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"divergence": "kl"}, r"divergence 'kl' is neither .* Did you mean head.kl\(\)"),
        ({"strategy": "fast"}, "strategy 'fast'; 'auto'"),
        ({"chunk_size": 0}, "chunk_size 0; 1 or more"),
        ({"divergence": head.cross_entropy()}, r"cross_entropy\(\) needs labels"),
        ({"strategy": "fused"}, "strategy 'fused' needs a CUDA device"),
        ({"teacher_vocabulary": slice(0, 9)}, "has 23 entries and teacher_weight 9"),
    ],
)
@pytest.mark.plain
def test_a_wrong_argument_is_named(change, message):
    x, w, _, xt, wt, _ = heads()
    with pytest.raises(ValueError, match=message):
        head_divergence(x, w, xt, wt, **{"divergence": head.kl(), **change})


@pytest.mark.plain
def test_wrong_shapes_are_named():
    x, w, _, xt, wt, labels = heads()
    options = {"divergence": head.kl()}
    with pytest.raises(ValueError, match=r"student_weight \(5, 23\) .* Is it transposed"):
        head_divergence(x, w.T, xt, wt, **options)
    with pytest.raises(ValueError, match="must have the same positions"):
        head_divergence(x, w, xt[:5], wt, **options)
    with pytest.raises(ValueError, match=r"labels \(5,\) must have the positions"):
        head_divergence(x, w, xt, wt, labels=labels[:5], **options)
    with pytest.raises(ValueError, match="needs teacher_hidden"):
        head_divergence(x, w, None, None, **options)


def test_a_teacher_that_requires_grad_is_refused():
    x, w, _, xt, wt, _ = heads()
    wt.requires_grad_()
    with pytest.raises(ValueError, match="teacher requires grad"):
        head_divergence(x, w, xt, wt, divergence=head.kl(), strategy="chunked")
    head_divergence(x, w, xt, wt, divergence=head.kl(), strategy="materialized").total.backward()
    assert wt.grad is not None
    assert not head_metrics(x, w, xt, wt.detach(), divergence=head.kl())["kl()"].requires_grad
