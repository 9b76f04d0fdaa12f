"""The train step: objective, gradient, clipping and update, in one call."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fkd._check.check import check
from fkd._objective.objective import Objective
from fkd._types import Batch

from .._compile import captures_graphs, unlimited_recompilation
from .._data.batch import signature, split, tensors_only
from .._evaluate.evaluate import Evaluator, Metric
from .._random import fold_in, seeded
from .._state import State, copy_into, device_of
from .accumulate import accumulated
from .cuda_graphs import copied, copied_into, copied_scalars, mark_static
from .ema import follow
from .gradient import Leaves
from .graphs import Found, Graphs, Metrics
from .initial import initial
from .optimizer import MakeOptimizer, Updater

Precision = Literal["fp32", "bf16"]


class TrainStep:
    """See `train_step`, which makes it.

    Attributes:
      objective: what is minimised.
      compilations: for how many shapes of batches the step was compiled.
      compile_seconds: how long the host took for these first calls, the calls included.
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
    ) -> None:
        self.objective = objective
        self.make_optimizer = optimizer
        self.accumulate = accumulate
        self.autocast = torch.bfloat16 if precision == "bf16" else None
        self.clip = clip
        self.lr = lr
        self.options = None if compile is False else {} if compile is True else dict(compile)
        self.compilations, self.compile_seconds = 0, 0.0
        self._captures = captures_graphs(self.options)
        self._host = self.options is None or not self.options.get("fullgraph", True)
        self._graphs = Graphs(objective, self.options, autocast=self.autocast, clip=clip)
        self._leaves = Leaves()
        self._marked: Any = None
        self._seen: set[Any] = set()
        self._updater: Updater | None = None
        self._evaluators: dict[Any, Evaluator] = {}

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
        given = modules or {}
        return initial(self.objective, seed, device=device, modules=given, inference=self.autocast)

    def __call__(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        """One step. The given state is used up: its tensors are updated in place.

        Raises:
          ObjectiveError: at the first batch of a structure, for mistakes that show on it.
        """
        device = device_of(state.trainable)
        replayed = self._is_replayed(device)
        batch = tensors_only(batch, device)
        scalars = self.objective.scalars(state.step, device)
        tensors = self._tensors_of(state)
        seed = fold_in(state.seed, state.step)
        draws = seeded(seed, device, host=self._host)
        with self._ready_for(batch), draws, torch.no_grad():
            if self.accumulate == 1:
                found = self._graphs.whole(*tensors, scalars, batch)
            else:
                keep = copied if replayed else _same
                parts = split(batch, self.accumulate)
                found = accumulated(
                    self._graphs, tensors, scalars, parts, seed, keep=keep, host=self._host
                )
        return self._updated(state, scalars, found, replayed=replayed)

    def evaluator(
        self, metrics: Mapping[str, Metric] | None = None, *, compile: bool = False
    ) -> Evaluator:
        """What evaluates the objective; the same one every time. Compiled with the step's
        options, if asked for: each shape of the dev batches then costs a compilation."""
        key = (compile, *((name, id(m)) for name, m in (metrics or {}).items()))
        options = self.options if compile else None
        if key not in self._evaluators:
            # Kept with its metrics, whose ids would otherwise be given to others.
            self._evaluators[key] = Evaluator(
                self.objective, metrics, compile=options, autocast=self.autocast
            )
        return self._evaluators[key]

    def rates(self, state: State) -> dict[str, float]:
        """The learning rate of each parameter group at the next step."""
        factor = self._factor(state)
        return {f"lr/{i}": float(lr) * factor for i, lr in enumerate(self._bound(state).base_lr)}

    def _updated(
        self, state: State, scalars: Mapping[str, Tensor], found: Found, *, replayed: bool
    ) -> tuple[State, Metrics]:
        """The state after the update, in the tensors of the one before."""
        gradients, measured, finite = found
        updater = self._bound(state)
        updater.update(gradients.grads, finite, self._factor(state))
        copy_into(state.buffers, gradients.buffers)
        follow(self.objective.models, state, scalars, finite)
        skipped = state.skipped.add_((~finite).to(state.skipped.dtype))
        weights = {n: w for n, w in gradients.weights.items() if f"{n}/weight" in scalars}
        measured = {**measured, **{f"weight/{n}": w for n, w in weights.items()}}
        loss_state = gradients.loss_state
        if replayed:
            measured = copied_scalars(measured)
            loss_state = copied_into(state.loss_state, loss_state)
        knobs = {f"knob/{n}": v for n, v in scalars.items() if not n.endswith("/weight")}
        metrics = {**measured, **knobs, "skipped": skipped.clone()}
        now = state._replace(optimizer=updater.tree, loss_state=loss_state, skipped=skipped)
        return now._replace(step=state.step + 1), metrics

    def _tensors_of(self, state: State) -> tuple[Any, Any, Any, Any]:
        """What the objective is a function of; the trainable ones as leaves for autograd."""
        leaves = self._leaves.of(state.trainable)
        if leaves is not self._marked and self._is_replayed(device_of(leaves)):
            models = self.objective.models
            still = {n: b for n, b in state.buffers.items() if models[n].kind != "trainable"}
            trees = (leaves, state.trainable, state.frozen, still)
            mark_static(x for tree in trees for held in tree.values() for x in held.values())
            self._marked = leaves
        return leaves, state.frozen, state.buffers, state.loss_state

    def _is_replayed(self, device: torch.device) -> bool:
        """Whether the graphs are replayed, each time into the same memory."""
        return self._captures and device.type == "cuda"

    def _bound(self, state: State) -> Updater:
        """The optimizer over this state's tensors: the one at hand, unless the state is new."""
        if self._updater is None or self._updater.tree is not state.optimizer:
            self._updater = Updater(self.make_optimizer, state.trainable, state.optimizer)
        return self._updater

    def _factor(self, state: State) -> float:
        return 1.0 if self.lr is None else float(self.lr(state.step))

    @contextlib.contextmanager
    def _ready_for(self, batch: Any) -> Generator[None]:
        """Check the first batch; compile for every new shape, however many there are."""
        shape = signature(batch)
        if shape in self._seen:
            yield
            return
        if not self._seen:
            check(self.objective, batch)
        began = time.perf_counter()
        with unlimited_recompilation():
            yield
        self._seen.add(shape)
        if self.options is not None:
            self.compilations += 1
            self.compile_seconds += time.perf_counter() - began


def _same(x: Any) -> Any:
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
    )
