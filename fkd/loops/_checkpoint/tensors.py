"""A flat dict of tensors as one safetensors file, written as a stream.

The format is a length, a JSON header and the raw values (https://huggingface.co/docs/safetensors);
any safetensors reader opens it. Writing it here costs one tensor of host memory, hashes on
the way, and reports a full disk as the `OSError` that it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .tree import DTYPES

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}  # other dtypes are stored as bytes (U8); `describe` remembers what they were


def chunks(
    tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None
) -> Generator[bytes | memoryview]:
    """The bytes of a safetensors file; `about` is its metadata."""
    # Wide types first, so that every tensor is aligned to its own width.
    names = sorted(tensors, key=lambda name: (-_width(tensors[name]), name))
    header: dict[str, Any] = {} if about is None else {"__metadata__": dict(about)}
    end = 0
    for name in names:
        x = tensors[name]
        start, end = end, end + x.numel() * x.element_size()
        stored = x.dtype in NAMES
        header[name] = {
            "dtype": NAMES.get(x.dtype, "U8"),
            "shape": list(x.shape) if stored else [end - start],
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        yield _bytes(tensors[name])


def describe(x: Tensor) -> dict[str, Any]:
    """What the file itself does not say about a tensor, or says less exactly."""
    about: dict[str, Any] = {"dtype": str(x.dtype).removeprefix("torch."), "shape": list(x.shape)}
    if not x.is_contiguous() and torch.empty_like(x, device="meta").stride() == x.stride():
        about["stride"] = list(x.stride())  # dense in another order of axes, as channels_last
    return about


def read(path: Path, about: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    """The tensors that `chunks` wrote, each in memory of its own, on the CPU.

    Raises:
      ValueError: the file is not the one that `about` describes.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:  # pyright: ignore
            if set(file.keys()) != set(about):
                raise ValueError("it holds other tensors than its manifest says")
            return {name: _restore(file.get_tensor(name), about[name]) for name in about}
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _restore(stored: Tensor, about: Mapping[str, Any]) -> Tensor:
    dtype, shape = DTYPES[about["dtype"]], tuple(about["shape"])
    size = math.prod(shape) * dtype.itemsize
    if stored.dtype != (dtype if dtype in NAMES else torch.uint8):
        raise ValueError(f"a tensor of {stored.dtype} stands for one of {dtype}")
    if stored.numel() * stored.element_size() != size:
        raise ValueError(f"a tensor of shape {tuple(stored.shape)} stands for one of {shape}")
    if stored.dtype != dtype:
        stored = stored.clone().view(dtype).reshape(shape)
    if stored.shape != shape:
        raise ValueError(f"a tensor of shape {tuple(stored.shape)} stands for one of {shape}")
    if "stride" not in about:
        return stored.clone()
    stride = about["stride"]
    if not is_dense(shape, stride):
        raise ValueError(f"the strides {stride} do not fit the shape {shape}")
    return torch.empty_strided(shape, stride, dtype=dtype).copy_(stored)


def is_dense(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether the strides are those of a contiguous tensor with its axes in another order."""
    if len(shape) != len(stride):
        return False
    end = 1
    for step, n in sorted((t, n) for n, t in zip(shape, stride, strict=True) if n > 1):
        if step != end:
            return False
        end = step * n
    return 0 not in shape


def _width(x: Tensor) -> int:
    return x.element_size() if x.dtype in NAMES else 1


def _bytes(x: Tensor) -> memoryview:
    x = x.resolve_conj().resolve_neg().cpu().contiguous()
    return memoryview(x.reshape(-1).view(torch.uint8).numpy())  # pyright: ignore
