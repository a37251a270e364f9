"""Shuffles of pixels and channels: a reshape, a permute and a reshape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paredown.pipeline.graph.aten import arguments, module_path, shape_of
from paredown.pipeline.graph.operations.moving.slice import attrs_of
from paredown.pipeline.graph.operations.operation import Traced

if TYPE_CHECKING:
    from paredown.pipeline.graph.tracer import Tracer


class Shuffle(Traced):
    """No kind of its own."""

    def split(self, shape: tuple[int, ...], number: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shape to which it is reshaped, and how that is permuted.

        Args:
            shape: of the input.
            number: the argument: the factor, or the groups.
        """
        raise NotImplementedError

    def trace(self, tracer: Tracer, node: Any) -> None:
        shape, dims = self.split(shape_of(node.args[0]), int(node.args[1]))
        name, made = module_path(node) or node.name, shape_of(node)
        moved = tuple(shape[d] for d in dims)
        last = tracer.add(
            node, "reshape", (tracer.feed(node),), shape=shape, name=f"{name}.split", attrs={"shape": shape}
        )
        last = tracer.add(node, "permute", (last,), shape=moved, name=f"{name}.move", attrs={"dims": dims})
        tracer.add(node, "reshape", (last,), name=name, attrs={"shape": made})


class PixelShuffle(Shuffle):
    """Channels to pixels."""

    aten = ("pixel_shuffle",)

    def split(self, shape: tuple[int, ...], number: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        _, c, h, w = shape
        return (1, c // number**2, number, number, h, w), (0, 1, 4, 2, 5, 3)


class PixelUnshuffle(Shuffle):
    """Pixels to channels."""

    aten = ("pixel_unshuffle",)

    def split(self, shape: tuple[int, ...], number: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        _, c, h, w = shape
        return (1, c, h // number, number, w // number, number), (0, 1, 3, 5, 2, 4)


class Roll(Traced):
    """What goes out at one end of an axis comes in at the other: two slices and a concatenation."""

    aten = ("roll",)
    pointwise = True

    def trace(self, tracer: Tracer, node: Any) -> None:
        _, shifts, dims = arguments(node, None, [], [])
        if len(dims) != len(shifts):
            raise tracer.unknown(node, "without dims rolls the batch too; give dims")
        name, feed, rank = module_path(node) or node.name, tracer.feed(node), len(shape_of(node))
        for index, (shift, dim) in enumerate(zip(shifts, dims, strict=True)):
            axis, shape = tracer.axis(node, dim % rank), tracer.nodes[feed].shape
            if axis == 0 or shape[axis] != shape_of(node)[dim]:
                raise tracer.unknown(node, "rolls the batch, or an axis that is one with another")
            if at := -shift % shape[axis]:
                parts = []
                for word, taken in (("first", range(at, shape[axis])), ("last", range(at))):
                    size = (*shape[:axis], len(taken), *shape[axis + 1 :])
                    part = f"{name}.{word}{index}"
                    parts.append(tracer.add(node, "slice", (feed,), shape=size, name=part,
                                            attrs=attrs_of({axis: taken})))  # fmt: skip
                feed = tracer.add(node, "concat", tuple(parts), shape=shape, name=name, attrs={"dim": axis})
        tracer.alias[node.name] = feed


class ChannelShuffle(Shuffle):
    """Channels among groups."""

    aten = ("channel_shuffle",)

    def split(self, shape: tuple[int, ...], number: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        _, c, *rest = shape
        return (1, number, c // number, *rest), (0, 2, 1, *range(3, 3 + len(rest)))
