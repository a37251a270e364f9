"""The largest value of each window, padded by minus infinity."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paredown.pipeline.graph.aten import arguments, module_path, shape_of, sides, target
from paredown.pipeline.graph.operations.moving.resize import resized
from paredown.pipeline.graph.operations.operation import Codes, Operation
from paredown.pipeline.graph.operations.padding import (
    FAR_SAME,
    symmetric,
    written_padding,
)
from paredown.pipeline.graph.operations.placement import (
    ETHOS,
    EXECUTORCH,
    LITERT,
    MOST_INPUTS,
    U55,
    Rule,
)

if TYPE_CHECKING:
    from paredown.pipeline.graph.graph import Node
    from paredown.pipeline.graph.tracer import Tracer
    from paredown.pipeline.lower.executorch.program import QdqModule
    from paredown.pipeline.lower.integer import IntegerNode
    from paredown.pipeline.lower.litert.program import Writer

#: Vela's limits: rows and pixels of a window.
MOST_ROWS, MOST_WINDOW = 256, 1 << 16


def _skips(node: IntegerNode, feed: IntegerNode) -> bool:
    return any(stride > size for stride, size in zip(node.attrs["stride"], node.attrs["kernel"], strict=True))


def _large(node: IntegerNode, feed: IntegerNode) -> bool:
    return node.attrs["kernel"][0] > MOST_ROWS or prod(node.attrs["kernel"]) > MOST_WINDOW


SKIPS = Rule(
    _skips, "XNNPACK's pools have a stride of at most their window",
    "a larger window, or a convolution with that stride",
)  # fmt: skip


class MaxPool2d(Operation):
    """Attributes: kernel (h, w), stride (h, w), padding (left, right, top, bottom)."""

    aten = ("max_pool2d", "max_pool1d", "adaptive_max_pool2d")
    homogeneous = True
    channelwise = True
    same_scale = True
    keeps_sign = True
    rules = {
        EXECUTORCH: (SKIPS,),
        LITERT: (
            SKIPS,
        ),
        ETHOS: (
            Rule(
                _large, f"Ethos-U pools over at most {MOST_ROWS} rows and {MOST_WINDOW:,} pixels",
                "two smaller pools",
            ),
        ),
        U55: (FAR_SAME,),
    }  # fmt: skip

    def trace(self, tracer: Tracer, node: Any) -> None:
        if target(node) == "adaptive_max_pool2d":
            self._adaptive(tracer, node)
            return
        _, kernel, stride, padding, dilation, _ = arguments(node, None, None, [], [0, 0], [1, 1], False)
        kernel, dilation = sides(node, kernel, 1), sides(node, dilation, 1)
        stride = sides(node, stride, 1) if stride else kernel
        vertical, horizontal = sides(node, padding, 0)
        pads = (horizontal, horizontal, vertical, vertical)
        feed = tracer.windowed(node)
        producer = tracer.nodes[feed]
        if producer.kind == "pad" and producer.attrs["value"] != 0:
            pads = tuple(a + b for a, b in zip(pads, producer.attrs["padding"], strict=True))
            feed = producer.inputs[0]
        reach = tuple((k - 1) * apart + 1 for k, apart in zip(kernel, dilation, strict=True))
        if max(pads[:2]) >= reach[1] or max(pads[2:]) >= reach[0]:
            raise tracer.unknown(node, f"of {kernel} is padded by {pads}: a window would see only padding")
        left, right, top, bottom = pads
        (high, wide), made = tracer.nodes[feed].shape[2:], shape_of(node)[2:]
        rows, columns = made if len(made) == 2 else (1, *made)
        over = (
            (rows - 1) * stride[0] + reach[0] - top - high,
            (columns - 1) * stride[1] + reach[1] - left - wide,
        )
        attrs = {"kernel": kernel, "stride": stride, "padding": pads}
        if dilation != (1, 1):
            windows = [
                (size, [range(i * step - start, i * step - start + far, apart) for i in range(count)])
                for size, count, step, start, far, apart in (
                    (high, rows, stride[0], top, reach[0], dilation[0]),
                    (wide, columns, stride[1], left, reach[1], dilation[1]),
                )
            ]
            if not all(any(0 <= i < size for i in each) for size, found in windows for each in found):
                raise tracer.unknown(node, "has a window that would see only padding")
            self._side_by_side(tracer, node, feed, *(_places(*each) for each in windows))
            return
        if over[0] > bottom or over[1] > right:  # ceil_mode: no maximum notices a border that is repeated
            name = f"{module_path(node) or node.name}.border"
            places = [
                [min(max(i, 0), size - 1) for i in range(-start, size + max(end, more))]
                for size, start, end, more in ((high, top, bottom, over[0]), (wide, left, right, over[1]))
            ]
            feed = resized(tracer, node, feed, *places, name=name)
            attrs["padding"] = (0, 0, 0, 0)
        tracer.add(node, "max_pool2d", (feed,), attrs=attrs)

    def _adaptive(self, tracer: Tracer, node: Any) -> None:
        """Windows side by side; uneven ones are made even by rows and columns that they have twice."""
        if any(user.users for user in node.users if user.args[1] != 0):
            raise tracer.unknown(node, "is asked where the maxima are")
        feed, before, made = tracer.feed(node), shape_of(node.args[0])[2:], node.meta["val"][0].shape[2:]
        places = []
        for size, count in zip(before, made, strict=True):
            windows = [range(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
            most = max(map(len, windows))
            places.append(_places(size, [range(each.start, each.start + most) for each in windows], windows))
        self._side_by_side(tracer, node, feed, *places)

    def _side_by_side(
        self, tracer: Tracer, node: Any, feed: str, rows: list[list[int]], columns: list[list[int]]
    ) -> None:
        """Windows of any form, from a map where they lie side by side."""
        name, kernel = module_path(node) or node.name, (len(rows[0]), len(columns[0]))
        flat = [[place for window in places for place in window] for places in (rows, columns)]
        feed = resized(tracer, node, feed, *flat, name=f"{name}.windows")
        tracer.alias[node.name] = feed
        if kernel != (1, 1):
            attrs = {"kernel": kernel, "stride": kernel, "padding": (0, 0, 0, 0)}
            shape = (*tracer.nodes[feed].shape[:2], len(rows), len(columns))
            tracer.add(node, "max_pool2d", (feed,), shape=shape, name=name, attrs=attrs)

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        attrs = node.attrs
        limit = min(attrs["kernel"]) // 2  # of the padding that torch's pooling takes
        x, padding = symmetric(inputs[0], attrs["padding"], float("-inf"), limit)
        return F.max_pool2d(x, attrs["kernel"], attrs["stride"], padding)

    def codes(self, node: IntegerNode, feeds: Sequence[IntegerNode], inputs: Sequence[Codes]) -> Codes:
        left, right, top, bottom = node.attrs["padding"]
        widths = ((0, 0), (0, 0), (top, bottom), (left, right))
        padded = np.pad(inputs[0], widths, constant_values=-128)
        pooled = F.max_pool2d(torch.from_numpy(padded).float(), node.attrs["kernel"], node.attrs["stride"])
        return pooled.to(torch.int8).numpy()

    def executorch(self, program: QdqModule, node: IntegerNode, reals: Sequence[Tensor]) -> Tensor:
        """Padding on one side only becomes padding on both sides and a slice: exact, and delegated."""
        (x,) = reals
        left, right, top, bottom = node.attrs["padding"]
        stride, kernel = node.attrs["stride"], node.attrs["kernel"]
        vertical, horizontal = max(top, bottom), max(left, right)
        skip = (vertical - top, horizontal - left)
        torch_takes = vertical <= kernel[0] // 2 and horizontal <= kernel[1] // 2
        if skip[0] % stride[0] or skip[1] % stride[1] or not torch_takes:
            # The extra rows would shift the windows: repeat the border instead, which no maximum notices.
            for dim, before, after in ((3, left, right), (2, top, bottom)):
                if before or after:
                    first, last = x.narrow(dim, 0, 1), x.narrow(dim, x.shape[dim] - 1, 1)
                    edges = [program.requantized(edge, node) for edge in (first, last)]
                    parts = [edges[0]] * before + [x] + [edges[1]] * after
                    x = program.requantized(torch.cat(parts, dim), node)
            vertical, horizontal, skip = 0, 0, (0, 0)
        x = F.max_pool2d(x, kernel, stride, (vertical, horizontal))
        for dim, offset, size in (
            (2, skip[0] // stride[0], node.shape[2]),
            (3, skip[1] // stride[1], node.shape[3]),
        ):
            if x.shape[dim] != size:
                x = program.requantized(x, node).narrow(dim, offset, size)
        return x

    def litert(self, writer: Writer, node: Any, feeds: Sequence[Any]) -> None:
        """Zeros are as good as minus infinity behind a ReLU; else the border is repeated: both delegated."""
        (feed,) = feeds
        kernel, (stride_h, stride_w) = node.attrs["kernel"], node.attrs["stride"]
        source, padding = writer.read(feed, "nhwc"), writer.s.Padding.VALID
        if written_padding(node, feed) == "PAD" and not feed.never_negative:
            source = self._edged(writer, node, source)
        else:
            source, padding = writer.padded(node, feed, source)
        options = writer.s.Pool2DOptionsT()
        options.padding, options.strideH, options.strideW = padding, stride_h, stride_w
        options.filterHeight, options.filterWidth = kernel
        writer.op("MAX_POOL_2D", 2, [source], writer.tensor(node, "nhwc"), options)

    def _edged(self, writer: Writer, node: Any, source: int) -> int:
        """A map with its border repeated on each side."""
        left, right, top, bottom = node.attrs["padding"]
        for axis, before, after in ((1, top, bottom), (2, left, right)):
            shape = [int(n) for n in writer.sub.tensors[source].shape]
            size, one = shape[axis], [*shape[:axis], 1, *shape[axis + 1 :]]
            edges = []
            for word, place, count in (("first", 0, before), ("last", size - 1, after)):
                edge = source
                if count and size > 1:
                    edge = writer.like(source, f"{node.name}/{word}{axis}", tuple(one))
                    ends = ([place if d == axis else 0 for d in range(4)], one)
                    given = [writer.constant("slice", np.asarray(each, np.int32)) for each in ends]
                    writer.op("SLICE", 2, [source, *given], edge, writer.s.SliceOptionsT())
                edges.append([edge] * count)
            parts = [*edges[0], source, *edges[1]]
            while len(parts) > 1:  # as many at a time as XNNPACK takes
                some, parts = parts[:MOST_INPUTS], parts[MOST_INPUTS:]
                length = sum(int(writer.sub.tensors[part].shape[axis]) for part in some)
                made = writer.like(
                    source,
                    f"{node.name}/padded{axis}_{len(parts)}",
                    (*shape[:axis], length, *shape[axis + 1 :]),
                )
                options = writer.s.ConcatenationOptionsT()
                options.axis = axis
                writer.op("CONCATENATION", 2, some, made, options)
                parts = [made, *parts]
            source = parts[0]
        return source


def _places(size: int, windows: Sequence[range], inside: Sequence[range] | None = None) -> list[list[int]]:
    """The places of each window; one outside is the nearest of the window's own that is inside.

    Args:
        size: of the axis.
        windows: all as long.
        inside: what of the axis each of them may see; unset, all.
    """
    found = []
    for index, window in enumerate(windows):
        seen = range(size) if inside is None else inside[index]
        own = [place for place in window if place in seen]
        found.append([min(max(place, own[0]), own[-1]) for place in window])
    return found
