"""Nodes that do the same in every step of a recurrence: they share weights, and scales where weights need it.

Such a node has the attribute `ALIKE`, one text for all of them. What it says costs nothing where it is not
kept to: arrays that differ all the same, as those of a first step that starts elsewhere, are held each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: The attribute: nodes that have the same text there have one weight; see `fusion.same_scale`.
ALIKE = "alike"
#: Another, of layers whose rows stay or go together, one text for all: a module's, with one `hidden_size`.
BESIDE = "beside"
#: What those that are alike need not hold each.
SHARED = ("weight", "bias", "scale", "weight_scale")


def put(arrays: dict[str, NDArray[Any]], name: str, attrs: Mapping[str, Any], role: str, value: Any) -> None:
    """Adds an array of a node to those of a graph, unless one that is alike has added it.

    Args:
        arrays: of the graph, by name.
        name: of the node.
        attrs: of the node.
        role: what the array is to it.
        value: the array.
    """
    key = f"{attrs[ALIKE]}:{role}" if ALIKE in attrs and role in SHARED else f"{name}:{role}"
    if not np.array_equal(arrays.setdefault(key, value), value):
        arrays[f"{name}:{role}"] = value


def get(
    arrays: Mapping[str, NDArray[Any]], name: str, attrs: Mapping[str, Any], role: str
) -> NDArray[Any] | None:
    """The array that `put` was given; None where there was none."""
    found = arrays.get(f"{name}:{role}")
    if found is None and ALIKE in attrs and role in SHARED:
        found = arrays.get(f"{attrs[ALIKE]}:{role}")
    return found


def distinct(nodes: Iterable[Any]) -> tuple[Any, ...]:
    """The layers among nodes, those with the very arrays of another only once."""
    found: dict[object, Any] = {}
    for node in nodes:
        if node.weight is not None:
            found.setdefault(shared(node), node)
    return tuple(found.values())


def shared(node: Any, unit: NDArray[Any] | None = None) -> object:
    """What is the same for two layers that are alike and have the same arrays, and for no others.

    Args:
        node: a layer.
        unit: of its biases, where there is one.
    """
    if ALIKE not in node.attrs:
        return node.name
    held = (node.weight, node.bias, getattr(node, "weight_scale", None), unit)
    return node.attrs[ALIKE], *(None if each is None else np.asarray(each).tobytes() for each in held)
