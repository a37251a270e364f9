"""Linear resizes of a map: bilinear, bicubic, and the averages of windows of uneven size.

Each is a fixed matrix along the rows and one along the columns. Programs hold them as 1x1 convolutions that
have the axis in the place of the channels: the int8 resizes of the runtimes are not delegated, or differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from paredown.pipeline.graph.aten import arguments, shape_of, target
from paredown.pipeline.graph.operations.moving.axes import COLUMNS, ROWS, Matrix, multiplied
from paredown.pipeline.graph.operations.moving.permute import Permute
from paredown.pipeline.graph.operations.moving.resize import resized, upscales
from paredown.pipeline.graph.operations.operation import LARGEST_FACTOR, Codes, Operation
from paredown.pipeline.graph.operations.weighted.conv2d import Conv2d

if TYPE_CHECKING:
    from paredown.pipeline.graph.graph import Node
    from paredown.pipeline.graph.tracer import Tracer
    from paredown.pipeline.lower.integer import IntegerNode, Scales

#: Name of the ATen operation -> mode.
MODES = {"upsample_bilinear2d": "bilinear", "upsample_bicubic2d": "bicubic"}
#: Kinds of what it is written as.
PARTS: Mapping[str, Operation] = {"conv2d": Conv2d(), "permute": Permute()}


class Interpolate(Operation):
    """Attributes: mode, size (h, w).

    Of "bilinear" and "bicubic" also corners, and scales (h, w) where they are not those of the sizes. Of
    "average", which is a pool of uneven windows, also kernel, stride and padding (h, w), ceil and counted.
    """

    aten = (*MODES, "adaptive_avg_pool2d")

    def trace(self, tracer: Tracer, node: Any) -> None:
        if target(node) == "adaptive_avg_pool2d":
            interpolated(tracer, node, {"mode": "area", "size": shape_of(node)[2:]})
            return
        corners = bool(arguments(node, None, None, False)[2])
        attrs = {"mode": MODES[target(node)], "size": shape_of(node)[2:], "corners": corners}
        scales = upscales(node, 3)
        interpolated(tracer, node, attrs if scales == (None, None) else {**attrs, "scales": scales})

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        return _interpolated(node.attrs, inputs[0])

    def widen(self, node: Node, scales: Scales) -> None:
        scales.widen(node.name, scales[node.inputs[0]] / LARGEST_FACTOR)

    def codes(self, node: IntegerNode, feeds: Sequence[IntegerNode], inputs: Sequence[Codes]) -> Codes:
        """Those of its parts, one after the other."""
        (feed,), (codes,) = feeds, inputs
        for part in self.written(node, feeds):
            codes = PARTS[part.kind].codes(part, (feed,), (codes,))
            feed = part
        return codes

    def written(self, node: Any, feeds: Sequence[Any]) -> tuple[Any, ...]:
        rows, columns = matrices(node.attrs, feeds[0].shape)
        same = [np.array_equal(each, np.eye(each.shape[1])) for each in (rows, columns)]
        return tuple(multiplied(node, feeds[0], None if same[0] else rows, None if same[1] else columns))


def interpolated(tracer: Tracer, node: Any, attrs: dict[str, Any]) -> None:
    """Makes a node with these attributes; one that picks rows and columns where nothing is mixed."""
    shape = shape_of(node.args[0])
    if len(shape) != 4:
        raise tracer.unknown(node, "must read (batch, channels, height, width)")
    found = matrices(attrs, shape)
    if all(np.isin(each, (0, 1)).all() for each in found):
        resized(tracer, node, tracer.feed(node), *(each.argmax(1).tolist() for each in found))
        return
    tracer.add(node, "interpolate", (tracer.feed(node),), attrs=attrs)


def matrices(attrs: Any, shape: Sequence[int]) -> tuple[Matrix, Matrix]:
    """What an interpolation multiplies rows and columns with: (of the output, of the input) each."""
    found = []
    for dim in (ROWS, COLUMNS):
        size, one = [1, 1], [None, None]
        axis = dim - ROWS
        size[axis], one[axis] = attrs["size"][axis], attrs.get("scales", one)[axis]
        pixels = torch.eye(shape[dim], dtype=torch.float64)
        pixels = pixels[None, :, :, None] if dim == ROWS else pixels[None, :, None, :]
        alone = {"size": tuple(size), "scales": tuple(one)}
        for name, none in (("kernel", 1), ("stride", 1), ("padding", 0)):
            if name in attrs:
                alone[name] = tuple(n if i == axis else none for i, n in enumerate(attrs[name]))
        made = _interpolated({**attrs, **alone}, pixels)
        found.append(made.reshape(shape[dim], -1).T.numpy())
    return found[0], found[1]


def _interpolated(attrs: Any, x: Tensor) -> Tensor:
    mode, size = attrs["mode"], list(attrs["size"])
    if mode == "average":
        windows = (attrs[name] for name in ("kernel", "stride", "padding", "ceil", "counted"))
        return torch.nn.functional.avg_pool2d(x, *windows)
    if mode == "area":
        return torch.nn.functional.adaptive_avg_pool2d(x, tuple(size))
    kinds = torch.ops.aten
    kind = kinds.upsample_bilinear2d if mode == "bilinear" else kinds.upsample_bicubic2d
    scales = attrs.get("scales", (None, None))
    made: Tensor = kind.default(x, size, attrs["corners"], *scales)
    return made
