"""Layers as the runtimes execute them: their shapes at any widths, and programs of one layer (our design)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from paredown.pipeline.compress.allocate.cost import Count, channel_counts, layer_columns
from paredown.pipeline.compress.coupling.flow import Group
from paredown.pipeline.graph.graph import Graph, Node
from paredown.pipeline.graph.operations.kinds import operation

if TYPE_CHECKING:
    from paredown.pipeline.lower.integer import IntegerGraph


@dataclass(frozen=True)
class LayerShape:
    """All that the time of one int8 layer depends on.

    Attributes:
        kind: one of `pipeline.graph.operations.kinds.KINDS`; "input" stands for a call of a program that does
            nothing with an input of this shape.
        inputs: their shapes, batch of one, NCHW.
        output: its shape.
        attrs: attributes of the kind, sorted by name; with the size of the `filter` where there is a weight.
        clamp: "", "relu" or "relu6": the activation that the layer takes in.
    """

    kind: str
    inputs: tuple[tuple[int, ...], ...]
    output: tuple[int, ...]
    attrs: tuple[tuple[str, Any], ...] = ()
    clamp: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return {
            "kind": self.kind,
            "inputs": [list(shape) for shape in self.inputs],
            "output": list(self.output),
            "attrs": {name: _listed(value) for name, value in self.attrs},
            "clamp": self.clamp,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> LayerShape:
        """The inverse of `to_dict`.

        Raises:
            KeyError, TypeError, AttributeError: it is not one.
        """
        return cls(
            str(fields["kind"]),
            tuple(tuple(shape) for shape in fields["inputs"]),
            tuple(fields["output"]),
            tuple(sorted((name, _tupled(value)) for name, value in fields["attrs"].items())),
            str(fields["clamp"]),
        )

    @property
    def work(self) -> int:
        """Roughly how much there is to do, to tell long layers from short ones."""
        if operation(self.kind).weighted:
            attrs = dict(self.attrs)
            per = self.inputs[0][1] // attrs.get("groups", 1) * math.prod(attrs.get("filter", ()))
            return math.prod(self.output) * per
        return math.prod(self.output) + sum(math.prod(shape) for shape in self.inputs)


@dataclass(frozen=True)
class LayerTime:
    """One layer of a network, at any widths.

    Attributes:
        name: of its operation.
        rows: channels that it makes, as a function of widths.
        columns: channels that it reads, where its time depends on them too; else None.
        shape: its shape with these numbers of channels made and read.
        whole: the shape in the unpruned network.
    """

    name: str
    rows: Count
    columns: Count | None
    shape: Callable[[int, int], LayerShape]
    whole: LayerShape

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups whose widths decide."""
        return tuple({**self.rows.per_unit, **(self.columns.per_unit if self.columns else {})})


def layers(graph: Graph, groups: Sequence[Group]) -> list[LayerTime]:
    """The layers of a network as its int8 program executes them, activations fused where lowering does so."""
    from paredown.pipeline.graph.fusion import fuse_relu

    channels = channel_counts(graph, groups)
    result = []
    for node, clamp in fuse_relu(graph):
        counts = [channels[name] for name in node.inputs]
        # an activation of its own needs no clamp beside its kind
        fused = "" if node.kind == clamp else clamp
        shape = _Shape(node, fused, tuple(graph[name].shape for name in node.inputs))
        rows, columns = channels[node.name], None
        if node.weight is not None and not (node.attrs.get("groups", 1) > 1 and _loses_groups(node)):
            columns = counts[0]
        whole = shape(node.shape[1], shape.inputs[0][1] if shape.inputs else 0)
        result.append(LayerTime(node.name, rows, columns, shape, whole))
    return result


@dataclass(frozen=True)
class _Shape:
    """The shape of a layer with other numbers of channels."""

    node: Node
    clamp: str
    inputs: tuple[tuple[int, ...], ...]

    def __call__(self, rows: int, columns: int) -> LayerShape:
        node = self.node
        attrs = {name: value for name, value in node.attrs.items() if name != "value"}
        inputs, output = self.inputs, node.shape
        if not operation(node.kind).moves and node.kind != "input":
            output = _with(node.shape, rows)
            if operation(node.kind).joins:
                # one input of an average size, so many times: the same number of values is copied
                dim = node.attrs["dim"]
                size = round(output[dim] / len(inputs))
                one = (*output[:dim], max(size, 1), *output[dim + 1 :])
                inputs = (one,) * len(inputs)
                output = (*output[:dim], one[dim] * len(inputs), *output[dim + 1 :])
            elif node.weight is None:
                kind = operation(node.kind)
                inputs = tuple(_with(s, kind.channels_read(node, rows, s[1])) for s in inputs)
                attrs = dict(kind.thinned(replace(node, attrs=attrs), output, 1))
            elif _loses_groups(node) and node.attrs.get("groups", 1) > 1:
                left = max(round(node.attrs["groups"] * rows / node.weight.shape[0]), 1)
                attrs["groups"] = left
                inputs = (_with(inputs[0], left * node.weight.shape[1]),)
                output = _with(output, left * (node.weight.shape[0] // node.attrs["groups"]))
            else:
                inputs = (_with(inputs[0], columns),)
        if node.weight is not None and node.weight.ndim == 4:
            attrs["filter"] = tuple(node.weight.shape[2:])
        return LayerShape(node.kind, inputs, output, tuple(sorted(attrs.items())), self.clamp)


def one_layer(shape: LayerShape, times: int = 1) -> IntegerGraph:
    """An int8 network of this layer alone, all scales alike and weights at random.

    Args:
        shape: not of kind "input".
        times: so often, one after the other; more than once only where output and input are alike.
    """
    from paredown.pipeline.lower.integer import quantize

    attrs = dict(shape.attrs)
    kernel = attrs.pop("filter", ())
    generator = torch.Generator().manual_seed(0)
    nodes = [Node("input", "input", (), shape.inputs[0])]
    for index in range(times):
        name = f"layer{index}"
        node = Node(name, shape.kind, (nodes[-1].name,) * len(shape.inputs), shape.output, attrs)
        if operation(shape.kind).weighted:
            size = (shape.output[1], shape.inputs[0][1] // attrs.get("groups", 1), *kernel)
            weight = torch.rand(size, generator=generator) - 0.5
            node = replace(node, weight=weight, bias=torch.rand(size[0], generator=generator))
        nodes.append(node)
        if shape.clamp:
            nodes.append(Node(f"{name}.{shape.clamp}", shape.clamp, (name,), shape.output))
    graph = Graph(tuple(nodes), (nodes[-1].name,))
    # wide enough for a ReLU6 to differ from a ReLU
    return quantize(graph, {node.name: (-8.0, 8.0) for node in nodes}, input_range=(-8.0, 8.0))


def _loses_groups(node: Node) -> bool:
    """Whether a convolution loses whole groups with its channels, as a depthwise one does."""
    return not layer_columns(node, Count(0.0, {"": 1.0})).per_unit


def _with(shape: tuple[int, ...], channels: int) -> tuple[int, ...]:
    return (shape[0], channels, *shape[2:])


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
