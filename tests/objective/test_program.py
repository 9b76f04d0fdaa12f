"""A program gives values; what is given is not computed, and what only it needed is gone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fkd
from fkd import Objective, batch, call, ema, frozen, module, ref, student, teacher, term, trainable
from fkd.losses import kl, mse

from ..models import MLP, same_bits, tokens

CALLS: list[str] = []
"""The names of the models that ran, in order."""


class Counted(nn.Module):
    """An MLP that says when it is called."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.net, self.name = MLP(), name

    def forward(self, x: torch.Tensor) -> object:
        CALLS.append(self.name)
        return self.net(x)


def make(terms: object, **more: object) -> Objective:
    torch.manual_seed(0)
    models = {"student": trainable(Counted("student")), "teacher": frozen(Counted("teacher"))}
    return Objective(terms, **models, **more)


def live(objective: Objective, refs: list[fkd.Ref]) -> dict[fkd.Ref, object]:
    """The values of refs, by the objective's own models."""
    program, parts = objective.program, objective.init()
    values = program.values(program.context(parts, tokens()).context)
    return {r: values[program.plan.place[r]] for r in refs}


KD = {"kd": term(kl, student.logits, teacher.logits)}

KNOWN = {
    "an output": (KD, [teacher.logits]),
    "a tap": (
        {"hint": term(mse, student.tap("net.norm"), teacher.tap("net.norm"))},
        [teacher.tap("net.norm")],
    ),
    "a derived ref": (
        {"kd": term(mse, student.logits, call(torch.softmax, teacher.logits, -1))},
        [call(torch.softmax, teacher.logits, -1)],
    ),
    "what a derived ref is made of": (
        {"kd": term(mse, student.logits, call(torch.softmax, teacher.logits, -1))},
        [teacher.logits],
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_value_is_not_computed_and_its_model_is_gone(name):
    terms, known = KNOWN[name]
    objective = make(terms)
    data = tokens()
    loss, aux = objective(objective.init(), data)
    given = live(objective, known)
    CALLS.clear()
    cheap = objective.without(known)
    parts = cheap.init()
    assert list(cheap.models) == ["student"] == list(parts.trainable)
    assert not parts.frozen and cheap.program.runs == ("student",)
    again, aux_again = cheap(parts, data, given=given)
    assert CALLS == ["student"]
    assert same_bits((loss, aux.terms), (again, aux_again.terms))


def test_given_values_are_used_and_not_computed_again():
    objective = make(KD)
    program, parts = objective.program, objective.init()
    ctx = program.context(parts, tokens()).context
    seen: list[fkd.Ref] = []

    def attempt(one: fkd.Ref, ctx: fkd.Context, below: object) -> object:
        seen.append(one)
        return one if not below else below

    given = {teacher.logits: torch.ones(3)}
    values = program.values(ctx, given, attempt=attempt)
    assert values[program.plan.place[teacher.logits]] is given[teacher.logits]
    assert values[program.plan.place[teacher]] is None  # nothing else needed it
    assert teacher not in seen and student.logits in seen


def test_of_several_teachers_the_known_one_goes():
    both = call(lambda a, b: (a + b) / 2, teacher.logits, ref("other").logits)
    objective = make({"kd": term(kl, student.logits, both)}, other=frozen(Counted("other")))
    cheap = objective.without([ref("other").logits])
    assert set(cheap.models) == {"student", "teacher"}
    loss, _ = objective(objective.init(), tokens())
    CALLS.clear()
    given = live(objective, [ref("other").logits])
    CALLS.clear()
    again, _ = cheap(cheap.init(), tokens(), given=given)
    assert CALLS == ["teacher", "student"] and torch.equal(loss, again)
    none = objective.without([both])
    assert set(none.models) == {"student"}


def test_a_function_of_the_context_may_read_any_model_until_it_is_known_itself():
    def peek(ctx: fkd.Context) -> torch.Tensor:
        return ctx["teacher"].logits.softmax(-1)

    objective = make({"kd": term(mse, student.logits, peek)})
    (function,) = [r for r in objective.program.plan.refs if "peek" in repr(r)]
    given = live(objective, [function])
    kept = objective.without([student.logits])
    assert set(kept.models) == {"student", "teacher"}  # the function may read both
    CALLS.clear()
    cheap = objective.without([function])
    assert set(cheap.models) == {"student"}
    again, _ = cheap(cheap.init(), tokens(), given=given)
    assert CALLS == ["student"]
    assert torch.equal(again, objective(objective.init(), tokens())[0])


def test_what_an_ema_follows_and_an_adapter_that_is_called_stay():
    objective = make(
        {
            "mean": term(mse, student.logits, ref("slow").logits),
            "kd": term(mse, module("project")(student.logits), teacher.logits),
        },
        slow=ema("student"),
        project=trainable(nn.Linear(5, 5)),
    )
    cheap = objective.without([teacher.logits])
    assert set(cheap.models) == {"student", "slow", "project"}
    assert "project" not in cheap.program.runs


def test_known_twice_is_known_once_more():
    objective = make(
        {"kd": term(kl, student.logits, teacher.logits), "x": term(mse, student.logits, batch.y)}
    )
    cheap = objective.without([teacher.logits]).without([batch.y])
    parts, data = cheap.init(), {**tokens(), "y": torch.ones(6, 7, 5)}
    given = live(make(KD), [teacher.logits])
    with pytest.raises(ValueError, match=r"no value is given for batch\.y"):
        cheap(parts, tokens(), given=given)
    loss, _ = cheap(parts, tokens(), given={**given, batch.y: data["y"]})
    assert torch.equal(loss, objective(objective.init(), data)[0])


@pytest.mark.plain
def test_mistakes_are_named():
    objective = make(KD)
    with pytest.raises(ValueError, match=r"nothing reads teacher\.hidden"):
        objective.without([teacher.hidden])
    cheap = objective.without([teacher.logits])
    with pytest.raises(ValueError, match=r"no value is given for teacher\.logits.*given="):
        cheap(cheap.init(), tokens())
    with pytest.raises(ValueError, match=r"given for batch\.z, which nothing reads"):
        objective(objective.init(), tokens(), given={batch.z: torch.zeros(1)})


def test_a_program_reads_other_refs_of_the_same_models_in_eval_mode():
    net = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5))
    objective = Objective(term(mse, student.logits, batch.x), student=trainable(net))
    program = objective.program.reading([student.logits, batch.x])
    forward = program.context(objective.init(), {"x": torch.ones(2, 6), "input": torch.ones(2, 6)})
    values = program.values(forward.context)
    assert torch.equal(values[program.plan.place[student.logits]], net[0](torch.ones(2, 6)))


def test_a_failing_skeleton_is_raised_and_changes_nothing_of_the_original():
    class Once(nn.Linear):
        copies = 0

        def __deepcopy__(self, memo: dict[int, object]) -> nn.Module:
            Once.copies += 1
            if Once.copies > 1:
                raise RuntimeError("cannot be copied again")
            return nn.Linear(6, 5)

    objective = Objective(term(mse, student.logits, batch.y), student=trainable(Once(6, 5)))
    before = objective.problems
    with pytest.raises(fkd.ObjectiveError, match="cannot be copied again"):
        objective.evaluating()
    assert objective.problems == before == ()


@pytest.mark.compile
def test_a_program_without_its_teacher_compiles():
    objective = Objective(KD, student=trainable(MLP()), teacher=frozen(MLP(12, 3)))
    given = live(objective, [teacher.logits])[teacher.logits]
    cheap = objective.without([teacher.logits])
    parts, place = cheap.init(), cheap.program.plan.place[teacher.logits]

    def loss(value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return cheap(parts, {"x": x}, given={place: value})[0]

    got = torch.compile(loss, fullgraph=True, backend="aot_eager")(given, tokens()["x"])
    torch.testing.assert_close(got, objective(objective.init(), tokens())[0])


# Weights of positions


def test_a_weight_for_each_position_weighs_its_value():
    w = torch.rand(6, 7)
    mask = torch.rand(6, 7) > 0.3
    net, other = MLP(), MLP(12, 3)
    data = {**tokens(), "w": w.masked_fill(~mask, torch.nan), "mask": mask, "example": w[:, 0]}

    def loss(**options: object) -> torch.Tensor:
        objective = Objective(
            {"kd": term(kl, student.logits, teacher.logits, **options), "b": KD["kd"]},
            student=trainable(net),
            teacher=frozen(other),
        )
        fkd.check(objective, data)
        _, aux = objective(objective.init(), data)
        assert aux.weights["kd"] == 1
        return aux.terms["kd"].value

    values = kl(net(data["x"]).logits, other(data["x"]).logits)
    torch.testing.assert_close(loss(weight=batch.w, where=batch.mask), (w * values)[mask].mean())
    torch.testing.assert_close(loss(weight=batch.example), (w[:, :1] * values).mean())


def test_weighted_positions_in_parts_are_those_of_the_whole():
    data = {**tokens(), "w": torch.rand(6, 7), "mask": torch.rand(6, 7) > 0.5}
    objective = Objective(
        term(kl, student.logits, teacher.logits, weight=batch.w, where=batch.mask),
        student=trainable(MLP()),
        teacher=frozen(MLP(12, 3)),
    )

    def trained(accumulate: int) -> fkd.Parts:
        step = fkd.loops.train_step(
            objective, lambda p: torch.optim.SGD(p, lr=0.1), compile=False, accumulate=accumulate
        )
        return step(step.init(), data)[0].parts

    whole, parts = trained(1).trainable["student"], trained(3).trainable["student"]
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name])


@pytest.mark.plain
def test_a_weight_of_another_shape_is_refused():
    objective = Objective(
        term(kl, student.logits, teacher.logits, weight=batch.w),
        student=trainable(MLP()),
        teacher=frozen(MLP(12, 3)),
    )
    with pytest.raises(fkd.ObjectiveError, match=r"shape \(3,\).*values of shape \(6, 7\)"):
        fkd.check(objective, {**tokens(), "w": torch.ones(3)})
