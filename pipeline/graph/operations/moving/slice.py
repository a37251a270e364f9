"""A part of a tensor along some axes: what slices, splits, chunks, `unbind` and indices by number take.

XNNPACK slices by steps of one. So programs hold a larger step over a map as a slice and a depthwise 1x1
convolution with that stride, whose weights are all one: it moves the very codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from paredown.pipeline.graph.aten import arguments, module_path, shape_of, target
from paredown.pipeline.graph.operations.operation import Codes, Operation, Shape, Traced

if TYPE_CHECKING:
    from paredown.pipeline.compress.coupling.flow import Flow, Labels
    from paredown.pipeline.graph.graph import Node
    from paredown.pipeline.graph.tracer import Tracer
    from paredown.pipeline.lower.executorch.program import QdqModule
    from paredown.pipeline.lower.integer import IntegerNode
    from paredown.pipeline.lower.litert.program import Writer

#: Dim -> what is taken of it.
Ranges = Mapping[int, range]


def ranges_of(node: Any) -> dict[int, range]:
    """What a node of this kind takes, by dim."""
    names = ("dims", "starts", "ends", "steps")
    rows = zip(*(node.attrs[name] for name in names), strict=True)
    return {dim: range(start, end, step) for dim, start, end, step in rows}


def attrs_of(ranges: Ranges) -> dict[str, tuple[int, ...]]:
    """Inverse of `ranges_of`."""
    dims = tuple(sorted(ranges))
    taken = [ranges[dim] for dim in dims]
    return {
        "dims": dims,
        "starts": tuple(each.start for each in taken),
        "ends": tuple(each[-1] + 1 for each in taken),
        "steps": tuple(each.step if len(each) > 1 else 1 for each in taken),
    }


def sliced(tracer: Tracer, node: Any, feed: str, ranges: Ranges, *, parts: int = 0, **fields: Any) -> str:
    """Makes a slice of a node's tensor; of what is a slice already, one that takes both.

    Args:
        tracer: makes nodes.
        node: of the exported program.
        feed: what is sliced.
        ranges: what is taken; dims that are taken whole may be among them.
        parts: of how many parts of one size the channels are one; 0 where they are not.
        **fields: of `Tracer.add`.

    Returns:
        The name of the slice, or `feed` where all is taken.
    """
    producer = tracer.nodes[feed]
    taken = {dim: each for dim, each in ranges.items() if each != range(producer.shape[dim])}
    if producer.kind == "slice" and taken:
        chunked = 1 not in producer.attrs["dims"] or "parts" in producer.attrs
        inner = parts or 1 not in taken
        parts = max(parts, 1) * producer.attrs.get("parts", 1) if chunked and inner else 0
        before = ranges_of(producer)
        taken = before | {dim: before[dim][each.start : each.stop : each.step] if dim in before else each
                          for dim, each in taken.items()}  # fmt: skip
        (feed,) = producer.inputs
        producer = tracer.nodes[feed]
    taken = {dim: each for dim, each in taken.items() if each != range(producer.shape[dim])}
    if not taken:
        tracer.alias[node.name] = feed
        return feed
    shape = tuple(len(taken.get(dim, range(size))) for dim, size in enumerate(producer.shape))
    attrs = attrs_of(taken) | ({"parts": parts} if parts > 1 else {})
    return tracer.add(node, "slice", (feed,), shape=shape, attrs=attrs, **fields)


class Slice(Operation):
    """Attributes: dims (rising), and for each of them starts, ends and steps, as in Python, none negative.

    Where the channels are one of some parts of one size, whatever that is, as `chunk` gives them, also parts:
    how many; and run, where they are several of them in a row.
    """

    aten = ("slice", "narrow", "select")
    pointwise = True
    same_scale = True
    keeps_sign = True

    def trace(self, tracer: Tracer, node: Any) -> None:
        before = shape_of(node.args[0])
        dim = int(arguments(node, None, 0)[1]) % len(before)
        size = before[dim]
        if target(node) == "select" and tracer.step(node, dim, int(node.args[2]) % size):
            return
        if target(node) == "slice":
            _, _, start, end, step = arguments(node, None, 0, None, None, 1)
            taken = range(size)[slice(start, end, step)]
        elif target(node) == "narrow":
            start, length = (int(value) for value in node.args[2:4])
            taken = range(size)[start % size :][:length]
        else:
            index = int(node.args[2]) % size
            taken = range(index, index + 1)
        batch = dim == 0 and tracer.held(node.args[0])[1][0] == 0
        if batch and (taken != range(size) or target(node) == "select"):
            raise tracer.unknown(node, "picks among the images of a batch; keep the batch whole")
        if not taken:
            raise tracer.unknown(node, "takes nothing")
        if len(taken) > 1 and taken.step > 1:
            self._stepped(tracer, node, dim, taken)
            return
        if target(node) == "select":
            picked(tracer, node, node.args[0], dim, index)
        else:
            feed = tracer.feed(node)
            sliced(tracer, node, feed, {tracer.axis(node, dim): taken})

    def _stepped(self, tracer: Tracer, node: Any, dim: int, taken: range) -> None:
        """Along height or width of a map: of (batch, height, width, channels) too."""
        _, axes = tracer.held(node.args[0])
        channels = next((i for i, axis in enumerate(axes) if axis == 1), 1)
        channels = channels if channels != dim else 3
        if len(axes) != 4 or axes[0] != 0 or channels == dim:
            raise tracer.unknown(
                node, "takes every so many along an axis that is not height or width of a map"
            )
        feed = tracer.map(node, channels=channels)
        sliced(tracer, node, feed, {tracer.axis(node, dim): taken})

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        return inputs[0][self._index(node)]

    def _index(self, node: Any) -> tuple[slice, ...]:
        taken = ranges_of(node)
        found = (taken.get(dim) for dim in range(max(taken) + 1))
        return tuple(
            slice(None) if each is None else slice(each.start, each.stop, each.step) for each in found
        )

    def follow(self, flow: Flow, node: Node) -> Labels:
        labels = flow.channels(node.inputs[0])
        axis = flow.axes[node.name]
        taken = ranges_of(node).get(axis)
        if taken is None:
            return labels
        if "parts" in node.attrs and axis == 1:
            first, *others = labels.reshape(node.attrs["parts"], -1)
            for other in others:
                flow.tie(first, other)
        else:
            where = node.source or node.name
            flow.lock(labels, f"is sliced at a channel that is a number ({where}), which only chunk is not")
        return labels[taken.start : taken.stop : taken.step]

    def line(self, flow: Flow, node: Node, units: set[int], first: str, read: bool, makes: bool) -> str:
        taken = ranges_of(node).get(flow.axes[node.name])
        if taken is None or not makes:
            return ""
        return f"{node.name} takes channels {taken[0]} to {taken[-1]}, a part of them: tied"

    def thinned(self, node: Node, shape: Shape, groups: int) -> Mapping[str, Any]:
        """As many of as many parts, of the new size."""
        if "parts" not in node.attrs:
            return node.attrs
        taken, run = ranges_of(node), node.attrs.get("run", 1)
        start = taken[1].start // (len(taken[1]) // run) * (shape[1] // run)
        return {**node.attrs, **attrs_of({**taken, 1: range(start, start + shape[1])})}

    def channels_read(self, node: Node, rows: int, whole: int) -> int:
        if 1 not in node.attrs["dims"]:
            return rows
        if "parts" not in node.attrs:
            return whole
        return rows * node.attrs["parts"] // node.attrs.get("run", 1)

    def codes(self, node: IntegerNode, feeds: Sequence[IntegerNode], inputs: Sequence[Codes]) -> Codes:
        return np.ascontiguousarray(inputs[0][self._index(node)])

    def written(self, node: Any, feeds: Sequence[Any]) -> tuple[Any, ...]:
        taken, shape = ranges_of(node), feeds[0].shape
        if all(each.step == 1 for each in taken.values()):
            return (node,)
        down, right = (taken[dim].step if dim in taken else 1 for dim in (2, 3))
        whole = {dim: range(each.start, each[-1] + 1) for dim, each in taken.items()}
        whole = {dim: each for dim, each in whole.items() if each != range(shape[dim])}
        made, feed = [], node.inputs[0]
        if whole:
            size = tuple(len(whole.get(dim, range(length))) for dim, length in enumerate(shape))
            feed = f"{node.name}.whole"
            made.append(replace(node, name=feed, shape=size, attrs=attrs_of(whole)))
        return (*made, moving_conv(replace(node, inputs=(feed,)), (down, right)))

    def executorch(self, program: QdqModule, node: IntegerNode, reals: Sequence[Tensor]) -> Tensor:
        (x,) = reals
        for index, (dim, taken) in enumerate(ranges_of(node).items()):
            x = program.requantized(x, node) if index else x
            x = x.narrow(dim, taken.start, len(taken))
        return x

    def litert(self, writer: Writer, node: Any, feeds: Sequence[Any]) -> None:
        (feed,), taken = feeds, ranges_of(node)
        begin = [0] * len(node.shape)
        sizes = [0] * len(node.shape)
        for dim, size in enumerate(node.shape):
            axis = writer.axis(node, dim)
            begin[axis], sizes[axis] = taken[dim].start if dim in taken else 0, size
        source = writer.read(feed, writer.native(node))
        ends = [writer.constant("slice", np.asarray(each, np.int32)) for each in (begin, sizes)]
        writer.op("SLICE", 2, [source, *ends], writer.result(node), writer.s.SliceOptionsT())

    def card_kind(self, node: IntegerNode, feed: IntegerNode) -> str:
        """Cards speak of reshapes for all that moves values and has a kernel everywhere."""
        return "reshape"


class Split(Traced):
    """What gives several parts along a dim: it makes nothing itself, each part is a slice."""

    folds = True
    aten = ("split", "split_with_sizes", "chunk", "unbind", "tensor_split")

    def trace(self, tracer: Tracer, node: Any) -> None:
        made = node.meta["val"]
        if not (0 < _dim(node) or tracer.held(node.args[0])[1][0] != 0):
            raise tracer.unknown(node, "splits the batch; keep it whole")
        if any(0 in part.shape for part in made):
            raise tracer.unknown(node, "makes a part of nothing")
        tracer.skip(node)


class GetItem(Traced):
    """One part of what was split; of an operation that gives several results, the first."""

    aten = ("getitem",)
    folds = True

    def trace(self, tracer: Tracer, node: Any) -> None:
        if node.name in tracer.alias:  # what gives several results has traced them
            return
        split, index = node.args[0], int(node.args[1])
        made = tracer.nodes[tracer.alias[split.name]]
        if target(split) == "adaptive_max_pool2d" and made.kind != "opaque":
            tracer.alias[node.name] = made.name
            return
        if target(split) not in Split.aten or tracer.alias[split.name] != tracer.alias.get(
            split.args[0].name
        ):
            raise tracer.unknown(node, "picks one of several results")
        dim, parts_made = _dim(split), split.meta["val"]
        index %= len(parts_made)
        if target(split) == "unbind":
            picked(tracer, node, split, dim, index)
            return
        start = sum(part.shape[dim] for part in parts_made[:index])
        length = parts_made[index].shape[dim]
        feed, axes = tracer.held(split)
        own = axes.count(axes[dim]) == 1 and (axes[dim] == 1 or axes[0] != 0)
        if own and not tracer.plain(split):
            tracer.hold(node, feed, axes)
        else:
            feed = tracer.feed(split)
        dim = tracer.axis(node, dim)
        alike = len({tuple(part.shape) for part in parts_made}) == 1 and dim == 1
        parts = len(parts_made) if alike and target(split) == "chunk" else 0
        parts = parts if parts == split.args[1] else 0
        sliced(tracer, node, feed, {dim: range(start, start + length)}, parts=parts)


def picked(tracer: Tracer, node: Any, argument: Any, dim: int, index: int) -> None:
    """One place of a dim, which is then gone: what is left is held as before."""
    name = module_path(node) or node.name
    if tracer.plain(argument):
        feed = tracer.native(node, argument)
        made = sliced(tracer, node, feed, {dim: range(index, index + 1)}, name=f"{name}.part")
        tracer.add(node, "reshape", (made,), name=name, attrs={"shape": shape_of(node)})
        return
    feed, axes = tracer.held(argument)
    made = sliced(tracer, node, feed, {axes[dim]: range(index, index + 1)}, name=f"{name}.part")
    tracer.hold(node, made, (*axes[:dim], *axes[dim + 1 :]))


def moving_conv(node: Any, stride: tuple[int, int]) -> Any:
    """The depthwise 1x1 convolution, all weights one, that takes every so many pixels of a map.

    Args:
        node: a `Node` or an `IntegerNode`, with the name, the inputs and the output that it shall have.
        stride: (h, w).
    """
    channels = node.shape[1]
    attrs = {"stride": stride, "padding": (0, 0, 0, 0), "groups": channels}
    node = replace(node, kind="conv2d", attrs=attrs)
    if not hasattr(node, "out"):  # the float graph's
        return replace(node, weight=torch.ones(channels, 1, 1, 1), bias=torch.zeros(channels))
    weight, scale = np.ones((channels, 1, 1, 1), np.int8), np.ones(channels, np.float32)
    return replace(node, weight=weight, weight_scale=scale, bias=np.zeros(channels, np.int32))


def _dim(node: Any) -> int:
    """The dim along which an ATen node splits."""
    place = 1 if target(node) == "unbind" else 2
    dim = arguments(node, *[None] * place, 0)[place]
    return int(dim) % len(shape_of(node.args[0]))
