"""Losses with a state: `values, new_state = loss(student, teacher, ..., state=state)`.

A state is a NamedTuple of tensors, made by its `*_init`. It goes in and a new one comes out;
nothing is updated in place. New states carry no gradient. Values use the state that went in.
With several processes, gather the embeddings first if the ranks are to share a queue.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.checks import one_of, paired, positive, whole
from .._shared.geometry import unit
from .._shared.masks import keep
from .._shared.products import product
from .queue import Queue, enqueue, queue_init


class CRDState(NamedTuple):
    """Negatives for `crd`: embeddings of past batches.

    Attributes:
      student: the student's, negatives for the teacher as anchor.
      teacher: the teacher's, negatives for the student as anchor.
    """

    student: Queue
    teacher: Queue


def crd_init(
    size: int,
    dim: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> CRDState:
    """Two empty queues of negatives for `crd`; arguments as of `queue_init`.

    Args:
      size: how many embeddings of each model it holds; N of the paper (16384 there).
      dim: width of the embeddings (128 in the paper).
      dtype: of the embeddings.
      device: of the tensors.

    Returns:
      A `CRDState`.

    Example:
      >>> crd_init(4, 2).teacher.features.shape
      torch.Size([4, 2])
    """
    whole("crd_init", 1, size=size, dim=dim)
    empty = queue_init(size, dim, dtype=dtype, device=device)
    return CRDState(empty, empty)


def crd(
    student_embeddings: Float[Tensor, "batch dim"],
    teacher_embeddings: Float[Tensor, "batch dim"],
    *,
    state: CRDState,
    dataset_size: int | float | Tensor,
    temperature: float | Tensor = 0.07,
    anchor: Literal["both", "student", "teacher"] = "both",
    where: Bool[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
) -> tuple[Float[Tensor, " batch"], CRDState]:
    """Contrastive representation distillation, with a queue of negatives.

        l = - log h(s_b, t_b) - sum_n log(1 - h(s_b, t_n)),   h(s, t) = e / (e + N/M)
        e = exp(s . t / T),   n over the N teacher embeddings in the queue, M = dataset_size

    Embeddings are scaled to length 1 here. With `anchor="both"` the loss of the teacher's
    embedding against the student's queue is added, as in the authors' code. That code draws
    the negatives from a memory of all training samples (and of other classes), and divides e by
    a constant estimated from the first batch; here the negatives are the last batches, and e
    is that of the paper. An empty queue leaves 0.

    Args:
      student_embeddings: `[batch, dim]`, through a learned projection.
      teacher_embeddings: `[batch, dim]`, through another.
      state: from `crd_init`, or the one returned by the step before.
      dataset_size: M, the number of training samples.
      temperature: T > 0.
      anchor: which model's embedding is contrasted with the other's queue.
      where: `[batch]`, True where a sample counts. Others yield 0 and no gradient, and do not
        enter the queues.

    Returns:
      `[batch]`, non-negative, in nats; and the new state, without gradient.

    Example:
      >>> state = crd_init(4, 2)
      >>> for _ in range(2):
      ...     values, state = crd(torch.eye(2), torch.eye(2), state=state, dataset_size=100)
      >>> values.shape, state.teacher.valid.sum()
      (torch.Size([2]), tensor(4))

    Reference:
      Tian et al., Contrastive Representation Distillation, arXiv:1910.10699.
    """
    one_of("crd", "anchor", anchor, ("both", "student", "teacher"))
    positive("crd", temperature=temperature, dataset_size=dataset_size)
    names = {"student_embeddings": student_embeddings, "teacher_embeddings": teacher_embeddings}
    s, t = embeddings("crd", where, state.teacher, **names)
    values = torch.zeros_like(s[:, 0])
    if anchor != "teacher":
        values = values + _nce(s, t, state.teacher, dataset_size, temperature)
    if anchor != "student":
        values = values + _nce(t, s, state.student, dataset_size, temperature)
    new = CRDState(enqueue(state.student, s, where=where), enqueue(state.teacher, t, where=where))
    return keep(values, where), new


def queue_kl(
    student_embeddings: Float[Tensor, "batch dim"],
    teacher_embeddings: Float[Tensor, "batch dim"],
    *,
    state: Queue,
    temperature: float | Tensor = 0.07,
    teacher_temperature: float | Tensor | None = None,
    teacher_key: bool = False,
    where: Bool[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
) -> tuple[Float[Tensor, " batch"], Queue]:
    """KL divergence between the similarities of a sample to a queue of teacher embeddings.

        l = sum_n p_n (log p_n - log q_n)
        p = softmax_n(t . k_n / T_t),   q = softmax_n(s . k_n / T)

    over the embeddings k_n in the queue. Embeddings are scaled to length 1 here. Labels play no
    part. No factor T^2. An empty queue leaves 0.

    This is CompRess with one queue. SEED is `teacher_key=True`: the sample's own teacher
    embedding is one more key, with t . k = 1 for the teacher, and the two temperatures differ
    (0.2 for the student and 0.01 for the teacher in the paper). SEED's loss is the
    cross-entropy, which adds the entropy of p, and no gradient of the student.

    Args:
      student_embeddings: `[batch, dim]`, mapped to the teacher's width.
      teacher_embeddings: `[batch, dim]`.
      state: from `queue_init`, or the one returned by the step before.
      temperature: T > 0, of the student.
      teacher_temperature: T_t > 0; T if None.
      teacher_key: whether the teacher's embedding of the sample is a key, too.
      where: `[batch]`, True where a sample counts. Others yield 0 and no gradient, and do not
        enter the queue.

    Returns:
      `[batch]`, non-negative, in nats; and the new queue, without gradient.

    Example:
      >>> values, queue = queue_kl(torch.eye(2), torch.eye(2), state=queue_init(4, 2))
      >>> values, queue.valid
      (tensor([0., 0.]), tensor([ True,  True, False, False]))

    Reference:
      Koohpayegani et al., CompRess: Self-Supervised Learning by Compressing Representations,
      arXiv:2010.14713;
      Fang et al., SEED: Self-supervised Distillation for Visual Representation, arXiv:2101.04731.
    """
    positive("queue_kl", temperature=temperature)
    positive("queue_kl", teacher_temperature=teacher_temperature)
    names = {"student_embeddings": student_embeddings, "teacher_embeddings": teacher_embeddings}
    s, t = embeddings("queue_kl", where, state, **names)
    student, teacher = (_similarities(x, t if teacher_key else None, state) for x in (s, t))
    log_q = F.log_softmax(student / temperature, dim=-1)
    cooler = temperature if teacher_temperature is None else teacher_temperature
    log_p = F.log_softmax(teacher / cooler, dim=-1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
    return keep(divergence, where), enqueue(state, t, where=where)


def embeddings(loss: str, where: Tensor | None, queue: Queue, **pair: Tensor) -> tuple[Tensor, ...]:
    s, t = paired(loss, where, **pair)
    if s.ndim != 2 or s.shape[-1] != queue.features.shape[-1]:
        raise ValueError(
            f"{loss}: embeddings {tuple(s.shape)} and state with {queue.features.shape[-1]} "
            "features; [batch, dim] with the dim given to the state's init is expected."
        )
    return unit(s), unit(t)


def _similarities(x: Tensor, key: Tensor | None, queue: Queue) -> Tensor:
    """`[batch, size]` cosines with the queue, the sample's own key before them if there is one;
    far below any cosine where the queue holds nothing, whatever temperature divides them."""
    cosines = product(x, keys(queue, x).mT).masked_fill(~queue.valid, -1e9)
    return cosines if key is None else torch.cat([(x * key).sum(-1, keepdim=True), cosines], -1)


def keys(queue: Queue, like: Tensor) -> Tensor:
    return queue.features.detach().to(like.dtype)


def _nce(
    anchor: Tensor,
    positive: Tensor,
    negatives: Queue,
    dataset_size: int | float | Tensor,
    temperature: float | Tensor,
) -> Tensor:
    near = (anchor * positive).sum(-1) / temperature
    far = product(anchor, keys(negatives, anchor).mT) / temperature
    return noise_contrast(near, far, negatives, dataset_size)


def noise_contrast(
    near: Tensor, far: Tensor, negatives: Queue, dataset_size: int | float | Tensor
) -> Tensor:
    """`- log h(near) - sum over the queue of log(1 - h(far))`; 0 if the queue is empty.

    h(z) = e^z / (e^z + N/M) = sigmoid(z - log(N / M)), so nothing overflows.

    Args:
      near: `[...]`, similarities to the positives, over the temperature.
      far: `[..., queue]`, likewise to the rows of the queue.
      negatives: the queue; N is how many of its rows are filled.
      dataset_size: M.
    """
    valid = negatives.valid.to(near.dtype)
    number = valid.sum()
    offset = number.clamp(min=1.0).log() - torch.as_tensor(dataset_size).to(near).log()
    values = -F.logsigmoid(near - offset) - (F.logsigmoid(offset - far) * valid).sum(-1)
    return torch.where(number > 0, values, 0.0)
