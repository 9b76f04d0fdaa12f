"""What a model is worth: intervals, calibration, divergences. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from fkd.metrics import higher_is_better

from .record import Calibration, Difference, Quality

_T95 = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Quantiles of Student's t for 97.5 % with 1, 2, ... degrees of freedom."""

BINS = 15
FEWEST_BATCHES = 8


Batches: TypeAlias = Sequence[tuple[float, int]]
"""The value of a metric, and the number of examples, of every batch."""


class Reference(NamedTuple):
    """The teacher's value of a metric, of all and of every batch."""

    value: float
    batches: Batches


def quality(
    name: str, seeds: Sequence[float], batches: Batches, teacher: Reference | None
) -> Quality:
    """A metric with its interval, and how far it is from the teacher's: over the seeds by
    Student's t, or with one seed by the bootstrap over the batches, if there are enough of them.

    The difference is paired: both models are on the same batches in every resample.

    Args:
      name: of the metric, which says whether higher or lower values are better.
      seeds: the value of each.
      batches: of the first seed; empty if the metric is none that can be averaged.
      teacher: None for the teacher itself.
    """
    values = np.array(seeds)
    mean = float(values.mean())
    low, high = _interval(values, batches)
    found = tuple(float(v) for v in seeds)
    if teacher is None:
        return Quality(found, mean, low, high)
    kept = _kept(mean, teacher.value, higher_is_better(name))
    apart = [(a - b, n) for (a, n), (b, _) in zip(batches, teacher.batches, strict=False)]
    difference = Difference(mean - teacher.value, *_interval(values - teacher.value, apart))
    return Quality(found, mean, low, high, kept, difference)


def _interval(seeds: NDArray[np.float64], batches: Batches) -> tuple[float | None, float | None]:
    """Of the mean, with 95 %."""
    if len(seeds) > 1:
        t = _T95[len(seeds) - 2] if len(seeds) <= len(_T95) + 1 else 1.96
        half = t * float(seeds.std(ddof=1)) / math.sqrt(len(seeds))
        return float(seeds.mean()) - half, float(seeds.mean()) + half
    return _bootstrap(batches) if len(batches) >= FEWEST_BATCHES else (None, None)


def _kept(mean: float, teacher: float | None, higher: bool | None) -> float | None:
    """The share of the teacher's quality: of an error the teacher's value over the student's."""
    if not teacher or higher is None or min(teacher, mean) < 0:
        return None
    return mean / teacher if higher else teacher / mean if mean else None


def _bootstrap(batches: Batches) -> tuple[float, float]:
    values, counts = (np.array(column, dtype=float) for column in zip(*batches, strict=True))
    drawn = np.random.default_rng(0).integers(len(values), size=(2000, len(values)))
    means = (values * counts)[drawn].sum(1) / counts[drawn].sum(1).clip(min=1e-30)
    return float(np.percentile(means, 2.5)), float(np.percentile(means, 97.5))


class Certainty(NamedTuple):
    """Predictions whose labels are known: three numbers for each, however many classes there are.

    Attributes:
      confidence: the probability of the choice.
      right: 1 where it is the label, else 0.
      nll: the negative log-likelihood of the label, in nats.
    """

    confidence: Float[Tensor, " n"]
    right: Float[Tensor, " n"]
    nll: Float[Tensor, " n"]


def certainty(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> Certainty:
    """What calibration needs to know of predictions."""
    log_p = logits.double().log_softmax(-1)
    confidence, choice = log_p.exp().max(-1)
    nll = -log_p.gather(-1, labels[:, None])[:, 0]
    return Certainty(confidence, (choice == labels).double(), nll)


def reliability(known: Certainty, bins: int = BINS) -> Calibration:
    """Expected calibration error over bins of equal width, and the reliability plot.

        ECE = sum_b n_b / n |accuracy_b - confidence_b|

    Reference:
      Guo et al., On Calibration of Modern Neural Networks, arXiv:1706.04599.
    """
    confidence, right, nll = known
    place = (confidence * bins).long().clamp(max=bins - 1)
    count = torch.zeros(bins, dtype=torch.double).index_add(0, place, torch.ones_like(right))
    sums = [
        torch.zeros(bins, dtype=torch.double).index_add(0, place, x) for x in (confidence, right)
    ]
    mean_confidence, accuracy = (s / count.clamp(min=1) for s in sums)
    error = ((accuracy - mean_confidence).abs() * count).sum() / count.sum().clamp(min=1)
    return Calibration(
        float(error),
        float(nll.mean()),
        tuple(mean_confidence.tolist()),
        tuple(accuracy.tolist()),
        tuple(int(n) for n in count.tolist()),
    )


def divergences(
    student_logits: Float[Tensor, "n classes"], teacher_logits: Float[Tensor, "n classes"]
) -> Float[Tensor, " n"]:
    """KL(teacher | student) of every position, in nats."""
    s, t = (x.double().log_softmax(-1) for x in (student_logits, teacher_logits))
    return (t.exp() * torch.where(t > -math.inf, t - s, 0.0)).sum(-1)
