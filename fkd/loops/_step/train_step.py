"""The train step: objective, gradient, clipping and update, in one call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import cast

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from fkd._base.errors import expect
from fkd._base.types import Batch, TensorBatch
from fkd._check.check import check, check_on_values
from fkd._check.table import CheckReport
from fkd._objective.objective import Objective
from fkd.parallel._objective import OverRanks, Share
from fkd.parallel._world import ALONE, World

from .._base.compile import CompileOptions, Shapes, captures_graphs, options_of
from .._base.precision import Precision, autocast_dtype
from .._base.random import fold_in, seeded
from .._base.state import State, device_of
from .._base.waiting import Say, on_standard_error
from .._data.batch import normalised, signature, split
from .._data.prefetch import Move, mover
from .._data.shares import moved, share_signature, shares_of
from .accumulate import accumulated
from .by_model import ByModel, Choices, Names, Schedule, When, choices_of
from .combine import Combine, Combined
from .cuda_graphs import copied, copied_into, copied_scalars, copy_into, mark_static
from .ema import follow
from .explained import explained, fields_told, tell
from .gradient import Gradients
from .graphs import Computed, Graphs, Metrics, moving
from .handles import AtStep, Handles, HandlesByState
from .initial import initial
from .loss_scale import initial_scale
from .optimizer import MakeOptimizer
from .ranks import Together


class TrainStep:
    """See `train_step`, which makes it.

    A step holds what is compiled, and beside each state that it is used for, an optimizer over
    that state's tensors. It may be used for several states, and steps in several threads, which
    compile and draw random numbers in turn: each has the bits that it has alone.

    Attributes:
      objective: what is minimised.
      options: for `torch.compile`; None: not compiled.
      autocast: dtype in which models run their matrix products, or None.
      choices: optimizers, clips, learning rates and turns, by the models for which they hold.
      combined: what makes one gradient of those of the terms, or None.
      within: the steps that this one is made of, by name, if it is: the stages of a run.
      together: the ranks that divide each batch, or None.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        compile: bool | CompileOptions,
        accumulate: int,
        precision: Precision,
        choices: Choices,
        combine: Combine | None,
        mesh: DeviceMesh | None,
    ) -> None:
        self.objective = objective
        self.choices = choices
        self.accumulate = accumulate
        self.autocast = autocast_dtype("train_step", precision)
        self.combined = None if combine is None else Combined(objective, combine)
        self.options = options_of(compile)
        self._captures = captures_graphs(self.options)
        # One graph draws nothing from the host's generators.
        self._host = self.options is None or not self.options.get("fullgraph", True)
        self.together: Together | None = None
        fix = "fkd.parallel.torchrun_mesh() makes one; a device is given to init(device=...)."
        expect("train_step", "mesh", mesh, (DeviceMesh, type(None)), "a DeviceMesh", fix)
        if mesh is not None and mesh.size() > 1:
            self.together = Together(mesh, objective, self.autocast)
        if self.together is not None and self.together.cutting is not None and combine is not None:
            raise ValueError(
                "train_step: combine needs whole gradients, and the mesh cuts the parameters over "
                'its axis "shard". Use a mesh whose only axis is "replicate".'
            )
        self.within: Mapping[str, TrainStep] = {}
        self._over: OverRanks | None = None
        self._graphs = {choices.models: self._graphs_of(choices.models)}
        self._handles = HandlesByState(choices.optimizers)
        self._shapes = Shapes()

    def init(
        self,
        seed: int = 0,
        *,
        device: torch.device | str | None = None,
        modules: Mapping[str, nn.Module] | None = None,
    ) -> State:
        """The state before the first step, from the modules' own parameters (copied).

        Args:
          seed: from which all randomness of the run follows.
          device: where to train; by default where the parameters are.
          modules: by name, modules of the same structure whose parameters and buffers to begin
            with instead. A sweep over initialisations compiles once that way.
        """
        expect("init", "seed", seed, int, "a whole number")
        cutting = None if self.together is None else self.together.cutting
        state = initial(self.objective, seed, device, modules or {}, self.autocast, cutting)
        if self.together is not None:
            state = self.together.cut(self.together.agreed(state))
        if self.combined is not None:
            state = state._replace(combine_state=self.combined.init(state.trainable))
        if self.autocast is torch.float16:
            state = state._replace(loss_scale=initial_scale(state.skipped.device))
        return state

    @property
    def world(self) -> World:
        """The processes of the run; this one alone without a mesh."""
        return ALONE if self.together is None else self.together.world

    def whole(self, state: State) -> State:
        """A state that is cut over ranks as the first process stores it; all of them ask."""
        return state if self.together is None else self.together.whole(state)

    @property
    def related(self) -> dict[str, list[str]]:
        """What several processes have agreed on, for a checkpoint: by the name of a stage (of a
        step that has none, empty) the terms that relate the examples of a batch."""
        together = self.together
        if together is None or together.related is None:
            return {}
        return {"": sorted(together.related)}

    def remember(self, related: Mapping[str, Sequence[str]]) -> None:
        """Agree on what a checkpoint says that was agreed on."""
        if self.together is not None and "" in related:
            self.together.related = frozenset(related[""])

    def __call__(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        """One step. The tensors of the given state are updated in place: go on with the new one.

        Raises:
          ObjectiveError: at the first batch of a structure, for mistakes that show on it.
          ValueError: the schedule of the learning rate gives a number that is not finite.
        """
        expect("step", "state", state, State, "a state", "Write step(state, batch).")
        device = device_of(state.trainable)
        one = self.together is None
        here = normalised(batch, device) if one else self.local(normalised(batch), mover(device))
        say = on_standard_error if self.world.rank == 0 else None
        with fields_told(batch, here):
            return self.advance(state, here, say=say)

    def local(self, batch: TensorBatch, move: Move) -> TensorBatch | list[Share]:
        """What this process needs of a batch, on the device: all of it, or its examples."""
        if self.together is None:
            return move(batch)
        self.expect(batch)
        return moved(shares_of(batch, self.together.ranks, parts=self.accumulate), move)

    def advance(
        self, state: State, batch: TensorBatch | list[Share], *, say: Say | None = None
    ) -> tuple[State, Metrics]:
        """The same for what `local` gives, as in `fit`, which says itself what it waits for."""
        device = device_of(state.trainable)
        at = self.at_step(state, device)
        replayed = self._is_replayed(device)
        if replayed:
            self._mark_static(at.handles, state)
        seed = fold_in(state.seed, state.step)
        if self.together is not None:
            seed = fold_in(seed, self.together.ranks.rank)  # each drops out other activations
        first = functools.partial(self._first, batch)
        draws = seeded(seed, device, host=self._host)
        shape = self._shape(batch), at.updated
        shown, on_this = say if self.options is not None else None, explained(self.checked, batch)
        with self._shapes.new(shape, first=first, say=shown), draws, torch.no_grad(), on_this:
            computed = self._computed(at, batch, seed, state, replayed)
        return self.updated(state, at, computed, replayed=replayed)

    def at_step(self, state: State, device: torch.device) -> AtStep:
        """What holds at the next step of a state."""
        scalars = self.objective.scalars(state.step, device)
        updated = self.choices.updated(state.step)
        factors, handles = self.choices.factors(state.step), self._handles.next_of(state)
        return AtStep(scalars, factors, updated, handles)

    def updated(
        self, state: State, at: AtStep, computed: Computed, *, replayed: bool = False
    ) -> tuple[State, Metrics]:
        """The state after the update, and the metrics, from what a batch gave."""
        grads, buffers, loss_state, combine_state, measured, finite, left_out, scale = computed
        at.handles.updater.update(grads, finite, at.factors, at.updated)
        copy_into(state.buffers, buffers)
        here = at.handles.here(state)
        follow(self.objective.models, here, at.scalars, finite, at.updated)
        skipped = state.skipped.add_(left_out)
        at.handles.last_step = state.step
        if replayed:  # the next call of a captured graph writes into the same memory
            measured = copied_scalars(measured)
            loss_state = copied_into(state.loss_state, loss_state)
            combine_state = copied_into(state.combine_state, combine_state)
            scale = copied_into(state.loss_scale, scale)
        state = state._replace(
            optimizer=at.handles.updater.tree,
            loss_state=loss_state,
            step=state.step + 1,
            combine_state=combine_state,
            loss_scale=scale,
        )
        return state, {**measured, **moving(at.scalars), "skipped": skipped.clone()}

    def _shape(self, batch: TensorBatch | list[Share]) -> Hashable:
        """What the step is compiled for."""
        if self.together is None:
            return signature(cast(TensorBatch, batch))
        return share_signature(cast(list[Share], batch))

    def _first(self, batch: TensorBatch | list[Share]) -> None:
        """What is looked at before anything is compiled."""
        if self.together is None:
            tell(self.checked(batch))

    def checked(self, batch: TensorBatch | list[Share], *, on_values: bool = False) -> CheckReport:
        """The dry run, or one on the values; the generators of other threads are left alone."""
        with seeded(0, torch.device("cpu")):
            run = check_on_values if on_values else check
            return run(self.objective, batch, autocast=self.autocast)

    def expect(self, batch: TensorBatch) -> None:
        """The same over ranks, before the first batch is divided."""
        if self.together is not None and self._over is None:
            tell(self.checked(batch))
            self._over = self.together.objective(self.objective, batch)
            self._graphs = {}

    def _computed(
        self,
        at: AtStep,
        batch: TensorBatch | list[Share],
        seed: int,
        state: State,
        replayed: bool,
    ) -> Computed:
        graphs, parts, scalars = self.graphs(at.updated), at.handles.parts(state), at.scalars
        if self.together is not None:
            batches = cast(list[Share], batch)
        else:
            one = cast(TensorBatch, batch)
            batches = [one] if self.accumulate == 1 else split(one, self.accumulate)
        remembered, scale = state.combine_state, state.loss_scale
        if self.accumulate == 1:
            return graphs.whole(parts, scalars, batches[0], remembered, scale)
        keep: Callable[[Gradients], Gradients] = copied if replayed else lambda x: x
        return accumulated(
            graphs, parts, scalars, batches, seed, remembered, scale, keep=keep, host=self._host
        )

    def graphs(self, updated: Names) -> Graphs:
        """What is compiled for a step in which these models are updated."""
        if updated not in self._graphs:
            self._graphs[updated] = self._graphs_of(updated)
        return self._graphs[updated]

    def _graphs_of(self, updated: Names) -> Graphs:
        """What a step computes in which these models are updated."""
        return Graphs(
            self.objective,
            self.options,
            autocast=self.autocast,
            clips=self.choices.clips,
            models=updated,
            combined=self.combined,
            over=self._over,
        )

    @property
    def compilations(self) -> int:
        """How often the step was compiled: for every shape of a batch that was new to it, or,
        with `compile={"dynamic": True}`, for those that its graphs did not cover."""
        return self._shapes.compilations

    @property
    def compile_seconds(self) -> float:
        """How long the host took for the calls that compiled."""
        return self._shapes.seconds

    def rates(self, state: State) -> dict[str, float]:
        """The learning rate of each parameter group at the next step."""
        return self._handles.of(state).updater.rates(self.choices.factors(state.step))

    def _is_replayed(self, device: torch.device) -> bool:
        """Whether the graphs are replayed, each time into the same memory."""
        return self._captures and device.type == "cuda"

    def _mark_static(self, handles: Handles, state: State) -> None:
        """Tell captured graphs which tensors stay at their addresses."""
        if handles.marked:
            return
        models = self.objective.models
        still = {n: b for n, b in state.buffers.items() if models[n].kind != "trainable"}
        trees = (handles.leaves, state.trainable, state.frozen, still)
        mark_static(x for tree in trees for tensors in tree.values() for x in tensors.values())
        handles.marked = True

    def __repr__(self) -> str:
        how, terms = "eager" if self.options is None else "compiled", len(self.objective.terms)
        return f"TrainStep({terms} terms, {how}, accumulate={self.accumulate})"


def train_step(
    objective: Objective,
    optimizer: MakeOptimizer | ByModel[MakeOptimizer],
    *,
    compile: bool | CompileOptions = True,
    accumulate: int = 1,
    precision: Precision = "fp32",
    clip: float | ByModel[float] | None = None,
    lr: Schedule | ByModel[Schedule] | None = None,
    when: ByModel[When] | None = None,
    combine: Combine | None = None,
    mesh: DeviceMesh | None = None,
) -> TrainStep:
    """A training step: `state = step.init(seed)`, then `state, metrics = step(state, batch)`.

    Forward passes, losses and gradient are one compiled graph, once for every batch shape. What a
    loss reads from outside its arguments is read once, while tracing, as in `jax.jit`.
    Nothing in a step waits for the device; metrics are 0-d tensors on it. Where the loss or the
    gradient is not finite, parameters, optimizer, buffers and EMA stay as they were, and
    `state.skipped` counts it.

    torch keeps what it has compiled on disk (in the folder `TORCHINDUCTOR_CACHE_DIR`), so that
    the same step in another process is traced again but not compiled. In float32 on a GPU,
    `torch.set_float32_matmul_precision("high")`, before the first step, multiplies in TF32.

    Args:
      objective: what to minimise.
      optimizer: named parameters -> optimizer, as in
        `lambda params: torch.optim.AdamW(params, lr=1e-4)`. For groups (no decay on biases and
        norms, other rates for adapters) see `param_groups`. Models with optimizers of their own:
        `{"student": make_one, ("generator", "noise"): make_other}`, every trainable model once.
      compile: True, False, or options for `torch.compile`. `{"blocks": True}`: equal blocks of a
        model (the layers of a transformer) are compiled once and called, so that compiling takes
        less time for deep models, and a step a little more.
        `{"mode": "reduce-overhead"}` and `{"mode": "max-autotune"}` capture CUDA graphs, whose
        outputs the step copies where they live on; an optimizer of your own must not keep the
        gradients that it is given.
      accumulate: in how many parts to run each batch. Masks and labels are counted over the
        whole batch first, so that value and gradient are those of the whole batch, except for
        losses that relate the examples of a batch to each other: these see one part at a time.
        Counting is a second, forward-only pass; compiled, it costs only what the counts need.
      precision: `"fp32"`, or `"bf16"`: models under autocast, teachers' matrices held in
        bfloat16; parameters, losses and updates stay in float32. `"fp16"` likewise, for devices
        without bfloat16: the loss is multiplied by `state.loss_scale["factor"]` on the way back.
        A step whose gradient is not finite is left out, as ever, and halves the factor (so the
        first few may be); 2000 finite ones in a row double it.
      clip: greatest norm of the gradient over all models; None does not clip. By model:
        `{"student": 1.0}` clips that model's gradient alone.
      lr: schedule of a factor on the optimizer's learning rates, `step -> float`; by the same
        models as the optimizers, where these are several.
      when: `{model: step -> bool}`, the steps at which a model is updated; the others are updated
        at every step. What a resting model computes is still read by others, and its own gradient
        is not computed. A generator that is updated once for five times of its student:
        `when=fkd.schedules.turns(student=5, generator=1)`.
      combine: what the optimizer receives, from the gradients of the terms: `fkd.gradients.dot`,
        `pcgrad`, `grad_norm`, `min_norm`, or a function of your own. None: their sum.
      mesh: the processes that train together (`torch.distributed.device_mesh`, under `torchrun`).
        Each is given the whole batch, as a single one would be, and computes its own examples.
        Value, gradient, metrics, batch statistics and losses that relate the examples of a batch
        are those of the whole batch. Along an axis `replicate` (or the only one) all have the same
        parameters; along an axis `shard` each has some rows of every large parameter, as a
        `DTensor`, and of what the optimizer remembers; along an axis `tensor` they compute the
        same examples, with a teacher that its own plan has cut over them. See `fkd.parallel`.

    Raises:
      ObjectiveError: the objective has mistakes that show without a batch.
      ValueError: an option is out of range, or names what is not a trainable model.
    """
    expect("train_step", "objective", objective, Objective, "an fkd.Objective")
    objective.raise_problems()
    expect("train_step", "accumulate", accumulate, int, "a whole number")
    if accumulate < 1:
        raise ValueError(f"train_step: accumulate is {accumulate}; at least 1 is expected.")
    return TrainStep(
        objective,
        compile=compile,
        accumulate=accumulate,
        precision=precision,
        choices=choices_of(objective, optimizer, clip=clip, lr=lr, when=when or {}),
        combine=combine,
        mesh=mesh,
    )
