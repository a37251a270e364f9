"""Calibration runs on small sets of our own making, and once on real images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.calibration.datasets import Sample, open_dataset
from paredown.calibration.preprocess import Preprocess
from paredown.calibration.run import Ranges, calibrate
from paredown.targets.errors import InputError, UsageError

pytestmark = pytest.mark.unit

SHARED = Path(__file__).parents[3] / "shared" / "data"
CONTRACT = Preprocess(8, 6)


class Images:
    """A data set in memory."""

    names = ("thing",)

    def __init__(self, *images: np.ndarray) -> None:
        self.images = images
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        self.asked.append(index)
        return Sample(f"image{index}", self.images[index], np.zeros((0, 4)), np.zeros(0, np.int64), False)

    def fingerprint(self) -> str:
        return ""


def noise(count: int, seed: int = 0) -> Images:
    rng = np.random.default_rng(seed)
    return Images(*rng.integers(0, 256, (count, 6, 8, 3), np.uint8))


def network(batch: np.ndarray) -> dict[str, np.ndarray]:
    return {"input": batch, "doubled": batch * 2 - 1, "nothing": batch * 0}


def test_minmax_ranges_are_those_of_the_pixels():
    images = noise(5)
    got = calibrate(network, images, CONTRACT)
    pixels = np.stack(images.images).astype(np.float32) / np.float32(255)
    assert got.ranges["input"] == (0.0, pytest.approx(pixels.max()))
    assert got.ranges["doubled"] == (pytest.approx(pixels.min() * 2 - 1), pytest.approx(pixels.max() * 2 - 1))
    assert got.ranges["nothing"] == (0.0, 0.0)
    assert (got.images, got.observer, got.preprocess_hash) == (5, "minmax", CONTRACT.hash)


@pytest.mark.parametrize("observer", ["minmax", "percentile", "mse"])
def test_forward_gets_a_batch_of_one_nchw_whatever_the_layout(observer):
    seen = []
    for layout in ("nchw", "nhwc"):
        contract = Preprocess(8, 6, layout=layout)  # type: ignore[arg-type]
        got = calibrate(lambda batch: seen.append(batch) or {"x": batch}, noise(2), contract, observer)
        assert got.observer == observer and 0 == got.ranges["x"][0] < got.ranges["x"][1] <= 1
    assert all(batch.shape == (1, 3, 6, 8) and batch.dtype == np.float32 for batch in seen)
    np.testing.assert_array_equal(seen[0], seen[2])


@pytest.mark.parametrize(
    ("limit", "want"),
    [(None, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 2, 4]), (1, [0]), (7, [*range(7)]), (99, [*range(7)])],
)
def test_limit_spreads_over_the_set_and_progress_counts(limit, want):
    images, steps = noise(7), []
    got = calibrate(network, images, CONTRACT, limit=limit, progress=lambda *step: steps.append(step))
    assert images.asked == want and got.images == len(want)
    assert steps == [(done + 1, len(want)) for done in range(len(want))]


def test_an_empty_set_and_wrong_options():
    with pytest.raises(InputError, match="empty"):
        calibrate(network, Images(), CONTRACT)
    with pytest.raises(UsageError, match="limit of 0"):
        calibrate(network, noise(2), CONTRACT, limit=0)
    with pytest.raises(UsageError, match="known: minmax, percentile, mse"):
        calibrate(network, Images(), CONTRACT, observer="median")
    with pytest.raises(InputError, match="no activations"):
        calibrate(lambda batch: {}, noise(2), CONTRACT)


def test_constant_images_are_refused_unless_there_are_others():
    black, grey = np.zeros((6, 8, 3), np.uint8), np.full((6, 8, 3), 99, np.uint8)
    with pytest.raises(InputError, match=r"each of the 2 calibration image\(s\) is of one colour"):
        calibrate(network, Images(black, grey), CONTRACT)
    assert calibrate(network, Images(black, *noise(1).images), CONTRACT).images == 2


def test_a_dead_input_channel_is_refused():
    images = noise(3)
    for image in images.images:
        image[:, :, 0] = 0  # blue: the last channel of rgb
    with pytest.raises(InputError, match="input channel 2 is 0 everywhere"):
        calibrate(network, images, CONTRACT)


@pytest.mark.parametrize(("bad", "word"), [(np.nan, "NaN"), (np.inf, "infinite")])
def test_activations_that_are_not_finite_are_named(bad, word):
    calls = []

    def broken(batch):
        calls.append(1)
        return {"fine": batch, "conv3": np.array([1.0, bad if len(calls) == 2 else 0.0])}

    with pytest.raises(InputError, match=rf"{word} in activation 'conv3', on image 'image1'"):
        calibrate(broken, noise(4), CONTRACT)


names = st.text(max_size=8)
ends = st.floats(0, 1e30)


@settings(deadline=None)
@given(st.dictionaries(names, st.tuples(ends.map(lambda end: -end), ends)), st.integers(1, 999))
def test_json_round_trip(pairs, images):
    ranges = Ranges(CONTRACT.hash, "mse", images, pairs)
    text = ranges.to_json()
    assert Ranges.from_json(text) == ranges
    assert Ranges(CONTRACT.hash, "mse", images, dict(reversed(pairs.items()))).to_json() == text


def test_check_refuses_another_preprocessing():
    ranges = calibrate(network, noise(2), CONTRACT)
    ranges.check(Preprocess(8, 6))
    with pytest.raises(InputError, match="another preprocessing.*calibrate again"):
        ranges.check(Preprocess(8, 6, colour="bgr"))


GOOD = Ranges("hash", "minmax", 3, {"x": (-1.0, 2.0)})


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"preprocess_hash": None},
        {"observer": 3},
        {"images": "3"},
        {"ranges": [1]},
        {"ranges": {"x": [1]}},
        {"ranges": {"x": [-1, 2, 3]}},
        {"ranges": {"x": [1, 2]}},
        {"ranges": {"x": [0, "2"]}},
        {"ranges": {"x": [0, True]}},
        {"ranges": {"x": [0, 10**400]}},
        {"ranges": {"x": [0, float("nan")]}},
        {"ranges": {"x": [float("-inf"), 0]}},
    ],
)
def test_bad_json_entries(change):
    document = {**json.loads(GOOD.to_json()), **change}
    with pytest.raises(InputError, match="ranges"):
        Ranges.from_json(json.dumps(document))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, "1" * 10_000, "\0"])
def test_text_that_is_not_ours(text):
    with pytest.raises(InputError, match="ranges"):
        Ranges.from_json(text)


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")
def test_real_images():
    images = open_dataset("folder", SHARED / "imagenet", names=["any"])
    contract = Preprocess(64, 64, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    got = {
        observer: calibrate(lambda batch: {"input": batch}, images, contract, observer, limit=32).ranges[
            "input"
        ]
        for observer in ("minmax", "percentile", "mse")
    }
    lo, hi = got["minmax"]
    assert lo == pytest.approx(-0.485 / 0.229, abs=0.1) and hi == pytest.approx((1 - 0.406) / 0.225, abs=0.1)
    for other in ("percentile", "mse"):
        assert lo * 1.001 <= got[other][0] < 0.8 * lo and 0.8 * hi < got[other][1] <= hi * 1.001
