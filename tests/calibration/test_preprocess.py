"""The preprocessing contract, against formulas and against OpenCV called by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from paredown.calibration.preprocess import RESAMPLES, Preprocess
from paredown.targets.errors import InputError, UsageError

ROOT = Path(__file__).parents[2]
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

sides = st.integers(1, 70)
resizes = st.sampled_from(["stretch", "letterbox", "crop"])


@st.composite
def contracts(draw: st.DrawFn) -> Preprocess:
    colour = draw(st.sampled_from(["rgb", "bgr", "grey"]))
    channels = 1 if colour == "grey" else 3
    return Preprocess(
        width=draw(sides),
        height=draw(sides),
        resize=draw(resizes),
        colour=colour,
        mean=tuple(draw(st.floats(-1, 1)) for _ in range(channels)),
        std=tuple(draw(st.floats(0.01, 4)) for _ in range(channels)),
        layout=draw(st.sampled_from(["nchw", "nhwc"])),
        dtype=draw(st.sampled_from(["float32", "int8"])),
        fill=draw(st.integers(0, 255)),
        resample=draw(st.sampled_from(RESAMPLES)),
    )


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_stretch_rgb_is_opencvs_resize_over_255():
    image = noise(37, 51)
    want = cv2.cvtColor(cv2.resize(image, (20, 12), interpolation=cv2.INTER_LINEAR), cv2.COLOR_BGR2RGB)
    got = Preprocess(20, 12)(image)
    assert got.shape == (3, 12, 20) and got.dtype == np.float32 and got.flags.c_contiguous
    np.testing.assert_allclose(got, want.transpose(2, 0, 1) / 255, atol=1e-7)


def test_colour_orders():
    image = np.zeros((4, 4, 3), np.uint8)
    image[...] = (10, 20, 30)  # blue, green, red
    assert Preprocess(2, 2, colour="bgr").pixels(image)[0, 0].tolist() == [10, 20, 30]
    assert Preprocess(2, 2, colour="rgb").pixels(image)[0, 0].tolist() == [30, 20, 10]
    grey = Preprocess(2, 2, colour="grey").pixels(image)
    assert grey.shape == (2, 2, 1)
    assert grey[0, 0, 0] == round(0.299 * 30 + 0.587 * 20 + 0.114 * 10)  # ITU-R BT.601


def test_mean_and_std_go_with_the_channel_order():
    image = np.full((3, 3, 3), (0, 0, 255), np.uint8)  # pure red
    got = Preprocess(3, 3, **IMAGENET)(image)
    np.testing.assert_allclose(got[0], (1 - 0.485) / 0.229, rtol=1e-6)
    np.testing.assert_allclose(got[2], (0 - 0.406) / 0.225, rtol=1e-6)
    np.testing.assert_array_equal(got, Preprocess(3, 3, layout="nhwc", **IMAGENET)(image).transpose(2, 0, 1))


def test_letterbox_pads_both_sides_alike_with_fill():
    image = np.full((10, 40, 3), 200, np.uint8)
    got = Preprocess(20, 20, resize="letterbox", fill=7).pixels(image)
    rows = got[:, :, 0].mean(axis=1)
    assert rows.tolist() == [7] * 7 + [200] * 5 + [7] * 8  # 40x10 -> 20x5, 15 rows of border
    got = Preprocess(20, 20, resize="letterbox", fill=7).pixels(image.transpose(1, 0, 2))
    assert got[:, :, 0].mean(axis=0).tolist() == rows.tolist()


def test_crop_takes_the_centre():
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = 255
    assert (Preprocess(10, 10, resize="crop").pixels(image) == 255).all()
    assert (Preprocess(7, 7, resize="crop").pixels(image.transpose(1, 0, 2)) == 255).all()


@pytest.mark.parametrize("size", [(300, 400), (512, 300), (256, 256), (375, 500), (97, 101)])
def test_a_crop_of_a_shorter_side_is_the_centre_of_the_whole_image_resized(size):
    """As Keras's and Hugging Face's own: shorter side to 256, then the centre of 224; Pillow does it here."""
    image, contract = noise(*size), Preprocess(224, 192, "crop", shorter_side=256, resample="pillow-bicubic")
    short = min(size)
    height, width = (side * 256 // short for side in size)
    whole = Image.fromarray(image[..., ::-1]).resize((width, size[0]), 3).resize((width, height), 3)
    left, top = (width - 224) // 2, (height - 192) // 2
    want = np.asarray(whole.crop((left, top, left + 224, top + 192)))
    np.testing.assert_array_equal(contract.pixels(image), want)


@pytest.mark.parametrize("size", [(3, 4000), (4000, 3), (1, 1), (40, 161)])
def test_images_of_an_extreme_ratio_are_cut_before_they_are_resized(size):
    contract = Preprocess(8, 8, "crop", shorter_side=10)
    assert contract.pixels(noise(*size)).shape == (8, 8, 3)
    there = contract.geometry(*size).to_image(np.array([[0.0, 0.0, 1.0, 1.0]]))[0]
    centre = (there[:2] + there[2:]) / 2
    np.testing.assert_allclose(centre, 0.5, atol=1 / 2 / min(4, min(size)))


def test_contracts_of_before_there_were_averages_are_the_same():
    contract = Preprocess(8, 8)
    assert not {"resample", "shorter_side"} & set(contract.to_dict())
    assert Preprocess.from_dict(contract.to_dict()) == contract
    other = Preprocess(8, 8, resample="area")
    assert other.to_dict()["resample"] == "area" and other.hash != contract.hash
    assert Preprocess.from_dict(json.loads(json.dumps(other.to_dict()))) == other


@pytest.mark.parametrize("resize", ["stretch", "letterbox", "crop"])
@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1, 1)])
def test_extreme_sizes(resize, size):
    contract = Preprocess(32, 24, resize=resize)
    assert contract(noise(*size)).shape == (3, 24, 32)
    assert np.isfinite(contract.geometry(*size).to_image(np.array([[0.1, 0.1, 0.9, 0.9]]))).all()


@settings(max_examples=60, deadline=None)
@given(contracts(), sides, sides, st.floats(1e-4, 1), st.integers(-128, 127))
def test_quantized_table_equals_the_float_formula(contract, height, width, scale, zero_point):
    image = noise(height, width, seed=height)
    real = contract(image).astype(np.float64)
    want = np.clip(np.rint(real / scale) + zero_point, -128, 127)
    got = contract.quantized(image, scale, zero_point)
    assert got.dtype == np.int8 and got.shape == real.shape and got.flags.c_contiguous
    np.testing.assert_array_equal(got, want)


def test_quantized_rounds_half_to_even_and_every_level_counts():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    assert Preprocess(16, 16).quantized(image, 1 / 255, -128)[0].ravel().tolist() == list(range(-128, 128))
    # value/255 * 255 / 2: every odd level is a tie
    ties = Preprocess(16, 16, std=(1 / 255,)).quantized(image, 2.0, -64)[0].ravel()
    assert ties[:8].tolist() == [-64 + want for want in (0, 0, 1, 2, 2, 2, 3, 4)]


@settings(max_examples=150, deadline=None)
@given(contracts(), sides, sides, st.data())
def test_geometry_round_trip(contract, height, width, data):
    unit = st.floats(0, 1)
    boxes = np.array([[data.draw(unit) for _ in range(4)] for _ in range(3)])
    there = contract.geometry(height, width)
    np.testing.assert_allclose(there.to_image(there.to_input(boxes)), boxes, atol=1e-9)
    back = there.to_image(boxes)
    assert back.dtype == boxes.dtype and (back >= 0).all() and (back <= 1).all()


@pytest.mark.parametrize("resize", ["stretch", "letterbox", "crop", "shorter"])
@pytest.mark.parametrize("size", [(60, 100), (100, 60), (33, 91)])
def test_geometry_says_where_the_pixels_went(resize, size):
    """A bright rectangle is found in the input where ``to_input`` says it is."""
    height, width = size
    image = np.zeros((height, width, 3), np.uint8)
    top, bottom, left, right = int(height * 0.4), int(height * 0.6), int(width * 0.45), int(width * 0.55)
    image[top:bottom, left:right] = 255
    kind = {"resize": "crop", "shorter_side": 350} if resize == "shorter" else {"resize": resize}
    contract = Preprocess(320, 256, fill=0, **kind)
    found = contract.pixels(image)[:, :, 0] > 127
    rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
    seen = np.array([columns[0] / 320, rows[0] / 256, (columns[-1] + 1) / 320, (rows[-1] + 1) / 256])
    box = np.array([[left / width, top / height, right / width, bottom / height]])
    said = contract.geometry(height, width).to_input(box)[0]
    np.testing.assert_allclose(said, seen, atol=1.01 / 256)


def test_geometry_clips_and_takes_no_boxes():
    there = Preprocess(100, 100, resize="letterbox").geometry(50, 100)
    got = there.to_image(np.array([[0.0, 0.0, 1.0, 1.0]], np.float32))
    assert got.tolist() == [[0, 0, 1, 1]] and got.dtype == np.float32
    assert there.to_image(np.zeros((0, 4), np.float32)).shape == (0, 4)
    assert there.to_input(np.array([[0, 0, 1, 1]])).tolist() == [[0, 0.25, 1, 0.75]]


@settings(max_examples=60, deadline=None)
@given(contracts())
def test_dict_and_hash_round_trip(contract):
    again = Preprocess.from_dict(json.loads(json.dumps(contract.to_dict())))
    assert again == contract and again.hash == contract.hash and len(again.hash) == 64


def test_hash_is_pinned_and_every_field_enters():
    base = Preprocess(416, 416)
    # A change here orphans every bundle and every calibration that exists.
    assert base.hash == "b7c1401c252f0810429967e21185402e35d3fecf3cc443fb22b3bf78a0258d46"
    others = [
        Preprocess(224, 416),
        Preprocess(416, 224),
        Preprocess(416, 416, resize="crop"),
        Preprocess(416, 416, colour="bgr"),
        Preprocess(416, 416, colour="grey"),
        Preprocess(416, 416, mean=(0.1,)),
        Preprocess(416, 416, std=(0.1,)),
        Preprocess(416, 416, layout="nhwc"),
        Preprocess(416, 416, dtype="int8"),
        Preprocess(416, 416, fill=127),
        Preprocess(416, 416, resample="bicubic"),
        Preprocess(416, 416, resize="crop", shorter_side=512),
    ]
    assert len({contract.hash for contract in [base, *others]}) == len(others) + 1


def test_one_spelling_of_equal_contracts():
    grey = Preprocess(8, 8, colour="grey")
    assert (grey.channels, grey.mean, grey.std) == (1, (0.0,), (1.0,))
    assert Preprocess(8, 8, mean=(0,), std=[1, 1, 1]) == Preprocess(8, 8)  # type: ignore[arg-type]
    assert Preprocess(8, 8, mean=(0,)).hash == Preprocess(8, 8).hash


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"width": 0}, "preprocess.width"),
        ({"width": 2.5}, "preprocess.width"),
        ({"height": True}, "preprocess.height"),
        ({"height": 10**9}, "preprocess.height"),
        ({"fill": 256}, "preprocess.fill"),
        ({"resize": "squash"}, "letterbox"),
        ({"resample": "cubic"}, "'cubic' is not one of bilinear, area, bicubic, pillow-bilinear"),
        ({"shorter_side": 16}, "preprocess.shorter_side: is for resize = \"crop\", and resize is 'stretch'"),
        ({"shorter_side": 7, "resize": "crop"}, "7 is not a whole number within 8..16384"),
        ({"shorter_side": 8.5, "resize": "crop"}, "preprocess.shorter_side"),
        ({"colour": ["rgb"]}, "preprocess.colour"),
        ({"layout": None}, "nchw"),
        ({"dtype": "uint8"}, "float32, int8"),
        ({"mean": (0.1, 0.2)}, "2 values for 3 channel"),
        ({"mean": (0.1, 0.2, 0.3), "colour": "grey"}, "3 values for 1 channel"),
        ({"mean": ()}, "0 values"),
        ({"mean": "half"}, "preprocess.mean"),
        ({"mean": (float("nan"),) * 3}, "preprocess.mean"),
        ({"mean": (10**400,)}, "preprocess.mean"),
        ({"std": (1, 0, 1)}, "preprocess.std"),
        ({"std": (1, -1, 1)}, "preprocess.std"),
    ],
)
def test_bad_fields(fields, words):
    with pytest.raises(UsageError, match=words):
        Preprocess(**{"width": 8, "height": 8, **fields})
    with pytest.raises(InputError, match=words):
        Preprocess.from_dict({"width": 8, "height": 8, **fields})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([], "expected a table"),
        ({"width": 8}, "no height"),
        ({}, "no width and no height"),
        ({"width": 8, "height": 8, "color": "rgb"}, "unknown field 'color'.*colour"),
    ],
)
def test_bad_dicts(values, words):
    with pytest.raises(InputError, match=words):
        Preprocess.from_dict(values)


@pytest.mark.parametrize(
    "image",
    [
        None,
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_bad_images(image):
    with pytest.raises(InputError, match="expected an image"):
        Preprocess(8, 8)(image)


@pytest.mark.parametrize("grid", [(0.0, 0), (-1.0, 0), (float("nan"), 0), (1.0, 128), (1.0, -129)])
def test_bad_grids(grid):
    with pytest.raises(InputError, match="scale|zero point"):
        Preprocess(8, 8).quantized(noise(4, 4), *grid)


def test_bad_geometry():
    with pytest.raises(InputError, match="no area"):
        Preprocess(8, 8).geometry(0, 10)


def test_the_device_needs_numpy_and_opencv_only():
    code = (
        "import sys; import paredown.calibration.preprocess\n"
        "print(*{m.partition('.')[0] for m in sys.modules}, *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"numpy", "cv2", "paredown.targets"} <= loaded
    assert not loaded & {"paredown.pipeline", "paredown.apps"}
    assert not loaded & {"torch", "executorch", "litert_torch", "scipy"}
