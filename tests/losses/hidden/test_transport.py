"""Laws of the transport costs and of the singular vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment, linprog

from fkd.losses import bert_emd, kdsvd, sinkhorn, sinkhorn_plan

from ..case import normal
from ..laws import close


def maps(*shapes, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [normal(*shape)(g) for shape in shapes]


def mass(size):
    return torch.full((size,), 1.0 / size, dtype=torch.float64)


def test_plan_has_the_given_masses():
    cost, a = maps((4, 3))[0].abs(), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    plan = sinkhorn_plan(cost, a, mass(3), iterations=500)
    close(plan.sum(1), a)
    close(plan.sum(0), mass(3))


def test_plan_gives_nothing_to_what_has_no_mass():
    a = torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64)
    plan = sinkhorn_plan(maps((3, 2))[0].abs(), a, mass(2))
    assert (plan[1] == 0).all() and plan.isfinite().all()


def test_sharp_transport_is_the_best_assignment():
    s, t = maps((1, 5, 4), (1, 5, 4))
    cost = (s[0, :, None] - t[0]).square().mean(-1).numpy()
    rows, columns = linear_sum_assignment(cost)
    want = torch.tensor([cost[rows, columns].mean()])
    close(sinkhorn(s, t, epsilon=1e-3, iterations=3000), want, rtol=1e-3)


def test_blunt_transport_is_the_mean_cost():
    s, t = maps((1, 5, 4), (1, 3, 4))
    want = (s[:, :, None] - t[:, None]).square().mean((1, 2, 3))
    close(sinkhorn(s, t, epsilon=1e9), want, rtol=1e-6)


def test_order_of_the_tokens_does_not_matter():
    s, t = maps((2, 5, 4), (2, 3, 4))
    close(sinkhorn(s.flip(1), t.roll(1, 1)), sinkhorn(s, t), rtol=1e-6)


@pytest.mark.parametrize("epsilon", [1e-4, 0.1, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_costs_stay_finite(epsilon, dtype):
    s, t = (1e2 * x.to(dtype) for x in maps((2, 5, 4), (2, 3, 4)))
    s.requires_grad_()
    out = sinkhorn(s, t, epsilon=epsilon)
    (grad,) = torch.autograd.grad(out.sum(), s)
    assert out.isfinite().all() and grad.isfinite().all()


def test_masked_tokens_take_no_part():
    s, t = maps((2, 5, 4), (2, 3, 4))
    student_where = torch.tensor([[1, 1, 1, 0, 0]] * 2).bool()
    teacher_where = torch.tensor([[1, 1, 0]] * 2).bool()
    want = sinkhorn(s[:, :3], t[:, :2])
    s[:, 3:], t[:, 2:] = torch.nan, torch.inf
    s.requires_grad_()
    got = sinkhorn(s, t, student_where=student_where, teacher_where=teacher_where)
    (grad,) = torch.autograd.grad(got.sum(), s)
    close(got, want)
    assert grad.isfinite().all() and (grad[:, 3:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sets_without_tokens_cost_nothing(dtype):
    s, t = (x.to(dtype).requires_grad_() for x in maps((2, 5, 4), (2, 3, 4)))
    where = torch.tensor([[0] * 5, [1] * 5]).bool()
    out = sinkhorn(s, t, student_where=where)
    grads = torch.autograd.grad(out.sum(), (s, t))
    assert out[0] == 0 and out[1] > 0
    assert all(g.isfinite().all() and (g[0] == 0).all() for g in grads)


def test_bert_emd_is_the_linear_programme_as_epsilon_vanishes():
    s, t = maps((1, 6, 3, 4), (1, 6, 4, 4))
    cost = (s[0, :, :, None] - t[0, :, None]).square().mean((0, 3)).numpy()
    a, b = np.full(3, 1 / 3), np.full(4, 1 / 4)
    sums = [np.kron(np.eye(3), np.ones(4)), np.kron(np.ones(3), np.eye(4))]
    best = linprog(cost.ravel(), A_eq=np.vstack(sums), b_eq=np.concatenate([a, b])).fun
    got = bert_emd(s, t, epsilon=1e-3, iterations=2000)
    close(got, torch.tensor([best]), rtol=1e-3)


def test_bert_emd_of_shuffled_layers_is_small():
    s = maps((2, 6, 3, 4))[0]
    close(bert_emd(s, s.flip(-2), epsilon=1e-3), torch.zeros(2).double(), atol=1e-9)


def test_kdsvd_is_zero_for_equal_models_and_ignores_scale():
    a, b = maps((2, 4, 5), (2, 3, 6))
    close(kdsvd(a, 3 * a, b, -2 * b, rank=2), torch.zeros(2).double(), atol=1e-12)


@pytest.mark.parametrize("kind", ["zero", "equal singular values", "rank one"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kdsvd_of_degenerate_maps_has_a_finite_gradient(kind, dtype):
    first, t1, second, t2 = (x.to(dtype) for x in maps((1, 4, 5), (1, 4, 5), (1, 3, 6), (1, 3, 6)))
    first = {
        "zero": 0 * first,
        "equal singular values": torch.eye(4, 5, dtype=dtype)[None],
        "rank one": torch.ones_like(first),
    }[kind]
    for inputs in ((first, t1, second, t2), (t1, first, second, t2)):
        tracked = [x.clone().requires_grad_() for x in inputs]
        out = kdsvd(*tracked, rank=2)
        grads = torch.autograd.grad(out.sum(), tracked)
        assert out.isfinite().all() and all(g.isfinite().all() for g in grads)


@pytest.mark.plain
def test_messages():
    s = torch.ones(2, 3, 4)
    with pytest.raises(ValueError, match=r"torch\.nn\.Linear\(4, 5\)"):
        sinkhorn(s, torch.ones(2, 3, 5))
    with pytest.raises(ValueError, match=r"where has shape \(2, 2\); \(2, 3\) is expected"):
        sinkhorn(s, s, student_where=torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"bert_emd: student_weight has shape \(2,\)"):
        bert_emd(s[None], s[None], student_weight=torch.ones(2))
    with pytest.raises(ValueError, match=r"kdsvd: .* the same number of channels"):
        kdsvd(s, torch.ones(2, 4, 4), s, s)
