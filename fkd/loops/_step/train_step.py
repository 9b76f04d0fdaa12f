"""The train step: objective, gradient, clipping and update, in one call."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from fkd._check.check import check
from fkd._objective.objective import Objective
from fkd._objective.program import Parts
from fkd._types import Batch, Scalars, TensorBatch
from fkd.parallel._objective import Share

from .._compile import Shapes, captures_graphs, options_of
from .._data.batch import normalised, signature, split
from .._data.prefetch import Move, mover
from .._data.shares import moved, share_signature, shares_of
from .._random import fold_in, seeded
from .._state import State, device_of
from .accumulate import accumulated
from .cuda_graphs import copied, copied_into, copied_scalars, copy_into, mark_static
from .ema import follow
from .gradient import Gradients
from .graphs import Computed, Graphs, Metrics
from .handles import Handles, HandlesByState
from .initial import initial
from .optimizer import MakeOptimizer
from .ranks import Together

Precision = Literal["fp32", "bf16"]


class TrainStep:
    """See `train_step`, which makes it.

    A step holds what is compiled, and beside each state that it is used for, an optimizer over
    that state's tensors. It may be used for several states in turn.

    Attributes:
      objective: what is minimised.
      options: for `torch.compile`; None: not compiled.
      autocast: dtype in which models run their matrix products, or None.
      together: the ranks that divide each batch, or None.
    """

    def __init__(
        self,
        objective: Objective,
        optimizer: MakeOptimizer,
        *,
        compile: bool | Mapping[str, Any],
        accumulate: int,
        precision: Precision,
        clip: float | None,
        lr: Callable[[int], float] | None,
        mesh: DeviceMesh | None,
    ) -> None:
        self.objective = objective
        self.make_optimizer = optimizer
        self.accumulate = accumulate
        self.autocast = torch.bfloat16 if precision == "bf16" else None
        self.clip = clip
        self.lr = lr
        self.options = options_of(compile)
        self._captures = captures_graphs(self.options)
        # One graph draws nothing from the host's generators.
        self._host = self.options is None or not self.options.get("fullgraph", True)
        self._graphs = Graphs(objective, self.options, autocast=self.autocast, clip=clip)
        self.together = None if mesh is None or mesh.size() == 1 else Together(mesh)
        self._handles = HandlesByState(optimizer)
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
        state = initial(
            self.objective, seed, device=device, modules=modules or {}, inference=self.autocast
        )
        return state if self.together is None else self.together.agreed(state)

    def __call__(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        """One step. The tensors of the given state are updated in place: go on with the new one.

        Raises:
          ObjectiveError: at the first batch of a structure, for mistakes that show on it.
          ValueError: the schedule of the learning rate gives a number that is not finite.
        """
        device = device_of(state.trainable)
        if self.together is None:
            return self.advance(state, normalised(batch, device))
        return self.advance(state, self.own(normalised(batch), mover(device)))

    def own(self, batch: TensorBatch, move: Move) -> TensorBatch | list[Share]:
        """What this process needs of a batch, on the device: all of it, or its examples."""
        if self.together is None:
            return move(batch)
        if self._graphs.over is None:
            self._agree(batch, self.together)
        return moved(shares_of(batch, self.together.ranks, parts=self.accumulate), move)

    def advance(self, state: State, batch: TensorBatch | list[Share]) -> tuple[State, Metrics]:
        """The same for what `own` gives, as in `fit`."""
        device = device_of(state.trainable)
        scalars = self.objective.scalars(state.step, device)
        factor = self._factor(state)
        handles = self._handles.of(state)
        replayed = self._is_replayed(device)
        if replayed:
            self._mark_static(handles, state)
        seed = fold_in(state.seed, state.step)
        if self.together is not None:
            seed = fold_in(seed, self.together.ranks.rank)  # each drops out other activations
        first = functools.partial(self._first, batch)
        draws = seeded(seed, device, host=self._host)
        shape = self._shape(batch)
        with self._shapes.new(shape, first=first), draws, torch.no_grad():
            computed = self._computed(handles.parts(state), scalars, batch, seed, replayed)
        gradients, measured, finite = computed
        handles.updater.update(gradients.grads, finite, factor)
        copy_into(state.buffers, gradients.buffers)
        follow(self.objective.models, state, scalars, finite)
        skipped = state.skipped.add_((~finite).to(state.skipped.dtype))
        loss_state = gradients.loss_state
        if replayed:  # the next call of a captured graph writes into the same memory
            measured = copied_scalars(measured)
            loss_state = copied_into(state.loss_state, loss_state)
        state = state._replace(
            optimizer=handles.updater.tree, loss_state=loss_state, step=state.step + 1
        )
        return state, {**measured, **_moving(gradients, scalars), "skipped": skipped.clone()}

    def _shape(self, batch: Any) -> Hashable:
        """What the step is compiled for."""
        return signature(batch) if self.together is None else share_signature(batch)

    def _first(self, batch: Any) -> None:
        """What is looked at before anything is compiled."""
        if self.together is None:
            check(self.objective, batch)

    def _agree(self, batch: TensorBatch, together: Together) -> None:
        """The same over ranks, before the first batch is divided."""
        check(self.objective, batch)
        over = together.objective(self.objective, batch)
        self._graphs = Graphs(
            self.objective, self.options, autocast=self.autocast, clip=self.clip, over=over
        )

    def _computed(
        self, parts: Parts, scalars: Scalars, batch: Any, seed: int, replayed: bool
    ) -> Computed:
        batches: Any = batch
        if self.together is None:
            batches = [batch] if self.accumulate == 1 else split(batch, self.accumulate)
        if self.accumulate == 1:
            return self._graphs.whole(parts, scalars, batches[0])
        keep = copied if replayed else _same
        return accumulated(self._graphs, parts, scalars, batches, seed, keep=keep, host=self._host)

    @property
    def compilations(self) -> int:
        """For how many shapes of batches the step was compiled."""
        return 0 if self.options is None else len(self._shapes)

    @property
    def compile_seconds(self) -> float:
        """How long the host took for the first call of each shape, the calls included."""
        return 0.0 if self.options is None else self._shapes.seconds

    def rates(self, state: State) -> dict[str, float]:
        """The learning rate of each parameter group at the next step."""
        base, factor = self._handles.of(state).updater.base_lr, self._factor(state)
        return {f"lr/{i}": float(lr) * factor for i, lr in enumerate(base)}

    def _is_replayed(self, device: torch.device) -> bool:
        """Whether the graphs are replayed, each time into the same memory."""
        return self._captures and device.type == "cuda"

    def _factor(self, state: State) -> float:
        factor = 1.0 if self.lr is None else float(self.lr(state.step))
        if not math.isfinite(factor):
            raise ValueError(
                f"train_step: lr gives {factor} at step {state.step}; a finite factor on the "
                "learning rate is expected. Nothing was updated."
            )
        return factor

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
        how = "eager" if self.options is None else "compiled"
        return f"TrainStep({len(self.objective.terms)} terms, {how}, accumulate={self.accumulate})"


def _moving(gradients: Gradients, scalars: Scalars) -> Metrics:
    """The weights and knobs that may have moved, for the log."""
    weights = {n: w for n, w in gradients.weights.items() if f"{n}/weight" in scalars}
    knobs = {n: v for n, v in scalars.items() if not n.endswith("/weight")}
    return {
        **{f"weight/{n}": w for n, w in weights.items()},
        **{f"knob/{n}": v for n, v in knobs.items()},
    }


def _same(x: Gradients) -> Gradients:
    return x


def train_step(
    objective: Objective,
    optimizer: MakeOptimizer,
    *,
    compile: bool | Mapping[str, Any] = True,
    accumulate: int = 1,
    precision: Precision = "fp32",
    clip: float | None = None,
    lr: Callable[[int], float] | None = None,
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
        norms, other rates for adapters) see `param_groups`.
      compile: True, False, or options for `torch.compile`. `{"mode": "reduce-overhead"}` and
        `{"mode": "max-autotune"}` capture CUDA graphs, whose outputs the step copies where they
        live on; an optimizer of your own must not keep the gradients that it is given.
      accumulate: in how many parts to run each batch. Masks and labels are counted over the
        whole batch first, so that value and gradient are those of the whole batch, except for
        losses that relate the examples of a batch to each other: these see one part at a time.
        Counting is a second, forward-only pass; compiled, it costs only what the counts need.
      precision: `"fp32"`, or `"bf16"`: models under autocast, teachers' matrices held in
        bfloat16; parameters, losses and updates stay in float32.
      clip: greatest norm of the gradient over all models; None does not clip.
      lr: schedule of a factor on the optimizer's learning rates, `step -> float`.
      mesh: the processes that train together (`torch.distributed.device_mesh`, under `torchrun`).
        Each is given the whole batch, as a single one would be, and computes its own examples.
        Value, gradient, metrics, batch statistics and losses that relate the examples of a batch
        are those of the whole batch. See `fkd.parallel`.

    Raises:
      ValueError: an option is out of range.
    """
    if accumulate < 1:
        raise ValueError(f"train_step: accumulate is {accumulate}; at least 1 is expected.")
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"train_step: precision is {precision!r}; 'fp32' or 'bf16' is expected.")
    if clip is not None and not clip > 0:
        raise ValueError(f"train_step: clip is {clip}; a positive norm or None is expected.")
    if not callable(optimizer):
        raise TypeError(
            f"train_step: optimizer is a {type(optimizer).__name__}; a function of the parameters "
            "is expected: lambda params: torch.optim.AdamW(params, lr=1e-4)."
        )
    return TrainStep(
        objective,
        optimizer,
        compile=compile,
        accumulate=accumulate,
        precision=precision,
        clip=clip,
        lr=lr,
        mesh=mesh,
    )
