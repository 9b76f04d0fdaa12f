"""Text as tokens: conversations through a template, completions, blocks of plain text."""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from fkd._base.errors import expect
from fkd._check.tokenizers import Tokenizer

IGNORE = -100

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""The tag by which a template marks what the assistant says."""

Message: TypeAlias = Mapping[str, Any]
"""`{"role": "user", "content": "..."}`, and what else a template reads."""


class Tokens(NamedTuple):
    """A tokenized text. The shift to the next token is done later, once, by `token_batch`.

    Attributes:
      ids: the tokens.
      labels: the same where a token is to be predicted, and -100 elsewhere (a prompt).
    """

    ids: list[int]
    labels: list[int]


def chat_tokens(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    turns: Literal["all", "last"] = "all",
    max_length: int | None = None,
    **options: Any,
) -> Tokens:
    """A conversation as its model's template writes it; only what the assistant says counts.

    What the assistant says ends with the token that ends its turn, which it has to learn, too.
    Templates that mark it (`{% generation %}`) are asked; for others, its turn is what the
    template adds to the conversation before it, with the prompt for an answer. A token counts if
    any of its characters is the assistant's: where the prompt ends with a space that the first
    token of the answer begins with, that token counts, as in the mask of transformers.

    Args:
      tokenizer: a fast one of transformers, with a chat template; or give it as an option.
      messages: in order, each with a "role" and a "content".
      turns: which turns of the assistant count.
      max_length: leave out what is beyond, from the right; at least 2.
      options: for `apply_chat_template`, such as `tools` or `enable_thinking`.

    Raises:
      ValueError: nobody is the assistant; nothing of what it says is within `max_length`; the
        tokenizer has no template, or is not a fast one; or the template rewrites earlier turns
        when later ones come.

    Example:
      >>> class Words:  # stands for a tokenizer of transformers
      ...     is_fast, chat_template = True, "..."
      ...     def apply_chat_template(self, messages, add_generation_prompt=False, **_):
      ...         said = "".join(f"{m['role'][0]} {m['content']} . " for m in messages)
      ...         return said + ("a " if add_generation_prompt else "")
      ...     def __call__(self, text, **_):
      ...         at = [i for i in range(0, len(text), 2)]
      ...         return {"input_ids": [ord(text[i]) for i in at],
      ...                 "offset_mapping": [(i, i + 1) for i in at]}
      >>> chat = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
      >>> chat_tokens(Words(), chat).labels
      [-100, -100, -100, -100, 121, 46]
    """
    template = _template(tokenizer, options)
    if not template:
        raise ValueError(
            f"chat_tokens: the {type(tokenizer).__name__} has no chat template. Give it that of "
            "the model: tokenizer.chat_template = ...; or use completion_tokens."
        )
    if max_length is not None:
        expect("chat_tokens", "max_length", max_length, int, "a whole number of tokens")
        if max_length < 2:
            raise ValueError(f"chat_tokens: max_length is {max_length}; at least 2 is expected.")
    answers = [i for i, m in enumerate(messages) if m.get("role") == "assistant"]
    if not answers:
        raise ValueError(
            "chat_tokens: no message has the role 'assistant', so that nothing would count. Its "
            f"roles: {[m.get('role') for m in messages]}."
        )
    chosen = answers if turns == "all" else answers[-1:]
    if _GENERATION.search(template):
        tokens = _marked(tokenizer, messages, options)
        if turns == "last":
            tokens = _last_run(tokens)
    else:
        tokens = _by_prefix(tokenizer, messages, chosen, options)
    return _shortened(tokens, max_length)


def _template(tokenizer: Tokenizer, options: Mapping[str, Any]) -> str | None:
    """The template that is used: that of the options, or that of the tokenizer, which may have
    several by name."""
    named, tools = options.get("chat_template"), options.get("tools")
    if isinstance(tokenizer.chat_template, Mapping):
        return tokenizer.get_chat_template(named, tools)
    return named or tokenizer.chat_template


def _shortened(tokens: Tokens, max_length: int | None) -> Tokens:
    """The first tokens of a conversation, of which at least one is to be predicted."""
    counted = _counted(tokens)
    size = len(tokens.ids)
    if not counted:
        raise ValueError(
            f"chat_tokens: none of the {size} tokens is what the assistant says, so that nothing "
            "would count. Its words are empty, or the template marks something else."
        )
    if max_length is not None and counted[0] >= max_length:
        raise ValueError(
            f"chat_tokens: max_length={max_length} leaves nothing of what the assistant says, "
            f"which begins behind {counted[0]} of the {size} tokens, so that nothing would count. "
            f"Give at least max_length={counted[0] + 1}, or leave this conversation out."
        )
    return Tokens(tokens.ids[:max_length], tokens.labels[:max_length])


def _marked(tokenizer: Tokenizer, messages: Sequence[Message], options: Any) -> Tokens:
    """By the mask that a template with `{% generation %}` gives."""
    more = options.get("tokenizer_kwargs") or {}
    encoded = tokenizer.apply_chat_template(
        list(messages),
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        **{**options, "tokenizer_kwargs": {**more, "return_offsets_mapping": True}},
    )
    ids, mask = list(encoded["input_ids"]), list(encoded["assistant_masks"])
    at = list(encoded["offset_mapping"])
    for i in range(1, len(ids)):  # the other bytes of a character at the end of an answer
        mask[i] |= mask[i - 1] and tuple(at[i]) == tuple(at[i - 1]) and at[i][0] < at[i][1]
    return Tokens(ids, [i if m else IGNORE for i, m in zip(ids, mask, strict=True)])


def _last_run(tokens: Tokens) -> Tokens:
    """Only the last stretch of tokens that count."""
    end = max((i for i, x in enumerate(tokens.labels) if x != IGNORE), default=-1)
    start = end
    while start >= 0 and tokens.labels[start] != IGNORE:
        start -= 1
    return Tokens(tokens.ids, [x if i > start else IGNORE for i, x in enumerate(tokens.labels)])


def _by_prefix(
    tokenizer: Tokenizer, messages: Sequence[Message], answers: Sequence[int], options: Any
) -> Tokens:
    """By the characters that each answer adds to the text of the conversation before it."""
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"chat_tokens: the {type(tokenizer).__name__} is not a fast tokenizer, which knows "
            "where in the text a token stands. Load it with use_fast=True."
        )

    def text(count: int, *, prompt: bool) -> str:
        return tokenizer.apply_chat_template(
            list(messages[:count]), tokenize=False, add_generation_prompt=prompt, **options
        )

    def opening(begun: str) -> str:
        """What stands before the words of a first message: templates refuse none at all."""
        other = {**messages[0], "content": "\ufff0"}
        rendered = tokenizer.apply_chat_template(
            [other], tokenize=False, add_generation_prompt=False, **options
        )
        same = itertools.takewhile(
            lambda pair: pair[0] == pair[1], zip(begun, rendered, strict=False)
        )
        return "".join(character for character, _ in same)

    whole, spans = text(len(messages), prompt=False), list[tuple[int, int]]()
    end = getattr(tokenizer, "eos_token", None)
    for i in answers:
        after = text(i + 1, prompt=False)
        if not whole.startswith(after) and end and whole.endswith(end):
            after = after.removesuffix(end)  # which some templates put where a conversation stops
        content = str(messages[i].get("content") or "")
        start = len(opening(after)) if i == 0 else None
        if start is None:
            start = _start(text(i, prompt=True), text(i, prompt=False), after, content)
        if start is None or not whole.startswith(after):
            raise ValueError(
                f"chat_tokens: the template does not leave turn {i} as it was when later ones "
                "come (or its prompt for an answer is not how an answer begins), so that it "
                "cannot be told what the assistant said. Take one turn a conversation, "
                "turns='last', or a template with {% generation %} around its words."
            )
        spans.append((start, len(after) - _after_the_end(after[start:], content)))
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    ids = list(encoded["input_ids"])
    at = _stretches(encoded["offset_mapping"])
    inside = [any(a < end and max(b, a + 1) > start for start, end in spans) for a, b in at]
    return Tokens(ids, [i if kept else IGNORE for i, kept in zip(ids, inside, strict=True)])


def _start(prompt: str, before: str, after: str, content: str) -> int | None:
    """Where in a conversation its last answer begins: behind the prompt for one. A prompt that
    begins to think (`<think>`) where the finished turn does not ends where the two part."""
    if after.startswith(prompt):
        return len(prompt)
    if not after.startswith(before):
        return None
    pairs = zip(prompt, after, strict=False)
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    if same == len(before):  # nothing there makes the turn the assistant's
        return None
    words = after.find(content, len(before))
    return min(same, words) if content and words >= 0 else same


def _stretches(offsets: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The characters of every token, with the white space before it, which some tokenizers leave
    out of the offsets (`trim_offsets`)."""
    read, stretches = 0, list[tuple[int, int]]()
    for a, b in offsets:
        stretches.append((min(a, read), b))
        read = max(read, b)
    return stretches


def _after_the_end(added: str, content: str) -> int:
    """How many characters of white space a template has put after the token that ends a turn."""
    behind = added.rpartition(content)[2] if content else added
    return len(added) - len(added.rstrip()) if behind.strip() else 0


def completion_tokens(
    tokenizer: Tokenizer, prompt: str, completion: str, *, end: bool = True
) -> Tokens:
    """A prompt and what follows it, tokenized apart, so that the prompt is as in generation.

    Args:
      tokenizer: any tokenizer of transformers.
      prompt: does not count; may be empty. If a template has put the token that begins a text
        before it, no second one is put there.
      completion: counts.
      end: append the token that ends a text.

    Raises:
      ValueError: `end`, and the tokenizer has no such token.
    """
    if end and tokenizer.eos_token_id is None:
        raise ValueError("completion_tokens: the tokenizer has no eos_token. Give end=False.")
    bos = getattr(tokenizer, "bos_token", None)
    rendered = bool(bos) and prompt.startswith(bos)  # by a template: not a second time
    options = {"add_special_tokens": False} if rendered else {}
    before = list(tokenizer(prompt, **options)["input_ids"]) if prompt else []
    if before and before[-1] == tokenizer.eos_token_id:
        before.pop()  # some tokenizers end every text
    after = list(tokenizer(completion, add_special_tokens=False)["input_ids"])
    after += [tokenizer.eos_token_id] if end else []
    return Tokens(before + after, [IGNORE] * len(before) + after)


def token_blocks(
    documents: Iterable[Sequence[int]], length: int, *, end: int | None = None
) -> Iterator[Tokens]:
    """Plain text in blocks of one length: documents one after the other, cut where a block is full.

    Every token counts. What is left over at the end is less than a block, and is dropped.

    Args:
      documents: token ids of each.
      length: of a block.
      end: token after every document; None puts none.

    Raises:
      ValueError: a length of less than 2, in which nothing could be predicted.

    Example:
      >>> [block.ids for block in token_blocks([[5, 6, 7], [8, 9]], 3, end=0)]
      [[5, 6, 7], [0, 8, 9]]
    """
    if length < 2:
        raise ValueError(f"token_blocks: length is {length}; at least 2 is expected.")
    waiting: list[int] = []
    for document in documents:
        waiting += [*document, *([] if end is None else [end])]
        while len(waiting) >= length:
            block, waiting = waiting[:length], waiting[length:]
            yield Tokens(block, list(block))


def pack_documents(documents: Iterable[Tokens], length: int, *, open_rows: int = 16) -> Iterator[
    list[Tokens]
]:  # fmt: skip
    """Several documents for each row of a batch, whole ones, none longer than the row.

    A document goes into the fullest open row that it fits into. `token_batch` keeps the documents
    of a row apart.

    Args:
      documents: in the order in which they come; one that is too long is cut to the row, and
        left out if nothing counts in what remains.
      length: of a row.
      open_rows: how many rows wait to be filled.

    Warns:
      UserWarning: at the end, how many documents were left out.

    Example:
      >>> documents = [Tokens(ids, ids) for ids in ([1, 2, 3], [4, 5, 6, 7], [8])]
      >>> [[d.ids for d in row] for row in pack_documents(documents, 4)]
      [[[1, 2, 3], [8]], [[4, 5, 6, 7]]]
    """
    if length < 2 or open_rows < 1:
        raise ValueError(
            f"pack_documents: length={length}, open_rows={open_rows}; a length of at least 2 and "
            "at least one row are expected."
        )
    rows: list[list[Tokens]] = []
    lost = 0
    for whole in documents:
        document = Tokens(whole.ids[:length], whole.labels[:length])
        size = len(document.ids)
        if _counted(whole) and not _counted(document):
            lost += 1
            continue
        fitting = [row for row in rows if _size(row) + size <= length]
        if not size:
            continue
        if fitting:
            max(fitting, key=_size).append(document)
        else:
            if len(rows) == open_rows:
                fullest = max(range(len(rows)), key=lambda i: _size(rows[i]))
                yield rows.pop(fullest)
            rows.append([document])
    if lost:
        warnings.warn(
            f"pack_documents: left out {lost} of the documents: nothing that counts is within "
            f"their first {length} tokens. Shorten their prompts, or take longer rows.",
            stacklevel=2,
        )
    yield from rows


def _counted(tokens: Tokens) -> list[int]:
    """The places of the tokens that are predicted: the first one never is."""
    return [i for i, label in enumerate(tokens.labels) if i and label != IGNORE]


def _size(row: Sequence[Tokens]) -> int:
    return sum(len(document.ids) for document in row)
