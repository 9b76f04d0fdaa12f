"""Losses between inner products of feature maps `[batch, channels, *space]`; one per sample."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from .._shared.checks import maps, one_of, per_sample, same_channels, whole
from .._shared.geometry import unit
from .._shared.products import product
from .maps import common_space, same_axes
from .places import Places, Where, any_maps, placed, space_maps


def fsp(
    student_first: Float[Tensor, "batch first *student_first_space"],
    teacher_first: Float[Tensor, "batch first *teacher_first_space"],
    student_second: Float[Tensor, "batch second *student_second_space"],
    teacher_second: Float[Tensor, "batch second *teacher_second_space"],
    *,
    convention: str = "paper",
    where: Where | None = None,
) -> Float[Tensor, " batch"]:
    """Flow of the solution procedure: how the channels of two layers of a model go together.

        G = A B^T / P,   A, B = maps of the first and second layer, `[channels, P places]`
        paper: |G_s - G_t|_F^2          code: the mean of the entries of (G_s - G_t)^2

    The larger map of a model is average-pooled to its smaller one. Common codes average over
    the entries (weight 50); the paper has the squared norm. Channels must be equal in number.
    A mask of places is one of the smaller maps' places, and needs them of one space.

    Args:
      student_first: `[batch, first, *space]`, the student's map of an early layer.
      teacher_first: `[batch, first, *space]`.
      student_second: `[batch, second, *space]`, the student's map of a later layer.
      teacher_second: `[batch, second, *space]`.
      convention: "paper" or "code".
      where: `[batch]`, True where a sample counts, or where all maps have one space,
        `[batch, *space]`, where a place does. Others yield 0 and no gradient.

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
    (s1, t1), (s2, t2) = two_layers(
        "fsp",
        {"student_first": student_first, "teacher_first": teacher_first},
        {"student_second": student_second, "teacher_second": teacher_second},
    )
    same_axes("fsp", student_first=student_first, student_second=student_second)
    same_axes("fsp", teacher_first=teacher_first, teacher_second=teacher_second)
    (s1, s2), (t1, t2) = common_space(s1, s2), common_space(t1, t2)
    (s1, t1, s2, t2), places = placed(
        "fsp", where, student_first=s1, teacher_first=t1, student_second=s2, teacher_second=t2
    )
    difference = _flow(s1, s2, places) - _flow(t1, t2, places)
    square = difference.flatten(1).square()
    return places.keep(square.sum(-1) if convention == "paper" else square.mean(-1))


def two_layers(
    loss: str, first: dict[str, Tensor], second: dict[str, Tensor]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Maps of two layers, the student's and the teacher's of each, checked."""
    filled = per_sample(loss, None, **first), per_sample(loss, None, **second)
    maps(loss, **first, **second)
    same_channels(loss, **first)
    same_channels(loss, **second)
    (a, x), (b, y) = next(iter(first.items())), next(iter(second.items()))
    if x.shape[0] != y.shape[0]:
        raise ValueError(
            f"{loss}: {a} {tuple(x.shape)} and {b} {tuple(y.shape)} must have the same batch size."
        )
    return filled


def _flow(first: Tensor, second: Tensor, places: Places) -> Tensor:
    number = places.number(first)  # of [batch, channels, places]: [batch, 1], or one for all
    number = number if isinstance(number, int) else number.unsqueeze(-1)
    return product(first, second.mT) / number


def gram(
    student_map: Float[Tensor, "batch channels *student_space"],
    teacher_map: Float[Tensor, "batch channels *teacher_space"],
    *,
    where: Where | None = None,
) -> Float[Tensor, " batch"]:
    """Squared error of Gram matrices: which channels are active together, anywhere.

        G = F F^T / P,   F = map as `[C channels, P places]`
        gram = 1/C^2 * |G_s - G_t|_F^2

    It is `fsp(student_map, teacher_map, student_map, teacher_map, convention="code")`. The
    spaces of student and teacher may differ.

    Args:
      student_map: `[batch, channels, *space]`.
      teacher_map: `[batch, channels, *space]`, with the same number of channels.
      where: `[batch]`, True where a sample counts, or where all maps have one space,
        `[batch, *space]`, where a place does. Others yield 0 and no gradient.

    Returns:
      `[batch]`, non-negative. Reordering the places of a map changes nothing.

    Example:
      >>> gram(torch.ones(1, 2, 9), 2 * torch.ones(1, 2, 4))
      tensor([9.])

    Reference:
      Gatys et al., A Neural Algorithm of Artistic Style, arXiv:1508.06576.
    """
    (student, teacher), places = any_maps(
        "gram", where, student_map=student_map, teacher_map=teacher_map
    )
    same_channels("gram", student_map=student_map, teacher_map=teacher_map)
    difference = _flow(student, student, places) - _flow(teacher, teacher, places)
    return places.keep(difference.square().mean((-2, -1)))


def nst(
    student_map: Float[Tensor, "batch student_channels *space"],
    teacher_map: Float[Tensor, "batch teacher_channels *space"],
    *,
    degree: int = 2,
    where: Where | None = None,
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
      where: `[batch]`, True where a sample counts, or `[batch, *space]`, where a place does.
        Others yield 0 and no gradient.

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
    (student, teacher), places = space_maps(
        "nst", where, student_map=student_map, teacher_map=teacher_map
    )
    s, t = unit(student), unit(teacher)
    within = _kernel_mean(s, s, degree) + _kernel_mean(t, t, degree)
    return places.keep(within - 2 * _kernel_mean(s, t, degree))


def _kernel_mean(a: Tensor, b: Tensor, degree: int) -> Tensor:
    return product(a, b.mT).pow(degree).mean((-2, -1))


def ickd(
    student_map: Float[Tensor, "batch channels *student_space"],
    teacher_map: Float[Tensor, "batch channels *teacher_space"],
    *,
    convention: str = "code",
    where: Where | None = None,
) -> Float[Tensor, " batch"]:
    """Inter-channel correlation: distance of the matrices of channel inner products.

        G = F F^T,   F = map as `[C channels, P places]`
        paper: 1/C^2 * |G_s - G_t|_F^2
        code:  1/C * |n(G_s) - n(G_t)|_F^2,   n divides each row by its Euclidean length

    Args:
      student_map: `[batch, channels, *space]`, mapped to the teacher's channels.
      teacher_map: `[batch, channels, *space]`; the space may differ.
      convention: "code" (rows normalised, as in the released implementation) or "paper".
      where: `[batch]`, True where a sample counts, or where all maps have one space,
        `[batch, *space]`, where a place does. Others yield 0 and no gradient.

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
    (student, teacher), places = any_maps(
        "ickd", where, student_map=student_map, teacher_map=teacher_map
    )
    same_channels("ickd", student_map=student_map, teacher_map=teacher_map)
    gs, gt = product(student, student.mT), product(teacher, teacher.mT)
    if convention == "code":
        return places.keep((unit(gs) - unit(gt)).square().sum(-1).mean(-1))
    return places.keep((gs - gt).square().mean((-2, -1)))


def affinity(
    student_map: Float[Tensor, "batch student_channels *space"],
    teacher_map: Float[Tensor, "batch teacher_channels *space"],
    *,
    where: Where | None = None,
) -> Float[Tensor, " batch"]:
    """Squared error of the cosines between all places of a map (segmentation).

        A_ij = cos(f_i, f_j),   f_i = the channels at place i
        affinity = 1/P^2 * sum_ij (As_ij - At_ij)^2

    Memory is `[batch, P, P]`: pool large maps first.

    Args:
      student_map: `[batch, student_channels, *space]`, P = number of places.
      teacher_map: `[batch, teacher_channels, *space]`; the channels may differ in number.
      where: `[batch]`, True where a sample counts, or `[batch, *space]`, where a place does.
        Others yield 0 and no gradient.

    Returns:
      `[batch]`, in [0, 4]. Rotating the channels of a map changes nothing.

    Example:
      >>> affinity(torch.eye(2)[None], torch.ones(1, 3, 2))
      tensor([0.5000])

    Reference:
      He et al., Knowledge Adaptation for Efficient Semantic Segmentation, arXiv:1903.04688.
    """
    (student, teacher), places = space_maps(
        "affinity", where, student_map=student_map, teacher_map=teacher_map
    )
    s, t = unit(student.mT), unit(teacher.mT)
    return places.keep(places.mean(places.mean((product(s, s.mT) - product(t, t.mT)).square())))
