"""Teachers and students of few bits, by torchao (`pip install fkd[torchao]`).

    teacher = fkd.interop.torchao.fp8(large)
    objective = fkd.Objective(terms, student=fkd.trainable(small), teacher=fkd.frozen(teacher))

    config = torchao.quantization.IntxWeightOnlyConfig(torch.int4, PerGroup(32))
    teacher = fkd.interop.torchao.quantized(large, config)              # 4 bits of a frozen teacher
    small = fkd.interop.torchao.fake_quantized(small, config)           # trains as it will be used
    ...
    served = fkd.interop.torchao.converted(fkd.loops.export(objective, state, "student"), config)

The teacher is most of what a step computes, and needs no gradient: 8-bit floating point halves
its time and memory on hardware that multiplies it (compute capability 8.9 and newer).
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import torch
from torch import nn

from fkd._objective.models import skeleton

_Module = TypeVar("_Module", bound=nn.Module)
_MULTIPLE = 16
"""Both sizes of an 8-bit matrix product are a multiple of it."""


def fp8(teacher: nn.Module, *, skip: Collection[str] = ()) -> nn.Module:
    """A copy of a teacher that multiplies in 8-bit floating point and is bfloat16 elsewhere.

    Weights have a scale for each row, activations one for each token, found as they come.
    Embeddings, norms and linear layers whose sizes are no multiples of 16 stay bfloat16, and share
    their memory with the teacher if that is in bfloat16 already.

    Args:
      teacher: a module on a CUDA device; not changed.
      skip: names of submodules to leave in bfloat16, such as `["lm_head"]`, whose weight a head
        term reads by `teacher.param("lm_head.weight")`.

    Raises:
      ModuleNotFoundError: torchao is missing.
      ValueError: the device has no 8-bit products; a name in `skip` is not a submodule.
    """
    device = next(teacher.parameters()).device
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"on {device}"
        raise ValueError(
            f"fp8: teacher is {where}; 8-bit floating-point products need a CUDA device of compute "
            "capability 8.9 or newer. Move the teacher there first, or leave fp8 out."
        )
    ao = _torchao()
    config = ao.Float8DynamicActivationFloat8WeightConfig(granularity=ao.PerRow())
    return quantized(teacher, config, skip=skip)


def quantized(teacher: nn.Module, config: Any, *, skip: Collection[str] = ()) -> nn.Module:
    """A copy of a teacher in bfloat16, with its linear layers quantized as torchao's config says.

    Args:
      teacher: a module; not changed.
      config: such as `torchao.quantization.Int8WeightOnlyConfig()`.
      skip: names of submodules to leave in bfloat16.

    Raises:
      ModuleNotFoundError: torchao is missing.
      ValueError: a name in `skip` is not a submodule.
    """
    ao = _torchao()
    chosen = _chosen(teacher, skip, _fits)
    copied = _in_bfloat16(skeleton(teacher, training=False))
    ao.quantize_(copied, config, chosen)
    return copied


def fake_quantized(student: _Module, config: Any, *, skip: Collection[str] = ()) -> _Module:
    """A copy of a student that computes as if it were quantized, and trains what is rounded.

    Quantization-aware distillation: every linear layer multiplies by its rounded weights (and
    rounds its inputs, where the config says so), and the gradient passes the rounding as if it
    were not there. The parameters keep their names and their precision, so checkpoints, EMA
    copies and `export` are those of any student; `converted` makes the export small.

    Args:
      student: a module; not changed. Weights that are shared stay shared.
      config: what the student will be quantized with, such as
        `torchao.quantization.IntxWeightOnlyConfig(torch.int4, PerGroup(32))`, or
        `Int8DynamicActivationIntxWeightConfig(...)`.
      skip: names of submodules to leave as they are, such as `["lm_head"]`, whose weight a head
        term reads as it is by `student.param("lm_head.weight")`.

    Raises:
      ModuleNotFoundError: torchao is missing.
      ValueError: a name in `skip` is not a submodule; no linear layer is left.

    Reference:
      Jacob et al., Quantization and Training of Neural Networks for Efficient
      Integer-Arithmetic-Only Inference, arXiv:1712.05877; Liu et al., LLM-QAT, arXiv:2305.17888.
    """
    ao, chosen = _torchao(), _chosen(student, skip, lambda layer: True)
    if not any(chosen(m, n) for n, m in student.named_modules()):
        raise ValueError("fake_quantized: the student has no linear layer that is not in skip.")
    copied = copy.deepcopy(student)
    qat: Any = importlib.import_module("torchao.quantization.qat")
    ao.quantize_(copied, qat.QATConfig(config, step="prepare"), chosen)
    return copied


def converted(student: _Module, config: Any) -> _Module:
    """A copy of a `fake_quantized` student whose weights are quantized: what it computed in
    training, in few bits.

    Args:
      student: from `fkd.loops.export`; not changed.
      config: that of `fake_quantized`.

    Raises:
      ModuleNotFoundError: torchao is missing.
      ValueError: no layer of the student is fake-quantized.
    """
    ao = _torchao()
    qat: Any = importlib.import_module("torchao.quantization.qat")
    if not any("FakeQuantized" in type(m).__name__ for m in student.modules()):
        raise ValueError(
            "converted: no layer of the student is fake-quantized; what `fake_quantized` made, "
            "trained and exported, is expected. For plain weights: torchao.quantization.quantize_."
        )
    copied = copy.deepcopy(student)
    ao.quantize_(copied, qat.QATConfig(config, step="convert"))
    return copied


def _chosen(
    module: nn.Module, skip: Collection[str], fits: Callable[[nn.Linear], bool]
) -> Callable[[nn.Module, str], bool]:
    """Which submodules are quantized: linear layers that fit and are not in `skip`."""
    modules = dict(module.named_modules())
    unknown = sorted(set(skip) - modules.keys())
    if unknown:
        named = ", ".join(n for n, m in modules.items() if isinstance(m, nn.Linear))
        raise ValueError(f"skip: no submodule {unknown}; the linear layers are {named}.")

    def chosen(one: nn.Module, name: str) -> bool:
        within = any(name == s or name.startswith(f"{s}.") for s in skip)
        return isinstance(one, nn.Linear) and not within and fits(one)

    return chosen


def _fits(layer: nn.Linear) -> bool:
    return layer.in_features % _MULTIPLE == 0 and layer.out_features % _MULTIPLE == 0


def _in_bfloat16(copied: nn.Module) -> nn.Module:
    """With tensors of its own where they change; what several modules share, they go on sharing."""
    converted: dict[int, nn.Parameter] = {}
    for module in copied.modules():
        for name, p in module._parameters.items():  # pyright: ignore[reportPrivateUsage]
            if p is not None and p.is_floating_point():
                in_bfloat16 = nn.Parameter(p.detach().to(torch.bfloat16), requires_grad=False)
                module._parameters[name] = converted.setdefault(id(p), in_bfloat16)  # pyright: ignore[reportPrivateUsage]
    return copied


def _torchao() -> Any:
    try:
        return importlib.import_module("torchao.quantization")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "fkd.interop.torchao needs torchao: pip install fkd[torchao]"
        ) from None
