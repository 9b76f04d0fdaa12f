"""Identities of the decoupled losses and of the label-driven weights."""

from __future__ import annotations

import pytest
import torch

from fkd.losses import (
    dkd,
    kl,
    nkd,
    soft_cross_entropy,
    uskd_others,
    uskd_soft_label,
    uskd_target,
    wsld,
    wsld_weight,
)

from ..laws import close


def triple(*shape: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    s, t = (torch.randn(*shape, generator=g, dtype=torch.float64) for _ in range(2))
    return s, t, torch.randint(shape[-1], shape[:-1], generator=g)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dkd_with_the_weights_of_kl_is_kl(temperature: float) -> None:
    s, t, y = triple(5, 7)
    others = 1 - (t / temperature).softmax(-1).gather(-1, y[:, None]).squeeze(-1)
    value = dkd(s, t, y, alpha=1.0, beta=others, temperature=temperature)
    close(value, kl(s, t, temperature=temperature))


def test_dkd_of_two_classes_is_kl() -> None:
    s, t, y = triple(5, 2)
    close(dkd(s, t, y, alpha=1.0, beta=8.0), kl(s, t))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_dkd_of_extreme_logits_in_half_precision_is_finite(half: torch.dtype) -> None:
    s = torch.tensor([[100.0, 0.0, -100.0]], dtype=half, requires_grad=True)
    out = dkd(s, torch.tensor([[0.0, 90.0, -90.0]], dtype=half), torch.tensor([0]))
    assert out.isfinite().all()
    assert torch.autograd.grad(out.sum(), s)[0].isfinite().all()


def test_dkd_part_of_the_others_ignores_the_label() -> None:
    s, t, y = triple(5, 7)
    moved = s.scatter_add(-1, y[:, None], torch.ones(5, 1, dtype=torch.float64))
    close(dkd(moved, t, y, alpha=0.0), dkd(s, t, y, alpha=0.0))


def test_nkd_without_its_second_part() -> None:
    s, t, y = triple(5, 7)
    target = t.softmax(-1).gather(-1, y[:, None]) * s.log_softmax(-1).gather(-1, y[:, None])
    close(nkd(s, t, y, gamma=0.0), -target.squeeze(-1))


def test_wsld_is_weighted_soft_cross_entropy() -> None:
    s, t, y = triple(5, 7)
    w = wsld_weight(s, t, y)
    assert ((w > 0) & (w < 1)).all()
    close(wsld(s, t, y, temperature=2.0), w * soft_cross_entropy(s, t, temperature=2.0))
    close(wsld(s, t, y, weight=torch.ones(5).double()), soft_cross_entropy(s, t))


def test_wsld_holds_its_weight_constant_unless_it_is_given() -> None:
    s, t, y = triple(5, 7)
    s.requires_grad_()
    w = wsld_weight(s, t, y)
    (default,) = torch.autograd.grad(wsld(s, t, y).sum(), s)
    (through,) = torch.autograd.grad(wsld(s, t, y, weight=w).sum(), s, retain_graph=True)
    (want,) = torch.autograd.grad((w.detach() * soft_cross_entropy(s, t)).sum(), s)
    close(default, want)
    assert not torch.allclose(through, default)


def test_wsld_of_a_certain_teacher_is_finite() -> None:
    t = torch.tensor([[200.0, 0.0]])
    s = torch.zeros(1, 2, requires_grad=True)
    out = wsld(s, t, torch.tensor([0]))
    assert torch.autograd.grad(out.sum(), s)[0].isfinite().all()


def test_uskd_soft_labels_have_mean_one() -> None:
    s, _, y = triple(5, 7)
    soft = uskd_soft_label(s, y)
    close(soft.mean(), torch.ones((), dtype=torch.float64))
    where = torch.tensor([True, True, False, True, False])
    close(uskd_soft_label(s, y, where=where).sum() / 3, torch.ones((), dtype=torch.float64))
    close(
        uskd_target(s, y, soft_label=soft), -soft * s.log_softmax(-1).gather(-1, y[:, None])[:, 0]
    )


def test_uskd_others_depends_on_ranks_alone() -> None:
    s, t, y = triple(5, 7)
    close(uskd_others(s, t, y), uskd_others(s, t.exp() + 3, y))
