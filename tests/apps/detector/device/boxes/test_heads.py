"""Heads that are no darknet's: decoded as plain loops do it, encoded and decoded again, told by a network."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.apps.detector.device.boxes.decode import YoloHead, YoloHeads, decode, decoder_of, detect
from paredown.apps.detector.device.boxes.heads import Heads, from_dict, heads_of, separated
from paredown.targets.errors import InputError

pytestmark = pytest.mark.unit

SIZE = (64, 48)
SAID = {
    "v5": {"kind": "v5", "strides": [8, 16], "anchors": [[[10, 13], [16, 30]], [[33, 23]]]},
    "v8": {"kind": "v8", "strides": [8, 16], "bins": 5},
    "v8-plain": {"kind": "v8", "strides": [8, 16], "bins": 1},
    "yolox": {"kind": "yolox", "strides": [8, 16]},
    "ssd": {"kind": "ssd", "sizes": [[12, 20], [30]], "ratios": [[2], [2, 3]]},
    "ssd-strides": {"kind": "ssd", "sizes": [[12, 20]], "ratios": [[2]], "strides": [10]},
}
CLASSES = 3


def heads_named(name: str) -> Heads:
    return heads_of(SAID[name], SIZE)


def random_outputs(heads: Heads, seed: int, spread: float = 1.5) -> list[np.ndarray]:
    """The parts of all levels, channels first."""
    random = np.random.default_rng(seed)
    found = []
    for level in range(heads.levels):
        stride = heads.strides[level] if heads.strides else (8, 16)[level]
        rows, columns = -(-SIZE[1] // stride), -(-SIZE[0] // stride)
        boxes, sizes = heads.layout(level)
        for channels in (*sizes, CLASSES + (heads.kind == "ssd")):
            values = random.standard_normal((boxes * channels, rows, columns)) * spread
            found.append(values.astype(np.float32))
    return found


def merged(parts: list[np.ndarray], heads: Heads) -> list[np.ndarray]:
    """One output per level, as an unsplit convolution has it: all of the first box, then the next."""
    found, count = [], len(heads.parts)
    for level in range(heads.levels):
        boxes, sizes = heads.layout(level)
        own = parts[count * level : count * level + count]
        channels = [*sizes, CLASSES]
        rows = [
            part[box * n : box * n + n] for box in range(boxes) for part, n in zip(own, channels, strict=True)
        ]
        found.append(np.concatenate(rows))
    return found


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softmax(values) -> list[float]:
    exponents = [math.exp(v - max(values)) for v in values]
    return [e / sum(exponents) for e in exponents]


def place(name: str, level: int, box: int, row: int, column: int, parts) -> tuple[list[float], list[float]]:
    """Corners in pixels and the classes' scores of one box, from the published formulas, one at a time."""
    said, at = SAID[name], (row, column)
    kind = said["kind"]
    if kind == "v5":
        (xy, wh, obj, cls), stride = parts, said["strides"][level]
        anchor = said["anchors"][level][box]
        x = (sigmoid(xy[(2 * box, *at)]) * 2 - 0.5 + column) * stride
        y = (sigmoid(xy[(2 * box + 1, *at)]) * 2 - 0.5 + row) * stride
        w, h = ((sigmoid(wh[(2 * box + i, *at)]) * 2) ** 2 * anchor[i] for i in (0, 1))
        scores = [sigmoid(obj[(box, *at)]) * sigmoid(cls[(box * CLASSES + c, *at)]) for c in range(CLASSES)]
    elif kind == "v8":
        (sides, cls), stride, bins = parts, said["strides"][level], said["bins"]
        far = []
        for side in range(4):
            own = [float(sides[(side * bins + b, *at)]) for b in range(bins)]
            far.append(own[0] if bins == 1 else sum(b * p for b, p in enumerate(softmax(own))))
        x, y = column + 0.5, row + 0.5
        corners = [v * stride for v in (x - far[0], y - far[1], x + far[2], y + far[3])]
        return corners, [sigmoid(cls[(c, *at)]) for c in range(CLASSES)]
    elif kind == "yolox":
        (box_, obj, cls), stride = parts, said["strides"][level]
        x, y = (box_[(0, *at)] + column) * stride, (box_[(1, *at)] + row) * stride
        w, h = math.exp(box_[(2, *at)]) * stride, math.exp(box_[(3, *at)]) * stride
        scores = [sigmoid(obj[(0, *at)]) * sigmoid(cls[(c, *at)]) for c in range(CLASSES)]
    else:
        loc, conf = parts
        least, *most = said["sizes"][level]
        priors = [(least, least)] + [(math.sqrt(least * m),) * 2 for m in most]
        for ratio in said["ratios"][level]:
            root = math.sqrt(ratio)
            priors += [(least * root, least / root), (least / root, least * root)]
        rows, columns = conf.shape[1:]
        stride = said["strides"][level] if "strides" in said else None
        cx = (column + 0.5) * (stride or SIZE[0] / columns)
        cy = (row + 0.5) * (stride or SIZE[1] / rows)
        dx, dy, dw, dh = (float(loc[(4 * box + i, *at)]) for i in range(4))
        x, y = cx + 0.1 * dx * priors[box][0], cy + 0.1 * dy * priors[box][1]
        w, h = priors[box][0] * math.exp(0.2 * dw), priors[box][1] * math.exp(0.2 * dh)
        every = CLASSES + 1
        scores = softmax([float(conf[(every * box + c, *at)]) for c in range(every)])[1:]
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2], scores


def decode_loop(name: str, outputs: list[np.ndarray], threshold: float):
    heads = heads_named(name)
    count, found = len(heads.parts), []
    for level in range(heads.levels):
        parts = outputs[count * level : count * level + count]
        rows, columns = parts[-1].shape[1:]
        for box in range(heads.layout(level)[0]):
            for row in range(rows):
                for column in range(columns):
                    corners, scores = place(name, level, box, row, column, parts)
                    for category, score in enumerate(scores):
                        if score > threshold:
                            found.append(([v / SIZE[i % 2] for i, v in enumerate(corners)], score, category))
    return found


@pytest.mark.parametrize("name", sorted(SAID))
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5])
def test_decoding_is_the_published_formula(name: str, threshold: float) -> None:
    heads = heads_named(name)
    outputs = random_outputs(heads, seed=len(name))
    expected = decode_loop(name, outputs, threshold)
    assert expected
    boxes, scores, classes = decode(outputs, heads.decoder, threshold)
    np.testing.assert_allclose(scores, [score for _, score, _ in expected], rtol=2e-5)
    np.testing.assert_allclose(boxes, [box for box, _, _ in expected], rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(classes, [category for _, _, category in expected])


def test_v5_is_a_setting_of_yolo_heads() -> None:
    first, second = (
        YoloHead(((10.0, 13.0), (16.0, 30.0)), 2.0, True), YoloHead(((33.0, 23.0),), 2.0, True)
    )  # fmt: skip
    assert heads_named("v5").decoder == YoloHeads((first, second), SIZE)


@pytest.mark.parametrize("name", ["v5", "v8", "v8-plain", "yolox"])
def test_one_output_per_level_is_its_parts(name: str) -> None:
    heads = heads_named(name)
    parts = random_outputs(heads, seed=1)
    apart = separated(merged(parts, heads), heads)
    for one, other in zip(apart, parts, strict=True):
        np.testing.assert_array_equal(one, other)
    batch = separated([output[None] for output in merged(parts, heads)], heads)
    assert [part.shape for part in batch] == [(1, *part.shape) for part in parts]
    for one, other in zip(
        decode(merged(parts, heads), heads.decoder, 0.1), decode(parts, heads.decoder, 0.1), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def encode(name: str, corners: list[float], category: int) -> list[np.ndarray]:
    """Outputs of which one box says this, by the formulas solved for the logits; all others say nothing."""
    heads, said = heads_named(name), SAID[name]
    outputs = random_outputs(heads, 0, spread=0.0)
    count, low = len(heads.parts), -20.0
    for level in range(heads.levels):
        parts = outputs[count * level : count * level + count]
        if heads.kind == "ssd":
            parts[1][:: CLASSES + 1] = 20
        else:
            parts[-1][:] = low
    x, y = (corners[0] + corners[2]) / 2, (corners[1] + corners[3]) / 2
    w, h = corners[2] - corners[0], corners[3] - corners[1]
    parts = outputs[:count]
    rows, columns = parts[-1].shape[1:]
    stride = heads.strides[0] if heads.strides else SIZE[0] / columns
    column, row = min(int(x / stride), columns - 1), min(int(y / stride), rows - 1)
    at = (row, column)
    if name == "v5":
        xy, wh, obj, cls = parts
        for i, (value, cell) in enumerate(((x, column), (y, row))):
            offset = (value / stride - cell + 0.5) / 2
            xy[(i, *at)] = math.log(offset / (1 - offset))
        for i, side in enumerate((w, h)):
            root = math.sqrt(side / said["anchors"][0][0][i]) / 2
            wh[(i, *at)] = math.log(root / (1 - root))
        obj[(0, *at)] = cls[(category, *at)] = 20
        return outputs
    if heads.kind == "v8":
        sides, cls = parts
        cx, cy = (column + 0.5) * stride, (row + 0.5) * stride
        for side, far in enumerate((cx - corners[0], cy - corners[1], corners[2] - cx, corners[3] - cy)):
            if heads.bins == 1:
                sides[(side, *at)] = far / stride
                continue
            left = min(int(far / stride), heads.bins - 2)
            share = min(max(far / stride - left, 1e-6), 1 - 1e-6)
            own = np.full(heads.bins, -40.0)
            own[left], own[left + 1] = math.log(1 - share), math.log(share)
            sides[side * heads.bins : (side + 1) * heads.bins, row, column] = own
        cls[(category, *at)] = 20
    elif heads.kind == "yolox":
        box, obj, cls = parts
        box[:, row, column] = (
            x / stride - column,
            y / stride - row,
            math.log(w / stride),
            math.log(h / stride),
        )
        obj[(0, *at)] = cls[(category, *at)] = 20
    else:
        loc, conf = parts
        prior = heads.priors[0][0]
        cx, cy = (
            (column + 0.5) * stride,
            (row + 0.5) * (heads.strides[0] if heads.strides else SIZE[1] / rows),
        )
        loc[:4, row, column] = (
            (x - cx) / prior[0] / 0.1, (y - cy) / prior[1] / 0.1,
            math.log(w / prior[0]) / 0.2, math.log(h / prior[1]) / 0.2,
        )  # fmt: skip
        conf[: CLASSES + 1, row, column] = -20
        conf[(1 + category, *at)] = 20
    return outputs


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(SAID)), x=st.floats(14, 50), y=st.floats(14, 34), w=st.floats(10, 26),
    h=st.floats(10, 26), category=st.integers(0, CLASSES - 1),
)  # fmt: skip
def test_what_is_encoded_is_decoded(name: str, x: float, y: float, w: float, h: float, category: int) -> None:
    corners = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
    found = detect(encode(name, corners, category), heads_named(name).decoder, 0.5)
    assert found.classes.tolist() == [category] and found.scores[0] > 0.999
    np.testing.assert_allclose(found.boxes[0] * [*SIZE, *SIZE], corners, atol=2e-3)


@pytest.mark.parametrize("name", sorted(SAID))
def test_nan_is_nothing_and_huge_values_are_finite(name: str) -> None:
    heads = heads_named(name)
    nothing = [np.full_like(part, np.nan) for part in random_outputs(heads, 0)]
    assert len(detect(nothing, heads.decoder, 0.005)) == 0
    with np.errstate(over="raise", invalid="raise"):
        found = detect([np.full_like(part, 1e4) for part in nothing], heads.decoder, 0.1)
    assert np.isfinite(found.boxes).all() and len(found)


@pytest.mark.parametrize("name", sorted(SAID))
def test_outputs_that_do_not_fit_are_named(name: str) -> None:
    heads = heads_named(name)
    outputs = random_outputs(heads, 0)
    with pytest.raises(ValueError, match="outputs do not fit|channels do not fit"):
        decode(outputs[:1] if len(outputs) > 3 else outputs * 2, heads.decoder, 0.5)
    wrong = [outputs[0][:-1], *outputs[1:]]
    with pytest.raises(ValueError, match="do not fit"):
        decode(wrong, heads.decoder, 0.5)


@pytest.mark.parametrize("name", sorted(SAID))
def test_a_bundle_holds_all_of_it(name: str) -> None:
    heads = heads_named(name)
    assert from_dict(json.loads(json.dumps(heads.to_dict()))) == heads
    key = "yolo" if name == "v5" else "heads"
    facts = json.loads(json.dumps({key: heads.decoder.to_dict()}))
    assert decoder_of(facts) == heads.decoder
    facts[key]["version"] = 2
    with pytest.raises(InputError, match="heads in version 2, known is 1; update paredown"):
        decoder_of(facts)


@pytest.mark.parametrize("name", sorted(SAID))
def test_shapes_are_compared_with_what_is_expected(name: str) -> None:
    heads = heads_named(name)
    parts = random_outputs(heads, 0)
    shapes = [(1, *part.shape) for part in parts]
    heads.check(shapes, CLASSES)
    assert heads.names(len(shapes)) == tuple(
        f"{part}{level + 1}" for level in range(heads.levels) for part in heads.parts
    )
    if heads.kind != "ssd":
        heads.check([(1, *part.shape) for part in merged(parts, heads)], CLASSES)
        assert heads.names(2) == ("level1", "level2")
    with pytest.raises(InputError, match=rf"output {len(heads.parts)} \(cls of level 1\) is .* expect \(1, "):
        heads.check(shapes, CLASSES + 1)
    with pytest.raises(InputError, match=rf"{len(shapes) + 3} outputs; {heads.kind} heads of .* levels have"):
        heads.check([*shapes, *shapes[:3]] if len(shapes) > 3 else shapes * 2 + shapes[:1], CLASSES)
    other = [(1, shapes[0][1] + 1, *shapes[0][2:]), *shapes[1:]]
    with pytest.raises(InputError, match=r"output 1 \((box|xy) of level 1\)"):
        heads.check(other, CLASSES)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (5, "a int is not known; known kinds: ssd, v5, v8, yolox"),
        ({"kind": "v9"}, "kind 'v9' is not known"),
        ({"kind": "v8"}, "kind 'v8' needs 'strides'"),
        (
            {"kind": "v8", "strides": [8], "anchors": []},
            "kind 'v8' has no 'anchors'; it has 'bins', 'strides'",
        ),
        ({"kind": "v8", "strides": []}, "strides are empty"),
        ({"kind": "v8", "strides": 8}, "strides = 8 is no list"),
        ({"kind": "v8", "strides": [0]}, "strides have 0, which is no number above 0"),
        ({"kind": "v8", "strides": [2.5]}, "strides have 2.5, which is no whole number"),
        ({"kind": "v8", "strides": [32]}, "an input of 64x48 is no multiple of the stride 32"),
        ({"kind": "v8", "strides": [8], "bins": 1000}, "bins = 1000 are more than 256"),
        ({"kind": "v5", "strides": [8], "anchors": [[[1, 2]], [[3, 4]]]}, "1 strides for 2 levels"),
        ({"kind": "v5", "strides": [8], "anchors": [[[1, 2, 3]]]}, "no pairs of width and height"),
        ({"kind": "v5", "strides": [8], "anchors": [[]]}, "a level without boxes"),
        ({"kind": "v5", "strides": [8], "anchors": [[[1, -2]]]}, "anchors have -2"),
        ({"kind": "ssd", "sizes": [[8]], "ratios": []}, "1 sizes and 0 ratios; give one per level"),
        ({"kind": "ssd", "sizes": [[1, 2, 3]], "ratios": [[]]}, "sizes of 3 values"),
        ({"kind": "ssd", "sizes": [[]], "ratios": [[]]}, "sizes of 0 values"),
        ({"kind": "ssd", "sizes": [[8]], "ratios": [[2]], "variances": [0.1]}, "1 variances"),
        ({"kind": "ssd", "sizes": [[8]], "ratios": [[2]], "strides": [8, 16]}, "2 strides for 1 levels"),
    ],
)
def test_what_a_network_says_is_checked(said: object, expected: str) -> None:
    with pytest.raises(InputError, match=expected) as raised:
        heads_of(said, SIZE)
    assert "\n" not in str(raised.value)


def test_prior_boxes_are_clipped_where_it_is_said() -> None:
    said = {"kind": "ssd", "sizes": [[40, 90]], "ratios": [[4]]}
    assert heads_of(said, SIZE).priors == (((40, 40), (60, 60), (80, 20), (20, 80)),)
    assert heads_of({**said, "clip": True}, SIZE).priors == (((40, 40), (60, 48), (64, 20), (20, 48)),)
