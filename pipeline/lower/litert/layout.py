"""How a .tflite says what a node means: its layout, its padding, its transposes.

The writer in `pipeline.lower.litert.program` and the rules of `pipeline.lower.predict.rules` both go by it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from paredown.pipeline.graph.graph import Node
from paredown.pipeline.lower.integer import IntegerNode

TO_NHWC, TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)
MOST_AXES = 5  # of a transpose in LiteRT Micro


def native(node: Node | IntegerNode) -> str:
    """The layout in which the file names a tensor and takes or returns it."""
    return "nhwc" if len(node.shape) == 4 else "plain"


def merged(shape: tuple[int, ...], dims: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The same transpose of the same memory with as few axes as can be.

    Args:
        shape: of what is transposed.
        dims: the permutation.

    Returns:
        A shape of as many elements, and its permutation: without axes of one element, and with those that
        stay neighbours made one: (1, 8, 10, 2, 10, 2) by (0, 3, 5, 1, 2, 4) is (80, 2, 10, 2) by
        (1, 3, 0, 2).
    """
    long = [axis for axis, size in enumerate(shape) if size > 1]
    runs: list[list[int]] = []
    for axis in (axis for axis in dims if axis in long):
        if runs and long.index(axis) == long.index(runs[-1][-1]) + 1:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    ranked = sorted(runs)
    return tuple(math.prod(shape[axis] for axis in run) for run in ranked), tuple(map(ranked.index, runs))


def same_padding(
    shape: tuple[int, ...], kernel: Sequence[int], stride: Sequence[int]
) -> tuple[int, int, int, int]:
    """What TensorFlow's SAME stands for.

    Args:
        shape: of what is padded, (1, channels, height, width).
        kernel: (height, width).
        stride: (height, width).

    Returns:
        (left, right, top, bottom).
    """

    def ends(size: int, k: int, s: int) -> tuple[int, int]:
        total = max((-(-size // s) - 1) * s + k - size, 0)
        return total // 2, total - total // 2

    return (*ends(shape[3], kernel[1], stride[1]), *ends(shape[2], kernel[0], stride[0]))


def never_negative(node: Node | IntegerNode) -> bool:
    """Whether zero is the least that a node makes."""
    if isinstance(node, IntegerNode):
        return node.low >= node.out.zero_point
    return node.kind in {"relu", "relu6"}
