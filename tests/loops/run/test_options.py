"""The arguments of `fit`: listed once, and what cannot be meant is refused at once."""

from __future__ import annotations

import gc
import inspect
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import fkd
from fkd import batch, student, teacher, term
from fkd.loops import evaluate, fit, report, run
from fkd.loops._run.options import Arguments, Options
from fkd.losses import mse

from ..training import batches, make, train


def score(name: str = "score") -> dict[str, Any]:
    return {name: fkd.loops.collect(lambda y: 1.0, batch["y"])}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": score()}, "metrics needs dev"),
        ({"evaluate_every": 2}, "evaluate_every needs dev"),
        ({"compile_evaluation": True}, "compile_evaluation needs dev"),
        ({"best": "accuracy"}, "best needs dev"),
        ({"patience": 1}, "patience needs dev"),
        ({"tensorboard": True}, "tensorboard needs log_dir"),
        ({"save_every": 3}, "save_every needs checkpoint_dir"),
        ({"epochs": -1}, "epochs is -1; at least 0"),
        ({"keep_best": -1}, "keep_best is -1; at least 0"),
        ({"patience": 0, "dev": [1]}, "patience is 0; at least 1"),
        ({"metrics": score("loss/ce"), "dev": [1]}, "a metric is named 'loss/ce'"),
        ({"metrics": score("loss"), "dev": [1]}, "a metric is named 'loss'"),
        ({"metrics": score("step"), "dev": [1]}, "a metric is named 'step'"),
    ],
)
def test_what_would_be_ignored_or_wrong_is_refused(options, message):
    step, state = make()
    with pytest.raises(ValueError, match=f"fit: {message}"):
        fit(step, state, batches(), **{"epochs": 1, **options})


@pytest.mark.plain  # the run-time type check would refuse them first
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 2.5}, "epochs is 2.5; a whole number"),
        ({"callbacks": print}, "callbacks is one function; a list"),
        ({"callbacks": [1]}, r"callbacks\[0\] is 1; a function"),
        ({"prepare": 1}, "prepare is 1; a function"),
    ],
)
def test_what_is_of_another_type_is_refused(options, message):
    step, state = make()
    with pytest.raises(ValueError, match=f"fit: {message}"):
        fit(step, state, batches(), **{"epochs": 1, **options})


def test_a_reserved_name_is_refused_by_evaluate_and_by_objectives():
    step, state = make()
    with pytest.raises(ValueError, match="evaluate: a metric is named 'loss/kd'"):
        evaluate(step.objective, state, batches(), metrics=score("loss/kd"))
    net, other = fkd.trainable(nn.Linear(2, 2)), fkd.frozen(nn.Linear(2, 2))
    compared = term(mse, student.output, teacher.output)
    wrong = fkd.Objective({"total": compared}, student=net, teacher=other)
    with pytest.raises(fkd.ObjectiveError, match="a term is named 'total'"):
        fkd.check(wrong, torch.ones(2, 2))
    named = term(mse, student.output, fkd.ref("total").output)
    wrong = fkd.Objective({"a": named}, student=net, total=other)
    with pytest.raises(fkd.ObjectiveError, match="a model is named 'total'"):
        fkd.check(wrong, torch.ones(2, 2))
    inside = fkd.Objective({"total": {"kd": compared}}, student=net, teacher=other)
    assert list(inside.terms) == ["total/kd"] and not inside.problems


def _values(*values: float, name: str) -> dict[str, Any]:
    left = list(values)
    return {name: fkd.loops.collect(lambda y: left.pop(0), batch["y"])}


@pytest.mark.parametrize(
    ("name", "best", "at"),
    [("perplexity", 1.0, 2), ("word_error_rate", 1.0, 2), ("macro_f1", 5.0, 1)],
)
def test_the_name_says_which_is_best(name, best, at):
    metrics = _values(5.0, 1.0, 3.0, name=name)
    more = {"dev": batches(), "evaluate_every": 1, "steps": 3}
    last = train(None, best=name, metrics=metrics, **more)[-1]
    assert last.values == {"best": best, "best_step": at}


def test_a_name_that_does_not_say_is_asked_about():
    more = {"dev": batches(), "best": "width", "steps": 1}
    with pytest.raises(ValueError, match=r"best='width' does not say.*higher_is_better=True"):
        train(None, metrics=score("width"), **more)
    assert train(None, metrics=score("width"), higher_is_better=False, **more)[-1].step == 1


def test_an_infinite_value_is_never_best():
    inf = float("inf")
    metrics = _values(inf, 0.9, 0.8, -inf, name="score")
    more = {"dev": batches(), "evaluate_every": 1, "steps": 4}
    last = train(None, best="score", metrics=metrics, **more)[-1]
    assert last.values == {"best": 0.9, "best_step": 2}


def test_the_report_goes_by_the_same_rule(tmp_path):
    metrics = {**_values(5.0, 1.0, name="perplexity"), **_values(2.0, 3.0, name="width")}
    more = {"dev": batches(), "evaluate_every": 1, "steps": 2, "log_dir": tmp_path}
    train(None, best="perplexity", metrics=metrics, **more)
    page = report(tmp_path, metric="eval/perplexity").read_text()
    assert "Best eval/perplexity" in page and "at step 2" in page
    with pytest.raises(ValueError, match=r"metric='eval/width' does not say.*higher_is_better"):
        report(tmp_path, metric="eval/width")
    page = report(tmp_path, metric="eval/width", higher_is_better=True).read_text()
    assert "Best eval/width" in page


# -- the signature --------------------------------------------------------------------------


@pytest.mark.parametrize("function", [fit, run])
def test_the_signature_is_that_of_the_arguments(function):
    parameters = inspect.signature(function).parameters
    assert list(parameters)[:4] == ["step", "state", "loader", "epochs"]
    assert parameters["log_every"].default == 50
    assert parameters["log_every"].kind is inspect.Parameter.KEYWORD_ONLY
    assert set(parameters) == set(inspect.signature(Arguments).parameters)


def test_every_option_is_documented():
    text = inspect.getdoc(fit) or ""
    for name in inspect.signature(Options).parameters:
        assert f"\n  {name}:" in text or f"\n  {name}, " in text or f", {name}:" in text, name


def test_an_unknown_option_is_a_type_error():
    step, state = make()
    with pytest.raises(TypeError, match="epoch"):
        fit(step, state, batches(), epoch=1)


def test_arguments_may_be_named():
    step, state = make()
    assert run(step=step, state=state, loader=batches(), epochs=1).state.step == 5


# -- never asked for ------------------------------------------------------------------------


def test_a_fit_that_nobody_iterates_warns():
    step, state = make()
    with pytest.warns(RuntimeWarning, match="nothing was trained"):
        fit(step, state, batches(), epochs=1)
        gc.collect()


def test_a_fit_that_was_begun_or_closed_does_not_warn():
    step, state = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        events = fit(step, state, batches(), epochs=1)
        assert next(events).kind == "start"
        del events
        closed = fit(step, state, batches(), epochs=1)
        closed.close()
        assert list(closed) == []
        with pytest.raises(ValueError, match="neither epochs nor steps"):
            fit(step, state, batches())
        gc.collect()


# -- how they print -------------------------------------------------------------------------


def test_events_and_results_print_in_a_line(tmp_path):
    step, state = make()
    events = list(fit(step, state, batches(), epochs=1, log_every=2, checkpoint_dir=tmp_path))
    assert all(
        len(repr(e)) < 300 and "\n" not in repr(e) and "tensor" not in repr(e) for e in events
    )
    log = next(e for e in events if e.kind == "log")
    assert repr(log).startswith("Event('log', step=2, epoch=0, values={loss/total: ")
    step, state = make()
    result = run(step, state, batches(), epochs=1, dev=batches())
    assert repr(result).startswith("Result(step=5, 1 evaluations, best=")
    assert len(repr(result)) < 150
