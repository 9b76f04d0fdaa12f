"""Wrong input: what is said, before anything runs, and that all of it is said at once."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import fkd
from fkd import (
    Objective,
    ObjectiveError,
    batch,
    check,
    ema,
    frozen,
    ref,
    student,
    teacher,
    term,
    trainable,
)
from fkd.losses import cross_entropy, kl, mse, rkd_distance
from fkd.schedules import linear

from ..models import CNN, MLP, images, leaves, random_objective, tokens

TOKENS = tokens()
project = fkd.module("project")


def models(**more: Any) -> dict[str, Any]:
    return {"student": trainable(MLP(8, 2)), "teacher": frozen(MLP(12, 4)), **more}


def report(terms: Any, data: Any = TOKENS, **named: Any) -> str:
    """The message of the error that checking raises."""
    with pytest.raises(ObjectiveError) as caught:
        check(Objective(terms, **(named or models())), data)
    return str(caught.value)


def logits(**options: Any) -> fkd.Term:
    return term(kl, student.logits, teacher.logits, **options)


SHARED = MLP()

WRONG: dict[str, tuple[Any, Any, Any, list[str]]] = {
    "unknown output": (
        {"kd": term(kl, student.logit, teacher.logits)}, TOKENS, {},
        ["term 'kd'", "student.logit:", "Did you mean 'logits'?", "hidden_states"],
    ),
    "unknown field of the batch": (
        {"kd": term(cross_entropy, student.logits, batch.label)}, TOKENS, {},
        ["term 'kd'", "batch.label:", "Did you mean 'labels'?", "attention_mask"],
    ),
    "layer out of range": (
        {"h": term(mse, student.hidden_states[7], teacher.hidden_states[0])}, TOKENS, {},
        ["term 'h'", "student.hidden_states[7]", "there are 3", "0..2"],
    ),
    "unknown submodule": (
        {"h": term(mse, student.tap("layer.1"), teacher.hidden_states[0])}, TOKENS, {},
        ["term 'h'", "no submodule 'layer.1'", "Did you mean 'layers.1'", "Available:"],
    ),
    "unknown parameter": (
        {"h": term(lambda w: w.sum(), student.param("weight"))}, TOKENS, {},
        ["term 'h'", "no parameter or buffer 'weight'", "Did you mean", "head.weight"],
    ),
    "unknown root": (
        {"kd": term(kl, student.logits, ref("techer").logits)}, TOKENS, {},
        ["term 'kd'", "ref('techer')", "no such model", "Did you mean 'teacher'?", "Models:"],
    ),
    "unknown adapter": (
        {"kd": term(mse, project(student.logits), teacher.logits)}, TOKENS, {},
        ["term 'kd'", "project(student.logits)", "no such model", "project=fkd."],
    ),
    "features that differ": (
        {"h": term(mse, student.hidden_states[1], teacher.hidden_states[1])}, TOKENS, {},
        ["term 'h'", "(6, 7, 8)", "(6, 7, 12)", "torch.nn.Linear(8, 12)", "fkd.module('project')"],
    ),
    "channels that differ": (
        {"h": term(mse, student.maps[0], teacher.maps[0])}, images(),
        {"student": trainable(CNN(4)), "teacher": frozen(CNN(8))},
        ["term 'h'", "(4, 4, 8, 8)", "torch.nn.Conv2d(4, 8, 1)"],
    ),
    "a mask of another shape": (
        {"kd": logits(where=batch.x)}, {**TOKENS, "x": TOKENS["x"]}, {},
        ["term 'kd'", "where=batch.x", "float32", "0/1 integers", "where=batch.x > 0"],
    ),
    "a mask of too few axes": (
        {"kd": logits(where=batch.m)}, {**TOKENS, "m": torch.ones(6, dtype=torch.bool)}, {},
        ["term 'kd'", "(6,)", "(6, 7)", "where=batch.m"],
    ),
    "a mask for a loss of the user's own": (
        {"kd": term(lambda a, b: (a - b).square(), student.logits, teacher.logits,
                    where=batch.attention_mask)}, TOKENS, {},
        ["term 'kd'", "(6, 7)", "(6, 7, 5)", "must have the shape"],
    ),
    "a mask that is not a tensor": (
        {"kd": logits(where=student.hidden_states)}, TOKENS, {},
        ["term 'kd'", "a tuple of 3", "a mask is expected"],
    ),
    "integer logits": (
        {"kd": term(kl, batch.labels, teacher.logits), "ok": logits()}, TOKENS, {},
        ["term 'kd'", "int64", "batch.labels"],
    ),
    "labels of floats": (
        {"kd": term(cross_entropy, student.logits, batch.y)},
        {**TOKENS, "y": torch.zeros(6, 7)}, {},
        ["term 'kd'", "batch.y", "float"],
    ),
    "a model that is trainable and frozen": (
        {"kd": logits()}, TOKENS, {"student": trainable(SHARED), "teacher": frozen(SHARED)},
        ["'student' and 'teacher'", "both trainable and frozen", "copy.deepcopy", "fkd.ema"],
    ),
    "a model under two trainable names": (
        {"kd": logits()}, TOKENS, {"student": trainable(SHARED), "teacher": trainable(SHARED)},
        ["'student' and 'teacher'", "trainable under two names"],
    ),
    "a bare module": (
        {"kd": logits()}, TOKENS, {"student": trainable(MLP()), "teacher": MLP()},
        ["model 'teacher' is a MLP", "fkd.frozen(module)"],
    ),
    "a model that is no module": (
        {"kd": logits()}, TOKENS,
        lambda: {"student": trainable(MLP()), "teacher": frozen(MLP)},
        ["model 'teacher'", "not a torch.nn.Module"],
    ),
    "a model that is called batch": (
        {"kd": logits()}, TOKENS, models(batch=frozen(MLP())),
        ["named 'batch'", "Rename"],
    ),
    "nothing to train": (
        {"kd": logits()}, TOKENS, {"student": frozen(MLP()), "teacher": frozen(MLP())},
        ["no model has a parameter to train", "fkd.trainable"],
    ),
    "no terms": ({}, TOKENS, {}, ["no terms to minimise"]),
    "only metrics": (
        {"m": fkd.metric(kl, student.logits, teacher.logits)}, TOKENS, {},
        ["no terms to minimise"],
    ),
    "an EMA of nothing": (
        {"kd": logits()}, TOKENS, {"student": trainable(MLP()), "teacher": ema("studnt")},
        ["model 'teacher'", "'studnt'", "Did you mean 'student'?"],
    ),
    "an EMA of a frozen model": (
        {"kd": logits()}, TOKENS, models(slow=ema("teacher")),
        ["model 'slow'", "is not trainable", "Trainable models: student"],
    ),
    "a decay out of range": (
        {"kd": logits()}, TOKENS, models(slow=ema("student", decay=1.5)),
        ["model 'slow'", "decay is 1.5", "from 0 to 1"],
    ),
    "a weight that is no number": (
        {"kd": logits(weight="0.5")}, TOKENS, {},
        ["term 'kd'", "weight is '0.5'", "a str", "schedule"],
    ),
    "a weight that is not finite": (
        {"kd": logits(weight=float("nan"))}, TOKENS, {}, ["term 'kd'", "weight is nan"],
    ),
    "a weight with axes": (
        {"kd": logits(weight=torch.ones(3))}, TOKENS, {},
        ["term 'kd'", "weight is a tensor (3,)", "0-d tensor"],
    ),
    "a schedule that fails": (
        {"kd": logits(weight=lambda step: 1 / step)}, TOKENS, {},
        ["term 'kd'", "failed at step 0", "ZeroDivisionError"],
    ),
    "a temperature of zero": (
        {"kd": logits(temperature=0.0)}, TOKENS, {},
        ["term 'kd'", "temperature is 0.0", "a positive number is expected"],
    ),
    "a temperature that is no number": (
        {"kd": logits(temperature="4")}, TOKENS, {}, ["term 'kd'", "temperature is '4'", "a str"],
    ),
    "an unknown option": (
        {"kd": logits(temprature=4.0)}, TOKENS, {},
        ["term 'kd'", "kl has no option 'temprature'", "Did you mean 'temperature'?"],
    ),
    "an argument too few": (
        {"kd": term(kl, student.logits)}, TOKENS, {},
        ["term 'kd'", "kl(", "missing", "teacher_logits"],
    ),
    "an argument too many": (
        {"kd": term(kl, student.logits, teacher.logits, batch.labels)}, TOKENS, {},
        ["term 'kd'", "kl(", "too many positional"],
    ),
    "a loss that is no function": (
        lambda: {"kd": term("kl", student.logits, teacher.logits)}, TOKENS, {},
        ["term 'kd'", "'kl'", "a function is expected", "from fkd.losses import"],
    ),
    "a loss that does not return a tensor": (
        {"kd": term(lambda a, b: 3.0, student.logits, teacher.logits)}, TOKENS, {},
        ["term 'kd'", "returned a float", "one value for each position"],
    ),
    "a loss that fails": (
        {"kd": term(lambda a, b: a @ b, student.logits, teacher.logits)}, TOKENS, {},
        ["term 'kd'", "student.logits -> (6, 7, 5)", "teacher.logits -> (6, 7, 5)"],
    ),
    "a loss that would broadcast": (
        {"kd": term(lambda a, b: (a - b).sum(-1), student.logits, batch.one)},
        {**TOKENS, "one": torch.ones(6, 1, 5)}, {},
        ["term 'kd'", "(6, 7, 5) and (6, 1, 5) would be broadcast", "expand"],
    ),
    "a student that nothing reads": (
        {"kd": logits()}, TOKENS, models(spare=trainable(MLP())),
        ["model 'spare' is trainable", "no term reaches it", "leave it out"],
    ),
    "parameters that nothing reads": (
        {"h": term(mse, project(student.hidden_states[1]), teacher.hidden_states[1])}, TOKENS,
        models(project=trainable(nn.Linear(8, 12))),
        ["model 'student'", "no term reaches", "layers.1.weight", "unused=['layers.1'"],
    ),
    "a loss that no parameter reaches": (
        {"kd": term(kl, teacher.logits, teacher.logits)}, TOKENS, {},
        ["does not depend on any trainable parameter"],
    ),
    "a forward that fails": (
        {"kd": logits()}, {**TOKENS, "x": torch.ones(6, 7, 9)}, {},
        ["model 'student'", "forward failed", "x=a tensor (6, 7, 9)", "inputs="],
    ),
    "a batch without what the forward needs": (
        {"kd": logits()}, {"inputs": torch.ones(6, 7, 6)}, {},
        ["model 'student'", "forward failed", "a mapping with inputs", "missing", "'x'"],
    ),
    "inputs that fail": (
        {"kd": logits()}, TOKENS,
        {"student": trainable(MLP(), inputs=lambda b: b["xx"]), "teacher": frozen(MLP())},
        ["model 'student'", "inputs=", "KeyError", "'xx'"],
    ),
    "attention of a model that is no transformer": (
        {"a": term(mse, student.attention(0), teacher.attention(0))}, TOKENS, {},
        ["term 'a'", "student.attention(0)", "MLP, not a transformers model", "tap("],
    ),
    "a function of the context that fails": (
        {"kd": term(kl, lambda ctx: ctx["student"].nothing, teacher.logits)}, TOKENS, {},
        ["term 'kd'", "AttributeError", "nothing"],
    ),
    "a batch that is empty": (
        {"kd": logits()}, {}, {}, ["model 'student'", "forward failed"],
    ),
}  # fmt: skip


@pytest.mark.plain
@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_reported(name):
    terms, data, named, expected = WRONG[name]
    # What the run-time type check refuses is made here, not above.
    terms, named = (made() if callable(made) else made for made in (terms, named))
    message = report(terms, data, **named)
    missing = [part for part in expected if part not in message]
    assert not missing, message


@pytest.mark.plain
def test_a_mistake_is_said_once_however_many_terms_make_it():
    terms = {str(i): term(kl, student.logit, teacher.logits) for i in range(4)}
    assert report(terms).startswith("1 problem in the objective:")


@pytest.mark.plain
def test_all_mistakes_that_show_without_a_batch_are_reported_at_once():
    terms = {
        "a": term(kl, student.logits, ref("techer").logits),
        "b": logits(temprature=4.0),
        "c": term(mse, student.tap("nowhere"), teacher.logits),
        "d": logits(weight="heavy"),
        "e": logits(temperature=-1.0),
    }
    objective = Objective(terms, **models(slow=ema("nobody"), bare=MLP()))
    assert len(objective.problems) == 7
    with pytest.raises(ObjectiveError, match="7 problems") as caught:
        check(objective, TOKENS)
    assert caught.value.problems == tuple(objective.problems)
    with pytest.raises(ObjectiveError, match="7 problems"):
        objective.init()
    with pytest.raises(ObjectiveError, match="7 problems"):
        objective(fkd.Parts({}, {}, {}, {}), TOKENS)


@pytest.mark.plain
def test_all_mistakes_that_show_on_a_batch_are_reported_at_once():
    terms = {
        "a": term(kl, student.logit, teacher.logits),
        "b": term(mse, student.hidden_states[1], teacher.hidden_states[9]),
        "c": term(mse, student.hidden_states[1], teacher.hidden_states[1]),
        "d": logits(where=batch.x),
        "e": term(cross_entropy, student.logits, batch.lables),
    }
    message = report(terms)
    assert message.startswith("5 problems in the objective:")
    positions = [message.index(part) for part in ("'logit'", "hidden_states[9]", "Linear(8, 12)")]
    assert all(p > 0 for p in positions)


@pytest.mark.plain
def test_the_other_models_are_checked_where_one_fails():
    broken = trainable(MLP(), inputs=lambda b: b["xx"])
    terms = {"kd": logits(), "h": term(mse, teacher.hidden_states[9], teacher.hidden_states[0])}
    message = report(terms, student=broken, teacher=frozen(MLP()))
    assert "2 problems" in message and "KeyError" in message and "hidden_states[9]" in message


def test_an_objective_error_is_a_value_error():
    assert issubclass(ObjectiveError, ValueError)


# What is right


@pytest.mark.parametrize("seed", range(6))
def test_checking_changes_nothing_and_computes_nothing(seed):
    objective, data = random_objective(seed), tokens(seed=seed)
    parts = objective.init()
    state = torch.get_rng_state()
    before = leaves([parts, data])
    check(objective, data)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(before, leaves([parts, data]), strict=True))
    assert all(
        p.grad is None for m in objective.models.values() if m.module for p in m.module.parameters()
    )


def test_the_table():
    objective = Objective(
        {
            "kd": logits(temperature=linear(8.0, 2.0, 10), where=batch.attention_mask),
            "labels": term(cross_entropy, student.logits, batch.labels, weight=0.1),
            "pairs": term(rkd_distance, student.logits[:, 0], teacher.logits[:, 0]),
            "m": fkd.metric(mse, student.logits, teacher.logits),
        },
        **models(slow=ema("student"), spare=frozen(nn.Linear(2, 2))),
    )
    found = check(objective, TOKENS)
    count = int(TOKENS["attention_mask"].sum())
    rows = {r.term: r for r in found.rows}
    assert rows["kd"].positions == rows["labels"].positions == f"{count} of 42"
    assert rows["m"].positions == "42"
    assert (rows["kd"].loss, rows["kd"].student) == ("kl", "(6, 7, 5)")
    assert (rows["kd"].teacher, rows["kd"].other) == ("(6, 7, 5)", "")
    assert (rows["labels"].teacher, rows["labels"].other) == ("", "(6, 7)")  # of no model
    assert rows["labels"].weight == "0.1"
    assert rows["m"].weight == "metric"
    lines = str(found).splitlines()
    heads = ["term", "loss", "student", "teacher", "other", "weight", "positions"]
    assert lines[0].split() == heads
    assert len({line.index("kl") for line in lines[2:3]} | {lines[0].index("loss")}) == 1
    assert "student: MLP, trainable, 261 parameters" in str(found)
    assert "slow: MLP, ema of student" in str(found)
    assert any(line.endswith("6 parameters, unused") for line in lines)
    assert lines[-1].startswith("note: term 'm': ") and lines[-1].endswith(
        "are padding: where=batch.attention_mask."
    )


def test_masks_and_labels_count_together():
    data = tokens()
    data["labels"][0, 0] = -100
    objective = Objective(
        term(cross_entropy, student.logits, batch.labels, where=batch.attention_mask), **models()
    )
    assert (
        check(objective, data).rows[0].positions == f"{int(data['attention_mask'].sum()) - 1} of 42"
    )


def test_parameters_that_are_meant_to_be_unused_are_fine():
    objective = Objective(
        term(mse, student.hidden_states[1], teacher.hidden_states[1]),
        student=trainable(MLP(8, 2), unused=["layers.1", "norm", "head"]),
        teacher=frozen(MLP(8, 4)),
    )
    assert check(objective, TOKENS).rows[0].positions == "42"


def test_a_forward_that_looks_at_values_is_run_for_real():
    class Looks(nn.Linear):
        def forward(self, x):
            return super().forward(x) * (2.0 if x.sum().item() > 0 else 1.0)

    objective = Objective(
        term(mse, student.logits, teacher.logits),
        student=trainable(Looks(6, 5)),
        teacher=frozen(nn.Linear(6, 5)),
    )
    assert check(objective, torch.randn(3, 6)).rows[0].positions == "3"


def test_every_trainable_leaf_gets_a_gradient_or_is_named():
    net = MLP(8, 3)
    objective = Objective(
        term(mse, student.hidden_states[2], teacher.hidden_states[2]),
        student=trainable(net),
        teacher=frozen(MLP(8, 4)),
    )
    parts = objective.init()
    with pytest.raises(ObjectiveError) as caught:
        check(objective, TOKENS)
    for held in parts.trainable.values():
        for p in held.values():
            p.requires_grad_()
    loss, _ = objective(parts, TOKENS)
    names = list(parts.trainable["student"])
    grads = torch.autograd.grad(loss, list(parts.trainable["student"].values()), allow_unused=True)
    lost = [n for n, g in zip(names, grads, strict=True) if g is None]
    (problem,) = caught.value.problems
    assert lost and f"{len(lost)} of its {len(names)}" in problem
    assert all(n in problem for n in lost[:4])
    unused = eval(problem.partition("unused=")[2].partition("]")[0] + "]")
    kept = Objective(
        objective.terms["loss"],
        student=trainable(net, unused=unused),
        teacher=objective.models["teacher"],
    )
    check(kept, TOKENS)
    assert not set(kept.init().trainable["student"]) & set(lost)


def problem_of_two_widths(loss) -> str:
    """What is said of a loss between 4 and 5 numbers a row."""
    objective = Objective(
        term(loss, student.logits, teacher.logits),
        student=trainable(nn.Linear(6, 4)),
        teacher=frozen(nn.Linear(6, 5)),
    )
    with pytest.raises(ObjectiveError) as caught:
        check(objective, torch.randn(2, 6))
    (problem,) = caught.value.problems
    return problem


@pytest.mark.plain
def test_a_width_that_differs_gets_one_hint():
    problem = problem_of_two_widths(mse)
    assert problem.count("torch.nn.Linear(4, 5)") == 1 == problem.count("fkd.trainable")
    assert "fkd.module('project')(student.logits)" in problem


@pytest.mark.plain
def test_two_vocabularies_get_a_cut_instead_of_an_adapter():
    problem = problem_of_two_widths(kl)
    assert "teacher.logits[..., :4]" in problem and "fkd.losses.uld" in problem
    assert "Linear" not in problem


def test_a_copy_is_not_shared():
    net = MLP()
    objective = Objective(logits(), student=trainable(net), teacher=frozen(copy.deepcopy(net)))
    assert check(objective, TOKENS).rows


def test_a_padded_vocabulary_is_no_case_for_an_adapter():
    message = report({"kd": logits()}, student=trainable(MLP(8, 2)), teacher=frozen(wider()))
    assert "student.logits[..., :5], teacher.logits[..., :5]" in message
    assert "adapter" not in message


def wider() -> nn.Module:
    """Of more classes than the student."""
    model = MLP(12, 4)
    model.head = nn.Linear(12, 7)
    return model


def test_heads_stand_in_their_columns_and_say_what_counts():
    hidden, weight = student.hidden_states[-1], student.param("head.weight")
    terms = {
        "head": term(
            fkd.losses.head_divergence,
            *(hidden, weight, teacher.hidden_states[-1], teacher.param("head.weight")),
            labels=batch.labels,
            divergence=fkd.losses.head.kl(),
        )
    }
    small = trainable(MLP(8, 2), unused=["norm", "head.bias"])
    row = check(Objective(terms, **models(student=small)), TOKENS).rows[0]
    assert row.student.startswith("(") and row.student.endswith(", 8)")
    assert row.teacher.endswith(", 12)") and row.teacher.count("(") == 2
    assert row.other == "(6, 7)"
    assert row.positions == f"{int((TOKENS['labels'] != -100).sum())} of 42"


def test_a_column_in_which_no_term_has_a_shape_is_left_out():
    alone = check(Objective({"kd": logits()}, **models()), TOKENS)
    assert str(alone).split()[:6] == ["term", "loss", "student", "teacher", "weight", "positions"]
    assert "other" not in alone._repr_html_()


def one_number(student_x: torch.Tensor, teacher_x: torch.Tensor) -> torch.Tensor:
    return (student_x - teacher_x).square().mean()


def test_a_mask_cannot_leave_anything_out_of_one_number():
    masked = term(one_number, student.logits, teacher.logits, where=batch.labels != -100)
    assert "returned one number, of which `where` can leave nothing out" in report({"a": masked})
    whole = term(one_number, student.logits, teacher.logits)
    assert check(Objective({"a": whole}, **models()), TOKENS).rows[0].positions == "whole batch"
    relational = term(rkd_distance, student.logits[:, 0], teacher.logits[:, 0],
                      where=batch.attention_mask[:, 0])  # fmt: skip
    check(Objective({"a": relational}, **models()), TOKENS)


@pytest.mark.parametrize("where, fix", [
    (batch.labels, "batch.labels != -100"),
    (batch.labels + 100, "(batch.labels + 100) > 0"),
])  # fmt: skip
def test_classes_are_no_mask(where: Any, fix: str):
    message = report({"a": logits(where=where)})
    assert "0 and 1 (or bool) are expected" in message and f"where={fix}" in message


def test_what_comes_from_a_teacher_alone_stands_in_its_column():
    one = torch.ones(6, 7, 1)
    judged = {
        "real": term(mse, fkd.module("judge")(teacher.logits), one),
        "fake": term(mse, fkd.module("judge")(student.logits), one),
        "back": term(mse, teacher.logits[..., :2], student.logits[..., :2]),
        "labels": term(cross_entropy, student.logits, batch.labels),
        "own": term(lambda a, b, y: a[..., 0] * b[..., 0] * y, student.logits, student.logits * 2,
                    batch.labels),
        "itself": term(kl, student.logits * 2, student.logits),
    }  # fmt: skip
    parts = models(judge=trainable(nn.Linear(5, 1)))
    rows = {row.term: row for row in check(Objective(judged, **parts), TOKENS).rows}
    sides = {name: (row.student, row.teacher, row.other) for name, row in rows.items()}
    assert sides["real"] == ("", "(6, 7, 1)", "(6, 7, 1)")
    assert sides["fake"] == ("(6, 7, 1)", "", "(6, 7, 1)")
    assert sides["back"] == ("(6, 7, 2)", "(6, 7, 2)", "")
    assert sides["labels"] == ("(6, 7, 5)", "", "(6, 7)")
    assert sides["own"] == ("(6, 7, 5), (6, 7, 5)", "", "(6, 7)")
    assert sides["itself"] == ("(6, 7, 5)", "(6, 7, 5)", "")
