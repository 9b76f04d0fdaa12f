"""How two tokenizers differ: vocabularies, special tokens, cuts, chat templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

Tokenizer: TypeAlias = Any
"""A tokenizer of transformers, which this package does not import for it."""

_PROBES = (
    "Knowledge  distillation, 2015: naïve? 数据 🙂\n\n\tdef f(x):\n    return x ** 2 # 1234567\n",
    " leading and trailing ",
)
_CHAT = (
    {"role": "user", "content": "Is it so?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Why?"},
)


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
    for name, tokenizer in (("student", student), ("teacher", teacher)):
        if not hasattr(tokenizer, "get_vocab"):
            raise TypeError(
                f"compare_tokenizers: {name} is a {type(tokenizer).__name__}; a tokenizer of "
                "transformers is expected."
            )
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
    try:
        return tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # of a template that wants something else
        return f"(refused: {error})"
