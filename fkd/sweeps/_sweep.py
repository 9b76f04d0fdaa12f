"""A sweep as a step: the teacher runs once for a batch, and then every member in turn."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from fkd._base.errors import expect
from fkd._base.types import Params, TensorBatch
from fkd._objective.frontier import frontier
from fkd._objective.objective import Objective
from fkd.loops import State, TrainStep, train_step
from fkd.loops._base.random import fold_in, seeded
from fkd.loops._base.state import device_of
from fkd.loops._base.waiting import Compiling, Say
from fkd.loops._step.by_model import Choices, Names
from fkd.loops._step.handles import HandlesByState
from fkd.sources._bind import bind
from fkd.sources._live import Live

from ._joint import joint_objective, name_of
from ._member import Member, as_moving, moving
from ._stacked import IN_TURN, Stacked, divided

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class Times:
    """A schedule times a member's own."""

    schedule: Callable[[int], float]
    lr: float | Callable[[int], float]

    def __call__(self, step: int) -> float:
        rate = self.lr(step) if callable(self.lr) else self.lr
        return float(self.schedule(step)) * float(rate)


def _one(_: int) -> float:
    return 1.0


class Sweep(TrainStep):
    """See `sweep`, which makes it: a `TrainStep` over the states of all members.

    Attributes:
      members: the step of each, on values of the teacher that come with the batch.
      source: the teacher; None if the objective has none.
      stacked: what computes all members as one, by the models that are updated; None: they run
        in turn.
    """

    def __init__(
        self,
        objective: Objective,
        template: TrainStep,
        members: Mapping[str, Member],
        source: Live | None,
        *,
        stacked: bool = False,
    ) -> None:
        vars(self).update(vars(template))  # what they share: options, and how to compile
        seeds = {one.seed for one in members.values()}
        self._one_seed = len(seeds) == 1
        self.stacked: dict[Names, Stacked] | None = {} if stacked else None
        self.source, self._template, self._members = source, template, dict(members)
        self._compiling = Compiling("the step")
        self.members = {name: _step_of(template, one) for name, one in members.items()}
        self.objective = objective
        self.choices = _joint_choices({name: step.choices for name, step in self.members.items()})
        self._states: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def init(
        self,
        seed: int = 0,
        *,
        device: torch.device | str | None = None,
        modules: Mapping[str, nn.Module] | None = None,
    ) -> State:
        """The states of all members as one; see `TrainStep.init`. `modules` are for all that have
        none of their own."""
        states = {
            name: step.init(
                seed if self._members[name].seed is None else self._members[name].seed or 0,
                device=device,
                modules={**(modules or {}), **self._members[name].modules},
            )
            for name, step in self.members.items()
        }
        where = device_of(next(iter(states.values())).trainable)
        parts = self.objective.program.parts(lambda x: x, lambda x: x)
        frozen, buffers = self._shared(parts.frozen, where), self._shared(parts.buffers, where)
        skipped = torch.zeros((), device=where)
        return self._joined(states, State({}, frozen, buffers, {}, {}, skipped, 0, seed))

    def _shared(self, tree: Params, device: torch.device) -> dict[str, dict[str, Tensor]]:
        """The tensors of frozen models, which are there once."""
        models = self.objective.models
        return {
            name: {n: x.detach().to(device) for n, x in tensors.items()}
            for name, tensors in tree.items()
            if models[name].kind == "frozen"
        }

    def advance(self, state: State, batch: Any, *, say: Say | None = None) -> tuple[State, Metrics]:
        """One step of every member on one batch."""
        shown = say if self.options is not None else None
        with self._compiling(lambda: self._shape(batch), shown):
            return self._advance(state, batch)

    def _advance(self, state: State, batch: Any) -> tuple[State, Metrics]:
        states = self._members_of(state)
        if self.source is not None:
            batch = self._said(batch)
        measured: dict[str, Metrics] = {}
        if self.stacked is not None:
            states, measured = self._advance_stacked(self.stacked, states, batch)
            return self._joined(states, state), _metrics(measured)
        for name, step in self.members.items():
            states[name], measured[name] = step.advance(states[name], batch)
        return self._joined(states, state), _metrics(measured)

    def _advance_stacked(
        self, graphs: dict[Names, Stacked], states: dict[str, State], batch: TensorBatch
    ) -> tuple[dict[str, State], dict[str, Metrics]]:
        """The same for all members as one."""
        template, first = self._template, next(iter(states.values()))
        device = device_of(first.trainable)
        now = {name: self.members[name].at_step(states[name], device) for name in self.members}
        updated = next(iter(now.values())).updated
        if updated not in graphs:
            graphs[updated] = Stacked(
                template.objective,
                template.graphs(updated),
                self.options,
                one_seed=self._one_seed,
            )
        scalars = [at.scalars for at in now.values()]
        parts = divided([at.handles.parts(states[name]) for name, at in now.items()])

        def attempt() -> None:
            self._first(batch)
            graphs[updated].attempt(parts, scalars, batch)

        seed = fold_in(first.seed, first.step)
        new = self._shapes.new((self._shape(batch), updated), first=attempt)
        with new, seeded(seed, device, host=self._host), torch.no_grad():
            computed = graphs[updated].whole(parts, scalars, batch)
        after = {
            name: self.members[name].updated(states[name], at, one)
            for (name, at), one in zip(now.items(), computed, strict=True)
        }
        return {n: s for n, (s, _) in after.items()}, {n: m for n, (_, m) in after.items()}

    def _said(self, batch: TensorBatch) -> TensorBatch:
        """The batch with what the teacher says of it."""
        assert self.source is not None
        (attached,) = cast(Any, self.source.attach([batch]))
        if self.source.teacher.draws:
            raise ValueError(
                "sweep: what the teacher reads is drawn at random: members would not have the "
                "numbers of single runs. Draw where batches are made, as a field of the batch."
            )
        return attached

    def rates(self, state: State) -> dict[str, float]:
        """The learning rates of all members: `lr/<member>/0`."""
        states = self._members_of(state)
        return {
            f"lr/{name}/{key.removeprefix('lr/')}": rate
            for name, step in self.members.items()
            for key, rate in step.rates(states[name]._replace(step=state.step)).items()
        }

    @property
    def compilations(self) -> int:
        """How often the step of the members was compiled; they share it."""
        return self._template.compilations

    @property
    def compile_seconds(self) -> float:
        """How long the calls took that compiled."""
        return self._template.compile_seconds

    def member(self, state: State, name: str) -> State:
        """The state of one member, as a run of its own has it; it shares the tensors.

        Raises:
          ValueError: there is no such member.
        """
        if name not in self.members:
            raise ValueError(f"sweep: no member {name!r}; there are {list(self.members)}.")
        return self._members_of(state)[name]

    def _members_of(self, state: State) -> dict[str, State]:
        known: tuple[State, dict[str, State]] | None = self._states.get(state.skipped)
        if known and known[0].step == state.step and known[0].optimizer is state.optimizer:
            return dict(known[1])
        return {name: self._split(state, name) for name in self.members}

    def _split(self, state: State, member: str) -> State:
        start = name_of(member, "")

        def of_member(tree: Mapping[str, Any]) -> dict[str, Any]:
            return {n.removeprefix(start): x for n, x in tree.items() if n.startswith(start)}

        kept = set(self._template.objective.models)
        frozen = {n: x for n, x in state.frozen.items() if n in kept}
        buffers = {n: x for n, x in state.buffers.items() if n in kept}
        memories: Any = state.combine_state
        memory = memories[member]
        seed = self._members[member].seed
        return State(
            trainable=of_member(state.trainable),
            frozen={**frozen, **of_member(state.frozen)},
            buffers={**buffers, **of_member(state.buffers)},
            optimizer=of_member(state.optimizer),
            loss_state=of_member(state.loss_state),
            skipped=memory["skipped"],
            step=state.step,
            seed=state.seed if seed is None else seed,
            combine_state=memory["combine"],
            loss_scale=memory["scale"],
        )

    def _joined(self, states: dict[str, State], before: State) -> State:
        def joined(field: str) -> dict[str, Any]:
            return {
                name_of(member, n): x
                for member, state in states.items()
                for n, x in getattr(state, field).items()
                if n not in self.objective.models
            }

        memory = {
            m: {"skipped": s.skipped, "combine": s.combine_state, "scale": s.loss_scale}
            for m, s in states.items()
        }
        before.skipped.copy_(torch.stack([s.skipped for s in states.values()]).sum())
        state = State(
            trainable=joined("trainable"),
            frozen={**before.frozen, **joined("frozen")},
            buffers={**before.buffers, **joined("buffers")},
            optimizer=joined("optimizer"),
            loss_state=joined("loss_state"),
            skipped=before.skipped,
            step=next(iter(states.values())).step,
            seed=before.seed,
            combine_state=memory,
        )
        self._states[state.skipped] = (state, dict(states))
        return state

    def __repr__(self) -> str:
        how = "eager" if self.options is None else "compiled"
        return f"Sweep({', '.join(self.members)}; {how})"


def _step_of(template: TrainStep, one: Member) -> TrainStep:
    """The step of a member: the graphs of all, with knobs and learning rates of its own."""
    step = copy.copy(template)
    step.objective = copy.copy(template.objective)
    knobs = {name: as_moving(knob) for name, knob in one.knobs.items()}
    step.objective.knobs = {**template.objective.knobs, **knobs}
    before = template.choices
    rates = {n: Times(before.rates.get(n, _one), one.lr) for n in before.optimizers}
    step.choices = replace(before, rates=rates if one.lr != 1.0 else before.rates)
    step._handles = HandlesByState(before.optimizers)  # pyright: ignore[reportPrivateUsage]
    return step


def _joint_choices(members: Mapping[str, Choices]) -> Choices:
    def every(field: str) -> dict[Any, Any]:
        return {
            tuple(name_of(member, n) for n in names): value
            for member, choices in members.items()
            for names, value in getattr(choices, field).items()
        }

    models = tuple(name_of(m, n) for m, choices in members.items() for n in choices.models)
    return Choices(models, every("optimizers"), every("clips"), every("rates"), every("when"))


def _metrics(measured: Mapping[str, Metrics]) -> Metrics:
    """The metrics of all members by their names; the sum of their losses; finite as long as one
    of them is, so that a member that diverges does not end the others."""
    named: Metrics = {}
    for member, metrics in measured.items():
        for name, value in metrics.items():
            kind, _, rest = name.partition("/")
            named[f"{kind}/{name_of(member, rest)}" if rest else f"{kind}/{member}"] = value
    together = {
        key: torch.stack([metrics[key] for metrics in measured.values()])
        for key in ("finite", "skipped", "loss/total")
    }
    named["loss/total"] = together["loss/total"].sum()
    named["finite"], named["skipped"] = together["finite"].amax(), together["skipped"].sum()
    return named


def sweep(
    objective: Objective,
    optimizer: Any,
    members: Mapping[str, Member],
    *,
    stacked: bool = False,
    **options: Any,
) -> Sweep:
    """Several runs on one forward pass of their teacher: a step, for `fit`, of all of them.

        tried = {f"T{t:g}": fkd.sweeps.member({"kd/temperature": t}) for t in (1.0, 2.0, 4.0)}
        step = fkd.sweeps.sweep(objective, adamw, tried)
        result = fkd.loops.run(step, step.init(seed=0), loader, epochs=3, checkpoint_dir="sweep")
        student = fkd.loops.export(step.objective, result.state, "T4/student")

    For each batch the teacher runs once, and then the members in turn, in one compiled step that
    they share. Each member has the numbers of a single run on the same batches, bit for bit on the
    CPU: the same dropout, its own optimizer, clipping and skipped updates. Logs, checkpoints,
    resume and evaluation are those of any run; models and terms are called `member/name`.

    Args:
      objective: what they share. The teacher's values are those of `fkd.sources.live`.
      optimizer: as of `train_step`.
      members: by name; each says what it has of its own.
      stacked: run all members as one, by `torch.func.vmap` over their stacked parameters, instead
        of in turn. Cheaper where the members are small (each operation runs once for all), and
        dearer where they are large; `benchmarks/sweep.py --stacked` measures it. The numbers are
        those of single runs up to rounding. What is drawn (dropout) is drawn once for all, so that
        members with seeds of their own must not draw; what vmap cannot run is refused.
      options: further arguments of `train_step`, without `mesh`.

    Raises:
      TypeError: a list, or a member that is no `fkd.sweeps.member`.
      ValueError: there are no members, or one sets what is no knob.

    Example:
      >>> objective = Objective(
      ...     {"kd": term(kl, student.logits, teacher.logits)},
      ...     student=trainable(torch.nn.Linear(4, 3)), teacher=frozen(torch.nn.Linear(4, 3)),
      ... )
      >>> members = {"cold": fkd.sweeps.member(), "hot": fkd.sweeps.member({"kd/temperature": 4.0})}
      >>> step = fkd.sweeps.sweep(
      ...     objective, lambda p: torch.optim.SGD(p, lr=0.1), members, compile=False
      ... )
      >>> state, metrics = step(step.init(), {"input": torch.randn(2, 4)})
      >>> sorted(name for name in metrics if name.startswith("loss"))
      ['loss/cold/kd', 'loss/cold/total', 'loss/hot/kd', 'loss/hot/total', 'loss/total']
    """
    expect("sweep", "objective", objective, Objective, "an fkd.Objective", "Try step.objective.")
    expect("sweep", "members", members, Mapping, "{name: fkd.sweeps.member()}", "Each has a name.")
    if not members:
        raise ValueError("sweep: members is empty; at least one is expected: fkd.sweeps.member().")
    for name, one in members.items():
        expect("sweep", f"members[{name!r}]", one, Member, "fkd.sweeps.member(knobs)")
    wrong = [name for name in members if "/" in name or not name]
    if wrong:
        raise ValueError(f"sweep: a member is called {wrong[0]!r}; a name without '/' is expected.")
    if options.get("mesh") is not None:
        raise ValueError("sweep: mesh is given; members run in turn, each on the whole batch.")
    expect("sweep", "stacked", stacked, bool, "True or False")
    if stacked:
        _refuse_stacked(objective, options)
    objective.raise_problems()
    terms = moving(objective, members)
    joint = joint_objective(objective, terms, members)
    joint.raise_problems()
    shared = Objective(terms, **objective.models)
    source: Live | None = None
    if frontier(shared):
        compile = options.get("compile", True)
        source = Live(shared, compile=compile, precision=options.get("precision", "fp32"), say=None)
        shared = bind(shared, source)
    template = train_step(shared, optimizer, **options)
    return Sweep(joint, template, members, source, stacked=stacked)


def _refuse_stacked(objective: Objective, options: Mapping[str, Any]) -> None:
    """Raise what stacked members cannot have."""
    refused = {
        "accumulate": options.get("accumulate", 1) != 1,
        "combine": options.get("combine") is not None,
        "precision='fp16'": options.get("precision") == "fp16",
    }
    for option in (name for name, given in refused.items() if given):
        raise ValueError(f"sweep: {option} is given, and stacked=True does without. {IN_TURN}")
    for name, model in objective.models.items():
        inside = model.module.modules() if model.module is not None else ()
        again = any(getattr(part, "gradient_checkpointing", False) is True for part in inside)
        if model.kind == "trainable" and (model.recomputed or again):
            raise ValueError(
                f"sweep: model {name!r} runs blocks again in the backward pass (activation "
                f"checkpointing), which vmap cannot. {IN_TURN}"
            )
