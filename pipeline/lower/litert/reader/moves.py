"""TFLite's int8 operations that only move codes, as nodes of the integer graph: exact."""

from __future__ import annotations

import numpy as np

from paredown.pipeline.graph.operations.moving.slice import attrs_of
from paredown.pipeline.lower.integer import IntegerNode
from paredown.pipeline.lower.litert.reader.reading import TO_NCHW, At, ours
from paredown.targets.errors import InputError


def _axis(axis: int, rank: int) -> int:
    """An axis of the file, as it is here."""
    return TO_NCHW.index(axis % rank) if rank == 4 else axis % rank


def reshape(at: At) -> IntegerNode:
    """RESHAPE, SQUEEZE, EXPAND_DIMS: the shape is in the file."""
    feed = at.feed()
    at.same(feed)
    if not at.shape or at.shape[0] != 1:
        raise InputError(f"makes {at.shape}, without a batch of 1")
    return at.formed(feed, at.shape)


def transpose(at: At) -> IntegerNode:
    """TRANSPOSE; the batch stays."""
    feed, places = at.feed(), [int(axis) for axis in at.value(1, "order").reshape(-1).tolist()]
    at.same(feed)
    if places[:1] != [0] or sorted(places) != list(range(len(feed.shape))):
        raise InputError(f"turns {places}: the batch does not stay first")
    rank = len(places)
    order = TO_NCHW if rank == 4 else tuple(range(rank))
    dims = tuple(_axis(places[axis], rank) for axis in order)
    return at.add("permute", [feed], [feed.shape[dim] for dim in dims], attrs={"dims": dims})


def pad(at: At) -> IntegerNode:
    """PAD, around a map."""
    feed, around = at.feed(), at.value(1, "padding").reshape(-1, 2).tolist()
    at.same(feed)
    if len(feed.shape) != 4 or around[0] != [0, 0] or around[3] != [0, 0]:
        raise InputError(f"pads {around}; known is height and width")
    if min(map(min, around)) < 0:
        raise InputError(f"pads {around}")
    attrs = {"padding": (*around[2], *around[1]), "value": 0.0}
    size = [side + sum(around[axis]) for axis, side in enumerate(feed.shape[2:], 1)]
    return at.add("pad", [feed], (*feed.shape[:2], *size), attrs=attrs)


def concatenate(at: At) -> IntegerNode:
    """CONCATENATION, of inputs that may have scales of their own."""
    feeds = [at.feed(index) for index in range(len(at.op.inputs))]
    if at.clamp() != (-128, 127):
        raise InputError("it has an activation")
    axis = _axis(int(at.options.axis), len(at.shape))
    shapes = [list(feed.shape) for feed in feeds]
    lengths = [shape.pop(axis) for shape in shapes]
    if any(shape != shapes[0] for shape in shapes):
        raise InputError(f"joins {', '.join(str(feed.shape) for feed in feeds)}")
    shapes[0].insert(axis, sum(lengths))
    return at.add("concat", feeds, shapes[0], attrs={"dim": axis})


def _taken(at: At, feed: IntegerNode, ranges: dict[int, range], shape: tuple[int, ...]) -> IntegerNode:
    """A part of a tensor; `ranges` by axes of the file."""
    rank = len(feed.shape)
    found = {_axis(axis, rank): part for axis, part in ranges.items()}
    kept = {axis: part for axis, part in found.items() if part != range(feed.shape[axis])}
    if 0 in kept or not all(part and 0 <= part[0] and part[-1] < feed.shape[a] for a, part in kept.items()):
        raise InputError(f"takes {ranges} of {feed.shape}")
    return at.add("slice", [feed], ours(shape), attrs=attrs_of(kept)) if kept else feed


def part(at: At) -> IntegerNode:
    """SLICE and STRIDED_SLICE, along axes that stay."""
    feed, shape, o = at.feed(), at.shape, at.options
    at.same(feed)
    starts = [int(n) for n in at.value(1, "begin").reshape(-1).tolist()]
    steps = [1] * len(starts)
    sizes = [feed.shape[_axis(axis, len(feed.shape))] for axis in range(len(feed.shape))]
    if at.op.kind == "STRIDED_SLICE":
        steps = [int(n) for n in at.value(3, "strides").reshape(-1).tolist()]
        if min(steps) < 1 or o.shrinkAxisMask or o.newAxisMask or o.ellipsisMask or o.offset:
            raise InputError("steps back, or axes come or go")
        starts = [0 if o.beginMask >> axis & 1 else start for axis, start in enumerate(starts)]
    if len(shape) != len(sizes) or len(starts) != len(sizes):
        raise InputError(f"makes {shape} of {tuple(sizes)}")
    ranges = {}
    for axis, (start, step) in enumerate(zip(starts, steps, strict=True)):
        first = start + sizes[axis] if start < 0 else start
        ranges[axis] = range(first, first + (shape[axis] - 1) * step + 1, step)
        if step == 1 and first == 0 and shape[axis] == sizes[axis]:
            del ranges[axis]
    return _taken(at, feed, ranges, shape)


def nearest(at: At) -> IntegerNode:
    """RESIZE_NEAREST_NEIGHBOR: TFLite's `GetNearestNeighbor`, in float32 as there."""
    feed, o = at.feed(), at.options
    at.same(feed)
    wanted = []
    for before, after in zip(feed.shape[2:], at.shape[1:3], strict=True):
        corners = bool(o.alignCorners) and after > 1
        step = np.float32((before - 1) / (after - 1)) if corners else np.float32(before / after)
        places = (np.arange(after).astype(np.float32) + np.float32(0.5 * bool(o.halfPixelCenters))) * step
        whole = np.floor(places + 0.5) if corners else np.floor(places)
        wanted.append(tuple(int(n) for n in np.clip(whole, 0, before - 1)))
    return at.add("resize", [feed], ours(at.shape), attrs={"rows": wanted[0], "columns": wanted[1]})
