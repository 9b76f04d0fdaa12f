"""Blocks that let every place of a feature map see all others (detection)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

Map = Float[Tensor, "batch channels height width"]


class GlobalContext(nn.Module):
    """Adds to every place what the whole map holds (FGD, after GcNet).

        y = x + W2 relu(norm(W1 sum_j a_j x_j)),   a = softmax_j(w . x_j)

    FGD has one for each model, and takes the squared distance of their outputs.

    Args:
      channels: of the map.
      middle: width between W1 and W2, half of the channels if not given.

    Shape:
      `[batch, channels, height, width]` to the same.

    Example:
      >>> GlobalContext(4)(torch.rand(2, 4, 3, 3)).shape
      torch.Size([2, 4, 3, 3])

    Reference:
      Yang et al., Focal and Global Knowledge Distillation for Detectors, arXiv:2111.11837;
      Cao et al., GCNet, arXiv:1904.11492.
    """

    def __init__(self, channels: int, middle: int | None = None) -> None:
        super().__init__()
        width = _middle("GlobalContext", channels, middle)
        self.attend = nn.Linear(channels, 1)
        self.transform = nn.Sequential(
            nn.Linear(channels, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, channels)
        )

    def forward(self, x: Map) -> Map:
        """The map with its context."""
        places = x.flatten(2).mT
        context = (self.attend(places).softmax(1) * places).sum(1)
        return x + self.transform(context)[..., None, None]


class NonLocal(nn.Module):
    """Adds to every place what similar places hold (the non-local module of FBKD).

        y_i = x_i + norm(W sum_j softmax_j(q_i . k_j) v_j),   q, k, v = 1x1 convolutions of x

    FBKD has one for each model, and takes the distance of their outputs. Memory is places^2.

    Args:
      channels: of the map.
      middle: width of q, k and v, half of the channels if not given.
      pool: keys and values are taken from the map max-pooled by this factor.

    Shape:
      `[batch, channels, height, width]` to the same.

    Example:
      >>> NonLocal(4, pool=2)(torch.rand(2, 4, 6, 6)).shape
      torch.Size([2, 4, 6, 6])

    Reference:
      Zhang and Ma, Improve Object Detection with Feature-based Knowledge Distillation,
      ICLR 2021; Wang et al., Non-local Neural Networks, arXiv:1711.07971.
    """

    def __init__(self, channels: int, middle: int | None = None, *, pool: int = 1) -> None:
        super().__init__()
        width = _middle("NonLocal", channels, middle)
        self.query = nn.Conv2d(channels, width, 1)
        self.key = nn.Conv2d(channels, width, 1)
        self.value = nn.Conv2d(channels, width, 1)
        self.pool = nn.MaxPool2d(pool) if pool > 1 else nn.Identity()
        self.out = nn.Sequential(
            nn.Conv2d(width, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, x: Map) -> Map:
        """The map with what similar places hold."""
        few = self.pool(x)
        q, k, v = (f.flatten(2) for f in (self.query(x), self.key(few), self.value(few)))
        mixed = v @ (q.mT @ k).softmax(-1).mT
        return x + self.out(mixed.unflatten(-1, x.shape[-2:]))


def _middle(adapter: str, channels: int, middle: int | None) -> int:
    width = channels // 2 if middle is None else middle
    if width < 1:
        raise ValueError(f"{adapter}: middle {width} for {channels} channels; 1 or more.")
    return width
