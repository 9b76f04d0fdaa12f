"""What the losses against labels ask of the labels."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import CLASSES_LAST, fits_classes_first
from .masks import keep


def integers(loss: str, labels: Tensor) -> None:
    """Refuse labels that are not class indices."""
    if labels.dtype == torch.bool:
        raise ValueError(
            f"{loss}: labels {tuple(labels.shape)} have dtype torch.bool; integers are expected, "
            "one class for every position. Of two classes use labels.long()."
        )
    if labels.is_floating_point():
        raise ValueError(
            f"{loss}: labels {tuple(labels.shape)} have dtype {labels.dtype}; integers are "
            "expected, one class for every position. Labels that are distributions over the "
            "classes (one-hot, mixup, smoothed) go to fkd.losses.cross_entropy, [*batch, vocab]."
        )


def check_labels(
    loss: str, logits: Tensor, labels: Tensor, *, name: str = "student_logits"
) -> None:
    """Refuse labels that are not one integer a position of the logits, called `name`."""
    integers(loss, labels)
    if labels.shape != logits.shape[:-1]:
        first = fits_classes_first(logits, labels.shape)
        one_hot = labels.shape == logits.shape
        raise ValueError(
            f"{loss}: labels {tuple(labels.shape)} must be the leading shape of {name} "
            f"{tuple(logits.shape)}: one label for every position"
            + (f"; {CLASSES_LAST}." if first else ".")
            + (" Of one-hot rows use labels.argmax(-1), or labels.float()." if one_hot else "")
        )


def labels_index(labels: Tensor, where: Tensor | None) -> Tensor:
    """`[*batch, 1]`, to gather the labelled class with; 0 where a position does not count."""
    return (labels if where is None else keep(labels, where)).long().unsqueeze(-1)
