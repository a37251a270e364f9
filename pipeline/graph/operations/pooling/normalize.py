"""Normalization by the input's own mean and variance: layer norm, group norm, instance norm.

What is normalized together is a row: the channels of a pixel, or a group of channels over the whole map. No
runtime has it in int8. Programs compute it in float32, within the delegate, from whole numbers (`whole.py`),
so that all kernels give the same codes. Weight and bias follow as a depthwise convolution of one pixel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paredown.pipeline.graph.aten import arguments, module_path, shape_of, target
from paredown.pipeline.graph.operations.operation import Codes, Operation, Shape
from paredown.pipeline.graph.operations.pooling.whole import (
    Steps,
    offsets,
    parts_of,
    requantized,
    rounded,
    total,
    totals,
    whole,
)
from paredown.pipeline.graph.operations.weighted.batch_norm import BatchNorm, alone

if TYPE_CHECKING:
    from paredown.pipeline.compress.coupling.flow import Flow, Labels
    from paredown.pipeline.graph.graph import Node
    from paredown.pipeline.graph.tracer import Tracer
    from paredown.pipeline.lower.executorch.program import QdqModule
    from paredown.pipeline.lower.integer import IntegerNode
    from paredown.pipeline.lower.litert.program import Writer

BATCH_NORM = BatchNorm()


def _rows(node: Any) -> tuple[int, int]:
    """How many rows a batch of one has, and how long they are."""
    groups, pixels = node.attrs["groups"], prod(node.shape[2:])
    if groups:
        return groups, node.shape[1] // groups * pixels
    return pixels, node.shape[1]


class Normalize(Operation):
    """Attributes: groups of channels that are normalized each, over the map; 0: each pixel is; eps.

    A channel that is gone counts for no mean: where a graph is masked, `left` are the channels that stay.
    """

    aten: ClassVar[tuple[str, ...]] = ("layer_norm", "group_norm", "instance_norm")

    folds = True

    # -- tracing -------------------------------------------------------------------------------------------

    def trace(self, tracer: Tracer, node: Any) -> None:
        name, shape = target(node), shape_of(node)
        if name == "instance_norm":
            _, weight, bias, _, _, by_input, _, eps, _ = arguments(
                node, None, None, None, None, None, True, 0.1, 1e-5, True
            )
            if not by_input:
                BATCH_NORM.trace(tracer, node)
                return
            groups = shape[1]
        elif name == "group_norm":
            _, groups, weight, bias, eps = arguments(node, None, 1, None, None, 1e-5)[:5]
        else:
            _, sizes, weight, bias, eps = arguments(node, None, None, None, None, 1e-5)[:5]
            groups = 0 if len(sizes) == 1 else 1
            if groups and len(sizes) != len(shape) - 1:
                raise tracer.unknown(node, f"over the last {len(sizes)} of {len(shape)} axes is not known")
            if groups and (weight is not None or bias is not None):
                raise tracer.unknown(
                    node, "has a weight for each value of a map; elementwise_affine=False, or over channels"
                )
        if groups and tracer.folded(node.args[0]):
            raise tracer.unknown(node, "reads a tensor whose first dim is not the batch")
        if len(shape) not in {2, 3, 4} and groups:
            raise tracer.unknown(node, f"reads {len(shape)} axes; it is known over two to four")
        self._add(tracer, node, int(groups), float(eps), weight, bias)

    def _add(self, tracer: Tracer, node: Any, groups: int, eps: float, weight: Any, bias: Any) -> None:
        rank, name = len(shape_of(node)), module_path(node) or node.name
        row = rank == 2 and not tracer.folded(node.args[0])
        if row:
            flat = tracer.feed(node)
            shape: Shape = (1, shape_of(node)[1], 1, 1)
            feed = tracer.add(
                node, "reshape", (flat,), shape=shape, name=f"{name}.map", attrs={"shape": shape}
            )
        else:
            feed = tracer.map(node, channels=1 if groups else rank - 1)
            shape = tracer.nodes[feed].shape
        factor, shift = tracer.constant(node, weight), tracer.constant(node, bias)
        plain = factor is None and shift is None
        attrs = {"groups": groups, "eps": eps}
        made = tracer.add(
            node, "normalize", (feed,), shape=shape, attrs=attrs, name=name if plain else f"{name}.normal"
        )
        if not plain:
            channels = shape[1]
            factor = torch.ones(channels) if factor is None else factor
            shift = torch.zeros(channels) if shift is None else shift
            names = tracer.names(factor=weight, bias=bias)
            alone(tracer, node, made, factor, shift, names)
        if row:
            self._flat(tracer, node, name)

    def _flat(self, tracer: Tracer, node: Any, name: str) -> None:
        shape = shape_of(node)
        last = tracer.alias[node.name]
        tracer.add(node, "reshape", (last,), shape=shape, name=f"{name}.flat", attrs={"shape": shape})

    # -- float, coupling -----------------------------------------------------------------------------------

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        (x,), groups = inputs, node.attrs["groups"]
        if left := list(node.attrs.get("left", ())):
            attrs = {name: value for name, value in node.attrs.items() if name != "left"}
            part = replace(node, shape=(1, len(left), *node.shape[2:]), attrs=attrs)
            return torch.zeros_like(x).index_copy(1, torch.tensor(left), self.compute(part, x[:, left]))
        rows = x if groups else x.permute(0, 2, 3, 1)
        moved = rows.shape
        count, size = _rows(node)
        rows = rows.reshape(-1, count, size, 1)
        rows = rows - rows.mean((2, 3), keepdim=True)
        rows = rows / torch.sqrt((rows * rows).mean((2, 3), keepdim=True) + node.attrs["eps"])
        rows = rows.reshape(moved)
        return rows if groups else rows.permute(0, 3, 1, 2)

    def follow(self, flow: Flow, node: Node) -> Labels:
        labels = flow.channels(node.inputs[0])
        if not self._each(node):
            flow.positions(labels, max(1, node.attrs["groups"]))
            flow.carry(node, labels)
        return labels

    def masked(self, node: Node, gone: Sequence[int], axis: int) -> Node:
        left = tuple(sorted(set(range(node.shape[1])) - set(gone)))
        return replace(node, attrs={**node.attrs, "left": left})

    def line(self, flow: Flow, node: Node, units: set[int], first: str, read: bool, makes: bool) -> str:
        if not read:
            return ""
        return f"{node.name} carries them" + ("" if self._each(node) else ", and counts those that are there")

    def thinned(self, node: Node, shape: Shape, groups: int) -> Mapping[str, Any]:
        return {**node.attrs, "groups": shape[1]} if self._each(node) else node.attrs

    def _each(self, node: Node) -> bool:
        """Whether every channel is normalized for itself."""
        return bool(node.attrs["groups"] == node.shape[1])

    # -- integers and programs: the same steps three times -------------------------------------------------

    def _numbers(self, node: IntegerNode, feed: IntegerNode) -> tuple[float, float, float]:
        """The length of a row, its inverse, and eps in units of the codes' squares times length squared."""
        _, size = _rows(node)
        eps = np.float64(node.attrs["eps"]) * size**2 / np.float64(feed.out.scale) ** 2
        return float(size), float(np.float32(1 / size)), float(np.float32(eps))

    def codes(self, node: IntegerNode, feeds: Sequence[IntegerNode], inputs: Sequence[Codes]) -> Codes:
        (feed,), (x,) = feeds, inputs
        size, part, eps = (np.float32(number) for number in self._numbers(node, feed))
        moved = x if node.attrs["groups"] else x.transpose(0, 2, 3, 1)
        rows = offsets(moved, feed.out).reshape(-1, *_rows(node))
        sums = total(rows)
        middle = np.rint(sums * part)
        rows, sums = rows - middle, sums - middle * size
        spread = np.sqrt(total(rows * rows) * size - sums * sums + eps)
        made: NDArray[np.float32] = (rows * size - sums) / spread
        codes = requantized(made, node).reshape(moved.shape)
        return codes if node.attrs["groups"] else np.ascontiguousarray(codes.transpose(0, 3, 1, 2))

    def constants(self, node: IntegerNode, feeds: Sequence[IntegerNode]) -> Mapping[str, NDArray[np.float32]]:
        size = _rows(node)[1]
        parts = parts_of(size)
        return {"ones": np.ones((1, size // parts), np.float32), "parts": np.ones((1, parts), np.float32)}

    def executorch(self, program: QdqModule, node: IntegerNode, reals: Sequence[Tensor]) -> Tensor:
        (x,), feed, groups = reals, program.graph[node.inputs[0]], node.attrs["groups"]
        size, part, eps = self._numbers(node, feed)
        ones = program.constant(node, "ones"), program.constant(node, "parts")
        moved = x if groups else x.permute(0, 2, 3, 1)
        rows = whole(moved.reshape(_rows(node)), feed.out)
        sums = totals(rows, *ones)
        middle = rounded(sums * part)
        rows, sums = rows - middle, sums - middle * size
        spread = torch.sqrt(totals(rows * rows, *ones) * size - sums * sums + eps)
        made = ((rows * size - sums) / spread).reshape(moved.shape)
        return made if groups else made.permute(0, 3, 1, 2)

    def litert(self, writer: Writer, node: Any, feeds: Sequence[Any]) -> None:
        layout = "plain" if node.attrs["groups"] else "nhwc"
        source = writer.real(writer.read(feeds[0], layout), f"{node.name}/input")
        steps = Steps(writer, node.name)
        with writer.quantized(writer.tensor(node, layout), f"{node.name}/output") as made:
            rows = steps.reshaped(source, _rows(node))
            ended = self._written(writer, steps, node, feeds[0], rows)
            steps.reshaped(ended, steps.shape(made), made)

    def _written(self, writer: Writer, steps: Steps, node: Any, feed: Any, rows: int) -> int:
        if not writer.integer:
            each = 1 / _rows(node)[1]
            rows = steps.pair("SUB", rows, steps.by("MUL", steps.totals(rows), each))
            spread = steps.by("MUL", steps.totals(steps.pair("MUL", rows, rows)), each)
            return steps.pair("DIV", rows, steps.root(steps.by("ADD", spread, node.attrs["eps"])))
        size, part, eps = self._numbers(node, feed)
        rows = steps.whole(rows, feed.out)
        sums = steps.totals(rows)
        middle = steps.rounded(steps.by("MUL", sums, part))
        rows = steps.pair("SUB", rows, middle)
        sums = steps.pair("SUB", sums, steps.by("MUL", middle, size))
        squares = steps.by("MUL", steps.totals(steps.pair("MUL", rows, rows)), size)
        spread = steps.by("ADD", steps.pair("SUB", squares, steps.pair("MUL", sums, sums)), eps)
        return steps.pair("DIV", steps.pair("SUB", steps.by("MUL", rows, size), sums), steps.root(spread))
