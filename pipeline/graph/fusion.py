"""What the integer graph will do with the float one: what takes in a ReLU, which scales are shared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


def rescale_joined(
    nodes: Sequence[tuple[Node, str]], ranges: Mapping[str, tuple[float, float]], least: float = 2.0
) -> tuple[list[tuple[Node, str]], dict[str, tuple[float, float]]]:
    """Puts a requantization before a concatenation whose scale would reach too far (our design).

    All inputs of a concatenation have its scale. An input gets it by a requantization of its own where its
    scale is prescribed, or where others read it too and would see it `least` times as coarse.

    Args:
        nodes: as `fuse_relu` gives them.
        ranges: (low, high) of every tensor.
        least: how much wider the range of all inputs together is.

    Returns:
        The nodes, and the ranges with those of the new ones.
    """
    plain = [node for node, _ in nodes]
    joins = {node.name for node in plain if operation(node.kind).joins}
    find = same_scale([replace(node, inputs=()) if node.name in joins else node for node in plain])
    fixed, trained, readers = {}, set(), {name: set[str]() for name in map(find, (n.name for n in plain))}
    for node in plain:
        root = find(node.name)
        if (prescribed := operation(node.kind).fixed(node)) is not None:
            fixed[root] = prescribed
        if "levels" in node.attrs:
            trained.add(root)
        for feed in map(find, node.inputs):
            if feed != root:
                readers[feed].add(node.name)
    shapes, found, made = {node.name: node.shape for node in plain}, dict(ranges), []

    def span(names: Sequence[str]) -> float:
        ends = [end for name in names for end in ranges.get(name, (0.0, 0.0))]
        return max(0.0, *ends) - min(0.0, *ends)

    for node, clamp in nodes:
        roots = {find(name) for name in node.inputs}
        if node.name not in joins or trained & {*roots, find(node.name)}:
            made.append((node, clamp))
            continue
        alike = len({fixed.get(root) for root in roots}) == 1
        inputs = []
        for index, name in enumerate(node.inputs):
            root, edge = find(name), f"{node.name}.input{index}"
            coarse = readers[root] - {node.name} and span(node.inputs) >= least * span([name])
            if (root in fixed and not alike) or (root not in fixed and coarse):
                attrs = {"scale": 1.0, "shift": 0.0}
                made.append((Node(edge, "affine", (name,), shapes[name], attrs, source=node.source), ""))
                if name in ranges:
                    found[edge] = ranges[name]
                name = edge
            inputs.append(name)
        made.append((replace(node, inputs=tuple(inputs)), clamp))
    return made, found
