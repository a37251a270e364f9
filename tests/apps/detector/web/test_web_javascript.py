"""The page's JavaScript against Python's preprocessing and decoding: the same bits, the same boxes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from web_node import Node, picture

from paredown.apps.detector.device.boxes.decode import YoloHead, YoloHeads, detect
from paredown.apps.detector.device.boxes.heads import Heads, heads_of
from paredown.calibration.preprocess import RESAMPLES, Preprocess

ANCHORS = [[1.0, 1.5], [3.0, 2.0]]
sides = st.integers(1, 90)
means = st.floats(-1, 2, width=32)


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    process = Node()
    yield process
    process.close()


@st.composite
def contracts(draw: st.DrawFn) -> Preprocess:
    colour = draw(st.sampled_from(["rgb", "bgr", "grey"]))
    count = 1 if colour == "grey" else 3
    width, height = draw(sides), draw(sides)
    placing = {"resize": draw(st.sampled_from(["stretch", "letterbox", "crop"]))}
    if placing["resize"] == "crop" and draw(st.booleans()):
        placing["shorter_side"] = max(width, height) + draw(st.integers(0, 20))
    return Preprocess(
        width,
        height,
        colour=colour,
        mean=tuple(draw(means) for _ in range(count)),
        std=tuple(draw(st.floats(0.01, 4)) for _ in range(count)),
        layout=draw(st.sampled_from(["nchw", "nhwc"])),
        fill=draw(st.integers(0, 255)),
        resample=draw(st.sampled_from(RESAMPLES)),
        **placing,
    )


@st.composite
def images(draw: st.DrawFn) -> np.ndarray:
    """Noise, smooth ramps and flat fields, of any small size or exactly twice another."""
    height, width, seed = draw(sides), draw(sides), draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    kind = draw(st.sampled_from(["noise", "ramp", "flat"]))
    if kind == "flat":
        return np.full((height, width, 3), generator.integers(0, 256, 3), np.uint8)
    if kind == "ramp":
        ramp = np.add.outer(np.arange(height), np.arange(width))[..., None] * generator.integers(1, 9, 3)
        return (ramp % 256).astype(np.uint8)
    return generator.integers(0, 256, (height, width, 3), dtype=np.uint8)


@settings(max_examples=150, deadline=None)
@given(contract=contracts(), image=images())
def test_inputs_are_pythons_bit_for_bit(node: Node, contract: Preprocess, image: np.ndarray) -> None:
    fields, frame = contract.to_dict(), picture(image)
    values = node("preprocess.js", "table", fields)
    found = node("preprocess.js", "preprocess", fields, frame, values)
    np.testing.assert_array_equal(found, contract(image).ravel())


@pytest.mark.parametrize("resample", RESAMPLES)
@pytest.mark.parametrize("resize", ["stretch", "letterbox", "crop", "shorter"])
@pytest.mark.parametrize(
    "height, width",
    [
        (480, 640), (320, 320), (160, 160), (160, 320), (80, 80),
        *(pytest.param(*size, marks=pytest.mark.slow) for size in ((720, 1280), (1280, 720))),
    ],
)  # fmt: skip
def test_frames_of_cameras_are_resized_as_python_does(
    node: Node, resample: str, resize: str, height: int, width: int
) -> None:
    kind = {"resize": "crop", "shorter_side": 182} if resize == "shorter" else {"resize": resize}
    contract = Preprocess(160, 160, resample=resample, **kind)
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    found = node("preprocess.js", "pixels", contract.to_dict(), picture(image))
    np.testing.assert_array_equal(found, contract.pixels(image).ravel())


@settings(max_examples=40, deadline=None)
@given(contract=contracts(), scale=st.floats(2**-10, 0.125, width=32), zero=st.integers(-128, 127))
def test_an_integer_network_gets_the_values_of_pythons_codes(
    node: Node, contract: Preprocess, scale: float, zero: int
) -> None:
    """What the program's own float32 quantization makes of the inputs is what Python's makes in float64."""
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    whole = Preprocess(
        **{
            **contract.to_dict(),
            "width": 16,
            "height": 16,
            "layout": "nchw",
            "resize": "stretch",
            "shorter_side": None,
        }
    )
    affine = {"scale": scale, "zero_point": zero}
    values = node("preprocess.js", "table", whole.to_dict(), affine)
    codes = np.clip(np.rint(values * np.float32(1 / scale)) + zero, -128, 127).astype(np.int8)
    np.testing.assert_array_equal(codes, whole.quantized(levels, scale, zero).ravel())


@settings(max_examples=80, deadline=None)
@given(contract=contracts(), height=sides, width=sides, data=st.data())
def test_boxes_go_back_to_the_image_as_pythons(
    node: Node, contract: Preprocess, height: int, width: int, data: st.DataObject
) -> None:
    box = [data.draw(st.floats(-0.5, 1.5)) for _ in range(4)]
    place = node("preprocess.js", "geometry", contract.to_dict(), width, height)
    found = node("preprocess.js", "toImage", box, place)
    expected = contract.geometry(height, width).to_image(np.array([box]))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def outputs_of(seed: int, rows: int, columns: int, classes: int, spread: float) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    shapes = [(n, rows, columns) for n in (4, 4, 2, 2 * classes)]
    xy, wh, obj, cls = (spread * generator.standard_normal(shape) for shape in shapes)
    return [output.astype(np.float32) for output in (xy, wh.clip(-4, 4), obj, cls)]


def as_nhwc(outputs: list[np.ndarray]) -> list[dict]:
    turned = [np.ascontiguousarray(output.transpose(1, 2, 0)) for output in outputs]
    return [{"data": output, "shape": list(output.shape)} for output in turned]


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 7), columns=st.integers(1, 7),
    classes=st.integers(1, 5), spread=st.sampled_from([0.5, 2.0, 6.0]),
    threshold=st.sampled_from([0.005, 0.1, 0.5]),
)  # fmt: skip
def test_boxes_are_pythons(
    node: Node, seed: int, rows: int, columns: int, classes: int, spread: float, threshold: float
) -> None:
    outputs = outputs_of(seed, rows, columns, classes, spread)
    expected = detect(outputs, ANCHORS, threshold, 0.45)
    found = node("decode.js", "detect", as_nhwc(outputs), ANCHORS, threshold, 0.45)
    assert [each["category"] for each in found] == expected.classes.tolist()
    np.testing.assert_allclose([each["score"] for each in found], expected.scores, rtol=1e-5)
    boxes = np.array([each["box"] for each in found]).reshape(-1, 4)
    np.testing.assert_allclose(boxes, expected.boxes, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("most, kept", [(0.5, 2), (0.499, 1)])
def test_a_box_at_exactly_the_threshold_stays_as_in_python(node: Node, most: float, kept: int) -> None:
    outputs = [np.zeros((count, 1, 1), np.float32) for count in (4, 4, 2, 2)]
    anchors = [[1.0, 1.0], [1.0, 0.5]]  # one cell, and its half: an IoU of exactly .5
    assert len(node("decode.js", "detect", as_nhwc(outputs), anchors, 0.1, most)) == kept
    assert len(detect(outputs, anchors, 0.1, most)) == kept


def test_nan_is_nothing_and_wrong_shapes_are_named(node: Node) -> None:
    outputs = [np.full((n, 2, 2), np.nan, np.float32) for n in (4, 4, 2, 6)]
    assert node("decode.js", "detect", as_nhwc(outputs), ANCHORS, 0.5, 0.45) == []
    with pytest.raises(ValueError, match=r"\(2, 2, 2\).* do not fit 1 anchors"):
        node("decode.js", "detect", as_nhwc(outputs), ANCHORS[:1], 0.5, 0.45)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), classes=st.integers(1, 5), spread=st.sampled_from([0.5, 2.0]),
    threshold=st.sampled_from([0.05, 0.1, 0.5]), beta=st.sampled_from([None, 0.6, 1.5]),
)  # fmt: skip
def test_boxes_of_several_heads_are_pythons(
    node: Node, seed: int, classes: int, spread: float, threshold: float, beta: float | None
) -> None:
    heads = (
        YoloHead(((30.0, 20.0), (50.0, 90.0)), 1.05),
        YoloHead(((8.0, 12.0),), 2.0, new_coords=True),
    )
    decoder = YoloHeads(heads, (96, 64), beta)
    generator = np.random.default_rng(seed)
    shapes = [
        (n, *grid)
        for head, grid in zip(heads, ((2, 3), (4, 6)), strict=True)
        for a in [len(head.anchors)]
        for n in (2 * a, 2 * a, a, a * classes)
    ]
    outputs = [(spread * generator.standard_normal(shape)).astype(np.float32) for shape in shapes]
    expected = detect(outputs, decoder, threshold, 0.45)
    found = node("decode.js", "detect", as_nhwc(outputs), decoder.to_dict(), threshold, 0.45)
    assert [each["category"] for each in found] == expected.classes.tolist()
    np.testing.assert_allclose([each["score"] for each in found], expected.scores, rtol=1e-5)
    boxes = np.array([each["box"] for each in found]).reshape(-1, 4)
    np.testing.assert_allclose(boxes, expected.boxes, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="4 outputs do not fit 2 heads, each of 4"):
        node("decode.js", "detect", as_nhwc(outputs[:4]), decoder.to_dict(), threshold, 0.45)


FREE = (
    {"kind": "v5", "strides": [8, 16], "anchors": [[[10, 13], [16, 30]], [[33, 23]]]},
    {"kind": "v8", "strides": [8, 16], "bins": 5},
    {"kind": "v8", "strides": [8, 16], "bins": 1},
    {"kind": "yolox", "strides": [8, 16]},
    {"kind": "ssd", "sizes": [[12, 20], [30]], "ratios": [[2], [2, 3]]},
    {"kind": "ssd", "sizes": [[12, 20], [30]], "ratios": [[2], []], "strides": [9, 18]},
)


def outputs_of_heads(heads: Heads, seed: int, classes: int, spread: float, whole: bool) -> list[np.ndarray]:
    generator, found = np.random.default_rng(seed), []
    for level in range(heads.levels):
        stride = (heads.strides or (8, 16))[level]
        boxes, sizes = heads.layout(level)
        channels = [boxes * n for n in (*sizes, classes + (heads.kind == "ssd"))]
        for count in [sum(channels)] if whole else channels:
            shape = (count, -(-48 // stride), -(-64 // stride))
            found.append((spread * generator.standard_normal(shape)).astype(np.float32))
    return found


@pytest.mark.parametrize("said", FREE, ids=lambda said: f"{said['kind']}-{len(said)}-{said.get('bins')}")
@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), classes=st.integers(1, 4), spread=st.sampled_from([0.5, 2.0]),
    threshold=st.sampled_from([0.05, 0.3, 0.5]), whole=st.booleans(),
)  # fmt: skip
def test_boxes_of_other_heads_are_pythons(
    node: Node, said: dict, seed: int, classes: int, spread: float, threshold: float, whole: bool
) -> None:
    heads = heads_of(said, (64, 48))
    outputs = outputs_of_heads(heads, seed, classes, spread, whole and heads.kind != "ssd")
    expected = detect(outputs, heads.decoder, threshold, 0.45)
    found = node("decode.js", "detect", as_nhwc(outputs), heads.decoder.to_dict(), threshold, 0.45)
    assert [each["category"] for each in found] == expected.classes.tolist()
    np.testing.assert_allclose([each["score"] for each in found], expected.scores, rtol=1e-5)
    boxes = np.array([each["box"] for each in found]).reshape(-1, 4)
    np.testing.assert_allclose(boxes, expected.boxes, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("said", FREE[1:5], ids=lambda said: f"{said['kind']}-{said.get('bins')}")
def test_outputs_of_other_heads_that_do_not_fit_are_named(node: Node, said: dict) -> None:
    heads = heads_of(said, (64, 48))
    outputs = outputs_of_heads(heads, 0, 2, 1.0, whole=False)
    with pytest.raises(ValueError, match="outputs do not fit 2 heads"):
        node("decode.js", "detect", as_nhwc(outputs * 2), heads.to_dict(), 0.5, 0.45)
    with pytest.raises(ValueError, match=r"of shapes .* do not fit level 1"):
        node("decode.js", "detect", as_nhwc([outputs[0][:-1], *outputs[1:]]), heads.to_dict(), 0.5, 0.45)
