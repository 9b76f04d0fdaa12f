"""A flat dict of tensors as one safetensors file, written as a stream.

The format is a length, a JSON header and the raw values (https://huggingface.co/docs/safetensors);
any safetensors reader opens it. Writing it here costs one tensor of host memory, hashes on
the way, and reports a full disk as the `OSError` that it is.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fkd.parallel._shards import is_cut, local, rows_by_part

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
    """The bytes of a safetensors file; `about` is its metadata. Of what is cut, the own rows."""
    # Wide types first, so that every tensor is aligned to its own width.
    tensors = {name: local(x) for name, x in tensors.items()}
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
    if is_cut(x):
        return {**about, "rows": rows_by_part(x)}
    if not x.is_contiguous() and torch.empty_like(x, device="meta").stride() == x.stride():
        about["stride"] = list(x.stride())  # dense in another order of axes, as channels_last
    return about


Wanted: TypeAlias = Callable[[str, Mapping[str, Any]], slice | None]
"""`(name, what is said of it) -> which rows to read; None: all`."""


def read(
    files: Sequence[Path],
    about: Mapping[str, Mapping[str, Any]],
    *,
    first: Path,
    wanted: Wanted = lambda name, about: None,
) -> dict[str, Tensor]:
    """The tensors that `chunks` wrote, each in memory of its own, on the CPU.

    Args:
      files: in the order of the rows of what is cut.
      about: what `describe` said of each.
      first: the file that has what is not cut.
      wanted: which rows are read of each.

    Raises:
      ValueError: the files are not those that `about` describes.
    """
    cut = {name for name, one in about.items() if "rows" in one}
    try:
        with contextlib.ExitStack() as stack:
            opened = [stack.enter_context(_open(path)) for path in files]
            for path, file in zip(files, opened, strict=True):
                if set(file.keys()) != (set(about) if path == first else cut):
                    raise ValueError(f"{path.name} holds other tensors than its manifest says")
            whole = opened[files.index(first)]
            return {
                name: _joined(opened if name in cut else [whole], name, one, wanted(name, one))
                for name, one in about.items()
            }
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _open(path: Path) -> Any:
    return safe_open(path, framework="pt", device="cpu")  # pyright: ignore


def _joined(
    files: Sequence[Any], name: str, about: Mapping[str, Any], wanted: slice | None
) -> Tensor:
    """The wanted rows of a tensor, from the files that have them."""
    if wanted is None and "rows" not in about:
        return _restore(files[0].get_tensor(name), about)
    shape = about["shape"]
    rows, end = about.get("rows", shape[:1]), 0
    parts: list[Tensor] = []
    for file, count in zip(files, rows, strict=True):
        begin, end = end, end + count
        inside = slice(0, count)
        if wanted is not None:
            inside = slice(max(wanted.start - begin, 0), max(min(wanted.stop, end) - begin, 0))
        if inside.start < inside.stop:
            described = {**about, "shape": [count, *shape[1:]]}
            parts.append(_rows(file, name, described, inside))
    if not parts:
        return torch.empty(0, *shape[1:], dtype=DTYPES[about["dtype"]])
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _rows(file: Any, name: str, about: Mapping[str, Any], inside: slice) -> Tensor:
    """Some rows of what one file has of a tensor; only these are read."""
    dtype, sliced = DTYPES[about["dtype"]], file.get_slice(name)
    if dtype not in NAMES or "stride" in about or sliced.get_shape() != about["shape"]:
        return _restore(file.get_tensor(name), about)[inside].clone()
    return sliced[inside].clone()


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
