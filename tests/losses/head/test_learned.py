"""What the head is differentiated by: everything, or it is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fkd.losses import head, head_divergence

from .inputs import heads

STRATEGIES = ["materialized", "chunked"]
HEADS = heads()


def loss(values: dict[str, Tensor], strategy: str) -> Tensor:
    h = HEADS
    options: dict[str, Any] = {"student_logit_scale": 0.7, "student_softcap": 3.0, **values}
    weight = options.pop("weight", 1.0)
    divergence = head.kl().scaled(weight) + head.jsd(0.3).scaled(2 * weight) + head.cross_entropy()
    return head_divergence(
        h.student,
        h.weight,
        h.teacher,
        h.teacher_weight,
        divergence=divergence,
        student_bias=h.bias,
        labels=h.labels,
        strategy=strategy,
        chunk_size=4 if strategy == "chunked" else None,
        **options,
    ).value


def number(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("name", ["student_logit_scale", "weight"])
def test_learned_numbers_have_the_gradient_of_the_definition(name: str) -> None:
    x = number(0.7)
    want, got = (torch.autograd.grad(loss({name: x}, s), x)[0] for s in STRATEGIES)
    torch.testing.assert_close(got, want)
    assert want != 0
    (func,) = torch.func.grad(lambda x: loss({name: x}, "chunked"))(x.detach())[None]
    torch.testing.assert_close(func, want)


@pytest.mark.compile
@pytest.mark.parametrize("name", ["student_logit_scale", "weight"])
def test_learned_numbers_compiled(name: str) -> None:
    x = number(0.7)
    (want,) = torch.autograd.grad(loss({name: x}, "chunked"), x)
    compiled = torch.compile(
        lambda x: loss({name: x}, "chunked"), fullgraph=True, backend="aot_eager"
    )
    (got,) = torch.autograd.grad(compiled(x), x)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    "name", ["student_softcap", "temperature", "teacher_softcap", "teacher_logit_scale"]
)
def test_other_numbers_are_refused_or_learned(name: str) -> None:
    x = number(2.0)
    with pytest.raises(ValueError, match=f"{name} requires grad.*strategy='materialized'"):
        loss({name: x}, "chunked")
    assert torch.autograd.grad(loss({name: x}, "materialized"), x)[0] != 0
    with torch.no_grad():
        assert loss({name: x}, "chunked").isfinite()
    assert loss({name: x.detach()}, "chunked").isfinite()


@pytest.mark.parametrize("which", [0, 1, (0, 1)])
def test_gradient_of_every_example(which: Any) -> None:
    h = heads()
    students = torch.stack([h.student, 2 * h.student])
    teachers = torch.stack([h.teacher, h.teacher.flip(0)])

    def run(strategy: str) -> Callable[..., Tensor]:
        return lambda x, w, y: (
            head_divergence(
                x, w, y, h.teacher_weight, divergence=head.kl(), strategy=strategy, chunk_size=4
            ).value
        )

    def every(strategy: str) -> Any:
        grad = torch.func.grad(run(strategy), argnums=which)
        return torch.vmap(grad, in_dims=(0, None, 0))(students, h.weight, teachers)

    one = [
        torch.func.grad(run("chunked"), argnums=which)(x, h.weight, y)
        for x, y in zip(students, teachers, strict=True)
    ]
    want = [torch.stack(x) for x in zip(*one, strict=True)] if which == (0, 1) else torch.stack(one)
    got = every("chunked")
    torch.testing.assert_close(list(got) if which == (0, 1) else got, want)
