"""Test inputs must come out bit for bit on every machine and every numpy: golden hashes say so."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.targets.runners.vectors import test_inputs as make_inputs

pytestmark = pytest.mark.unit

# sha256 of the bytes, written down once: if one changes, every bundle's expected outputs are void.
GOLDEN = {
    ((1, 3, 40, 33), 7, 0): "965e31e435ce743d950cac99d4f826ba4fcf7a97d724d4fd589b5d79e8f0ec45",
    ((1, 1, 5, 5), 2, 20181): "24b2b3e27511aad711ea93fe0e18b344587c1b02258070491500cd8709cc6dee",
    ((1, 3, 416, 416), 1, 1): "bd7314966f3fcf8f33e1586d5be556bfa77dd17cbf0400e6ff29235694b6d2f3",
}


@pytest.mark.parametrize(("shape", "count", "seed"), GOLDEN)
def test_golden(shape, count, seed):
    data = make_inputs(shape, count, seed).tobytes()
    assert hashlib.sha256(data).hexdigest() == GOLDEN[shape, count, seed]


def test_the_stream_is_pcg64_in_whole_numbers():
    """By hand: the sixth texture is one random byte per pixel, from the top of each 64-bit draw."""
    shape = (1, 2, 3, 4)
    stream = np.random.PCG64(5)
    for cell in (32, 16, 8, 4, 2):
        stream.random_raw(2 * -(-3 // cell) * -(-4 // cell))
    expected = [(int(raw) >> 56) - 128 for raw in stream.random_raw(24)]
    assert make_inputs(shape, 6, 5)[5].ravel().tolist() == expected


@settings(max_examples=30)
@given(
    channels=st.integers(1, 4), height=st.integers(1, 70), width=st.integers(1, 70),
    count=st.integers(0, 9), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_shape_dtype_and_prefix(channels, height, width, count, seed):
    shape = (1, channels, height, width)
    x = make_inputs(shape, count, seed)
    assert x.shape == (count, channels, height, width) and x.dtype == np.int8
    assert np.array_equal(
        x, make_inputs(shape, count + 1, seed)[:count]
    )  # more inputs never change the first


def test_textures_grow_finer_and_noise_covers_all_codes():
    x = make_inputs((1, 3, 64, 64), 7)
    changes = [(np.diff(image.astype(int), axis=2) != 0).mean() for image in x[:6]]
    assert changes == sorted(changes) and changes[0] < 0.05 < 0.9 < changes[5]
    assert len(np.unique(x[5])) == 256
    assert not np.array_equal(x[0], x[6])  # the cycle starts again with other values


def test_seeds_differ():
    assert not np.array_equal(make_inputs((1, 1, 8, 8), 1, 0), make_inputs((1, 1, 8, 8), 1, 1))
