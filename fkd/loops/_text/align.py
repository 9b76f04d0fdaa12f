"""Two tokenizations of one text: where both have read the same, as positions in a batch.

An alignment is two `Packed` of one capacity: row k of both is a position at which student and
teacher have read the same text, and predict how it goes on. `take` gathers these rows of logits or
hidden states, and every loss there is takes them as they are:

    both = align_responses(student_batch["targets"], teacher_batch["teacher_targets"])

    term(
        kl,
        fkd.call(take, student.logits, batch.both.student),
        fkd.call(take, teacher.logits, batch.both.teacher),
        where=batch.both.student.kept,
    )
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .._data.packing import Packed
from .arguments import expect_bytes, expect_rows
from .cut import Cut
from .same_text import same_text
from .tokens import IGNORE


class Aligned(NamedTuple):
    """Positions of two models that have read the same. Part of the batch.

    Attributes:
      student: positions in the student's rows.
      teacher: positions in the teacher's rows, in the same order.
    """

    student: Packed
    teacher: Packed


class Spans(NamedTuple):
    """Stretches of text between two places at which both tokenizations have a boundary.

    Attributes:
      student: `[rows, length]`, for each position whose next token is in a span the number of
        that span in its row; -1 elsewhere.
      teacher: `[rows, teacher length]`, likewise.
      kept: `[rows, spans]`, True for a span, False for padding.
    """

    student: Int[Tensor, "rows length"]
    teacher: Int[Tensor, "rows teacher_length"]
    kept: Bool[Tensor, "rows spans"]


def align_responses(
    student_targets: Int[Tensor, "rows length"],
    teacher_targets: Int[Tensor, "rows teacher_length"],
    *,
    multiple: int = 64,
) -> Aligned:
    """Positions that predict the same tokens after different prompts, by one tokenizer.

    The teacher may be told more than the student: a system prompt, the answer, examples. The k-th
    position that counts in a row of the one is that of the other. Where a response was cut shorter
    for one of them, what the other one has beyond does not count.

    Args:
      student_targets: from `token_batch`, -100 where nothing counts.
      teacher_targets: of the same rows.
      multiple: the capacity is a multiple of this.

    Raises:
      ValueError: the tokens that count are not the same; says in which row.

    Example:
      >>> both = align_responses(
      ...     torch.tensor([[-100, 7, 8]]), torch.tensor([[-100, -100, 7, 8]]), multiple=2
      ... )
      >>> both.student.positions, both.teacher.positions
      (tensor([[1, 2]]), tensor([[2, 3]]))
    """
    expect_rows("align_responses", student_targets=student_targets, teacher_targets=teacher_targets)
    _expect_multiple("align_responses", multiple)
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    for i, (ours, theirs) in enumerate(
        zip(student_targets.numpy(), teacher_targets.numpy(), strict=True)
    ):
        at, there = np.flatnonzero(ours != IGNORE), np.flatnonzero(theirs != IGNORE)
        both = min(len(at), len(there))
        if (not both and len(at) != len(there)) or (ours[at[:both]] != theirs[there[:both]]).any():
            raise ValueError(
                f"align_responses: row {i} has {len(at)} tokens that count for the student and "
                f"{len(there)} for the teacher, and they are not the same. The same response is "
                "expected after both prompts, tokenized apart from them (completion_tokens, or "
                "the last turn of a chat); its end may be cut off in one of them. For two "
                "tokenizers see align."
            )
        pairs.append((at[:both], there[:both]))
    return _aligned(pairs, student_targets.shape, teacher_targets.shape, multiple)


def align(
    student_ids: Int[Tensor, "rows length"],
    teacher_ids: Int[Tensor, "rows teacher_length"],
    student_bytes: Sequence[bytes],
    teacher_bytes: Sequence[bytes],
    student_where: Bool[Tensor, "rows length"],
    teacher_where: Bool[Tensor, "rows teacher_length"],
    *,
    multiple: int = 64,
) -> tuple[Aligned, Spans]:
    """Where two tokenizations of one text have read the same bytes, and the spans between.

    On the CPU, from ids alone, so that it also serves what a model has generated.

    Args:
      student_ids: `[rows, length]`.
      teacher_ids: of the same texts by another tokenizer.
      student_bytes: what each id of the student stands for, from `token_bytes`.
      teacher_bytes: likewise.
      student_where: True for the tokens of the text that both have (the response, without what
        a template puts around it); of targets, `predicted_tokens`.
      teacher_where: likewise.
      multiple: the capacity is a multiple of this.

    Returns:
      The positions after which both have read the same bytes: the one before the text, where
      there is one, and those after each boundary of both; and the spans between boundaries.

    Two texts are the same if their bytes are, or if they differ only by what tokenizers change:
    white space where a text begins or ends (also beside a special token inside), several spaces
    that are one, the normal form of a character (NFC, NFKC), and SentencePiece's letter for a
    space. Where one of them was cut shorter, what the other has beyond does not count. Where one
    has a special token (`<unk>`, or one that the other reads as letters), it stands for what the
    other has there, if only one text fits; the span that it is in does not count.

    Raises:
      ValueError: the two texts of a row are not the same.

    Example:
      >>> both, spans = align(
      ...     torch.tensor([[0, 1, 2]]), torch.tensor([[0, 3]]),
      ...     [b"", b"a", b"b", b"ab"], [b"", b"a", b"b", b"ab"],
      ...     torch.tensor([[False, True, True]]), torch.tensor([[False, True]]), multiple=1,
      ... )
      >>> both.student.positions, both.teacher.positions, spans.student
      (tensor([[0, 2]]), tensor([[0, 1]]), tensor([[ 0,  0, -1]]))

    Reference:
      Minixhofer et al., Universal Cross-Tokenizer Distillation via Approximate Likelihood
      Matching, arXiv:2503.20083.
    """
    expect_rows("align", student_ids=student_ids, teacher_ids=teacher_ids)
    expect_rows("align", student_where=student_where, teacher_where=teacher_where)
    expect_bytes("align", student_bytes=student_bytes, teacher_bytes=teacher_bytes)
    for side, ids, where in (("student", student_ids, student_where),
                             ("teacher", teacher_ids, teacher_where)):  # fmt: skip
        if ids.shape != where.shape:
            raise ValueError(
                f"align: {side}_ids {tuple(ids.shape)} and {side}_where {tuple(where.shape)}; a "
                "mask of the same shape is expected."
            )
    _expect_multiple("align", multiple)
    texts: list[tuple[Cut, Cut]] = []
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    numbers: list[tuple[np.ndarray, np.ndarray]] = []
    for i, (ours, at, theirs, there) in enumerate(
        zip(
            student_ids.numpy(),
            student_where.bool().numpy(),
            teacher_ids.numpy(),
            teacher_where.bool().numpy(),
            strict=True,
        )
    ):
        one, other = Cut.of(ours, at, student_bytes), Cut.of(theirs, there, teacher_bytes)
        try:
            cuts = same_text(one, other)
        except ValueError as error:
            raise ValueError(f"align: row {i}: {error}") from None
        common, a, b = np.intersect1d(cuts[0].ends, cuts[1].ends, return_indices=True)
        texts.append(cuts)
        pairs.append((cuts[0].after[a], cuts[1].after[b]))
        numbers.append((common, _numbered(common, cuts)))
    counts = [int(number.max(initial=-1)) + 1 for _, number in numbers]
    capacity = max(1, -(-max(*counts, 1) // multiple)) * multiple
    spans = Spans(
        _spans([t[0] for t in texts], numbers, student_ids.shape),
        _spans([t[1] for t in texts], numbers, teacher_ids.shape),
        torch.tensor([[k < count for k in range(capacity)] for count in counts]),
    )
    return _aligned(pairs, student_ids.shape, teacher_ids.shape, multiple), spans


def _numbered(common: np.ndarray, cuts: tuple[Cut, Cut]) -> np.ndarray:
    """The numbers of the spans between common boundaries; -1 where a special token stands in."""
    counts = np.ones(max(len(common) - 1, 0), dtype=bool)
    for cut in cuts:
        span = np.searchsorted(common, cut.token_ends[cut.stands_in], side="left") - 1
        counts[span[(span >= 0) & (span < len(counts))]] = False
    return np.where(counts, np.cumsum(counts) - 1, -1)


def _spans(
    texts: Sequence[Cut], numbers: Sequence[tuple[np.ndarray, np.ndarray]], shape: torch.Size
) -> Tensor:
    """The number of the span that each position's next token is in."""
    spans = np.full(tuple(shape), -1, dtype=np.int64)
    for i, (text, (common, number)) in enumerate(zip(texts, numbers, strict=True)):
        span = np.searchsorted(common, text.token_ends, side="left") - 1
        inside = (span >= 0) & (span < len(number)) & (text.tokens > 0) & text.reads
        spans[i, text.tokens[inside] - 1] = number[span[inside]]
    return torch.from_numpy(spans)


def _aligned(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    student: torch.Size,
    teacher: torch.Size,
    multiple: int,
) -> Aligned:
    total = sum(len(at) for at, _ in pairs)
    capacity = max(1, -(-total // multiple)) * multiple
    capacity = min(capacity, student.numel(), teacher.numel())
    return Aligned(
        _packed([at for at, _ in pairs], student, capacity),
        _packed([there for _, there in pairs], teacher, capacity),
    )


def _packed(columns: Sequence[np.ndarray], shape: torch.Size, capacity: int) -> Packed:
    places = [at + i * shape[1] for i, at in enumerate(columns)]
    flat = np.concatenate(places) if places else np.empty(0, dtype=np.int64)
    rest = np.setdiff1d(np.arange(shape.numel()), flat)[: capacity - len(flat)]
    mask = np.zeros(shape.numel(), dtype=bool)
    mask[flat] = True
    return Packed(
        torch.from_numpy(np.concatenate([flat, rest]).astype(np.int64))[None],
        (torch.arange(capacity) < len(flat))[None],
        torch.from_numpy(mask).reshape(tuple(shape)),
    )


def _expect_multiple(function: str, multiple: int) -> None:
    if multiple < 1:
        raise ValueError(f"{function}: multiple is {multiple}; at least 1 is expected.")
