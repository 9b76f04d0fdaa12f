"""Any optimizer as the update of a state, against the optimizer itself."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fkd
from fkd.loops import param_groups
from fkd.loops._step.optimizer import Updater

YES, NO = torch.tensor(True), torch.tensor(False)

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.5, centered=True),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=0.1),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.1),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.1),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.1),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.1),
}


def start() -> dict[str, dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(0)
    return {"m": {"w": torch.randn(3, 2, generator=g), "b": torch.randn(3, generator=g)}}


def gradients(steps: int = 4) -> list[list[torch.Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [[torch.randn(s, generator=g) for s in ((3, 2), (3,))] for _ in range(steps)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_the_optimizer_itself(name):
    tree = start()
    updater = Updater(OPTIMIZERS[name], tree, {})
    plain = [nn.Parameter(x.clone()) for x in start()["m"].values()]
    own = OPTIMIZERS[name](plain)
    for grads in gradients():
        updater.update([g.clone() for g in grads], YES, 1.0)
        for p, g in zip(plain, grads, strict=True):
            p.grad = g
        own.step()
    for p, x in zip(plain, tree["m"].values(), strict=True):
        torch.testing.assert_close(x, p.detach())


@pytest.mark.parametrize("skip", [0, 2])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_that_is_left_out_leaves_no_trace(name, skip):
    bad = [torch.full((3, 2), float("nan")), torch.full((3,), float("nan"))]
    one, two = start(), start()
    skipping, plain = Updater(OPTIMIZERS[name], one, {}), Updater(OPTIMIZERS[name], two, {})
    for i, grads in enumerate(gradients()):
        if i == skip:
            skipping.update([g.clone() for g in bad], NO, 1.0)
        skipping.update([g.clone() for g in grads], YES, 1.0)
        plain.update([g.clone() for g in grads], YES, 1.0)
    assert all(torch.equal(one["m"][n], two["m"][n]) for n in one["m"])
    for name, state in plain.tree.items():
        assert all(
            torch.equal(torch.as_tensor(v), torch.as_tensor(skipping.tree[name][k]))
            for k, v in state.items()
        )


@pytest.mark.parametrize("name", ["SGD", "momentum", "Adam", "RMSprop"])
def test_the_way_back_on_a_device_leaves_no_trace_either(name):
    one, two = start(), start()
    skipping, plain = Updater(OPTIMIZERS[name], one, {}), Updater(OPTIMIZERS[name], two, {})

    def step(updater, grads, finite):
        for p, g in zip(updater.named.values(), grads, strict=True):
            p.grad = g.clone()
        with torch.no_grad():
            updater._step_where(finite)

    bad = [torch.full((3, 2), float("inf")), torch.full((3,), float("inf"))]
    for grads in gradients():
        step(skipping, bad, NO)
        step(skipping, grads, YES)
        step(plain, grads, YES)
    assert all(torch.equal(one["m"][n], two["m"][n]) for n in one["m"])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_it_remembers_is_in_the_tree(name):
    tree = start()
    updater = Updater(OPTIMIZERS[name], tree, {})
    grads = gradients()
    for g in grads[:2]:
        updater.update(list(g), YES, 1.0)
    saved_tree, saved = copy.deepcopy(tree), copy.deepcopy(updater.tree)
    again = Updater(OPTIMIZERS[name], saved_tree, saved)
    for g in grads[2:]:
        updater.update([x.clone() for x in g], YES, 1.0)
        again.update([x.clone() for x in g], YES, 1.0)
    assert all(torch.equal(tree["m"][n], saved_tree["m"][n]) for n in tree["m"])


def test_the_schedule_is_a_factor_on_every_rate():
    tree = start()
    updater = Updater(
        lambda p: torch.optim.SGD([{"params": [p[0]], "lr": 1.0}, {"params": [p[1]]}], lr=0.1),
        tree,
        {},
    )
    updater.update([torch.ones(3, 2), torch.ones(3)], YES, 0.5)
    torch.testing.assert_close(tree["m"]["w"], start()["m"]["w"] - 0.5)
    torch.testing.assert_close(tree["m"]["b"], start()["m"]["b"] - 0.05)


def test_groups_by_shape_and_by_name():
    named = [(n, torch.zeros(s)) for n, s in (
        ("student.w", (2, 2)), ("student.b", (2,)), ("project.w", (2, 2)), ("project.b", (2,)),
        ("projector.w", (2, 2)),
    )]  # fmt: skip
    groups = param_groups(named, weight_decay=0.01, lr={"project": 1e-3, "project.b": 1e-5})
    found = {n: (g["weight_decay"], g.get("lr")) for g in groups for n, _ in g["params"]}
    assert found == {
        "student.w": (0.01, None),
        "student.b": (0.0, None),
        "project.w": (0.01, 1e-3),
        "project.b": (0.0, 1e-5),
        "projector.w": (0.01, None),
    }
    optimizer = torch.optim.AdamW(groups, lr=0.5)
    assert {g["lr"] for g in optimizer.param_groups} == {0.5, 1e-3, 1e-5}


def test_what_does_not_decay_is_the_users_choice():
    groups = param_groups(
        [("a.norm", torch.zeros(2, 2)), ("a.b", torch.zeros(2))],
        weight_decay=0.1,
        no_decay=lambda name, p: "norm" in name,
    )
    assert {n: g["weight_decay"] for g in groups for n, _ in g["params"]} == {
        "a.norm": 0.0,
        "a.b": 0.1,
    }


@pytest.mark.plain
def test_what_is_no_optimizer_is_refused():
    with pytest.raises(TypeError, match=r"optimizer made a list; a torch\.optim\.Optimizer"):
        Updater(lambda p: [], start(), {})
    with pytest.raises(TypeError, match="LBFGS evaluates the loss several times"):
        Updater(lambda p: torch.optim.LBFGS([x for _, x in p]), start(), {})
    with pytest.raises(ValueError, match=r"leaves out \['m.b'\] \(1 parameters\)"):
        Updater(lambda p: torch.optim.SGD(p[:1], lr=0.1), start(), {})


# -- groups ---------------------------------------------------------------------------------

NAMED = [
    ("student.encoder.weight", torch.zeros(2, 2)),
    ("student.encoder.bias", torch.zeros(2)),
    ("student.embed.weight", torch.zeros(2, 2)),
    ("project.weight", torch.zeros(2, 2)),
]


def _members(groups, **wanted):
    chosen = [g for g in groups if all(g.get(k) == v for k, v in wanted.items())]
    return {name for g in chosen for name, _ in g["params"]}


def test_the_longest_prefix_decides_the_rate():
    groups = param_groups(NAMED, lr={"student": 1e-3, "student.embed": 1e-4})
    assert _members(groups, lr=1e-4) == {"student.embed.weight"}
    assert _members(groups, lr=1e-3) == {"student.encoder.weight", "student.encoder.bias"}
    assert [name for g in groups if "lr" not in g for name, _ in g["params"]] == ["project.weight"]


def test_decay_can_be_left_out_by_name():
    groups = param_groups(NAMED, weight_decay=0.1, no_decay=["student.embed", "project"])
    assert _members(groups, weight_decay=0.0) == {"student.embed.weight", "project.weight"}
    one = param_groups(NAMED, weight_decay=0.1, no_decay="project")
    assert _members(one, weight_decay=0.0) == {"project.weight"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": {"studnet": 1e-3}}, r"lr names 'studnet'.*Did you mean 'student'"),
        ({"lr": {"student.encodr": 1e-3}}, r"lr names.*Did you mean 'student.encoder'"),
        ({"lr": {"student.enc": 1e-3}}, r"lr names 'student.enc'"),
        ({"lr": {"student": 1e-3, "head": 1e-4}}, r"lr names 'head'.*begin with: student, project"),
        ({"lr": {"": 1e-3}}, "lr names ''"),
        ({"no_decay": ["student.embedd"]}, r"no_decay names.*Did you mean 'student.embed'"),
        ({"no_decay": "bias"}, "no_decay names 'bias'"),
    ],
)
def test_a_name_that_nothing_has_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        param_groups(NAMED, weight_decay=0.1, **options)


@pytest.mark.plain  # the run-time type check would refuse them first
def test_parameters_without_names_are_refused():
    with pytest.raises(ValueError, match=r"params holds a Parameter; \(name, tensor\) pairs"):
        param_groups(list(nn.Linear(2, 2).parameters()))


class Transposed(torch.nn.Module):
    """The gradient of its weight has the memory order of the transposed weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(4, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.weight.t() * x).sum(0)


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Adagrad"])
def test_a_gradient_in_another_memory_order_changes_the_right_numbers(name):
    module, x = Transposed(), torch.randn(3, 4)
    objective = fkd.Objective(
        {"a": fkd.term(lambda y: y.square(), fkd.student.logits)}, student=fkd.trainable(module)
    )
    make = lambda params: getattr(torch.optim, name)(params, lr=0.1)
    step = fkd.loops.train_step(objective, make, compile=False)
    state = step.init()
    expected = make(module.parameters())
    for _ in range(2):
        state, _ = step(state, {"x": x})
        expected.zero_grad()
        module(x).square().mean().backward()
        expected.step()
    torch.testing.assert_close(state.trainable["student"]["weight"], module.weight.detach())
