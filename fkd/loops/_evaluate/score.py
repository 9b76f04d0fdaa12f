"""Forward passes without gradients: what the models of an objective say of every batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

import torch
from torch.distributed.device_mesh import DeviceMesh

from fkd._base.errors import ObjectiveError, expect
from fkd._base.trees import map_tensors
from fkd._base.types import Batch, Scalars, TensorBatch
from fkd._objective.evaluation import BoundTerms
from fkd._objective.models import modules_of
from fkd._objective.objective import Objective
from fkd._objective.plan import Plan
from fkd._objective.problems import read_problems
from fkd._objective.program import Parts, Program, make_program
from fkd._objective.reads import read_models
from fkd._objective.terms import Term
from fkd._refs.derived import as_ref
from fkd._refs.refs import Ref
from fkd.parallel._shards import cutting_of, has_foreign
from fkd.parallel._world import ALONE, World, ranks_in, world_of

from .._base.compile import compiled, options_of, unlimited_recompilation
from .._base.precision import Precision, autocast_dtype
from .._base.random import fold_in, seeded
from .._base.state import State, device_of
from .._base.waiting import Compiling, Say, on_standard_error
from .._checkpoint.told import packed, unpacked
from .._data.batch import signature
from .._data.epochs import Loader, epoch_batches
from .._data.prefetch import to_device
from .dealt import rounds
from .fixed import FixedValues

Knobs = TypeVar("Knobs")

Read: TypeAlias = Callable[[Sequence[Any], Knobs, Mapping[str, Any]], Any]
"""`read(values by place, knobs, loss state)`: what to keep of a batch."""


class Forward(Generic[Knobs]):
    """What `read` says of each batch, as one compiled function: eval mode, no gradients.

    Args:
      program: whose values are read; in eval mode.
      knobs: what moves, at a step and on a device.
      read: what to keep.
      compile: options for `torch.compile`, or None.
      autocast: dtype in which models run their matrix products.
      fixed: the values that the program does not compute (see `Program.without`).
      say: shows a line while it is compiled; None: the caller says what is waited for.
    """

    def __init__(
        self,
        program: Program,
        knobs: Callable[[int, torch.device], Knobs],
        read: Read[Knobs],
        *,
        compile: Mapping[str, Any] | None,
        autocast: torch.dtype | None,
        fixed: FixedValues | None = None,
        say: Say | None = None,
    ) -> None:
        self.program, self.knobs, self.read, self.autocast = program, knobs, read, autocast
        self.fixed = fixed
        refs = () if fixed is None else fixed.refs
        self._places = [program.plan.place[ref] for ref in refs]
        self._forward = compiled(self._of_a_batch, compile, modules_of(program.models))
        self._compiling = Compiling("the forward pass")
        self._say = None if compile is None else say

    def __call__(self, state: State, batches: Iterable[Batch]) -> Iterator[Any]:
        """One result for each batch, on the device. Nothing global is changed in between."""
        return (kept for kept, _ in self.dealt(state, batches, ALONE))

    def dealt(
        self, state: State, batches: Iterable[Batch], world: World
    ) -> Iterator[tuple[Any, int]]:
        """The results of the batches that are this process's, with their numbers.

        Each process has one batch of a round. Where parameters are gathered, all compute together:
        one that has none in the last round computes another's.
        """
        device = device_of(state.trainable or state.frozen)
        knobs, copy = self.knobs(state.step, device), to_device(device)
        if world.size == 1:
            for index, batch in enumerate(batches):
                yield self._result(state, knobs, copy(batch), index, device), index
            return
        gathers = cutting_of(state.trainable, state.frozen) is not None
        for drawn in rounds(batches, world):
            has_one = world.rank < len(drawn)
            if not (has_one or gathers):
                continue
            batch, index = drawn[world.rank if has_one else -1]
            try:
                result = self._result(state, knobs, copy(batch), index, device)
            except Exception as error:  # in the middle of what all do, or of its own
                told = world.explained(error) if gathers else error
                if told is error:
                    raise
                raise told from error
            if has_one:
                yield result, index

    def _result(
        self, state: State, knobs: Knobs, tensors: TensorBatch, index: int, device: torch.device
    ) -> Any:
        seed = fold_in(fold_in(state.seed, -1), index)
        line = self._compiling(lambda: signature(tensors), self._say)
        with torch.no_grad(), seeded(seed, device), unlimited_recompilation(), line:
            fixed = self.fixed
            known = [] if fixed is None else fixed(state.parts, tensors, device)
            return self._forward(state.parts, knobs, tensors, known)

    def _of_a_batch(self, parts: Parts, knobs: Knobs, batch: Batch, known: list[Any]) -> Any:
        forward = self.program.context(parts, batch, autocast=self.autocast)
        by_place = dict(zip(self._places, known, strict=True))
        return self.read(self.program.values(forward.context, by_place), knobs, parts.loss_state)


def readable(objective: Objective, state: State) -> Objective:
    """The objective for the parameters of a state: where they are cut over ranks, models gather
    what they read, and all ranks have to compute alike."""
    cutting = cutting_of(state.trainable, state.frozen)
    return objective if cutting is None else objective.rewritten(cutting)


def processes(name: str, mesh: DeviceMesh | None, state: State) -> World:
    """Those among which a function deals out the batches of a loader; one, where a model computes
    over several by a plan of its own, so that they need the same batch.

    Raises:
      ValueError: the state is cut over other processes than those of the mesh.
    """
    expect(name, "mesh", mesh, (DeviceMesh, type(None)), "a DeviceMesh")
    if mesh is None or has_foreign(state.frozen, state.trainable):
        return ALONE
    cutting = cutting_of(state.trainable, state.frozen)
    if cutting is not None and not set(ranks_in(cutting.mesh)) <= set(ranks_in(mesh)):
        raise ValueError(
            f"{name}: the mesh has the ranks {ranks_in(mesh)}, and the parameters of the state are "
            f"cut over {ranks_in(cutting.mesh)}. Give the mesh of its step."
        )
    return world_of(mesh)


def autocast_of(objective: Objective, state: State) -> torch.dtype | None:
    """The dtype in which a state's teachers are held, if it is not that of their modules: then
    the state is that of a run under autocast, which is the only way in which they fit."""
    for name, params in state.frozen.items():
        model = objective.models[name]
        originals = {} if model.module is None else dict(model.module.named_parameters())
        if model.kind == "frozen":
            for key, p in params.items():
                if p.dtype is not originals[key].dtype:
                    return p.dtype
    return None


def score(
    objective: Objective,
    state: State | None,
    loader: Loader,
    values: Mapping[str, Any],
    *,
    compile: bool | Mapping[str, Any] = False,
    precision: Precision | None = None,
    mesh: DeviceMesh | None = None,
) -> Iterator[dict[str, Any]]:
    """Values of every batch, on the CPU: a teacher's logits to keep, losses to filter by.

        for scores in score(objective, state, loader, {"kl": objective.terms["kd"]}):
            worst = scores["kl"].argmax()

    Eval mode, no gradients, batches in the order of epoch -1 (that of `evaluate`). Only the
    models that the values read are run (all of them for a plain function of the context);
    compiled, only those layers of them.

    Args:
      objective: as trained.
      state: the parameters; not changed. None: those of the modules, as for an objective that has
        teachers only, and nothing to train.
      loader: batches, as for `fit`.
      values: by name, a ref (`teacher.logits`, `fkd.call(kl, student.logits, teacher.logits)`),
        a function of the context, or a term, which stands for the values of its loss before
        they are averaged: one for each position, at the knobs of `state.step`, without its
        weight.
      compile: as in `train_step`.
      precision: "bf16" and "fp16" run the models under autocast; None: as the state was trained.
      mesh: processes that are all given the whole loader, and deal its batches out. Each of them
        gets all values, in the order of one process. All have to go through the iterator alike.

    Returns:
      An iterator over `{name: value}`, one for each batch. A batch is drawn and computed when
      it is asked for.

    Raises:
      ValueError: no values, at once; an ObjectiveError for refs that do not fit the models.

    Example:
      >>> import fkd.loops
      >>> goal = Objective(
      ...     {"kd": term(kl, student.logits, teacher.logits)},
      ...     student=trainable(torch.nn.Linear(4, 3)), teacher=frozen(torch.nn.Linear(4, 3)),
      ... )
      >>> state = fkd.loops.train_step(goal, torch.optim.SGD, compile=False).init()
      >>> made = fkd.loops.score(goal, state, [torch.randn(2, 4)], {"kl": goal.terms["kd"]})
      >>> [one["kl"].shape for one in made]
      [torch.Size([2])]
    """
    expect("score", "objective", objective, Objective, "an fkd.Objective", "Try step.objective.")
    expect("score", "state", state, (State, type(None)), "a state of a step, or None")
    expect("score", "values", values, Mapping, "{name: ref}", "{'logits': student.logits}.")
    if not values:
        raise ValueError("score: values is empty. Give at least one: {'logits': teacher.logits}.")
    terms = {name: value for name, value in values.items() if isinstance(value, Term)}
    refs = {name: as_ref(value) for name, value in values.items() if name not in terms}
    if state is None:
        program, state = _untrained(objective, terms, refs.values())
    else:
        program = readable(objective, state).reading(terms, refs.values())
    place = program.plan.place
    bound = BoundTerms(terms, place)
    # A term of the objective goes on from its own state.
    names = {name: n for name, t in terms.items() for n, u in objective.terms.items() if u is t}

    def read(
        by_place: Sequence[Any], scalars: Scalars, loss_state: Mapping[str, Any]
    ) -> dict[str, Any]:
        kept = {name: by_place[place[ref]] for name, ref in refs.items()}
        for name, one in terms.items():
            state = loss_state.get(names.get(name, ""), one.state)
            kept[name] = bound.functions[name](by_place, scalars, state).result
        return kept

    if precision is None:
        autocast = autocast_of(objective, state)
    else:
        autocast = autocast_dtype("score", precision)
    world = processes("score", mesh, state)
    say = on_standard_error if world.rank == 0 else None
    options = options_of(compile)
    forward = Forward(program, bound.scalars, read, compile=options, autocast=autocast, say=say)
    batches = epoch_batches(loader, state.seed, -1)
    scored = forward.dealt(state, batches, world)
    values_of = (map_tensors(lambda x: x.detach().cpu(), kept) for kept, _ in scored)
    return values_of if world.size == 1 else _of_all(world, values_of)


def _of_all(world: World, own: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The values of all processes, batch by batch, in the order of the batches."""
    while True:
        with world.telling():
            mine = next(own, None)
            every = [unpacked(content) for content in world.gathered(packed(mine))]
        yield from (one for one in every if one is not None)
        if any(one is None for one in every):
            return


def _untrained(
    objective: Objective, terms: Mapping[str, Term], refs: Iterable[Ref]
) -> tuple[Program, State]:
    """What reads the values of models that nothing trains, and their parameters as a state.

    Raises:
      ObjectiveError: a term or ref does not fit the models.
    """
    plan = Plan([*(ref for term in terms.values() for ref in term.refs), *refs])
    problems = read_problems(terms, objective.models, plan.refs)
    if problems:
        raise ObjectiveError(problems)
    program = make_program(plan, read_models(plan, objective.models), training=False)
    parts = program.init()
    return program, State(*parts[:3], {}, {}, torch.zeros(()), 0, 0)
