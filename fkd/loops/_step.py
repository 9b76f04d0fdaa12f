"""The train step: objective, gradient, clipping and update, in one call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fkd._check import check
from fkd._mean import Mean
from fkd._objective import Objective, Parts
from fkd._types import Batch

from ._batch import signature, split, tensors_only
from ._compile import compiled, unlimited_recompilation
from ._evaluate import Evaluator, Metric
from ._gradient import Leaves, gradients
from ._optimizer import MakeOptimizer, Updater
from ._state import State, copy_into, device_of, fold_in, norms_of, seeded

Precision = Literal["fp32", "bf16"]
Metrics = dict[str, Tensor]
"""0-d tensors on the device: `loss/total`, `loss/<term>`, `grad_norm/<model>`, `skipped`, ..."""


class Gradients(NamedTuple):
    """What the differentiated function gives for one (part of a) batch."""

    grads: list[Tensor]
    loss: Tensor
    means: dict[str, Mean]
    weights: dict[str, Tensor]
    buffers: dict[str, dict[str, Tensor]]
    loss_state: dict[str, Any]


class TrainStep:
    """See `train_step`, which makes it."""

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
        self._whole = compiled(self._whole_batch, self.options)
        self._part = compiled(self._part_of_batch, self.options)
        self._counts = compiled(self._count, self.options)
        self._finish = compiled(self._finished, self.options)
        self._leaves = Leaves()
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
        parts = self._replaced(self.objective.init(), modules or {})
        if device is not None:
            # A copy even where nothing has to move: the state's tensors are its own.
            parts = pytree.tree_map_only(Tensor, lambda x: x.to(device), parts)
        where = device_of(parts.trainable)
        return State(
            trainable=parts.trainable,
            frozen=self._inference_precision(parts.frozen),
            buffers=parts.buffers,
            optimizer={},
            loss_state=pytree.tree_map_only(Tensor, lambda x: x.to(where), parts.loss_state),
            skipped=torch.zeros((), device=where),
            step=0,
            seed=seed,
        )

    def _replaced(self, parts: Parts, modules: Mapping[str, nn.Module]) -> Parts:
        for name, module in modules.items():
            given = {**dict(module.named_parameters()), **dict(module.named_buffers())}
            followers = [n for n, m in self.objective.models.items() if m.of == name]
            for tree in parts[:3]:
                for held in (tree[n] for n in (name, *followers) if n in tree):
                    if any(k not in given or given[k].shape != held[k].shape for k in held):
                        raise ValueError(
                            f"init: modules[{name!r}] is a {type(module).__name__} of another "
                            "structure than the one in the objective."
                        )
                    held.update({k: given[k].detach().clone() for k in held})
        return parts

    def __call__(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        """One step. The given state is used up: its tensors are updated in place.

        Raises:
          ObjectiveError: at the first batch of a structure, for mistakes that show on it.
        """
        device = device_of(state.trainable)
        batch = tensors_only(batch, device)
        scalars = self.objective.scalars(state.step, device)
        with self._ready_for(batch), seeded(fold_in(state.seed, state.step), device):
            with torch.no_grad():
                if self.accumulate == 1:
                    found, measured, finite = self._whole(*self._tensors_of(state), scalars, batch)
                else:
                    found, measured, finite = self._accumulated(state, scalars, batch)
        return self._updated(state, scalars, found, measured, finite)

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
        factor = 1.0 if self.lr is None else float(self.lr(state.step))
        return {f"lr/{i}": float(lr) * factor for i, lr in enumerate(self._bound(state).base_lr)}

    # What is compiled. Pure functions of tensors.

    def _gradients(
        self,
        trainable: Any,
        frozen: Any,
        buffers: Any,
        loss_state: Any,
        scalars: Any,
        batch: Any,
        counts: Mapping[str, Tensor] | None,
    ) -> Gradients:
        leaves = [p for held in trainable.values() for p in held.values()]
        with torch.enable_grad():
            loss, aux = self.objective(
                trainable,
                frozen,
                buffers,
                batch,
                loss_state=loss_state,
                scalars=scalars,
                counts=counts,
                autocast=self.autocast,
            )
            grads = gradients(loss, leaves)
        aux = pytree.tree_map_only(Tensor, torch.detach, aux)
        return Gradients(grads, loss.detach(), aux.terms, aux.weights, aux.buffers, aux.loss_state)

    def _whole_batch(
        self, trainable: Any, frozen: Any, buffers: Any, loss_state: Any, scalars: Any, batch: Any
    ) -> Any:
        found = self._gradients(trainable, frozen, buffers, loss_state, scalars, batch, None)
        return self._finished(found, trainable, buffers, loss_state)

    def _part_of_batch(
        self,
        grads: Any,
        trainable: Any,
        frozen: Any,
        buffers: Any,
        loss_state: Any,
        scalars: Any,
        batch: Any,
        counts: Any,
    ) -> Gradients:
        found = self._gradients(trainable, frozen, buffers, loss_state, scalars, batch, counts)
        sums = [a + b for a, b in zip(grads, found.grads, strict=True)]
        return Gradients(sums, *found[1:])

    def _count(
        self, trainable: Any, frozen: Any, buffers: Any, loss_state: Any, scalars: Any, batch: Any
    ) -> dict[str, Tensor]:
        """How many positions each term counts. Compiled, everything else is dead code."""
        _, aux = self.objective(
            trainable,
            frozen,
            buffers,
            batch,
            loss_state=loss_state,
            scalars=scalars,
            autocast=self.autocast,
        )
        return {name: mean.count for name, mean in aux.terms.items()}

    def _finished(self, found: Gradients, trainable: Any, buffers: Any, loss_state: Any) -> Any:
        """Clip, and keep the old buffers and loss state if anything is not finite."""
        norms = norms_of(found.grads, trainable)
        total = torch.stack([n**2 for n in norms.values()]).sum().sqrt()
        finite = torch.isfinite(total) & torch.isfinite(found.loss)
        grads = found.grads
        if self.clip is not None:
            factor = (self.clip / (total + 1e-6)).clamp(max=1.0)
            grads = [g * factor for g in grads]

        def kept(new: Any, old: Any) -> Any:
            return pytree.tree_map(lambda a, b: torch.where(finite, a, b), new, old)

        # Not by _replace, whose class torch 2.11 cannot name when it compiles.
        new = kept(found.buffers, buffers), kept(found.loss_state, loss_state)
        found = Gradients(grads, found.loss, found.means, found.weights, *new)
        measured = {
            "loss/total": found.loss,
            **{f"loss/{n}": m.value for n, m in found.means.items()},
            **{f"grad_norm/{n}": v for n, v in norms.items()},
            "grad_norm/total": total,
            "finite": finite.to(total.dtype),
        }
        return found, measured, finite

    # What is not.

    def _accumulated(self, state: State, scalars: Any, batch: Any) -> Any:
        """The gradient of the whole batch from its parts: counts first, then gradients of
        totals divided by the merged counts."""
        parts = split(batch, self.accumulate)
        trainable, frozen, buffers, loss_state = self._tensors_of(state)
        seeds = [fold_in(fold_in(state.seed, state.step), i + 1) for i in range(len(parts))]
        device = device_of(trainable)
        counts: dict[str, Tensor] = {}
        for part, seed in zip(parts, seeds, strict=True):
            with seeded(seed, device):
                own = self._counts(trainable, frozen, buffers, loss_state, scalars, part)
            counts = {n: c + counts[n] if n in counts else c.clone() for n, c in own.items()}
        grads = [torch.zeros_like(p) for held in trainable.values() for p in held.values()]
        means: dict[str, Mean] = {}
        loss = torch.zeros((), device=device)
        found = None
        for part, seed in zip(parts, seeds, strict=True):
            with seeded(seed, device):
                found = self._part(
                    grads, trainable, frozen, buffers, loss_state, scalars, part, counts
                )
            grads, buffers, loss_state = found.grads, found.buffers, found.loss_state
            loss = loss + found.loss
            means = {n: m.merge(means[n]) if n in means else m for n, m in found.means.items()}
        assert found is not None
        whole = found._replace(loss=loss, means=means)
        return self._finish(whole, trainable, state.buffers, state.loss_state)

    def _updated(
        self, state: State, scalars: Any, found: Gradients, measured: Metrics, finite: Tensor
    ) -> tuple[State, Metrics]:
        updater = self._bound(state)
        factor = 1.0 if self.lr is None else float(self.lr(state.step))
        updater.update(found.grads, finite, factor)
        copy_into(state.buffers, found.buffers)
        self._follow(state, scalars, finite)
        skipped = state.skipped.add_((~finite).to(state.skipped.dtype))
        metrics = {
            **measured,
            **{f"weight/{n}": w for n, w in found.weights.items() if f"{n}/weight" in scalars},
            **{f"knob/{n}": v for n, v in scalars.items() if not n.endswith("/weight")},
            "skipped": skipped.clone(),
        }
        now = state._replace(optimizer=updater.tree, loss_state=found.loss_state)
        return now._replace(skipped=skipped, step=state.step + 1), metrics

    def _follow(self, state: State, scalars: Any, finite: Tensor) -> None:
        """Move the EMA models towards what they follow: e = decay e + (1 - decay) student."""
        for name, model in self.objective.models.items():
            if model.kind != "ema":
                continue
            decay = scalars.get(f"{name}/decay", model.decay)
            decay = torch.where(finite, torch.as_tensor(decay, device=finite.device), 1.0)
            for held in ("params", "buffers"):
                new = state.buffers if held == "buffers" else state.trainable
                old = state.buffers if held == "buffers" else state.frozen
                for key, value in new.get(model.of, {}).items():
                    target = old[name][key]
                    if target.is_floating_point():
                        target.lerp_(value.to(target.dtype), (1 - decay).to(target.dtype))
                    else:
                        target.copy_(torch.where(finite, value, target))

    def _tensors_of(self, state: State) -> tuple[Any, Any, Any, Any]:
        """What the objective is a function of; the trainable ones as leaves for autograd."""
        return self._leaves.of(state.trainable), state.frozen, state.buffers, state.loss_state

    def _bound(self, state: State) -> Updater:
        """The optimizer over this state's tensors: the one at hand, unless the state is new."""
        if self._updater is None or self._updater.tree is not state.optimizer:
            self._updater = Updater(self.make_optimizer, state.trainable, state.optimizer)
        return self._updater

    def _inference_precision(self, frozen: Any) -> Any:
        """Matrices of frozen models in the precision in which they are multiplied anyway."""
        if self.autocast is None:
            return frozen
        kinds = {n: m.kind for n, m in self.objective.models.items()}
        dtype = self.autocast

        def cast(name: str, p: Tensor) -> Tensor:
            matrix = kinds[name] == "frozen" and p.ndim >= 2 and p.dtype is torch.float32
            return p.to(dtype) if matrix else p

        return {n: {k: cast(n, p) for k, p in held.items()} for n, held in frozen.items()}

    @contextlib.contextmanager
    def _ready_for(self, batch: Any) -> Generator[None]:
        """Check the first batch; compile for every new shape, however many there are."""
        shape = signature(batch)
        if shape in self._seen:
            yield
            return
        if not self._seen:
            check(self.objective, batch)
        with unlimited_recompilation():
            yield
        self._seen.add(shape)


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

    Args:
      objective: what to minimise.
      optimizer: named parameters -> optimizer, as in
        `lambda params: torch.optim.AdamW(params, lr=1e-4)`. For groups (no decay on biases and
        norms, other rates for adapters) see `param_groups`.
      compile: True, False, or options for `torch.compile` such as `{"mode": "max-autotune"}`.
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
