"""Losses for detectors: foreground and background apart (FGD). One value per sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._shared.checks import covers, floating, one_of, positive
from .._shared.masks import upcast
from .attended import magnitudes
from .places import Places, Where, equal_maps


def fgd_weight(
    boxes: Float[Tensor, "batch box 4"],
    size: tuple[int, int],
    *,
    foreground: float | Tensor = 1.0,
    background: float | Tensor = 0.5,
    convention: str = "paper",
    valid: Bool[Tensor, "batch box"] | Int[Tensor, "batch box"] | None = None,
) -> Float[Tensor, "batch height width"]:
    """Weight of every place of a feature map, from the boxes of the objects (FGD).

        w_ij = foreground / (cells of the box) in a box,   background / N elsewhere

    with N the number of places in no box; where boxes overlap, the smallest counts. So every
    object weighs the same, whatever its size. A box is the cells that it touches; the authors'
    code gives it one more row below and one more column to the right.

    Args:
      boxes: `[batch, box, 4]`: left, top, right, bottom, in cells of the map (pixels divided by
        the stride). A box holds every cell it touches, at least one.
      size: height and width of the map.
      foreground: alpha of the paper. 5e-5 for two-stage detectors there, 1e-3 for one-stage.
      background: beta, half of alpha in the paper.
      convention: "paper", or "code" for boxes with that row and column.
      valid: `[batch, box]`, True for boxes that are not padding.

    Returns:
      `[batch, height, width]`, non-negative.

    Example:
      >>> fgd_weight(torch.tensor([[[0.0, 0.0, 2.0, 1.0]]]), (2, 2))
      tensor([[[0.5000, 0.5000],
               [0.2500, 0.2500]]])

    Reference:
      Yang et al., Focal and Global Knowledge Distillation for Detectors, arXiv:2111.11837.
    """
    one_of("fgd_weight", "convention", convention, ("paper", "code"))
    floating("fgd_weight", boxes=boxes)
    covers("fgd_weight", valid, boxes.shape[:-1], name="valid")
    left, top = boxes[..., 0].floor(), boxes[..., 1].floor()
    right, bottom = boxes[..., 2].ceil(), boxes[..., 3].ceil()
    if convention == "code":
        right, bottom = right + 1, bottom + 1
    right, bottom = right.maximum(left + 1), bottom.maximum(top + 1)
    y, x = (torch.arange(n, device=boxes.device, dtype=boxes.dtype) for n in size)
    rows = (y >= top[..., None]) & (y < bottom[..., None])
    columns = (x >= left[..., None]) & (x < right[..., None])
    inside = rows[..., :, None] & columns[..., None, :]
    if valid is not None:
        inside = inside & valid.bool()[..., None, None]
    scale = (1 / ((right - left) * (bottom - top)))[..., None, None]
    density = torch.where(inside, scale, 0.0).amax(1)
    empty = density == 0
    number = empty.sum((1, 2), keepdim=True).clamp(min=1)
    return torch.where(empty, background / number, foreground * density)


def fgd_focal(
    student_map: Float[Tensor, "batch channels *space"],
    teacher_map: Float[Tensor, "batch channels *space"],
    *,
    place_weight: Float[Tensor, " batch *space"],
    temperature: float | Tensor = 0.5,
    where: Where | None = None,
) -> Float[Tensor, " batch"]:
    """Focal distillation of detectors: squared distance where objects and attention are.

        A = P * softmax_p(mean_c |t_cp| / T),   C = channels * softmax_c(mean_p |t_cp| / T)
        fgd_focal = sum_cp w_p A_p C_c (s_cp - t_cp)^2

    The other parts of the method are `fgd_attention`, and the `mse` between two
    `GlobalContext` adapters' outputs.

    Args:
      student_map: `[batch, channels, *space]`, mapped to the teacher's channels.
      teacher_map: `[batch, channels, *space]`, P places.
      place_weight: `[batch, *space]`, w, from `fgd_weight`.
      temperature: T > 0 of the two attentions.
      where: `[batch]`, True where a sample counts, or `[batch, *space]`, where a place does.
        Others yield 0 and no gradient.

    Returns:
      `[batch]`, non-negative.

    Example:
      >>> s, t = torch.zeros(1, 3, 4), torch.ones(1, 3, 4)
      >>> fgd_focal(s, t, place_weight=torch.full((1, 4), 0.25))
      tensor([3.])

    Reference:
      Yang et al., Focal and Global Knowledge Distillation for Detectors, arXiv:2111.11837.
    """
    positive("fgd_focal", temperature=temperature)
    (s, t), places = equal_maps(
        "fgd_focal", where, student_map=student_map, teacher_map=teacher_map
    )
    expected = (*student_map.shape[:1], *student_map.shape[2:])
    if place_weight.shape != expected:
        raise ValueError(
            f"fgd_focal: place_weight {tuple(place_weight.shape)}; {expected} is expected, one "
            "weight for every place of the map."
        )
    by_place, by_channel = _attention(t, places, temperature)
    w = places.fill(upcast(place_weight).flatten(1)) * by_place
    square = (s - t).square()
    return places.keep(((square * w[:, None]).sum(-1) * by_channel).sum(-1))


def fgd_attention(
    student_map: Float[Tensor, "batch channels *space"],
    teacher_map: Float[Tensor, "batch channels *space"],
    *,
    temperature: float | Tensor = 0.5,
    where: Where | None = None,
) -> Float[Tensor, " batch"]:
    """Distance of the spatial and of the channel attention of two maps (FGD).

        fgd_attention = sum_p |As_p - At_p| + sum_c |Cs_c - Ct_c|

    A and C as in `fgd_focal`, of each model.

    Args:
      student_map: `[batch, channels, *space]`, mapped to the teacher's channels.
      teacher_map: `[batch, channels, *space]`.
      temperature: T > 0.
      where: `[batch]`, True where a sample counts, or `[batch, *space]`, where a place does.
        Others yield 0 and no gradient.

    Returns:
      `[batch]`, non-negative. The gradient at equality is 0.

    Example:
      >>> fgd_attention(torch.zeros(1, 3, 4), torch.ones(1, 3, 4))
      tensor([0.])

    Reference:
      Yang et al., Focal and Global Knowledge Distillation for Detectors, arXiv:2111.11837.
    """
    positive("fgd_attention", temperature=temperature)
    pair, places = equal_maps(
        "fgd_attention", where, student_map=student_map, teacher_map=teacher_map
    )
    (places_s, channels_s), (places_t, channels_t) = (
        _attention(x, places, temperature) for x in pair
    )
    distance = (places_s - places_t).abs().sum(-1) + (channels_s - channels_t).abs().sum(-1)
    return places.keep(distance)


def _attention(
    flat_map: Tensor, places: Places, temperature: float | Tensor
) -> tuple[Tensor, Tensor]:
    """`[batch, places]` and `[batch, channels]`, of mean 1 each."""
    by_place, by_channel = magnitudes(flat_map, places)
    channels = by_channel.shape[-1]
    return (
        places.spread(by_place / temperature),
        F.softmax(by_channel / temperature, dim=-1) * channels,
    )
