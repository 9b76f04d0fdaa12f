"""What the text examples share: reading files and naming labels.

A row that cannot be used (fewer or more columns than the others, no text, JSON that does not
parse) is an error that names the file and the line; `--skip-broken` leaves such rows out and says
how many. An empty label, or none at all, is no mistake: the row is unlabelled.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

UNLABELLED = -100
TEXT_NAMES = ("sentence", "text", "sentence1", "review", "content", "question", "premise", "tokens")
LABEL_NAMES = ("label", "labels", "class", "target", "category", "gold_label", "ner_tags", "tags")


class DataError(ValueError):
    """Something is wrong with a file or a row; the message names it."""


class Example(NamedTuple):
    """A row of a data set: a text (or words), perhaps its label (or tags), and where it is."""

    text: Any
    label: Any
    place: str
    pair: str | None = None


class Columns(NamedTuple):
    """Which columns of a table, or fields of JSON lines, to use; None: found by their names."""

    text: str | None = None
    label: str | None = None
    pair: str | None = None
    header: str = "auto"
    delimiter: str | None = None


# Files.


def read(source: str, columns: Columns, *, skip_broken: bool = False) -> list[Example]:
    """The examples of a file, or of a `datasets` split: `datasets:NAME:SPLIT[:CONFIG]`."""
    if source.startswith("datasets:"):
        found = _dataset(source)
    elif source.endswith((".json", ".jsonl", ".ndjson")):
        found = _json_rows(source)
    else:
        found = _table(source, columns)
    return gather(_examples(source, found, columns), source, skip_broken=skip_broken)


def gather(
    found: Iterable[Example | DataError], source: str, *, skip_broken: bool
) -> list[Example]:
    """The usable rows; broken ones are an error, or are counted and left out."""
    kept: list[Example] = []
    broken: list[DataError] = []
    for item in found:
        broken.append(item) if isinstance(item, DataError) else kept.append(item)
    if broken and not skip_broken:
        more = f" ({len(broken)} broken rows in all)" if len(broken) > 1 else ""
        raise DataError(f"{broken[0]}{more}. Mend the file, or leave such rows out: --skip-broken.")
    if broken:
        print(f"{source}: left out {len(broken)} broken rows, the first of them: {broken[0]}")
    if not kept:
        raise DataError(f"{source}: there is not one row in it.")
    return kept


def decoded(path: str) -> str:
    """A whole UTF-8 file."""
    if not Path(path).is_file():
        raise DataError(
            f"{path}: there is no such file. (A data set of the `datasets` package is written "
            "datasets:NAME:SPLIT.)"
        )
    data = Path(path).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: not UTF-8 ({error.reason}). Convert the file.") from None


Found = Iterator[tuple[str, Mapping[str, Any] | str]]
"""Where a row is, and its fields by name; or what is wrong with it."""


def _table(path: str, columns: Columns) -> Found:
    """Rows of TSV (no quotes) or CSV."""
    comma = path.endswith(".csv")
    delimiter = columns.delimiter or ("," if comma else "\t")
    quoting = csv.QUOTE_MINIMAL if comma else csv.QUOTE_NONE
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(
        io.StringIO(decoded(path), newline=""), delimiter=delimiter, quoting=quoting, strict=True
    )
    try:
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: {error}.") from None
    if not rows:
        return
    names = _header(path, [row for _, row in rows], columns)
    for line, row in rows[0 if names[0] == "0" else 1 :]:
        if len(row) == len(names):
            yield f"{path}:{line}", dict(zip(names, row, strict=True))
        else:
            yield f"{path}:{line}", f"{len(row)} columns, where the first line has {len(names)}"


def _header(path: str, rows: list[list[str]], columns: Columns) -> list[str]:
    """The names of the columns: those of the first line, or "0", "1", ... if it is no header."""
    first = [cell.strip() for cell in rows[0]]
    numbered = [str(i) for i in range(len(first))]
    given = [c for c in (columns.text, columns.label, columns.pair) if c and not c.isdigit()]
    if columns.header == "no":
        return numbered
    if columns.header == "yes" or given or {c.lower() for c in first} & {*TEXT_NAMES}:
        return first
    labels = [row[1] for row in rows if len(row) > 1]
    if columns.text is None and len(labels) > 4 and labels.count(labels[0]) == 1:
        raise DataError(
            f"{path}:1: {first} looks like a header that is not known. Name the columns "
            "(--text-column, --label-column), or say --header no."
        )
    return numbered


def _json_rows(path: str) -> Found:
    """JSON lines, or one JSON list."""
    text = decoded(path)
    if text.lstrip().startswith("["):
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg}).") from None
        lines = [(f"{path}: item {i}", value) for i, value in enumerate(values)]
    else:
        numbered = enumerate(text.split("\n"), start=1)
        lines = [(f"{path}:{n}", line) for n, line in numbered if line.strip()]
    for place, line in lines:
        try:
            value = json.loads(line) if isinstance(line, str) else line
        except json.JSONDecodeError as error:
            yield place, f"not JSON ({error.msg})"
            continue
        yield (
            place,
            value if isinstance(value, dict) else f"a JSON {type(value).__name__}, no object",
        )


def _dataset(source: str) -> Found:
    """A split of a data set, class numbers replaced by their names."""
    try:
        import datasets
    except ImportError:
        raise DataError(f"{source}: needs the package `datasets` (pip install datasets).") from None
    name, split, *config = source.removeprefix("datasets:").split(":")
    loaded = datasets.load_dataset(name, *config, split=split)
    named = {n: f.int2str for n, f in loaded.features.items() if hasattr(f, "int2str")}
    for n, f in loaded.features.items():
        inner = getattr(f, "feature", None)
        if hasattr(inner, "int2str"):
            named[n] = lambda values, one=inner.int2str: [one(v) for v in values]
    for i, row in enumerate(loaded):
        # -1 is how hidden test labels are marked.
        yield (
            f"{source}: row {i}",
            {n: None if v == -1 else named[n](v) if n in named else v for n, v in row.items()},
        )


def _examples(source: str, found: Found, columns: Columns) -> Iterator[Example | DataError]:
    """The chosen fields of each row."""
    chosen: tuple[str, str | None, str | None] | None = None
    for place, row in found:
        if isinstance(row, str):
            yield DataError(f"{place}: {row}")
            continue
        if chosen is None:
            chosen = _chosen(source, list(row), columns)
        text, label, pair = (None if c is None else row.get(c) for c in chosen)
        if (
            not isinstance(text, str | list)
            or not text
            or (isinstance(text, str) and not text.strip())
        ):
            yield DataError(f"{place}: no text in column {chosen[0]!r}")
        elif chosen[2] is not None and not isinstance(pair, str):
            yield DataError(f"{place}: no text in column {chosen[2]!r}")
        else:
            empty = label is None or (isinstance(label, str) and not label.strip())
            label = label if isinstance(label, list) else None if empty else str(label).strip()
            yield Example(text, label, place, pair)


def _chosen(source: str, names: list[str], columns: Columns) -> tuple[str, str | None, str | None]:
    plain = names[0] == "0"  # no header: the first column is the text, the second the label

    def find(given: str | None, known: Sequence[str], place: int) -> str | None:
        if given is None and plain:
            return names[place] if place < len(names) else None
        if given is None:
            return next((n for k in known for n in names if n.strip().lower() == k), None)
        if given not in names and given.isdigit() and int(given) < len(names):
            return names[int(given)]
        if given not in names:
            raise DataError(f"{source}: no column {given!r}; it has {', '.join(names)}.")
        return given

    text = find(columns.text, TEXT_NAMES, 0)
    if text is None:
        raise DataError(
            f"{source}: which column is the text? It has {', '.join(names)}; say --text-column."
        )
    return text, find(columns.label, LABEL_NAMES, 1), find(columns.pair, (), len(names))


# Labels.


def label_names(examples: Sequence[Any]) -> list[str]:
    """The labels of the examples (or of their words), numbers in their order."""
    found = {label for label in examples if label is not None}
    return sorted(found, key=lambda n: (not n.isdigit(), int(n) if n.isdigit() else 0, n))


def label_id(label: str | None, names: Sequence[str], place: str) -> int:
    """The class number of a label; a number stands for itself where the names are no numbers."""
    if label is None:
        return UNLABELLED
    if label in names:
        return names.index(label)
    if label.isdigit() and int(label) < len(names):
        return int(label)
    raise DataError(
        f"{place}: label {label!r} is unknown; the model has {', '.join(names)}. If it calls them "
        "otherwise, give the names in its order: --label-names first,second."
    )
