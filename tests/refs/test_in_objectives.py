"""Operations on refs where objectives take refs: terms, masks, weights, options, metrics."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import nn

import fkd
from fkd import Objective, batch, call, check, draw, frozen, metric, ref, student, teacher, term
from fkd import trainable as trained
from fkd._base.errors import ObjectiveError
from fkd._refs.paths import pick
from fkd.losses import cross_entropy, kl, mse

PROJECT = fkd.module("project")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.one(x).tanh()
        return {"hidden": hidden, "logits": self.two(hidden)}


def data():
    torch.manual_seed(0)
    labels = torch.tensor([[1, -100, 2], [0, 4, -100]])
    return {
        "x": torch.randn(2, 3, 4),
        "labels": labels,
        "mask": labels.ne(0),
        "w": torch.rand(2, 3),
    }


def objective():
    torch.manual_seed(1)
    some = (batch.labels != -100) & batch.mask
    both = (teacher.logits + ref("other").logits) / 2
    return Objective(
        {
            "kd": term(kl, student.logits / 2, both, where=some, weight=batch.w[0, 0] * 2),
            "top": term(mse, student.logits[..., :3], both[..., :3], where=~(batch.labels == 0)),
            "h": term(mse, PROJECT(student.hidden * 2) - 1, teacher.hidden ** 2, where=some),
            "soft": term(mse, torch.softmax(student.logits, -1), teacher.logits.softmax(-1)),
            "ce": term(cross_entropy, student.logits, batch.labels,
                       weight=fkd.schedules.linear(1.0, 0.5, 10)),
            "norm": metric(torch.Tensor.float, (student.logits - teacher.logits).abs().mean(-1),
                           where=batch.labels != -100),
        },
        student=trained(Net()), teacher=frozen(Net()), other=frozen(Net()),
        project=trained(nn.Linear(6, 6)),
    )  # fmt: skip


def by_hand(goal, parts, values):
    """The same total, written on tensors."""
    out = {}
    for name in ("student", "teacher", "other"):
        module = goal.models[name].module
        tensors = {**parts.trainable.get(name, {}), **parts.frozen.get(name, {})}
        out[name] = torch.func.functional_call(module, tensors, (values["x"],))
    s, t, o = out["student"], out["teacher"], out["other"]
    some = (values["labels"] != -100) & values["mask"]
    both = (t["logits"] + o["logits"]) / 2
    rows = kl(s["logits"] / 2, both)[some].mean() * values["w"][0, 0] * 2
    kept = ~(values["labels"] == 0)
    rows = rows + mse(s["logits"][..., :3], both[..., :3])[kept].mean()
    linear = parts.trainable["project"]
    projected = nn.functional.linear(s["hidden"] * 2, linear["weight"], linear["bias"]) - 1
    rows = rows + mse(projected, t["hidden"] ** 2)[some].mean()
    rows = rows + mse(s["logits"].softmax(-1), t["logits"].softmax(-1)).mean()
    counted = values["labels"] != -100
    return rows + cross_entropy(s["logits"], values["labels"])[counted].mean()


def test_an_objective_of_operations_computes_what_it_says():
    goal, values = objective(), data()
    parts = goal.init()
    loss, aux = goal(parts, values)
    assert torch.allclose(loss, by_hand(goal, parts, values), rtol=1e-6)
    report = check(goal, values)
    assert {r.term: r.positions for r in report.rows}["kd"] == "3 of 6"
    assert aux.terms["norm"].count == 4


@pytest.mark.compile
def test_an_objective_of_operations_compiles_into_one_graph():
    goal, values = objective(), data()
    parts = goal.init()

    def step(parts, values):
        return goal(parts, values)[0]

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(parts, values), step(parts, values), rtol=1e-6)


def test_equal_operations_have_one_place():
    goal = objective()
    refs = goal.program.plan.refs
    assert len(set(refs)) == len(refs)
    assert sum(repr(r) == "(batch.labels != -100) & batch.mask" for r in refs) == 1
    assert sum(repr(r) == "batch.labels != -100" for r in refs) == 1


def test_an_objective_with_schedules_and_operations_pickles():
    goal, values = objective(), data()
    again = pickle.loads(pickle.dumps(goal))
    assert repr(again) == repr(goal)
    assert torch.equal(again(again.init(), values)[0], goal(goal.init(), values)[0])
    assert torch.equal(again(again.init(), values, 5)[0], goal(goal.init(), values, 5)[0])
    found = pickle.loads(pickle.dumps(goal.evaluating()))
    assert torch.equal(found(found.init(), values)[0], goal(goal.init(), values)[0])


def test_a_drawing_shows_operations_as_code():
    goal = Objective(
        {
            "kd": term(kl, student.logits / 2, (teacher.logits + ref("other").logits) / 2),
            "h": term(mse, 1 - PROJECT(student.hidden * 2), teacher.hidden.relu()),
            "sum": term(mse, PROJECT(student.hidden) + teacher.hidden, -PROJECT(teacher.hidden)),
        },
        student=trained(Net()), teacher=frozen(Net()), other=frozen(Net()),
        project=trained(nn.Linear(6, 6)),
    )  # fmt: skip
    drawn = draw(goal).picture
    titles = {box.title: name for name, box in drawn.boxes.items()}
    shown = ["student.logits / 2", "(teacher.logits + ref('other').logits) / 2"]
    shown += ["student.hidden * 2", "1 - project: Linear, 42", "teacher.hidden.relu()"]
    shown += ["project + teacher.hidden", "-project: Linear, 42"]
    assert set(shown) <= set(titles)
    lines = {(drawn.boxes[a].title, drawn.boxes[b].title) for a, b in drawn.lines}
    assert ("project: Linear, 42", "project + teacher.hidden") in lines
    assert ("teacher.hidden", "project + teacher.hidden") in lines
    assert ("other", "(teacher.logits + ref('other').logits) / 2") in lines
    assert ("teacher", "(teacher.logits + ref('other').logits) / 2") in lines


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: term(nn.MSELoss, student.logits, teacher.logits),
            r"MSELoss, a class.*MSELoss\(\)",
        ),
        (
            lambda: term(student.logits, teacher.logits),
            r"the loss is student\.logits, which is a ref",
        ),
        (lambda: term(nn.Linear(5, 5), student.logits), r"Linear with parameters.*fkd\.module"),
        (lambda: term(kl, student.logit, teacher.logits), r"Did you mean 'logits'"),
        (lambda: term(kl, student.logits, lambda c: c.teacher.logits), r"ctx\['teacher'\]"),
        (
            lambda: term(kl, student.logits, lambda c: c["teacher"].logits),
            r"student\.logits\(ctx\)",
        ),
        (lambda: term(kl, student.logits.mean, teacher.logits), r"student\.logits\.mean\("),
        (
            lambda: term(mse, student.logits, teacher.logits, where=~batch.labels),
            r"batch\.labels == 0",
        ),
        (lambda: term(kl, student.logits, lambda c: teacher.logits / 2), r"a ref and not a value"),
        (lambda: term(kl, student, teacher), r"student is a mapping.*Take one: student\.hidden"),
        (lambda: term(mse, student.logits.max(0), teacher.logits), r"max\(0\)\[0\]"),
        (lambda: term(kl, student.logits @ batch.x, teacher.logits), r"failed on a tensor"),
    ],
)
def test_a_mistake_is_answered_by_what_to_write(build, message):
    with pytest.raises(ObjectiveError, match=message):
        check(Objective(build(), student=trained(Net()), teacher=frozen(Net())), data())


def test_where_and_weight_take_comparisons_of_refs_alone():
    with pytest.raises(TypeError, match=r"torch\.eq"):
        term(kl, student.logits, teacher.logits, where=student.labels == batch.labels)
    same = call(torch.eq, student.logits.argmax(-1), batch.labels)
    assert repr(term(kl, student.logits, teacher.logits, where=same)).endswith("weight=1.0)")


def test_terms_are_not_added_or_multiplied():
    one = term(kl, student.logits, teacher.logits)
    for build in (lambda: 0.5 * one, lambda: one / 2, lambda: one + one, lambda: sum([one, one])):
        with pytest.raises(TypeError, match=r"the factor is the weight"):
            build()


@pytest.mark.compile
def test_the_values_of_a_maximum_have_names():
    goal = Objective(
        term(mse, student.logits.max(-1).values, torch.max(teacher.logits, -1)[0]),
        student=trained(Net()), teacher=frozen(Net()),
    )  # fmt: skip
    values, parts = data(), goal.init()
    loss = torch.compile(lambda p, v: goal(p, v)[0], fullgraph=True, backend="aot_eager")
    assert torch.allclose(loss(parts, values), goal(parts, values)[0])


@pytest.mark.plain  # the run-time type check refuses refs by its own words
def test_a_loss_is_not_called_on_refs():
    with pytest.raises(TypeError, match=r"fkd\.term\(kl, student\.logits, teacher\.logits\)"):
        kl(student.logits, teacher.logits)


def test_a_context_says_how_its_values_are_read():
    ctx = fkd.Context({"student": {"logits": 1}, "batch": torch.randn(1000, 10)})
    assert repr(ctx) == "<Context of student, batch; ctx['student'], student.logits(ctx)>"
    with pytest.raises(AttributeError, match=r"ctx\.student.*ctx\['student'\].*\.logits\(ctx\)"):
        _ = ctx.student
    with pytest.raises(KeyError, match=r"Did you mean 'student'.*Available: student, batch"):
        _ = ctx["studnet"]
    assert pickle.loads(pickle.dumps(ctx))["student"] == {"logits": 1}


def test_notebooks_show_tables_and_drawings():
    goal = Objective(
        {"a<b>": term(kl, student.logits, teacher.logits)},
        student=trained(Net()), teacher=frozen(Net()),
    )  # fmt: skip
    html = check(goal, data())._repr_html_()
    assert html.startswith("<table>") and "a&lt;b&gt;" in html and "a<b>" not in html
    assert "<td" in html and "student: Net" in html
    assert "<svg" in draw(goal)._repr_html_() and "overflow: auto" in draw(goal)._repr_html_()


def cut(ref: Any) -> fkd.Objective:
    """An objective on a part of what a model returns, which a value of the batch chooses."""
    return fkd.Objective(
        {"cut": fkd.term(lambda x: x.square().mean(-1), ref)},
        student=fkd.trainable(torch.nn.Linear(4, 3), inputs=lambda batch: batch["x"]),
    )


CUT = {"x": torch.randn(2, 6, 4), "start": torch.tensor(2)}


@pytest.mark.plain
def test_a_slice_with_a_bound_of_the_batch_is_cut_there_or_refused_before_it_is_compiled():
    chosen = cut(fkd.student.logits[:, fkd.batch.start :])
    assert fkd.check(chosen, CUT).rows[0].positions == "8"
    value, _ = chosen(chosen.init(), CUT)
    logits = chosen.models["student"].module(CUT["x"])
    torch.testing.assert_close(value, logits[:, 2:].square().mean().detach())
    with pytest.raises(
        fkd.loops.CompileError, match=r"length of student.logits\[:, batch.start:\]"
    ):
        fkd.loops.train_step(chosen, torch.optim.SGD)
    of_shapes = cut(fkd.student.logits[:, : fkd.batch.x.shape[0]])
    fkd.loops.train_step(of_shapes, torch.optim.SGD)


@pytest.mark.compile
def test_a_place_that_the_batch_chooses_is_compiled():
    chosen = cut(fkd.student.logits[:, fkd.batch.start])
    found = []
    for compile in (False, {"backend": "aot_eager"}):
        step = fkd.loops.train_step(chosen, torch.optim.SGD, compile=compile)
        state, losses = step.init(), []
        for place in (2, -1, 5):
            state, metrics = step(state, {**CUT, "start": torch.tensor(place)})
            losses.append(metrics["loss/cut"].item())
        found.append(losses)
    assert found[0] == pytest.approx(found[1], rel=1e-6)


@pytest.mark.parametrize(
    "key",
    [
        (slice(None), torch.tensor(2)),
        torch.tensor(-1),
        (0, slice(None), torch.tensor(3)),
        (None, slice(None), torch.tensor(1), slice(1, 3)),
        (torch.tensor(1), slice(None), 0),
        (slice(None), torch.tensor([0, 2])),
        (..., torch.tensor(1)),
    ],
)
def test_a_number_in_a_tensor_is_an_index(key):
    x = torch.randn(3, 6, 4, 5)
    assert torch.equal(pick(x, key, "x"), x[key])
