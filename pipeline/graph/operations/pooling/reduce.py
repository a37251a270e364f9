"""Means, sums and largest values over some axes: pools whose window is all of them, or a convolution.

The mean that leaves one axis beside the batch is a kind of its own, `mean`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from paredown.pipeline.graph.aten import arguments, shape_of, target
from paredown.pipeline.graph.operations.operation import Traced

if TYPE_CHECKING:
    from paredown.pipeline.graph.tracer import Tracer

SPREAD = ("std", "var", "std_mean", "var_mean")


def reduced(node: Any) -> tuple[tuple[int, ...], bool]:
    """The axes over which an ATen node reduces, rising, and whether they stay, of size one."""
    rank = len(shape_of(node.args[0]))
    _, dims, keep = arguments(node, None, None, False)
    dims = range(rank) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    return tuple(sorted({int(dim) % rank for dim in dims})), bool(keep)


def kept(node: Any) -> tuple[int, ...]:
    """The axes that are left, but for the batch."""
    gone = reduced(node)[0]
    return tuple(axis for axis in range(1, len(shape_of(node.args[0]))) if axis not in gone)


class Reduce(Traced):
    """No kind of its own."""

    aten = ("mean", "sum", "amax", *SPREAD)

    def trace(self, tracer: Tracer, node: Any) -> None:
        what = target(node)
        if what in SPREAD:
            raise tracer.unknown(
                node,
                "is no operation that int8 kernels have; normalize by running statistics (batch norm)",
            )
        gone, keep = reduced(node)
        rank, left = len(shape_of(node.args[0])), kept(node)
        if gone[:1] == (0,) or rank not in {3, 4} or not left or not gone:
            raise tracer.unknown(node, f"over axes {gone} of {rank} is not known; keep the batch and another")
        if len(left) == 1 or 1 in left:
            name = self._pooled(tracer, node, what, gone, left[0])
        elif what == "amax":
            name = self._pooled(tracer, node, what, gone, left[0])
        else:
            name = self._summed(tracer, node, what)
        tracer.drop(node, name, keep)

    def _pooled(self, tracer: Tracer, node: Any, what: str, gone: tuple[int, ...], channels: int) -> str:
        """A pool over one or both axes of a map."""
        feed = tracer.map(node, channels=channels)
        shape, axes = tracer.nodes[feed].shape, {tracer.axis(node, dim) for dim in gone}
        kernel = tuple(shape[axis] if axis in axes else 1 for axis in (2, 3))
        made = (*shape[:2], *(1 if axis in axes else shape[axis] for axis in (2, 3)))
        attrs: dict[str, Any] = {"kernel": kernel, "stride": kernel, "padding": (0, 0, 0, 0)}
        if what == "amax":
            return tracer.add(node, "max_pool2d", (feed,), shape=made, attrs=attrs)
        attrs["divisor"] = 1 if what == "sum" else kernel[0] * kernel[1]
        return tracer.add(node, "avg_pool2d", (feed,), shape=made, attrs=attrs)

    def _summed(self, tracer: Tracer, node: Any, what: str) -> str:
        """Over the channels: a convolution of one output, all of whose weights are alike."""
        feed = tracer.map(node)
        _, channels, *pixels = tracer.nodes[feed].shape
        weight = torch.full((1, channels, 1, 1), 1.0 if what == "sum" else 1 / channels)
        attrs = {"stride": (1, 1), "padding": (0, 0, 0, 0), "groups": 1}
        return tracer.add(
            node, "conv2d", (feed,), shape=(1, 1, *pixels), attrs=attrs, weight=weight, bias=torch.zeros(1)
        )
