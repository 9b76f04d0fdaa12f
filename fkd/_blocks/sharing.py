"""Which blocks of a skeleton share what is compiled, and how."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

from .block import Known, Stores, shared_forward
from .region import Inner
from .structure import PLAIN

Idle: TypeAlias = Callable[[object], bool]
"""Whether a hook does nothing."""


@dataclass(frozen=True)
class Sharing:
    """How blocks of a model share what is compiled.

    Attributes:
      least: from how many blocks of one class in a list on.
      inner: options of Inductor; None: graphs run as they are.
    """

    least: int
    inner: Inner

    def __call__(self, skeleton: nn.Module, stores: Stores, idle: Idle) -> None:
        """Let the blocks of a skeleton share what they compile.

        Args:
          skeleton: the `forward` of its blocks is replaced.
          stores: the dicts into which hooks inside of blocks write.
          idle: which hooks of others do nothing, as the model is called.
        """
        known: Known = {}
        for block in repeated(skeleton, self.least):
            if not _has_other_hooks(block, idle) and _has_plain_tensors(block):
                block.forward = shared_forward(block, stores, self.inner, known)


def repeated(root: nn.Module, least: int) -> list[nn.Module]:
    """The blocks of a model: modules of one class, with modules inside, in one `ModuleList` or
    `Sequential`, where there are so many. Outer ones stand for those inside.

    Example:
      >>> block = lambda: torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
      >>> len(repeated(torch.nn.Sequential(*[block() for _ in range(3)]), least=3))
      3
    """
    children = list(root.children())
    alike: dict[type, int] = defaultdict(int)
    if isinstance(root, nn.ModuleList | nn.Sequential):
        for child in children:
            alike[type(child)] += 1
    blocks: list[nn.Module] = []
    for child in children:
        runs = not isinstance(child, nn.ModuleList | nn.ModuleDict)
        if alike[type(child)] >= least and runs and any(True for _ in child.children()):
            blocks.append(child)
        else:
            blocks += repeated(child, least)
    return blocks


def _has_other_hooks(block: nn.Module, idle: Idle) -> bool:
    """Whether hooks inside of a block may write where nobody looks. Those of fkd write into its
    stores, and those of the block itself run outside of its forward."""
    inside = (m for m in block.modules() if m is not block)
    hooks = (
        hook
        for m in inside
        for kind in (m._forward_hooks, m._forward_pre_hooks)  # pyright: ignore[reportPrivateUsage]
        for hook in kind.values()
    )
    return any(
        not getattr(hook, "__module__", "").startswith("fkd.") and not idle(hook) for hook in hooks
    )


def _has_plain_tensors(block: nn.Module) -> bool:
    """Whether no tensor of a block is quantised or distributed, which its shape does not say."""
    return all(type(x) in PLAIN for x in (*block.parameters(), *block.buffers()))
