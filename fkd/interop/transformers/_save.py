"""A trained student as a directory that `from_pretrained` reads."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ._forward import is_transformers


def save_pretrained(
    model: nn.Module, tensors: Mapping[str, Tensor], directory: str | os.PathLike[str]
) -> None:
    """Write a model with the given parameters and buffers, to be loaded by `from_pretrained`.

    Args:
      model: the model that was given to fkd (or its copy). Gives structure and config;
        unchanged, and what fkd installs for captures is not written.
      tensors: `{name: tensor}`: parameters and buffers. Names that are missing are taken from
        the model. Tied weights need only one of their names.
      directory: is made, if it does not exist.

    Raises:
      ValueError: the model is not one of transformers, `tensors` has names that the model has
        not, or tied weights that are no longer equal.
    """
    if not is_transformers(model):
        raise ValueError(
            f"save_pretrained: a {type(model).__name__}; a model of transformers is expected. "
            "For other modules, save the state dict."
        )
    known = dict(model.state_dict(keep_vars=True))
    names = {n for n, _ in model.named_buffers()} | known.keys()
    unknown = sorted(tensors.keys() - names)
    if unknown:
        raise ValueError(
            f"save_pretrained: tensors has {unknown[:4]}; names of this model's parameters and "
            f"buffers are expected, such as {sorted(known)[0]!r}."
        )
    state = {n: w.detach() for n, w in _spread(known, tensors).items()}
    writer: Any = copy.copy(model)
    writer.config = copy.deepcopy(model.config)
    writer.save_pretrained(directory, state_dict=state)


def _spread(known: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All names of the model's state; tied names share one tensor."""
    groups: dict[int, list[str]] = {}
    for name, tensor in known.items():
        groups.setdefault(id(tensor), []).append(name)
    state: dict[str, Tensor] = {}
    for names in groups.values():
        tied = {n: tensors[n] for n in names if n in tensors}
        first = next(iter(tied.values()), known[names[0]])
        differ = [n for n, w in tied.items() if w is not first and not torch.equal(w, first)]
        if differ:
            raise ValueError(
                f"save_pretrained: tied weights {names} are no longer equal; one tensor for all "
                "of them is expected. Untie them in the config (tie_word_embeddings=False)."
            )
        state |= dict.fromkeys(names, first)
    return state
