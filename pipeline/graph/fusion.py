"""What the integer graph will do with the float one: which operations take a ReLU in, which share a scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from paredown.pipeline.graph.graph import Graph, Node
from paredown.pipeline.graph.operations.kinds import operation


def fuse_relu(graph: Graph) -> list[tuple[Node, str]]:
    """Pairs every node with the clamp it takes in; the ReLU's name wins, since consumers refer to it."""
    fused: list[tuple[Node, str]] = []
    renamed: dict[str, int] = {}
    for node in graph:
        feed = node.inputs[0] if node.inputs else ""
        is_relu = operation(node.kind).is_relu
        if is_relu and feed in renamed:
            position = renamed[feed]
            producer = fused[position][0]
            if len(graph.consumers(feed)) == 1 and feed not in graph.outputs:
                attrs = {**producer.attrs, **node.attrs}
                fused[position] = (replace(producer, name=node.name, attrs=attrs), node.kind)
                continue
        if operation(node.kind).takes_relu:
            renamed[node.name] = len(fused)
        fused.append((node, node.kind if is_relu else ""))
    return fused


def same_scale(nodes: Sequence[Node]) -> Callable[[str], str]:
    """A function from a tensor's name to one name for all tensors that share its scale."""
    leader = {node.name: node.name for node in nodes}

    def find(name: str) -> str:
        while leader[name] != name:
            leader[name] = leader[leader[name]]
            name = leader[name]
        return name

    for node in nodes:
        if operation(node.kind).same_scale:
            for feed in node.inputs:
                leader[find(node.name)] = find(feed)
    return find
