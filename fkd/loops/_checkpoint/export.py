"""The student alone: as a module, and as files that need no fkd."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fkd._base.errors import expect, listing, nearest
from fkd._objective.apply import interop
from fkd._objective.objective import Objective
from fkd._objective.stored import empty_copy
from fkd.parallel._shards import whole
from fkd.parallel._world import writes

from .._base.state import State
from .peft import is_peft, merged, refuse_bare_adapters, save_adapters
from .whole import whole_folder


def export(
    objective: Objective,
    state: State,
    name: str = "student",
    directory: str | os.PathLike[str] | None = None,
    *,
    adapters: Sequence[str] = (),
    merge: bool = False,
    more: Mapping[str, bytes] | None = None,
) -> nn.Module:
    """A trained model by itself, in eval mode; written to a directory if one is given.

    A transformers model is written by `save_pretrained` and loads with `from_pretrained`;
    of a model of PEFT the adapters are written, which load with `PeftModel.from_pretrained`; any
    other as `model.safetensors`, its state dict. Nothing of the teacher is written. A process
    that is killed meanwhile leaves the folder as it was; what else stands in it is kept.
    The best student of a run: `export(objective, restore(step, best("run")), "student", "out")`.
    Of several processes that train together, the first one writes.

    Args:
      objective: as trained.
      state: of the run.
      name: which model. An EMA copy has a name, too.
      directory: where to write; None writes nothing.
      merge: add the adapters of PEFT into the weights that they adapt, so that the model needs
        no peft to be loaded and run.
      adapters: names of further models to write beside it, as `<name>.safetensors`.
      more: further files of the folder, by name.

    Raises:
      ValueError: there is no such model; a model with adapters of PEFT inside, which cannot be
        written without the `PeftModel` around it.

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
    expect("export", "objective", objective, Objective, "an fkd.Objective", "Try step.objective.")
    expect("export", "state", state, State, "a state of a step", "A run's: result.state.")
    for wanted in (name, *adapters):
        expect("export", "name", wanted, str, "the name of a model", "export(..., 'student').")
        if wanted not in objective.models:
            raise ValueError(
                f"export: no model {wanted!r}. {nearest(wanted, objective.models)}"
                f"Models: {listing(objective.models)}."
            )
    tensors = _tensors(state, name)
    module = _filled(objective, name, tensors)
    if merge:
        module = merged(module)
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    if directory is None:
        return module
    refuse_bare_adapters(module)
    for adapter in adapters:
        _check_file_name(adapter)
    if not writes():
        return module
    with whole_folder(Path(directory)) as folder:
        _write(objective, state, module, tensors, folder, adapters)
        for file, content in (more or {}).items():
            (folder / file).write_bytes(content)
    return module


def _write(
    objective: Objective,
    state: State,
    module: nn.Module,
    tensors: dict[str, Tensor],
    folder: Path,
    adapters: Sequence[str],
) -> None:
    library = interop(module)
    if is_peft(module):
        save_adapters(module, folder)
    elif library is not None:
        library.save_pretrained(module, tensors, folder)
    else:
        _save(module, folder / "model.safetensors")
    for adapter in adapters:
        filled = _filled(objective, adapter, _tensors(state, adapter))
        _save(filled, folder / f"{adapter}.safetensors")


def _check_file_name(name: str) -> None:
    if name in ("", "model") or name.startswith(".") or set(name) & set("/\\:\0"):
        raise ValueError(
            f"export: adapters has {name!r}, which cannot be the name of a file of its own in the "
            "folder. Give the model another name in the objective."
        )


def _tensors(state: State, name: str) -> dict[str, Tensor]:
    trees = (state.frozen, state.trainable, state.buffers)
    return {n: whole(x).detach().cpu() for tree in trees for n, x in tree.get(name, {}).items()}


def _filled(objective: Objective, name: str, tensors: dict[str, Tensor]) -> nn.Module:
    original = objective.program.model(name).module
    assert original is not None
    module = empty_copy(original).eval()
    with torch.no_grad():
        for n, tensor in (*module.named_parameters(), *module.named_buffers()):
            tensor.copy_(tensors[n])
            tensor.grad = None
    return module


def _save(module: nn.Module, path: Path) -> None:
    # Cloned, since safetensors stores no two names of one memory (tied weights).
    save_file({n: x.detach().clone().contiguous() for n, x in module.state_dict().items()}, path)
