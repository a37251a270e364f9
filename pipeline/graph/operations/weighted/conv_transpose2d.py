"""Transposed two-dimensional convolution: each input pixel adds its kernel to the output, a stride apart.

XNNPACK has it in int8 on both runtimes, for one group. With more groups, programs hold its sub-pixel form: a
convolution that makes the pixels of each square of stride x stride as channels, and a shuffle of them.
TFLite's operator knows SAME and VALID only. Other padding becomes SAME by a kernel with a row of zeros at its
end, or a slice of the VALID result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from paredown.pipeline.graph.aten import arguments, sides
from paredown.pipeline.graph.operations.operation import QMAX, QMIN, Shape
from paredown.pipeline.graph.operations.weighted.conv2d import as_map
from paredown.pipeline.graph.operations.weighted.layer import WeightedOperation

if TYPE_CHECKING:
    from paredown.pipeline.graph.graph import Node
    from paredown.pipeline.graph.tracer import Tracer
    from paredown.pipeline.lower.executorch.program import QdqModule
    from paredown.pipeline.lower.integer import IntegerNode
    from paredown.pipeline.lower.litert.program import Writer

Pair = tuple[int, int]


class ConvTranspose2d(WeightedOperation):
    """Attributes: stride (h, w), padding (h, w), output_padding (h, w), groups; with batch norm also bn_eps.

    The weight is (out, in / groups, kernel height, kernel width), as a convolution's. A module's parameter is
    (in, out / groups, ...).
    """

    aten = ("conv_transpose2d", "conv_transpose1d")
    transposed = True

    def trace(self, tracer: Tracer, node: Any) -> None:
        _, w, b, stride, padding, more, groups, dilation = arguments(
            node, None, None, None, [1], [0], [0], 1, [1]
        )
        if set(dilation) != {1}:
            raise tracer.unknown(node, f"has dilation {tuple(dilation)}; write the zeros into the kernel")
        value, offset, groups = tracer.constant(node, w), tracer.constant(node, b), int(groups)
        assert value is not None
        value = self.own(value, groups).contiguous()
        attrs = {
            "stride": sides(node, stride, 1), "padding": sides(node, padding, 0),
            "output_padding": sides(node, more, 0), "groups": groups,
        }  # fmt: skip
        tracer.add(
            node, "conv_transpose2d", (tracer.windowed(node),), attrs=attrs, weight=value,
            bias=torch.zeros(len(value)) if offset is None else offset,
            parameters=tracer.names(weight=w, bias=b),
        )  # fmt: skip

    def own(self, weight: Tensor, groups: int) -> Tensor:
        return _turned(as_map(weight), groups)

    def theirs(self, weight: Tensor, groups: int, ndim: int) -> Tensor:
        turned = _turned(weight, groups)
        return turned.reshape(*turned.shape[:2], *turned.shape[6 - ndim :]) if ndim < 4 else turned

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        assert node.weight is not None
        return self.computed(node, self.theirs(node.weight, node.attrs["groups"], 4), *inputs)

    def computed(self, node: Node, weight: Tensor, *inputs: Tensor) -> Tensor:
        return _spread(node, inputs[0], weight, node.bias)

    def macs(self, node: Node | IntegerNode) -> int:
        assert node.weight is not None
        return prod(node.weight.shape) * prod(_read(node))

    def unfolded(self, node: Node, x: Tensor) -> tuple[Tensor, tuple[int, int], Tensor, Tensor]:
        """A plain convolution over the input with zeros between its pixels, the kernel turned round."""
        assert node.weight is not None
        (down, right), (high, wide) = node.attrs["stride"], node.weight.shape[2:]
        (top, left), (n, c, h, w) = node.attrs["padding"], x.shape
        _, _, rows, columns = node.shape
        apart = x.new_zeros((n, c, rows + high - 1, columns + wide - 1))
        # A kernel beyond the border may not be seen; then neither is the pixel.
        ys, xs = torch.arange(h) * down + high - 1 - top, torch.arange(w) * right + wide - 1 - left
        here = (ys >= 0) & (ys < apart.shape[2]), (xs >= 0) & (xs < apart.shape[3])
        apart[:, :, ys[here[0]][:, None], xs[here[1]]] = x[:, :, here[0]][:, :, :, here[1]]
        dy, dx = torch.meshgrid(torch.arange(high).flip(0), torch.arange(wide).flip(0), indexing="ij")
        return apart, (1, 1), dy.flatten(), dx.flatten()

    def thinned(self, node: Node, shape: Shape, groups: int) -> Mapping[str, Any]:
        return {**node.attrs, "groups": groups}

    def multiple(self, node: Node) -> str:
        return "conv"

    def accumulated(self, node: IntegerNode, values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return _spread(node, values, self.theirs(weight, node.attrs["groups"], 4), bias)

    # -- programs ------------------------------------------------------------------------------------------

    def written(self, node: Any, feeds: Sequence[Any]) -> tuple[Any, ...]:
        """With groups the sub-pixel form, where that makes the output's very size; else one group."""
        if node.attrs["groups"] == 1:
            return (node,)
        (feed,), whole = feeds, hasattr(node, "out")
        axes = [_Axis.of(node, feed, axis) for axis in (0, 1)]
        weight = torch.as_tensor(node.weight)
        if any(axis is None for axis in axes):
            weight = _dense(weight, node.attrs["groups"])
            attrs = {**node.attrs, "groups": 1}
            return (replace(node, weight=weight.numpy() if whole else weight, attrs=attrs),)
        vertical, horizontal = (axis for axis in axes if axis is not None)
        phases = [
            _taken(weight, rows, columns) for rows in vertical.taps for columns in horizontal.taps
        ]  # fmt: skip
        count = len(phases)
        weight = torch.stack(phases, 1).flatten(0, 1)  # (out x phases, in / groups, ...)
        pads = (*horizontal.padding, *vertical.padding)
        attrs = {"stride": (1, 1), "padding": pads, "groups": node.attrs["groups"]}
        _, c, h, w = node.shape
        (down, right), rows, columns = node.attrs["stride"], vertical.count, horizontal.count
        first = replace(
            node, kind="conv2d", name=f"{node.name}.phases", shape=(1, c * count, rows, columns), attrs=attrs
        )
        if whole:
            first = replace(
                first, weight=weight.numpy(), bias=np.repeat(node.bias, count),
                weight_scale=np.repeat(node.weight_scale, count),
            )  # fmt: skip
        else:
            first = replace(first, weight=weight, bias=node.bias.repeat_interleave(count))
        plain: dict[str, Any] = {"weight": None, "bias": None}
        if whole:
            plain |= {"weight_scale": None, "low": QMIN, "high": QMAX}

        def moving(kind: str, name: str, source: str, shape: Shape, attrs: Mapping[str, Any]) -> Any:
            return replace(node, kind=kind, name=name, inputs=(source,), shape=shape, attrs=attrs, **plain)

        shape, dims = (1, c, down, right, rows, columns), (0, 1, 4, 2, 5, 3)
        split, moved = f"{node.name}.split", f"{node.name}.move"
        return (
            first,
            moving("reshape", split, first.name, shape, {"shape": shape}),
            moving("permute", moved, split, tuple(shape[d] for d in dims), {"dims": dims}),
            moving("reshape", node.name, moved, node.shape, {"shape": node.shape}),
        )

    def executorch(self, program: QdqModule, node: IntegerNode, reals: Sequence[Tensor]) -> Tensor:
        return program.clamped(_spread(node, reals[0], program.weight(node), program.bias(node)), node)

    def litert(self, writer: Writer, node: Any, feeds: Sequence[Any]) -> None:
        (feed,), s = feeds, writer.s
        source = writer.read(feed, "nhwc")
        (down, right), (_, c, h, w) = node.attrs["stride"], node.shape
        weight, form = np.asarray(node.weight), _form(node, feed)
        weight = np.pad(weight, ((0, 0), (0, 0), (0, form.zeros[0]), (0, form.zeros[1])))
        options = s.TransposeConvOptionsT()
        options.strideH, options.strideW = down, right
        options.padding = s.Padding.SAME if form.same else s.Padding.VALID
        options.fusedActivationFunction = writer.activation(node)
        tensors = writer.weights(node, feed, weight.transpose(0, 2, 3, 1), 0)
        made = writer.tensor(node, "nhwc")
        shape = (1, h, w, c) if form.whole is None else (1, *form.whole, c)
        target = made if form.whole is None else writer.like(made, f"{node.name}/whole", shape)
        size = writer.constant("shape", np.asarray(shape, np.int32))
        writer.op("TRANSPOSE_CONV", 4, [size, tensors[0], source, tensors[1]], target, options)
        if form.whole is not None:
            begin = writer.constant("begin", np.asarray([0, *node.attrs["padding"], 0], np.int32))
            extent = writer.constant("shape", np.asarray((1, h, w, c), np.int32))
            writer.op("SLICE", 2, [target, begin, extent], made, s.SliceOptionsT())


def _spread(node: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The torch operation, with a weight as a module has it."""
    attrs = node.attrs
    return F.conv_transpose2d(
        x, weight, bias, attrs["stride"], attrs["padding"], attrs["output_padding"], attrs["groups"]
    )


def _turned(weight: Tensor, groups: int) -> Tensor:
    """Output channels first where input channels were, and the reverse; each within its group."""
    if groups == 1:
        return weight.transpose(0, 1)
    whole, per, *kernel = weight.shape
    split = weight.reshape(groups, whole // groups, per, *kernel)
    return split.transpose(1, 2).reshape(groups * per, whole // groups, *kernel)


def _read(node: Any) -> Pair:
    """Height and width of what a node reads."""
    (high, wide), attrs = node.weight.shape[2:], node.attrs
    sizes = [
        (made - k - more + 2 * pad) // step + 1
        for made, k, step, pad, more in zip(
            node.shape[2:], (high, wide), attrs["stride"], attrs["padding"], attrs["output_padding"],
            strict=True,
        )
    ]  # fmt: skip
    return (sizes[0], sizes[1])


def _dense(weight: Tensor, groups: int) -> Tensor:
    """The weight of one group that computes what these groups do: zeros elsewhere."""
    out, per, *kernel = weight.shape
    each = out // groups
    dense = weight.new_zeros((out, per * groups, *kernel))
    for group in range(groups):
        rows = slice(group * each, (group + 1) * each)
        dense[rows, group * per : (group + 1) * per] = weight[rows]
    return dense


def _taken(weight: Tensor, rows: Sequence[int | None], columns: Sequence[int | None]) -> Tensor:
    """The taps of a kernel in another order; None is a zero."""
    padded = F.pad(weight, (0, 1, 0, 1))
    high, wide = weight.shape[2:]
    ys = torch.tensor([high if row is None else row for row in rows])
    xs = torch.tensor([wide if column is None else column for column in columns])
    return padded[:, :, ys][:, :, :, xs]


class _Axis:
    """One axis of the sub-pixel form: output pixel `u * stride + phase` reads the input from `u` on.

    Attributes:
        taps: per phase, which of the kernel's taps is at each place of the window; None is a zero.
        padding: of the input, before and after.
        count: of squares.
    """

    def __init__(self, taps: list[list[int | None]], padding: Pair, count: int) -> None:
        self.taps, self.padding, self.count = taps, padding, count

    @staticmethod
    def of(node: Any, feed: Any, axis: int) -> _Axis | None:
        """The form of an axis; None where the output is no whole number of squares."""
        kernel, made, size = node.weight.shape[2 + axis], node.shape[2 + axis], feed.shape[2 + axis]
        step, pad = node.attrs["stride"][axis], node.attrs["padding"][axis]
        if made % step:
            return None
        # Output o = u * step + phase; its tap t is of input i, where i * step + t = o + pad.
        places: list[dict[int, int]] = []
        for phase in range(step):
            taps = [t for t in range(kernel) if (phase + pad - t) % step == 0]
            places.append({(phase + pad - t) // step: t for t in taps})
        first = min((place for found in places for place in found), default=0)
        last = max((place for found in places for place in found), default=0)
        before, count = -first, made // step
        after = count - 1 + last + 1 - size
        if before < 0 or after < 0:
            return None
        taken = [[found.get(place) for place in range(first, last + 1)] for found in places]
        return _Axis(taken, (before, after), count)


class _Form:
    """How TFLite says the padding.

    Attributes:
        same: SAME, else VALID.
        zeros: rows and columns of zeros behind the kernel.
        whole: height and width of the VALID result where it has to be sliced.
    """

    def __init__(self, same: bool, zeros: Pair, whole: Pair | None) -> None:
        self.same, self.zeros, self.whole = same, zeros, whole


def _form(node: Any, feed: Any) -> _Form:
    attrs, kernel, size, made = node.attrs, node.weight.shape[2:], feed.shape[2:], node.shape[2:]
    step, pad, more = attrs["stride"], attrs["padding"], attrs["output_padding"]
    if not any(pad) and not any(more):
        return _Form(False, (0, 0), None)
    # With the zeros behind it the kernel is cut alike on both sides, as SAME does it. XNNPACK has that for
    # kernels that leave no gap.
    covers = all(kernel[axis] + more[axis] >= step[axis] for axis in (0, 1))
    if covers and all(-(-made[axis] // step[axis]) == size[axis] for axis in (0, 1)):
        return _Form(True, (more[0], more[1]), None)
    full = [(size[axis] - 1) * step[axis] + kernel[axis] + more[axis] for axis in (0, 1)]
    return _Form(False, (more[0], more[1]), (full[0], full[1]) if any(pad) else None)
