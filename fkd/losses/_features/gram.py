"""Losses between inner products of feature maps `[batch, channels, *space]`; one per sample."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.checks import maps, one_of, per_sample, same_channels, same_space, whole
from .._shared.geometry import unit
from .._shared.masks import keep
from .._shared.products import product
from .maps import common_space


def fsp(
    student_first: Float[Tensor, "batch first *student_first_space"],
    teacher_first: Float[Tensor, "batch first *teacher_first_space"],
    student_second: Float[Tensor, "batch second *student_second_space"],
    teacher_second: Float[Tensor, "batch second *teacher_second_space"],
    *,
    convention: str = "paper",
    where: Bool[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """Flow of the solution procedure: how the channels of two layers of a model go together.

        G = A B^T / P,   A, B = maps of the first and second layer, `[channels, P places]`
        paper: |G_s - G_t|_F^2          code: the mean of the entries of (G_s - G_t)^2

    The larger map of a model is average-pooled to its smaller one. Common codes average over
    the entries (weight 50); the paper has the squared norm. Channels must be equal in number.

    Args:
      student_first: `[batch, first, *space]`, the student's map of an early layer.
      teacher_first: `[batch, first, *space]`.
      student_second: `[batch, second, *space]`, the student's map of a later layer.
      teacher_second: `[batch, second, *space]`.
      convention: "paper" or "code".
      where: `[batch]`, True where a sample counts. Others yield 0 and no gradient.

    Returns:
      `[batch]`, non-negative.

    Example:
      >>> a, b = torch.ones(1, 2, 4), torch.ones(1, 3, 4)
      >>> fsp(a, a, b, 2 * b), fsp(a, a, b, 2 * b, convention="code")
      (tensor([6.]), tensor([1.]))

    Reference:
      Yim et al., A Gift from Knowledge Distillation, CVPR 2017.
    """
    one_of("fsp", "convention", convention, ("paper", "code"))
    first, second = two_layers(
        "fsp",
        where,
        {"student_first": student_first, "teacher_first": teacher_first},
        {"student_second": student_second, "teacher_second": teacher_second},
    )
    _same_axes(student_first=student_first, student_second=student_second)
    _same_axes(teacher_first=teacher_first, teacher_second=teacher_second)
    difference = (_flow(first[0], second[0]) - _flow(first[1], second[1])).flatten(1).square()
    values = difference.sum(-1) if convention == "paper" else difference.mean(-1)
    return keep(values, where)


def two_layers(
    loss: str, where: Tensor | None, first: dict[str, Tensor], second: dict[str, Tensor]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Maps of two layers, the student's and the teacher's of each, checked and filled."""
    filled = per_sample(loss, where, **first), per_sample(loss, where, **second)
    maps(loss, **first, **second)
    same_channels(loss, **first)
    same_channels(loss, **second)
    (a, x), (b, y) = next(iter(first.items())), next(iter(second.items()))
    if x.shape[0] != y.shape[0]:
        raise ValueError(
            f"{loss}: {a} {tuple(x.shape)} and {b} {tuple(y.shape)} must have the same batch size."
        )
    return filled


def _same_axes(**layers: Tensor) -> None:
    (a, x), (b, y) = layers.items()
    if x.ndim != y.ndim:
        raise ValueError(
            f"fsp: {a} {tuple(x.shape)} and {b} {tuple(y.shape)} must have the same number of "
            "axes, since the larger one is pooled. Reshape one of them first."
        )


def _flow(first: Tensor, second: Tensor) -> Tensor:
    first, second = (x.flatten(2) for x in common_space(first, second))
    return product(first, second.mT) / first.shape[-1]


def gram(
    student_map: Float[Tensor, "batch channels *student_space"],
    teacher_map: Float[Tensor, "batch channels *teacher_space"],
    *,
    where: Bool[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """Squared error of Gram matrices: which channels are active together, anywhere.

        G = F F^T / P,   F = map as `[C channels, P places]`
        gram = 1/C^2 * |G_s - G_t|_F^2

    It is `fsp(student_map, teacher_map, student_map, teacher_map, convention="code")`. The
    spaces of student and teacher may differ.

    Args:
      student_map: `[batch, channels, *space]`.
      teacher_map: `[batch, channels, *space]`, with the same number of channels.
      where: `[batch]`, True where a sample counts. Others yield 0 and no gradient.

    Returns:
      `[batch]`, non-negative. Reordering the places of a map changes nothing.

    Example:
      >>> gram(torch.ones(1, 2, 9), 2 * torch.ones(1, 2, 4))
      tensor([9.])

    Reference:
      Gatys et al., A Neural Algorithm of Artistic Style, arXiv:1508.06576.
    """
    student, teacher = per_sample("gram", where, student_map=student_map, teacher_map=teacher_map)
    maps("gram", student_map=student_map, teacher_map=teacher_map)
    same_channels("gram", student_map=student_map, teacher_map=teacher_map)
    difference = _flow(student, student) - _flow(teacher, teacher)
    return keep(difference.square().mean((-2, -1)), where)


def nst(
    student_map: Float[Tensor, "batch student_channels *space"],
    teacher_map: Float[Tensor, "batch teacher_channels *space"],
    *,
    degree: int = 2,
    where: Bool[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """Neuron selectivity transfer: maximum mean discrepancy of the channels' patterns.

        k(a, b) = (a . b)^degree,   s_c, t_c = channels as vectors over space, of length 1
        nst = mean_cc' k(s_c, s_c') + mean_cc' k(t_c, t_c') - 2 mean_cc' k(s_c, t_c')

    degree 1 is the paper's linear kernel (close to attention transfer), 2 its polynomial one.
    Memory: the three matrices of inner products, `[batch, Cs, Cs]`, `[batch, Ct, Ct]` and
    `[batch, Cs, Ct]`; nothing of the size Cs * Ct * places is formed.

    Args:
      student_map: `[batch, student_channels, *space]`.
      teacher_map: `[batch, teacher_channels, *space]`; the channels may differ in number.
      degree: of the polynomial kernel, 1 or more.
      where: `[batch]`, True where a sample counts. Others yield 0 and no gradient.

    Returns:
      `[batch]`, non-negative (up to rounding). The order of the channels does not matter.

    Example:
      >>> nst(torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[0.0, 4.0]]]))
      tensor([2.])

    Reference:
      Huang and Wang, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer,
      arXiv:1707.01219.
    """
    whole("nst", 1, degree=degree)
    student, teacher = per_sample("nst", where, student_map=student_map, teacher_map=teacher_map)
    same_space("nst", student_map=student_map, teacher_map=teacher_map)
    s, t = unit(student.flatten(2)), unit(teacher.flatten(2))
    within = _kernel_mean(s, s, degree) + _kernel_mean(t, t, degree)
    return keep(within - 2 * _kernel_mean(s, t, degree), where)


def _kernel_mean(a: Tensor, b: Tensor, degree: int) -> Tensor:
    return product(a, b.mT).pow(degree).mean((-2, -1))


def ickd(
    student_map: Float[Tensor, "batch channels *student_space"],
    teacher_map: Float[Tensor, "batch channels *teacher_space"],
    *,
    convention: str = "code",
    where: Bool[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """Inter-channel correlation: distance of the matrices of channel inner products.

        G = F F^T,   F = map as `[C channels, P places]`
        paper: 1/C^2 * |G_s - G_t|_F^2
        code:  1/C * |n(G_s) - n(G_t)|_F^2,   n divides each row by its Euclidean length

    Args:
      student_map: `[batch, channels, *space]`, mapped to the teacher's channels.
      teacher_map: `[batch, channels, *space]`; the space may differ.
      convention: "code" (rows normalised, as in the released implementation) or "paper".
      where: `[batch]`, True where a sample counts. Others yield 0 and no gradient.

    Returns:
      `[batch]`, non-negative; code: in [0, 4].

    Example:
      >>> ickd(torch.eye(2)[None], torch.ones(1, 2, 2))
      tensor([0.5858])

    Reference:
      Liu et al., Exploring Inter-Channel Correlation for Diversity-preserved Knowledge
      Distillation, arXiv:2202.03680.
    """
    one_of("ickd", "convention", convention, ("code", "paper"))
    student, teacher = per_sample("ickd", where, student_map=student_map, teacher_map=teacher_map)
    maps("ickd", student_map=student_map, teacher_map=teacher_map)
    same_channels("ickd", student_map=student_map, teacher_map=teacher_map)
    gs, gt = _inner(student), _inner(teacher)
    if convention == "code":
        return keep((unit(gs) - unit(gt)).square().sum(-1).mean(-1), where)
    return keep((gs - gt).square().mean((-2, -1)), where)


def _inner(feature_map: Tensor) -> Tensor:
    flat = feature_map.flatten(2)
    return product(flat, flat.mT)


def affinity(
    student_map: Float[Tensor, "batch student_channels *space"],
    teacher_map: Float[Tensor, "batch teacher_channels *space"],
    *,
    where: Bool[Tensor, " batch"] | Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """Squared error of the cosines between all places of a map (segmentation).

        A_ij = cos(f_i, f_j),   f_i = the channels at place i
        affinity = 1/P^2 * sum_ij (As_ij - At_ij)^2

    Memory is `[batch, P, P]`: pool large maps first.

    Args:
      student_map: `[batch, student_channels, *space]`, P = number of places.
      teacher_map: `[batch, teacher_channels, *space]`; the channels may differ in number.
      where: `[batch]`, True where a sample counts. Others yield 0 and no gradient.

    Returns:
      `[batch]`, in [0, 4]. Rotating the channels of a map changes nothing.

    Example:
      >>> affinity(torch.eye(2)[None], torch.ones(1, 3, 2))
      tensor([0.5000])

    Reference:
      He et al., Knowledge Adaptation for Efficient Semantic Segmentation, arXiv:1903.04688.
    """
    student, teacher = per_sample(
        "affinity", where, student_map=student_map, teacher_map=teacher_map
    )
    same_space("affinity", student_map=student_map, teacher_map=teacher_map)
    s, t = unit(student.flatten(2).mT), unit(teacher.flatten(2).mT)
    return keep((product(s, s.mT) - product(t, t.mT)).square().mean((-2, -1)), where)
