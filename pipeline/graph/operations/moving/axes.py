"""What resizes are written as along one axis of a map: slices put together, or a matrix.

A matrix is a 1x1 convolution that has the axis in the place of its channels. The weights of each of its rows
are whole numbers times a unit that keeps their sum, so that a map of one value stays that map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from paredown.pipeline.graph.operations.moving.slice import attrs_of
from paredown.pipeline.graph.operations.placement import MOST_INPUTS

Matrix = NDArray[np.float64]
Shape = tuple[int, ...]
ROWS, COLUMNS = 2, 3
MOST_CODE = 127
MOST_PARTS = 4 * MOST_CODE  # of a unit that are tried
#: Permutations that bring rows or columns in the place of channels, and back.
TO_ROWS, TO_COLUMNS = (0, 2, 3, 1), (0, 3, 1, 2)


def runs(wanted: Sequence[int]) -> list[range]:
    """A list of places as ranges, as few as there are."""
    found: list[range] = []
    for place in wanted:
        if found and place == found[-1].stop:
            found[-1] = range(found[-1].start, place + 1)
        else:
            found.append(range(place, place + 1))
    return found


def pieces(node: Any, feed: str, shape: Shape, dim: int, wanted: Sequence[int], word: str) -> list[Any]:
    """Slices of a tensor, and what puts them together.

    Args:
        node: a `Node` or an `IntegerNode`, whose name and output are taken.
        feed: name of what is sliced.
        shape: of it.
        dim: along which.
        wanted: places along that dim, in the order of the output.
        word: for the names of nodes between.

    Returns:
        Nodes in running order; the last one has the name of the node.
    """
    made: dict[range, Any] = {}
    found = runs(wanted)
    for index, each in enumerate(dict.fromkeys(found)):
        if each != range(shape[dim]):
            size = (*shape[:dim], len(each), *shape[dim + 1 :])
            made[each] = replace(
                node, name=f"{node.name}.{word}{index}", kind="slice", inputs=(feed,), shape=size,
                attrs=attrs_of({dim: each}),
            )  # fmt: skip
    names = [made[each].name if each in made else feed for each in found]
    sizes = [len(each) for each in found]
    nodes = list(made.values())
    while len(names) > 1:
        groups = [slice(at, at + MOST_INPUTS) for at in range(0, len(names), MOST_INPUTS)]
        joined: list[str] = []
        for group in groups:
            parts, length = tuple(names[group]), sum(sizes[group])
            name = node.name if len(groups) == 1 else f"{node.name}.{word}_{len(nodes)}"
            if len(parts) > 1:
                size = (*shape[:dim], length, *shape[dim + 1 :])
                joining = {"name": name, "kind": "concat", "inputs": parts, "attrs": {"dim": dim}}
                nodes.append(replace(node, shape=size, **joining))
            joined.append(name if len(parts) > 1 else parts[0])
        sizes = [sum(sizes[group]) for group in groups]
        names = joined
    if len(found) == 1:
        nodes[-1] = replace(nodes[-1], name=node.name)
    return nodes


def multiplied(node: Any, feed: Any, rows: Matrix | None, columns: Matrix | None) -> list[Any]:
    """A map times a matrix along its rows, its columns, or both; between the two in the scale of the input.

    Args:
        node: a `Node` or an `IntegerNode`, whose name, inputs and output are taken.
        feed: what it reads.
        rows: (rows of the output, of the input); None where they stay.
        columns: the same of the columns.

    Returns:
        Nodes in running order; the last one has the name of the node.
    """
    made: list[Any] = []
    last, shape = feed, feed.shape
    likes = {"out": feed.out, "low": -128, "high": 127} if hasattr(node, "out") else {}

    def add(word: str, kind: str, attrs: dict[str, Any], **fields: Any) -> None:
        nonlocal last
        last = replace(node, name=f"{node.name}.{word}", kind=kind, inputs=(last.name,), attrs=attrs,
                       **fields)  # fmt: skip
        made.append(last)

    def moved(word: str, dims: Shape, **fields: Any) -> None:
        size = tuple(last.shape[d] for d in dims)
        add(word, "permute", {"dims": dims, "direct": True}, shape=size, **fields)

    def weighed(word: str, matrix: Matrix, **fields: Any) -> None:
        attrs = {"stride": (1, 1), "padding": (0, 0, 0, 0), "groups": 1}
        size = (1, len(matrix), *last.shape[2:])
        add(word, "conv2d", attrs, shape=size, **_weights(matrix, hasattr(node, "out")), **fields)

    if columns is not None:
        moved("to_columns", TO_COLUMNS, **likes)
        weighed("columns", columns, **(likes if rows is not None else {}))
    if rows is not None:
        moved("to_rows", TO_ROWS if columns is None else TO_COLUMNS, **likes)
        weighed("rows", rows)
    moved("back", TO_ROWS if rows is None else TO_COLUMNS)
    assert len(shape) == 4
    return [*made[:-1], replace(made[-1], name=node.name)]


def _weights(matrix: Matrix, integer: bool) -> dict[str, Any]:
    if not integer:
        weight = torch.from_numpy(matrix).float()[..., None, None]
        return {"weight": weight, "bias": torch.zeros(len(matrix))}
    codes, units = whole_numbers(matrix)
    return {
        "weight": codes[..., None, None], "weight_scale": units, "bias": np.zeros(len(matrix), np.int32),
    }  # fmt: skip


def whole_numbers(matrix: Matrix) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Rows of weights as codes times a unit for each, of the same sums and as near as can be."""
    found = [_row(tuple(row)) for row in matrix]
    codes = np.asarray([row for row, _ in found], np.int8)
    return codes, np.asarray([unit for _, unit in found], np.float32)


def _row(row: tuple[float, ...]) -> tuple[NDArray[np.float64], float]:
    values = np.asarray(row)
    most, total = np.abs(values).max(), values.sum()
    best, least = (np.rint(values / most * MOST_CODE), most / MOST_CODE), np.inf
    for count in range(1, MOST_PARTS + 1):
        if most * count > MOST_CODE + 0.5:
            break
        codes = np.rint(values * count)
        error = np.abs(codes / count - values).max()
        if abs(codes.sum() - total * count) < 1e-6 and error < least - 1e-6:  # the smallest of equals
            best, least = (codes, 1 / count), error
    return best
