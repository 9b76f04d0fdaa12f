"""Text as tokens: completions, blocks of plain text, documents in rows."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from fkd._base.errors import expect
from fkd._check.tokenizers import Tokenizer

IGNORE = -100


class Tokens(NamedTuple):
    """A tokenized text. The shift to the next token is done later, once, by `token_batch`.

    Attributes:
      ids: the tokens.
      labels: the same where a token is to be predicted, and -100 elsewhere (a prompt).
    """

    ids: list[int]
    labels: list[int]


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
    for name, text in (("prompt", prompt), ("completion", completion)):
        expect("completion_tokens", name, text, str, "a text")
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
        given: Any = document
        if isinstance(given, str) or not isinstance(given, Iterable):
            raise TypeError(
                f"token_blocks: a document is a {type(given).__name__} ({given!r:.40}); the ids of "
                "its tokens are expected, tokenizer(text)['input_ids']."
            )
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
        expect("pack_documents", "a document", whole, Tokens, "a Tokens(ids, labels)")
        document = Tokens(whole.ids[:length], whole.labels[:length])
        size = len(document.ids)
        if counted(whole) and not counted(document):
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


def counted(tokens: Tokens) -> list[int]:
    """The places of the tokens that are predicted: the first one never is."""
    return [i for i, label in enumerate(tokens.labels) if i and label != IGNORE]


def _size(row: Sequence[Tokens]) -> int:
    return sum(len(document.ids) for document in row)
