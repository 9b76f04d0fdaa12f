"""Files that no reader can read are errors that name the file."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from _text import Columns, DataError, read

GOOD = b'{"text": "a b", "label": "x"}\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", GOOD + b"[" * 100_000),
        ("a.jsonl", GOOD + b'{"text": "a", "label": ' + b"9" * 5000 + b"}"),
        ("a.json", b"[" * 100_000),
        ("a.json", b'[{"text": ' + b"9" * 5000 + b"}]"),
    ],
)
def test_json_that_cannot_be_read(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        read(str(tmp_path / name), Columns())


def test_each_flipped_byte_of_a_compressed_file(tmp_path):
    whole = gzip.compress(GOOD * 50)
    path = tmp_path / "a.jsonl.gz"
    for offset in range(10, len(whole)):
        damaged = bytearray(whole)
        damaged[offset] ^= 0xFF
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.jsonl\.gz"):
            read(str(path), Columns())
