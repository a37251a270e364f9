import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.apps.detector.darknet.darknet import builtin_cfg
from paredown.apps.detector.digits import Digits
from paredown.apps.detector.train.anchors import dataset_sizes, kmeans_anchors, mean_iou, size_iou
from paredown.calibration.datasets import Sample
from paredown.calibration.preprocess import Preprocess
from paredown.targets.errors import InputError, UsageError


def clusters(spread, seed=0):
    rng = np.random.default_rng(seed)
    centres = np.array([[1.0, 2.0], [4.0, 3.0], [9.0, 10.0]])
    sizes = centres[rng.integers(0, 3, 300)] * rng.uniform(1 - spread, 1 + spread, (300, 2))
    return centres, sizes


def test_finds_separate_clusters_by_area():
    centres, sizes = clusters(0.1)
    found = np.array(kmeans_anchors(sizes, 3))
    np.testing.assert_allclose(found, centres, rtol=0.03)


def test_size_iou_by_hand():
    got = size_iou(np.array([[2.0, 3.0]]), np.array([[1.0, 3.0], [4.0, 1.0], [2.0, 3.0]]))
    np.testing.assert_allclose(got, [[3 / 6, 2 / 8, 1]])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(1, 6))
def test_no_single_size_replaces_an_anchor_for_the_better_by_much(seed, count):
    """A brute-force oracle: swapping any anchor for any of the sizes gains next to nothing."""
    sizes = np.random.default_rng(seed).uniform(0.5, 8, (60, 2))
    anchors = kmeans_anchors(sizes, count)
    assert list(np.prod(anchors, axis=1)) == sorted(np.prod(anchors, axis=1))
    reached = mean_iou(sizes, anchors)
    swapped = [
        mean_iou(sizes, tuple(tuple(size) if k == slot else anchor for k, anchor in enumerate(anchors)))
        for slot in range(count)
        for size in sizes
    ]
    assert max(swapped) <= reached + 0.06
    assert reached >= mean_iou(sizes, kmeans_anchors(sizes, 1)) - 1e-12


def test_same_input_same_anchors_and_as_many_as_sizes_fit_exactly():
    sizes = clusters(0.3)[1]
    assert kmeans_anchors(sizes) == kmeans_anchors(sizes.copy())
    assert mean_iou(sizes[:4], kmeans_anchors(sizes[:4], 4)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("sizes", "count", "error"),
    [
        (np.ones((10, 2)), 2, InputError),
        (np.empty((0, 2)), 1, InputError),
        (np.array([[1.0, np.nan]]), 1, InputError),
        (np.array([[1.0, 0.0]]), 1, InputError),
        (np.ones((3, 3)), 1, InputError),
        (np.ones((3, 2)), 0, UsageError),
    ],
)
def test_impossible_requests(sizes, count, error):
    with pytest.raises(error):
        kmeans_anchors(sizes, count)


class TwoImages:
    names = ("thing",)

    def __len__(self):
        return 2

    def __getitem__(self, index):
        boxes = np.array([[0.5, 0.5, 0.5, 0.25]], np.float32)
        return Sample(str(index), np.zeros((100, 200, 3), np.uint8), boxes, np.zeros(1, np.int64), index == 0)

    def fingerprint(self):
        return ""


def test_sizes_are_what_the_network_sees():
    stretched = dataset_sizes(TwoImages(), Preprocess(64, 64), 16)
    np.testing.assert_allclose(stretched, [[2, 1]], rtol=1e-6)  # the unlabelled image does not count
    boxed = dataset_sizes(TwoImages(), Preprocess(64, 64, resize="letterbox"), 16)
    np.testing.assert_allclose(boxed, [[2, 0.5]], rtol=1e-6)


def test_the_shipped_anchors_are_the_training_splits():
    sizes = dataset_sizes(Digits("train", 300), Preprocess(160, 160), 16)
    shipped = builtin_cfg("yolov2-nano").region.anchors
    assert mean_iou(sizes, shipped) >= mean_iou(sizes, kmeans_anchors(sizes, 5)) - 0.01
