"""The head inside torch.compile: same numbers, one graph, no wasted work."""

from __future__ import annotations

import pytest
import torch

from fkd.losses import head
from fkd.losses.head import head_divergence

from .inputs import ALL, MIXED, call, close, func_grads, grads, heads


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit, by importing Inductor
@pytest.mark.parametrize(
    ("divergence", "backend", "chunk"),
    [(MIXED, "aot_eager", 4), (ALL[-1], "aot_eager", 8), (head.kl(), "inductor", 11)],
    ids=["mixed", "elementwise", "inductor"],
)
def test_compiled_is_eager(divergence, backend, chunk):
    given = heads()
    temperature = torch.tensor(2.0, dtype=torch.float64)
    total = call(given, divergence, strategy="chunked", chunk_size=chunk, temperature=temperature)
    wanted = grads(total, *given[:3])
    close(grads(torch.compile(total, fullgraph=True, backend=backend), *given[:3]), wanted)


@pytest.mark.compile
@pytest.mark.parametrize("trained", [(0,), (0, 1, 2)])
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
            divergence=head.kl().scaled(weight) + divergence,
            temperature=temperature,
            strategy="chunked",
            chunk_size=4,
        ).total

    for i in range(5):
        weight, temperature = torch.tensor(0.1 * i).double(), torch.tensor(1.0 + i).double()
        step(given.student, weight, temperature, head.jsd(0.5))
    assert counter.frame_count == 1
