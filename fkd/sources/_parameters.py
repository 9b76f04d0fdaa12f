"""The few parameters of a teacher that the terms read beside its values: a head, and no more.

They are kept once, in a file of their own, so that nobody needs the teacher for them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fkd._objective.apply import buffer_names, parameter_names
from fkd._objective.frontier import read_refs
from fkd._objective.models import Model, values_of
from fkd._objective.objective import Objective
from fkd._objective.terms import Term
from fkd._refs.refs import Param, Ref, node, walk
from fkd.loops._base.files import digest, discard, open_regular, sync_folder, write_file
from fkd.loops._checkpoint.tensors import NAMES, chunks

from ._errors import DamagedSourceError, SourceError

FILE = "parameters.safetensors"
_DTYPES = {name: dtype for dtype, name in NAMES.items()}


class Parameters(NamedTuple):
    """What the header says of them.

    Attributes:
      names: `[model, parameter]` of each, in their order in the file.
      size, sha256: of the file; 0 and "" where there are none.
    """

    names: list[list[str]]
    size: int
    sha256: str


def parameters_read(refs: Iterable[Ref]) -> dict[str, list[str]]:
    """The parameters that refs read, by model."""
    names: dict[str, list[str]] = {}
    for part in dict.fromkeys(node(part) for ref in refs for part in walk(ref)):
        if isinstance(part, Param) and part.parameter not in names.get(part.root, []):
            names.setdefault(part.root, []).append(part.parameter)
    return names


def tensors_of(model: Model, names: Sequence[str]) -> dict[str, Tensor]:
    """Some parameters of a model, in memory that holds nothing else."""
    assert model.module is not None
    module = model.module
    first = {**buffer_names(module), **parameter_names(module)}
    tensors = {**dict(module.named_buffers()), **dict(module.named_parameters())}
    known = [(name, first[name]) for name in names if name in first]
    chosen = {name: values_of(model, key, tensors[key]).detach() for name, key in known}
    return {n: x.clone() if _is_part(x) else x for n, x in chosen.items()}


def frozen_parameters(
    objective: Objective, terms: Mapping[str, Term]
) -> dict[str, dict[str, Tensor]]:
    """The parameters of an objective's frozen models that terms read."""
    models = objective.models
    return {
        name: tensors_of(models[name], names)
        for name, names in parameters_read(read_refs(terms)).items()
        if name in models and models[name].kind == "frozen"
    }


def expect_kept(
    model: str, names: Sequence[str], have: Sequence[str], whose: str, fix: str
) -> None:
    """Raise for a parameter that a source does not have.

    Raises:
      SourceError: says what it has of this model.
    """
    missing = [name for name in names if name not in have]
    if missing:
        raise SourceError(
            f"{model}.param({missing[0]!r}) is read, and {whose} of this model "
            f"{list(have) or 'no parameter'}: {fix}, or give the objective its {model}."
        )


def _is_part(x: Tensor) -> bool:
    return x.untyped_storage().nbytes() > x.numel() * x.element_size()


def write_parameters(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> Parameters:
    """Write them, if they are not there; several processes may do so at a time."""
    names = [[model, name] for model, named in tensors.items() for name in named]
    if not names:
        return Parameters([], 0, "")
    beside = folder / f".{FILE}.{os.getpid()}.writing"
    numbered = {str(i): tensors[model][name] for i, (model, name) in enumerate(names)}
    discard(beside)
    try:
        written = write_file(beside, chunks(numbered))
        path = folder / FILE
        if not path.is_file() or digest(path) != written:
            os.replace(beside, path)
            sync_folder(folder)
    finally:
        discard(beside)
    return Parameters(names, *written)


def read_parameters(
    folder: Path, about: Parameters, model: str, names: Sequence[str]
) -> dict[str, Tensor]:
    """Some parameters of a model.

    Raises:
      SourceError: one of them was not kept.
      DamagedSourceError: the file is not what was written.
    """
    have = [name for of, name in about.names if of == model]
    fix = "it keeps those that the terms read when it was made. Make it again with these terms"
    expect_kept(model, names, have, f"the cache {folder} has", fix)
    verify_parameters(folder, about)
    with open_regular(folder / FILE) as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
        tensors: dict[str, Tensor] = {}
        for name in names:
            one = header[str(about.names.index([model, name]))]
            first, last = one["data_offsets"]
            file.seek(8 + length + first)
            raw = bytearray(file.read(last - first))
            flat = torch.frombuffer(raw, dtype=_DTYPES[one["dtype"]]) if raw else torch.empty(0)
            tensors[name] = flat.reshape(one["shape"])
    return tensors


def verify_parameters(folder: Path, about: Parameters) -> None:
    """Compare the file with its checksum.

    Raises:
      DamagedSourceError: it is damaged, or missing.
    """
    path = folder / FILE
    if about.names and not (path.is_file() and digest(path) == (about.size, about.sha256)):
        raise DamagedSourceError(
            f"{path} is damaged or missing. Make the cache again: what is whole is kept."
        )
