"""Further losses between the relations of samples: kernels, neighbourhoods, graphs.

As in `_relation`: every sample is an anchor with one value, the mean over the samples is the
loss, and samples where `where` is False are in no pair.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.checks import one_of, positive, whole
from .._shared.geometry import counted, unit
from .._shared.masks import keep
from .._shared.products import product
from .rkd import rows


def correlation_congruence(
    student_features: Float[Tensor, "batch ..."],
    teacher_features: Float[Tensor, "batch ..."],
    *,
    kernel: str = "gaussian",
    gamma: float | Tensor = 0.4,
    order: int = 2,
    where: Bool[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """Correlation congruence: squared distance of the kernel matrices of a batch.

        gaussian: K_ij = sum_p=0..order exp(-2 gamma) (2 gamma)^p / p! * (x_i . x_j)^p
        linear:   K_ij = x_i . x_j                          with x divided by its length
        value_i = 1/n * sum_j (Ks_ij - Kt_ij)^2

    The first is the Taylor polynomial of exp(-gamma |x_i - x_j|^2) for vectors of length 1.

    Args:
      student_features: `[batch, ...]`, flattened to `[batch, features]`.
      teacher_features: `[batch, ...]`; the number of features may differ.
      kernel: "gaussian" or "linear" (the paper's bilinear pool).
      gamma: > 0, width of the Gaussian kernel.
      order: of its Taylor polynomial, 1 or more.
      where: `[batch]`, True where a sample counts; n is the number of those.

    Returns:
      `[batch]`, one value per sample, non-negative.

    Example:
      >>> correlation_congruence(torch.eye(2), torch.ones(2, 3), kernel="linear")
      tensor([0.5000, 0.5000])

    Reference:
      Peng et al., Correlation Congruence for Knowledge Distillation, arXiv:1904.01802.
    """
    one_of("correlation_congruence", "kernel", kernel, ("gaussian", "linear"))
    positive("correlation_congruence", gamma=gamma)
    whole("correlation_congruence", 1, order=order)
    student, teacher = rows("correlation_congruence", where, student_features, teacher_features)
    weight, count = counted(where, student)
    cosines = [product(unit(x), unit(x).mT) for x in (student, teacher)]
    if kernel == "gaussian":
        cosines = [_taylor(c, gamma, order) for c in cosines]
    return keep(product((cosines[0] - cosines[1]).square(), weight) / count, where)


def _taylor(cosine: Tensor, gamma: float | Tensor, order: int) -> Tensor:
    scale = torch.exp(torch.as_tensor(-2 * gamma, dtype=cosine.dtype, device=cosine.device))
    total = torch.ones_like(cosine)
    for p in range(1, order + 1):
        total = total + (2 * gamma * cosine) ** p / float(math.factorial(p))
    return scale * total


def pkt(
    student_features: Float[Tensor, "batch ..."],
    teacher_features: Float[Tensor, "batch ..."],
    *,
    convention: str = "paper",
    eps: float = 1e-7,
    where: Bool[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """Probabilistic knowledge transfer: KL of the neighbourhoods of every sample.

        K_ij = (1 + cos(x_i, x_j)) / 2 + eps,   p_ij = K_ij / sum_j K_ij
        value_i = sum_j p_ij log(p_ij / q_ij),   p of the teacher, q of the student

    In the paper a sample is no neighbour of itself (j != i); in the authors' code it is. The
    code further averages over j: its weight of 30000 is 30000 / n here.

    Args:
      student_features: `[batch, ...]`, flattened to `[batch, features]`.
      teacher_features: `[batch, ...]`; the number of features may differ.
      convention: "paper" or "code".
      eps: > 0, keeps the logarithm of opposite samples finite.
      where: `[batch]`, True where a sample counts. The others are no neighbours.

    Returns:
      `[batch]`, one value per sample, non-negative, in nats.

    Example:
      >>> pkt(torch.eye(2), torch.ones(2, 3), convention="code")
      tensor([0.0589, 0.0589])

    Reference:
      Passalis and Tefas, Learning Deep Representations with Probabilistic Knowledge
      Transfer, arXiv:1803.10837.
    """
    one_of("pkt", "convention", convention, ("paper", "code"))
    positive("pkt", eps=eps)
    student, teacher = rows("pkt", where, student_features, teacher_features)
    neighbours = counted(where, student)[0].expand(len(student), -1)
    if convention == "paper":
        neighbours = neighbours - torch.diag_embed(neighbours.diagonal())
    p, q = (_neighbourhood(x, neighbours, eps) for x in (teacher, student))
    counts = neighbours > 0
    ratio = torch.where(counts, p, 1.0).log() - torch.where(counts, q, 1.0).log()
    return keep((p * ratio).sum(-1), where)


def _neighbourhood(x: Tensor, neighbours: Tensor, eps: float) -> Tensor:
    x = unit(x)
    # 1 - |x_i - x_j|^2 / 4 = (1 + cos) / 2; cos may round to just below -1.
    similarity = (0.5 + 0.5 * product(x, x.mT)).clamp(min=0.0) + eps
    similarity = similarity * neighbours
    return similarity / similarity.sum(-1, keepdim=True).clamp(min=eps)


def infonce(
    student_features: Float[Tensor, "batch ..."],
    teacher_features: Float[Tensor, "batch ..."],
    *,
    temperature: float | Tensor = 0.07,
    where: Bool[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """InfoNCE: find the teacher's vector of a sample among those of the whole batch.

        value_i = -log(exp(s_i . t_i / T) / sum_j exp(s_i . t_j / T))

    s and t are divided by their lengths. log n - value is a lower bound of the mutual
    information of student and teacher.

    Args:
      student_features: `[batch, ...]`, flattened to `[batch, features]`.
      teacher_features: `[batch, ...]`, with the same number of features.
      temperature: T > 0.
      where: `[batch]`, True where a sample counts. The others are no candidates.

    Returns:
      `[batch]`, one value per sample, non-negative, in nats.

    Example:
      >>> infonce(torch.eye(2), torch.eye(2), temperature=1.0)
      tensor([0.3133, 0.3133])

    Reference:
      van den Oord et al., Representation Learning with Contrastive Predictive Coding,
      arXiv:1807.03748.
    """
    positive("infonce", temperature=temperature)
    student, teacher = _same_width("infonce", where, student_features, teacher_features)
    scores = product(unit(student), unit(teacher).mT) / temperature
    matching = scores.diagonal()
    if where is not None:
        scores = scores.masked_fill(~where.bool(), -torch.inf)
        # A row of -inf alone has no finite gradient: keep the diagonal of excluded rows.
        scores = torch.diagonal_scatter(scores, matching)
    return keep(scores.logsumexp(-1) - matching, where)


def cos_nce(
    student_features: Float[Tensor, "batch ..."],
    teacher_features: Float[Tensor, "batch ..."],
    *,
    where: Bool[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """Contrast by angles: near the teacher's vector of a sample, far from the others' (LRC-BERT).

        g_ij = 1 - cos(s_i, t_j)
        value_i = g_ii + 1/(2K) * sum_{j != i} (2 - (g_ij - g_ii))

    The K negatives are the teacher's vectors of the other samples of the batch; without any,
    g_ii alone is left. 2 is the largest distance, so no margin is to be chosen.

    Args:
      student_features: `[batch, ...]`, flattened to `[batch, features]`.
      teacher_features: `[batch, ...]`, with the same number of features.
      where: `[batch]`, True where a sample counts. The others are no negatives.

    Returns:
      `[batch]`, one value per sample, in [0, 4].

    Example:
      >>> cos_nce(torch.eye(2), torch.eye(2))
      tensor([0.5000, 0.5000])

    Reference:
      Fu et al., LRC-BERT: Latent-representation Contrastive Knowledge Distillation for Natural
      Language Understanding, arXiv:2012.07335.
    """
    student, teacher = _same_width("cos_nce", where, student_features, teacher_features)
    distance = 1 - product(unit(student), unit(teacher).mT)
    near = distance.diagonal()
    weight, count = counted(where, student)
    negatives = (count - weight).clamp(min=1.0)
    others = weight - torch.diag_embed(weight)  # [anchor, negative]
    far = ((2 - distance + near[:, None]) * others).sum(-1) / (2 * negatives)
    return keep(near + far, where)


def _same_width(
    loss: str, where: Tensor | None, student_features: Tensor, teacher_features: Tensor
) -> tuple[Tensor, Tensor]:
    student, teacher = rows(loss, where, student_features, teacher_features)
    if student.shape != teacher.shape:
        raise ValueError(
            f"{loss}: student_features {tuple(student.shape)} and teacher_features "
            f"{tuple(teacher.shape)} must have the same width. Map the student first, for example "
            f"with fkd.trainable(torch.nn.Linear({student.shape[1]}, {teacher.shape[1]}))."
        )
    return student, teacher
