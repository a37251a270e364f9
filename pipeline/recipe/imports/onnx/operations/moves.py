"""Operations of ONNX that move values: shapes, orders, parts, joins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.pipeline.recipe.imports.onnx.builder import MOST, Builder, Live, Node, Value
from paredown.pipeline.recipe.imports.onnx.chunks import Part

PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
#: Parts of which the ends of a slice are taken, so that they follow when channels are pruned.
SHARES = (2, 3, 4, 6, 8)


class Shaped(nn.Module):
    """A reshape whose sizes follow the input's, where they are its own or products of them.

    Args:
        before: shape of the input when the network was imported.
        after: of the output.
    """

    def __init__(self, before: Sequence[int], after: Sequence[int]) -> None:
        super().__init__()
        self.sizes = _followed(before, after)

    def forward(self, x: Tensor) -> Tensor:
        """The input with another shape."""
        sizes = []
        for axes, parts, share in self.sizes:
            whole = prod(x.shape[axis] for axis in axes)
            sizes.append(whole // parts if share else parts)
        return x.reshape(sizes)

    def extra_repr(self) -> str:
        """The sizes."""
        return str(self.sizes)


def _followed(before: Sequence[int], after: Sequence[int]) -> list[tuple[tuple[int, ...], int, bool]]:
    """For each size of the output: the input's axes, and a number that divides their product, or is it."""
    found: list[tuple[tuple[int, ...], int, bool]] = []
    left = right = 0
    while right < len(after):
        axes, sizes = [], []
        a = b = 1
        if left < len(before):
            axes.append(left)
            a, left = before[left], left + 1
        sizes.append(after[right])
        b, right = after[right], right + 1
        while a != b:
            if a < b and left < len(before):
                axes.append(left)
                a, left = a * before[left], left + 1
            elif right < len(after):
                sizes.append(after[right])
                b, right = b * after[right], right + 1
            else:
                return [((), size, False) for size in after]
        while left < len(before) and before[left] == 1 and right == len(after):
            axes.append(left)
            left += 1
        if sum(size != 1 for size in sizes) <= 1 and len(axes) >= 1:
            place = max(range(len(sizes)), key=lambda i: (sizes[i], -i))
        else:
            place = len(sizes) - 1 if sizes[-1] != 1 else max(range(len(sizes)), key=lambda i: (sizes[i], i))
        for index, size in enumerate(sizes):
            share = index == place and bool(axes)
            found.append((tuple(axes), prod(sizes) // size, True) if share else ((), size, False))
    return found


def reshape(b: Builder, node: Node, x: Value, shape: Value = None) -> Any:
    """To constant sizes; 0 keeps one, -1 is what is left; a batch that the file fixes is one here."""
    wanted = list(node.attrs["shape"]) if shape is None else b.ints(node, shape, "shape")
    before = b.shape(x)
    if not node.attrs.get("allowzero"):
        wanted = [before[i] if size == 0 and i < len(before) else size for i, size in enumerate(wanted)]
    return shaped(b, node, x, wanted)


def shaped(b: Builder, node: Node, x: Value, wanted: list[int]) -> Any:
    """A value with another shape, in which one size may be -1."""
    before, count = b.shape(x), prod(b.shape(x))
    rest = prod(size for size in wanted if size != -1)
    if b.batch and isinstance(x, Live) and wanted and wanted[0] == b.batch and rest:
        fits = count % rest == 0 if -1 in wanted else rest == count
        if not fits or (before[0] == 1 and -1 in wanted):
            wanted = [1, *wanted[1:]]
            rest = rest // b.batch
    if wanted.count(-1) > 1 or not rest or count % rest or (-1 not in wanted and rest != count):
        raise node.error(f"cannot give {before} the shape {tuple(wanted)}", "try another --shape")
    after = tuple(count // rest if size == -1 else size for size in wanted)
    if not isinstance(x, Live):
        return b.call(node, Tensor.reshape, x, after)
    x = b.reshaped.get(x.name, x)  # two reshapes are one
    if b.shape(x) == after:
        return x
    found = b.module(node, Shaped(b.shape(x), after), x)
    b.reshaped[found.name] = x
    return found


def flatten(b: Builder, node: Node, x: Value) -> Any:
    """To two axes."""
    shape = b.shape(x)
    axis = node.attrs.get("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return shaped(b, node, x, [prod(shape[:axis]), prod(shape[axis:])])


def squeeze(b: Builder, node: Node, x: Value, axes: Value = None) -> Any:
    """Without some axes of one, or any; an attribute before opset 13."""
    shape = b.shape(x)
    named = node.attrs.get("axes") if axes is None else b.ints(node, axes, "axes")
    over = (
        [axis % max(len(shape), 1) for axis in named] if named else [i for i, n in enumerate(shape) if n == 1]
    )
    if any(shape[axis] != 1 for axis in over):
        raise node.error(f"squeezes axes {over} of {shape}")
    return _by_ones(b, node, x, torch.squeeze, sorted((axis for axis in over), reverse=True))


def unsqueeze(b: Builder, node: Node, x: Value, axes: Value = None) -> Any:
    """With more axes of one; an attribute before opset 13."""
    named = list(node.attrs["axes"]) if axes is None else b.ints(node, axes, "axes")
    rank = len(b.shape(x)) + len(named)
    return _by_ones(b, node, x, torch.unsqueeze, sorted(axis % rank for axis in named))


def _by_ones(b: Builder, node: Node, x: Value, way: Callable[..., Tensor], axes: Sequence[int]) -> Any:
    """With axes of one added or taken away; what another such step did is undone for nothing."""
    found = x
    for axis in axes:
        found = b.call(node, way, found, axis)
    if not isinstance(x, Live) or not isinstance(found, Live):
        return found
    source = b.reshaped.get(x.name, x)
    if b.shape(source) == b.shape(found):
        return source
    b.reshaped[found.name] = source
    return found


def transpose(b: Builder, node: Node, x: Value) -> Any:
    """In another order of axes."""
    rank = len(b.shape(x))
    order = list(node.attrs.get("perm", range(rank - 1, -1, -1)))
    return permuted(b, node, x, order)


def permuted(b: Builder, node: Node, x: Value, order: Sequence[int]) -> Any:
    """A value with its axes in another order; two such steps are one."""
    if not isinstance(x, Live):
        return b.call(node, torch.permute, x, list(order))
    source, before = b.permuted.get(x.name, (x, tuple(range(len(order)))))
    whole = tuple(before[axis] for axis in order)
    if whole == tuple(range(len(whole))):
        return source
    found = b.call(node, torch.permute, source, list(whole))
    b.permuted[found.name] = source, whole
    return found


def concat(b: Builder, node: Node, *values: Value) -> Any:
    """Joined along an axis; a constant comes once for each image."""
    axis = node.attrs.get("axis", 1)
    if len(values) == 1:
        return values[0]
    rank = len(b.shape(values[0]))
    return b.call(node, _joined, list(values), axis % max(rank, 1))


def _joined(values: Sequence[Tensor], axis: int) -> Tensor:
    most = max(value.shape[0] for value in values) if values[0].dim() else 1
    if axis and most > 1:
        values = [v if len(v) == most else v.expand(most, *v.shape[1:]) for v in values]
    return torch.cat(list(values), axis)


def split(b: Builder, node: Node, x: Value, sizes: Value = None) -> Any:
    """In parts; equal ones without sizes."""
    shape, axis = b.shape(x), node.attrs.get("axis", 0)
    axis %= len(shape)
    count = node.attrs.get("num_outputs", len(node.outputs))
    named = node.attrs.get("split") if sizes is None else b.ints(node, sizes, "sizes")
    if named is None:
        part = -(-shape[axis] // count)
        named = [min(part, shape[axis] - i * part) for i in range(count)]
    if sum(named) != shape[axis] or min(named) < 0:
        raise node.error(f"splits {shape[axis]} into {list(named)}")
    if len(named) == 1:
        return (x,)
    if len(set(named)) == 1:
        return b.call(node, torch.chunk, x, len(named), axis)
    return b.call(node, torch.split, x, list(named), axis)


def slices(b: Builder, node: Node, x: Value, *given: Value) -> Any:
    """Parts along axes; attributes before opset 10."""
    shape = b.shape(x)
    if given:
        names = ("starts", "ends", "axes", "steps")
        found = [b.ints(node, v, n) if v is not None else None for v, n in zip(given, names, strict=False)]
        starts, ends, axes, steps = (found + [None, None])[:4]
    else:
        starts, ends = node.attrs.get("starts"), node.attrs.get("ends")
        axes, steps = node.attrs.get("axes"), None
    assert starts is not None and ends is not None
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    value = x
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if not -len(shape) <= axis < len(shape) or step == 0:
            raise node.error(f"has the axis {axis} and the step {step} for {shape}")
        axis, size = axis % len(shape), shape[axis]
        if step < 0:
            value = _backwards(b, node, value, axis, start, end, step, size)
            continue
        low, high, step = slice(start, end, step).indices(size)
        if (low, max(high, low), step) == (0, size, 1):
            continue
        source = value
        ends_at = _ends(low, size), _ends(max(high, low), size)
        if isinstance(source, Live) and axis == 1 and step == 1 and None not in ends_at:
            value = b.call(node, _shares, value, axis, ends_at[0], ends_at[1])
        else:
            value = b.call(node, sliced, value, axis, low, max(high, low), step)
        if isinstance(source, Live) and isinstance(value, Live) and step == 1:
            b.parts[value.name] = Part(source.name, axis, size, low, max(high, low))
    return value


def _ends(place: int, size: int) -> tuple[int, int] | None:
    """A place as a share of the size, (2, 3) for two thirds."""
    if place in (0, size):
        return (place // size, 1) if size else None
    for parts in SHARES:
        if size % parts == 0 and place % (size // parts) == 0:
            return place // (size // parts), parts
    return None


def _shares(x: Tensor, axis: int, low: tuple[int, int], high: tuple[int, int]) -> Tensor:
    size = x.shape[axis]
    first, last = size * low[0] // low[1], size * high[0] // high[1]
    return x.narrow(axis, first, last - first)


def sliced(x: Tensor, axis: int, low: int, high: int, step: int) -> Tensor:
    """Every so manieth place of an axis."""
    return x[(slice(None),) * axis + (slice(low, high, step),)]


def _backwards(
    b: Builder, node: Node, x: Value, axis: int, start: int, end: int, step: int, size: int
) -> Any:
    low = min(start, size - 1) if start >= 0 else start + size
    high = max(end + size, -1) if -size - 1 < end < 0 else (-1 if end < 0 else end)
    places = list(range(low, high, step))
    if places == list(range(size - 1, -1, -1)):
        return b.call(node, torch.flip, x, [axis])
    return b.call(node, torch.index_select, x, axis, torch.tensor(places, dtype=torch.int64))


def expand(b: Builder, node: Node, x: Value, shape: Value) -> Any:
    """Repeated along axes of one."""
    wanted = b.ints(node, shape, "shape")
    before = b.shape(x)
    if b.batch and isinstance(x, Live) and len(wanted) >= len(before) and wanted[:1] == [b.batch]:
        wanted = [1, *wanted[1:]]
    full = (1,) * (len(wanted) - len(before)) + before
    wanted = [1] * (len(full) - len(wanted)) + wanted
    sizes = [n if w == 1 else w for n, w in zip(full, wanted, strict=True)]
    if prod(sizes) > MOST:
        raise node.error(f"makes {prod(sizes):,} numbers")
    return x if tuple(sizes) == before else b.call(node, Tensor.expand, x, sizes)


def tile(b: Builder, node: Node, x: Value, repeats: Value, axis: Value = None) -> Any:
    """Repeated as a whole."""
    times = b.ints(node, repeats, "repeats")
    if prod(b.shape(x)) * prod(times) > MOST:
        raise node.error(f"makes {prod(b.shape(x)) * prod(times):,} numbers")
    return x if set(times) == {1} else b.call(node, torch.tile, x, times)


def pad(b: Builder, node: Node, x: Value, pads: Value = None, value: Value = None, axes: Value = None) -> Any:
    """A border; attributes before opset 11. Negative ones cut."""
    rank = len(b.shape(x))
    named = node.attrs.get("pads") if pads is None else b.ints(node, pads, "pads")
    over = [axis % rank for axis in b.ints(node, axes, "axes")] if axes is not None else list(range(rank))
    if named is None or len(named) != 2 * len(over):
        raise node.error("its pads do not fit its axes")
    constant = node.attrs.get("value", 0.0)
    if value is not None:
        constant = float(b.known(node, value, "value").reshape(-1)[0])
    mode = node.attrs.get("mode", "constant")
    if mode not in PAD_MODES:
        raise node.error(f"has the mode {mode}", f"known are {', '.join(PAD_MODES)}")
    sides = {axis: (named[i], named[i + len(over)]) for i, axis in enumerate(over)}
    if mode == "constant":
        used = [axis for axis, pair in sides.items() if any(pair)]
        if not used:
            return x
        flat = [n for axis in range(rank - 1, min(used) - 1, -1) for n in sides.get(axis, (0, 0))]
        return b.call(node, F.pad, x, flat, "constant", constant)
    used = [axis for axis, pair in sides.items() if any(pair)]
    fits = rank in (3, 4, 5) and all(axis >= 2 and min(sides[axis]) >= 0 for axis in used)
    if fits:
        flat = [n for axis in range(rank - 1, 1, -1) for n in sides.get(axis, (0, 0))]
        return b.call(node, F.pad, x, flat, PAD_MODES[mode]) if used else x
    for axis in used:
        x = b.call(node, torch.index_select, x, axis, _mirrored(node, mode, b.shape(x)[axis], *sides[axis]))
    return x


def _mirrored(node: Node, mode: str, size: int, before: int, after: int) -> Tensor:
    """The places of an axis of this size that a border repeats, with those between."""
    places = torch.arange(-before, size + after)
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places % size
    if max(before, after) >= size:
        raise node.error(f"reflects {max(before, after)} of {size} places")
    return (size - 1) - ((size - 1) - places.abs()).abs() if size > 1 else places * 0


def depth_to_space(b: Builder, node: Node, x: Value) -> Any:
    """Channels to pixels, in either order."""
    block = node.attrs["blocksize"]
    if node.attrs.get("mode", "DCR") == "CRD":
        return b.module(node, nn.PixelShuffle(block), x)
    return b.call(node, _depth_to_space, x, block)


def _depth_to_space(x: Tensor, block: int) -> Tensor:
    n, c, h, w = x.shape
    parts = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // block**2, h * block, w * block)


def space_to_depth(b: Builder, node: Node, x: Value) -> Any:
    """Pixels to channels."""
    return b.call(node, _space_to_depth, x, node.attrs["blocksize"])


def _space_to_depth(x: Tensor, block: int) -> Tensor:
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * block**2, h // block, w // block)
