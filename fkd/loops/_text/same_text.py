"""One text as two tokenizers cut it: whether it is the same, and where each has a boundary."""

from __future__ import annotations

import codecs
import itertools
import re
import unicodedata
from collections.abc import Iterator

import numpy as np

from .cut import MARK, Cut, stripped, trimmed
from .stand_ins import with_text

_SPACES = re.compile(" {2,}")
_WINDOW = 16  # characters after a cut that can join those before it


def same_text(ours: Cut, theirs: Cut) -> tuple[Cut, Cut]:
    """The two with ends that can be compared: of one text, or of a text and its beginning, where
    one of the two was cut shorter.

    Raises:
      ValueError: they are not the same text.
    """
    if ours.read == theirs.read:
        return ours, theirs
    if ours.read and theirs.read:
        spaced = _without_outer_space(ours, theirs)
        pairs = [(ours, theirs), spaced, *_filled(ours, theirs)]
        forms = [(pair, (pair[0].read, pair[1].read)) for pair in pairs]
        normal = _in_normal_form(spaced[0]), _in_normal_form(spaced[1])
        forms.append((normal, (_normal(spaced[0].read), _normal(spaced[1].read))))
        for whole in (True, False):
            for pair, texts in forms:
                if _agree(*texts, whole=whole):
                    return pair
    raise ValueError(_difference(ours.read, theirs.read))


def _agree(a: bytes, b: bytes, *, whole: bool) -> bool:
    """Whether two texts are the same, or one of them is the beginning of the other."""
    return a == b if whole else a.startswith(b) or b.startswith(a)


def _without_outer_space(ours: Cut, theirs: Cut) -> tuple[Cut, Cut]:
    """Without white space around the stretches that are the same but for it: SentencePiece puts a
    space before a text, and after a special token, and some templates put one around a turn."""
    runs = list(_stretches(ours)), list(_stretches(theirs))
    pieces = list(ours.pieces), list(theirs.pieces)
    last = min(map(len, runs)) - 1
    for number, (one, other) in enumerate(zip(*runs, strict=False)):
        a, b = (b"".join(p[run]) for p, run in zip(pieces, (one, other), strict=True))
        bare = [_normal(trimmed(x)) for x in (a, b)]
        whole = bare[0] == bare[1]
        # The last stretch may go on in one of the two: then only what stands before it is left out.
        if a != b and (whole or (number == last and _agree(bare[0], bare[1], whole=False))):
            for side, run in zip(pieces, (one, other), strict=True):
                side[run] = stripped(side[run], end=whole)
    return Cut.at_bytes(ours.tokens, pieces[0]), Cut.at_bytes(theirs.tokens, pieces[1])


def _filled(ours: Cut, theirs: Cut) -> Iterator[tuple[Cut, Cut]]:
    """With the text for which special tokens of one side stand, where only one text fits."""
    bare = [Cut.at_bytes(cut.tokens, stripped(cut.pieces)) for cut in (ours, theirs)]
    if (filled := with_text(ours, bare[1].read)) is not None:
        yield filled, bare[1]
    if (filled := with_text(theirs, bare[0].read)) is not None:
        yield bare[0], filled


def _stretches(text: Cut) -> Iterator[slice]:
    """Tokens that stand side by side and read something."""
    at = np.flatnonzero(text.reads)
    if not len(at):
        return
    gaps = np.flatnonzero((np.diff(at) > 1) | (np.diff(text.tokens[at]) > 1)) + 1
    for run in np.split(at, gaps):
        yield slice(int(run[0]), int(run[-1]) + 1)


def _characters(read: bytes) -> str | None:
    """The characters of bytes, without one that is cut off at the end; None if they are no text."""
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(read)
    except UnicodeDecodeError:
        return None


def _normal_of(text: str) -> str:
    """One form for all: NFKC, a space for the letter by which SentencePiece writes one, and one
    for several, which T5 and others make of them."""
    return _SPACES.sub(" ", unicodedata.normalize("NFKC", text.replace(MARK, " ")))


def _normal(read: bytes) -> bytes:
    text = _characters(read)
    return read if text is None else _normal_of(text).encode()


def _in_normal_form(text: Cut) -> Cut:
    """With ends counted in the normal form; a token that ends inside of a character, or before one
    that joins it, ends at no boundary. As it is, for bytes that are no text."""
    whole = _characters(text.read)
    if whole is None:
        return text
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
