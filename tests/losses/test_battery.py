"""The battery can fail: each law refuses a loss that breaks it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from fkd.losses import kl

from . import test_laws as battery
from . import test_precision as precision
from .case import Case, pair
from .logits.cases_kl import kl_reference

Logits = Float[Tensor, "*batch vocab"]


def raw(student: Tensor, teacher: Tensor) -> Tensor:
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def masked_last(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    """The value is masked, the gradient is not: 0 * nan = nan."""
    values = raw(student, teacher)
    return values if where is None else values.masked_fill(~where.bool(), 0.0)


def scaled(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    return 1.0001 * kl(student, teacher, where=where)


def shifted(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    return kl(student, teacher, where=where) - 0.5


def in_half(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    del where
    return raw(student, teacher).float()


def writing(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    student.mul_(1.5)
    return kl(student, teacher, where=where)


def random(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    return kl(student + torch.rand_like(student), teacher, where=where)


def coupled(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    values = kl(student, teacher, where=where)
    return values - values.mean()


def stopped(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    return kl(student, teacher.detach(), where=where)


def broadcasting(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    del where
    return kl(student, teacher)


def branching(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    values = kl(student, teacher, where=where)
    return values if values.sum() > 0 else 0 * values


def rooted(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    return kl(student, teacher, where=where).clamp(min=0).sqrt()


def reduced(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    return kl(student, teacher, where=where).mean()


def ordered(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    return kl(student, teacher, where=where) * torch.arange(1.0, 1.0 + len(student))


def truthy(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    return kl(student, teacher, where=None if where is None else where.bool())


def cold(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    return raw(student / temperature, teacher / temperature)


def silent(student: Logits, teacher: Logits) -> Tensor:
    return raw(student, teacher)


def misnamed(student: Logits, teacher: Logits) -> Tensor:
    return kl(student, teacher)


def flattened(student: Logits, teacher: Logits) -> Tensor:
    return raw(student.flatten(0, -2), teacher.flatten(0, -2))


def rounded(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    """A product that autocast rounds."""
    turn = torch.eye(student.shape[-1], dtype=student.dtype) + 0.1
    return kl((student.to(turn.dtype) @ turn).to(student.dtype), teacher, where=where)


def defaulting(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    """A constant of the default dtype."""
    return kl(student, teacher, where=where) * torch.ones(len(student)).square()


def overflowing(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    del where
    q, p = student.exp() / student.exp().sum(-1, True), teacher.exp() / teacher.exp().sum(-1, True)
    return (p * (p.log() - q.log())).sum(-1)


def averaging(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    """A mean of no samples."""
    return kl(student, teacher, where=where).mean()


def of_one_type(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    """A product that takes operands of one type only."""
    return kl(student, teacher, where=where) * torch.mm(student, teacher.T).isfinite().all(-1)


def backward_only(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    distance = torch.cdist(student, teacher).diagonal()
    return kl(student, teacher, where=where) + distance


BROKEN: list[tuple[Callable[..., Tensor], Callable[..., None], dict[str, Any]]] = [
    (scaled, battery.test_reference, {}),
    (shifted, battery.test_zero_at_equality, {}),
    (shifted, battery.test_nonnegative, {"seed": 0}),
    (rooted, battery.test_finite_gradient_at_equality, {}),
    (reduced, battery.test_one_value_per_position, {}),
    (in_half, battery.test_half_precision, {"half": torch.bfloat16}),
    (stopped, battery.test_gradcheck, {}),
    (masked_last, battery.test_mask_equals_slicing, {"poison": float("nan")}),
    (masked_last, battery.test_all_masked, {}),
    (broadcasting, battery.test_mask_equals_slicing, {"poison": float("inf")}),
    (ordered, battery.test_permutation, {}),
    (coupled, battery.test_vmap, {}),
    (writing, battery.test_pure, {}),
    (random, battery.test_pure, {}),
    (rounded, precision.test_autocast_changes_nothing, {"dtype": torch.float32}),
    (defaulting, precision.test_default_dtype_changes_nothing, {"dtype": torch.float64}),
    (of_one_type, precision.test_mixed_dtypes, {"wide": 1}),
    (overflowing, precision.test_confident_models, {"gap": 90.0, "noise": 0.3}),
    (averaging, precision.test_empty_batch, {}),
    (backward_only, precision.test_forward_mode, {}),
]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("loss", "law", "given"), BROKEN, ids=[f"{f.__name__}-{law.__name__}" for f, law, _ in BROKEN]
)
def test_law_refuses(loss, law, given) -> None:
    case = Case(loss, pair(5, 7), kl_reference)
    with pytest.raises((AssertionError, RuntimeError)):
        law(case, **given)


@pytest.mark.plain
def test_law_refuses_a_mask_that_is_ignored() -> None:
    with pytest.raises(pytest.fail.Exception):
        battery.test_mask_is_never_broadcast(Case(broadcasting, pair(5, 7), kl_reference))


@pytest.mark.plain
def test_law_refuses_a_floating_mask_taken_as_truth() -> None:
    with pytest.raises(pytest.fail.Exception):
        battery.test_mask_is_never_floating(Case(truthy, pair(5, 7), kl_reference), torch.float32)


@pytest.mark.plain
@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_law_refuses_a_temperature_that_is_not_looked_at(value: float) -> None:
    with pytest.raises(pytest.fail.Exception):
        battery.test_temperature_is_positive(Case(cold, pair(5, 7), kl_reference), value)


@pytest.mark.plain
@pytest.mark.parametrize("loss", [silent, misnamed])
def test_law_refuses_a_loss_that_does_not_look_at_its_axes(loss) -> None:
    with pytest.raises(AssertionError):
        battery.test_wrong_number_of_axes(Case(loss, pair(5, 7), kl_reference), "one fewer")


@pytest.mark.plain
def test_law_refuses_an_error_of_torch() -> None:
    with pytest.raises(IndexError):
        battery.test_wrong_number_of_axes(Case(flattened, pair(5, 7), kl_reference), "one fewer")


@pytest.mark.compile
def test_law_refuses_a_branch_on_a_value() -> None:
    with pytest.raises(torch._dynamo.exc.Unsupported):
        battery.test_compiled(Case(branching, pair(5, 7), kl_reference))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_the_loss_that_these_are_made_of_passes() -> None:
    case = Case(kl, pair(5, 7), kl_reference)
    for _, law, given in BROKEN:
        law(case, **given)
