"""What nodes of refs need of models: their run on the batch, calls, and places to patch."""

from __future__ import annotations

from collections.abc import Iterable

from .._refs.derived import AsFunction, Call
from .._refs.refs import Capture, Node, Patched, Root, Tap


def run_by(nodes: Iterable[Node]) -> set[str]:
    """The models whose output or inside is read, so that they run on the batch."""
    nodes = list(nodes)
    roots = {part.name for part in nodes if isinstance(part, Root)}
    return roots | {part.root for part in nodes if isinstance(part, Tap | Capture)}


def patchable(nodes: Iterable[Node], name: str) -> dict[str, None]:
    """The submodules of a model that refs replace the outputs of."""
    parts = (part for part in nodes if isinstance(part, Patched) and part.root == name)
    return {path: None for part in parts for path, _ in part.outputs}


def called_by(part: Node) -> str | None:
    """The model that a node calls as a function, on inputs of its own."""
    if isinstance(part, AsFunction) or (isinstance(part, Call) and part.fn is None):
        return part.name
    return part.root if isinstance(part, Patched) else None
