"""Tiles and their merged boxes: what is cut is one object again, neighbours stay two."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.apps.detector.device.boxes.decode import Detections
from paredown.apps.detector.device.flight.tiles import Tiled, Tiling, Window, merge
from paredown.targets.errors import UsageError

pytestmark = pytest.mark.unit

SIZE = (900, 1600)
TILING = Tiling(416, 0.25)


def seen(boxes: np.ndarray, window: Window, classes: np.ndarray | None = None) -> Detections:
    """What a faultless detector finds in a tile: every box of which a fifth, and 8 pixels, can be seen."""
    edge = np.array([window.left, window.top, window.right, window.bottom], float)
    low, high = boxes[:, :2].clip(edge[:2], edge[2:]), boxes[:, 2:].clip(edge[:2], edge[2:])
    visible = (high - low).prod(axis=1) >= 0.2 * (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    visible &= (high - low >= 8).all(axis=1)
    cut = (np.concatenate([low, high], axis=1) - np.tile(edge[:2], 2)) / np.tile(edge[2:] - edge[:2], 2)
    kinds = np.zeros(len(boxes), np.int64) if classes is None else classes
    scores = np.linspace(0.9, 0.6, len(boxes))
    return Detections(cut[visible].astype(np.float32), scores[visible], kinds[visible])


def through_tiles(boxes: np.ndarray, classes: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    windows = TILING.windows(*SIZE)
    found = merge([seen(boxes, window, classes) for window in windows], windows, SIZE)
    return found.boxes * np.tile([SIZE[1], SIZE[0]], 2), found.classes


@settings(deadline=None)
@given(
    height=st.integers(1, 3000), width=st.integers(1, 3000), size=st.integers(32, 1000),
    overlap=st.floats(0, 0.6),
)  # fmt: skip
def test_tiles_cover_every_pixel_and_overlap_as_asked(
    height: int, width: int, size: int, overlap: float
) -> None:
    windows = Tiling(size, overlap).windows(height, width)
    for low, high, length in (("left", "right", width), ("top", "bottom", height)):
        spans = sorted({(getattr(w, low), getattr(w, high)) for w in windows})
        assert spans[0][0] == 0
        assert spans[-1][1] == length
        assert all(b - a == min(size, length) for a, b in spans)
        assert all(one[1] - two[0] >= int(overlap * size) for one, two in zip(spans, spans[1:], strict=False))
    assert len(windows) == len(set(windows))


@pytest.mark.parametrize(("size", "overlap"), [(31, 0.2), (416, -0.1), (416, 0.95), (416, float("nan"))])
def test_tilings_that_cannot_be(size: int, overlap: float) -> None:
    with pytest.raises(UsageError):
        Tiling(size, overlap)


@pytest.mark.parametrize(
    "box",
    [
        [100, 100, 160, 130],  # in one tile alone
        [300, 100, 360, 130],  # whole in one, cut in the next
        [250, 100, 500, 130],  # longer than the overlap: cut in both
        [200, 100, 1200, 140],  # across four tiles
        [290, 230, 430, 300],  # where four tiles meet
        [1540, 880, 1600, 900],  # in the corner
    ],
)
def test_an_object_is_one_box_wherever_it_lies(box: list[float]) -> None:
    boxes, _ = through_tiles(np.array([box], float))
    assert boxes.shape == (1, 4)
    assert np.abs(boxes[0] - box).max() < 0.01


@settings(deadline=None, max_examples=40)
@given(x=st.integers(0, 1540), y=st.integers(0, 870), length=st.integers(16, 300), tall=st.booleans())
def test_any_object_is_one_box(x: int, y: int, length: int, tall: bool) -> None:
    width, height = (20, length) if tall else (length, 20)
    box = np.array([[x, y, min(x + width, 1600), min(y + height, 900)]], float)
    boxes, _ = through_tiles(box)
    assert len(boxes) == 1
    assert np.abs(boxes - box).max() <= 8.01  # an end of less than 8 pixels, which no tile reports


def test_a_row_of_parked_cars_stays_a_row() -> None:
    """25 cars bumper to bumper, through every border."""
    cars = np.array([[x, 300, x + 60, 326] for x in range(20, 1570, 62)], float)
    boxes, _ = through_tiles(cars)
    assert np.abs(boxes[np.argsort(boxes[:, 0])] - cars).max() < 0.01


def test_classes_do_not_mix() -> None:
    """A bus and a car at the same place remain both, each once."""
    pair = np.array([[300, 100, 500, 140], [300, 100, 500, 140]], float)
    boxes, classes = through_tiles(pair, np.array([0, 1]))
    assert sorted(classes.tolist()) == [0, 1]
    assert np.abs(boxes - pair).max() < 0.01


def test_nothing_is_nothing() -> None:
    windows = TILING.windows(*SIZE)
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    assert len(merge([nothing] * len(windows), windows, SIZE)) == 0


def test_a_model_that_sees_things_everywhere_does_not_fill_the_memory() -> None:
    chance, windows = np.random.default_rng(0), Tiling(900, 0.25).windows(*SIZE)
    low = chance.uniform(0, 0.95, (len(windows), 3000, 2))
    boxes = np.concatenate([low, low + 0.04], axis=2).astype(np.float32)
    scores, classes = chance.random((len(windows), 3000)), np.zeros(3000, np.int64)
    found = [Detections(*each, classes) for each in zip(boxes, scores, strict=True)]
    merged = merge(found, windows, SIZE)
    assert len(windows) * 100 < len(merged) <= len(windows) * 200
    assert merged.scores[0] == pytest.approx(scores.max())


class _Bright:
    """A detector that finds the bright rectangle of a tile, in the steps of a real one."""

    names, app = ["thing"], {"nms_iou": 0.45}

    def prepare(self, image: np.ndarray) -> np.ndarray:
        return image

    def infer(self, x: np.ndarray) -> np.ndarray:
        return np.argwhere(x[..., 0] > 0)

    def decode(self, outputs: np.ndarray, size: tuple[int, int], threshold: float) -> Detections:
        if not len(outputs):
            return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
        (top, left), (bottom, right) = outputs.min(axis=0), outputs.max(axis=0) + 1
        box = np.array([[left, top, right, bottom]]) / np.tile(size[::-1], 2)
        return Detections(box.astype(np.float32), np.array([0.9], np.float32), np.zeros(1, np.int64))


def test_a_frame_goes_through_a_detector_tile_by_tile() -> None:
    image = np.zeros((*SIZE, 3), np.uint8)
    image[200:260, 280:620] = 255
    tiled = Tiled(_Bright(), TILING)  # type: ignore[arg-type]
    found = tiled.decode(tiled.infer(tiled.prepare(image)), SIZE, 0.5)
    assert len(found) == 1
    assert np.abs(found.boxes * np.tile([1600, 900], 2) - [280, 200, 620, 260]).max() < 0.01
