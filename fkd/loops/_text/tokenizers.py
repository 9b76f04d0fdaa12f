"""What two tokenizers have in common: the bytes of their entries, their templates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .tokens import Tokenizer

_PROBES = (
    "Knowledge  distillation, 2015: naïve? 数据 🙂\n\n\tdef f(x):\n    return x ** 2 # 1234567\n",
    " leading and trailing ",
)
_CHAT = (
    {"role": "user", "content": "Is it so?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Why?"},
)


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
    table: list[bytes] = []
    for i, token in enumerate(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))):
        entry = added.get(i)
        if token is None or (entry is not None and entry["special"]):
            table.append(b"")
        else:
            table.append(read(token) if entry is None else entry["content"].encode())
    return table


def _reader(parts: str, normalizer: str) -> Any:
    if '"ByteLevel"' in parts:
        letters = _byte_letters()
        return lambda token: bytes(letters[c] for c in token)
    if '"Metaspace"' in parts or "\\u2581" in parts + normalizer:
        return _sentence_piece
    return None


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
    theirs: dict[bytes, int] = {}
    for i, entry in enumerate(teacher_bytes):
        theirs.setdefault(entry, i)
    ours: dict[bytes, int] = {}
    for i, entry in enumerate(student_bytes):
        if entry and entry in theirs:
            ours.setdefault(entry, i)
    ids = torch.tensor(list(ours.values()), dtype=torch.long)
    return ids, torch.tensor([theirs[entry] for entry in ours], dtype=torch.long)


class TokenizerReport(NamedTuple):
    """How two tokenizers differ.

    Attributes:
      differences: in words; empty if the two are the same.
      shared: how many entries both have.
      sizes: of both vocabularies.
      same_ids: whether every id means the same to both, as far as both have it: then the logits
        can be compared, padded entries apart.
    """

    differences: tuple[str, ...]
    shared: int
    sizes: tuple[int, int]
    same_ids: bool

    def __str__(self) -> str:
        head = f"{self.shared} entries of {self.sizes[0]} and {self.sizes[1]} are shared"
        if not self.differences:
            return f"{head}; the tokenizers are the same."
        return "\n".join([f"{head}:", *(f"  - {d}" for d in self.differences)])


def compare_tokenizers(student: Tokenizer, teacher: Tokenizer) -> TokenizerReport:
    """Vocabularies, special tokens, cuts and chat templates of a student and its teacher.

    Args:
      student: a tokenizer of transformers.
      teacher: another one.

    Returns:
      A report, to be printed; what differs in it is what a loss between logits would get wrong.
    """
    ours, theirs = (dict[str, int](t.get_vocab()) for t in (student, teacher))
    both = ours.keys() & theirs.keys()
    moved = sorted((t for t in both if ours[t] != theirs[t]), key=lambda t: ours[t])
    by_id = {i: t for t, i in theirs.items()}
    clash = [t for t, i in ours.items() if i in by_id and by_id[i] != t]
    differences: list[str] = []
    if moved or clash:
        first = (moved or clash)[0]
        there = by_id.get(ours[first])
        differences.append(
            f"{len(set(moved) | set(clash))} ids mean different tokens: {ours[first]} is "
            f"{first!r} to the student and {there!r} to the teacher. Logits cannot be compared by "
            "id: see fkd.loops.language.align and shared_vocabulary."
        )
    elif ours.keys() != theirs.keys():
        differences.append(
            f"the vocabularies have {len(ours)} and {len(theirs)} entries; the ids that both have "
            "are the same."
        )
    differences += _special(student, teacher)
    if not clash and not moved:
        differences += _cuts(student, teacher)
    differences += _templates(student, teacher)
    same = not moved and not clash
    return TokenizerReport(tuple(differences), len(both), (len(ours), len(theirs)), same)


def _special(student: Tokenizer, teacher: Tokenizer) -> list[str]:
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    pairs = [(n, getattr(student, n, None), getattr(teacher, n, None)) for n in names]
    return [f"{n} is {a!r} and {b!r}" for n, a, b in pairs if a != b]


def _cuts(student: Tokenizer, teacher: Tokenizer) -> list[str]:
    for text in _PROBES:
        a, b = (list(t(text)["input_ids"]) for t in (student, teacher))
        if a != b:
            return [f"{text!r} is cut into {len(a)} and {len(b)} tokens, not the same ones"]
    return []


def _templates(student: Tokenizer, teacher: Tokenizer) -> list[str]:
    chats = [_rendered(t, _CHAT) for t in (student, teacher)]
    if chats[0] == chats[1]:
        return []
    missing = [n for n, c in zip(("student", "teacher"), chats, strict=True) if c is None]
    if missing:
        return [f"the {missing[0]} has no chat template"]
    return [
        f"the chat templates differ: a conversation is {chats[0]!r} and {chats[1]!r}. Each model "
        "then needs a prompt of its own: see fkd.loops.language.align_responses."
    ]


def _rendered(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]) -> str | None:
    if not getattr(tokenizer, "chat_template", None):
        return None
    return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
