"""Layers of Keras that move numbers: shapes, orders, edges."""

from __future__ import annotations

from math import prod

import torch

from paredown.pipeline.recipe.imports.keras.layers.convolutions import zeros
from paredown.pipeline.recipe.imports.keras.maker import CHANNELS_FIRST, Layer, Maker, Value


def flatten(m: Maker, layer: Layer, x: Value) -> Value:
    """All axes as one; the numbers stay in torch's order, which the value knows."""
    if layer.config.get("data_format") == "channels_first" and x.rank > 2:
        # Keras turns the channels last before it flattens, whatever they were
        x = m.plain(layer, x)
        axes = (0, *range(2, x.rank), 1)
        places = (
            torch.arange(prod(x.shape)).reshape(x.shape[1:]).permute([a - 1 for a in axes[1:]]).reshape(-1)
        )
        return _flat(m, layer, x, torch.argsort(places))
    return _flat(m, layer, x, None)


def _flat(m: Maker, layer: Layer, x: Value, numbers: torch.Tensor | None) -> Value:
    if x.rank == 2:
        return x
    places = torch.arange(prod(x.shape)) if numbers is None else numbers
    flat = places.reshape(x.shape[1:]).permute([axis - 1 for axis in x.order[1:]]).reshape(-1)
    made = m.call(layer, torch.flatten, x, x, 1, order=(0, 1))
    if torch.equal(flat, torch.arange(len(flat))):
        return made
    return Value(made.live, (0, 1), flat, x if numbers is None else None)


def reshape(m: Maker, layer: Layer, x: Value) -> Value:
    """Another shape of the same numbers in Keras's order; a map whose channels stay is not turned."""
    sizes = [int(size) for size in layer.config["target_shape"]]
    count = prod(x.shape)
    if sizes.count(-1) == 1:
        rest = prod(size for size in sizes if size != -1)
        if rest <= 0 or count % rest:
            raise layer.error(f"makes {tuple(sizes)} of {x.shape}")
        sizes[sizes.index(-1)] = count // rest
    if prod(sizes) != count or any(size < 1 for size in sizes):
        raise layer.error(f"makes {tuple(sizes)} of {x.shape}")
    if tuple(sizes) == x.shape[1:]:
        return x
    if len(sizes) == 1:
        return _flat(m, layer, x, None)
    rank = len(sizes) + 1
    if rank not in CHANNELS_FIRST:
        raise layer.error(f"makes {rank} axes", "known are up to 4, the batch included")
    is_map = x.flat is None and x.rank > 2 and x.order == CHANNELS_FIRST[x.rank]
    if is_map and sizes[-1] == x.shape[-1]:
        return m.call(layer, torch.reshape, x, x, [1, sizes[-1], *sizes[:-1]], order=CHANNELS_FIRST[rank])
    x = m.ordered(layer, m.plain(layer, x), tuple(range(x.rank)))
    return m.call(layer, torch.reshape, x, x, [1, *sizes], order=tuple(range(rank)))


def permute(m: Maker, layer: Layer, x: Value) -> Value:
    """Another order of Keras's axes: the numbers stay where they are, until a layer needs them elsewhere."""
    dims = [0, *(int(axis) for axis in layer.config["dims"])]
    if sorted(dims) != list(range(x.rank)):
        raise layer.error(f"its dims are {dims[1:]}, and its input {x.shape}")
    x = m.plain(layer, x)
    return Value(x.live, tuple(dims.index(axis) for axis in x.order))


def repeat(m: Maker, layer: Layer, x: Value) -> Value:
    """A vector, some times."""
    count = int(layer.config["n"])
    if x.rank != 2 or not 0 < count < 2**20:
        raise layer.error(f"repeats {x.shape} {count} times")
    x = m.plain(layer, x)
    x = m.call(layer.named("row"), torch.unsqueeze, x, x, 1, order=(0, 1, 2))
    return m.call(layer, torch.Tensor.repeat, x, x, [1, count, 1])


def zero_padding(m: Maker, layer: Layer, x: Value) -> Value:
    """Zeros around a map."""
    x, sides = _around(m, layer, x, "padding")
    return m.module(layer, zeros(sides), x)


def cropping(m: Maker, layer: Layer, x: Value) -> Value:
    """Edges cut off."""
    x, sides = _around(m, layer, x, "cropping")
    for axis, (before, after) in enumerate(sides, 2):
        size = int(x.live.fake.shape[axis])
        if before + after >= size:
            raise layer.error(f"cuts {before} and {after} of {size}")
        if before or after:
            step = layer if axis == x.rank - 1 else layer.named(f"axis{axis}")
            x = m.call(step, torch.narrow, x, x, axis, before, size - before - after)
    return x


def _around(m: Maker, layer: Layer, x: Value, key: str) -> tuple[Value, list[tuple[int, int]]]:
    """A map with channels first, and a number before and behind each of its axes."""
    rank = 1 if layer.node.kind.endswith("1D") else 2
    if x.rank != rank + 2:
        raise layer.error(f"its input is {x.shape}, not of {rank + 2} axes")
    given = layer.config.get(key, 1)
    parts = [given] * rank if isinstance(given, int) else [given] if rank == 1 else list(given)
    sides = [(each, each) if isinstance(each, int) else tuple(each) for each in parts]
    found = [(int(pair[0]), int(pair[1])) for pair in sides if len(pair) == 2]
    if len(found) != rank or any(not 0 <= side < 2**16 for pair in found for side in pair):
        raise layer.error(f"its {key} is {given}")
    return m.channels(layer, x), found
