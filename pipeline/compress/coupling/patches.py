"""A layer as a linear problem: each output pixel is its patch of the input times the weights."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from paredown.pipeline.graph.graph import Node
from paredown.pipeline.graph.operations.kinds import operation

#: Images, rows and columns of output pixels, each int64 (count,); None = all, of a linear layer.
Spots = tuple[Tensor, Tensor, Tensor] | None


def pick_spots(shape: tuple[int, ...], count: int, generator: np.random.Generator) -> Spots:
    """Pixels of a layer's output by chance.

    Args:
        shape: of the output, (N, out, height, width), or of a linear layer (N, out): then it is all rows.
        count: as many, if it has them.
        generator: chance.
    """
    if len(shape) == 2:
        return None
    n, _, height, width = shape
    chosen = generator.choice(n * height * width, min(count, n * height * width), replace=False)
    spots = torch.from_numpy(chosen)
    return spots // (height * width), spots // width % height, spots % width


def at_spots(output: Tensor, spots: Spots) -> Tensor:
    """What an output has there: float64 (count, out)."""
    if spots is None:
        return output.double()
    image, y, x = spots
    return output[image, :, y, x].double()


def patches(node: Node, x: Tensor, spots: Spots) -> Tensor:
    """What a convolution without groups, or a linear layer, reads for these pixels of its output.

    Args:
        node: the layer.
        x: its input (N, channels, height, width), or (N, in).
        spots: of its output.

    Returns:
        float64 (count, in x kernel height x kernel width), in the order of the weights.
    """
    if spots is None:
        return x.double()
    assert node.weight is not None
    image, y, column = spots
    padded, (down, right), dy, dx = operation(node.kind).unfolded(node, x)
    ys = (y * down)[:, None] + dy
    xs = (column * right)[:, None] + dx
    found = padded[image[:, None], :, ys, xs]  # (count, taps, channels)
    return found.transpose(1, 2).flatten(1).double()
