"""The order of values, and what counts in a term."""

from __future__ import annotations

import functools

import pytest
import torch

from fkd import Context, Mean, batch, call, module, student, teacher, term
from fkd._objective.evaluation import bound_term, counted_positions, takes
from fkd._objective.plan import Plan
from fkd.losses import cross_entropy, kl, mse, rkd_distance


def evaluate(made, scalars=None, state=None, **values):
    plan = Plan(made.refs)
    bound = bound_term("t", made, plan.place)
    return bound(plan.compute(Context(values)), scalars or {}, state)


def test_children_come_first_and_equal_refs_share_a_place():
    project = module("p")
    refs = [project(student.h[1]), project(student.h[1]), student.h[1], teacher.h[1], student.h]
    plan = Plan(refs)
    assert [repr(r) for r, _ in plan.order] == [
        *("student", "student.h", "student.h[1]", "p(student.h[1])"),
        *("teacher", "teacher.h", "teacher.h[1]"),
    ]
    for i, (_, children) in enumerate(plan.order):
        assert all(c < i for c in children)


def test_every_distinct_value_is_computed_once():
    calls = []

    def double(x):
        calls.append(1)
        return 2 * x

    refs = [call(double, student.x), call(torch.neg, call(double, student.x))]
    values = Plan(refs).compute(Context({"student": {"x": torch.ones(2)}}))
    assert len(calls) == 1
    assert torch.equal(values[-1], torch.full((2,), -2.0))


def test_a_mask_is_passed_on_to_a_loss_that_takes_one():
    seen = {}

    def own(a, b, *, where=None):
        seen["where"] = where
        return a - b

    x = torch.tensor([1.0, 5.0])
    found = evaluate(
        term(own, student, teacher, where=batch.m), student=x, teacher=0 * x,
        batch={"m": torch.tensor([1, 0])},
    )  # fmt: skip
    assert seen["where"].dtype is torch.bool
    assert found.mean == Mean(torch.tensor(1.0), torch.tensor(1.0))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_what_does_not_count_is_blanked_for_a_loss_that_knows_no_masks(poison):
    x = torch.tensor([[1.0, 2.0], [poison, 3.0]], requires_grad=True)
    found = evaluate(
        term(lambda a, b: (a - b).square().sum(-1), student, teacher, where=batch.m),
        student=x, teacher=torch.zeros(2, 2), batch={"m": torch.tensor([True, False])},
    )  # fmt: skip
    found.mean.value.backward()
    assert found.mean.value == 5.0
    assert x.grad.tolist() == [[2.0, 4.0], [0.0, 0.0]]


def test_labels_that_are_ignored_do_not_count():
    logits, labels = torch.randn(4, 3), torch.tensor([0, -100, 2, -100])
    ctx = {"student": logits, "batch": {"y": labels, "m": torch.tensor([1, 1, 0, 0])}}
    assert evaluate(term(cross_entropy, student, batch.y), **ctx).mean.count == 2
    assert evaluate(term(cross_entropy, student, batch.y, where=batch.m), **ctx).mean.count == 1
    other = term(cross_entropy, student, batch.y, ignore_index=2)
    assert evaluate(other, student=logits, batch={"y": labels.clamp(min=0)}).mean.count == 3
    partial = functools.partial(cross_entropy, ignore_index=2)
    found = evaluate(term(partial, student, batch.y), student=logits,
                     batch={"y": labels.clamp(min=0)})  # fmt: skip
    assert found.mean.count == 3


def test_only_losses_that_say_so_count_by_themselves():
    assert counted_positions(cross_entropy) is not None
    assert counted_positions(kl) is None
    assert counted_positions(torch.relu) is None


def test_a_relational_loss_counts_once_whatever_its_mask():
    x = torch.randn(4, 3)
    made = term(rkd_distance, student, teacher, where=batch.m)
    found = evaluate(made, student=x, teacher=2 * x + 1, batch={"m": torch.tensor([1, 1, 1, 0])})
    if found.result.ndim == 0:
        assert found.mean.count == 1
    else:
        assert found.mean.count == 3


def test_a_loss_may_bring_its_own_mean():
    made = term(lambda a: Mean(a.sum(), torch.tensor(7.0)), student)
    assert evaluate(made, student=torch.ones(14)).mean.value == 2.0


def test_a_loss_may_return_one_number():
    assert evaluate(term(lambda a: a.sum(), student), student=torch.ones(3)).mean.value == 3.0


def test_moving_knobs_come_from_the_scalars_and_refs_from_the_context():
    def own(a, *, scale, shift, mode):
        assert mode == "plain"
        return a * scale + shift

    made = term(own, student, scale=lambda step: 1.0, shift=batch.s, mode="plain")
    found = evaluate(
        made, {"t/scale": torch.tensor(3.0)}, student=torch.ones(2), batch={"s": torch.ones(2)}
    )
    assert found.result.tolist() == [4.0, 4.0]


def test_a_function_that_is_an_option_is_passed_as_it_is():
    made = term(lambda a, *, activation: activation(a), student, activation=torch.relu)
    assert evaluate(made, student=torch.tensor([-1.0, 2.0])).result.tolist() == [0.0, 2.0]


def test_state_goes_in_and_comes_out():
    made = term(lambda a, *, state: (a + state, state + 1), student, state=torch.tensor(0))
    found = evaluate(made, state=torch.tensor(5), student=torch.ones(2))
    assert found.result.tolist() == [6.0, 6.0] and found.state == 6


def test_which_arguments_a_function_takes():
    assert takes(kl, "where") and takes(mse, "where")
    assert takes(lambda **options: 0, "where")
    assert not takes(lambda a, b: 0, "where")
    assert takes(functools.partial(kl, temperature=2.0), "where")
