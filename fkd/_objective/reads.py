"""What refs need of models: their run on the batch, further runs, and places inside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .._refs.derived import AsFunction, Call, Function
from .._refs.refs import (
    Capture,
    Inside,
    Item,
    Node,
    Param,
    Patched,
    Ref,
    Root,
    Run,
    Tap,
    further_path,
    node,
    output_path,
    walk,
)
from .models import Model
from .plan import Plan


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
    return part.root if isinstance(part, Patched | Run) else None


def seen_inside(nodes: Iterable[Node], name: str) -> list[Tap | Capture]:
    """What is read inside a model, in its run on the batch and in others."""
    seen: dict[Tap | Capture, None] = {}
    for part in nodes:
        if isinstance(part, Tap | Capture) and part.root == name:
            seen[part] = None
        elif isinstance(part, Inside) and part.place.root == name:
            seen[part.place] = None
    return list(seen)


def read_models(plan: Plan, models: Mapping[str, Model]) -> dict[str, Model]:
    """The models that the refs of a plan read, and those that these follow."""
    names: set[str] = set()
    for part in map(node, plan.computed):
        names |= set(models) if isinstance(part, Function) else set()
        names |= {part.name} if isinstance(part, Root) else set()
        names |= {part.root} if isinstance(part, Tap | Capture | Param) else set()
        names |= {name} if (name := called_by(part)) is not None else set()
    names |= {models[name].of for name in names & set(models)}
    return {name: model for name, model in models.items() if name in names}


def output_paths(plan: Plan, name: str, model: Model) -> list[tuple[Any, ...]]:
    """The paths that refs take through a model's output, in any of its runs. A plain function may
    take any, so that with one the cheap optional outputs (hidden states) are asked for as well."""
    refs = plan.computed
    every = [
        path for of in (output_path, further_path) for path in map(of, refs) if path is not None
    ]
    paths = [keys for root, keys in every if root == name and keys]
    functions = any(isinstance(node(ref), Function) for ref in plan.computed)
    if functions or model.outputs is not None:
        paths.append(("hidden_states",))
    return paths


def lengths_by_value(refs: Iterable[Ref]) -> Iterator[str]:
    """Why refs cannot be compiled as one graph of fixed shapes: slices that end where a value of
    the batch says. A bound that is made of shapes is a number while tracing."""
    for ref in refs:
        part = node(ref)
        keys = part.key if isinstance(part, Item) else ()
        for key in keys if isinstance(keys, tuple) else (keys,):
            ends = (key.start, key.stop, key.step) if isinstance(key, slice) else ()
            if any(isinstance(end, Ref) and not _of_shapes(end) for end in ends):
                yield (
                    f"the length of {ref!r} depends on a value of the batch, and a graph has fixed "
                    "shapes. Cut in the loader, or count with a mask of the whole length, "
                    "where=batch.mask"
                )


def _of_shapes(ref: Ref) -> bool:
    """Whether a ref is made of shapes, and so a number of Python."""
    parts = [node(inner) for inner in walk(ref)]
    shapes = (isinstance(part, Item) and part.key in ("shape", "ndim") for part in parts)
    return any(shapes) or any(getattr(part, "name", None) in ("size", "dim") for part in parts)
