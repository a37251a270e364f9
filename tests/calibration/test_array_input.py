"""Arrays as a network's input: what is accepted, its codes, and how a bundle stores it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paredown.calibration.array_input import ArrayInput, input_from_dict, read_sample
from paredown.calibration.preprocess import Preprocess
from paredown.targets.errors import InputError

pytestmark = pytest.mark.unit


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=3), st.integers(0, 2**32 - 1),
    st.floats(1e-4, 10), st.integers(-128, 127),
)  # fmt: skip
def test_codes_are_the_plain_formula(shape, seed, scale, zero_point):
    source = ArrayInput(tuple(shape))
    array = np.random.default_rng(seed).normal(0, 3, shape).astype(np.float32)
    assert source(array) is not None and np.array_equal(source(array), array)
    found = source.quantized(array, scale, zero_point)
    expected = [min(max(round(float(v) / scale) + zero_point, -128), 127) for v in array.ravel()]
    assert found.dtype == np.int8 and found.ravel().tolist() == expected and found.shape == tuple(shape)


def test_it_is_stored_and_told_from_an_image(tmp_path):
    source = ArrayInput((16, 40))
    assert source.to_dict() == {"arrays": [16, 40]} and source.input_shape == (1, 16, 40)
    assert input_from_dict(source.to_dict()) == source and source.value_range is None
    assert source.hash != ArrayInput((40, 16)).hash and source.layout == "nchw"
    image = Preprocess(width=8, height=6)
    assert input_from_dict(image.to_dict()) == image and image.input_shape == (1, 3, 6, 8)
    for wrong in ({"arrays": [1], "width": 3}, {"arrays": "1"}, {"arrays": [0]}, {"arrays": [1.5]}, {}):
        with pytest.raises(InputError):
            input_from_dict(wrong)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.zeros((2, 4), np.float32),
            r"expected an array of shape \(2, 3\) and dtype float32, found \(2, 4\)",
        ),
        (np.zeros((2, 3)), r"found \(2, 3\) float64"),
        ([[0, 0, 0]], "found list"),
        (np.full((2, 3), np.nan, np.float32), "not finite"),
        (np.full((2, 3), -np.inf, np.float32), "not finite"),
    ],
)
def test_other_arrays_are_refused(array, message):
    for call in (ArrayInput((2, 3)), lambda x: ArrayInput((2, 3)).quantized(x, 0.1, 0)):
        with pytest.raises(InputError, match=message):
            call(array)


@pytest.mark.parametrize("shape", [(), (1, 2, 3, 4), (0,), (-1, 2), (True,), (1.0,)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(InputError, match="no network's input"):
        ArrayInput(shape)


@pytest.mark.parametrize(("scale", "zero_point"), [(0, 0), (float("nan"), 0), (1, 128), (-1, 0)])
def test_other_scales_are_refused(scale, zero_point):
    with pytest.raises(InputError, match="the input's"):
        ArrayInput((1,)).quantized(np.zeros(1, np.float32), scale, zero_point)


def test_a_device_reads_what_the_network_takes(tmp_path):
    image, array = np.full((4, 5, 3), 7, np.uint8), np.ones((2, 3), np.float32)
    cv2.imwrite(str(tmp_path / "x.png"), image)
    np.save(tmp_path / "x.npy", array)
    np.savez(tmp_path / "x.npz", array)
    np.save(tmp_path / "code.npy", np.array([{}], object))
    one, other = Preprocess(width=2, height=2), ArrayInput((2, 3))
    assert np.array_equal(read_sample(str(tmp_path / "x.png"), one), image)
    assert np.array_equal(read_sample(str(tmp_path / "x.npy"), other), array)
    for name, source, message in (
        ("x.npy", one, "cannot read this image"), ("x.png", other, "cannot read this array"),
        ("code.npy", other, "cannot read this array"), ("x.npz", other, "an archive"),
        ("none.npy", other, "none.npy: cannot read"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            read_sample(str(tmp_path / name), source)
