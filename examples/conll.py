"""Files of tagged words as in CoNLL-2003, and the F1 score of entities as conlleval defines it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor


def read(path: str | Path) -> dict[str, list[list[str]]]:
    """Sentences of a file: a word a line, its tag in the last column, an empty line between them.

    IOB1, IOB2 and IOBES are read, and IOB2 is returned.

    Raises:
      ValueError: a line has other columns than the first one; it is named.
    """
    words: list[list[str]] = [[]]
    tags: list[list[str]] = [[]]
    width = 0
    for number, line in enumerate([*Path(path).read_text("utf-8").splitlines(), ""], start=1):
        cells = line.split()
        if not cells or cells[0] == "-DOCSTART-":
            if words[-1]:
                tags[-1] = iob2(tags[-1])
                words.append([])
                tags.append([])
            continue
        width = width or len(cells)
        if len(cells) != width or width < 2:
            raise ValueError(
                f"{path}:{number}: {len(cells)} columns; {max(width, 2)} are expected, the word in "
                "the first and the tag in the last."
            )
        words[-1].append(cells[0])
        tags[-1].append(cells[-1])
    return {"tokens": words[:-1], "tags": tags[:-1]}


def split_tag(tag: str) -> tuple[str, str]:
    """`"B-PER"` as `("B", "PER")`; a tag without a prefix is the type of an entity."""
    prefix, dash, kind = tag.partition("-")
    return ("O", "") if tag == "O" else (prefix, kind) if dash else ("I", tag)


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """The entities `(type, first word, last word)` of a sentence, as conlleval finds them: an
    I- tag goes on with the entity before it if that has the same type, and else begins one."""
    found: set[tuple[str, int, int]] = set()
    begin, before = 0, ("O", "")
    for i, tag in enumerate([*tags, "O"]):
        prefix, kind = split_tag(tag)
        inside = before[0] != "O"
        starts = prefix in "BSU" or kind != before[1] or before[0] in "ELSU" or not inside
        if inside and (prefix == "O" or starts):
            found.add((before[1], begin, i - 1))
        if prefix != "O" and starts:
            begin = i
        before = (prefix, kind)
    return found


def iob2(tags: Sequence[str]) -> list[str]:
    """The same entities with a B- tag at the beginning of each."""
    made = ["O"] * len(tags)
    for kind, first, last in entities(tags):
        made[first : last + 1] = [f"B-{kind}"] + [f"I-{kind}"] * (last - first)
    return made


def first_tokens(word_of_token: Iterable[int | None], words: int) -> list[int]:
    """Where each word begins among the tokens; -1 of a word that was cut off, or has none."""
    found = [-1] * words
    for place, word in enumerate(word_of_token):
        if word is not None and found[word] < 0:
            found[word] = place
    return found


def at_tokens(
    tags: Sequence[str], places: Sequence[int], names: Sequence[str], length: int
) -> list[int]:
    """The class of every token of a sentence: of a word at its first token, and -100 elsewhere."""
    at = {place: names.index(tag) for place, tag in zip(places, tags, strict=True) if place >= 0}
    return [at.get(place, -100) for place in range(length)]


def entity_scores(
    gold: Sequence[Sequence[str]],
    places: Sequence[Sequence[int]],
    names: Sequence[str],
    predicted: Iterable[Tensor],
    index: Iterable[Tensor],
) -> dict[str, float]:
    """Precision, recall and F1 of entities over sentences.

    Args:
      gold: the tags of every sentence.
      places: where each of their words begins; see `first_tokens`. Words without a token count as
        predicted outside of any entity.
      names: of the classes.
      predicted: of every batch the class of every token, `[batch, length]`.
      index: of every batch the numbers of its sentences, `[batch]`; negative for empty rows.
    """
    hits = found = there = 0
    for rows, numbers in zip(predicted, index, strict=True):
        for row, number in zip(rows.tolist(), numbers.tolist(), strict=True):
            if number < 0:
                continue
            guess = ["O" if place < 0 else names[row[place]] for place in places[number]]
            ours, theirs = entities(guess), entities(gold[number])
            hits, found, there = hits + len(ours & theirs), found + len(ours), there + len(theirs)
    scores = {"precision": hits / max(found, 1), "recall": hits / max(there, 1)}
    return {**scores, "f1": 2 * hits / max(found + there, 1)}
