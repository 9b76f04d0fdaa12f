r"""Distil a BERT-like tagger of words (named entities) into one with fewer or narrower layers.

First a teacher, then its student:

    python examples/distill_ner.py --finetune --teacher bert-base-uncased \
        --train eng.train --dev eng.testa --out runs/tagger
    python examples/distill_ner.py --teacher runs/tagger/student --student-layers 3 \
        --train eng.train --dev eng.testa --test eng.testb --out runs/small-tagger

The flags are those of `distill_bert.py`. Files are in columns as in CoNLL-2003: a word a line, its
tag in the last column, an empty line after each sentence (`--word-column`, `--tag-column`); or
JSON lines with "tokens" and "tags"; or `datasets:NAME:SPLIT`. The tag `_`, or a file with one
column only, is unlabelled. IOB1, IOB2 and IOBES are read, and IOB2 is learnt. A tag counts at
the first token of its word, and so do the logits.

The dev metric is the F1 score of entities as conlleval defines it; words beyond `--max-length`
count as predicted outside of any entity.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from _batches import encode
from _distill import Task, command
from _flags import flags
from _text import (
    UNLABELLED,
    Columns,
    DataError,
    Example,
    decoded,
    gather,
    is_json,
    label_id,
    read,
)
from torch import Tensor
from transformers import AutoModelForTokenClassification

import fkd
from fkd import batch, student

NO_TAG = "_"


def arguments() -> ArgumentParser:
    parser = flags(__doc__)
    group = parser.add_argument_group("columns (numbers from 0, or from the end: -1 is the last)")
    group.add_argument("--word-column", type=int, default=0)
    group.add_argument("--tag-column", type=int, default=-1)
    group.add_argument("--tokens-field", help="of JSON lines; default: tokens, text, ...")
    group.add_argument("--tags-field", help="of JSON lines; default: tags, ner_tags, labels, ...")
    return parser


# Files.


def read_sentences(source: str, args: Namespace) -> list[Example]:
    if source.startswith("datasets:") or is_json(source):
        flags = ("--tokens-field", "--tags-field")
        columns = Columns(args.tokens_field, args.tags_field, flags=flags)
        found = (_checked(e) for e in read(source, columns, skip_broken=args.skip_broken))
    else:
        found = _columns(source, args.word_column, args.tag_column)
    return gather(found, source, skip_broken=args.skip_broken)


def _checked(example: Example) -> Example | DataError:
    words, tags = example.text, example.label
    if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
        return DataError(f"{example.place}: a list of words is expected, not {str(words)[:40]!r}")
    tags = [None] * len(words) if tags is None else tags
    if not isinstance(tags, list):
        return DataError(f"{example.place}: the tags are {tags!r}; a list of them is expected")
    if len(tags) != len(words):
        return DataError(f"{example.place}: {len(words)} words and {len(tags)} tags")
    if any(isinstance(t, int) for t in tags):  # class numbers, which `named` replaces
        return example._replace(label=[None if t in (None, -100) else str(t) for t in tags])
    return example._replace(label=iob2([None if t in (None, NO_TAG) else str(t) for t in tags]))


def _columns(path: str, word: int, tag: int) -> Iterator[Example | DataError]:
    """Sentences of a file in columns; a broken line breaks its sentence."""
    lines = [line.split("\t") if "\t" in line else line.split() for line in _lines(path)]
    width = Counter(map(len, filter(None, lines))).most_common(1)[0][0] if any(lines) else 1
    if width == 1 and path.endswith(".csv"):
        raise DataError(f"{path}: columns with white space between them are expected, no CSV.")
    found, broken = [], None
    for number, cells in enumerate([*lines, []], start=1):
        if cells:
            if not -width <= word < width or not -width <= tag < width:
                raise DataError(
                    f"{path}:{number}: {width} columns; --word-column or --tag-column is beyond."
                )
            if len(cells) != width or not all(cell.strip() for cell in cells):
                text = f"{len(cells)} columns, where most lines have {width}"
                broken = broken or DataError(f"{path}:{number}: {text}")
            found.append((number, cells))
        elif found:
            tags = [c[tag] if width > 1 and not broken else NO_TAG for _, c in found]
            tags = iob2([None if t == NO_TAG else t for t in tags])
            words = [c[word] for _, c in found] if not broken else []
            yield broken or Example(words, tags, f"{path}:{found[0][0]}")
            found, broken = [], None


def _lines(path: str) -> list[str]:
    """The lines of a file, empty for what is neither a word nor part of a sentence."""
    lines = decoded(path).splitlines()
    other = [x.startswith("-DOCSTART-") or (x.startswith("# ") and " = " in x) for x in lines]
    return ["" if no else line for no, line in zip(other, lines, strict=True)]


# Entities.


def named(example: Example, names: Sequence[str]) -> list[str | None]:
    """The tags of a sentence by their names, where a file has the numbers of the classes."""
    tags = example.label
    if not any(tag is not None and tag.isdigit() for tag in tags):
        return tags
    if all(name.isdigit() for name in names):
        raise DataError(
            f"{example.place}: the tags are numbers. Say what they stand for: --label-names O,..."
        )
    ids = [label_id(tag, names, example.place) for tag in tags]
    return iob2([None if i == UNLABELLED else names[i] for i in ids])


def split_tag(tag: str | None) -> tuple[str, str]:
    """`"B-PER"` as `("B", "PER")`; a tag without a prefix is the type of an entity."""
    if tag in (None, "O", NO_TAG):
        return "O", ""
    prefix, dash, kind = tag.partition("-")
    return (prefix, kind) if dash else ("I", tag)


def entities(tags: Sequence[str | None]) -> set[tuple[str, int, int]]:
    """The entities `(type, first word, last word)` of a sentence, as conlleval finds them: an
    I- tag goes on with the entity before it if that has the same type, and else begins one."""
    found: set[tuple[str, int, int]] = set()
    begin, before = 0, ("O", "")
    for i, tag in enumerate([*tags, None]):
        prefix, kind = split_tag(tag)
        inside = before[0] != "O"
        starts = prefix in "BSU" or kind != before[1] or before[0] in "ELSU" or not inside
        if inside and (prefix == "O" or starts):
            found.add((before[1], begin, i - 1))
        if prefix != "O" and starts:
            begin = i
        before = (prefix, kind)
    return found


def iob2(tags: Sequence[str | None]) -> list[str | None]:
    """The same entities with a B- tag at the beginning of each; None stays None."""
    made = [None if tag is None else "O" for tag in tags]
    for kind, first, last in entities(tags):
        made[first : last + 1] = [f"B-{kind}"] + [f"I-{kind}"] * (last - first)
    return made


def entity_scores(
    examples: Sequence[Example],
    names: Sequence[str],
    predicted: list[Tensor],
    words: list[Tensor],
    index: list[Tensor],
) -> dict[str, float]:
    """Precision, recall and F1 of entities over all sentences that have tags."""
    hits = found = there = 0
    for tags, firsts, numbers in zip(predicted, words, index, strict=True):
        for row, first, number in zip(tags, firsts, numbers.tolist(), strict=True):
            if number < 0 or None in examples[number].label:
                continue
            gold = named(examples[number], names)
            guess = ["O"] * len(gold)  # of words beyond the length, or without any token
            for tag, word in zip(row.tolist(), first.tolist(), strict=True):
                if word:
                    guess[word - 1] = names[tag]
            ours, theirs = entities(guess), entities(gold)
            hits, found, there = hits + len(ours & theirs), found + len(ours), there + len(theirs)
    scores = {"precision": hits / max(found, 1), "recall": hits / max(there, 1)}
    return {**scores, "f1": 2 * hits / max(found + there, 1)}


# The task.


def rows(
    examples: Sequence[Example], tokenizer: Any, names: Sequence[str], args: Namespace
) -> list[dict[str, Any]]:
    """Token numbers, and at the first token of each word its class and its number from 1;
    elsewhere UNLABELLED and 0."""
    if not tokenizer.is_fast:
        raise DataError(
            "this tokenizer does not say which word a token is of; a fast one is needed."
        )
    made = []
    for number, (row, example) in enumerate(
        zip(encode(tokenizer, examples, args.max_length), examples, strict=True)
    ):
        place = row.pop("word_ids")
        first = [
            w is not None and w != before for w, before in zip(place, [None, *place], strict=False)
        ]
        ids = [
            label_id(tag, names, f"{example.place}, word {w}")
            for w, tag in enumerate(named(example, names), start=1)
        ]
        made.append({
            **row,
            "labels": [ids[w] if f else UNLABELLED for f, w in zip(first, place, strict=True)],
            "words": [w + 1 if f else 0 for f, w in zip(first, place, strict=True)],
            "index": number,
        })  # fmt: skip
    return made


def metrics(examples: Sequence[Example], names: Sequence[str]) -> dict[str, Any]:
    return {
        "entities": fkd.loops.collect(
            lambda *columns: entity_scores(examples, names, *columns),
            fkd.call(lambda logits: logits.argmax(-1), student.logits),
            batch.words,
            batch.index,
        )
    }


TASK = Task(
    auto=AutoModelForTokenClassification,
    read=read_sentences,
    rows=rows,
    metrics=metrics,
    best="entities/f1",
    positions=batch.words,
    flag="--tag-column, or --tags-field",
)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    return command(arguments().parse_args(argv), TASK)


if __name__ == "__main__":
    main()
