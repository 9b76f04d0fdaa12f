"""Whether values are the same as before: digests of tensors and functions, in short words."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_CHUNK = 1 << 20  # words at once
_ODD = 0x9E3779B97F4A7C15 - (1 << 64)
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def without_addresses(text: str) -> str:
    """A repr without what differs from one process to the next."""
    return _ADDRESS.sub("", text)


def digest_of(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Of names, dtypes, shapes and every value: 16 hexadecimal digits.

    The values are summed where they are, each times an odd number that its place gives, modulo
    2^64: any one changed value changes the sum, and so does an exchange. It takes about as long as
    reading them, and a device sends back 8 bytes a tensor.
    """
    sha256 = hashlib.sha256()
    sums: list[Tensor] = []
    for name, x in tensors:
        for inner in _plain(x):
            sha256.update(f"{name} {inner.dtype} {tuple(inner.shape)};".encode())
            sums.append(_sum(inner))
    for device in dict.fromkeys(x.device for x in sums):
        values = torch.stack([x for x in sums if x.device == device]).cpu()
        sha256.update(repr(values.tolist()).encode())
    return sha256.hexdigest()[:16]


def _plain(x: Tensor) -> Iterator[Tensor]:
    """The plain tensors of a tensor: itself, or what a quantized one is made of."""
    flatten = getattr(x, "__tensor_flatten__", None)
    if flatten is None or type(x) in (Tensor, nn.Parameter):
        yield x.detach()
        return
    names, _ = flatten()
    for name in names:
        yield from _plain(getattr(x, name))


@torch.no_grad()
def _sum(x: Tensor) -> Tensor:
    flat = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
    flat = flat.resolve_neg().contiguous().reshape(-1)
    words = flat.view(_WORDS[flat.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=x.device)
    weights = _weights(min(_CHUNK, len(words)), x.device)
    for start in range(0, len(words), _CHUNK):
        part = words[start : start + _CHUNK].to(torch.int64)
        total = total * _ODD + (part * weights[: len(part)]).sum()
    return total


@functools.lru_cache(maxsize=4)
def _weights(count: int, device: torch.device) -> Tensor:
    """Odd numbers, one for each place, well mixed (SplitMix64)."""
    x = torch.arange(1, count + 1, dtype=torch.int64, device=device) * _ODD
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> shift)) * (factor - (1 << 64))
    return (x ^ (x >> 31)) | 1


def facts_of(value: Any) -> list[str]:
    """What the repr of an objective's part does not say: the values of its tensors, and the code
    of the user's functions with all that they have closed over.

    Numbers that are 0-d tensors are knobs, whose values may have moved; they are left out.
    """
    facts: list[str] = []
    _collect(value, facts, set())
    return facts


def _collect(value: Any, facts: list[str], seen: set[int]) -> None:
    if id(value) in seen or isinstance(value, (str, bytes, type, types.ModuleType, nn.Module)):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        if value.ndim:
            facts.append(f"tensor {digest_of([('', value)])}")
    elif isinstance(value, types.FunctionType):
        if not _of_library(value):
            facts.append(f"function {value.__qualname__} {_code(value.__code__)}")
        cells = [_content(cell) for cell in value.__closure__ or ()]
        for inner in (*cells, value.__defaults__, value.__kwdefaults__):
            _note(inner, facts, seen)
    elif isinstance(value, types.MethodType):
        _collect(value.__func__, facts, seen)
        _note(value.__self__, facts, seen)
    else:
        for inner in _parts(value):
            _collect(inner, facts, seen)


def _note(value: Any, facts: list[str], seen: set[int]) -> None:
    """A value that no repr shows."""
    if isinstance(value, (int, float, str, bytes)):
        facts.append(f"value {value!r}")
    elif isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        for inner in value:
            _note(inner, facts, seen)
    else:
        _collect(value, facts, seen)


def _parts(value: Any) -> list[Any]:
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (tuple, list)):
        return list(value)
    if dataclasses.is_dataclass(value):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    if type(value).__module__.startswith("fkd."):
        slots = [getattr(value, n, None) for n in getattr(type(value), "__slots__", ())]
        return [*slots, *getattr(value, "__dict__", {}).values()]
    return []


def _of_library(function: types.FunctionType) -> bool:
    return (function.__module__ or "").split(".")[0] in ("fkd", "torch", "transformers")


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that was not set
        return None


def _code(code: types.CodeType) -> str:
    """A digest of what a function does, without where it stands in its file."""
    sha256 = hashlib.sha256(code.co_code)
    sha256.update(repr((code.co_names, code.co_varnames)).encode())
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            sha256.update(_code(constant).encode())
        elif isinstance(constant, frozenset):
            sha256.update(repr(sorted(map(repr, constant))).encode())
        else:
            sha256.update(repr(constant).encode())
    return sha256.hexdigest()[:16]
