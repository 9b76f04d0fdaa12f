"""An objective: terms and named models as one pure function of parameters, buffers and batch."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .._errors import ObjectiveError
from .._mean import Mean, divide
from .._refs.derived import Call, Function
from .._refs.refs import Capture, Context, Node, Param, Ref, Root, Tap, node, output_path
from .._types import Batch, Params, Scalars
from .apply import (
    Apply,
    Model,
    call_arguments,
    frozen_parameters,
    make_apply,
    parameter_names,
    skeleton,
    trainable_parameters,
)
from .plan import Plan, bind
from .problems import static_problems
from .terms import Graph, Term, flatten, moves, value_at


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
    loss_state: dict[str, Any]


class Aux(NamedTuple):
    """What an objective gives besides the loss.

    Attributes:
      terms: the mean of each term (and metric), before its weight.
      weights: the weight that each term had in the total.
      buffers: the buffers after the forward passes.
      loss_state: the state of each stateful term after this batch.
    """

    terms: dict[str, Mean]
    weights: dict[str, Tensor]
    buffers: dict[str, dict[str, Tensor]]
    loss_state: dict[str, Any]


class Evaluation(NamedTuple):
    """What a context gives: the value of every ref by place, means, weights, loss state."""

    values: list[Any]
    means: dict[str, Mean]
    weights: dict[str, Tensor]
    loss_state: dict[str, Any]


class Objective:
    """Terms over named models, as the pure function that a step differentiates.

        loss, aux = objective(trainable, frozen, buffers, batch, step)

    Args:
      terms: a term, or nested dicts (or lists) of terms; the keys are the names in logs.
      models: `trainable(module)`, `frozen(module)` or `ema(name)` for every name that the
        terms use. Any names, any number.

    The objective never changes, and neither do the modules it is given. Mistakes are reported
    together by `fkd.check(objective, batch)`, and by the first use.

    Example:
      >>> net = torch.nn.Linear(4, 3)
      >>> objective = Objective(
      ...     {"kd": term(kl, student.logits, teacher.logits)},
      ...     student=trainable(net), teacher=frozen(torch.nn.Linear(4, 3)),
      ... )
      >>> parts = objective.init()
      >>> loss, aux = objective(*parts[:3], torch.randn(2, 4))
      >>> loss.shape, sorted(aux.terms)
      (torch.Size([]), ['kd'])
    """

    def __init__(self, terms: Graph, /, **models: Model) -> None:
        self.terms: Mapping[str, Term] = flatten(terms)
        self.models: Mapping[str, Model] = models
        self.plan = Plan(ref for t in self.terms.values() for ref in t.refs)
        self.knobs = moving_knobs(self.terms, models)
        self.problems = static_problems(self.terms, models, self.refs)
        self.bound = {name: bind(name, t, self.plan.place) for name, t in self.terms.items()}
        self._applies: Mapping[str, Apply] = {} if self.problems else self._make_applies(None)

    @property
    def refs(self) -> list[Ref]:
        """Every distinct ref of the terms, children first."""
        return [ref for ref, _ in self.plan.order]

    @property
    def nodes(self) -> list[Node]:
        """What the refs say, in the same order."""
        return [node(ref) for ref in self.refs]

    @property
    def weighted(self) -> list[str]:
        """The terms that are part of the total; the others are metrics."""
        return [name for name, t in self.terms.items() if t.weight is not None]

    @property
    def runs(self) -> tuple[str, ...]:
        """The models whose forward pass is needed; frozen ones first, so that what they
        computed on the way is freed before the student runs."""
        called = {r.name for r in self.nodes if isinstance(r, Call) and r.fn is None}
        if any(isinstance(r, Function) for r in self.nodes):
            wanted = set(self.models) - called
        else:
            wanted = {r.name for r in self.nodes if isinstance(r, Root)}
        wanted |= {r.root for r in self.nodes if isinstance(r, Tap | Capture)}
        names = [n for n in self.models if n in wanted]
        return tuple(sorted(names, key=lambda n: self.models[n].kind == "trainable"))

    def model(self, name: str) -> Model:
        """A model by name; an EMA stands for the module that it follows."""
        found = self.models[name]
        if found.kind != "ema":
            return found
        followed = self.models[found.of]
        inputs = found.inputs or followed.inputs
        outputs = found.outputs or followed.outputs
        return Model("ema", followed.module, inputs, outputs, of=found.of, decay=found.decay)

    def evaluating(self) -> Objective:
        """The same objective with every model in eval mode (no dropout, running statistics)."""
        self._raise_problems()
        evaluating = copy.copy(self)
        evaluating._applies = self._make_applies(False)
        return evaluating

    def _make_applies(self, training: bool | None) -> dict[str, Apply]:
        applies: dict[str, Apply] = {}
        for name in self.models:
            model = self.model(name)
            assert model.module is not None
            taps = [r for r in self.nodes if isinstance(r, Tap | Capture) and r.root == name]
            try:
                mode = model.training if training is None else training
                copied = skeleton(model.module, training=mode)
                applies[name] = make_apply(copied, taps, self.output_paths(name))
            except Exception as error:
                self.problems.append(f"model {name!r}: {type(error).__name__}: {error}")
        return applies

    def output_paths(self, name: str) -> list[tuple[Any, ...]]:
        """The paths that refs take through a model's output. A plain function may take any,
        so that with one the cheap optional outputs (hidden states) are asked for as well."""
        found = [output_path(ref) for ref in self.refs]
        paths = [keys for root, keys in filter(None, found) if root == name and keys]
        if any(isinstance(r, Function) for r in self.nodes) or self.model(name).outputs is not None:
            paths.append(("hidden_states",))
        return paths

    def init(self) -> Parts:
        """The initial parameters, buffers and loss state. Those of frozen models are shared
        with the module; all others are copies."""
        return self.parts(lambda x: x.detach().clone(), lambda x: x.detach())

    def parts(self, own: Callable[[Tensor], Tensor], shared: Callable[[Tensor], Tensor]) -> Parts:
        """The modules' tensors: through `own` what a run changes, through `shared` the rest."""
        self._raise_problems()
        found = Parts({}, {}, {}, {})
        for name in self.models:
            model = self.model(name)
            assert model.module is not None
            still = shared if model.kind == "frozen" else own
            moving = {n: own(p) for n, p in trainable_parameters(model).items()}
            fixed = {n: still(p) for n, p in frozen_parameters(model).items()}
            held = {n: still(b) for n, b in model.module.named_buffers()}
            for tree, tensors in zip(found[:3], (moving, fixed, held), strict=True):
                if tensors:
                    tree[name] = tensors
        states = {n: t.state for n, t in self.terms.items() if t.state is not None}
        return found._replace(loss_state=pytree.tree_map_only(Tensor, own, states))

    def scalars(self, step: int, device: torch.device | str | None = None) -> dict[str, Tensor]:
        """The moving knobs at a step, as 0-d float32 tensors on `device`.

        They travel in one copy that the host does not wait for.
        """
        now = {name: value_at(knob, step) for name, knob in self.knobs.items()}
        found = {n: v.detach() for n, v in now.items() if isinstance(v, Tensor)}
        numbers = {n: v for n, v in now.items() if not isinstance(v, Tensor)}
        # Not towards the host, which would read the copy before it is there.
        ahead = device is not None and torch.device(device).type == "cuda"
        if numbers:
            vector = torch.tensor(list(numbers.values()), dtype=torch.float32)
            vector = vector.pin_memory() if ahead else vector
            vector = vector if device is None else vector.to(device, non_blocking=ahead)
            found.update(zip(numbers, vector.unbind(), strict=True))
        if device is None:
            return found
        return {n: v.to(device, non_blocking=ahead) for n, v in found.items()}

    def __call__(
        self,
        trainable: Params,
        frozen: Params,
        buffers: Params,
        batch: Batch,
        step: int = 0,
        *,
        loss_state: Mapping[str, Any] | None = None,
        scalars: Scalars | None = None,
        counts: Mapping[str, Tensor] | None = None,
        autocast: torch.dtype | None = None,
    ) -> tuple[Tensor, Aux]:
        """The weighted total of the terms on a batch. Pure.

        Args:
          trainable, frozen, buffers: as `init()` gives them.
          batch: what the data loader yields.
          step: evaluates the schedules, unless `scalars` are given.
          loss_state: state of the stateful terms; the initial one by default.
          scalars: the moving knobs, from `scalars(step)`. A compiled caller passes them, so
            that a new step is not a new graph.
          counts: what each term's total is divided by, in place of this batch's own count:
            the merged counts, when this batch is a part of a larger one.
          autocast: dtype in which models (not losses) run their matrix products.

        Returns:
          `[]`, the loss, and an `Aux`.
        """
        self._raise_problems()
        scalars = self.scalars(step) if scalars is None else scalars
        ctx, new_buffers = self.context(trainable, frozen, buffers, batch, autocast=autocast)
        found = self.evaluate(ctx, scalars, loss_state)
        parts: list[Tensor] = []
        for name, weight in found.weights.items():
            mean = found.means[name]
            count = mean.count if counts is None else counts[name]
            parts.append(weight * divide(mean.total, count))
        aux = Aux(found.means, found.weights, new_buffers, found.loss_state)
        return torch.stack(parts).sum(), aux

    def context(
        self,
        trainable: Params,
        frozen: Params,
        buffers: Params,
        batch: Batch,
        *,
        names: Sequence[str] | None = None,
        autocast: torch.dtype | None = None,
    ) -> tuple[Context, dict[str, dict[str, Tensor]]]:
        """Run the models that the terms need (or `names`). Gives the context, and the buffers
        after it; adapters that refs call later put theirs in as well."""
        new_buffers = {name: dict(held) for name, held in buffers.items()}
        params = {n: {**frozen.get(n, {}), **trainable.get(n, {})} for n in self.models}
        values: dict[str, Any] = {"batch": batch}
        taps: dict[str, dict[Any, Any]] = {}

        def run(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
            held = new_buffers.get(name, {})
            with _autocast(params[name], autocast):
                output, taps[name], held = self._applies[name](params[name], held, args, kwargs)
            if held and self.models[name].kind == "trainable":
                new_buffers[name] = held
            return output

        for name in self.runs if names is None else names:
            model = self.model(name)
            args, kwargs = call_arguments(model, batch)
            with torch.set_grad_enabled(torch.is_grad_enabled() and model.kind == "trainable"):
                output = run(name, args, kwargs)
            values[name] = output if model.outputs is None else model.outputs(output)

        def as_function(name: str) -> Callable[..., Any]:
            return lambda *args, **kwargs: run(name, args, kwargs)

        modules = {name: as_function(name) for name in self.models}
        return Context(values, taps, self._with_aliases(params), modules), new_buffers

    def _with_aliases(self, params: Params) -> dict[str, dict[str, Tensor]]:
        """Parameters under the names that refs use, of which tied ones have several."""
        found: dict[str, dict[str, Tensor]] = {}
        for ref in self.nodes:
            if isinstance(ref, Param):
                module = self.model(ref.root).module
                assert module is not None
                name = parameter_names(module)[ref.parameter]
                found.setdefault(ref.root, {})[ref.parameter] = params[ref.root][name]
        return found

    def evaluate(
        self, ctx: Context, scalars: Scalars, loss_state: Mapping[str, Any] | None = None
    ) -> Evaluation:
        """Every ref and every term in a context; the weights are not applied yet."""
        values = self.plan.compute(ctx)
        found = Evaluation(values, {}, {}, {})
        for name, term in self.terms.items():
            state = term.state if loss_state is None else loss_state.get(name)
            with torch.set_grad_enabled(torch.is_grad_enabled() and term.weight is not None):
                evaluated = self.bound[name](values, scalars, state)
                found.means[name] = evaluated.mean
            if term.state is not None:
                found.loss_state[name] = pytree.tree_map_only(Tensor, torch.detach, evaluated.state)
            if isinstance(term.weight, Ref):
                found.weights[name] = values[self.plan.place[term.weight]]
            elif f"{name}/weight" in scalars:
                found.weights[name] = scalars[f"{name}/weight"]
            elif term.weight is not None:
                found.weights[name] = torch.full_like(found.means[name].total, term.weight)
        return found

    def _raise_problems(self) -> None:
        if self.problems:
            raise ObjectiveError(self.problems)

    def __iter__(self) -> Iterator[str]:
        return iter(self.terms)

    def __repr__(self) -> str:
        models = [f"    {n}={m!r}," for n, m in self.models.items()]
        terms = [f"        {n!r}: {t!r}," for n, t in self.terms.items()]
        return "\n".join(["Objective(", "    {", *terms, "    },", *models, ")"])


def _autocast(params: Mapping[str, Tensor], dtype: torch.dtype | None) -> Any:
    if dtype is None or not params:
        return contextlib.nullcontext()
    device = next(iter(params.values())).device.type
    return torch.autocast(device, dtype, cache_enabled=False)


def moving_knobs(terms: Mapping[str, Term], models: Mapping[str, Any]) -> dict[str, Any]:
    """What moves during a run: `"kd/temperature"`, `"kd/weight"`, `"teacher/decay"`."""
    found = {f"{n}/{k}": v for n, t in terms.items() for k, v in t.moving.items()}
    decays = {n: m.decay for n, m in models.items() if isinstance(m, Model) and m.kind == "ema"}
    return found | {f"{n}/decay": decay for n, decay in decays.items() if moves(decay)}
