"""Test inputs that every device makes for itself, bit for bit: a bundle carries only their seed.

Only the raw stream of PCG64 is used, which numpy keeps stable for ever, and integer arithmetic.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def test_inputs(shape: tuple[int, ...], count: int, seed: int = 0) -> NDArray[np.int8]:
    """Makes int8 inputs of several textures: smooth fields of growing fineness, then noise.

    Args:
        shape: of one input with its batch of one, (1, channels, height, width); it may have fewer axes.
        count: how many.
        seed: of the stream.

    Returns:
        int8, (count, channels, height, width), covering the whole range of codes.
    """
    if len(shape) < 4:
        flat = (1, shape[1], 1, shape[2]) if len(shape) == 3 else (1, 1, 1, shape[1])
        return test_inputs(flat, count, seed).reshape(count, *shape[1:])
    _, channels, height, width = shape
    stream = np.random.PCG64(seed)
    inputs = np.empty((count, channels, height, width), np.int8)
    for index in range(count):
        cell = max(1, 32 >> index % 6)  # 32, 16, 8, 4, 2, 1 pixels
        rows, columns = -(-height // cell), -(-width // cell)
        raw = stream.random_raw(channels * rows * columns)
        field = (raw >> np.uint64(56)).astype(np.uint8).reshape(channels, rows, columns)
        field = field.repeat(cell, 1).repeat(cell, 2)[:, :height, :width]
        inputs[index] = (field ^ 0x80).view(np.int8)
    return inputs
