"""One text as two tokenizers cut it: whether it is the same, and where each has a boundary."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

_WINDOW = 16  # characters after a cut that can join those before it


class Cut(NamedTuple):
    """The text of a row, as one tokenizer cuts it.

    Attributes:
      tokens: the columns of its tokens.
      pieces: what each of them reads; special tokens read nothing.
      token_ends: how much of the text is read after each token, where that is a boundary; else
        how much is read at the next one.
      is_end: whether a token ends at a boundary.
    """

    tokens: np.ndarray
    pieces: list[bytes]
    token_ends: np.ndarray
    is_end: np.ndarray

    @classmethod
    def of(cls, ids: np.ndarray, where: np.ndarray, table: Sequence[bytes]) -> Cut:
        """A row of ids. Ids behind the tokenizer's last one, which a model with a padded
        vocabulary can write, read nothing."""
        tokens = np.flatnonzero(where)
        size = len(table)
        pieces = [table[i] if 0 <= i < size else b"" for i in ids[tokens].tolist()]
        return cls.at_bytes(tokens, pieces)

    @classmethod
    def at_bytes(cls, tokens: np.ndarray, pieces: list[bytes]) -> Cut:
        """With a boundary after every token that reads something."""
        sizes = np.array([len(piece) for piece in pieces], dtype=np.int64)
        return cls(tokens, pieces, np.cumsum(sizes), sizes > 0)

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


def same_text(ours: Cut, theirs: Cut) -> tuple[Cut, Cut]:
    """The two with ends that can be compared.

    Raises:
      ValueError: they are not the same text.
    """
    if ours.read == theirs.read:
        return ours, theirs
    a, b = _without_outer_space(ours, theirs)
    if a.read == b.read:
        return a, b
    normal = _normal_ends(a), _normal_ends(b)
    if normal[0] is None or normal[1] is None or _normal(a.read) != _normal(b.read):
        raise ValueError(_difference(ours.read, theirs.read))
    return normal[0], normal[1]


def _without_outer_space(ours: Cut, theirs: Cut) -> tuple[Cut, Cut]:
    """Without white space around the stretches that differ in nothing else: SentencePiece puts a
    space before a text, and after a special token, and some templates put one around a turn."""
    runs = list(_stretches(ours)), list(_stretches(theirs))
    if len(runs[0]) != len(runs[1]):
        return ours, theirs
    pieces = list(ours.pieces), list(theirs.pieces)
    for one, other in zip(*runs, strict=True):
        a, b = (b"".join(p[run]) for p, run in zip(pieces, (one, other), strict=True))
        if a != b and a.strip() == b.strip():
            for side, run in zip(pieces, (one, other), strict=True):
                side[run] = _stripped(side[run])
    return Cut.at_bytes(ours.tokens, pieces[0]), Cut.at_bytes(theirs.tokens, pieces[1])


def _stretches(text: Cut) -> Iterator[slice]:
    """Tokens that stand side by side and read something."""
    at = np.flatnonzero(text.reads)
    if not len(at):
        return
    gaps = np.flatnonzero((np.diff(at) > 1) | (np.diff(text.tokens[at]) > 1)) + 1
    for run in np.split(at, gaps):
        yield slice(int(run[0]), int(run[-1]) + 1)


def _stripped(pieces: Sequence[bytes]) -> list[bytes]:
    """Pieces without the white space at the two ends of what they are together."""
    whole = b"".join(pieces)
    start = len(whole) - len(whole.lstrip())
    end = max(len(whole.rstrip()), start)
    bounds = [0, *itertools.accumulate(map(len, pieces))]
    return [whole[max(a, start) : max(min(b, end), start)] for a, b in itertools.pairwise(bounds)]


def _normal(read: bytes) -> str:
    """A text in one form for all: NFKC, and a space for the letter by which SentencePiece writes
    one."""
    return unicodedata.normalize("NFKC", read.decode().replace("\u2581", " "))


def _normal_ends(text: Cut) -> Cut | None:
    """Ends counted in the normal form; a token that ends inside of a character, or before one that
    joins it, ends at no boundary. None for bytes that are no text."""
    try:
        whole = text.read.decode()
    except UnicodeDecodeError:
        return None
    place = dict(zip(itertools.accumulate(len(c.encode()) for c in whole), itertools.count(1)))
    ends, at_boundary = np.zeros_like(text.token_ends), np.zeros_like(text.is_end)
    read = start = 0  # in the normal form, and in characters
    for i, end in enumerate(np.where(text.is_end, text.token_ends, -1).tolist()):
        cut = place.get(end)
        if cut is None:
            continue
        left, right = whole[start:cut], whole[cut : cut + _WINDOW]
        joined, apart = _normal_of(left + right), _normal_of(left) + _normal_of(right)
        if joined == apart:
            read, start = read + len(_normal_of(left)), cut
            ends[i], at_boundary[i] = read, True
    following = ends[::-1].copy()
    following[following == 0] = np.iinfo(np.int64).max
    return text._replace(token_ends=np.minimum.accumulate(following)[::-1], is_end=at_boundary)


def _normal_of(text: str) -> str:
    return _normal(text.encode())


def _difference(ours: bytes, theirs: bytes) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
        min(len(ours), len(theirs)),
    )
    near = slice(max(at - 10, 0), at + 10)
    return (
        f"the texts are not the same bytes: from byte {at} on, the student's has {ours[near]!r} "
        f"and the teacher's {theirs[near]!r} (with 10 bytes before). Give where=True only for the "
        "tokens of the text that both have; a tokenizer that changes the text (lower case, "
        "unknown characters) cannot be aligned."
    )
