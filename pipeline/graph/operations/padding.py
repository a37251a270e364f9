"""Windows over a map: their padding, how a .tflite says it, and Ethos-U55's limits of their stride."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch.nn.functional as F
from torch import Tensor

from paredown.pipeline.graph.operations.placement import Rule

if TYPE_CHECKING:
    from paredown.pipeline.lower.integer import IntegerNode

Padding = tuple[int, int, int, int]  # left, right, top, bottom

#: Ethos-U55's.
MOST_STRIDE = 3
STRIDE = "a stride of at most 3, or two layers that share it"


def symmetric(
    x: Tensor, padding: Sequence[int], value: float, limit: int | None = None
) -> tuple[Tensor, tuple[int, int]]:
    """Splits (left, right, top, bottom) into what a torch operation can pad itself and an explicit pad."""
    left, right, top, bottom = padding
    if left == right and top == bottom and (limit is None or max(left, top) <= limit):
        return x, (top, left)
    return F.pad(x, tuple(padding), value=value), (0, 0)


def same_padding(shape: Sequence[int], kernel: Sequence[int], stride: Sequence[int]) -> Padding:
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


def kernel_of(node: Any) -> tuple[int, int]:
    """The window of a convolution or a pool: (height, width)."""
    return tuple(node.attrs["kernel"] if node.weight is None else node.weight.shape[2:])


def dilation_of(node: Any) -> tuple[int, int]:
    """How far the values of a window are apart: (height, width)."""
    return tuple(node.attrs.get("dilation", (1, 1)))


def window_of(node: Any) -> tuple[int, int]:
    """What a window reaches over, with the gaps of a dilation: (height, width)."""
    (high, wide), (down, right) = kernel_of(node), dilation_of(node)
    return (high - 1) * down + 1, (wide - 1) * right + 1


def written_padding(node: Any, feed: Any) -> Literal["VALID", "SAME", "PAD"]:
    """How a .tflite says the padding of a convolution or a pool; PAD is an operator before it."""
    if not any(node.attrs["padding"]):
        return "VALID"
    same = same_padding(feed.shape, window_of(node), node.attrs["stride"])
    return "SAME" if tuple(node.attrs["padding"]) == same else "PAD"


def far(node: IntegerNode) -> bool:
    """Whether the stride is more than Ethos-U55 takes everywhere."""
    return max(node.attrs["stride"]) > MOST_STRIDE


def _far_same(node: IntegerNode, feed: IntegerNode) -> bool:
    return far(node) and written_padding(node, feed) == "SAME"


FAR_SAME = Rule(_far_same, "Ethos-U55 strides by more than 3 without padding only", STRIDE)
