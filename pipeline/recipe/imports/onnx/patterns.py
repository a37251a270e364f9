"""Several ONNX nodes that are one layer: exporters take layers apart that torch has whole (our design)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from paredown.pipeline.recipe.imports.onnx.builder import Node
from paredown.pipeline.recipe.imports.onnx.graph import Source


class _Graph:
    """Who makes and who reads what."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.makers = {name: node for node in source.nodes for name in node.outputs if name}
        self.readers: dict[str, list[Node]] = {}
        for node in source.nodes:
            for name in node.inputs:
                self.readers.setdefault(name, []).append(node)
        self.kept = set(source.outputs)

    def next(self, name: str, kind: str) -> Node | None:
        """The one reader of a value, if it is of a kind and nothing else wants the value."""
        found = self.readers.get(name, [])
        alone = len({id(node) for node in found}) == 1 and name not in self.kept
        return found[0] if alone and found[0].kind == kind else None

    def made(self, name: str, kind: str) -> Node | None:
        """The node that makes a value, if it is of a kind and nothing else reads that."""
        node = self.makers.get(name)
        return node if node is not None and node.kind == kind and self.alone(name) else None

    def alone(self, name: str) -> bool:
        return len({id(n) for n in self.readers.get(name, [])}) == 1 and name not in self.kept

    def number(self, name: str) -> float | None:
        """A constant of one value."""
        value = self.source.constants.get(name)
        return float(value) if isinstance(value, Tensor) and value.numel() == 1 else None

    def other(self, node: Node, name: str) -> str:
        """Of two inputs the one that is not this."""
        return node.inputs[1] if node.inputs[0] == name else node.inputs[0]

    def with_number(self, node: Node | None, number: float) -> str | None:
        """The other input of a node one of whose inputs is this number."""
        if node is None or len(node.inputs) != 2:
            return None
        for name in node.inputs:
            value = self.number(name)
            if value is not None and math.isclose(value, number, rel_tol=1e-4):
                return self.other(node, name)
        return None


def fused(source: Source) -> tuple[Node, ...]:
    """The nodes of a graph, with linear layers, GELU, Mish and layer norms whole again."""
    graph = _Graph(source)
    gone: set[int] = set()
    placed: dict[int, Node] = {}  # the last node of each pattern -> what stands there
    for node in source.nodes:
        for find in (_linear, _hardswish, _gelu, _mish, _layer_norm):
            found = find(graph, node)
            if found is not None and not gone & {id(each) for each in found[0]}:
                gone |= {id(each) for each in found[0]}
                placed[id(found[0][-1])] = found[1]
                break
    return tuple(placed.get(id(n), n) for n in source.nodes if id(n) in placed or id(n) not in gone)


Found = tuple[Sequence[Node], Node] | None


def _linear(graph: _Graph, node: Node) -> Found:
    """MatMul with a constant matrix, then a constant row."""
    if node.kind != "MatMul":
        return None
    matrix = graph.source.constants.get(node.inputs[1])
    after = graph.next(node.outputs[0], "Add")
    if matrix is None or matrix.dim() != 2 or after is None or node.inputs[0] in graph.source.constants:
        return None
    row = graph.source.constants.get(name := graph.other(after, node.outputs[0]))
    if row is None or row.numel() != matrix.shape[1] or row.shape[-1:] != matrix.shape[1:] or row.dim() > 2:
        return None
    return (node, after), replace(
        node, kind="fused.Linear", inputs=(*node.inputs, name), outputs=after.outputs
    )


def _hardswish(graph: _Graph, node: Node) -> Found:
    """X clip(x + 3, 0, 6) / 6, or without the first x: hardswish and hardsigmoid."""
    if node.kind != "Clip":
        return None
    low, high = (*node.inputs[1:], "", "")[:2]
    ends = node.attrs.get("min", graph.number(low)), node.attrs.get("max", graph.number(high))
    plus = graph.made(node.inputs[0], "Add")
    x = graph.with_number(plus, 3.0)
    if plus is None or x is None or ends != (0.0, 6.0):
        return None
    nodes, last, kind = [plus, node], node, "HardSigmoid"
    product = graph.next(last.outputs[0], "Mul")
    if product is not None and graph.other(product, last.outputs[0]) == x:
        nodes, last, kind = [*nodes, product], product, "HardSwish"
    end = graph.next(last.outputs[0], "Div") or graph.next(last.outputs[0], "Mul")
    if end is None or end.inputs[0] != last.outputs[0] and end.kind == "Div":
        return None
    if graph.with_number(end, 6.0 if end.kind == "Div" else 1 / 6) != last.outputs[0]:
        return None
    attrs = {"alpha": 1 / 6, "beta": 0.5} if kind == "HardSigmoid" else {}
    return (*nodes, end), Node(node.name, kind, (x,), end.outputs, attrs, node.opset)


def _gelu(graph: _Graph, node: Node) -> Found:
    """0.5 x (1 + erf(x / sqrt 2)), in the orders in which exporters write it."""
    if node.kind != "Erf":
        return None
    scaled = graph.made(node.inputs[0], "Div") or graph.made(node.inputs[0], "Mul")
    if scaled is None:
        return None
    x = graph.with_number(scaled, math.sqrt(2) if scaled.kind == "Div" else math.sqrt(0.5))
    one = graph.next(node.outputs[0], "Add")
    if x is None or graph.with_number(one, 1.0) != node.outputs[0] or one is None:
        return None
    product = graph.next(one.outputs[0], "Mul")
    if product is None:
        return None
    other = graph.other(product, one.outputs[0])
    if other == x:  # (x * (1 + erf)) * 0.5
        half = graph.next(product.outputs[0], "Mul")
        if half is None or graph.with_number(half, 0.5) != product.outputs[0]:
            return None
        nodes = (scaled, node, one, product, half)
    elif graph.number(other) == 0.5:  # x * (0.5 * (1 + erf))
        last = graph.next(product.outputs[0], "Mul")
        if last is None or graph.other(last, product.outputs[0]) != x:
            return None
        nodes = (scaled, node, one, product, last)
    else:  # (0.5 * x) * (1 + erf)
        half = graph.made(other, "Mul")
        if half is None or graph.with_number(half, 0.5) != x:
            return None
        nodes = (scaled, node, one, half, product)
    return nodes, Node(node.name, "Gelu", (x,), nodes[-1].outputs, {}, node.opset)


def _mish(graph: _Graph, node: Node) -> Found:
    """X tanh(softplus x)."""
    if node.kind != "Softplus":
        return None
    tanh = graph.next(node.outputs[0], "Tanh")
    product = graph.next(tanh.outputs[0], "Mul") if tanh else None
    if tanh is None or product is None or graph.other(product, tanh.outputs[0]) != node.inputs[0]:
        return None
    return (node, tanh, product), Node(node.name, "Mish", node.inputs, product.outputs, {}, node.opset)


def _layer_norm(graph: _Graph, node: Node) -> Found:
    """(x - mean) / sqrt(mean (x - mean)^2 + eps), over the last axis, with its weight and bias behind."""
    if node.kind != "Sub":
        return None
    x, mean = node.inputs[0], graph.made(node.inputs[1], "ReduceMean")
    if mean is None or mean.inputs[0] != x or not _last(graph, mean):
        return None
    readers = {id(n): n for n in graph.readers.get(node.outputs[0], [])}
    square = next((n for n in readers.values() if _is_square(graph, n, node.outputs[0])), None)
    div = next((n for n in readers.values() if n.kind == "Div" and n.inputs[0] == node.outputs[0]), None)
    if len(readers) != 2 or square is None or div is None:
        return None
    variance = graph.next(square.outputs[0], "ReduceMean")
    plus = graph.next(variance.outputs[0], "Add") if variance and _last(graph, variance) else None
    root = graph.next(plus.outputs[0], "Sqrt") if plus else None
    if variance is None or plus is None or root is None or div.inputs[1] != root.outputs[0]:
        return None
    epsilon = graph.number(graph.other(plus, variance.outputs[0]))
    if epsilon is None or not graph.alone(root.outputs[0]):
        return None
    nodes = [mean, node, square, variance, plus, root, div]
    inputs = [x]
    for kind in ("Mul", "Add"):
        after = graph.next(nodes[-1].outputs[0], kind)
        name = graph.other(after, nodes[-1].outputs[0]) if after else ""
        constant = graph.source.constants.get(name)
        if after is None or constant is None or constant.dim() > 1:
            break
        nodes.append(after)
        inputs.append(name)
    attrs = {"axis": -1, "epsilon": epsilon}
    return nodes, Node(node.name, "LayerNormalization", tuple(inputs), nodes[-1].outputs, attrs, node.opset)


def _last(graph: _Graph, node: Node) -> bool:
    """Whether a mean is over the last axis alone, which it keeps."""
    axes = node.attrs.get("axes")
    if axes is None and len(node.inputs) > 1:
        constant = graph.source.constants.get(node.inputs[1])
        axes = None if constant is None else constant.tolist()
    return axes == [-1] and node.attrs.get("keepdims", 1) == 1


def _is_square(graph: _Graph, node: Node, name: str) -> bool:
    if node.kind == "Pow":
        return node.inputs[0] == name and graph.number(node.inputs[1]) == 2
    return node.kind == "Mul" and node.inputs[0] == node.inputs[1] == name
