"""Ways to differentiate inside a compiled graph: they agree, except where torch.func is wrong."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from fkd import Objective, batch, frozen, student, teacher, term, trainable
from fkd.loops import train_step
from fkd.loops._base.compile import arguments_alone, compiled
from fkd.loops._step.gradient import gradients
from fkd.loops._step.handles import HandlesByState
from fkd.losses import mse

from ...models import MLP, adamw, random_objective, same_bits, tokens

AOT = {"backend": "aot_eager"}


class Tenfold(torch.autograd.Function):
    """The identity, whose gradient is ten times what the forward pass suggests."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        del ctx, inputs, output

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensor:
        return 10 * cotangents[0]


class OldTenfold(torch.autograd.Function):
    """The same without `setup_context`, which torch.func refuses."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensor:
        return 10 * cotangents[0]


def tenfold_mse(s: Tensor, t: Tensor) -> Tensor:
    return mse(Tenfold.apply(s), t)


def old_tenfold_mse(s: Tensor, t: Tensor) -> Tensor:
    return mse(OldTenfold.apply(s), t)


def step_gradients(objective: Objective, data: Any, options: Any) -> list[Tensor]:
    """What a step computes before clipping and update."""
    step = train_step(objective, adamw, compile=False)
    state = step.init()
    parts = step._handles.of(state).parts(state)
    whole = compiled(step._graphs[step.choices.models]._whole, options)
    with torch.no_grad():
        found = whole(parts, objective.scalars(0), data, None)
    return found.grads


def func_gradients(objective: Objective, data: Any) -> list[Tensor]:
    """The same by torch.func, not compiled."""
    parts, scalars = objective.init(), objective.scalars(0)

    def loss(moving: Any) -> Tensor:
        return objective(parts._replace(trainable=moving), data, scalars=scalars)[0]

    by_model = torch.func.grad(loss)(parts.trainable)
    return [grad for params in by_model.values() for grad in params.values()]


@pytest.mark.compile
@pytest.mark.parametrize("seed", range(3))
def test_plain_autograd_in_the_graph_is_torch_func(seed):
    objective, data = random_objective(seed), tokens(seed=seed)
    expected = func_gradients(objective, data)
    for options in (None, AOT):
        found = step_gradients(objective, data, options)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # by the compiler itself
@pytest.mark.parametrize("loss", [tenfold_mse, old_tenfold_mse])
@pytest.mark.parametrize("options", [None, AOT])
def test_the_backward_of_an_autograd_function_is_used(loss, options):
    def objective(fn: Any) -> Objective:
        torch.manual_seed(0)
        return Objective(
            term(fn, student.logits, teacher.logits),
            student=trainable(MLP()),
            teacher=frozen(MLP(12, 3)),
        )

    plain = step_gradients(objective(mse), tokens(), None)
    found = step_gradients(objective(loss), tokens(), options)
    torch.testing.assert_close(found, [10 * g for g in plain], rtol=1e-5, atol=1e-6)


@pytest.mark.compile
def test_a_leaf_that_the_loss_does_not_reach_has_gradient_zero():
    x, y = torch.randn(3, requires_grad=True), torch.randn(2, requires_grad=True)

    def of(x: Tensor, y: Tensor) -> list[Tensor]:
        return gradients(x.square().sum(), [x, y])

    def constant(x: Tensor, y: Tensor) -> list[Tensor]:
        return gradients(torch.ones(()), [x, y])

    for options in (None, AOT):
        assert [g.tolist() for g in compiled(of, options)(x, y)] == [(2 * x).tolist(), [0.0, 0.0]]
        assert not any(g.any() for g in compiled(constant, options)(x, y))


@pytest.mark.compile
def test_tracing_leaves_the_users_settings_as_they_were():
    config = torch._dynamo.config
    assert config.trace_autograd_ops is False

    def fails(x: Tensor) -> Tensor:
        raise ValueError("inside")

    with pytest.raises(Exception, match="inside"):
        compiled(fails, AOT)(torch.ones(1))
    assert config.trace_autograd_ops is False


def test_handles_share_memory_and_are_made_once_for_a_state():
    objective = random_objective(0)
    state = train_step(objective, adamw, compile=False).init()
    optimizers: list[Any] = []

    def counted(params: Any) -> Any:
        optimizers.append(adamw(params))
        return optimizers[-1]

    handles = HandlesByState(counted)
    model, name = next((m, n) for m, params in state.trainable.items() for n in params)
    first = handles.of(state)
    state = state._replace(optimizer=first.updater.tree)
    state.trainable[model][name].fill_(3.0)
    leaf = first.leaves[model][name]
    assert leaf.requires_grad and (leaf == 3).all()
    assert handles.of(state) is first and len(optimizers) == 1
    assert not state.trainable[model][name].requires_grad
    state.trainable[model][name] = torch.ones_like(leaf)
    assert (handles.of(state).leaves[model][name] == 1).all() and len(optimizers) == 2


def test_states_in_turn_cost_one_optimizer_each_and_go_with_the_state():
    optimizers: list[Any] = []

    def counted(params: Any) -> Any:
        optimizers.append(weakref.ref(made := adamw(params)))
        return made

    step = train_step(random_objective(0), counted, compile=False)
    alone, _ = step(step.init(seed=1), tokens())
    alone, _ = step(alone, tokens())
    optimizers.clear()
    states = [step.init(seed=1), step.init(seed=2)]
    for _ in range(2):
        states = [step(state, tokens())[0] for state in states]
    assert len(optimizers) == 2
    assert same_bits(states[0].trainable, alone.trainable)
    del states
    gc.collect()
    assert not any(ref() for ref in optimizers)


def test_a_batch_that_reaches_the_loss_is_no_leaf():
    objective = Objective(term(mse, student.logits, batch.y), student=trainable(MLP()))
    data = {**tokens(), "y": torch.zeros(6, 7, 5)}
    assert all(not g.requires_grad for g in step_gradients(objective, data, None))


@pytest.mark.compile
def test_two_steps_of_the_same_structure_do_not_share_a_graph():
    """Their graphs have no guard on `self`, and differ only in what `self` holds."""

    def first(factor: float) -> Tensor:
        torch.manual_seed(0)
        objective = Objective(
            term(lambda s, t: factor * mse(s, t), student.logits, teacher.logits),
            student=trainable(MLP()),
            teacher=frozen(MLP(12, 3)),
        )
        step = train_step(objective, adamw, compile=AOT)
        return step(step.init(), tokens())[1]["loss/total"]

    torch.testing.assert_close(first(3.0), 3 * first(1.0))


@pytest.mark.compile
def test_guards_do_not_grow_with_the_models(monkeypatch):
    kept: list[list[str]] = []

    def spy(guards: Any) -> list[bool]:
        chosen = arguments_alone(guards)
        kept.append([g.name for g, k in zip(guards, chosen, strict=True) if k])
        return chosen

    monkeypatch.setattr("fkd.loops._base.compile.arguments_alone", spy)

    def beyond_arguments(layers: int) -> int:
        torch.manual_seed(0)
        objective = Objective(
            term(mse, student.logits, teacher.logits),
            student=trainable(MLP()),
            teacher=frozen(MLP(8, layers)),
        )
        step = train_step(objective, adamw, compile={"backend": "eager"})
        step(step.init(), tokens())
        arguments = ("parts", "batch", "")
        names = [name.split("[")[0].split(".")[0].strip("L") for name in kept[-1]]
        assert any(name.startswith("parts.frozen") for name in kept[-1])
        assert not [name for name in kept[-1] if "G[" in name]  # what is read while tracing
        return sum(name not in arguments for name in names)

    assert beyond_arguments(9) == beyond_arguments(2)


def test_modes_and_options_go_together():
    from fkd.loops._base.compile import _arguments

    found = _arguments({"mode": "max-autotune", "options": {"triton.cudagraphs": False}})
    assert found["options"]["max_autotune"] and not found["options"]["triton.cudagraphs"]
    assert found["fullgraph"] and "mode" not in found
