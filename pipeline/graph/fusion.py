"""What the integer graph will do with the float one: what takes in a ReLU, which scales are shared."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from paredown.pipeline.graph.alike import ALIKE
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


def same_scale(nodes: Sequence[Node], apart: Collection[tuple[str, int]] = ()) -> Callable[[str], str]:
    """A function from a tensor's name to one name for all tensors that share its scale.

    Args:
        nodes: of the graph.
        apart: (node, index) of inputs that keep a scale of their own; see `scales_apart`.
    """
    leader = {node.name: node.name for node in nodes}

    def find(name: str) -> str:
        while leader[name] != name:
            leader[name] = leader[leader[name]]
            name = leader[name]
        return name

    # Layers that steps share have one bias, in units of their input's scale; all else has its step's own.
    layers = [node for node in nodes if operation(node.kind).weighted]
    shared = {name for node in layers for name in (node.name, *node.inputs)}
    alike: dict[str, str] = {}
    for node in nodes:
        if ALIKE in node.attrs and node.name in shared:
            leader[find(node.name)] = find(alike.setdefault(node.attrs[ALIKE], node.name))
        if operation(node.kind).same_scale:
            for index, feed in enumerate(node.inputs):
                if (node.name, index) not in apart:
                    leader[find(node.name)] = find(feed)
    return find


def scales_apart(
    nodes: Sequence[Node], ranges: Mapping[str, tuple[float, float]], least: float = 2.0
) -> frozenset[tuple[str, int]]:
    """The inputs of concatenations that keep a scale of their own, and are requantized there (our design).

    The inputs of a concatenation share its scale. One does not where its scale is prescribed and others' are
    not the same, or where others read it too and would see it `least` times as coarse.

    Args:
        nodes: with their ReLUs taken in.
        ranges: (low, high) of every tensor.
        least: how much wider the range of all inputs together is.

    Returns:
        (concatenation, index of the input).
    """
    joins = [node for node in nodes if operation(node.kind).joins]
    find = same_scale(nodes, {(node.name, index) for node in joins for index in range(len(node.inputs))})
    fixed = {find(n.name): f for n in nodes if (f := operation(n.kind).fixed(n)) is not None}
    trained = {find(node.name) for node in nodes if "levels" in node.attrs}
    readers: dict[str, set[str]] = {}
    for node in nodes:
        for root in {find(name) for name in node.inputs} - {find(node.name)}:
            readers.setdefault(root, set()).add(node.name)

    def span(names: Sequence[str]) -> float:
        ends = [end for name in names for end in ranges.get(name, (0.0, 0.0))]
        return max(0.0, *ends) - min(0.0, *ends)

    def parts(node: Node, name: str) -> bool:
        root = find(name)
        if root in fixed:
            return any(fixed.get(find(other)) != fixed[root] for other in node.inputs)
        return bool(readers[root] - {node.name}) and span(node.inputs) >= least * span([name])

    return frozenset(
        (node.name, index)
        for node in joins
        if not trained & {find(name) for name in (node.name, *node.inputs)}
        for index, name in enumerate(node.inputs)
        if parts(node, name)
    )
