"""Values that a module does not hold: read from safetensors files, when a state is made of it.

The module may have its parameters on the meta device: shapes without values. What is read is one
tensor at a time, or the rows of it that one process of several holds.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .._base.errors import listing

_INDEX = ".index.json"


class Stored:
    """The tensors of a module in files. See `stored`, which makes it.

    Attributes:
      folder: as it was given.
    """

    def __init__(
        self, folder: Path, places: Mapping[str, tuple[Path, str]], remade: Mapping[str, Tensor]
    ) -> None:
        self.folder = folder
        self._places, self._remade = places, remade

    def holds(self, name: str) -> bool:
        """Whether a parameter or a buffer of the module has its values here."""
        return name in self._places or name in self._remade

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """A tensor in memory of its own, in the dtype of the file, on the CPU.

        Args:
          name: in the module.
          rows: along the first axis, which alone are read; None: all.
        """
        if name in self._remade:
            whole = self._remade[name]
            return whole.clone() if rows is None else whole[rows].clone()
        path, key = self._places[name]
        with _opened(path) as file:
            if rows is None:
                return file.get_tensor(key).clone()
            return file.get_slice(key)[rows].clone()


def stored(module: nn.Module, folder: str | os.PathLike[str]) -> Stored:
    """The tensors of a module in a folder: `model.safetensors`, several files with an index (as
    `save_pretrained` writes), or one file.

    Every parameter and buffer of the module that has its name there is read from there; what else
    the module has must hold values. A tied parameter is found by any of its names, and a
    transformers model with or without the prefix of its base model. Buffers on the meta device
    that are in no file are made again by the model's own `_init_weights`, where it is a model of
    transformers.

    Raises:
      ValueError: the folder has no such files, or not what the module needs; lists all of it.
    """
    folder = Path(folder)
    keys = dict(_keys(folder))
    named = {
        **_names(module.named_parameters(remove_duplicate=False)),
        **_names(module.named_buffers(remove_duplicate=False)),
    }
    places = {
        name: (keys[key], key)
        for name, aliases in named.items()
        if (key := next((k for k in _spellings(module, aliases) if k in keys), None)) is not None
    }
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    if not places:
        raise ValueError(
            f"weights={str(folder)!r}: nothing there has the name of a parameter of the "
            f"{type(module).__name__}. It has: {listing(keys)}."
        )
    lost = [n for n, p in module.named_parameters() if p.is_meta and n not in places]
    buffers = [n for n, b in module.named_buffers() if b.is_meta and n not in places]
    problems = [
        f"{n!r} is not in the files, and on the meta device. A part that is new must have values "
        "of its own: put it into the model outside of on_meta()."
        for n in lost
    ]
    problems += _misfits(tensors, places)
    remade = _remade(module, buffers) if buffers else {}
    problems += [
        f"the buffer {n!r} is on the meta device and in no file. Build the module inside `with "
        "fkd.parallel.on_meta():`, which leaves buffers their values."
        for n in buffers
        if n not in remade
    ]
    if problems:
        shown = [*problems[:20], *([f"... and {len(problems) - 20} more"] * (len(problems) > 20))]
        raise ValueError(f"weights={str(folder)!r}:\n  " + "\n  ".join(shown))
    return Stored(folder, places, remade)


def stand_in(x: Tensor, device: torch.device) -> Tensor:
    """What stands for the values of a tensor on the meta device in a trial: one random row, which
    all rows share."""
    if not x.is_meta:
        return x
    generator = torch.Generator().manual_seed(0)
    row = torch.rand(x.shape[1:], generator=generator).to(device, x.dtype)
    return row.expand(x.shape)


def empty_copy(module: nn.Module) -> nn.Module:
    """A copy of a module on the CPU, in which what is on the meta device has memory, but no values
    yet; what is tied stays tied."""
    fresh: dict[int, Any] = {}
    for x in (*module.parameters(), *module.buffers()):
        if x.is_meta:
            values = torch.empty_like(x, device="cpu")
            is_parameter = isinstance(x, nn.Parameter)
            fresh[id(x)] = nn.Parameter(values, x.requires_grad) if is_parameter else values
    return copy.deepcopy(module, fresh).cpu()


def _opened(path: Path) -> Any:
    return safe_open(path, framework="pt", device="cpu")  # pyright: ignore


def _keys(folder: Path) -> Iterator[tuple[str, Path]]:
    """The tensors of a folder, and the files that have them."""
    if folder.is_file():
        files = [folder]
    elif indices := sorted(folder.glob(f"*.safetensors{_INDEX}")):
        chosen = folder / f"model.safetensors{_INDEX}"
        index = json.loads((chosen if chosen in indices else indices[0]).read_text())
        files = sorted({folder / file for file in index["weight_map"].values()})
    else:
        one = folder / "model.safetensors"
        files = [one] if one.exists() else sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(
            f"weights={str(folder)!r}: there is no file *.safetensors. The folder of "
            "save_pretrained or of fkd.loops.export, or one such file, is expected."
        )
    for file in files:
        try:
            with _opened(file) as opened:
                yield from ((key, file) for key in opened.keys())
        except (SafetensorError, OSError) as error:
            raise ValueError(f"weights: {file} cannot be read: {error}") from error


def _names(named: Iterable[tuple[str, Tensor]]) -> dict[str, list[str]]:
    """Each tensor's first name, and all of them."""
    first: dict[int, str] = {}
    names: dict[str, list[str]] = {}
    for name, x in named:
        names.setdefault(first.setdefault(id(x), name), []).append(name)
    return names


def _spellings(module: nn.Module, names: list[str]) -> Iterator[str]:
    """How files may call a tensor."""
    yield from names
    prefix = getattr(module, "base_model_prefix", "")
    if isinstance(prefix, str) and prefix:
        yield from (f"{prefix}.{name}" for name in names)
        yield from (n.removeprefix(f"{prefix}.") for n in names if n.startswith(f"{prefix}."))


def _misfits(tensors: Mapping[str, Tensor], places: Mapping[str, tuple[Path, str]]) -> list[str]:
    """Tensors that the files have in another shape."""
    wrong: list[str] = []
    for path in sorted({path for path, _ in places.values()}):
        with _opened(path) as file:
            for name, (place, key) in places.items():
                if place == path:
                    shape, here = list(file.get_slice(key).get_shape()), list(tensors[name].shape)
                    if shape != here:
                        wrong.append(f"{name!r} has the shape {shape} there, and {here} here.")
    return wrong


def _remade(module: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """Buffers that a model of transformers makes again, as it does after loading: on a copy, whose
    parameters have no values, and whose buffers hold what no model puts there until it has."""
    blank: dict[int, Any] = {
        id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in module.parameters()
    }
    for name in names:
        b = module.get_buffer(name)
        blank[id(b)] = torch.full(b.shape, _nothing(b.dtype), dtype=b.dtype)
    copied = copy.deepcopy(module, blank)
    makers = [(path, m) for path, m in copied.named_modules() if hasattr(m, "_init_weights")]
    for owner in {name.rpartition(".")[0] for name in names}:
        around = [m for path, m in makers if not path or f"{owner}.".startswith(f"{path}.")]
        if around:
            make: Any = around[-1]
            make._init_weights(copied.get_submodule(owner))
    now = {name: copied.get_buffer(name) for name in names}
    return {n: b for n, b in now.items() if not bool(_is_nothing(b).any())}


def _nothing(dtype: torch.dtype) -> float | int | bool:
    if dtype.is_floating_point:
        return float("nan")
    return False if dtype is torch.bool else torch.iinfo(dtype).min


def _is_nothing(x: Tensor) -> Tensor:
    return x.isnan() if x.is_floating_point() else x == _nothing(x.dtype)
