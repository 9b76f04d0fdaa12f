"""The state of a run before its first step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fkd._base.errors import expect, listing, nearest
from fkd._base.trees import map_tensors
from fkd._objective.objective import Objective
from fkd._objective.program import Parts

from .._base.state import State, device_of, expect_device


def initial(
    objective: Objective,
    seed: int,
    *,
    device: torch.device | str | None,
    modules: Mapping[str, nn.Module],
    inference: torch.dtype | None,
) -> State:
    """The state of an objective from its modules' own parameters (copied).

    Args:
      objective: which models there are.
      seed: of the run.
      device: where to train; by default where the parameters are.
      modules: by name, others of the same structure to begin with.
      inference: dtype of the matrices of frozen models; None leaves it.
    """
    expect_device("init", device)
    parts = _replaced(objective, objective.init(), modules)
    if device is not None:
        parts = map_tensors(lambda x: x.to(device), parts)
    where = device_of(parts.trainable)
    return State(
        trainable=parts.trainable,
        frozen=_inference_precision(objective, parts.frozen, inference),
        buffers=parts.buffers,
        optimizer={},
        loss_state=map_tensors(lambda x: x.to(where), parts.loss_state),
        skipped=torch.zeros((), device=where),
        step=0,
        seed=seed,
    )


def _replaced(objective: Objective, parts: Parts, modules: Mapping[str, nn.Module]) -> Parts:
    """With the tensors of other modules, also in the EMA models that follow them."""
    expect("init", "modules", modules, Mapping, "{model: module}")
    for name, module in modules.items():
        if name not in objective.models:
            raise ValueError(
                f"init: modules names {name!r}, and there is no such model. "
                f"{nearest(name, objective.models)}Models: {listing(objective.models)}."
            )
        expect("init", f"modules[{name!r}]", module, nn.Module, "a module")
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        followers = [n for n, m in objective.models.items() if m.of == name]
        for tree in parts[:3]:
            for params in (tree[n] for n in (name, *followers) if n in tree):
                if any(k not in tensors or tensors[k].shape != params[k].shape for k in params):
                    raise ValueError(
                        f"init: modules[{name!r}] is a {type(module).__name__} of another "
                        "structure than the one in the objective."
                    )
                params.update({k: tensors[k].detach().clone() for k in params})
    return parts


def _inference_precision(
    objective: Objective, frozen: dict[str, dict[str, Tensor]], dtype: torch.dtype | None
) -> dict[str, dict[str, Tensor]]:
    """Matrices of frozen models in the precision in which they are multiplied anyway."""
    if dtype is None:
        return frozen
    kinds = {n: m.kind for n, m in objective.models.items()}

    def cast(name: str, p: Tensor) -> Tensor:
        matrix = kinds[name] == "frozen" and p.ndim >= 2 and p.dtype is torch.float32
        return p.to(dtype) if matrix else p

    return {n: {k: cast(n, p) for k, p in params.items()} for n, params in frozen.items()}
