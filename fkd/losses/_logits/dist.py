"""Correlation losses (DIST, DIST+): agreement up to a scale and a shift."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.geometry import correlation
from .._shared.masks import keep
from .._shared.softmax import probabilities


def dist_inter(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    *,
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """One minus Pearson's correlation of the two distributions of a position (DIST).

        dist_inter = 1 - rho(q, p)
        p = softmax(teacher / T),  q = softmax(student / T)

    A constant distribution has no correlation: rho = 0.

    Args:
      student_logits: `[*batch, vocab]`. `-inf` means probability 0.
      teacher_logits: `[*batch, vocab]`.
      temperature: T > 0, a number or a tensor that broadcasts against the logits.
      where: `[*batch]`, True where a position counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, from 0 to 2.

    Example:
      >>> dist_inter(torch.tensor([[0.0, 1.0]]), torch.tensor([[5.0, 1.0]]))
      tensor([2.])

    Reference:
      Huang et al., Knowledge Distillation from A Stronger Teacher, arXiv:2205.10536.
    """
    q, p = probabilities("dist_inter", student_logits, teacher_logits, temperature, where)
    return _inter(q, p, where)


def dist_intra(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    *,
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, " vocab"]:
    """One minus Pearson's correlation over the positions, class by class (DIST).

        dist_intra_c = 1 - rho(q_:c, p_:c)
        p = softmax(teacher / T),  q = softmax(student / T)

    Relational: all positions that count are one set. A class that is constant over them, and
    every class of a single position, has no correlation: rho = 0.

    Args:
      student_logits: `[*batch, vocab]`. `-inf` means probability 0.
      teacher_logits: `[*batch, vocab]`.
      temperature: T > 0, a number or a tensor that broadcasts against the logits.
      where: `[*batch]`, True where a position counts. Others take no part.

    Returns:
      `[vocab]`, from 0 to 2; all 0 if nothing counts.

    Example:
      >>> x = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
      >>> dist_intra(x, x + 3.0)
      tensor([0., 0.])

    Reference:
      Huang et al., Knowledge Distillation from A Stronger Teacher, arXiv:2205.10536.
    """
    q, p = probabilities("dist_intra", student_logits, teacher_logits, temperature, where)
    return _intra(q, p, where)


def dist(
    student_logits: Float[Tensor, "*batch vocab"],
    teacher_logits: Float[Tensor, "*batch vocab"],
    *,
    beta: float | Tensor = 1.0,
    gamma: float | Tensor = 1.0,
    scale: bool = False,
    temperature: float | Tensor = 1.0,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, ""]:
    """Correlation within every distribution and, class by class, over the batch (DIST).

        dist = T^2 (beta mean_b(1 - rho(q_b, p_b)) + gamma mean_c(1 - rho(q_:c, p_:c)))
        p = softmax(teacher / T),  q = softmax(student / T);  T^2 only with scale=True

    Relational. The paper's listing has no T^2 (the default); its published code has. The means
    of `dist_inter` and `dist_intra`.

    Args:
      student_logits: `[*batch, vocab]`. `-inf` means probability 0.
      teacher_logits: `[*batch, vocab]`.
      beta: weight of the correlation between classes.
      gamma: weight of the correlation within classes.
      scale: multiply by T^2.
      temperature: T > 0, a number.
      where: `[*batch]`, True where a position counts. Others take no part.

    Returns:
      `[]`, from 0 to 2 (beta + gamma); 0 if nothing counts.

    Example:
      >>> x = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
      >>> dist(x, x + 3.0)
      tensor(0.)

    Reference:
      Huang et al., Knowledge Distillation from A Stronger Teacher, arXiv:2205.10536.
    """
    q, p = probabilities("dist", student_logits, teacher_logits, temperature, where)
    inter, intra = _inter(q, p, where), _intra(q, p, where)
    count = max(inter.numel(), 1) if where is None else where.bool().sum().clamp(min=1)
    value = beta * inter.sum() / count + gamma * intra.mean()
    return temperature**2 * value if scale else value


def _inter(q: Tensor, p: Tensor, where: Tensor | None) -> Tensor:
    return keep(1 - correlation(q, p, -1), where)


def _intra(q: Tensor, p: Tensor, where: Tensor | None) -> Tensor:
    q, p = q.reshape(-1, q.shape[-1]), p.reshape(-1, p.shape[-1])
    if not len(q):
        return q.sum(0)
    if where is None:
        return 1 - correlation(q, p, 0)
    counts = where.flatten()[:, None].bool()
    return (1 - correlation(q, p, 0, counts)) * counts.any()
