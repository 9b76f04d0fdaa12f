"""Rows of tokens as a batch of a static shape: padded left or right, or with several documents.

The one place where labels are shifted: a batch has `targets`, the token after each position, and
no `labels`. `batch.targets != -100` are the positions that count, as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from fkd._base.errors import expect, listing

from .._data.buckets import padded_length
from .._data.packing import next_tokens
from .arguments import expect_lengths, expect_pad, expect_rows, expect_tokens
from .tokens import IGNORE, Tokens


def token_batch(
    rows: Sequence[Tokens] | Sequence[Sequence[Tokens]],
    *,
    length: int | Sequence[int],
    pad: int = 0,
    side: Literal["right", "left"] = "right",
    size: int | None = None,
    prefix: str = "",
) -> dict[str, Tensor]:
    """Rows of tokens as a batch; the `collate_fn` of a `DataLoader`, with `functools.partial`.

    Args:
      rows: one text for each row, from `chat_tokens` and others; or a list of documents for
        each, from `pack_documents`.
      length: of the batch; or several, of which the least that is enough is taken. Each is one
        compilation.
      pad: what stands where there is no token.
      side: on which side it stands. Batches to generate from are padded left. Rows of documents
        are padded right.
      size: fill the batch up to so many rows; the further ones count nowhere.
      prefix: of the names of the fields, for a second model.

    Returns:
      `[rows, length]` each: `input_ids`; `targets`, the token after each position and -100 where
      none counts; `position_ids`, from 0 in every text. Texts have an `attention_mask` (1 for a
      token). Rows of documents have none: to a model of transformers, positions that begin again
      say where a document ends, and it then attends to no other one; an attention mask would
      hide that from it. They have `document_ids` (from 0 in every row, -1 for padding) instead;
      for other models, see `document_mask`.

    Raises:
      ValueError: a row that is too long, or has no token; more rows than `size`.
      TypeError: rows that are no `Tokens`, a length or a padding token that is no number.

    Example:
      >>> batch = token_batch([Tokens([5, 6, 7], [-100, 6, 7])], length=4)
      >>> batch["input_ids"], batch["targets"]
      (tensor([[5, 6, 7, 0]]), tensor([[   6,    7, -100, -100]]))
    """
    expect_pad("token_batch", pad)
    lengths = expect_lengths("token_batch", length)
    if side not in ("right", "left"):
        raise ValueError(f"token_batch: side is {side!r}; 'right' or 'left' is expected.")
    documents = _documents(rows)
    packed = bool(rows) and not isinstance(rows[0], Tokens)
    if packed and side == "left":
        raise ValueError(
            "token_batch: rows of several documents are padded right; got side='left'."
        )
    count = len(rows) if size is None else size
    _expect_count(documents, size)
    width = padded_length(max(sum(len(d.ids) for d in row) for row in documents), lengths)
    fields = {
        "input_ids": torch.full((count, width), pad),
        "labels": torch.full((count, width), IGNORE),
        "position_ids": torch.zeros(count, width, dtype=torch.long),
        "document_ids": torch.full((count, width), -1),
    }
    for i, row in enumerate(documents):
        at = 0 if side == "right" else width - sum(len(d.ids) for d in row)
        for number, document in enumerate(d for d in row if d.ids):
            cut = slice(at, at + len(document.ids))
            fields["input_ids"][i, cut] = torch.tensor(document.ids)
            # Nothing before a document predicts its first token.
            fields["labels"][i, cut] = torch.tensor([IGNORE, *document.labels[1:]])
            fields["position_ids"][i, cut] = torch.arange(len(document.ids))
            fields["document_ids"][i, cut] = number
            at = cut.stop
    batch = {
        "input_ids": fields["input_ids"],
        "position_ids": fields["position_ids"],
        "targets": next_tokens(fields["labels"]),
    }
    if packed:
        batch["document_ids"] = fields["document_ids"]
    else:
        batch["attention_mask"] = (fields["document_ids"] >= 0).long()
        batch["attention_mask"][len(rows) :, 0] = 1  # a softmax over nothing is nan
    return {prefix + name: x for name, x in batch.items()}


def _documents(rows: Sequence[Any]) -> list[list[Tokens]]:
    """The documents of each row, one where it is a text."""
    expect("token_batch", "rows", rows, (list, tuple), "a list of Tokens")
    documents = [list(r) if isinstance(r, list) else [r] for r in rows]
    for i, row in enumerate(documents):
        for document in row:
            expect_tokens("token_batch", document, f"row {i}")
    return documents


def _expect_count(documents: Sequence[Sequence[Tokens]], size: int | None) -> None:
    empty = [i for i, row in enumerate(documents) if not any(d.ids for d in row)]
    if not documents or empty or (size is not None and len(documents) > size):
        what = f"row {empty[0]} has no token" if empty else f"{len(documents)} rows"
        most = "or more" if size is None else f"to {size}"
        raise ValueError(f"token_batch: {what}; 1 {most} rows with tokens are expected.")


def predicted_tokens(
    targets: Int[Tensor, "rows length"],
) -> Bool[Tensor, "rows length"]:
    """The tokens that targets predict, where they stand in `input_ids`: for `align`.

    Args:
      targets: `[rows, length]`, from `token_batch`.

    Returns:
      `[rows, length]`, True for a token that counts: an answer, without its prompt.

    Example:
      >>> predicted_tokens(torch.tensor([[-100, 7, 8, -100]])).int()
      tensor([[0, 0, 1, 1]], dtype=torch.int32)
    """
    expect_rows("predicted_tokens", targets=targets)
    return torch.nn.functional.pad(targets[:, :-1] != IGNORE, (1, 0))


def document_mask(document_ids: Int[Tensor, "rows length"]) -> Bool[Tensor, "rows 1 length length"]:
    """Which positions may attend to which: earlier ones of their own document, and themselves.

    A mask for `scaled_dot_product_attention`, and for models that take masks with four axes.

    Args:
      document_ids: `[rows, length]`, from `token_batch`.

    Example:
      >>> document_mask(torch.tensor([[0, 0, 1]]))[0, 0].int()
      tensor([[1, 0, 0],
              [1, 1, 0],
              [0, 0, 1]], dtype=torch.int32)
    """
    if document_ids.ndim != 2:
        raise ValueError(
            f"document_mask: document_ids {tuple(document_ids.shape)}; [rows, length] is expected."
        )
    length = document_ids.shape[1]
    place = torch.arange(length, device=document_ids.device)
    same = document_ids[:, :, None] == document_ids[:, None, :]
    inside = same & (document_ids >= 0)[:, None, :] & (place[:, None] >= place)
    return (inside | torch.eye(length, dtype=torch.bool, device=place.device))[:, None]


def fields_of(prefix: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """The fields of a batch that have a prefix, as the inputs of a model of their own, as in
    `fkd.frozen(big, inputs=fields_of("teacher_"))`.

    Args:
      prefix: as given to `token_batch`.

    Example:
      >>> fields_of("teacher_")({"input_ids": 1, "teacher_input_ids": 2, "teacher_targets": 3})
      {'input_ids': 2, 'use_cache': False}
    """

    def inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
        if prefix + "input_ids" not in batch:
            raise ValueError(
                f"fields_of({prefix!r}): the batch has no {prefix}input_ids; its fields are "
                f"{listing(map(str, batch))}. Make them: token_batch(..., prefix={prefix!r})."
            )
        names = ("input_ids", "attention_mask", "position_ids")
        fields = {n: batch[prefix + n] for n in names if prefix + n in batch}
        return {**fields, "use_cache": False}

    return inputs
