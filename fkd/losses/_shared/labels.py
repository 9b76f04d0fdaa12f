"""What the losses against labels ask of the labels."""

from __future__ import annotations

import torch
from torch import Tensor

from .masks import keep


def integers(loss: str, labels: Tensor) -> None:
    """Refuse labels that are no class indices."""
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(
            f"{loss}: labels have dtype {labels.dtype}; integers are expected. "
            "For distributions over the classes use soft_cross_entropy."
        )


def check_labels(
    loss: str, logits: Tensor, labels: Tensor, *, name: str = "student_logits"
) -> None:
    """Refuse labels that are not one integer a position of the logits, called `name`."""
    integers(loss, labels)
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"{loss}: labels {tuple(labels.shape)} must be the leading shape of {name} "
            f"{tuple(logits.shape)}: one label for every position."
        )


def labels_index(labels: Tensor, where: Tensor | None) -> Tensor:
    """`[*batch, 1]`, to gather the labelled class with; 0 where a position does not count."""
    return (labels if where is None else keep(labels, where)).long().unsqueeze(-1)
