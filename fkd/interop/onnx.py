"""A trained model as a program: `torch.export`, and ONNX for runtimes without torch."""

from __future__ import annotations

import importlib.util
import inspect
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from .._base.types import Batch
from .._objective.apply import call_arguments
from .._objective.objective import Objective
from ..loops import State, export
from ..loops._data.batch import normalised

_NEEDED = ("onnx", "onnxscript")


def program(
    objective: Objective, state: State, batch: Batch, name: str = "student"
) -> ExportedProgram:
    """A trained model as a program of `torch.export`, for AOTInductor, ExecuTorch, or a file.

    The number of examples is free, and so is the length of token sequences (whole numbers of two
    axes) wherever the model allows it. It is called by the names of the model's inputs, and
    returns what the model returns.

    Args:
      objective: as trained.
      state: of the run.
      batch: one batch, which says what the model is given; as the loader gives it.
      name: which model.

    Raises:
      ValueError: there is no such model, or torch cannot export it; says why.

    Example:
      >>> objective = Objective(
      ...     {"kd": term(kl, student.logits, teacher.logits)},
      ...     student=trainable(torch.nn.Linear(4, 3)), teacher=frozen(torch.nn.Linear(4, 3)),
      ... )
      >>> sgd = lambda p: torch.optim.SGD(p, lr=0.1)
      >>> step = fkd.loops.train_step(objective, sgd, compile=False)
      >>> exported = program(objective, step.init(), torch.randn(2, 4))
      >>> exported.module()(input=torch.randn(7, 4)).shape
      torch.Size([7, 3])
    """
    module, inputs = _with_inputs(objective, state, batch, name)
    shapes: Any = {n: _free(x) for n, x in inputs.items()}
    try:
        return torch.export.export(module, (), inputs, dynamic_shapes=shapes)
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise ValueError(f"program: torch.export cannot export model {name!r}: {first}") from error


def save(
    objective: Objective,
    state: State,
    path: str | os.PathLike[str],
    batch: Batch,
    name: str = "student",
) -> Path:
    """A trained model as an ONNX file (`pip install onnx onnxscript`); see `program`.

        fkd.interop.onnx.save(objective, result.state, "student.onnx", batch)
        onnxruntime.InferenceSession("student.onnx").run(None, {"input_ids": ids, ...})

    Args:
      objective: as trained.
      state: of the run.
      path: of the file; weights of more than 2 GB stand beside it.
      batch: one batch, which says what the model is given.
      name: which model.

    Returns:
      The path.

    Raises:
      ModuleNotFoundError: onnx or onnxscript is not installed.
      ValueError: there is no such model, or torch cannot export it.
    """
    missing = [package for package in _NEEDED if importlib.util.find_spec(package) is None]
    if missing:
        raise ModuleNotFoundError(
            f"save: {' and '.join(missing)} needed for ONNX: pip install onnx onnxscript. "
            "fkd.interop.onnx.program needs neither."
        )
    exported = program(objective, state, batch, name)
    module, inputs = _with_inputs(objective, state, batch, name)
    with torch.no_grad():
        outputs = _names_of(module(**inputs))
    with warnings.catch_warnings():  # of torch's exporter, about its own code
        warnings.simplefilter("ignore")
        made = torch.onnx.export(exported, dynamo=True, output_names=outputs, verbose=False)
    assert made is not None
    made.save(path)
    return Path(path)


def _with_inputs(
    objective: Objective, state: State, batch: Batch, name: str
) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model, and its inputs by name, of two examples or more."""
    module = export(objective, state, name)
    model = objective.program.model(name)
    with torch.no_grad():
        args, kwargs = call_arguments(model, normalised(batch))
    names = [p for p in inspect.signature(module.forward).parameters if p not in kwargs]
    inputs = {**dict(zip(names, args, strict=False)), **kwargs}
    config: Any = getattr(module, "config", None)
    if getattr(config, "use_cache", False):
        config.use_cache = False  # of the copy: a cache is no tensor
    tensors = {n: x.cpu() for n, x in inputs.items() if isinstance(x, Tensor)}
    return module, {n: _at_least_two(x) for n, x in tensors.items()}


def _at_least_two(x: Tensor) -> Tensor:
    """Of one example torch would make a program for one."""
    return torch.cat([x, x]) if x.ndim and x.shape[0] == 1 else x


def _free(x: Tensor) -> Any:
    """The axes of an input that may have other sizes."""
    tokens = x.ndim == 2 and not x.is_floating_point()
    return {axis: Dim.AUTO for axis in range(min(x.ndim, 2 if tokens else 1))}


def _names_of(output: Any) -> list[str]:
    """Names of what a model returns; one tensor is its logits, as it is for refs."""
    if isinstance(output, Tensor):
        return ["logits"]
    if isinstance(output, Mapping):
        return [str(name) for name, value in output.items() if value is not None]
    return [f"output_{i}" for i in range(len(output))]


__all__ = ["program", "save"]
