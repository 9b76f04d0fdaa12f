"""The student alone: as a module, and as files that need no fkd."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fkd._errors import listing, nearest
from fkd._objective.apply import interop
from fkd._objective.objective import Objective

from .._state import State


def export(
    objective: Objective,
    state: State,
    name: str = "student",
    directory: str | os.PathLike[str] | None = None,
    *,
    adapters: Sequence[str] = (),
) -> nn.Module:
    """A trained model by itself, in eval mode; written to a directory if one is given.

    A transformers model is written by `save_pretrained` and loads with `from_pretrained`;
    any other as `model.safetensors`, its state dict. Nothing of the teacher is written.

    Args:
      objective: as trained.
      state: of the run.
      name: which model. An EMA copy has a name, too.
      directory: where to write; None writes nothing.
      adapters: names of further models to write beside it, as `<name>.safetensors`.

    Returns:
      A copy of the module with the trained parameters and buffers, on the CPU.

    Example:
      >>> from fkd.loops import train_step
      >>> objective = Objective(
      ...     {"ce": term(cross_entropy, student.logits, batch[1])},
      ...     student=trainable(torch.nn.Linear(4, 3)),
      ... )
      >>> state = train_step(objective, lambda p: torch.optim.SGD(p, lr=0.1)).init()
      >>> export(objective, state)
      Linear(in_features=4, out_features=3, bias=True)
    """
    for wanted in (name, *adapters):
        if wanted not in objective.models:
            raise ValueError(
                f"export: no model {wanted!r}. {nearest(wanted, objective.models)}"
                f"Models: {listing(objective.models)}."
            )
    tensors = _tensors(state, name)
    module = _filled(objective, name, tensors)
    if directory is None:
        return module
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    library = interop(module)
    if library is not None:
        library.save_pretrained(module, tensors, folder)
    else:
        _save(module, folder / "model.safetensors")
    for adapter in adapters:
        filled = _filled(objective, adapter, _tensors(state, adapter))
        _save(filled, folder / f"{adapter}.safetensors")
    return module


def _tensors(state: State, name: str) -> dict[str, Tensor]:
    trees = (state.frozen, state.trainable, state.buffers)
    return {n: x.detach().cpu() for tree in trees for n, x in tree.get(name, {}).items()}


def _filled(objective: Objective, name: str, tensors: dict[str, Tensor]) -> nn.Module:
    original = objective.program.model(name).module
    assert original is not None
    module = copy.deepcopy(original).cpu().eval()
    with torch.no_grad():
        for n, own in (*module.named_parameters(), *module.named_buffers()):
            own.copy_(tensors[n])
            own.grad = None
    return module


def _save(module: nn.Module, path: Path) -> None:
    # Cloned, since safetensors stores no two names of one memory (tied weights).
    save_file({n: x.detach().clone().contiguous() for n, x in module.state_dict().items()}, path)
