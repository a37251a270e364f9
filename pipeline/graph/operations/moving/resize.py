"""Rows and columns of a map, each any number of times, in any order.

It is what a nearest resize makes, and a border that is reflected or repeated. Programs hold copies (a
concatenation of a tensor with itself, and reshapes) where every row is repeated as often, slices and
concatenations where there are few runs, and else a 1x1 convolution along the axis whose weights are one or
zero. All of them move the very codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from paredown.pipeline.graph.aten import arguments, shape_of, target
from paredown.pipeline.graph.operations.moving.axes import COLUMNS, ROWS, multiplied, pieces, runs
from paredown.pipeline.graph.operations.moving.slice import attrs_of, sliced
from paredown.pipeline.graph.operations.operation import Codes, Operation
from paredown.pipeline.graph.operations.placement import MOST_INPUTS
from paredown.targets.errors import InputError

if TYPE_CHECKING:
    from paredown.pipeline.graph.graph import Node
    from paredown.pipeline.graph.tracer import Tracer
    from paredown.pipeline.lower.executorch.program import QdqModule
    from paredown.pipeline.lower.integer import IntegerNode
    from paredown.pipeline.lower.litert.program import Writer

T = TypeVar("T")
LONG_RUN = 64  # places that follow each other, from which they are a slice beside a matrix
MOST_WEIGHTS = 2**22  # of the matrix along a whole axis
MOST_PIECES = 16  # of an axis that are sliced and put together again


class Resize(Operation):
    """Attributes: rows, columns: for each of the output's, which of the input's it is."""

    aten = ("upsample_nearest2d", "_upsample_nearest_exact2d")
    channelwise = True
    same_scale = True
    keeps_sign = True

    def trace(self, tracer: Tracer, node: Any) -> None:
        before, made = shape_of(node.args[0]), shape_of(node)
        exact = "exact" in target(node)
        kind = torch.ops.aten._upsample_nearest_exact2d if exact else torch.ops.aten.upsample_nearest2d
        numbers = torch.arange(float(before[2] * before[3])).reshape(1, 1, *before[2:])
        found = kind.default(numbers, list(made[2:]), *upscales(node, 2))[0, 0].long()
        rows, columns = found[:, 0] // before[3], found[0] % before[3]
        resized(tracer, node, tracer.feed(node), rows.tolist(), columns.tolist())

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        if x.is_meta:  # recorded for a program, and XNNPACK takes no places
            return _copied(node, x)
        rows, columns = (torch.tensor(node.attrs[word], device=x.device) for word in ("rows", "columns"))
        return x.index_select(2, rows).index_select(3, columns)

    def codes(self, node: IntegerNode, feeds: Sequence[IntegerNode], inputs: Sequence[Codes]) -> Codes:
        columns = list(node.attrs["columns"])
        return np.ascontiguousarray(inputs[0][:, :, list(node.attrs["rows"])][..., columns])

    def written(self, node: Any, feeds: Sequence[Any]) -> tuple[Any, ...]:
        """Itself where it is copies alone; else what brings each axis where it belongs."""
        (feed,) = feeds
        if None not in factors(node, feed.shape):
            return (node,)
        made: list[Any] = []
        last = feed
        for dim, word in ((ROWS, "rows"), (COLUMNS, "columns")):
            wanted, size = node.attrs[word], feed.shape[dim]
            if wanted == tuple(range(size)):
                continue
            shape = (*last.shape[:dim], len(wanted), *last.shape[dim + 1 :])
            one = replace(node, name=f"{node.name}.{word}", inputs=(last.name,), shape=shape)
            if _times(wanted, size) is not None:
                whole = {"rows": tuple(range(shape[ROWS])), "columns": tuple(range(shape[COLUMNS]))}
                made.append(replace(one, attrs={**whole, word: wanted}))
            elif len(runs(wanted)) <= MOST_PIECES:
                made += pieces(one, last.name, last.shape, dim, wanted, "part")
            elif size * len(wanted) <= MOST_WEIGHTS:
                made += _chosen(one, last, dim, wanted)
            else:
                made += _mixed(one, last, dim, wanted)
            last = made[-1]
        return (*made[:-1], replace(last, name=node.name))

    def executorch(self, program: QdqModule, node: IntegerNode, reals: Sequence[Tensor]) -> Tensor:
        return _copied(
            node, reals[0], lambda x: program.codes(x, node), lambda codes: program.reals(codes, node)
        )

    def litert(self, writer: Writer, node: Any, feeds: Sequence[Any]) -> None:
        (feed,) = feeds
        _, channels, height, width = feed.shape
        down, right = factors(node, feed.shape)
        assert down is not None and right is not None
        source = writer.read(feed, "nhwc")

        def joined(parts: Sequence[int]) -> int:
            before = [tuple(writer.sub.tensors[part].shape) for part in parts]
            shape = (*before[0][:2], sum(each[2] for each in before), before[0][3])
            made = writer.like(source, f"{node.name}/{shape[3]}x{shape[2]}", shape)
            options = writer.s.ConcatenationOptionsT()
            options.axis = 2
            writer.op("CONCATENATION", 2, list(parts), made, options)
            return made

        for times, count, length in _steps(down, right, channels, height, width):
            shape = (1, count, 1, length)
            row = writer.like(source, f"{node.name}/{length}", shape)
            writer.reshape(source, row, shape)
            source = repeated(row, times, joined)
        writer.reshape(source, writer.tensor(node, "nhwc"), (1, down * height, right * width, channels))

    def card_kind(self, node: IntegerNode, feed: IntegerNode) -> str:
        """It is concatenations, and reshapes between."""
        return "concat"


def _same(x: Tensor) -> Tensor:
    return x


def _copied(
    node: Any, x: Tensor, codes: Callable[[Tensor], Tensor] = _same, reals: Callable[[Tensor], Tensor] = _same
) -> Tensor:
    """Copies, channels last: there, those of a pixel lie side by side.

    Args:
        node: all its rows are repeated as often, and all its columns.
        x: (1, C, H, W).
        codes: what makes codes of real values.
        reals: what makes real values of codes.
    """
    _, channels, height, width = x.shape
    down, right = factors(node, tuple(x.shape))
    assert down is not None and right is not None
    made = codes(x.permute(0, 2, 3, 1))
    for times, count, length in _steps(down, right, channels, height, width):
        row = codes(reals(made).reshape(1, count, 1, length))
        made = repeated(row, times, lambda parts: codes(torch.cat([reals(part) for part in parts], 2)))
    made = codes(reals(made).reshape(1, down * height, right * width, channels))
    return reals(made).permute(0, 3, 1, 2)


def _chosen(node: Any, feed: Any, dim: int, wanted: Sequence[int]) -> list[Any]:
    """Rows or columns in any order: a matrix of ones and zeros."""
    chosen = np.eye(feed.shape[dim])[list(wanted)]
    return multiplied(node, feed, *((chosen, None) if dim == ROWS else (None, chosen)))


def _mixed(node: Any, feed: Any, dim: int, wanted: Sequence[int]) -> list[Any]:
    """Long runs as slices, what is between them by a matrix over as much as it takes: a reflected border.

    Raises:
        InputError: even so a matrix would be too large for a program.
    """
    parts: list[list[int]] = []
    long = False
    for run in runs(wanted):
        if len(run) >= LONG_RUN or long or not parts:
            parts.append([])
        parts[-1] += run
        long = len(run) >= LONG_RUN
    made, names = [], []
    for index, places in enumerate(parts):
        low, high = min(places), max(places) + 1
        if (high - low) * len(places) > MOST_WEIGHTS and len(runs(places)) > 1 or len(parts) > MOST_INPUTS:
            raise InputError(
                f"takes {len(wanted):,} of {feed.shape[dim]:,} places in an order that no program holds",
                where=getattr(node, "source", "") or node.name,
                hint="pad with zeros, or do it before the network",
            )
        size = (*feed.shape[:dim], high - low, *feed.shape[dim + 1 :])
        part = replace(
            node, name=f"{node.name}.part{index}", kind="slice", inputs=(feed.name,), shape=size,
            attrs=attrs_of({dim: range(low, high)}),
        )  # fmt: skip
        made.append(part)
        if len(runs(places)) > 1:
            shape = (*feed.shape[:dim], len(places), *feed.shape[dim + 1 :])
            turned = replace(node, name=f"{node.name}.turned{index}", inputs=(part.name,), shape=shape)
            made += _chosen(turned, part, dim, [place - low for place in places])
        names.append(made[-1].name)
    return [*made, replace(node, kind="concat", inputs=tuple(names), attrs={"dim": dim})]


def upscales(node: Any, place: int) -> tuple[float | None, float | None]:
    """(vertical, horizontal) factors that an ATen resize is told, where they are not those of the sizes.

    Args:
        node: of the exported program.
        place: of the factors among its arguments.
    """
    found = arguments(node, *[None] * (place + 2))[place:]
    if isinstance(found[0], (list, tuple)):
        found = list(found[0])
    sizes = zip(shape_of(node.args[0])[2:], shape_of(node)[2:], found, strict=True)
    down, right = (None if told is None or told * a == b else float(told) for a, b, told in sizes)
    return down, right


def resized(
    tracer: Tracer, node: Any, feed: str, rows: Sequence[int], columns: Sequence[int], **fields: Any
) -> str:
    """Makes a node that picks rows and columns of a map; a slice, where it is one.

    Args:
        tracer: makes nodes.
        node: of the exported program.
        feed: what is picked from.
        rows: for each of the output's, which of the input's it is.
        columns: the same of the columns.
        **fields: of `Tracer.add`.

    Returns:
        Its name, or `feed` where nothing changes.
    """
    shape = tracer.nodes[feed].shape
    down, right = (_even(places) for places in (rows, columns))
    if down is not None and right is not None:
        return sliced(tracer, node, feed, {ROWS: down, COLUMNS: right}, **fields)
    made = (*shape[:2], len(rows), len(columns))
    attrs = {"rows": tuple(rows), "columns": tuple(columns)}
    return tracer.add(node, "resize", (feed,), shape=made, attrs=attrs, **fields)


def factors(node: Any, shape: Sequence[int]) -> tuple[int | None, int | None]:
    """How often each row and each column of this shape is repeated; None where it is not all as often."""
    return _times(node.attrs["rows"], shape[ROWS]), _times(node.attrs["columns"], shape[COLUMNS])


def repeated(part: T, times: int, joined: Callable[[Sequence[T]], T]) -> T:
    """Something beside itself so many times, where no more than `MOST_INPUTS` are joined at once."""
    if times == 1:
        return part
    count = next((n for n in range(min(times, MOST_INPUTS), 1, -1) if times % n == 0), None)
    if count is None:
        return joined([repeated(part, times - 1, joined), part])
    return repeated(joined([part] * count), times // count, joined)


def _steps(down: int, right: int, channels: int, height: int, width: int) -> list[tuple[int, int, int]]:
    """Copies along an axis: how many, of how many things, each of how many values."""
    both = [(right, height * width, channels), (down, height, right * width * channels)]
    return [step for step in both if step[0] > 1]


def _times(wanted: Sequence[int], size: int) -> int | None:
    times, rest = divmod(len(wanted), size)
    return times if rest == 0 and tuple(wanted) == tuple(i // times for i in range(len(wanted))) else None


def _even(places: Sequence[int]) -> range | None:
    """Rising places with one step between them as a range."""
    step = places[1] - places[0] if len(places) > 1 else 1
    found = range(places[0], places[-1] + 1, step) if step > 0 else range(0)
    return found if list(found) == list(places) else None
