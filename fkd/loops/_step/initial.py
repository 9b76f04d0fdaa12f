"""The state of a run before its first step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fkd._base.errors import expect, listing, nearest
from fkd._base.trees import map_tensors
from fkd._objective.objective import Objective
from fkd._objective.program import Parts
from fkd.parallel._shards import Cutting

from .._base.state import State, expect_device


def initial(
    objective: Objective,
    seed: int,
    device: torch.device | str | None,
    modules: Mapping[str, nn.Module],
    inference: torch.dtype | None,
    cutting: Cutting | None = None,
) -> State:
    """The state of an objective from its modules' own parameters (copied).

    Args:
      objective: which models there are.
      seed: of the run.
      device: where to train; by default where the parameters are.
      modules: by name, others of the same structure to begin with.
      inference: dtype of the matrices of frozen models; None leaves it.
      cutting: how parameters are cut over processes, if they are: of those that are read from
        files, each process reads its rows.
    """
    expect_device("init", device)
    parts = objective.parts(lambda x: x.detach().clone(), lambda x: x.detach(), _without_values)
    parts = _replaced(objective, parts, modules)
    if device is not None:
        parts = map_tensors(lambda x: x if x.is_meta else x.to(device), parts)
    where = _where(device, parts)
    frozen = _inference_precision(objective, parts.frozen, inference)
    return State(
        trainable=_read(objective, parts.trainable, where, cutting),
        frozen=_read(objective, frozen, where, cutting),
        buffers=_read(objective, parts.buffers, where, None),
        optimizer={},
        loss_state=map_tensors(lambda x: x.to(where), parts.loss_state),
        skipped=torch.zeros((), device=where),
        step=0,
        seed=seed,
    )


def _without_values(name: str, tensor: str, x: Tensor) -> Tensor:
    """What is to be read later, in the dtype and shape in which it is."""
    del name, tensor
    return x.detach().to("meta")


def _where(device: torch.device | str | None, parts: Parts) -> torch.device:
    """Where the state is to be: as it was asked for, or where the parameters are."""
    if device is not None:
        return torch.device(device)
    here = (x.device for tree in parts[:2] for tensors in tree.values() for x in tensors.values())
    return next((one for one in here if one.type != "meta"), torch.device("cpu"))


def _read(
    objective: Objective,
    tree: dict[str, dict[str, Tensor]],
    device: torch.device,
    cutting: Cutting | None,
) -> dict[str, dict[str, Tensor]]:
    """A tree whose tensors without values are read, one after another: of those that are cut the
    rows of this process."""

    def read(name: str, key: str, x: Tensor) -> Tensor:
        model = objective.program.model(name)
        if not x.is_meta:
            return x
        assert model.stored is not None  # else the objective was refused
        layout = None if cutting is None else cutting.layouts.get(name, {}).get(key)
        if layout is None or cutting is None:
            return model.stored.read(key).to(device, x.dtype)
        rows = model.stored.read(key, layout.part).to(device, x.dtype)
        return cutting.part_of(layout, rows)

    return {m: {n: read(m, n, x) for n, x in tensors.items()} for m, tensors in tree.items()}


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
