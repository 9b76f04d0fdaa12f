"""Attention that a module computes in its own code: its softmax and its products are watched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ._sites import applies_rotary, number_of_heads, projections
from ._types import STATES

_PRODUCTS = ("matmul", "__matmul__", "bmm", "baddbmm", "einsum")


class Seen:
    """What a `Watch` saw. An object of its own, since torch.compile knows no methods of modes.

    Attributes:
      maps: what each softmax was taken of, what it gave, and how many products came before.
      products: the factors of each product, `[..., rows, features]` and `[..., features, columns]`.
    """

    def __init__(self) -> None:
        self.maps: list[tuple[Tensor, Tensor, int]] = []
        self.products: list[tuple[Tensor, Tensor]] = []

    def read(self, kind: str) -> Tensor:
        """What was seen of one kind, as the code has it."""
        shapes = [tuple(m[1].shape) for m in self.maps]
        if len(set(shapes)) != 1:
            what = f"computes it in pieces of shapes {shapes}" if shapes else "takes no softmax"
            raise LookupError(what)
        scores, weights, before = self.maps[-1]
        rows, columns = _first([p for p in self.products[:before] if _makes(p, scores)])
        if kind == "value":
            return _first([p[1] for p in self.products[before:] if _same_pairs(p[0], weights)])
        return {
            "attention": weights,
            "attention_scores": scores,
            "query": rows,
            "key": columns.mT,
        }[kind]


class Reached(Exception):
    """The softmax has been reached, and nothing after it is wanted."""


class Watch(TorchFunctionMode):
    """Records every softmax over the last axis, and every matrix product, of the code that it is
    around. A fused attention becomes an explicit one.

    Args:
      seen: is written to.
      until_softmax: raise `Reached` at the first softmax, instead of its result.
    """

    def __init__(self, seen: Seen, *, until_softmax: bool = False) -> None:
        super().__init__()
        self.seen = seen
        self.until_softmax = until_softmax

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention":
            return _explicit(self.seen, *args, **kwargs)
        if name == "softmax" and self.until_softmax:
            self.seen.maps.append((args[0], args[0], len(self.seen.products)))
            raise Reached
        output = func(*args, **kwargs)
        if name == "softmax":
            scores = args[0] if args else kwargs["input"]
            dim = kwargs["dim"] if "dim" in kwargs else args[1]
            if scores.ndim > 2 and dim in (-1, scores.ndim - 1):
                self.seen.maps.append((scores, output, len(self.seen.products)))
        elif name in _PRODUCTS:
            factors = _factors(name, args, kwargs)
            if factors is not None:
                self.seen.products.append(factors)
        return output


def _explicit(
    seen: Seen,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention` by products and a softmax, which are recorded."""
    del enable_gqa  # the heads say it
    groups = query.shape[-3] // key.shape[-3]
    keys = key if groups == 1 else key.repeat_interleave(groups, dim=-3)
    values = value if groups == 1 else value.repeat_interleave(groups, dim=-3)
    scores = query @ keys.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    lowest = torch.finfo(scores.dtype).min
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, lowest)
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        scores = scores.masked_fill(~attn_mask, lowest)
    elif attn_mask is not None:
        scores = scores + attn_mask
    weights = scores.softmax(-1)
    seen.products.append((query, key.mT))
    seen.maps.append((scores, weights, len(seen.products)))
    seen.products.append((weights, value))
    return F.dropout(weights, dropout_p) @ values


def _first(captured: list[Any]) -> Any:
    if not captured:
        raise LookupError("does not compute it by a product of queries and keys, maps and values")
    return captured[0]


def _factors(name: str, args: Any, kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
    if name == "einsum":
        tensors = args[1] if isinstance(args[1], (tuple, list)) else args[1:]
        return _einsum_factors(args[0], *tensors) if len(tensors) == 2 else None
    operands = [*args, *kwargs.values()]
    pair = tuple(operands[1:3] if name == "baddbmm" else operands[:2])
    return pair if all(isinstance(x, Tensor) and x.ndim > 2 for x in pair) else None  # pyright: ignore[reportReturnType]


def _einsum_factors(equation: str, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor] | None:
    """The factors of an einsum as those of a matrix product, if it is one."""
    inputs, _, result = equation.replace(" ", "").partition("->")
    dots = "UVWXYZ"[: a.ndim - len(inputs.split(",")[0].replace("...", ""))]
    inputs, result = inputs.replace("...", dots), result.replace("...", dots)
    left, right = inputs.split(",")
    shared = [c for c in left if c in right and c in result]
    inner = [c for c in left if c in right and c not in result]
    rows = [c for c in left if c not in right]
    columns = [c for c in right if c not in left]
    if not len(inner) == len(rows) == len(columns) == 1 or b.ndim != len(right):
        return None
    batch = [c for c in "bhn" if c in shared] + [c for c in shared if c not in "bhn"]
    first = a.permute([left.index(c) for c in (*batch, *rows, *inner)])
    return first, b.permute([right.index(c) for c in (*batch, *inner, *columns)])


def _same_pairs(a: Tensor, weights: Tensor) -> bool:
    """Whether a factor is the map (or the map after dropout, or with its heads merged)."""
    return a.shape[-2:] == weights.shape[-2:] and a.numel() == weights.numel()


def _makes(product: tuple[Tensor, Tensor], scores: Tensor) -> bool:
    """Whether a product has the shape of the scores."""
    rows, columns = product
    pairs = (rows.shape[-2], columns.shape[-1])
    return pairs == tuple(scores.shape[-2:]) and (
        rows.numel() // rows.shape[-1] * columns.shape[-1] == scores.numel()
    )


Wanted = Mapping[Any, Mapping[str, tuple[Any, ...]]]
"""Kind -> keys in the store, by the number of the call (None for a module that runs once)."""


def watch(
    module: nn.Module,
    model: nn.Module,
    store: dict[Any, Any],
    wanted: Wanted,
    call: Callable[[], int | None],
) -> None:
    """Let a module write what its own code computes into the store."""
    inner = module.forward
    kinds = {k for kinds in wanted.values() for k in kinds}
    projected: dict[str, Tensor] = {}
    if not applies_rotary(module):
        _watch_projections(module, model, kinds, projected)

    def forward(*args: Any, **kwargs: Any) -> Any:
        projected.clear()
        now = wanted.get(call())
        if not now:
            return inner(*args, **kwargs)
        seen = Seen()
        with Watch(seen):
            output = inner(*args, **kwargs)
        for kind, keys in now.items():
            value = _read(seen, kind, keys[0], module, model)
            if kind in projected:
                value = _agreeing(projected[kind], value, module)
            for key in keys:
                store[key] = value
        return output

    module.forward = forward


def _agreeing(projected: Tensor, factor: Tensor, module: nn.Module) -> Tensor:
    """A projection, which is laid out as the factor of the product that it becomes."""
    if projected.shape[2] != factor.shape[2] or factor.numel() % projected.numel():
        raise ValueError(
            f"attention capture: {type(module).__name__} rearranges what it projects, from "
            f"{tuple(projected.shape)} to {tuple(factor.shape)}. Use .tap(name) on the projection."
        )
    return projected


def _watch_projections(
    module: nn.Module, model: nn.Module, kinds: set[str], projected: dict[str, Tensor]
) -> None:
    """Queries, keys and values as they are projected, where each has a projection of its own."""
    linear = projections(module)
    for kind, projection in zip(STATES, linear or (), strict=False):
        if kind in kinds and linear is not None:
            head_dim = linear[0].out_features // number_of_heads(module, model)
            projection.register_forward_hook(split_hook(projected, kind, head_dim))


def split_hook(store: dict[Any, Any], key: Any, head_dim: int) -> Callable[..., None]:
    """A hook that keeps a projection, split into heads."""

    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        del module, args
        if key in store:  # DeBERTa projects positions afterwards
            return
        heads = output.reshape(*output.shape[:-1], -1, head_dim)
        store[key] = heads.transpose(1, 2)

    return hook


def _read(seen: Seen, kind: str, key: Any, module: nn.Module, model: nn.Module) -> Tensor:
    try:
        value = seen.read(kind)
    except LookupError as error:
        raise ValueError(
            f"{kind}({key[1]}): {type(module).__name__} {error}; one softmax over [batch, head, "
            "query, key] is expected. Use .attentions[layer] (the model's own maps), or .tap(name)."
        ) from None
    if value.ndim != 3:
        return value
    return value.unflatten(0, (-1, number_of_heads(module, model)))
