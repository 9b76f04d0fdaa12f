"""A student's values beside its teacher's: agreement, distance, the examples farthest apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .quality import Certainty, certainty, divergences, reliability
from .record import Calibration, Disagreement


@dataclass(frozen=True)
class Part:
    """Of one batch, the positions that count.

    Attributes:
      student, teacher: the classes that they choose, `[n]`; None where none are compared.
      labels: `[n]`, negative where there is none; None without labels.
      certain: of the student; None without labels.
      apart: the distance of both models, `[n]`.
      keep: which positions of the batch these are, `[positions]`.
      texts: what these are; empty where nobody says it.
    """

    student: Tensor | None
    teacher: Tensor | None
    labels: Tensor | None
    certain: Certainty | None
    apart: Tensor
    keep: Tensor
    texts: list[str]


@dataclass(frozen=True)
class Compared:
    """A student and its teacher over all batches; no agreement without classes."""

    agreement: float | None
    divergence: float
    worst: tuple[Disagreement, ...]
    certain: Certainty | None


def logits_apart(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(teacher | student) of every position, in nats."""
    if student_logits.shape[-1] != teacher_logits.shape[-1]:
        raise ValueError(
            f"report_card: the student has {student_logits.shape[-1]} classes and the teacher "
            f"{teacher_logits.shape[-1]}; the same ones are expected. Without a comparison: "
            "compare=None."
        )
    flat = [x.reshape(-1, x.shape[-1]) for x in (student_logits, teacher_logits)]
    return divergences(*flat).reshape(student_logits.shape[:-1])


def part(
    values: Mapping[str, Tensor],
    distance: Callable[[Tensor, Tensor], Tensor],
    texts: Sequence[str] | None,
) -> Part:
    """One batch.

    Args:
      values: of `student` and `teacher`, perhaps of `where` and `labels`.
      distance: of the two, one number for each position; classes are compared by `logits_apart`.
      texts: one for each position.
    """
    mine, theirs = values["student"], values["teacher"]
    apart = distance(mine, theirs)
    if not apart.ndim or not len(mine) or len(apart) != len(mine):
        raise ValueError(
            f"report_card: distance gave {tuple(apart.shape)} for values {tuple(mine.shape)}; one "
            "number for each position, [*batch], is expected, and no mean over them."
        )
    keep = counted(values.get("where"), apart.shape)
    labels = _class_numbers(values["labels"], mine)[keep] if "labels" in values else None
    classes = distance is logits_apart
    known = None
    if labels is not None:
        known = certainty(mine.reshape(-1, mine.shape[-1])[keep][labels >= 0], labels[labels >= 0])
    return Part(
        student=mine.argmax(-1).flatten()[keep] if classes else None,
        teacher=theirs.argmax(-1).flatten()[keep] if classes else None,
        labels=labels,
        certain=known,
        apart=apart.flatten()[keep].double(),
        keep=keep,
        texts=_kept(texts, keep),
    )


def counted(mask: Tensor | None, shape: torch.Size) -> Tensor:
    """`[positions]`, True where one counts."""
    if mask is None:
        return torch.ones(shape.numel(), dtype=torch.bool)
    if mask.shape != shape:
        raise ValueError(
            f"report_card: where has shape {tuple(mask.shape)}, and there are positions "
            f"{tuple(shape)}: one True or False for every position is expected."
        )
    return mask.bool().flatten()


def _class_numbers(labels: Tensor, logits: Tensor) -> Tensor:
    if labels.is_floating_point() or labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"report_card: labels are {labels.dtype} {tuple(labels.shape)}; class numbers "
            f"{tuple(logits.shape[:-1])} are expected, for logits {tuple(logits.shape)}. Without "
            "them: labels=None."
        )
    if len(labels) and int(labels.max()) >= logits.shape[-1]:
        raise ValueError(
            f"report_card: a label is {int(labels.max())}, and the logits have "
            f"{logits.shape[-1]} classes."
        )
    return labels.flatten().long()


def _kept(texts: Sequence[str] | None, keep: Tensor) -> list[str]:
    if texts is None:
        return []
    if len(texts) != keep.numel():
        raise ValueError(
            f"report_card: describe gave {len(texts)} texts for a batch of {keep.numel()} "
            "positions; one for each is expected."
        )
    return [text for text, counts in zip(texts, keep.tolist(), strict=True) if counts]


def comparison(parts: Sequence[Part], examples: int) -> Compared:
    """All batches, with so many of the worst examples."""
    apart = torch.cat([one.apart for one in parts])
    if not len(apart):
        raise ValueError("report_card: no position counts: where is False everywhere.")
    ours, other, labels = (
        _joined([getattr(one, name) for one in parts]) for name in ("student", "teacher", "labels")
    )
    texts = [text for one in parts for text in one.texts]
    index = torch.cat([one.keep for one in parts]).nonzero().flatten()
    chosen = [[None] * len(apart) if c is None else c.tolist() for c in (other, ours)]
    worst = tuple(
        Disagreement(
            index=int(index[i]),
            divergence=float(apart[i]),
            teacher=chosen[0][i],
            student=chosen[1][i],
            label=None if labels is None or int(labels[i]) < 0 else int(labels[i]),
            example=texts[i] if texts else "",
        )
        for i in apart.topk(min(examples, len(apart))).indices.tolist()
    )
    same = None if ours is None or other is None else float((ours == other).double().mean())
    return Compared(same, float(apart.mean()), worst, _together([one.certain for one in parts]))


def _joined(columns: Sequence[Tensor | None]) -> Tensor | None:
    present = [x for x in columns if x is not None]
    return torch.cat(present) if present else None


def _together(parts: Sequence[Certainty | None]) -> Certainty | None:
    """One after the other; None where no label is known."""
    known = [part for part in parts if part is not None and len(part.right)]
    return Certainty(*map(torch.cat, zip(*known, strict=True))) if known else None


def calibrated(compared: Sequence[Compared]) -> Calibration | None:
    """Of all seeds together: their predictions, one after the other."""
    known = _together([one.certain for one in compared])
    return None if known is None else reliability(known)
