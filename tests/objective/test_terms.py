"""Terms: how they print, what moves, the names of a graph, and the pairing of layers."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fkd
from fkd import batch, layer_map, metric, student, teacher, term
from fkd._objective.terms import flatten, moves
from fkd.losses import cross_entropy, kl, mse
from fkd.schedules import linear


def test_a_term_prints_as_the_code_that_made_it():
    made = term(
        kl,
        student.logits,
        teacher.logits,
        temperature=linear(8.0, 2.0, 100),
        where=batch.attention_mask,
        weight=0.9,
    )
    assert repr(eval(repr(made), {**vars(fkd), **vars(fkd.schedules), "kl": kl})) == repr(made)
    assert repr(metric(mse, student.logits, teacher.logits)) == (
        "metric(mse, student.logits, teacher.logits)"
    )


def test_a_term_reads_its_arguments_options_weight_and_mask():
    made = term(
        mse, student.a, teacher.b, weight=student.param("w"), where=batch.m, scale=batch.s, n=3
    )
    assert set(made.refs) == {student.a, teacher.b, student.param("w"), batch.m, batch.s}


@pytest.mark.parametrize(
    ("knob", "expected"),
    [
        (1.0, False),
        (2, False),
        (None, False),
        (torch.tensor(1.0), True),
        (torch.tensor(1), False),
        (torch.ones(3), False),
        (linear(0.0, 1.0, 3), True),
        (lambda step: 1.0, True),
        (student.logits, False),
        (torch.relu, False),
        (float, False),
        (lambda: 1.0, False),
        (lambda a, b: 1.0, False),
    ],
)
def test_what_may_move_from_step_to_step(knob, expected):
    assert moves(knob) is expected


def test_moving_knobs_are_found_by_name():
    made = term(kl, student.a, teacher.a, temperature=lambda step: 2.0, weight=torch.tensor(1.0))
    assert set(made.moving) == {"temperature", "weight"}
    assert term(kl, student.a, teacher.a, temperature=2.0).moving == {}


def test_the_keys_of_a_graph_are_the_names():
    one = term(kl, student.logits, teacher.logits)
    graph = {"kd": one, "hidden": {1: one, "deep": {"x": one}}, "list": [one, (one,)]}
    assert list(flatten(graph)) == ["kd", "hidden/1", "hidden/deep/x", "list/0", "list/1/0"]
    assert list(flatten(one)) == ["loss"]
    assert flatten({}) == {}


def test_two_terms_of_one_name_are_refused():
    one = term(kl, student.logits, teacher.logits)
    with pytest.raises(ValueError, match=r"term 'a/b' is given twice\. Rename"):
        flatten({"a": {"b": one}, "a/b": one})


def test_what_is_no_term_is_refused():
    with pytest.raises(TypeError, match=r"terms\['kd'\] is a function; a term.*Wrap the loss"):
        flatten({"kd": kl})
    with pytest.raises(TypeError, match=r"terms\['a/b'\] is a str"):
        flatten({"a": {"b": "kl"}})


def test_an_argument_that_is_no_ref_is_refused():
    with pytest.raises(TypeError, match="'logits' is not a ref"):
        term(cross_entropy, "logits", batch.labels)


@given(st.integers(1, 12), st.integers(1, 48), st.sampled_from(["uniform", "last", "skip"]))
def test_layer_maps_are_increasing_and_in_range(few, many, strategy):
    few, many = min(few, many), max(few, many)
    pairs = layer_map(student=few, teacher=many, strategy=strategy)
    assert [s for s, _ in pairs] == list(range(1, few + 1))
    chosen = [t for _, t in pairs]
    assert all(a < b for a, b in itertools.pairwise(chosen))
    assert 1 <= chosen[0] and chosen[-1] <= many
    if strategy != "skip":
        assert chosen[-1] == many


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"student": 0, "teacher": 4}, "student=0, teacher=4; both must be >= 1"),
        ({"student": 5, "teacher": 4}, "needs at least as many teacher layers. Give the list"),
        ({"student": 2, "teacher": 4, "strategy": "middle"}, "'middle'; expected one of"),
        ({"student": 2, "teacher": 4, "strategy": [1]}, r"teacher layers \[1\]; 2 numbers"),
        ({"student": 2, "teacher": 4, "strategy": [1, 5]}, r"\[1, 5\]; 2 numbers from 0"),
    ],
)
def test_layer_maps_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        layer_map(**options)


def test_layer_map_by_a_function_or_a_list():
    assert layer_map(student=2, teacher=8, strategy=lambda s: 4 * s) == ((1, 4), (2, 8))
    assert layer_map(student=3, teacher=2, strategy=[0, 1, 2]) == ((1, 0), (2, 1), (3, 2))


@pytest.mark.parametrize("hot", [torch.tensor(300.0), fkd.schedules.linear(300.0, 1.0, 10)])
def test_a_temperature_that_moves_is_not_beyond_what_float32_can(hot):
    def of(temperature):
        return fkd.Objective(
            {"kd": fkd.term(kl, fkd.student.logits, fkd.teacher.logits, temperature=temperature)},
            student=fkd.trainable(torch.nn.Linear(4, 3)),
            teacher=fkd.frozen(torch.nn.Linear(4, 3)),
        )

    x = torch.randn(2, 4)
    with pytest.raises(ValueError, match="kd/temperature is 300 at step 0; at most 250"):
        fkd.check(of(hot), x)
    for mild in (torch.tensor(2.0), fkd.schedules.linear(8.0, 1.0, 10), 300.0):
        assert fkd.check(of(mild), x).rows
    with pytest.raises(ValueError, match="kd/temperature is 500 at step 10"):
        of(fkd.schedules.linear(1.0, 500.0, 10)).scalars(10)
