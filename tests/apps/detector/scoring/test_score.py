"""score.py: cases by hand, a port of the VOC devkit's loop, pycocotools, and the table of shared/data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.apps.detector.device.boxes.decode import Detections, detect
from paredown.apps.detector.network import YoloV2
from paredown.apps.detector.scoring.score import (
    average_precision,
    class_average_precisions,
    coco_map,
    map50,
    map50_interval,
    score_detections,
)
from paredown.apps.detector.weights import load_checkpoint
from paredown.calibration.datasets import open_dataset, read_names
from paredown.calibration.preprocess import Preprocess
from paredown.targets.errors import InputError

SHARED = Path(__file__).parents[5] / "shared" / "data"
needs_shared = pytest.mark.skipif(not (SHARED / "coco").is_dir(), reason="../shared/data is absent")


@dataclass(frozen=True)
class Truth:
    boxes: np.ndarray
    classes: np.ndarray
    labelled: bool = True


def truth(*rows: tuple[int, float, float, float, float], labelled: bool = True) -> Truth:
    """Rows of class, x1, y1, x2, y2."""
    table = np.array([r[1:] for r in rows], np.float64).reshape(-1, 4)
    boxes = np.concatenate([(table[:, :2] + table[:, 2:]) / 2, table[:, 2:] - table[:, :2]], axis=1)
    return Truth(boxes.astype(np.float32), np.array([r[0] for r in rows], np.int64), labelled)


def found(*rows: tuple[int, float, float, float, float, float]) -> Detections:
    """Rows of class, score, x1, y1, x2, y2."""
    return Detections(
        np.array([r[2:] for r in rows], np.float32).reshape(-1, 4),
        np.array([r[1] for r in rows], np.float32),
        np.array([r[0] for r in rows], np.int64),
    )


LEFT, RIGHT = (0.1, 0.1, 0.4, 0.5), (0.6, 0.2, 0.9, 0.8)


def test_average_precision_by_hand():
    # right, wrong, right of 4 labelled: precision 1, 1/2, 2/3; envelope 1, 2/3, 2/3; recall 1/4, 1/4, 2/4
    assert average_precision(np.array([True, False, True]), 4) == pytest.approx(0.25 * 1 + 0.25 * 2 / 3)
    assert average_precision(np.array([False, True]), 1) == 0.5
    assert average_precision(np.array([], dtype=bool), 3) == 0.0
    assert average_precision(np.array([False]), 3) == 0.0


def test_perfect_detections_score_one():
    labels = [truth((0, *LEFT), (1, *RIGHT)), truth(), truth((0, *RIGHT))]
    seen = [found((0, 0.9, *LEFT), (1, 0.2, *RIGHT)), found(), found((0, 0.1, *RIGHT))]
    assert score_detections(seen, labels) == {"map50": 1.0, "map": pytest.approx(1.0)}


def test_a_box_is_claimed_once_and_by_the_best_score():
    labels = [truth((0, *LEFT))]
    assert map50([found((0, 0.9, *LEFT), (0, 0.8, *LEFT))], labels) == 1.0
    assert map50([found((0, 0.7, *LEFT), (0, 0.8, *RIGHT))], labels) == 0.5


def test_a_detection_claims_only_the_box_it_overlaps_most():
    """VOC's rule: the second detection overlaps two boxes, its best one is taken, so it is wrong."""
    a, b = (0.0, 0.0, 0.4, 0.4), (0.0, 0.1, 0.4, 0.5)
    near_a = (0.0, 0.02, 0.4, 0.42)
    labels = [truth((0, *a), (0, *b))]
    assert map50([found((0, 0.9, *a), (0, 0.8, *near_a))], labels) == 0.5


def test_classes_that_do_not_occur_do_not_count():
    labels = [truth((3, *LEFT))]
    seen = [found((3, 0.5, *LEFT), (1, 0.99, *RIGHT))]
    assert class_average_precisions(seen, labels) == {3: 1.0}
    assert map50(seen, labels) == 1.0 and coco_map(seen, labels) == pytest.approx(1.0)


def test_images_that_nobody_labelled_are_left_out():
    labels = [truth((0, *LEFT)), truth(labelled=False)]
    assert map50([found((0, 0.5, *LEFT)), found((0, 0.9, *RIGHT))], labels) == 1.0
    labels[1] = truth()  # labelled as empty: now the detection is wrong
    assert map50([found((0, 0.5, *LEFT)), found((0, 0.9, *RIGHT))], labels) == 0.5


def test_iou_of_exactly_one_half_counts():
    labels = [truth((0, 0.0, 0.0, 0.5, 0.5))]
    assert map50([found((0, 0.9, 0.0, 0.0, 0.5, 0.25))], labels) == 1.0
    assert map50([found((0, 0.9, 0.0, 0.0, 0.5, 0.24))], labels) == 0.0


def test_nothing_found_scores_zero():
    labels = [truth((0, *LEFT))]
    assert score_detections([found()], labels) == {"map50": 0.0, "map": 0.0}


def test_no_labels_at_all_is_an_input_error():
    for labels in ([truth()], [truth(labelled=False)]):
        with pytest.raises(InputError, match="no labelled boxes"):
            score_detections([found((0, 0.5, *LEFT))], labels)
    with pytest.raises(InputError, match="no labelled boxes"):
        map50([], [])
    with pytest.raises(ValueError, match="detections of 1 images, labels of 2"):
        map50([found()], [truth(), truth((0, *LEFT))])


def overlap(a, b) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h)


def devkit(seen, labels, category: int) -> float | None:
    """The VOC devkit's VOCevaldet.m (2010 on), line by line."""
    gt = []
    for label in labels:
        corners = [
            (x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in label.boxes.astype(np.float64)
        ]
        gt.append([[box, False] for box, c in zip(corners, label.classes, strict=True) if c == category])
    count = sum(len(boxes) for boxes in gt)
    if not count:
        return None
    rows = [
        (float(s), i, b)
        for i, d in enumerate(seen)
        for b, s, c in zip(d.boxes.astype(np.float64), d.scores, d.classes, strict=True)
        if c == category
    ]
    rows.sort(key=lambda row: -row[0])
    tp, precision, recall = 0, [], []
    for n, (_, image, box) in enumerate(rows, start=1):
        best, claimed = -1.0, None
        for candidate in gt[image]:
            o = overlap(box, candidate[0])
            if o > best:
                best, claimed = o, candidate
        if best >= 0.5 and not claimed[1]:
            claimed[1] = True
            tp += 1
        precision.append(tp / n)
        recall.append(tp / count)
    mrec, mpre = [0, *recall, 1], [0, *precision, 0]
    for i in range(len(mpre) - 2, -1, -1):
        mpre[i] = max(mpre[i], mpre[i + 1])
    return sum((mrec[i] - mrec[i - 1]) * mpre[i] for i in range(1, len(mrec)) if mrec[i] != mrec[i - 1])


grid = st.integers(0, 5).map(lambda v: v / 8)
side = st.integers(1, 3).map(lambda v: v / 8)
box = st.tuples(grid, grid, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
labelled = st.lists(st.tuples(st.integers(0, 2), box).map(lambda t: (t[0], *t[1])), max_size=5)
seen_in = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 5), box).map(lambda t: (t[0], t[1] / 8, *t[2])), max_size=8
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(labelled, seen_in), min_size=1, max_size=4))
def test_equal_to_the_voc_devkit(images):
    labels, seen = [truth(*gt) for gt, _ in images], [found(*dt) for _, dt in images]
    expected = {c: ap for c in range(3) if (ap := devkit(seen, labels, c)) is not None}
    if not expected:
        return
    result = class_average_precisions(seen, labels)
    assert result == pytest.approx(expected)
    assert map50(seen, labels) == pytest.approx(np.mean(list(expected.values())))


def test_coco_map_counts_ten_thresholds():
    """IoU .8: right at .50 ... .80 (7 of 10). A second class is perfect; COCO's mean is over both."""
    labels = [truth((0, 0.0, 0.0, 0.5, 0.5), (1, *RIGHT))]
    seen = [found((0, 0.9, 0.0, 0.0, 0.5, 0.401), (1, 0.8, *RIGHT))]
    assert coco_map(seen, labels) == pytest.approx((0.7 + 1.0) / 2)
    assert map50(seen, labels) == 1.0


TABLE = {  # shared/data/README.md: coco/val, coco/train, both together
    "voc-trial3-noBatch": ("voc.names", 0.2300, 0.1980, 0.1870),
    "voc-trial3-bn": ("voc.names", 0.1925, 0.1997, 0.1813),
    "coco-trial6": ("coco.names", 0.2084, 0.1379, 0.1387),
}


def predict(
    network: YoloV2, preprocess: Preprocess, image: np.ndarray, threshold: float = 0.005
) -> Detections:
    with torch.no_grad():
        outputs = network(torch.from_numpy(preprocess(image))[None])
    return detect([output[0].numpy() for output in outputs], network.anchors, threshold)


def yololite(name: str) -> YoloV2:
    folder = SHARED / "yololite-yolov2"
    network = YoloV2.from_cfg(folder / f"{name}.cfg").eval()
    load_checkpoint(next(folder.glob(f"{name}*.weights")), network)
    return network


@pytest.fixture
def one_thread():
    """Small convolutions on two threads wait for each other most of the time, on a busy machine all of it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@needs_shared
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", TABLE)
def test_yololite_scores_what_the_table_says(name: str):
    network, (names, *expected) = yololite(name), TABLE[name]
    folder = SHARED / "yololite-yolov2"
    preprocess = Preprocess(network.width, network.height)
    all_seen: list[Detections] = []
    all_labels: list[Truth] = []
    measured = []
    for split in ("val", "train"):
        data = open_dataset(
            "yolo", SHARED / "coco" / "images" / split,
            names=read_names(folder / names), label_names=read_names(folder / "coco.names"),
        )  # fmt: skip
        samples = [data[i] for i in range(len(data))]
        seen = [predict(network, preprocess, sample.image) for sample in samples]
        measured.append(map50(seen, samples))
        all_seen += seen
        all_labels += [Truth(sample.boxes, sample.classes) for sample in samples]
    measured.append(map50(all_seen, all_labels))
    assert measured == pytest.approx(expected, abs=0.0005)


@needs_shared
def test_dog_jpg():
    network = yololite("voc-trial3-noBatch")
    image = cv2.imread(str(SHARED / "yololite-yolov2" / "dog.jpg"))
    names = read_names(SHARED / "yololite-yolov2" / "voc.names")
    shown = predict(network, Preprocess(224, 224), image, threshold=0.5)
    assert [(names[c], round(float(s), 2)) for c, s in zip(shown.classes, shown.scores, strict=True)] == [
        ("bicycle", 0.97), ("dog", 0.79), ("car", 0.65),
    ]  # fmt: skip


# -- the interval --------------------------------------------------------------------------------------------


def random_scenes(seed: int, images: int, classes: int) -> tuple[list[Detections], list[Truth]]:
    """Labelled boxes, and detections near some of them, with scores that never tie."""
    chance = np.random.default_rng(seed)
    scores = iter(chance.permutation(np.linspace(0.01, 0.99, 40 * images)))
    detections, labels = [], []
    for _ in range(images):
        rows, seen = [], []
        for _ in range(int(chance.integers(0, 6))):
            category, (x, y), (w, h) = (
                chance.integers(classes), chance.uniform(0, 0.7, 2), chance.uniform(0.1, 0.3, 2)
            )  # fmt: skip
            rows.append((int(category), x, y, x + w, y + h))
            for _ in range(int(chance.integers(0, 4))):
                dx, dy = chance.normal(0, 0.05, 2)
                wrong = chance.integers(classes) if chance.random() < 0.2 else category
                seen.append((int(wrong), next(scores), x + dx, y + dy, x + w + dx, y + h + dy))
        detections.append(found(*seen))
        labels.append(truth(*rows, labelled=bool(chance.random() < 0.9)))
    return detections, labels


def slow_bootstrap(detections, labels, resamples: int, seed: int) -> tuple[float, float]:
    """Draws images and scores each draw with `map50` itself."""
    known = [index for index, label in enumerate(labels) if label.labelled]
    drawn = np.random.default_rng(seed).integers(0, len(known), (resamples, len(known)))
    values = []
    for row in drawn:
        chosen = [known[index] for index in row]
        if any(len(labels[index].classes) for index in chosen):
            values.append(map50([detections[i] for i in chosen], [labels[i] for i in chosen]))
    return tuple(np.percentile(values, (2.5, 97.5)))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 9999), images=st.integers(2, 12), classes=st.integers(1, 5))
def test_the_interval_is_that_of_a_straightforward_bootstrap(seed, images, classes):
    detections, labels = random_scenes(seed, images, classes)
    if not any(len(label.classes) for label in labels if label.labelled):
        return
    got = map50_interval(detections, labels, 40, seed)
    assert got == pytest.approx(slow_bootstrap(detections, labels, 40, seed), abs=1e-9)


def test_the_interval_shrinks_with_more_images_and_holds_the_score():
    widths = []
    for images in (10, 160):
        detections, labels = random_scenes(3, images, 2)
        low, high = map50_interval(detections, labels)
        assert low <= map50(detections, labels) <= high
        widths.append(high - low)
    assert widths[1] < 0.5 * widths[0]


def test_the_interval_is_the_same_every_time_and_a_sure_score_has_none():
    detections, labels = random_scenes(1, 20, 3)
    assert map50_interval(detections, labels) == map50_interval(detections, labels)
    assert map50_interval(detections, labels) != map50_interval(detections, labels, seed=1)
    perfect = [truth((0, *LEFT))] * 3
    assert map50_interval([found((0, 0.9, *LEFT))] * 3, perfect) == (1.0, 1.0)
    with pytest.raises(InputError, match="no labelled boxes"):
        map50_interval([found()], [truth()])
