"""What is given by mistake is refused in words, before it is used."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fkd.loops.language import (
    Tokens,
    align,
    align_responses,
    chat_tokens,
    compare_tokenizers,
    completion_tokens,
    document_mask,
    fields_of,
    pack_documents,
    prompt_batch,
    shared_vocabulary,
    token_batch,
    token_blocks,
    token_bytes,
)

from .tokenizers import CHATML, byte_level

pytestmark = pytest.mark.plain

ROWS: list[Any] = [Tokens([5, 6, 7], [-100, 6, 7])]
IDS = torch.tensor([[1, 2, 3]])
ALL = torch.ones(1, 3, dtype=torch.bool)


def tokenizer() -> Any:
    made = copy.deepcopy(byte_level())
    made.chat_template = CHATML
    return made


def chat(messages: Any, **options: Any) -> Any:
    return chat_tokens(tokenizer(), messages, **options)


def aligned(ids: Any = IDS, where: Any = ALL, table: Any = None, **options: Any) -> Any:
    table = token_bytes(byte_level()) if table is None else table
    return align(ids, IDS, table, token_bytes(byte_level()), where, ALL, **options)


MISTAKES: dict[str, Callable[[], Any]] = {
    r"pad is None.*pad=tokenizer\.eos_token_id": lambda: token_batch(ROWS, length=4, pad=None),
    r"length is None": lambda: token_batch(ROWS, length=None),
    r"length is a float \(4\.0\)": lambda: token_batch(ROWS, length=4.0),
    r"length is -4; at least 1": lambda: token_batch(ROWS, length=-4),
    r"side is 'up'; 'right' or 'left'": lambda: token_batch(ROWS, length=4, side="up"),
    r"0 rows; 1 or more": lambda: token_batch([], length=4),
    r"1 rows; 1 to 0": lambda: token_batch(ROWS, length=4, size=0),
    r"row 0 is a dict; a Tokens": lambda: token_batch([{"input_ids": [1]}], length=4),
    r"row 0 is a int.*Tokens\(ids, labels\)": lambda: token_batch([[5, 6]], length=4),
    r"row 0 has 2 ids and 1 labels": lambda: token_batch([Tokens([5, 6], [6])], length=4),
    r"labels of row 0 is None": lambda: token_batch([Tokens([5, 6], None)], length=4),
    r"ids of row 0 is a Tensor": lambda: token_batch([Tokens(IDS[0], IDS[0])], length=4),
    r"text 0 is a dict": lambda: prompt_batch([{"a": 1}], prompt=2, new_tokens=2),
    r"prompt=0, new_tokens=2": lambda: prompt_batch(ROWS, prompt=0, new_tokens=2),
    r"prompt_batch: pad is None": lambda: prompt_batch(ROWS, prompt=2, new_tokens=2, pad=None),
    r"a document is a str \('abc'\)": lambda: list(token_blocks(["abc"], 2)),
    r"a document is a int \(1\)": lambda: list(token_blocks([1, 2], 2)),
    r"a document is a list; a Tokens": lambda: list(pack_documents([[1, 2]], 4)),
    r"prompt is None; a text": lambda: completion_tokens(byte_level(), None, "b"),
    r"tokenizer is a NoneType": lambda: chat_tokens(None, []),
    r"messages is a str.*one conversation": lambda: chat("hello"),
    r"a message is a list; a dict": lambda: chat([[{"role": "user", "content": "a"}]]),
    r"roles: \[None\], of messages with the keys \['from'\]": lambda: chat([{"from": "gpt"}]),
    r"turns is 'first'": lambda: chat([{"role": "assistant", "content": "a"}], turns="first"),
    r"teacher is a NoneType; a tokenizer": lambda: compare_tokenizers(byte_level(), None),
    r"student_bytes is a .*token_bytes\(tokenizer\)": lambda: aligned(table=tokenizer()),
    r"student_ids is a list": lambda: aligned(ids=[[1]]),
    r"student_ids \(1, 3\) and student_where \(1, 2\)": lambda: aligned(where=ALL[:, 1:]),
    r"\(2, 3\) and \(1, 3\); .* same rows": lambda: aligned(ids=IDS.expand(2, 3)),
    r"align: multiple is 0": lambda: aligned(multiple=0),
    r"align_responses: multiple is 0": lambda: align_responses(IDS, IDS, multiple=0),
    r"student_targets is a list": lambda: align_responses([[1]], IDS),
    r"shared_vocabulary: student_bytes": lambda: shared_vocabulary(tokenizer(), [b"a"]),
    r"the batch has no teacher_input_ids": lambda: fields_of("teacher_")({"input_ids": IDS}),
    r"document_ids \(3,\); \[rows, length\]": lambda: document_mask(IDS[0]),
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_refused_in_words(words):
    with pytest.raises((ValueError, TypeError), match=words):
        MISTAKES[words]()
