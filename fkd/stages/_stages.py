"""Stages as a step: which objective is trained follows from how many steps are done."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fkd._base.errors import expect
from fkd._base.trees import merged
from fkd._base.types import TensorBatch
from fkd._objective.terms import part_names
from fkd.loops import State, TrainStep, fold_in
from fkd.loops._base.waiting import Say
from fkd.loops._data.prefetch import Move
from fkd.loops._step.by_model import Choices
from fkd.loops._step.ranks import Together
from fkd.parallel._objective import Share
from fkd.parallel._shards import Wholes, is_cut, local, rows_like

from ._joint import Stage, joint_objective

Metrics = dict[str, Tensor]
_STAGE = 1 << 34  # folded into the seed of a run: the seeds of its later stages


class Stages(TrainStep):
    """See `stages`, which makes it: a `TrainStep` that trains one objective after the other.

    Attributes:
      stages: by name, in their order.
      starts: at which step each begins.
    """

    def __init__(self, stages: Mapping[str, Stage]) -> None:
        self.stages = dict(stages)
        steps = [one.step for one in self.stages.values()]
        vars(self).update(vars(steps[0]))
        self.objective = joint_objective(self.stages)
        self.objective.raise_problems()
        lengths = [one.steps or 0 for one in self.stages.values()]
        self.starts = [0, *itertools.accumulate(lengths[:-1])]
        self.combined = None
        self.within = {name: one.step for name, one in self.stages.items()}
        self.choices = _joint_choices({n: one.step.choices for n, one in self.stages.items()})
        self._names = _metric_names(self.stages, list(self.objective.models))
        meshes = [one.together.axes.mesh for one in steps if one.together is not None]
        if meshes:
            self._share(Together(meshes[0], self.objective, self.autocast))

    def init(
        self,
        seed: int = 0,
        *,
        device: torch.device | str | None = None,
        modules: Mapping[str, nn.Module] | None = None,
    ) -> State:
        """The state before the first stage: the models of all stages; see `TrainStep.init`."""
        all_modules = dict(modules or {})
        states = {
            name: one.step.init(
                seed,
                device=device,
                modules={n: m for n, m in all_modules.items() if n in one.step.objective.models},
            )
            for name, one in self.stages.items()
        }
        trained = self.objective.program.parts(lambda x: x, lambda x: x).trainable
        tensors: dict[str, dict[str, Tensor]] = {}
        buffers: dict[str, dict[str, Tensor]] = {}
        for state in states.values():
            for tree in (state.frozen, state.trainable):
                for model, named in tree.items():
                    known = tensors.setdefault(model, {})
                    known.update({n: x for n, x in named.items() if n not in known})
            for model, named in state.buffers.items():
                buffers.setdefault(model, named)
        first = next(iter(states.values()))
        frozen = {
            m: {n: x for n, x in named.items() if n not in trained.get(m, {})}
            for m, named in tensors.items()
        }
        return State(
            trainable={m: {n: tensors[m][n] for n in names} for m, names in trained.items()},
            frozen={m: named for m, named in frozen.items() if named},
            buffers=buffers,
            optimizer={},
            loss_state={f"{s}/{t}": x for s, state in states.items()
                        for t, x in state.loss_state.items()},
            skipped=first.skipped,
            step=0,
            seed=seed,
            combine_state={name: state.combine_state for name, state in states.items()},
            loss_scale=first.loss_scale,
        )  # fmt: skip

    def _share(self, together: Together) -> None:
        """Let the steps of all stages cut the parameters of the run alike."""
        self.together = together
        for one in self.within.values():
            assert one.together is not None
            one.together.cutting, one.together.world = together.cutting, together.world

    def local(self, batch: TensorBatch, move: Move) -> TensorBatch | list[Share]:
        """What this process needs of a batch. The processes agree on all stages at the first."""
        for one in self.within.values():
            one.expect(batch)
        return next(iter(self.within.values())).local(batch, move)

    @property
    def related(self) -> dict[str, list[str]]:
        """See `TrainStep.related`."""
        return {name: said for name, one in self.within.items() for said in one.related.values()}

    def remember(self, related: Mapping[str, Sequence[str]]) -> None:
        """See `TrainStep.remember`."""
        for name, one in self.within.items():
            if name in related:
                one.remember({"": related[name]})

    def stage_at(self, step: int) -> str:
        """The name of the stage to which a step belongs."""
        return list(self.stages)[self._index(step)]

    def _index(self, step: int) -> int:
        return max(i for i, start in enumerate(self.starts) if start <= step)

    def advance(
        self, state: State, batch: TensorBatch | list[Any], *, say: Say | None = None
    ) -> tuple[State, Metrics]:
        """One step of the stage under way."""
        index = self._index(state.step)
        name = self.stage_at(state.step)
        one = self.stages[name]
        if index and state.step == self.starts[index]:
            self._begin(state, index, one)
        stage_state, measured = one.step.advance(self._view(state, index), batch, say=say)
        prefix = f"{name}/"
        loss_state = {prefix + term: x for term, x in stage_state.loss_state.items()}
        memories: Any = state.combine_state
        state = state._replace(
            optimizer=stage_state.optimizer,
            loss_state={**state.loss_state, **loss_state},
            step=state.step + 1,
            combine_state={**memories, name: stage_state.combine_state},
            loss_scale=stage_state.loss_scale,
        )
        nothing = torch.full_like(measured["loss/total"], torch.nan)
        renamed = {_joint_name(key, name): value for key, value in measured.items()}
        return state, {**dict.fromkeys(self._names, nothing), **renamed}

    def _view(self, state: State, index: int) -> State:
        """The state as the step of a stage knows it; the tensors are those of the run."""
        name = list(self.stages)[index]
        choices, models = self.stages[name].step.choices, self.stages[name].step.objective.models
        program = self.stages[name].step.objective.program
        trained = {m: set(program.trained(m)) for m in choices.models}
        tensors = merged(state.trainable, state.frozen)
        fresh = state.step == self.starts[index]
        prefix = f"{name}/"
        trainable = {
            m: {n: x for n, x in state.trainable[m].items() if n in trained[m]}
            for m in choices.models
        }
        frozen = {
            m: {n: x for n, x in tensors[m].items() if n not in trained.get(m, ())}
            for m in models
            if m in tensors
        }
        loss_state = state.loss_state.items()
        memories: Any = state.combine_state
        return State(
            trainable=trainable,
            frozen={m: named for m, named in frozen.items() if named},
            buffers={m: named for m, named in state.buffers.items() if m in models},
            optimizer={} if fresh else state.optimizer,
            loss_state={n.removeprefix(prefix): x for n, x in loss_state if n.startswith(prefix)},
            skipped=state.skipped,
            step=state.step - self.starts[index],
            seed=fold_in(state.seed, _STAGE + index) if index else state.seed,
            combine_state=memories[name],
            loss_scale=state.loss_scale,
        )

    @torch.no_grad()
    def _begin(self, state: State, index: int, one: Stage) -> None:
        """Copy into the models of a stage what they begin with."""
        now = merged(state.trainable, state.frozen, state.buffers)
        whole = {model: Wholes(named) for model, named in now.items()}
        if one.start is not None:
            for model, named in one.start(whole).items():
                for name, value in named.items():
                    _copy(now, model, name, value)
        earlier = [s.step.objective.models for s in list(self.stages.values())[:index]]
        for name, model in one.step.objective.models.items():
            if model.kind == "ema" and not any(name in models for models in earlier):
                for n, average in now[name].items():
                    local(average).copy_(local(now[model.of][n]))

    def rates(self, state: State) -> dict[str, float]:
        """The learning rates of the stage under way."""
        index = self._index(state.step)
        return self.stages[self.stage_at(state.step)].step.rates(self._view(state, index))

    @property
    def compilations(self) -> int:
        """How often the steps of the stages were compiled."""
        return sum(one.step.compilations for one in self.stages.values())

    @property
    def compile_seconds(self) -> float:
        """How long the calls took that compiled."""
        return sum(one.step.compile_seconds for one in self.stages.values())

    def __repr__(self) -> str:
        parts = zip(self.stages, self.starts, strict=True)
        return f"Stages({', '.join(f'{name} from step {start}' for name, start in parts)})"


def _copy(now: Mapping[str, Mapping[str, Tensor]], model: str, name: str, value: Tensor) -> None:
    place = now.get(model, {}).get(name)
    if place is None or place.shape != value.shape:
        here = "no such tensor" if place is None else f"{tuple(place.shape)}"
        raise ValueError(
            f"stages: start gives {model}.{name} {tuple(value.shape)}, and the run has {here}. "
            "{model: {parameter: tensor}} of models of the run is expected."
        )
    local(place).copy_(rows_like(value, place) if is_cut(place) else value)


def _joint_name(key: str, stage: str) -> str:
    kind, _, rest = key.partition("/")
    of_stage = kind in ("weight", "knob", "term_grad_norm") or (kind == "loss" and rest != "total")
    return f"{kind}/{stage}/{rest}" if of_stage else key


def _metric_names(stages: Mapping[str, Stage], models: list[str]) -> list[str]:
    """All that any stage measures: the same names at every step of the run."""
    names = ["loss/total"]
    for stage, one in stages.items():
        objective, combined = one.step.objective, one.step.combined
        names += [f"loss/{stage}/{term}" for term in objective.terms]
        names += [
            f"loss/{stage}/{n}/{part}" for n, term in objective.terms.items()
            for part in part_names(term)
        ]  # fmt: skip
        names += [
            f"weight/{stage}/{knob.removesuffix('/weight')}" if knob.endswith("/weight")
            else f"knob/{stage}/{knob}" for knob in objective.knobs
        ]  # fmt: skip
        names += [f"term_grad_norm/{stage}/{g}" for g in (combined.groups if combined else ())]
    trained = {m for one in stages.values() for m in one.step.choices.models}
    return [*names, *(f"grad_norm/{m}" for m in models if m in trained), "grad_norm/total"]


def _joint_choices(stages: Mapping[str, Choices]) -> Choices:
    models = dict.fromkeys(m for choices in stages.values() for m in choices.models)
    last: dict[str, Any] = {"optimizers": {}, "clips": {}, "rates": {}, "when": {}}
    return Choices(tuple(models), **last)


def stages(run: Mapping[str, Stage]) -> Stages:
    """A run of several objectives in a row: a step for `fit`, with one state, log and resume.

        features = train_step(on_features, adamw)
        logits = train_step(on_logits, adamw, lr=fkd.schedules.warmup(100))
        step = fkd.stages.stages({
            "features": fkd.stages.stage(features, steps=1000), "logits": fkd.stages.stage(logits),
        })
        result = fkd.loops.run(step, step.init(seed=0), loader, steps=3000, checkpoint_dir="run")

    Models go by their names from stage to stage: what one stage trains, another may freeze, leave
    out, or read as a teacher. In the log a term is called `stage/term`.

    Args:
      run: the stages by name, in their order; each but the last says how many `steps` it has.

    Raises:
      TypeError: a list, or a stage that is no `fkd.stages.stage`.
      ValueError: a stage has no number of steps, a name stands for two modules, or the steps have
        different meshes.

    Example:
      >>> net, large = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
      >>> def step(loss):
      ...     terms = {"gap": term(loss, student.logits, teacher.logits)}
      ...     objective = Objective(terms, student=trainable(net), teacher=frozen(large))
      ...     return fkd.loops.train_step(
      ...         objective, lambda p: torch.optim.SGD(p, lr=0.1), compile=False
      ...     )
      >>> both = fkd.stages.stages({"first": fkd.stages.stage(step(mse), steps=2),
      ...                           "then": fkd.stages.stage(step(kl))})
      >>> [both.stage_at(i) for i in range(4)], both
      (['first', 'first', 'then', 'then'], Stages(first from step 0, then from step 2))
    """
    expect("stages", "run", run, Mapping, "{name: fkd.stages.stage(step)}", "Each has a name.")
    if not run:
        raise ValueError("stages: there are none; at least one is expected.")
    for name, one in run.items():
        expect("stages", f"run[{name!r}]", one, Stage, "fkd.stages.stage(step)")
    for name, one in list(run.items())[:-1]:
        if one.steps is None or one.steps < 1:
            raise ValueError(
                f"stages: stage {name!r} has steps={one.steps}; a positive number of steps is "
                "expected of every stage but the last."
            )
    wrong = [name for name in run if "/" in name or not name]
    if wrong:
        raise ValueError(f"stages: a stage is called {wrong[0]!r}; a name without '/' is expected.")
    if len({one.step.autocast for one in run.values()}) > 1:
        raise ValueError("stages: the stages differ in their precision; one is expected.")
    _check_processes(run)
    return Stages(run)


def _check_processes(run: Mapping[str, Stage]) -> None:
    """Refuse stages that divide a batch in different ways."""
    steps = {name: one.step for name, one in run.items()}
    meshes = {n: one.together.axes.mesh if one.together else None for n, one in steps.items()}
    first, mesh = next(iter(meshes.items()))
    other = next((name for name, m in meshes.items() if m != mesh), None)
    if other is not None:
        raise ValueError(
            f"stages: the step of {other!r} has another mesh than that of {first!r}. Give all "
            "steps the same: train_step(..., mesh=mesh)."
        )
    parts = {name: one.accumulate for name, one in steps.items()}
    if mesh is not None and len(set(parts.values())) > 1:
        raise ValueError(
            f"stages: with a mesh, batches are divided before it is known in which stage they are "
            f"used, and accumulate is {parts}; the same number is expected."
        )
