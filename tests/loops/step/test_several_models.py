"""Several trainable models: who trains whom, with what, and when."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fkd
from fkd import batch, module, ref, student, teacher, term
from fkd.loops import fit, restore, train_step
from fkd.loops._step.combine import Combined
from fkd.losses import cross_entropy, kl, mse

from ...models import leaves, same_bits

FEATURES, CLASSES = 6, 4


class Net(nn.Module):
    def __init__(self, width: int = 5, features: int = FEATURES, out: int = CLASSES) -> None:
        super().__init__()
        self.first = nn.Linear(features, width, bias=False)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.norm(self.first(x))))


def batches(count: int = 4) -> list[dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(0)
    return [
        {
            "x": torch.randn(8, FEATURES, generator=g),
            "noise": torch.randn(8, 3, generator=g),
            "labels": torch.randint(0, CLASSES, (8,), generator=g),
        }
        for _ in range(count)
    ]


def sgd(rate: float):
    return lambda params: torch.optim.SGD(params, lr=rate, momentum=0.9)


def adam(rate: float):
    return lambda params: torch.optim.AdamW(params, lr=rate)


def mutual() -> fkd.Objective:
    torch.manual_seed(0)
    peer = ref("peer")
    return fkd.Objective(
        {
            "labels": term(cross_entropy, student.logits, batch.labels, to="student"),
            "kd": term(kl, student.logits, peer.logits, to="student"),
            "peer labels": term(cross_entropy, peer.logits, batch.labels, to="peer"),
            "peer kd": term(kl, peer.logits, student.logits, to="peer"),
        },
        student=fkd.trainable(Net()),
        peer=fkd.trainable(Net(7)),
    )


def data_free() -> fkd.Objective:
    """A generator that looks for inputs on which student and teacher differ."""
    torch.manual_seed(0)
    made = module("generator")(batch.noise)
    outputs = module("student")(made), module("teacher")(made)
    return fkd.Objective(
        {
            "imitate": term(mse, *outputs, to="student"),
            "differ": term(mse, *outputs, to="generator", weight=-1.0),
        },
        student=fkd.trainable(Net()),
        teacher=fkd.frozen(Net(9)),
        generator=fkd.trainable(Net(4, 3, FEATURES)),
        slow=fkd.ema("student", decay=0.5),
    )


class Loop:
    """The same by hand: modules, two optimizers, two backward passes of their own."""

    def __init__(self, objective: fkd.Objective, rates: dict[str, Any]) -> None:
        self.nets = {
            n: copy.deepcopy(m.module).train(m.kind == "trainable")
            for n, m in objective.models.items()
            if m.module is not None
        }
        self.optimizers = {n: make(self.nets[n].parameters()) for n, make in rates.items()}

    def update(self, name: str, loss: torch.Tensor) -> None:
        grads = torch.autograd.grad(loss, list(self.nets[name].parameters()), retain_graph=True)
        for p, grad in zip(self.nets[name].parameters(), grads, strict=True):
            p.grad = grad

    def step(self, *names: str) -> None:
        for name in names:
            self.optimizers[name].step()


def assert_state_is(state: fkd.loops.State, loop: Loop, names: tuple[str, ...]) -> None:
    for name in names:
        for n, p in loop.nets[name].named_parameters():
            torch.testing.assert_close(state.trainable[name][n], p.detach(), rtol=1e-5, atol=1e-6)


COMPILED = [False, pytest.param(True, marks=pytest.mark.compile)]


@pytest.mark.parametrize("compile", COMPILED)
def test_mutual_learning_is_the_loop_by_hand(compile):
    objective = mutual()
    rates = {"student": sgd(0.1), "peer": adam(0.01)}
    step = train_step(objective, rates, compile=compile)
    state, loop = step.init(), Loop(objective, rates)
    for one in batches():
        state, metrics = step(state, one)
        s, p = loop.nets["student"](one["x"]), loop.nets["peer"](one["x"])
        ls, lp = F.log_softmax(s, -1), F.log_softmax(p, -1)
        labels = one["labels"]
        loop.update("student", F.cross_entropy(s, labels) + (lp.exp() * (lp - ls)).sum(-1).mean())
        loop.update("peer", F.cross_entropy(p, labels) + (ls.exp() * (ls - lp)).sum(-1).mean())
        loop.step("student", "peer")
    assert_state_is(state, loop, ("student", "peer"))
    assert set(step.rates(state)) == {"lr/student", "lr/peer"}
    assert {"grad_norm/student", "grad_norm/peer"} <= set(metrics)
    assert step.compilations == int(compile)


@pytest.mark.parametrize("compile", COMPILED)
def test_a_generator_against_its_student(compile):
    objective = data_free()
    rates = {"student": sgd(0.05), "generator": adam(0.01)}
    when = fkd.schedules.turns(student=2, generator=1)
    step = train_step(objective, rates, when=when, compile=compile)
    state, loop = step.init(), Loop(objective, rates)
    for i, one in enumerate(batches(6)):
        before = leaves(state.frozen["slow"])
        resting = "generator" if i % 3 < 2 else "student"
        still = leaves(state.trainable[resting])
        state, metrics = step(state, one)
        made = loop.nets["generator"](one["noise"])
        loss = F.mse_loss(loop.nets["student"](made), loop.nets["teacher"](made))
        turn = "student" if i % 3 < 2 else "generator"
        loop.update(turn, loss if turn == "student" else -loss)
        loop.step(turn)
        assert same_bits(still, state.trainable[resting])
        assert same_bits(before, leaves(state.frozen["slow"])) == (turn == "generator")
        assert math.isnan(metrics[f"grad_norm/{resting}"])
    assert_state_is(state, loop, ("student", "generator"))
    assert step.compilations == (2 if compile else 0)


def test_models_share_a_backward_pass():
    from fkd._objective.reach import backward_passes

    objective = mutual()
    passes = backward_passes(objective.terms, step_models(objective))
    assert [p.models for p in passes] == [("student",), ("peer",)]
    assert passes[0].terms == ("labels", "kd")


def step_models(objective: fkd.Objective) -> tuple[str, ...]:
    return train_step(objective, sgd(0.1), compile=False).choices.models


def test_a_term_without_names_trains_all_that_it_depends_on():
    torch.manual_seed(0)
    nets = {"student": Net(), "peer": Net()}
    kinds = {n: fkd.trainable(copy.deepcopy(net)) for n, net in nets.items()}
    gap = term(mse, student.logits, ref("peer").logits)
    plain = fkd.Objective({"gap": gap}, **kinds)
    named = fkd.Objective({"gap": fkd.term(mse, student.logits, ref("peer").logits,
                                           to=["student", "peer"])}, **kinds)  # fmt: skip
    results = []
    for objective in (plain, named):
        step = train_step(objective, sgd(0.1), compile=False)
        results.append(step(step.init(), batches(1)[0])[0].trainable)
    assert same_bits(*results)


def test_accumulation_with_two_models_is_the_whole_batch():
    def ended(accumulate: int) -> Any:
        objective = fkd.Objective(
            {
                "a": term(mse, student.logits, ref("peer").logits, to="student"),
                "b": term(cross_entropy, ref("peer").logits, batch.labels, to="peer"),
            },
            student=fkd.trainable(nn.Linear(FEATURES, CLASSES)),
            peer=fkd.trainable(nn.Linear(FEATURES, CLASSES)),
        )
        torch.manual_seed(0)
        modules = {n: nn.Linear(FEATURES, CLASSES) for n in ("student", "peer")}
        step = train_step(
            objective,
            {"student": sgd(0.1), "peer": sgd(0.2)},
            compile=False,
            accumulate=accumulate,
            combine=fkd.gradients.momenta({"a": 0.9, "b": 0.5}),
        )
        state = step.init(modules=modules)
        for one in batches(3):
            state, _ = step(state, {"input": one["x"], "labels": one["labels"]})
        return state.trainable

    for x, y in zip(leaves(ended(1)), leaves(ended(4)), strict=True):
        torch.testing.assert_close(x, y)


def distilled(seed: int = 0) -> fkd.Objective:
    torch.manual_seed(seed)
    return fkd.Objective(
        {
            "labels": term(cross_entropy, student.logits, batch.labels, weight=0.3),
            "kd": term(kl, student.logits, teacher.logits, temperature=4.0),
            "more": [term(mse, student.logits, teacher.logits, weight=0.1)],
        },
        student=fkd.trainable(Net()),
        teacher=fkd.frozen(Net(9)),
    )


@pytest.mark.parametrize("compile", COMPILED)
def test_dot_trains_as_its_trainer_does(compile):
    objective = distilled()
    combine = fkd.gradients.dot(task=["labels"], distill=["kd", "more"], delta=0.05)
    step = train_step(
        objective, lambda p: torch.optim.SGD(p, lr=0.05), combine=combine, compile=compile
    )
    state = step.init()
    assert [len(p) for p in Combined(objective, combine).passes(objective, ("student",))] == [1, 1]
    net, large = (copy.deepcopy(objective.models[n].module) for n in ("student", "teacher"))
    net.train(), large.eval()
    velocity = {"task": 0.0, "kd": 0.0}
    flat = nn.utils.parameters_to_vector
    for one in batches():
        state, metrics = step(state, one)
        s, t = net(one["x"]), large(one["x"])
        ls, lt = F.log_softmax(s / 4, -1), F.log_softmax(t / 4, -1)
        task = 0.3 * F.cross_entropy(s, one["labels"])
        kd = 16 * (lt.exp() * (lt - ls)).sum(-1).mean() + 0.1 * F.mse_loss(s, t)
        parameters = list(net.parameters())
        for name, loss, mu in (("task", task, 0.85), ("kd", kd, 0.95)):
            grads = torch.autograd.grad(loss, parameters, retain_graph=True)
            velocity[name] = mu * velocity[name] + flat(grads)
        moved = flat(parameters).detach() - 0.05 * (velocity["task"] + velocity["kd"])
        nn.utils.vector_to_parameters(moved, parameters)
    for n, p in net.named_parameters():
        torch.testing.assert_close(state.trainable["student"][n], p.detach(), rtol=1e-4, atol=1e-5)
    assert {"term_grad_norm/task", "term_grad_norm/distill"} <= set(metrics)


@pytest.mark.parametrize(
    "combine",
    [
        lambda: fkd.gradients.pcgrad(),
        lambda: fkd.gradients.min_norm(),
        lambda: fkd.gradients.grad_norm(shared="student.head"),
        lambda: lambda gradients: gradients["kd"],
    ],
)
def test_combinations_in_a_step(combine):
    step = train_step(distilled(), sgd(0.05), combine=combine(), compile=False, clip=1.0)
    state = step.init()
    for one in batches():
        state, metrics = step(state, one)
    assert float(metrics["finite"]) == 1.0
    assert all(bool(x.isfinite().all()) for x in leaves(state.trainable))


@pytest.mark.compile
def test_combinations_compile_to_the_same():
    ended = []
    for compile in (False, True):
        combine = fkd.gradients.grad_norm()
        step = train_step(distilled(), sgd(0.05), combine=combine, compile=compile)
        state = step.init()
        for one in batches():
            state, _ = step(state, one)
        ended.append([*leaves(state.trainable), *leaves(state.combine_state)])
    for x, y in zip(*ended, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def test_a_step_that_is_not_finite_leaves_the_combination_as_it_was():
    step = train_step(
        distilled(), sgd(0.05), combine=fkd.gradients.momenta({"labels": 0.9, "kd": 0.8,
                                                                "more/0": 0.7}), compile=False
    )  # fmt: skip
    state, _ = step(step.init(), batches()[0])
    before = leaves(state.combine_state)
    bad = {**batches()[1], "x": torch.full((8, FEATURES), float("nan"))}
    state, metrics = step(state, bad)
    assert float(metrics["skipped"]) == 1 and same_bits(before, leaves(state.combine_state))


def several(tmp_path, steps: int, **more: Any) -> fkd.loops.State:
    objective = data_free()
    step = train_step(
        objective,
        {"student": sgd(0.05), "generator": adam(0.01)},
        when=fkd.schedules.turns(student=2, generator=1),
        clip={"student": 1.0},
        lr={"generator": fkd.schedules.linear(1.0, 0.1, steps=7)},
        combine=fkd.gradients.momenta({"imitate": 0.5, "differ": 0.0}),
        compile=False,
    )
    options = {"checkpoint_dir": tmp_path, "save_every": 2, "progress": False, **more}
    for event in fit(step, step.init(seed=1), batches(4), steps=steps, **options):
        last = event.state
    return last


def test_norms_are_means_over_the_steps_that_have_them(tmp_path):
    several(tmp_path, 6, log_dir=tmp_path / "log", log_every=3)
    rows = [
        row
        for row in fkd.loops.read_log(tmp_path / "log" / "metrics.jsonl")
        if row["kind"] == "train"
    ]
    assert len(rows) == 2
    for row in rows:
        assert row["grad_norm/student"] > 0 and row["grad_norm/generator"] > 0


def test_a_run_of_two_models_resumes_to_the_bit(tmp_path):
    whole = several(tmp_path / "whole", 7)
    several(tmp_path / "parts", 4)
    parts = several(tmp_path / "parts", 7)
    assert same_bits(whole._asdict(), parts._asdict())
    step = train_step(
        data_free(),
        {"student": sgd(0.05), "generator": adam(0.01)},
        when=fkd.schedules.turns(student=2, generator=1),
        clip={"student": 1.0},
        lr={"generator": fkd.schedules.linear(1.0, 0.1, steps=7)},
        combine=fkd.gradients.momenta({"imitate": 0.5, "differ": 0.0}),
        compile=False,
    )
    assert same_bits(whole.combine_state, restore(step, tmp_path / "whole").combine_state)
    other = train_step(data_free(), sgd(0.05), compile=False)
    with pytest.raises(fkd.loops.MismatchError, match="generator"):
        restore(other, tmp_path / "whole")


# Mistakes


def test_names_of_models_are_checked():
    objective = mutual()
    for option, message in (
        ({"optimizer": {"student": sgd(0.1)}}, "names no 'peer'"),
        ({"optimizer": {"student": sgd(0.1), "pear": sgd(0.1)}}, "Did you mean 'peer'"),
        ({"optimizer": {("student", "peer"): sgd(0.1), "peer": sgd(0.1)}}, "'peer' twice"),
        ({"clip": {"teacher": 1.0}}, "clip names 'teacher'"),
        ({"clip": {"student": 0.0}}, "clip is 0.0"),
        ({"lr": {"student": lambda step: 1.0}}, "no optimizer of their own"),
        ({"when": {"x": lambda step: True}}, "when names 'x'"),
    ):
        chosen: dict[str, Any] = {"optimizer": sgd(0.1), "compile": False, **option}
        with pytest.raises(ValueError, match=message):
            train_step(objective, **chosen)
    with pytest.raises(TypeError, match="optimizer of 'peer' is a float"):
        train_step(objective, {"student": sgd(0.1), "peer": 0.1}, compile=False)


def test_nobody_is_updated():
    step = train_step(distilled(), sgd(0.1), when={"student": lambda step: step < 1}, compile=False)
    state, _ = step(step.init(), batches()[0])
    with pytest.raises(ValueError, match="at step 1 no model is updated"):
        step(state, batches()[1])


def test_groups_of_terms_are_checked():
    for combine, message in (
        (fkd.gradients.dot(task=["label"], distill=["kd"]), "Did you mean 'labels'"),
        (fkd.gradients.dot(task=["labels"], distill=["kd"]), "leave out 'more/0'"),
        (fkd.gradients.pcgrad({"a": ["kd", "more", "labels"], "b": ["kd"]}), "name 'kd' twice"),
    ):
        with pytest.raises(ValueError, match=message):
            train_step(distilled(), sgd(0.1), combine=combine, compile=False)


def test_what_a_function_of_gradients_returns_is_checked():
    step = train_step(distilled(), sgd(0.1), combine=lambda g: {"student": {}}, compile=False)
    with pytest.raises(ValueError, match=r"combine gave nothing for student\.first\.weight"):
        step(step.init(), batches()[0])


def test_to_is_checked():
    def objective(to: Any) -> fkd.Objective:
        return fkd.Objective(
            {"kd": term(kl, student.logits, teacher.logits, to=to)},
            student=fkd.trainable(Net()),
            teacher=fkd.frozen(Net()),
        )

    for to, message in (
        ("teacher", "to='teacher', which is not trainable"),
        (("student", "studnet"), "'studnet', which is not a model of the objective"),
        ((), "names no model"),
    ):
        with pytest.raises(fkd.ObjectiveError, match=message):
            fkd.check(objective(to), batches()[0])


def test_check_says_which_model_no_term_names():
    objective = mutual()
    terms = {n: t for n, t in objective.terms.items() if n in ("labels", "kd")}
    alone = fkd.Objective(terms, **objective.models)
    with pytest.raises(fkd.ObjectiveError, match="model 'peer' is trainable, and no term reaches"):
        fkd.check(alone, batches()[0])
    fkd.check(objective, batches()[0])


def test_a_bound_objective_needs_backward():
    bound = fkd.interop.modules.bind(mutual())
    with pytest.raises(ValueError, match=r"bound\.backward"):
        bound(batches()[0])
    with torch.no_grad():
        bound(batches()[0])
    bound.backward(batches()[0])
    assert all(p.grad is not None for p in bound.parameters())
