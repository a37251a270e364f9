"""Layers of Keras that merge several values into one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from paredown.pipeline.recipe.imports.keras.maker import Layer, Maker, Value

MERGES: Mapping[str, Callable[[Any, Any], Any]] = {
    "Add": torch.add, "Multiply": torch.mul, "Subtract": torch.sub, "Maximum": torch.maximum,
    "Minimum": torch.minimum,
}  # fmt: skip


#: Operations outside layers, of two values or a value and a number.
OPERATIONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "Add": torch.add, "Multiply": torch.mul, "Subtract": torch.sub, "TrueDivide": torch.div,
    "Divide": torch.div,
}  # fmt: skip


def arithmetic(m: Maker, layer: Layer, *operands: Value | float) -> Value:
    """`x + 3.0`, `x * y` and the like, as Keras writes them down."""
    values = tuple(each for each in operands if isinstance(each, Value))
    if len(operands) != 2 or not values:
        raise layer.error(f"is given {len(operands)} operands", "known are two")
    found = iter(_alike(m, layer, values))
    x, y = (next(found) if isinstance(each, Value) else each for each in operands)
    like = x if isinstance(x, Value) else y
    assert isinstance(like, Value)
    if isinstance(x, Value) and isinstance(y, Value) and _size(y) > _size(x):
        like = y
    function = OPERATIONS[layer.node.kind.partition(" ")[0]]
    if not isinstance(x, Value):
        return m.call(layer, swapped, like, y, x, function)
    return m.call(layer, function, like, x, y)


def swapped(y: Any, x: float, function: Callable[[Any, Any], Any]) -> Any:
    """A function of a number and a tensor."""
    return function(torch.full((), x, dtype=y.dtype), y)


def merge(m: Maker, layer: Layer, *values: Value) -> Value:
    """Value by value, of two or more; sizes of one are spread."""
    found = _alike(m, layer, values)
    kind = layer.node.kind
    total, count = found[0], len(found)
    function = MERGES["Add" if kind == "Average" else kind]
    for number, value in enumerate(found[1:], 1):
        last = number == count - 1 and kind != "Average"
        step = layer if last else layer.named(f"part{number}")
        wide = total if _size(total) >= _size(value) else value
        total = m.call(step, function, wide, total, value)
    return m.call(layer, torch.mul, total, total, 1 / count) if kind == "Average" else total


def concatenate(m: Maker, layer: Layer, *values: Value) -> Value:
    """Along one axis."""
    if len(values) == 1:
        return values[0]
    axis = int(layer.config.get("axis", -1))
    rank = values[0].rank
    if rank == 2 and any(value.flat is not None for value in values) and axis % 2 == 1:
        return _joined(m, layer, values)
    found = _alike(m, layer, values)
    place = m.axis(layer, found[0], axis)
    return m.call(layer, torch.cat, found[0], list(found), place)


def _joined(m: Maker, layer: Layer, values: tuple[Value, ...]) -> Value:
    """Flattened maps behind one another: so are their orders."""
    orders, start = [], 0
    for value in values:
        size = value.shape[1]
        orders.append(start + (torch.arange(size) if value.flat is None else value.flat))
        start += size
    made = m.call(layer, torch.cat, values[0], list(values), 1)
    return Value(made.live, (0, 1), torch.cat(orders))


def _alike(m: Maker, layer: Layer, values: tuple[Value, ...]) -> list[Value]:
    """Values in one order of axes, that of the largest."""
    if len({value.rank for value in values}) != 1 or not values:
        raise layer.error(f"its inputs are {', '.join(str(value.shape) for value in values) or 'none'}",
                          "give them the same number of axes")  # fmt: skip
    flats = [value.flat for value in values]
    first = flats[0]
    if any(flat is not None for flat in flats):
        equal = first is not None and all(flat is not None and torch.equal(flat, first) for flat in flats)
        if not equal:
            values = tuple(m.plain(layer.named(f"input{n}"), value) for n, value in enumerate(values))
    order = max(values, key=_size).order
    return [m.ordered(layer.named(f"input{n}"), value, order) for n, value in enumerate(values)]


def _size(value: Value) -> int:
    return int(value.live.fake.numel())
