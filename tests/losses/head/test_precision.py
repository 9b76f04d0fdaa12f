"""The head inside `torch.autocast`, and with operands of several types."""

from __future__ import annotations

import pytest
import torch

import fkd
from fkd.losses import head, head_divergence

STRATEGIES = ["materialized", "chunked"]


def side(dtype: torch.dtype, seed: int) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(9, 8, generator=g, dtype=torch.float64)
    weight = torch.randn(17, 8, generator=g, dtype=torch.float64)
    return [hidden.to(dtype), weight.to(dtype)]


def run(inputs: list[torch.Tensor], strategy: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    leaves = [x.clone().requires_grad_() for x in inputs[:2]]
    divergence = head.kl() + 0.5 * head.elementwise(lambda log_p, log_q: (log_p - log_q).abs())
    mean = head_divergence(*leaves, *inputs[2:], divergence=divergence, strategy=strategy)
    return mean.value.detach(), list(torch.autograd.grad(mean.value, leaves))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_autocast_changes_nothing(strategy: str) -> None:
    inputs = side(torch.float32, 0) + side(torch.float32, 1)
    want, want_grads = run(inputs, strategy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, grads = run(inputs, strategy)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=0)
    for a, b in zip(grads, want_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("hidden", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("weight", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_hidden_states_and_weights_of_different_types(strategy, hidden, weight) -> None:
    (x, w), (y, v) = side(torch.bfloat16, 0), side(torch.bfloat16, 1)
    want, want_grads = run([z.double() for z in (x, w, y, v)], strategy)
    got, grads = run([x.to(hidden), w.to(weight), y.to(weight), v.to(hidden)], strategy)
    assert [g.dtype for g in grads] == [hidden, weight]
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
    for a, b in zip(grads, want_grads, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-2, atol=1e-3)


NEAR = [head.kl(), head.soft_cross_entropy(), head.skew_kl(), head.skew_reverse_kl(), head.jsd()]


@pytest.mark.parametrize("divergence", [*NEAR, head.alpha_divergence(0.5)], ids=repr)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradient_near_convergence(divergence, strategy: str) -> None:
    """A large vocabulary in float32, one entry far above the others: the gradient keeps digits."""
    g = torch.Generator().manual_seed(0)
    t = 3 * torch.randn(4, 20_000, generator=g, dtype=torch.float64)
    t[:, 0] += 12
    s = t + 0.05 * torch.randn(4, 20_000, generator=g, dtype=torch.float64)

    def gradient(dtype: torch.dtype) -> torch.Tensor:
        hidden = torch.eye(4, dtype=dtype)
        weight = s.float().to(dtype).T.contiguous().requires_grad_()
        teacher = t.float().to(dtype).T.contiguous()
        mean = head_divergence(
            hidden, weight, hidden, teacher, divergence=divergence, strategy=strategy
        )
        return torch.autograd.grad(mean.total, weight)[0].double()

    want = gradient(torch.float64)
    assert (gradient(torch.float32) - want).abs().max() < 2e-5 * want.abs().max()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("form", [torch.bfloat16, torch.float32], ids=str)
def test_operands_are_rounded_and_products_are_not(strategy: str, form: torch.dtype) -> None:
    inputs = side(torch.float32, 0) + side(torch.float32, 1)
    inputs[3] = inputs[3].to(form)  # a frozen head that is held in half precision
    leaves = [x.clone().requires_grad_() for x in inputs[:2]]
    options = dict(divergence=head.kl(), strategy=strategy)
    mean = head_divergence(*leaves, *inputs[2:], operand_dtype=torch.bfloat16, **options)
    grads = torch.autograd.grad(mean.value, leaves)
    rounded = [x.bfloat16().double().requires_grad_() for x in inputs]
    want = head_divergence(*rounded[:2], *(x.detach() for x in rounded[2:]), **options)
    torch.testing.assert_close(mean.value.double(), want.value, rtol=1e-5, atol=1e-7)
    for a, b in zip(grads, torch.autograd.grad(want.value, rounded[:2]), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=2e-2, atol=2e-4)


def test_a_bf16_step_multiplies_its_heads_in_bf16() -> None:
    torch.manual_seed(0)
    objective = fkd.Objective(
        {
            "kd": fkd.term(
                head_divergence,
                *(fkd.student.tap("", "input"), fkd.student.param("weight")),
                *(fkd.teacher.tap("", "input"), fkd.teacher.param("weight")),
                divergence=head.kl(),
            )
        },
        student=fkd.trainable(torch.nn.Linear(8, 17)),
        teacher=fkd.frozen(torch.nn.Linear(8, 17)),
    )
    x, parts = torch.randn(9, 8), objective.init()
    found, _ = objective(parts, x, autocast=torch.bfloat16)
    weights = [parts.trainable["student"]["weight"], parts.frozen["teacher"]["weight"]]
    args = [y for w in weights for y in (x, w)]
    want = head_divergence(*args, divergence=head.kl(), operand_dtype=torch.bfloat16).value
    exact = head_divergence(*args, divergence=head.kl()).value
    assert torch.equal(found, want) and not torch.equal(want, exact)
