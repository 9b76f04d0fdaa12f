"""What the text examples share: reading files and naming labels.

A row that cannot be used (fewer or more columns than the others, no text, JSON that does not
parse) is an error that names the file and the line; `--skip-broken` leaves such rows out and says
how many. An empty label, or none at all, is no mistake: the row is unlabelled.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

UNLABELLED = -100
TEXT_NAMES = (
    "sentence",
    "text",
    "sentence1",
    "review",
    "content",
    "question",
    "premise",
    "tokens",
    "words",
)
LABEL_NAMES = (
    *("label", "labels", "class", "target", "category", "gold_label", "stars", "rating"),
    *("sentiment", "intent", "ner_tags", "tags", "ner"),
)
PAIR_NAMES = {"sentence1": "sentence2", "premise": "hypothesis", "question": "sentence"}


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
    flags: tuple[str, str] = ("--text-column", "--label-column")


# Files.


def read(source: str, columns: Columns, *, skip_broken: bool = False) -> list[Example]:
    """The examples of a file, or of a `datasets` split: `datasets:NAME:SPLIT[:CONFIG]`."""
    if source.startswith("datasets:"):
        found = _dataset(source)
    elif is_json(source):
        found = _json_rows(source)
    else:
        found = _table(source, columns)
    return gather(_examples(source, found, columns), source, skip_broken=skip_broken)


def is_json(source: str) -> bool:
    return source.removesuffix(".gz").endswith((".json", ".jsonl", ".ndjson"))


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
    """A whole UTF-8 file, perhaps compressed (`.gz`)."""
    if Path(path).is_dir():
        raise DataError(f"{path}: is a folder; a file is expected.")
    if not Path(path).is_file():
        raise DataError(
            f"{path}: there is no such file. (A data set of the `datasets` package is written "
            "datasets:NAME:SPLIT.)"
        )
    data = Path(path).read_bytes()
    try:
        data = gzip.decompress(data) if path.endswith(".gz") else data
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a gzip file, or not a whole one ({error}).") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        other = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin1"
        raise DataError(
            f"{path}:{line}: not UTF-8 ({error.reason}). Convert the file; if it is {other}: "
            f"iconv -f {other} -t utf-8 {path} > new"
        ) from None


Found = Iterator[tuple[str, Mapping[str, Any] | str]]
"""Where a row is, and its fields by name; or what is wrong with it."""


def _table(path: str, columns: Columns) -> Found:
    """Rows of TSV (no quotes) or CSV."""
    comma = path.removesuffix(".gz").endswith(".csv")
    delimiter = columns.delimiter or ("," if comma else "\t")
    rows = list(_lines(path, delimiter, quotes=comma))
    whole = [row for _, row in rows if not isinstance(row, str)]
    if not whole:
        yield from rows  # type: ignore[misc]
        return
    if columns.delimiter is None:
        _check_delimiter(path, delimiter, whole)
    names = _header(path, whole, columns)
    width = Counter(map(len, whole)).most_common(1)[0][0]
    header = names[0] != "0"
    if header and width != len(names) and len(whole) > 2:
        raise DataError(
            f"{path}:{rows[0][0]}: {_columns(names)} in the header, and {width} in most rows. "
            "Mend the header, or say --header no."
        )
    if not header:
        names = [str(i) for i in range(width)]
    for line, row in rows[1:] if header else rows:
        if isinstance(row, str):
            yield f"{path}:{line}", row
        elif len(row) == len(names):
            yield f"{path}:{line}", dict(zip(names, row, strict=True))
        else:
            yield f"{path}:{line}", f"{_columns(row)}, where most rows have {len(names)}"


def _columns(row: Sequence[str]) -> str:
    return f"{len(row)} column{'' if len(row) == 1 else 's'}"


def _lines(path: str, delimiter: str, *, quotes: bool) -> Iterator[tuple[int, list[str] | str]]:
    """The rows with the line each begins at, or what is wrong with one; empty ones left out."""
    csv.field_size_limit(2**31 - 1)
    quoting = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    text = io.StringIO(decoded(path), newline="")
    reader = csv.reader(text, delimiter=delimiter, quoting=quoting, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "end of data" in str(error):
                raise DataError(
                    f'{path}:{line}: a quote (") that opens in this row is never closed. Close it; '
                    'a quote inside a quoted text is written twice: "".'
                ) from None
            yield line, f'{error} (a quote inside a quoted text is written twice: "")'
            continue
        if any(cell.strip() for cell in row):
            yield line, row


def _check_delimiter(path: str, delimiter: str, rows: list[list[str]]) -> None:
    """Refuse a file that is in columns by another delimiter than was looked for."""
    if len(rows[0]) > 1:
        return
    single = [row for row in rows if len(row) == 1]
    for other in {"\t", ";", ","} - {delimiter}:
        cells = [row[0].split(other) for row in single]
        named = {cell.strip().lower() for cell in cells[0]} & {*TEXT_NAMES}
        same = 1 < len(rows) == len(single) and all(len(c) == len(cells[0]) for c in cells)
        few = all(" " not in c[-1].strip() for c in cells)
        if len(cells[0]) > 1 and (named or (same and few)):
            shown = {"\t": "tab", ";": "';'", ",": "','"}
            raise DataError(
                f"{path}:1: one column, and there seem to be {len(cells[0])} that are separated "
                f"by {shown[other]}: {rows[0][0][:60]!r}. Say so: --delimiter {shown[other]} (or "
                f"--delimiter {shown.get(delimiter, delimiter)}, if it is one column)."
            )


def _header(path: str, rows: list[list[str]], columns: Columns) -> list[str]:
    """The names of the columns: those of the first line, or "0", "1", ... if it is no header."""
    first = [cell.strip() for cell in rows[0]]
    numbered = [str(i) for i in range(len(first))]
    given = [c for c in (columns.text, columns.label, columns.pair) if c and not c.isdigit()]
    if columns.header == "no":
        return numbered
    if columns.header == "yes" or given or {c.lower() for c in first} & {*TEXT_NAMES}:
        twice = sorted(name for name, n in Counter(first).items() if n > 1)
        if twice:
            raise DataError(f"{path}:1: the header has {twice[0]!r} twice. Rename one of them.")
        return first
    place = int(columns.label or 1)
    labels = [row[place] for row in rows if len(row) > place]
    if len(labels) > 4 and labels.count(labels[0]) == 1:
        raise DataError(
            f"{path}:1: is {first} a header? If so, name its columns (--text-column, "
            "--label-column, or --header yes with their numbers). If not, say --header no; the "
            "text is column 0 then, and the label column 1, or --text-column, --label-column."
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
        except (ValueError, RecursionError) as error:  # a number too long, lists too deep
            raise DataError(f"{path}: not JSON that can be read ({error}).") from None
        lines = [(f"{path}: item {i}", value) for i, value in enumerate(values)]
        parse = _same
    else:
        numbered = enumerate(text.split("\n"), start=1)
        lines = [(f"{path}:{n}", line) for n, line in numbered if line.strip()]
        parse = json.loads
    for place, line in lines:
        try:
            value = parse(line)
        except json.JSONDecodeError as error:
            yield place, f"not JSON ({error.msg})"
            continue
        except (ValueError, RecursionError) as error:
            yield place, f"not JSON that can be read ({error})"
            continue
        yield place, _flat(value) if isinstance(value, dict) else f"no object: {str(value)[:40]!r}"


def _same(value: Any) -> Any:
    return value


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as fields with a dot: `{"data": {"text": ...}}` as `data.text`."""
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= (
            _flat(inner, f"{prefix}{key}.") if isinstance(inner, dict) else {prefix + key: inner}
        )
    return found


def _dataset(source: str) -> Found:
    """A split of a data set, class numbers replaced by their names."""
    try:
        import datasets
    except ImportError:
        raise DataError(f"{source}: needs the package `datasets` (pip install datasets).") from None
    name, split, *config = [*source.removeprefix("datasets:").split(":"), ""]
    config = [c for c in config if c]
    if not split:
        raise DataError(f"{source}: no split. A data set is written datasets:NAME:SPLIT[:CONFIG].")
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
    rows = list(found)
    fields = dict.fromkeys(n for _, row in rows if not isinstance(row, str) for n in row)
    chosen = _chosen(source, list(fields), columns) if fields else ("", None, None)
    kinds = [type(row.get(chosen[0])) for _, row in rows if not isinstance(row, str)]
    kind = next((k for k in kinds if k in (str, list)), str)
    for place, row in rows:
        if isinstance(row, str):
            yield DataError(f"{place}: {row}")
            continue
        text, label, pair = (None if c is None else row.get(c) for c in chosen)
        if not _has(row, chosen[0]) or not isinstance(text, kind):
            got = "missing" if chosen[0] not in row else repr(text)[:40]
            wanted = "a text" if kind is str else "a list of words"
            yield DataError(f"{place}: {chosen[0]!r} is {got}; {wanted} is expected")
        elif chosen[2] is not None and not isinstance(pair, str):
            yield DataError(f"{place}: no text in column {chosen[2]!r}")
        else:
            yield Example(text, label if isinstance(label, list) else _plain(label), place, pair)


def _has(row: Mapping[str, Any] | str, name: str) -> bool:
    """Whether there is a text, or a list of words."""
    text = None if isinstance(row, str) else row.get(name)
    if isinstance(text, list):
        return bool(text) and all(isinstance(word, str) for word in text)
    return isinstance(text, str) and bool(text.strip())


def _plain(label: Any) -> str | None:
    """A label as text; 4.0, as tables with gaps are written, is 4; NaN is none."""
    text = "" if label is None or label != label else str(label).strip()
    whole = re.fullmatch(r"(-?\d+)\.0+", text)
    return whole[1] if whole else text or None


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
            f"{source}: which column is the text? It has {', '.join(names)}; say "
            f"{columns.flags[0]}."
        )
    label = find(columns.label, LABEL_NAMES, 1)
    if label is None and len(names) > 1:
        print(
            f"{source}: no column of labels is known among {', '.join(names)}; if there is one, "
            f"say {columns.flags[1]}"
        )
    second = () if columns.text else (PAIR_NAMES.get(text.strip().lower(), ""),)
    pair = find(columns.pair or None, () if columns.pair == "" else second, len(names))
    return text, label, None if pair in (text, label) else pair


# Labels.


def label_names(examples: Sequence[Any]) -> list[str]:
    """The labels of the examples (or of their words), numbers in their order."""
    found = {label for label in examples if label is not None}

    def order(name: str) -> tuple[bool, int, str]:
        number = re.fullmatch(r"-?\d+", name)
        return number is None, int(name) if number else 0, name

    return sorted(found, key=order)


def label_id(label: Any, names: Sequence[str], place: str) -> int:
    """The class number of a label: its name (in whatever case, if that is clear), or the number
    itself where the names are no numbers; true and false are 1 and 0."""
    if label is None:
        return UNLABELLED
    if isinstance(label, list):
        raise DataError(f"{place}: the label is {str(label)[:40]}; one class is expected.")
    if label in names:
        return names.index(label)
    alike = [i for i, name in enumerate(names) if _plain(name.lower()) == label.lower()]
    if len(alike) == 1:
        return alike[0]
    number = {"true": "1", "false": "0"}.get(label.lower(), label)
    if number.isdigit() and int(number) < len(names) and (number != label or label not in names):
        return names.index(number) if number in names else int(number)
    raise DataError(
        f"{place}: label {label!r} is none of the classes, {', '.join(names)}. Mend the row, or "
        "name all classes, in the model's order: --label-names first,second,..."
    )
