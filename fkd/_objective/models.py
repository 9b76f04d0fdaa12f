"""The models of an objective: what is trained, what is frozen, what follows another one."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .._base.types import Batch
from .rebound import rebind_forwards
from .recompute import blocks_of
from .stored import Stored, stand_in, stored

Kind = Literal["trainable", "frozen", "ema"]


@dataclass(frozen=True, eq=False)
class Model:
    """A named model of an objective, as `trainable`, `frozen` or `ema` made it."""

    kind: Kind
    module: nn.Module | None = None
    inputs: Callable[[Batch], Any] | None = None
    outputs: Callable[[Any], Any] | None = None
    training: bool = False
    unused: tuple[str, ...] = ()
    of: str = ""
    decay: float | Tensor | Callable[[int], float] = 0.999
    recomputed: tuple[str, ...] = ()
    stored: Stored | None = None

    def __repr__(self) -> str:
        what = repr(self.of) if self.kind == "ema" else type(self.module).__name__
        return f"{self.kind}({what})"


def trainable(
    module: nn.Module,
    *,
    inputs: Callable[[Batch], Any] | None = None,
    outputs: Callable[[Any], Any] | None = None,
    training: bool = True,
    unused: str | Sequence[str] = (),
    checkpoint_blocks: bool | Sequence[str] = False,
    weights: str | os.PathLike[str] | None = None,
) -> Model:
    """A model that is trained: the student, an adapter, a peer.

    Args:
      module: any module. Parameters with `requires_grad=False` stay as they are.
      inputs: batch -> keyword arguments (a dict), positional arguments (a tuple or list), or
        the one argument (a tensor) of this model. By default the batch fields that its
        `forward` takes.
      outputs: what the model returned -> the outputs that refs see. By default as returned.
      training: train mode (dropout on, batch statistics) or eval mode.
      unused: one or several dotted prefixes of parameters that no term is meant to reach (an
        unused pooler); they are kept, and not trained.
      checkpoint_blocks: of which blocks only the inputs are kept; the backward pass runs them
        again, which takes memory from all blocks to one, for about a third more time
        (arXiv:1604.06174). True: the members of every list of blocks; or their names. Values and
        gradients are the same. Models of transformers have `gradient_checkpointing_enable()`.
      weights: the folder of safetensors files (as `save_pretrained` and `fkd.loops.export` write
        them), or one such file, with the values of the parameters and buffers. They are read when
        a state is made, one tensor after another, and of those that are cut over processes the
        rows of each alone; the module's parameters need no values (`fkd.parallel.on_meta`), and
        give their dtype. What is not there keeps the module's values.

    Raises:
      ValueError: `checkpoint_blocks` names what the module does not have, or finds no list;
        `weights` are not those of the module.
    """
    blocks = blocks_of(module, checkpoint_blocks)
    prefixes = (unused,) if isinstance(unused, str) else tuple(unused)
    return Model(
        "trainable",
        module,
        inputs,
        outputs,
        training,
        prefixes,
        recomputed=blocks,
        stored=None if weights is None else stored(module, weights),
    )


def frozen(
    module: nn.Module,
    *,
    inputs: Callable[[Batch], Any] | None = None,
    outputs: Callable[[Any], Any] | None = None,
    weights: str | os.PathLike[str] | None = None,
) -> Model:
    """A model that is never changed: a teacher. Eval mode, no gradient, buffers untouched.

    The arguments are those of `trainable`.
    """
    values = None if weights is None else stored(module, weights)
    return Model("frozen", module, inputs, outputs, stored=values)


def ema(
    of: str,
    *,
    decay: float | Tensor | Callable[[int], float] = 0.999,
    inputs: Callable[[Batch], Any] | None = None,
    outputs: Callable[[Any], Any] | None = None,
) -> Model:
    """A teacher that follows a trainable model: `e = decay * e + (1 - decay) * student`.

    It starts as a copy, is updated after every update of the model, and runs in eval mode
    without gradients (mean teacher, arXiv:1703.01780).

    Args:
      of: the name of the trainable model that it follows.
      decay: in [0, 1): a float, a 0-d tensor or a schedule.
      inputs, outputs: as for `trainable`; by default those of the model it follows.

    Raises:
      ValueError: `of` is not a name.
    """
    if not isinstance(of, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(
            f"ema: of is a {type(of).__name__}; the name of a trainable model is expected: "
            "fkd.ema('student')."
        )
    return Model("ema", None, inputs, outputs, of=of, decay=decay)


@contextlib.contextmanager
def evaluating(*models: nn.Module) -> Generator[None]:
    """Models in eval mode inside; afterwards every part of them is in the mode that it was in.

    Example:
      >>> model = nn.Sequential(nn.Dropout().eval(), nn.Linear(2, 2))
      >>> with evaluating(model):
      ...     [part.training for part in model.modules()]
      [False, False, False]
      >>> [part.training for part in model.modules()]
      [True, False, True]
    """
    modes = {part: part.training for model in models for part in model.modules()}
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def skeleton(module: nn.Module, *, training: bool) -> nn.Module:
    """A copy of a module's structure that shares its tensors, with its own modes and hooks."""
    shared: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        shared[id(tensor)] = tensor
    copied = copy.deepcopy(module, shared)
    rebind_forwards(module, copied)
    return copied.train(training)


def trainable_parameters(model: Model) -> dict[str, Tensor]:
    """The parameters of a model that its training changes, by name."""
    if model.kind != "trainable" or model.module is None:
        return {}
    return {
        name: p
        for name, p in model.module.named_parameters()
        if p.requires_grad and not _under(name, model.unused)
    }


def frozen_parameters(model: Model) -> dict[str, Tensor]:
    """The parameters of a model that stay as they are, by name."""
    if model.module is None:
        return {}
    moving = trainable_parameters(model)
    return {n: p.detach() for n, p in model.module.named_parameters() if n not in moving}


Absent = Callable[[str, Tensor], Tensor]
"""`(name, tensor of the module) -> its values`, for what a module need not hold."""


def tensors_of(
    model: Model,
    copied: Callable[[Tensor], Tensor],
    shared: Callable[[Tensor], Tensor],
    absent: Absent | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """The trainable parameters of a model, the others, and the buffers: through `copied` what a
    run changes, through `shared` the rest; what has its values in files through `absent` first."""
    assert model.module is not None

    def value(name: str, x: Tensor) -> Tensor:
        missing = x.is_meta or (model.stored is not None and model.stored.holds(name))
        return absent(name, x) if missing and absent is not None else x

    followed = model.kind == "ema"  # all of it moves, though no optimizer does it
    moving = {n: copied(value(n, p)) for n, p in trainable_parameters(model).items()}
    still = copied if followed else shared
    fixed = {n: still(value(n, p)) for n, p in frozen_parameters(model).items()}
    still = shared if model.kind == "frozen" else copied
    return moving, fixed, {n: still(value(n, b)) for n, b in model.module.named_buffers()}


def values_of(model: Model, name: str, x: Tensor, rows: slice | None = None) -> Tensor:
    """The values of a tensor of a model, from the files that have them, if some do.

    Args:
      model: which has it.
      name: of the tensor.
      x: as the module holds it, which gives the dtype.
      rows: along the first axis; None: all.
    """
    if model.stored is None or not model.stored.holds(name):
        return x if rows is None else x[rows]
    return model.stored.read(name, rows).to(x.dtype)


def stand_ins(models: Mapping[str, Model]) -> Callable[[str, str, Tensor], Tensor]:
    """Values for a trial, in `Program.parts`, where modules hold none."""
    tensors = (p for module in modules_of(models).values() for p in module.parameters())
    device = next((p.device for p in tensors if not p.is_meta), torch.device("cpu"))
    return lambda name, tensor, x: stand_in(x, device)


def modules_of(models: Mapping[str, Model]) -> dict[str, nn.Module]:
    """The modules of those models that have one, by name."""
    return {name: m.module for name, m in models.items() if m.module is not None}


def _under(name: str, prefixes: Sequence[str]) -> bool:
    return any(name == p or name.startswith(p.rstrip(".") + ".") for p in prefixes)
