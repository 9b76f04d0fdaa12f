"""Optimal transport between sets of hidden states: of tokens, or of layers.

Entropic transport by a fixed number of Sinkhorn iterations in the logarithmic domain: no
data-dependent control flow, and differentiable through the iterations.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.checks import axes, covers, floating, positive, whole
from .._shared.masks import fill, keep, upcast
from .._shared.products import product

_LOG_ZERO = -1e9  # log of no mass; finite, so that sums of it stay finite


def sinkhorn_plan(
    cost: Float[Tensor, "*batch source target"],
    source_mass: Float[Tensor, "*batch source"],
    target_mass: Float[Tensor, "*batch target"],
    *,
    epsilon: float | Tensor = 0.1,
    iterations: int = 50,
) -> Float[Tensor, "*batch source target"]:
    """The entropic transport plan of a cost matrix.

        P = argmin <P, C> + epsilon * sum P (log P - 1),   P 1 = a,  P^T 1 = b

    Column sums are exact, row sums as good as the number of iterations.

    Args:
      cost: `[*batch, source, target]`.
      source_mass: `[*batch, source]`, a, non-negative.
      target_mass: `[*batch, target]`, b, with the same sum.
      epsilon: > 0, in units of the cost; small values are sharper and need more iterations.
      iterations: how many pairs of updates, 1 or more.

    Returns:
      `[*batch, source, target]`, non-negative.

    Example:
      >>> cost, mass = torch.tensor([[0.0, 9.0], [9.0, 0.0]]), torch.tensor([0.5, 0.5])
      >>> sinkhorn_plan(cost, mass, mass).diagonal()
      tensor([0.5000, 0.5000])

    Reference:
      Cuturi, Sinkhorn Distances: Lightspeed Computation of Optimal Transport,
      arXiv:1306.0895.
    """
    floating("sinkhorn_plan", cost=cost, source_mass=source_mass, target_mass=target_mass)
    _knobs("sinkhorn_plan", epsilon, iterations)
    log_a, log_b = _log(source_mass), _log(target_mass)
    scores = -cost / epsilon
    v = torch.where(target_mass > 0, torch.zeros_like(log_b), _LOG_ZERO)
    u = torch.zeros_like(log_a)
    for _ in range(iterations):
        u = log_a - (scores + v[..., None, :]).logsumexp(-1)
        v = log_b - (scores + u[..., :, None]).logsumexp(-2)
    return (scores + u[..., :, None] + v[..., None, :]).exp()


def _knobs(loss: str, epsilon: float | Tensor, iterations: int) -> None:
    positive(loss, epsilon=epsilon)
    whole(loss, 1, iterations=iterations)


def _log(mass: Tensor) -> Tensor:
    return torch.where(mass > 0, torch.where(mass > 0, mass, 1.0).log(), _LOG_ZERO)


def sinkhorn(
    student_hidden: Float[Tensor, "*batch student_length hidden"],
    teacher_hidden: Float[Tensor, "*batch teacher_length hidden"],
    *,
    epsilon: float | Tensor = 0.1,
    iterations: int = 50,
    student_where: Bool[Tensor, "*batch student_length"] | None = None,
    teacher_where: Bool[Tensor, "*batch teacher_length"] | None = None,
    where: Bool[Tensor, "*batch"] | Int[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Transport cost between the tokens of student and teacher, which may be cut differently.

        C_ij = 1/D * |s_i - t_j|^2
        sinkhorn = sum_ij P_ij C_ij,   P = entropic plan between uniform masses

    As epsilon goes to 0 this is the earth mover's distance; as it grows, the mean of C. With
    epsilon > 0 it is above 0 even at equality.

    Args:
      student_hidden: `[*batch, student_length, hidden]`, D = hidden.
      teacher_hidden: `[*batch, teacher_length, hidden]`; the length may differ.
      epsilon: > 0, in units of the cost.
      iterations: of Sinkhorn's algorithm; each keeps a matrix of student_length by
        teacher_length for the gradient.
      student_where: `[*batch, student_length]`, True where a token of the student has mass.
      teacher_where: `[*batch, teacher_length]`.
      where: `[*batch]`, True where a set counts. Others yield 0 and no gradient.

    Returns:
      `[*batch]`, non-negative. A set without a token on one side has the cost 0.

    Example:
      >>> s, t = torch.tensor([[[0.0], [5.0]]]), torch.tensor([[[5.0], [1.0]]])
      >>> sinkhorn(s, t, epsilon=0.01)
      tensor([0.5000])

    Reference:
      Cuturi, Sinkhorn Distances: Lightspeed Computation of Optimal Transport,
      arXiv:1306.0895.
    """
    _knobs("sinkhorn", epsilon, iterations)
    pair = {"student_hidden": student_hidden, "teacher_hidden": teacher_hidden}
    _same_sets("sinkhorn", "*batch length hidden", **pair)
    covers("sinkhorn", where, student_hidden.shape[:-2])
    student, teacher = fill(student_hidden, teacher_hidden, where=where)
    student, a = _massed(student, "student_where", student_where)
    teacher, b = _massed(teacher, "teacher_where", teacher_where)
    cost = _square_distance(student, teacher) / student.shape[-1]
    plan = sinkhorn_plan(cost, a, b, epsilon=epsilon, iterations=iterations)
    some = (a > 0).any(-1) & (b > 0).any(-1)
    return keep(torch.where(some, (plan * cost).sum((-2, -1)), 0.0), where)


def _same_sets(loss: str, layout: str, /, **pair: Tensor) -> None:
    floating(loss, **pair)
    axes(loss, layout, **pair)
    (a, x), (b, y) = ((name, x.shape) for name, x in pair.items())
    if x[:-2] != y[:-2] or x[-1] != y[-1]:
        raise ValueError(
            f"{loss}: {a} {tuple(x)} and {b} {tuple(y)} must agree in all axes but the "
            "last but one. If the widths differ, map the student first, for example with "
            f"fkd.trainable(torch.nn.Linear({x[-1]}, {y[-1]}))."
        )


def _massed(x: Tensor, name: str, where: Tensor | None) -> tuple[Tensor, Tensor]:
    """The set without what its excluded members hold, and its uniform mass."""
    covers("sinkhorn", where, x.shape[:-1], name=name)
    (x,) = fill(x, where=where)
    mass = torch.ones_like(x[..., 0]) if where is None else where.to(x.dtype)
    return x, mass / mass.sum(-1, keepdim=True).clamp(min=1.0)


def _square_distance(x: Tensor, y: Tensor) -> Tensor:
    squares = x.square().sum(-1)[..., :, None] + y.square().sum(-1)[..., None, :]
    return (squares - product(2 * x, y.mT)).clamp(min=0.0)


def bert_emd(
    student_layers: Float[Tensor, "*batch length student_layers hidden"],
    teacher_layers: Float[Tensor, "*batch length teacher_layers hidden"],
    *,
    student_weight: Float[Tensor, " student_layers"] | None = None,
    teacher_weight: Float[Tensor, " teacher_layers"] | None = None,
    epsilon: float | Tensor = 0.01,
    iterations: int = 50,
    where: Bool[Tensor, "*batch length"] | Int[Tensor, "*batch length"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Many-to-many layer mapping: transport cost between the layers of student and teacher.

        C_ij = mean over the tokens that count of 1/D * |s_i - t_j|^2
        bert_emd = sum_ij P_ij C_ij,   P = entropic plan between the weights of the layers

    The paper solves the transport exactly, outside the graph; here it is entropic, so that it
    compiles (epsilon to 0 is the paper's value). One plan for each sequence.

    Args:
      student_layers: `[*batch, length, student_layers, hidden]`, `torch.stack(layers, dim=-2)`.
      teacher_layers: `[*batch, length, teacher_layers, hidden]`.
      student_weight: `[student_layers]`, non-negative with sum 1; uniform if None.
      teacher_weight: `[teacher_layers]`.
      epsilon: > 0, in units of the cost.
      iterations: of Sinkhorn's algorithm.
      where: `[*batch, length]`, True where a token counts.

    Returns:
      `[*batch]`, non-negative, one value for each sequence (0 if none of its tokens counts).

    Example:
      >>> student = torch.tensor([[[[0.0], [3.0]]]])
      >>> bert_emd(student, torch.tensor([[[[3.0], [1.0]]]]))
      tensor([0.5000])

    Reference:
      Li et al., BERT-EMD: Many-to-Many Layer Mapping for BERT Compression with Earth Mover's
      Distance, arXiv:2010.06133.
    """
    _knobs("bert_emd", epsilon, iterations)
    pair = {"student_layers": student_layers, "teacher_layers": teacher_layers}
    _same_sets("bert_emd", "*batch length layers hidden", **pair)
    covers("bert_emd", where, student_layers.shape[:-2])
    student, teacher = fill(student_layers, teacher_layers, where=where)
    tokens = torch.ones_like(student[..., 0, 0]) if where is None else where.to(student.dtype)
    count = tokens.sum(-1)[..., None, None].clamp(min=1.0)
    cost = _square_distance(student, teacher).sum(-3) / (count * student.shape[-1])
    a = _layer_mass("student_weight", student_weight, cost[..., 0])
    b = _layer_mass("teacher_weight", teacher_weight, cost[..., 0, :])
    plan = sinkhorn_plan(cost, a, b, epsilon=epsilon, iterations=iterations)
    return (plan * cost).sum((-2, -1))


def _layer_mass(name: str, weight: Tensor | None, like: Tensor) -> Tensor:
    if weight is None:
        return torch.full_like(like, 1.0 / like.shape[-1])
    if weight.shape != like.shape[-1:]:
        raise ValueError(
            f"bert_emd: {name} has shape {tuple(weight.shape)}; one number for each of the "
            f"{like.shape[-1]} layers is expected."
        )
    return upcast(weight).expand_as(like)
