"""Special tokens, such as `<unk>`, that stand for text which another tokenizer has read."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from .cut import Cut, stripped, trimmed


def with_text(cut: Cut, text: bytes) -> Cut | None:
    """A row whose special tokens take what `text` has between their neighbours.

    Args:
      cut: the row, with tokens that read nothing.
      text: the whole of it, as the other tokenizer reads it, without white space around it.

    Returns:
      None if there are no such tokens, or if the text fits in no way, or in more than one.
    """
    whole, runs = stripped(cut.pieces), list[slice]()
    for reads, group in itertools.groupby(range(len(whole)), lambda i: bool(cut.pieces[i])):
        at = list(group)
        run = slice(at[0], at[-1] + 1)
        if reads and trimmed(b"".join(whole[run])):
            runs.append(run)
    if not runs or all(cut.pieces):
        return None
    open_ends = not all(cut.pieces[: runs[0].start]), not all(cut.pieces[runs[-1].stop :])
    # As the words stand; and without white space, which some tokenizers put behind a special token.
    for pieces in ([whole[run] for run in runs], [stripped(whole[run]) for run in runs]):
        places = _places([b"".join(word) for word in pieces], text, open_ends)
        if places is not None:
            return _taking(cut, runs, pieces, places, text)
    return None


def _taking(
    cut: Cut,
    runs: Sequence[slice],
    words: Sequence[list[bytes]],
    places: Sequence[tuple[int, int]],
    text: bytes,
) -> Cut:
    """The row whose special tokens take what stands between the words."""
    pieces, special = [b""] * len(cut.pieces), list[int]()
    for run, word in zip(runs, words, strict=True):
        pieces[run] = word
    gaps = zip([0, *(r.stop for r in runs)], [*(r.start for r in runs), len(pieces)], strict=True)
    between = zip([0, *(b for _, b in places)], [*(a for a, _ in places), len(text)], strict=True)
    for (first, stop), (start, end) in zip(gaps, between, strict=True):
        nothing = [i for i in range(first, stop) if not cut.pieces[i]]
        if nothing and start < end:
            pieces[nothing[0]] = text[start:end]
            special += nothing
    return Cut.at_bytes(cut.tokens, pieces, special)


def _places(
    words: Sequence[bytes], text: bytes, open_ends: tuple[bool, bool]
) -> list[tuple[int, int]] | None:
    """Where the words stand in the text, in their order; None if that is not the only way.

    Args:
      open_ends: whether anything may stand before the first one, and after the last one.
    """
    begins, ends = not open_ends[0], not open_ends[1]
    ahead, back = list[tuple[int, int]](), list[tuple[int, int]]()
    anchored = {0: 0} if begins else {}
    if ends:
        anchored[len(words) - 1] = len(text) - len(words[-1])
    start, end = 0, len(text)
    for number, word in enumerate(words):
        at = anchored.get(number, text.find(word, start))
        ahead.append((at, start := at + len(word)))
    for number, word in reversed([*enumerate(words)]):
        at = anchored.get(number, text.rfind(word, 0, end))
        back.append((at, at + len(word)))
        end = at
    places = [0, *itertools.chain(*ahead), len(text)]
    in_order = all(a <= b for a, b in itertools.pairwise(places))
    there = all(text[a:b] == word for (a, b), word in zip(ahead, words, strict=True))
    return ahead if in_order and there and ahead == back[::-1] else None
