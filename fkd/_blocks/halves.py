"""The two halves of a differentiated graph, such that no output of the first shares memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, cast

import torch
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node

Source: TypeAlias = tuple[Literal["input", "output", "tangent"], int]
"""Where the backward graph takes a tensor from."""


def separated(
    forward: GraphModule, backward: GraphModule, results: int
) -> tuple[GraphModule, GraphModule, tuple[Source, ...]]:
    """The halves, such that no output of the forward graph is an input, or a view of another
    tensor: views are made again in the backward graph.

    Args:
      forward: gives the results, and what is kept for the backward graph.
      backward: is given what is kept, by its names, and the tangents.
      results: how many there are.

    Returns:
      Both graphs, and where the tensors of the backward graph come from.
    """
    chains = _chains(forward, backward)
    outputs = outputs_of(forward)[:results]
    bases = [chain[0] for chain in chains.values() if chain[0].op != "placeholder"]
    for base in dict.fromkeys(bases):
        _copy_views(base, outputs, forward)
        if base not in outputs:
            outputs.append(base)
    graph, copies, sources = Graph(), dict[Node, Node](), list[Source]()
    saved: dict[Node, Node] = {}
    inputs = [node for node in forward.graph.nodes if node.op == "placeholder"]
    tangents = 0
    for node in _inputs(backward):
        base = chains[node][0] if node in chains else node
        if base in saved:
            continue
        saved[base] = graph.placeholder(base.name)
        saved[base].meta = dict(base.meta)
        if node not in chains:
            sources.append(("tangent", tangents))
            tangents += 1
        elif base.op == "placeholder":
            sources.append(("input", inputs.index(base)))
        else:
            sources.append(("output", outputs.index(base)))
    for node in _inputs(backward):
        base, *views = chains.get(node, [node])
        copies[node] = saved[base]
        for view in views:
            copies[node] = graph.node_copy(view, lambda _, below=copies[node]: below)
    for node in backward.graph.nodes:
        if node.op != "placeholder":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    keep(forward, outputs)
    graph.lint()
    return forward, GraphModule(backward, graph), tuple(sources)


def outputs_of(graph: GraphModule) -> list[Any]:
    """What a graph gives."""
    end = next(iter(reversed(graph.graph.nodes)))
    return list(cast(Sequence[Any], end.args[0]))


def keep(graph: GraphModule, outputs: Sequence[Node]) -> None:
    """Let a graph give something else, and compute no more than that needs."""
    end = next(iter(reversed(graph.graph.nodes)))
    end.args = (tuple(outputs),)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _inputs(graph: GraphModule) -> list[Node]:
    return [node for node in graph.graph.nodes if node.op == "placeholder"]


def _chains(forward: GraphModule, backward: GraphModule) -> dict[Node, list[Node]]:
    """What is kept, by the input of the backward graph that it is: from the tensor of which it
    is a view, through the views of views, to the value."""
    before = {node.name: node for node in forward.graph.nodes}
    kept = [node for node in _inputs(backward) if "tangents" not in str(node.target)]
    return {node: _views(before[node.name]) for node in kept}


def _copy_views(base: Node, outputs: list[Node], forward: GraphModule) -> None:
    """Let outputs that are views of a tensor that is kept be copies."""
    for i, output in enumerate(outputs):
        if output is not base and _views(output)[0] is base:
            with forward.graph.inserting_after(output):
                copy = forward.graph.call_function(torch.ops.aten.clone.default, (output,))
            copy.meta = dict(output.meta)
            outputs[i] = copy


def _views(node: Node) -> list[Node]:
    chain = [node]
    while _is_view(chain[0]):
        chain.insert(0, cast(Node, chain[0].args[0]))
    return chain


def _is_view(node: Node) -> bool:
    target: Any = node.target
    if node.op != "call_function" or not isinstance(target, OpOverload):
        return False
    tensors = node.all_input_nodes
    return target.is_view and len(tensors) == 1 and node.args[0] is tensors[0]
