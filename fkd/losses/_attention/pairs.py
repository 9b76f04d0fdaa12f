"""Masks and probabilities over (query, key) pairs, shared by the losses between tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._base.mean import divide
from .._shared.checks import covers, floating, same_shape


def attention_masks(
    loss: str,
    student: Tensor,
    teacher: Tensor,
    where: Tensor | None,
    key_where: Tensor | None,
    names: tuple[str, str] = ("student_x", "teacher_x"),
) -> tuple[Tensor | None, Tensor | None]:
    """Check the inputs; the masks of the queries and of the keys."""
    pair = {names[0]: student, names[1]: teacher}
    floating(loss, **pair)
    for name, x in pair.items():
        if x.ndim < 3:
            raise ValueError(
                f"{loss}: {name} {tuple(x.shape)}; [*batch, head, query, key] is expected. "
                "Use x.unsqueeze(-3) for a single head."
            )
    if student.shape[-3] != teacher.shape[-3] and student.shape[-2:] == teacher.shape[-2:]:
        raise ValueError(
            f"{loss}: {names[0]} has {student.shape[-3]} heads and {names[1]} has "
            f"{teacher.shape[-3]}; equal numbers are expected. Use match_heads on the larger."
        )
    same_shape(loss, **pair)
    covers(loss, where, (*student.shape[:-3], student.shape[-2]))
    return where, _key_mask(loss, student, where, key_where)


def _key_mask(
    loss: str, x: Tensor, where: Tensor | None, key_where: Tensor | None
) -> Tensor | None:
    """`[*batch, key]`: the keys that count. In self-attention these are the tokens of `where`."""
    if key_where is not None:
        covers(loss, key_where, (*x.shape[:-3], x.shape[-1]), name="key_where")
        return key_where
    if where is None or x.shape[-2] == x.shape[-1]:
        return where
    raise ValueError(
        f"{loss}: where masks the queries, and the attention {tuple(x.shape)} has {x.shape[-1]} "
        f"keys for {x.shape[-2]} queries; a mask of the keys is expected too. "
        "Pass key_where [*batch, key]."
    )


def pair_mask(x: Tensor, where: Tensor | None, key_where: Tensor | None) -> Tensor | None:
    """`[*batch, 1, query, key]`: the pairs of a query that counts and a key that counts."""
    if where is None and key_where is None:
        return None
    queries = True if where is None else where.bool()[..., None, :, None]
    keys = True if key_where is None else key_where.bool()[..., None, None, :]
    pairs = torch.ones((*x.shape[:-3], 1, *x.shape[-2:]), dtype=torch.bool, device=x.device)
    return pairs & queries & keys


def fill_pairs(x: Tensor, pairs: Tensor | None, value: float = 0.0) -> Tensor:
    """`x` where the pair counts, `value` elsewhere (so that nan and inf stay out)."""
    return x if pairs is None else x.masked_fill(~pairs, value)


def log_softmax_keys(scores: Tensor, pairs: Tensor | None) -> Tensor:
    """Log-probabilities over the keys that count, finite everywhere.

    Scores are cut at a quarter of the lowest number, and keys that do not count get half of
    it. Both have probability 0 in a row that has any other key, and a row without one is
    uniform, not nan.
    """
    lowest = torch.finfo(scores.dtype).min
    return F.log_softmax(fill_pairs(scores.clamp(min=lowest / 4), pairs, lowest / 2), dim=-1)


def normalized(probabilities: Tensor, pairs: Tensor | None) -> Tensor:
    """Probabilities over the keys that count: they sum to 1, or to 0 where no key counts."""
    p = fill_pairs(probabilities, pairs)
    return divide(p, p.sum(-1, keepdim=True))


def safe_log(p: Tensor) -> Tensor:
    """`log p`, and the logarithm of the smallest normal number (gradient 0) below that number."""
    return p.clamp(min=torch.finfo(p.dtype).tiny).log()
