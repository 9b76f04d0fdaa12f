"""Activation checkpointing: of a block only its inputs are kept, and the backward pass runs it
again (Chen et al., Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import checkpoint as recompute
from torch.utils.checkpoint import CheckpointPolicy

from .._base.errors import listing, nearest

_MARK = "_fkd_recomputed"


def blocks_of(module: nn.Module, chosen: bool | Sequence[str]) -> tuple[str, ...]:
    """The names of the blocks that are run again.

    Args:
      module: of which they are parts.
      chosen: True: the children of every list of blocks (a `ModuleList` or `Sequential` whose
        children have children of their own), the outermost ones; or names, of blocks or of lists
        of them.

    Raises:
      ValueError: a name that the module does not have, no list of blocks, or blocks of
        transformers, which has a way of its own.
    """
    if chosen is False:
        return ()
    if isinstance(chosen, str):
        raise ValueError(
            f"trainable: checkpoint_blocks is {chosen!r}; True or a list of names is expected: "
            f"[{chosen!r}]."
        )
    parts = dict(module.named_modules())
    if chosen is True:
        blocks = _all_blocks(module)
        if not blocks:
            raise ValueError(
                f"trainable: checkpoint_blocks=True, and the {type(module).__name__} has no list "
                "of blocks (a ModuleList or Sequential whose children have parts). Name the "
                f"blocks: checkpoint_blocks=[...]. Parts: {listing([n for n in parts if n])}."
            )
    else:
        unknown = [name for name in chosen if not name or name not in parts]
        if unknown:
            raise ValueError(
                f"trainable: checkpoint_blocks names {unknown[0]!r}, which is no part of the "
                f"{type(module).__name__}. {nearest(unknown[0], [n for n in parts if n])}"
                "Names as in module.named_modules() are expected."
            )
        blocks = [block for name in chosen for block in _below(name, parts[name])]
    foreign = [name for name in blocks if _is_of_transformers(parts[name])]
    if foreign:
        raise ValueError(
            f"trainable: checkpoint_blocks holds {foreign[0]!r}, a block of transformers, which "
            "recomputes by itself: call model.gradient_checkpointing_enable() before "
            "fkd.trainable(model), and leave checkpoint_blocks out."
        )
    return tuple(dict.fromkeys(blocks))


def marked(copied: nn.Module, blocks: Sequence[str]) -> nn.Module:
    """A skeleton that knows which of its blocks are run again; copies of it know it, too."""
    for name in blocks:
        setattr(copied.get_submodule(name), _MARK, True)
    return copied


def is_marked(copied: nn.Module) -> bool:
    """Whether some block of a skeleton is run again."""
    return any(getattr(block, _MARK, False) for block in copied.modules())


def settle_blocks(copied: nn.Module, *, traced: bool) -> None:
    """Let the marked blocks of a skeleton be run again in the backward pass.

    In a traced graph, what draws random numbers is kept, since torch refuses to draw again; and a
    block is run once if something inside of it is read, or if it has buffers that move (batch
    statistics): a traced recomputation may write nothing.

    Args:
      copied: with its hooks; may be changed.
      traced: it is run while a graph is traced.
    """
    for block in list(copied.modules()):
        if getattr(block, _MARK, False) and not (traced and _writes(block)):
            block.forward = _recomputed(block.forward, traced)


def _recomputed(forward: Callable[..., Any], traced: bool) -> Callable[..., Any]:
    options: dict[str, Any] = {"use_reentrant": False}
    if traced:
        options["context_fn"] = keeping_random

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return recompute.checkpoint(functools.partial(forward, **kwargs), *args, **options)

    return run


def _writes(block: nn.Module) -> bool:
    """Whether a block leaves something behind when it runs."""
    return is_watched(block) or (block.training and next(block.buffers(), None) is not None)


def is_watched(block: nn.Module, *marks: str) -> bool:
    """Whether something inside of a block is read while it runs: by a hook, by a forward that was
    put in place of its own, or by what a boundary marks with an attribute.

    Args:
      block: with its hooks.
      marks: names of such attributes.
    """
    inside = [part for part in block.modules() if part is not block]
    return any(
        part._forward_hooks  # pyright: ignore[reportPrivateUsage]
        or part._forward_pre_hooks  # pyright: ignore[reportPrivateUsage]
        or not vars(part).keys().isdisjoint(("forward", *marks))
        for part in inside
    )


def _all_blocks(module: nn.Module) -> list[str]:
    blocks: list[str] = []
    for name, part in module.named_modules():
        inside = any(name.startswith(f"{block}.") for block in blocks)
        if not inside and _is_list(part):
            blocks += _below(name, part)
    return blocks


def _is_list(part: nn.Module) -> bool:
    children = list(part.children())
    return (
        isinstance(part, nn.ModuleList | nn.Sequential)
        and len(children) > 1
        and all(next(child.children(), None) is not None for child in children)
    )


def _below(name: str, part: nn.Module) -> list[str]:
    """A block, or the blocks of a list."""
    if not _is_list(part):
        return [name]
    return [f"{name}.{child}".removeprefix(".") for child, _ in part.named_children()]


def _is_of_transformers(block: nn.Module) -> bool:
    return any(c.__module__.partition(".")[0] == "transformers" for c in type(block).__mro__)


def keeping_random() -> Any:
    """For `checkpoint(context_fn=)`: what draws random numbers is kept."""
    # What is kept may be changed in place before it is made functional: the mask of dropout.
    return recompute.create_selective_checkpoint_contexts(
        _unless_random, allow_cache_entry_mutation=True
    )


def _unless_random(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    del context, args, kwargs
    if torch.Tag.nondeterministic_seeded in getattr(op, "tags", ()):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
