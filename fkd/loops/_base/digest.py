"""Digests of tensors: whether values are the same as before, or elsewhere."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

_CHUNK = 1 << 20  # words at once
_ODD = 0x9E3779B97F4A7C15 - (1 << 64)
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


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
