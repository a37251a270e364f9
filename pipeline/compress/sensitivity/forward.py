"""A graph computed fast and repeatably: chunk by chunk, channels last, packed weights, fused activations.

What `pipeline.compress.sensitivity.masked` and the plain evaluation of
`pipeline.compress.sensitivity.plain` share, so that their results can be the same to the bit: every
kernel sees the same shapes, chunk and memory layout in both, since which kernel runs, and so in which order
it adds, may depend on all three.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from paredown.pipeline.graph.graph import Graph, Node, apply
from paredown.pipeline.graph.operations.kinds import operation
from paredown.pipeline.graph.operations.padding import dilation_of

Values = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Op:
    """What is computed in one go: a node, or a convolution with the addition and activation after it.

    Attributes:
        name: of the last node, whose tensor it makes.
        node: the node that computes.
        inputs: the tensors that the node reads.
        other: of a fused addition, the other side; empty without one.
        activation: the fused activation's node.
        shape: of its output for a batch of one.
    """

    name: str
    node: Node
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    other: str = ""
    activation: Node | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        """All tensors that it reads."""
        return (*self.inputs, self.other) if self.other else self.inputs


def fuse(graph: Graph) -> tuple[Op, ...]:
    """Joins convolutions with the addition and the activation that alone read them."""
    outputs = set(graph.outputs)
    readers: dict[str, list[Node]] = {}
    for node in graph:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    order = {node.name: i for i, node in enumerate(graph)}
    ops: dict[str, Op] = {}
    for node in graph:
        op = Op(node.name, node, node.inputs, node.shape)
        if has_fusion():
            for index, name in enumerate(node.inputs):
                fed = ops.get(name)
                alone = len(readers[name]) == 1 and name not in outputs
                if fed is None or not alone or fed.node.kind != "conv2d" or fed.activation is not None:
                    continue
                if node.kind == "add" and not fed.other:
                    other = node.inputs[1 - index]
                    rival = ops[other]  # of two convolutions that could take the addition, the last one does
                    if not (
                        index == 0 and _could_add(rival, readers, outputs) and order[other] > order[name]
                    ):
                        op = replace(fed, name=node.name, other=other, shape=node.shape)
                        break
                elif node.kind == "relu" or (operation(node.kind).onednn and not fed.other):
                    op = replace(fed, name=node.name, activation=node)
                    break
        if op.node is not node:
            del ops[next(i for i in node.inputs if i in ops and ops[i].node is op.node)]
        ops[op.name] = op
    return tuple(ops.values())


def _could_add(op: Op, readers: Mapping[str, list[Node]], outputs: set[str]) -> bool:
    free = len(readers[op.name]) == 1 and op.name not in outputs
    return free and op.node.kind == "conv2d" and not op.other and op.activation is None


def has_fusion() -> bool:
    """Whether this torch has oneDNN's convolutions, with packed weights and fused activations."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


class Conv:
    """A convolution with its weights packed for one chunk's shape."""

    def __init__(self, op: Op, weight: Tensor, bias: Tensor, groups: int, shape: tuple[int, ...]) -> None:
        """Packs the weights.

        Args:
            op: fused.
            weight: (out, in / groups, kh, kw), those of the op or fewer.
            bias: (out,).
            groups: of this convolution.
            shape: of its input, the whole chunk.
        """
        attrs = op.node.attrs
        left, right, top, bottom = attrs["padding"]
        self.pad = () if left == right and top == bottom else (left, right, top, bottom)
        if self.pad:
            shape = (*shape[:2], shape[2] + top + bottom, shape[3] + left + right)
        padding = [0, 0] if self.pad else [top, left]
        self.place = (padding, list(attrs["stride"]), list(dilation_of(op.node)), groups)
        self.activation = op.activation
        self.bias = bias.contiguous()
        self.fused = has_fusion()
        weight = weight.contiguous(memory_format=torch.channels_last)
        if self.fused:
            weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *self.place, list(shape))
            self.words: tuple[str, list[float]] = ("none", [])
            if op.activation is not None:
                fused = operation(op.activation.kind).onednn
                assert fused is not None
                word, numbers = fused
                self.words = (word, [_number(op.activation, n) for n in numbers])
        self.weight = weight

    def __call__(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Computes a chunk, channels last."""
        x = last(F.pad(x, self.pad) if self.pad else x)
        other = other if other is None else last(other)
        run = torch.ops.mkldnn._convolution_pointwise
        padding, stride, dilation, groups = self.place
        if not self.fused:
            y: Tensor = F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
            y = y if other is None else y + other
            return y if self.activation is None else apply(self.activation, y)
        if other is None:
            word, numbers = self.words
            return run(x, self.weight, self.bias, padding, stride, dilation, groups, word, numbers, "")
        place = (padding, stride, dilation, groups)
        unary = None if self.activation is None else "relu"
        return run.binary(x, other, self.weight, self.bias, *place, "add", None, unary, [], None)


def _number(node: Node, value: Any) -> float:
    return float(node.attrs[value]) if isinstance(value, str) else value


class Engine:
    """A network and a chunk size; see the module.

    Attributes:
        chunk: images that are computed at a time; a shorter last chunk is filled up.
        ops: fused, in running order.
    """

    def __init__(self, graph: Graph, chunk: int) -> None:
        self.graph, self.chunk = graph, chunk
        self.ops = fuse(graph)
        self.shapes = {op.name: op.shape for op in self.ops}
        self.convs = {op.name: self._conv(op) for op in self.ops if op.node.kind == "conv2d"}
        self.tried: dict[str, bool] = {}

    def _conv(self, op: Op) -> Conv:
        node = op.node
        assert node.weight is not None and node.bias is not None
        return Conv(op, node.weight, node.bias, node.attrs["groups"], self.chunk_shape(op.inputs[0]))

    def chunk_shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor for a whole chunk."""
        return (self.chunk, *self.shapes[name][1:])

    def compute(self, op: Op, *inputs: Tensor) -> Tensor:
        """One op of the original network."""
        conv = self.convs.get(op.name)
        if conv is None:
            return compute(op.node, *inputs)
        return conv(inputs[0], inputs[1] if op.other else None)

    @torch.inference_mode()
    def run(self, x: Tensor, keep: frozenset[str]) -> Values:
        """The original network on one chunk.

        Args:
            x: (chunk, C, H, W), channels last.
            keep: tensors that the caller wants beside the outputs.

        Returns:
            These tensors; everything else is dropped as soon as nothing reads it any more.
        """
        keep = keep | frozenset(self.graph.outputs)
        last = {name: op.name for op in self.ops for name in op.reads}
        values: Values = {}
        for op in self.ops:
            values[op.name] = (
                x if op.node.kind == "input" else self.compute(op, *(values[i] for i in op.reads))
            )
            for name in set(op.reads):
                if last[name] == op.name and name not in keep:
                    del values[name]
        return {name: values[name] for name in keep}

    def outputs(self, values: Values) -> tuple[NDArray[np.float32], ...]:
        """The network's outputs of a chunk as arrays."""
        return tuple(values[name].contiguous().numpy() for name in self.graph.outputs)

    def dead(self, x: Tensor) -> set[int]:
        """The channels that are zero in all of a chunk."""
        return set(torch.nonzero((x == 0).all(0).reshape(x.shape[1], -1).all(1)).flatten().tolist())

    def part(self, inputs: NDArray[np.float32], index: int) -> tuple[Tensor, int]:
        """One chunk of a sample, channels last and filled up, and how many of its images count."""
        found = inputs[index * self.chunk : (index + 1) * self.chunk]
        count = len(found)
        if count < self.chunk:
            found = np.concatenate([found, np.repeat(found[-1:], self.chunk - count, axis=0)])
        return last(torch.from_numpy(np.ascontiguousarray(found))), count

    def chunks(self, inputs: NDArray[np.float32]) -> Iterator[tuple[Tensor, int]]:
        """All chunks of a sample."""
        for index in range(-(-len(inputs) // self.chunk)):
            yield self.part(inputs, index)


def images(outputs: tuple[NDArray[np.float32], ...], count: int) -> Iterator[tuple[NDArray[np.float32], ...]]:
    """A chunk's outputs, image by image; copies, for a slice would keep the chunk alive."""
    for index in range(count):
        yield tuple(output[index : index + 1].copy() for output in outputs)


def last(x: Tensor) -> Tensor:
    """The tensor with its channels last, and strides that say so even where sizes of one leave a choice."""
    if x.dim() != 4:
        return x.contiguous()
    _, c, h, w = x.shape
    strides = (h * w * c, 1, w * c, c)
    if x.stride() == strides:
        return x
    return x.contiguous(memory_format=torch.channels_last).as_strided(x.shape, strides)


def compute(node: Node, *inputs: Tensor) -> Tensor:
    """One node that is no convolution, from inputs in the one layout."""
    return apply(node, *(last(x) if isinstance(x, Tensor) else x for x in inputs))
