"""What functions of this room are given: refused in words, before it is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fkd._base.errors import expect

from .tokens import Tokens


def expect_tokens(function: str, value: Any, place: str) -> None:
    """Refuse what is no `Tokens`, and one whose labels are not of its ids.

    Raises:
      TypeError: it is something else, such as the ids alone.
      ValueError: ids and labels of different lengths.
    """
    fix = "Tokens(ids, labels), two lists, is what chat_tokens and completion_tokens make."
    expect(function, place, value, Tokens, "a Tokens", fix)
    for name, part in zip(("ids", "labels"), value, strict=True):
        expect(function, f"{name} of {place}", part, Sequence, "a list of numbers", fix)
    if len(value.ids) != len(value.labels):
        raise ValueError(
            f"{function}: {place} has {len(value.ids)} ids and {len(value.labels)} labels; a "
            "label for each id is expected, -100 where none counts."
        )


def expect_pad(function: str, pad: Any) -> None:
    """Refuse a padding token that is none.

    Raises:
      TypeError: such as the None of a tokenizer without one.
    """
    fix = "A tokenizer without one: pad=tokenizer.eos_token_id, since padding never counts."
    expect(function, "pad", pad, int, "the id of a token", fix)


def expect_lengths(function: str, length: Any) -> list[int]:
    """The lengths that a batch may have, in a list.

    Raises:
      TypeError: no whole numbers.
      ValueError: none, or one less than 1.
    """
    lengths: list[Any] = list(length) if isinstance(length, list | tuple) else [length]
    for one in lengths:
        expect(function, "length", one, int, "a whole number of tokens, or several,")
    if not lengths or min(lengths) < 1:
        raise ValueError(f"{function}: length is {length}; at least 1 is expected.")
    return lengths


def expect_rows(function: str, **tensors: Any) -> None:
    """Refuse all but tensors on the CPU of one number of rows, `[rows, length]`."""
    for name, x in tensors.items():
        expect(function, name, x, Tensor, "a tensor [rows, length]")
        if x.device.type != "cpu":
            raise ValueError(
                f"{function}: {name} is on {x.device}; tensors on the CPU are expected. Call it "
                "in collate_fn."
            )
    shapes = [tuple(x.shape) for x in tensors.values()]
    if any(len(shape) != 2 for shape in shapes) or len({shape[0] for shape in shapes}) > 1:
        shown = " and ".join(map(str, shapes))
        raise ValueError(f"{function}: {shown}; [rows, length] of the same rows is expected.")


def expect_bytes(function: str, **tables: Any) -> None:
    """Refuse what is not what `token_bytes` gives.

    Raises:
      TypeError: the tokenizer itself, say.
    """
    for name, table in tables.items():
        expect(function, name, table, (list, tuple), "token_bytes(tokenizer)")
