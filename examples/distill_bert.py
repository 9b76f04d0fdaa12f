r"""Distil a BERT-like text classifier into one with fewer or narrower layers.

First a teacher, then its student:

    python examples/distill_bert.py --finetune --teacher bert-base-uncased \
        --train train.tsv --dev dev.tsv --out runs/teacher
    python examples/distill_bert.py --teacher runs/teacher/student --student-layers 3 \
        --train train.tsv --dev dev.tsv --test test.tsv --out runs/student

The student starts from layers of its teacher (or `--fresh`, with `--student-hidden` of any
size) and learns from five terms, each with a weight: `--embedding`, `--hidden`, `--attention`,
`--logits` and `--labels`. `runs/student/student` loads with transformers' `from_pretrained`, and
needs no fkd. Run the same command again to go on with a run that was interrupted. On several
devices: `torchrun --nproc-per-node 2 examples/distill_bert.py ...`, with the same arguments.

Data: TSV, CSV or JSON lines (also `.gz`), with or without a header, or `datasets:NAME:SPLIT`.
Without a header the first column is the text and the second the label; otherwise columns are found
by their names, or named by `--text-column` and `--label-column`. Rows without a label are used for
all terms but `--labels`. A broken row is an error that names file and line, or `--skip-broken`.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import Any

from _batches import encode
from _distill import Task, command
from _flags import delimiter, flags
from _text import UNLABELLED, Columns, DataError, Example, label_id, read
from torch import Tensor
from transformers import AutoModelForSequenceClassification

import fkd
from fkd import batch, student
from fkd.metrics import accuracy


def arguments() -> ArgumentParser:
    parser = flags(__doc__)
    group = parser.add_argument_group("columns (names, or numbers from 0)")
    group.add_argument(
        "--text-column", help="default: sentence, text, ...; the first one without a header"
    )
    group.add_argument(
        "--label-column", help="default: label, class, ...; the second one without a header"
    )
    group.add_argument(
        "--pair-column",
        help="a second text (default: hypothesis beside premise, sentence2 beside sentence1, "
        "sentence beside question; '' for none)",
    )
    group.add_argument("--header", choices=["auto", "yes", "no"], default="auto")
    group.add_argument(
        "--delimiter", type=delimiter, help="default: a comma in .csv files, otherwise a tab"
    )
    return parser


def read_texts(source: str, args: Namespace) -> list[Example]:
    if args.label_column and args.label_column == args.text_column:
        raise DataError(f"--label-column {args.label_column} is the column of the text.")
    columns = Columns(
        args.text_column, args.label_column, args.pair_column, args.header, args.delimiter
    )
    return read(source, columns, skip_broken=args.skip_broken)


def rows(
    examples: Sequence[Example], tokenizer: Any, names: Sequence[str], args: Namespace
) -> list[dict[str, Any]]:
    """Token numbers and the class of every text."""
    encoded = encode(tokenizer, examples, args.max_length)
    made = []
    for row, example in zip(encoded, examples, strict=True):
        row.pop("word_ids", None)
        made.append({**row, "labels": label_id(example.label, names, example.place)})
    return made


def metrics(examples: Sequence[Example], names: Sequence[str]) -> dict[str, Any]:
    return {
        "accuracy": fkd.metric(accuracy, student.logits, batch.labels, where=has_label),
        "f1": fkd.loops.collect(
            lambda *columns: macro_f1(*columns, len(names)),
            fkd.call(lambda logits: logits.argmax(-1), student.logits),
            batch.labels,
        ),
    }


has_label = fkd.call(lambda labels: labels != UNLABELLED, batch.labels)


def macro_f1(predicted: list[Tensor], labels: list[Tensor], classes: int) -> float:
    """The mean of the F1 scores of the classes that occur."""
    pairs = list(zip(predicted, labels, strict=True))
    scores = []
    for c in range(classes):
        hits = sum(int(((p == c) & (y == c)).sum()) for p, y in pairs)
        found = sum(int(((p == c) & (y != UNLABELLED)).sum()) for p, y in pairs)
        there = sum(int((y == c).sum()) for _, y in pairs)
        if found or there:
            scores.append(2 * hits / (found + there))
    return sum(scores) / max(len(scores), 1)


TASK = Task(
    auto=AutoModelForSequenceClassification,
    read=read_texts,
    rows=rows,
    metrics=metrics,
    best="accuracy",
    positions=batch.valid,
)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    return command(arguments().parse_args(argv), TASK)


if __name__ == "__main__":
    main()
