"""A program: models and refs as one pure function from parameters and a batch to values."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from .._base.errors import ObjectiveError
from .._base.trees import sizes
from .._base.types import Batch, Params
from .._blocks.sharing import Sharing
from .._refs.context import ModelFunction
from .._refs.derived import Function
from .._refs.refs import Context, Param, Ref, node
from .apply import (
    NOTHING,
    Applied,
    Apply,
    buffer_names,
    call_arguments,
    make_apply,
    parameter_names,
)
from .models import Model, skeleton, tensors_of, trainable_parameters, values_of
from .plan import Attempt, Given, Plan, value_of
from .reads import called_by, output_paths, patchable, read_models, run_by, seen_inside
from .recompute import marked


@runtime_checkable
class Rewrite(Protocol):
    """How models run otherwise than they are, over several ranks for one."""

    def skeleton(self, name: str, copied: Any) -> Any:
        """The skeleton of a model as it is to run."""
        ...

    def parameter(self, name: str, parameter: str, tensor: Tensor) -> Tensor:
        """The value of a ref to a parameter, from what the parts hold of it."""
        ...


class Parts(NamedTuple):
    """What an objective is a function of, besides the batch.

    Attributes:
      trainable: `{model: {parameter: tensor}}`, what the optimizer changes.
      frozen: likewise, what it does not: teachers, and EMA copies.
      buffers: likewise, batch statistics and other buffers of all models.
      loss_state: `{term: state}` of the terms that have one.
    """

    trainable: dict[str, dict[str, Tensor]]
    frozen: dict[str, dict[str, Tensor]]
    buffers: dict[str, dict[str, Tensor]]
    loss_state: dict[str, object]

    def __repr__(self) -> str:
        shown = (f"{name}={sizes(tree)}" for name, tree in self._asdict().items())
        return f"Parts({', '.join(shown)})"


@dataclass(frozen=True, eq=False)
class Program:
    """Models and a plan: parameters, buffers and a batch -> the value of every ref. Pure.

    An objective has one; `objective.program.values(...)` gives values without any loss.

    Attributes:
      plan: the refs, children first.
      models: by name; those that nothing reads are left out by `without`.
      applies: the models that can run, as pure functions.
      adapters: models that are only called by refs (`fkd.module`), never run on the batch.
      rewrite: what was done to every skeleton; None: nothing.

    Example:
      >>> objective = Objective(
      ...     {"kd": term(kl, student.logits, teacher.logits)},
      ...     student=trainable(torch.nn.Linear(4, 3)), teacher=frozen(torch.nn.Linear(4, 3)),
      ... )
      >>> program = objective.program.reading([teacher.logits])
      >>> forward = program.context(objective.init(), torch.randn(2, 4))
      >>> program.runs, program.values(forward.context)[-1].shape
      (('teacher',), torch.Size([2, 3]))
    """

    plan: Plan
    models: Mapping[str, Model]
    applies: Mapping[str, Apply]
    adapters: frozenset[str] = frozenset()
    rewrite: Rewrite | None = None

    def sharing(self, sharing: Sharing) -> Program:
        """The same program, whose equal blocks are compiled once."""
        return make_program(
            self.plan, self.models, self.adapters, rewrite=self.rewrite, sharing=sharing
        )

    def __repr__(self) -> str:
        models = ", ".join(f"{name}={model}" for name, model in self.models.items())
        return f"Program({len(self.plan.refs)} refs, {models})"

    @property
    def runs(self) -> tuple[str, ...]:
        """The models whose forward pass is needed; frozen ones first, so that what they
        computed on the way is freed before the student runs."""
        nodes = list(map(node, self.plan.computed))
        wanted = run_by(nodes)
        if any(isinstance(part, Function) for part in nodes):  # which may read any model
            wanted |= set(self.models) - self.adapters
        names = [name for name in self.models if name in wanted]
        return tuple(sorted(names, key=lambda name: self.models[name].kind == "trainable"))

    def model(self, name: str) -> Model:
        """A model by name; an EMA stands for the module that it follows."""
        return resolved(self.models, name)

    def trained(self, name: str) -> list[str]:
        """The parameters of a model that its training changes."""
        return list(trainable_parameters(self.model(name)))

    def without(self, known: Iterable[Ref]) -> Program:
        """The program in which the values of some refs are given: partial evaluation.

        What only these refs needed is gone: refs, taps, and models that nothing else reads
        (neither run nor held). `values` then needs `given=` for every one of them.

        Args:
          known: refs of this program. A plain function of the context may read any model, so
            models stay while one is computed.

        Raises:
          ValueError: a ref that nothing reads.
        """
        known = tuple(known)
        unread = [ref for ref in known if ref not in self.plan.place]
        if unread:
            raise ValueError(f"without: nothing reads {unread[0]!r}.")
        refs = self.plan.refs
        before = tuple(refs[i] for i in self.plan.known)
        plan = Plan((refs[i] for i in self.plan.outputs), (*before, *known))
        models = read_models(plan, self.models)
        return make_program(plan, models, self.adapters, rewrite=self.rewrite)

    def reading(self, refs: Iterable[Ref]) -> Program:
        """The same models with other refs, in eval mode: no dropout, running statistics."""
        plan = Plan(refs)
        return make_program(plan, self.models, self.adapters, training=False, rewrite=self.rewrite)

    def evaluating(self) -> Program:
        """The same program with every model in eval mode."""
        return make_program(
            self.plan, self.models, self.adapters, training=False, rewrite=self.rewrite
        )

    def init(self) -> Parts:
        """The initial parameters and buffers. What is frozen is shared with the module; all
        else is a copy."""
        return self.parts(lambda x: x.detach().clone(), lambda x: x.detach(), self.values_of)

    def values_of(self, name: str, tensor: str, x: Tensor) -> Tensor:
        """The values of a tensor of a model: those of the module, or of its files."""
        return values_of(self.model(name), tensor, x)

    def parts(
        self,
        copied: Callable[[Tensor], Tensor],
        shared: Callable[[Tensor], Tensor],
        absent: Callable[[str, str, Tensor], Tensor] | None = None,
    ) -> Parts:
        """The modules' tensors: through `copied` what a run changes, through `shared` the rest;
        what has its values in files through `absent` (its model, its name, itself) first."""
        parts = Parts({}, {}, {}, {})
        for name in self.models:
            here = None if absent is None else functools.partial(absent, name)
            for tree, tensors in zip(
                parts[:3], tensors_of(self.model(name), copied, shared, here), strict=True
            ):
                if tensors:
                    tree[name] = tensors
        return parts

    def start(self, parts: Parts, batch: Batch, *, autocast: torch.dtype | None = None) -> Pass:
        """A forward pass in which no model has run yet."""
        return Pass(self, parts, batch, autocast)

    def context(self, parts: Parts, batch: Batch, *, autocast: torch.dtype | None = None) -> Pass:
        """A forward pass in which every model that the refs need has run.

        Args:
          parts: as `init()` gives them.
          batch: what the data loader yields.
          autocast: dtype in which models run their matrix products.

        Returns:
          A `Pass`: `.context` is what refs read, `.buffers` are the buffers afterwards.
        """
        forward = self.start(parts, batch, autocast=autocast)
        for name in self.runs:
            forward.run(name)
        return forward

    def values(
        self,
        ctx: Context,
        given: Given | None = None,
        *,
        attempt: Attempt = value_of,
    ) -> list[Any]:
        """The value of every ref, by its place in the plan; see `Plan.compute`."""
        return self.plan.compute(ctx, given, attempt=attempt)


class Pass:
    """A forward pass: models run one by one into the context that refs read.

    Attributes:
      context: what the models that have run returned.
      buffers: of all models, as they are now. Adapters that refs call later change theirs, too.
    """

    def __init__(
        self, program: Program, parts: Parts, batch: Batch, autocast: torch.dtype | None
    ) -> None:
        self._program, self._batch, self._autocast = program, batch, autocast
        self._params = {
            n: {**parts.frozen.get(n, {}), **parts.trainable.get(n, {})} for n in program.models
        }
        self.buffers = {name: dict(tensors) for name, tensors in parts.buffers.items()}
        self._outputs: dict[str, Any] = {"batch": batch}
        self._taps: dict[str, dict[Any, Any]] = {}
        names = program.models
        modules = {name: self._as_module(name) for name in names}
        functions = {name: self._as_function(name) for name in names}
        runs = {name: self._as_run(name) for name in names}
        patched = {name: self._as_patched(name) for name in names}
        params = _with_aliases(program, self._params, parts.buffers)
        self.context = Context(self._outputs, self._taps, params, modules, functions, runs, patched)

    def run(self, name: str) -> None:
        """Run a model on the batch."""
        model = self._program.model(name)
        args, kwargs = call_arguments(model, self._batch)
        with torch.set_grad_enabled(torch.is_grad_enabled() and model.kind == "trainable"):
            output = self._apply(name, args, kwargs)
        self._outputs[name] = _returned(model, output)

    def _call(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        patches: Mapping[str, Any] = NOTHING,
        params: Mapping[str, Tensor] | None = None,
    ) -> Applied:
        params = self._params[name] if params is None else params
        with _autocast(params, self._autocast):
            apply = self._program.applies[name]
            return apply(params, self.buffers.get(name, {}), args, kwargs, patches)

    def _apply(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        applied = self._remembered(name, args, kwargs)
        self._taps[name] = applied.taps
        return applied.output

    def _remembered(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Applied:
        """A run whose batch statistics stay, if the model is trained."""
        applied = self._call(name, args, kwargs)
        if applied.buffers and self._program.models[name].kind == "trainable":
            self.buffers[name] = applied.buffers
        return applied

    def _as_module(self, name: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: self._apply(name, args, kwargs)

    def _as_function(self, name: str) -> Callable[[], ModelFunction]:
        """Made where it is asked for: a graph that breaks cannot hand such an object on."""
        params = self._params[name]

        def run(params: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
            return self._call(name, args, kwargs, params=params).output

        return lambda: ModelFunction(run, params)

    def _as_run(self, name: str) -> Callable[[Sequence[Any], Mapping[str, Any]], Any]:
        """The model on other inputs: what it returns, and what was seen inside."""

        def run(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
            applied = self._remembered(name, args, kwargs)
            return _returned(self._program.model(name), applied.output), applied.taps

        return run

    def _as_patched(self, name: str) -> Callable[[Mapping[str, Any]], Any]:
        """The model on the batch once more."""

        def run(patches: Mapping[str, Any]) -> Any:
            model = self._program.model(name)
            args, kwargs = call_arguments(model, self._batch)
            return _returned(model, self._call(name, args, kwargs, patches).output)

        return run


def _returned(model: Model, output: Any) -> Any:
    """What refs see of a model's output."""
    return output if model.outputs is None else model.outputs(output)


def make_program(
    plan: Plan,
    models: Mapping[str, Model],
    adapters: frozenset[str] = frozenset(),
    *,
    training: bool | None = None,
    rewrite: Rewrite | None = None,
    sharing: Sharing | None = None,
) -> Program:
    """A program, with its models as pure functions.

    Args:
      plan: the refs.
      models: by name.
      adapters: models known to be called by refs only, besides those that this plan calls.
      training: train mode for all models; None: as each model says.
      rewrite: changes every skeleton before it is used.
      sharing: how equal blocks of a skeleton share what is compiled; None: not.

    Raises:
      ObjectiveError: a module that cannot be copied.
    """
    nodes = list(map(node, plan.computed))
    called = {name for part in nodes if (name := called_by(part)) is not None}
    applies: dict[str, Apply] = {}
    problems: list[str] = []
    for name in models:
        model = resolved(models, name)
        assert model.module is not None
        mode = model.training if training is None else training
        try:
            copied = skeleton(model.module, training=mode)
            copied = copied if rewrite is None else rewrite.skeleton(name, copied)
            copied = marked(copied, model.recomputed)
            paths = output_paths(plan, name, model)
            places = tuple(patchable(nodes, name))
            taps = seen_inside(nodes, name)
            applies[name] = make_apply(copied, taps, paths, sharing, places)
        except Exception as error:
            problems.append(f"model {name!r}: {type(error).__name__}: {error}")
    if problems:
        raise ObjectiveError(problems)
    called_only = adapters | frozenset(called - run_by(nodes))
    return Program(plan, models, applies, called_only, rewrite)


def resolved(models: Mapping[str, Model], name: str) -> Model:
    """A model by name; an EMA stands for the module that it follows."""
    model = models[name]
    if model.kind != "ema":
        return model
    followed = models[model.of]
    inputs = model.inputs or followed.inputs
    outputs = model.outputs or followed.outputs
    more = {"inputs": inputs, "outputs": outputs, "stored": followed.stored}
    return replace(model, module=followed.module, **more)


def _with_aliases(
    program: Program, params: Params, buffers: Params
) -> dict[str, dict[str, Tensor]]:
    """Parameters and buffers under the names that refs use, of which tied ones have several."""
    by_model: dict[str, dict[str, Tensor]] = {}
    for part in map(node, program.plan.computed):
        if isinstance(part, Param):
            module = program.model(part.root).module
            assert module is not None
            name = parameter_names(module).get(part.parameter)
            if name is None:
                tensor = buffers[part.root][buffer_names(module)[part.parameter]]
            elif program.rewrite is None:
                tensor = params[part.root][name]
            else:
                tensor = program.rewrite.parameter(part.root, name, params[part.root][name])
            by_model.setdefault(part.root, {})[part.parameter] = tensor
    return by_model


def _autocast(params: Mapping[str, Tensor], dtype: torch.dtype | None) -> Any:
    if dtype is None or not params:
        return contextlib.nullcontext()
    device = next(iter(params.values())).device.type
    return torch.autocast(device, dtype, cache_enabled=False)
