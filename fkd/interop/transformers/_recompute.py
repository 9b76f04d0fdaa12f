"""Gradient checkpointing of transformers models, in a form that a pure function can have."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn
from torch.utils import checkpoint as recompute

from fkd._objective.recompute import is_watched, keeping_random

from ._sites import names_used


def settle_checkpointing(model: nn.Module, *, traced: bool) -> None:
    """Let the layers that recompute do so by torch's non-reentrant checkpointing.

    The reentrant kind knows no `torch.autograd.grad`, and has the same values and gradients. In
    a traced graph what draws random numbers (dropout, and attention, which may) is kept and not
    computed again, since torch refuses to; and a layer of which a tap or a capture reads something
    inside is not recomputed, since a traced recomputation may write nothing.

    Args:
      model: a copy that may be changed.
      traced: the copy is run while a graph is traced.
    """
    for module in model.modules():
        changed: Any = module
        if getattr(module, "_requires_grad", False) is True:
            changed._requires_grad = False  # which is there for the reentrant kind only
        if traced and _only_marks(module):
            changed.gradient_checkpointing = False
        chosen: Any = getattr(module, "_gradient_checkpointing_func", None)
        if not getattr(module, "gradient_checkpointing", False) or chosen is None:
            continue
        options = dict(getattr(chosen, "keywords", {}))
        fn = getattr(chosen, "func", recompute.checkpoint)
        options["use_reentrant"] = False
        if traced and is_watched(module, "_fkd_capture"):
            changed.gradient_checkpointing = False
            continue
        if traced:
            fn = recompute.checkpoint
            options.setdefault("context_fn", keeping_random)
        changed._gradient_checkpointing_func = functools.partial(fn, **options)


def _only_marks(module: nn.Module) -> bool:
    """Whether a module does not recompute, and only marks its biases for layers that do (T5)."""
    recomputing = getattr(module, "gradient_checkpointing", False)
    used = names_used(type(module)) if recomputing else ()
    return "requires_grad" in used and "_gradient_checkpointing_func" not in used
