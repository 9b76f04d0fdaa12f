"""The text of a row, as one tokenizer cuts it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MARK = "\u2581"
"""The letter by which SentencePiece writes a space."""


class Cut(NamedTuple):
    """The text of a row, as one tokenizer cuts it.

    Attributes:
      tokens: the columns of its tokens.
      pieces: what each of them reads; special tokens read nothing.
      token_ends: how much of the text is read after each token, where that is a boundary; else
        how much is read at the next one.
      is_end: whether a token ends at a boundary.
      stands_in: whether a special token, such as `<unk>`, stands for text that the other has.
    """

    tokens: np.ndarray
    pieces: list[bytes]
    token_ends: np.ndarray
    is_end: np.ndarray
    stands_in: np.ndarray

    @classmethod
    def of(cls, ids: np.ndarray, where: np.ndarray, table: Sequence[bytes]) -> Cut:
        """A row of ids. Ids behind the tokenizer's last one, which a model with a padded
        vocabulary can write, read nothing."""
        tokens = np.flatnonzero(where)
        size = len(table)
        pieces = [table[i] if 0 <= i < size else b"" for i in ids[tokens].tolist()]
        return cls.at_bytes(tokens, pieces)

    @classmethod
    def at_bytes(
        cls, tokens: np.ndarray, pieces: list[bytes], stands_in: Sequence[int] = ()
    ) -> Cut:
        """With a boundary after every token that reads something."""
        sizes = np.array([len(piece) for piece in pieces], dtype=np.int64)
        special = np.isin(np.arange(len(pieces)), stands_in)
        return cls(tokens, pieces, np.cumsum(sizes), sizes > 0, special)

    @property
    def read(self) -> bytes:
        """The bytes of the text."""
        return b"".join(self.pieces)

    @property
    def reads(self) -> np.ndarray:
        """Whether a token reads something."""
        return np.array([len(piece) > 0 for piece in self.pieces], dtype=bool)

    @property
    def ends(self) -> np.ndarray:
        """The boundaries: before the first token, where a token stands there, and after others."""
        start = np.zeros(len(self._before), dtype=np.int64)
        return np.concatenate([start, self.token_ends[self.is_end]])

    @property
    def after(self) -> np.ndarray:
        """The columns after which these are."""
        return np.concatenate([self._before, self.tokens[self.is_end]])

    @property
    def _before(self) -> np.ndarray:
        first = self.tokens[:1] - 1
        return first[first >= 0]  # what stands before the text predicts its first token


def stripped(pieces: Sequence[bytes], *, end: bool = True) -> list[bytes]:
    """Pieces without the white space at the two ends of what they are together.

    Args:
      pieces: of a text.
      end: at its end, too, and not only at its start.
    """
    whole = b"".join(pieces)
    start, stop = _inner(whole)
    stop = stop if end else len(whole)
    bounds = [0, *itertools.accumulate(map(len, pieces))]
    return [whole[max(a, start) : max(min(b, stop), start)] for a, b in itertools.pairwise(bounds)]


def trimmed(text: bytes) -> bytes:
    """A text without white space around it, SentencePiece's letter for a space included."""
    start, stop = _inner(text)
    return text[start:stop]


def _inner(text: bytes) -> tuple[int, int]:
    mark, start, stop = MARK.encode(), 0, len(text)
    while start < stop and (text[start : start + 1].isspace() or text.startswith(mark, start)):
        start += 1 if text[start : start + 1].isspace() else len(mark)
    while stop > start and (text[stop - 1 : stop].isspace() or text.endswith(mark, start, stop)):
        stop -= 1 if text[stop - 1 : stop].isspace() else len(mark)
    return start, stop
