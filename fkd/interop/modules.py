"""An objective in other people's training loops: gradients land in `module.parameters()`.

    >>> net, large = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    >>> objective = fkd.Objective(
    ...     {"kd": fkd.term(fkd.losses.kl, fkd.student.logits, fkd.teacher.logits)},
    ...     student=fkd.trainable(net), teacher=fkd.frozen(large),
    ... )
    >>> loss_fn = fkd.interop.modules.bind(objective)
    >>> optimizer = torch.optim.AdamW(loss_fn.parameters(), lr=1e-3)
    >>> for step, batch in enumerate([torch.randn(2, 4), torch.randn(2, 4)]):
    ...     loss, aux = loss_fn(batch, step)
    ...     loss.backward()
    ...     optimizer.step()
    ...     optimizer.zero_grad()

With an `ema` model one call more, after the optimizer's: `loss_fn.update_ema(step)`.

What the core does with tensors that are passed in, this does with the tensors of the modules
themselves, so that any loop that holds modules (plain PyTorch, HF Trainer, Lightning,
Accelerate) and any optimizer works as before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias, cast

import optree
import torch
from torch import Tensor, nn

from fkd._base.trees import map_tensors
from fkd._base.types import Batch, Scalars, TensorBatch
from fkd._check.check import check
from fkd._objective.models import frozen_parameters, modules_of, trainable_parameters
from fkd._objective.objective import Aux, Objective
from fkd._objective.program import Parts
from fkd.loops._base.compile import Shapes, compiled, options_of
from fkd.loops._base.state import device_of
from fkd.loops._base.waiting import on_standard_error
from fkd.loops._data.batch import normalised, signature
from fkd.loops._step.ema import move
from fkd.loops._step.gradient import Gradients, differentiated

Modes: TypeAlias = tuple[bool, ...]
"""Whether each trainable model is in train mode."""

Key: TypeAlias = tuple[str, Modes, torch.dtype | None]
"""A function, the modes of the models, and the dtype of autocast."""

Tensors: TypeAlias = dict[str, dict[str, Tensor]]
"""`{model: {name: tensor}}`."""


def bind(
    objective: Objective, *, compile: bool | Mapping[str, Any] = False, **modules: nn.Module
) -> Bound:
    """An objective as a module that gives the loss of a batch.

    `torch.compile(bind(objective), fullgraph=True)` works as well, for a graph that holds more than
    the objective, and so does `torch.export.export(bind(objective), (batch,))`. These do not check
    the objective; `fkd.check(objective, batch)` does.

    Args:
      objective: terms and models.
      compile: True, False, or options for `torch.compile`: forward passes and losses of all
        models, and their gradient, become one graph.
      modules: modules to use instead of those of the objective, by name.

    Returns:
      `loss, aux = bound(batch, step)`; see `Bound`.

    Raises:
      ObjectiveError: the objective is mistaken. What shows only on a batch is raised by the
        first call.
      ValueError: a name is not a model of the objective.

    Example:
      >>> net = torch.nn.Linear(4, 3)
      >>> objective = fkd.Objective(
      ...     {"kd": fkd.term(kl, fkd.student.logits, fkd.teacher.logits)},
      ...     student=fkd.trainable(net), teacher=fkd.frozen(torch.nn.Linear(4, 3)),
      ... )
      >>> loss, aux = bind(objective)(torch.randn(2, 4))
      >>> loss.backward()
      >>> net.weight.grad.shape
      torch.Size([3, 4])
    """
    unknown = sorted(modules.keys() - objective.models.keys())
    if unknown:
        raise ValueError(f"bind: no model {unknown}; the objective has {sorted(objective.models)}.")
    if modules:
        models = {
            n: replace(m, module=modules.get(n, m.module)) for n, m in objective.models.items()
        }
        objective = Objective(objective.terms, **models)
    return Bound(objective, compile=compile)


class Bound(nn.Module):
    """See `bind`, which makes it.

    Its submodules are the trainable models: `bound.parameters()` is what to optimize, and
    wrapping it in `DistributedDataParallel` works (each rank then divides by its own counts).
    Frozen models are not submodules, so they are neither optimized nor saved with it; they
    follow to the device of the others, and are never changed.

    An `ema` model starts as a copy of the model that it follows, and moves when `update_ema` is
    called; its tensors are buffers, so that they are saved in `state_dict()` and not optimized.

    As everywhere in PyTorch the modules say whether they train: with `model.train()` there are
    dropout and batch statistics, with `model.eval()` there are not. Autocast around the call
    holds for the models; losses stay in float32.
    """

    def __init__(self, objective: Objective, *, compile: bool | Mapping[str, Any]) -> None:
        super().__init__()
        parts = objective.init()  # raises what is wrong
        self.objective = objective
        self.models = nn.ModuleDict(
            {n: m.module for n, m in objective.models.items() if m.kind == "trainable" and m.module}
        )
        self.averages = nn.ModuleDict(
            {n: _Average(_followed(objective, n)) for n, m in objective.models.items() if m.of}
        )
        leaves, tree = optree.tree_flatten(cast(Any, parts.loss_state))
        names = [f"loss_state_{i}" for i in range(len(leaves))]
        for name, leaf in zip(names, leaves, strict=True):
            self.register_buffer(name, leaf)
        self._loss_state_names: Any = optree.tree_unflatten(tree, names)
        self._options = options_of(compile)
        self._functions: dict[Key, Callable[..., Any]] = {}
        self._moded: dict[Modes, Objective] = {}
        self._frozen: dict[torch.device, tuple[Tensors, Tensors]] = {}
        self._shapes = Shapes()

    def forward(self, batch: Batch, step: int = 0) -> tuple[Tensor, Aux]:
        """The loss of a batch, to call `backward()` on, and an `Aux` (without gradients).

        Buffers of trainable models (batch statistics) are those after the batch when it returns,
        if they are in train mode.

        Args:
          batch: what the loader yields.
          step: the number of the update, at which schedules are evaluated.

        Raises:
          ValueError: gradients are wanted, and a term names the models that it trains (`to=`):
            the sum of all terms has no such gradient. `backward` gives it.
        """
        aimed = [name for name, term in self.objective.terms.items() if term.to is not None]
        if aimed and torch.is_grad_enabled():
            raise ValueError(
                f"bound(batch): term {aimed[0]!r} names the models that it trains "
                f"(to={self.objective.terms[aimed[0]].to!r}), and loss.backward() would train "
                "all. Call bound.backward(batch, step) instead, which adds to `.grad`; or measure "
                "under torch.no_grad()."
            )
        loss, aux = self._run(_loss, batch, step)
        self._write(aux)
        return loss, aux

    def backward(self, batch: Batch, step: int = 0) -> tuple[Tensor, Aux]:
        """The same with the gradient in the same graph: adds it to `.grad`, as
        `loss.backward()` would. Faster when compiled."""
        with torch.no_grad():
            new: Gradients = self._run(differentiated, batch, step)
        models = {n: self.objective.models[n] for n in self.models}
        leaves = [p for m in models.values() for p in trainable_parameters(m).values()]
        for p, grad in zip(leaves, new.grads, strict=True):
            p.grad = grad if p.grad is None else p.grad + grad
        aux = Aux(new.means, new.weights, new.buffers, new.loss_state)
        self._write(aux)
        return new.loss, aux

    @torch.no_grad()
    def update_ema(self, step: int = 0) -> None:
        """Move every `ema` model: `e = decay * e + (1 - decay) * student`.

        Once for each update, after `optimizer.step()`, with the same `step` as the loss. In a
        loop that is not yours, from its callback: `on_step_end` of a HF `Trainer`,
        `on_before_zero_grad` of Lightning.

        Args:
          step: the number of the update, at which a scheduled decay is evaluated.
        """
        scalars = self.objective.scalars(step)
        for name, average in self.averages.items():
            decay: Any = scalars.get(f"{name}/decay", self.objective.models[name].decay)
            source = _followed(self.objective, name)
            cast(_Average, average).follow(source, float(decay))

    def _run(self, fn: Callable[..., Any], batch: Batch, step: int) -> Any:
        parts = self._parts()
        device = device_of(parts.trainable)
        fields = normalised(batch, device)
        scalars = self.objective.scalars(step, device)
        autocast = (
            torch.get_autocast_dtype(device.type)
            if torch.is_autocast_enabled(device.type)
            else None
        )
        modes = self._modes()
        if torch.compiler.is_compiling():  # by the user: it is a part of a larger graph
            self._prepare(modes)
            with torch.autocast(device.type, enabled=False):
                return fn(self._moded[modes], parts, scalars, fields, autocast=autocast)
        key = (fn.__name__, modes, autocast)
        shape = (signature(fields), key, torch.is_grad_enabled())
        first = functools.partial(check, self.objective, fields)
        say = on_standard_error if self._options is not None else None
        with (
            torch.autocast(device.type, enabled=False),
            self._shapes.new(shape, first=first, say=say),
        ):
            return self._function(fn, key)(parts, scalars, fields)

    def _function(self, fn: Callable[..., Any], key: Key) -> Callable[..., Any]:
        _, modes, dtype = key
        if key not in self._functions:
            self._prepare(modes)
            objective = self._moded[modes]

            def run(parts: Parts, scalars: Scalars, batch: TensorBatch) -> Any:
                return fn(objective, parts, scalars, batch, autocast=dtype)

            self._functions[key] = compiled(run, self._options, modules_of(objective.models))
        return self._functions[key]

    def _modes(self) -> Modes:
        """Which of the trainable models are in train mode."""
        kept = self.objective.models
        return tuple(m.training and kept[n].training for n, m in self.models.items())

    @torch.compiler.assume_constant_result
    def _prepare(self, modes: Modes) -> None:
        """Make the objective with its models in these modes; while tracing, outside the graph."""
        if modes not in self._moded:
            chosen = dict(zip(self.models, modes, strict=True))
            models = self.objective.models
            moded = {n: replace(m, training=chosen.get(n, False)) for n, m in models.items()}
            self._moded[modes] = Objective(self.objective.terms, **moded)

    def _parts(self) -> Parts:
        """The modules' own tensors, as they are now."""
        models = {n: self.objective.models[n] for n in self.models}
        trainable = {n: trainable_parameters(m) for n, m in models.items()}
        device = device_of(trainable)
        if device not in self._frozen:
            self._frozen[device] = self._frozen_on(device)
        frozen, buffers = self._frozen[device]
        frozen = frozen | {n: frozen_parameters(m) for n, m in models.items()}
        # Copies, since the modules' own are written to before the backward pass.
        buffers = buffers | {
            n: _buffers(m.module, lambda b: b.detach().clone()) for n, m in models.items()
        }
        for name, average in self.averages.items():
            frozen[name], buffers[name] = cast(_Average, average).tensors()
        loss_state: Any = optree.tree_map(lambda name: getattr(self, name), self._loss_state_names)
        return Parts(trainable, _filled(frozen), _filled(buffers), loss_state)

    def _frozen_on(self, device: torch.device) -> tuple[Tensors, Tensors]:
        """Parameters and buffers of the frozen models."""
        models = {n: m for n, m in self.objective.models.items() if m.kind == "frozen"}
        return (
            {
                n: {k: p.to(device) for k, p in frozen_parameters(m).items()}
                for n, m in models.items()
            },
            {n: _buffers(m.module, lambda b: b.detach().to(device)) for n, m in models.items()},
        )

    @torch.no_grad()
    def _write(self, aux: Aux) -> None:
        """What a batch leaves behind: batch statistics, and the state of stateful losses."""
        for name, module in self.models.items():
            after = aux.buffers.get(name, {})
            for key, buffer in module.named_buffers():
                if module.training and key in after:
                    buffer.copy_(after[key])
        if not any(self._modes()):
            return
        names = optree.tree_leaves(self._loss_state_names)
        for name, leaf in zip(names, optree.tree_leaves(cast(Any, aux.loss_state)), strict=True):
            getattr(self, name).copy_(leaf)


class _Average(nn.Module):
    """The moving average of a module's parameters and buffers; itself only buffers."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._parameter_names = [n for n, _ in module.named_parameters()]
        self._buffer_names = [n for n, _ in module.named_buffers()]
        for name, tensor in _named_tensors(module).items():
            self.register_buffer(_key(name), tensor.detach().clone())

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Parameters and buffers, by the names that the module has for them."""
        averages = dict(self.named_buffers())
        parameters = {n: averages[_key(n)] for n in self._parameter_names}
        return parameters, {n: averages[_key(n)] for n in self._buffer_names}

    def follow(self, module: nn.Module, decay: float) -> None:
        """Move towards a module, by the rule of every EMA model."""
        averages = dict(self.named_buffers())
        sources = _named_tensors(module)
        pairs = [(averages[_key(name)], new.detach()) for name, new in sources.items()]
        if pairs:
            device = pairs[0][0].device
            share = torch.tensor(1 - decay, device=device)
            move(pairs, share, torch.tensor(True, device=device))


def _key(name: str) -> str:
    """A dotted name as a buffer's, which may have no dots."""
    return name.replace(".", "/")


def _named_tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _followed(objective: Objective, name: str) -> nn.Module:
    """The module that an `ema` model follows."""
    module = objective.program.model(name).module
    assert module is not None
    return module


def _buffers(module: nn.Module | None, take: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return {} if module is None else {n: take(b) for n, b in module.named_buffers()}


def _filled(tree: Tensors) -> Tensors:
    return {name: tensors for name, tensors in tree.items() if tensors}


def _loss(
    objective: Objective,
    parts: Parts,
    scalars: Scalars,
    batch: TensorBatch,
    *,
    autocast: torch.dtype | None,
) -> tuple[Tensor, Aux]:
    """The loss with its graph, and the rest without."""
    loss, aux = objective(parts, batch, scalars=scalars, autocast=autocast)
    return loss, Aux(*map_tensors(torch.detach, tuple(aux)))
