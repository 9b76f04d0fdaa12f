"""The state of a training run: one immutable record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor

from fkd._base.errors import expect
from fkd._base.notebook import html_paragraph, html_table
from fkd._base.trees import size, sizes
from fkd._base.types import Params
from fkd._objective.program import Parts
from fkd.parallel._shards import locals_of


class State(NamedTuple):
    """Everything a run is. A pytree: nested dicts of tensors, and two integers.

    A step uses its argument up (it updates the tensors in place) and returns the next state.

    Attributes:
      trainable: `{model: {parameter: tensor}}`, what the optimizer changes.
      frozen: likewise, the other parameters: teachers, frozen parts, EMA copies.
      buffers: likewise, the buffers of all models.
      optimizer: `{"model.parameter": {name: tensor}}`, empty before the first step.
      loss_state: `{term: state}` of the stateful terms.
      skipped: `[]`, how many updates were left out, since loss or gradient were not finite.
      step: how many batches have been used.
      seed: from which all randomness follows, with the step.
      combine_state: what a combination of gradients remembers (`train_step(combine=...)`).
      loss_scale: `{"factor": [], "finite_steps": []}` of the loss in float16
        (`train_step(precision="fp16")`), else None.
    """

    trainable: dict[str, dict[str, Tensor]]
    frozen: dict[str, dict[str, Tensor]]
    buffers: dict[str, dict[str, Tensor]]
    optimizer: dict[str, dict[str, object]]
    loss_state: dict[str, object]
    skipped: Tensor
    step: int
    seed: int
    combine_state: object = None
    loss_scale: Mapping[str, Tensor] | None = None

    def __repr__(self) -> str:
        trees = {n: sizes(getattr(self, n)) for n in ("trainable", "frozen", "buffers")}
        trees["optimizer"] = f"of {len(self.optimizer)} parameters"
        trees["loss_state"] = sizes(self.loss_state)
        shown = ", ".join(f"{name}={text}" for name, text in trees.items())
        return f"State(step={self.step}, seed={self.seed}, {shown})"

    def _repr_html_(self) -> str:
        trees = {n: getattr(self, n) for n in ("trainable", "frozen", "buffers", "loss_state")}
        rows = [[n, m, size(part)] for n, tree in trees.items() for m, part in tree.items()]
        rows.append(["optimizer", "", f"of {len(self.optimizer)} parameters"])
        return html_table(["part", "model", "holds"], rows) + html_paragraph([repr(self)])

    @property
    def parts(self) -> Parts:
        """What an objective is a function of, besides the batch; of what is cut over ranks, the
        rows of this one."""
        trainable, frozen = locals_of(self.trainable), locals_of(self.frozen)
        return Parts(trainable, frozen, self.buffers, self.loss_state)


def expect_device(function: str, device: object) -> None:
    """Refuse a device that is none, or that this machine does not have.

    Raises:
      TypeError: it is no name of a device.
      ValueError: torch does not know it, or sees fewer CUDA devices.
    """
    if device is None:
        return
    expect(function, "device", device, (str, int, torch.device), "'cpu', 'cuda' or 'cuda:1'")
    try:
        place = torch.device(cast(str, device))
    except RuntimeError:
        raise ValueError(
            f"{function}: device is {device!r}; 'cpu', 'cuda' or 'cuda:1' is expected."
        ) from None
    if place.type == "cuda":
        count = torch.cuda.device_count()
        if (place.index or 0) >= count:
            raise ValueError(
                f"{function}: device is {str(place)!r}, and torch sees {count} CUDA devices here. "
                "Give device='cpu', or one that there is (CUDA_VISIBLE_DEVICES may hide some)."
            )


def device_of(tree: Params) -> torch.device:
    """Where the tensors of a tree are."""
    return next(p.device for params in tree.values() for p in params.values())
