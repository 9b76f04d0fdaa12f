"""Combinations of gradients against the algorithms of their papers, written out in NumPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fkd.gradients import conflict_free, dot, grad_norm, min_norm, momenta, pcgrad, together
from fkd.gradients._balance import balanced
from fkd.gradients._combination import gram, squares, weighted_sum
from fkd.gradients._geometry import nearest_to_zero, orders, surgery


def gradients(count: int, seed: int = 0, dtype: torch.dtype = torch.float64):
    g = torch.Generator().manual_seed(seed)
    return {
        f"term{i}": {
            "student": {
                "w": torch.randn(3, 2, generator=g, dtype=dtype),
                "b": torch.randn(2, generator=g, dtype=dtype),
            },
            "project": {"w": torch.randn(4, generator=g, dtype=dtype)},
        }
        for i in range(count)
    }


def flat(gradient) -> np.ndarray:
    return np.concatenate(
        [x.double().numpy().ravel() for held in gradient.values() for x in held.values()]
    )


@pytest.mark.parametrize("seed", range(4))
def test_pcgrad_is_its_algorithm(seed):
    given = gradients(4, seed)
    order = torch.rand(4, 4, generator=torch.Generator().manual_seed(seed)).argsort(-1)
    rows = [flat(g) for g in given.values()]
    expected = np.zeros_like(rows[0])
    for i, row in enumerate(rows):
        moved = row.copy()
        for j in order[i].tolist():
            if j != i and moved @ rows[j] < 0:
                moved -= (moved @ rows[j]) / (rows[j] @ rows[j]) * rows[j]
        expected += moved
    coefficients = surgery(gram(list(given.values())), order)
    got = flat(weighted_sum(list(given.values()), coefficients.sum(0)))
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


def test_pcgrad_adds_up_gradients_that_agree():
    given = gradients(2)
    given["term1"] = given["term0"]
    combined, state = pcgrad()(given, {}, pcgrad().init(given["term0"], list(given)))
    np.testing.assert_allclose(flat(combined), 2 * flat(given["term0"]))
    assert int(state["drawn"]) == 1


def test_a_gradient_of_zeros_conflicts_with_none():
    given = gradients(3)
    given["term1"] = {m: {n: x * 0 for n, x in h.items()} for m, h in given["term1"].items()}
    combined, _ = pcgrad()(given, {}, pcgrad().init(given["term0"], list(given)))
    assert np.isfinite(flat(combined)).all()


def test_orders_are_permutations_that_change():
    drawn = [orders(4, torch.tensor(i)) for i in range(200)]
    assert all(bool((x.sort(-1).values == torch.arange(4)).all()) for x in drawn)
    first = torch.stack([x[:, 0] for x in drawn]).flatten()
    assert first.bincount(minlength=4).min() > 0.2 * len(first)


def test_momenta_are_one_optimizer_for_each_term():
    combine = momenta({"term0": 0.9, "term1": 0.5})
    state = combine.init(gradients(1)["term0"], ["term0", "term1"])
    velocities = [0.0, 0.0]
    for seed in range(3):
        given = gradients(2, seed)
        rows = [flat(g) for g in given.values()]
        velocities = [mu * v + g for mu, v, g in zip((0.9, 0.5), velocities, rows, strict=True)]
        combined, state = combine(given, {}, state)
        np.testing.assert_allclose(flat(combined), velocities[0] + velocities[1])


def test_dot_with_no_difference_is_momentum():
    combine = dot(task=["term0"], distill=["term1"], momentum=0.9, delta=0.0)
    assert combine.groups == {"task": ("term0",), "distill": ("term1",)}
    parameter = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    sgd = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    mine = torch.zeros(3, dtype=torch.float64)
    state = combine.init({"student": {"w": mine}}, ["task", "distill"])
    for seed in range(4):
        g = torch.Generator().manual_seed(seed)
        a, b = torch.randn(2, 3, generator=g, dtype=torch.float64)
        parameter.grad = a + b
        sgd.step()
        given = {"task": {"student": {"w": a}}, "distill": {"student": {"w": b}}}
        combined, state = combine(given, {}, state)
        mine = mine - 0.1 * combined["student"]["w"]
    torch.testing.assert_close(mine, parameter.detach())


def test_momenta_of_models_that_rest_stay():
    combine = momenta({"term0": 0.9})
    state = combine.init(gradients(1)["term0"], ["term0"])
    _, state = combine(gradients(1), {}, state)
    only = {"term0": {"student": gradients(1)["term0"]["student"]}}
    _, after = combine(only, {}, state)
    assert torch.equal(after["term0"]["project"]["w"], state["term0"]["project"]["w"])


def test_the_weights_of_grad_norm_follow_its_loss():
    g = torch.Generator().manual_seed(0)
    weights = torch.rand(3, generator=g, dtype=torch.float64).requires_grad_()
    norms, ratio = torch.rand(2, 3, generator=g, dtype=torch.float64)
    each = weights * norms
    target = (each.mean() * (ratio / ratio.mean()) ** 1.5).detach()
    (slope,) = torch.autograd.grad((each - target).abs().sum(), weights)
    moved = weights.detach() - 0.01 * slope
    expected = moved * 3 / moved.sum()
    got = balanced(weights.detach(), norms, ratio, alpha=1.5, lr=0.01)
    torch.testing.assert_close(got, expected)


def test_grad_norm_brings_norms_together():
    combine = grad_norm(alpha=0.0, lr=0.02)
    given = gradients(2, dtype=torch.float32)
    small = {m: {n: 0.1 * x for n, x in h.items()} for m, h in given["term1"].items()}
    given = {"term0": given["term0"], "term1": small}
    losses = {"term0": torch.tensor(1.0), "term1": torch.tensor(2.0)}
    state = combine.init(given["term0"], list(given))
    for _ in range(300):
        combined, state = combine(given, losses, state)
    norms = torch.tensor([np.linalg.norm(flat(g)) for g in given.values()])
    each = state["weights"] * norms
    assert abs(float(each[0] - each[1])) < 0.3 * float(each.mean())
    assert abs(float(state["weights"].sum()) - 2.0) < 1e-5
    mixed = sum(w * flat(g) for w, g in zip(state["weights"].tolist(), given.values(), strict=True))
    assert np.abs(mixed - flat(combined)).max() < 0.3


def test_grad_norm_of_some_parameters():
    given = gradients(2)
    own = gram(list(given.values()), under="project")
    rows = [g["project"]["w"] for g in given.values()]
    torch.testing.assert_close(own, torch.stack(rows) @ torch.stack(rows).T)
    torch.testing.assert_close(squares(list(given.values()), under="project"), own.diagonal())
    with pytest.raises(ValueError, match="no parameter under 'head'"):
        gram(list(given.values()), under="head")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_min_norm_is_the_shortest_combination(count):
    rows = torch.randn(count, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = rows + 0.5
    alpha = nearest_to_zero(rows @ rows.T, iterations=500)
    assert abs(float(alpha.sum()) - 1) < 1e-9 and bool((alpha >= 0).all())
    best = float((alpha @ rows).norm())
    grid = [i / 50 for i in range(51)]
    for weights in itertools.product(grid, repeat=count):
        if abs(sum(weights) - 1) < 1e-9:
            tried = torch.tensor(weights, dtype=torch.float64)
            assert best <= float((tried @ rows).norm()) + 1e-3


def test_half_precision_keeps_its_dtype():
    given = gradients(2, dtype=torch.bfloat16)
    for combine in (pcgrad(), min_norm(), grad_norm(), conflict_free()):
        state = combine.init(given["term0"], list(given))
        losses = {name: torch.tensor(1.0) for name in given}
        combined, _ = combine(given, losses, state)
        assert combined["student"]["w"].dtype is torch.bfloat16


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"momentum of 'kd' is 1.0; a number in \[0, 1\)"):
        momenta({"kd": 1.0})
    with pytest.raises(ValueError, match="one momentum for each group"):
        momenta({"kd": 0.5}, {"labels": ["labels"]})
    with pytest.raises(ValueError, match="iterations is 0"):
        min_norm(iterations=0)
    with pytest.raises(ValueError, match="lr is 0"):
        grad_norm(lr=0.0)
    assert together(lambda g: g["a"]).groups is None


@pytest.mark.parametrize("count", [1, 2, 4])
def test_conflict_free_is_its_formula(count):
    g = torch.Generator().manual_seed(count)
    vectors = (
        torch.randn(count, 9, generator=g) * torch.tensor([1.0, 30.0, 0.01, 5.0])[:count, None]
    )
    given = {f"term{i}": {"student": {"a": v[:4], "b": v[4:]}} for i, v in enumerate(vectors)}
    combined, _ = conflict_free()(given, {}, {})
    got = torch.cat([combined["student"]["a"], combined["student"]["b"]])
    units = vectors / vectors.norm(dim=1, keepdim=True)
    direction = torch.linalg.pinv(units.double()) @ torch.ones(count, dtype=torch.float64)
    direction = direction / direction.norm()
    expected = (vectors.double() @ direction).sum() * direction
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)
    along = units @ got
    torch.testing.assert_close(along, along[:1].expand(count), rtol=1e-3, atol=1e-4)
    assert bool((along > 0).all())


def test_conflict_free_where_a_gradient_is_nothing_or_the_same_or_opposite():
    def combined(*vectors):
        given = {f"t{i}": {"m": {"w": torch.tensor(v)}} for i, v in enumerate(vectors)}
        return conflict_free()(given, {}, {})[0]["m"]["w"]

    torch.testing.assert_close(combined([3.0, 1.0], [0.0, 0.0]), torch.tensor([3.0, 1.0]))
    torch.testing.assert_close(combined([3.0, 0.0], [1.0, 0.0]), torch.tensor([4.0, 0.0]))
    assert torch.equal(combined([0.0, 0.0], [0.0, 0.0]), torch.zeros(2))
    opposite = combined([1.0, 0.0], [-1.0, 0.0])
    assert bool(opposite.isfinite().all()) and float(opposite.norm()) < 1e-3
