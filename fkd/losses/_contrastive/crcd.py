"""Contrast between the relations of samples instead of the samples (CRCD), with a queue."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.checks import one_of, positive
from .._shared.geometry import counted, root, unit
from .._shared.masks import keep
from .._shared.products import product
from .crd import CRDState, embeddings, keys, noise_contrast
from .queue import Queue, enqueue


def crcd(
    student_embeddings: Float[Tensor, "batch dim"],
    teacher_embeddings: Float[Tensor, "batch dim"],
    *,
    state: CRDState,
    dataset_size: int | float | Tensor,
    temperature: float | Tensor = 0.1,
    anchor: Literal["both", "student", "teacher"] = "both",
    where: Bool[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
) -> tuple[Float[Tensor, " batch"], CRDState]:
    """Complementary relation contrastive distillation: relations to anchors, contrasted.

        r(a, x) = (x - t_a) / |x - t_a|, with the teacher's embeddings t_a of the batch as anchors
        l_b = mean over a != b of - log h(s_b, t_b) - sum_n log(1 - h(s_b, t_n))
        h(x, y) = e / (e + N/M),   e = exp(r(a, x) . r(a, y) / T),   n over the N in the queue

    So the relation of a student's embedding to a teacher's anchor is drawn to that of the
    teacher's embedding of the same sample, and away from those of others. M is `dataset_size`.
    With `anchor="both"` the loss with the roles exchanged is added, as in the public code: the
    teacher's embeddings against the student's queue, around the student's anchors. In the paper
    a relation is a learned function of two embeddings; here, as in that code, it is their
    difference, and what is learned are the projections before it. Anchors and queue have no
    gradient. The paper's second relation, of gradients, is this loss of the gradients with
    respect to the features. An empty queue leaves 0.

    Args:
      student_embeddings: `[batch, dim]`, through a learned projection; scaled to length 1 here.
      teacher_embeddings: `[batch, dim]`, through another; likewise.
      state: from `crd_init`, or the one returned by the step before.
      dataset_size: M, the number of training samples.
      temperature: T > 0.
      anchor: whose embeddings are the anchors: "teacher", as in the formula, "student" or both.
      where: `[batch]`, True where a sample counts. Others yield 0 and no gradient, are no anchors,
        and do not enter the queues.

    Returns:
      `[batch]`, non-negative, in nats; and the new state, without gradient.

    Example:
      >>> from fkd.losses import crd_init
      >>> state = crd_init(4, 2)
      >>> for _ in range(2):
      ...     values, state = crcd(torch.eye(2), torch.eye(2), state=state, dataset_size=100)
      >>> values.shape, state.teacher.valid.sum()
      (torch.Size([2]), tensor(4))

    Reference:
      Zhu et al., Complementary Relation Contrastive Distillation, arXiv:2103.16367.
    """
    one_of("crcd", "anchor", anchor, ("both", "student", "teacher"))
    positive("crcd", temperature=temperature, dataset_size=dataset_size)
    names = {"student_embeddings": student_embeddings, "teacher_embeddings": teacher_embeddings}
    s, t = embeddings("crcd", where, state.teacher, **names)
    values = torch.zeros_like(s[:, 0])
    if anchor != "student":
        values = values + _contrast(
            s, t, t.detach(), state.teacher, dataset_size, temperature, where
        )
    if anchor != "teacher":
        values = values + _contrast(
            t, s, s.detach(), state.student, dataset_size, temperature, where
        )
    new = CRDState(enqueue(state.student, s, where=where), enqueue(state.teacher, t, where=where))
    return keep(values, where), new


def _contrast(
    x: Tensor,
    positives: Tensor,
    anchors: Tensor,
    negatives: Queue,
    dataset_size: int | float | Tensor,
    temperature: float | Tensor,
    where: Tensor | None,
) -> Tensor:
    """`[batch]`, the mean over the anchors of the other samples."""
    relation = unit(x - anchors.unsqueeze(1))  # [anchor, sample, dim]
    near = (relation * unit(positives - anchors.unsqueeze(1))).sum(-1) / temperature
    far = _cosines(relation, keys(negatives, x), anchors) / temperature  # [anchor, sample, n]
    each = noise_contrast(near, far, negatives, dataset_size)
    weight, _ = counted(where, x)
    others = weight.unsqueeze(-1) - torch.diag_embed(weight)  # [anchor, sample]
    return (each * others).sum(0) / others.sum(0).clamp(min=1.0)


def _cosines(relation: Tensor, y: Tensor, anchors: Tensor) -> Tensor:
    """`[anchor, sample, row of y]`, cosines of relations and of `y - anchor`, whose differences
    are never stored; 0 where y is at the anchor."""
    to_anchor = product(anchors, y.mT)
    squared_length = (anchors * anchors).sum(-1, keepdim=True)
    length = root((squared_length - 2 * to_anchor + (y * y).sum(-1)).clamp(min=0.0)).unsqueeze(1)
    inner = product(relation, y.mT) - product(relation, anchors.unsqueeze(-1))
    return torch.where(length > 0, inner / torch.where(length > 0, length, 1.0), 0.0)
