"""Relations between the predictions of a batch: multi-level logit distillation, and SKD."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.checks import positive
from .._shared.geometry import root, unit
from .._shared.masks import keep
from .._shared.products import product, shielded
from .._shared.softmax import log_probabilities, probabilities, relative_entropy, softened, squared


def mlkd_instance(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    *,
    temperatures: tuple[float | Tensor, ...] = (2.0, 3.0, 4.0, 5.0, 6.0),
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """KL divergence at several temperatures, their sum (MLKD, instance level).

        mlkd_instance = sum_k kl(student, teacher, T_k),   each with its T_k^2

    Args:
      student_logits: `[*batch, vocab]`. `-inf` means probability 0.
      teacher_logits: `[*batch, vocab]`.
      temperatures: the T_k > 0.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, non-negative, in nats.

    Example:
      >>> mlkd_instance(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0]]))
      tensor([0.])

    Reference:
      Jin et al., Multi-Level Logit Distillation, CVPR 2023.
    """
    if not temperatures:
        raise ValueError("mlkd_instance: temperatures is empty; one or more are expected.")
    for t in temperatures:
        positive("mlkd_instance", temperatures=t)
    both = student_logits, teacher_logits
    logs = [log_probabilities("mlkd_instance", *both, t, where) for t in temperatures]
    values = [squared(t) * relative_entropy(log_p, log_q)
              for t, (log_q, log_p) in zip(temperatures, logs, strict=True)]  # fmt: skip
    return keep(torch.stack(values).sum(0), where)


def mlkd_batch(
    student_logits: Float[Tensor, "batch vocab"],
    teacher_logits: Float[Tensor, "batch vocab"],
    *,
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """Squared distance of the sample-by-sample Gram matrices (MLKD, batch level).

        mlkd_batch = 1/B |Q Q^T - P P^T|_F^2
        P = softmax(teacher / T),  Q = softmax(student / T),  a row a sample

    Relational.

    Args:
      student_logits: `[batch, vocab]`. `-inf` means probability 0.
      teacher_logits: `[batch, vocab]`.
      temperature: T > 0, a number or a tensor that broadcasts against the logits.
      where: `[batch]`, True where a sample counts. Others take no part, also not in B.

    Returns:
      `[]`, non-negative; 0 if nothing counts.

    Example:
      >>> x = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
      >>> mlkd_batch(x, x + 3.0)
      tensor(0.)

    Reference:
      Jin et al., Multi-Level Logit Distillation, CVPR 2023.
    """
    q, p, count = _rows("mlkd_batch", student_logits, teacher_logits, temperature, where)
    return (product(q, q.T) - product(p, p.T)).square().sum() / count


def mlkd_class(
    student_logits: Float[Tensor, "batch vocab"],
    teacher_logits: Float[Tensor, "batch vocab"],
    *,
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """Squared distance of the class-by-class Gram matrices (MLKD, class level).

        mlkd_class = 1/V |Q^T Q - P^T P|_F^2
        P = softmax(teacher / T),  Q = softmax(student / T),  a row a sample

    Relational. The matrices have V^2 entries: for classifiers, not for large vocabularies.

    Args:
      student_logits: `[batch, vocab]`. `-inf` means probability 0.
      teacher_logits: `[batch, vocab]`.
      temperature: T > 0, a number or a tensor that broadcasts against the logits.
      where: `[batch]`, True where a sample counts. Others take no part.

    Returns:
      `[]`, non-negative; 0 if nothing counts.

    Example:
      >>> x = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
      >>> mlkd_class(x, x + 3.0)
      tensor(0.)

    Reference:
      Jin et al., Multi-Level Logit Distillation, CVPR 2023.
    """
    q, p, _ = _rows("mlkd_class", student_logits, teacher_logits, temperature, where)
    return (product(q.T, q) - product(p.T, p)).square().sum() / q.shape[-1]


def skd_direction(
    student_logits: Float[Tensor, "batch vocab"],
    teacher_logits: Float[Tensor, "batch vocab"],
    *,
    ridge: float | Tensor = 0.1,
    where: Bool[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """Mahalanobis norm of the error in the cosines between samples (SKD, direction).

        skd_direction_b = sqrt(d_b^T (Cov(D) + ridge I)^-1 d_b)
        D = n(S) n(S)^T - n(Z) n(Z)^T,  d_b its row b,  S, Z the logits, n(x) = x / |x|

    Relational. Cov is the sample covariance of the rows of D. Its instance part is `kl`.
    A row of zeros has no direction: its cosines are 0.

    Args:
      student_logits: `[batch, vocab]`, finite.
      teacher_logits: `[batch, vocab]`, finite.
      ridge: > 0, added to the diagonal of the covariance.
      where: `[batch]`, True where a sample counts. Others yield 0 and take no part.

    Returns:
      `[batch]`, non-negative.

    Example:
      >>> x = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
      >>> skd_direction(x, 3.0 * x)
      tensor([0., 0.])

    Reference:
      Jeong et al., Streamlined Knowledge Distillation, CVPR 2026.
    """
    positive("skd_direction", ridge=ridge)
    pair = {"student_logits": student_logits, "teacher_logits": teacher_logits}
    s, t = map(unit, softened("skd_direction", where, "batch vocab", **pair))
    d = product(s, s.T) - product(t, t.T)
    counts = d.new_ones(len(d)) if where is None else where.to(d.dtype)
    centred = (d - product(counts, d) / counts.sum().clamp(min=1)) * counts[:, None]
    covariance = product(centred.T, centred) / (counts.sum() - 1).clamp(min=1)
    ridged = covariance + ridge * torch.eye(len(d), dtype=d.dtype, device=d.device)
    solved = torch.linalg.solve(shielded(ridged), shielded(d.T)).T.to(d.dtype)
    return keep(root((d * solved).sum(-1)), where)


def _rows(
    loss: str,
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float | Tensor,
    where: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | int]:
    """Distributions (rows of zeros for samples that do not count) and the count, 1 or more."""
    q, p = probabilities(loss, student_logits, teacher_logits, temperature, where, "batch vocab")
    if where is None:
        return q, p, max(len(q), 1)
    excluded = ~where.bool()[:, None]
    count = where.bool().sum().clamp(min=1)
    return q.masked_fill(excluded, 0.0), p.masked_fill(excluded, 0.0), count
