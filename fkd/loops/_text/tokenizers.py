"""What two tokenizers have in common: the bytes of their entries."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fkd._check.tokenizers import Tokenizer

from .arguments import expect_bytes


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes that each id of a fast tokenizer stands for; none for special tokens.

    Byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM), and SentencePiece with or without byte fallback
    (Llama 2, Gemma, Mistral, T5).

    Args:
      tokenizer: a fast tokenizer of transformers.

    Raises:
      ValueError: it is another one, such as WordPiece, whose entries do not make up the text.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"token_bytes: the {type(tokenizer).__name__} is not a fast tokenizer.")
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    added = {t["id"]: t for t in backend.get("added_tokens", ())}
    parts = json.dumps([backend.get("pre_tokenizer"), backend.get("decoder")])
    read = _reader(parts, json.dumps(backend.get("normalizer")))
    if read is None:
        raise ValueError(
            f"token_bytes: the {type(tokenizer).__name__} is neither byte-level nor SentencePiece, "
            "and what its entries stand for in the text is not known."
        )
    # Ids may have holes, so that the last one is beyond the number of entries.
    last = max(tokenizer.get_vocab().values(), default=-1)
    table: list[bytes] = []
    for i, token in enumerate(tokenizer.convert_ids_to_tokens(list(range(last + 1)))):
        entry = added.get(i)
        if token is None or (entry is not None and entry["special"]):
            table.append(b"")
        else:
            table.append(read(token) if entry is None else entry["content"].encode())
    return table


def _reader(parts: str, normalizer: str) -> Any:
    if '"ByteLevel"' in parts:
        return functools.partial(_byte_level, letters=_byte_letters())
    if '"Metaspace"' in parts or "\\u2581" in parts + normalizer:
        return _sentence_piece
    return None


def _byte_level(token: str, letters: Mapping[str, int]) -> bytes:
    """Letters that stand for bytes; an entry with any other letter stands for itself."""
    if all(c in letters for c in token):
        return bytes(letters[c] for c in token)
    return token.encode()


def _sentence_piece(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode()


def _byte_letters() -> dict[str, int]:
    """The letters by which byte-level tokenizers write bytes: those that print are themselves."""
    printing = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [b for b in range(256) if b not in printing]
    return {chr(b): b for b in printing} | {chr(256 + i): b for i, b in enumerate(others)}


def shared_vocabulary(
    student_bytes: Sequence[bytes], teacher_bytes: Sequence[bytes]
) -> tuple[Tensor, Tensor]:
    """The ids of the entries that both have, in one order: for `head_divergence` and `shared_kl`.

    Args:
      student_bytes: from `token_bytes`.
      teacher_bytes: likewise.

    Returns:
      `[shared]` each. Of several ids with the same bytes the first is taken.

    Example:
      >>> shared_vocabulary([b"", b"a", b"b"], [b"b", b"c", b"a"])
      (tensor([1, 2]), tensor([2, 0]))
    """
    expect_bytes("shared_vocabulary", student_bytes=student_bytes, teacher_bytes=teacher_bytes)
    theirs: dict[bytes, int] = {}
    for i, entry in enumerate(teacher_bytes):
        theirs.setdefault(entry, i)
    ours: dict[bytes, int] = {}
    for i, entry in enumerate(student_bytes):
        if entry and entry in theirs:
            ours.setdefault(entry, i)
    ids = torch.tensor(list(ours.values()), dtype=torch.long)
    return ids, torch.tensor([theirs[entry] for entry in ours], dtype=torch.long)
