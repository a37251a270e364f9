"""score.py: cases by hand, a port of the VOC devkit's loop, pycocotools, and the table of shared/data."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.apps.detector.device.boxes.decode import Detections, detect
from paredown.apps.detector.network import YoloV2
from paredown.apps.detector.network.weights import load_checkpoint
from paredown.apps.detector.scoring.score import (
    average_precision,
    best_map50,
    class_average_precisions,
    coco_map,
    map50,
    map50_interval,
    score_detections,
)
from paredown.calibration.datasets import open_dataset, read_names
from paredown.calibration.preprocess import Preprocess
from paredown.calibration.readers.records import Ignored
from paredown.targets.errors import InputError

SHARED = Path(__file__).parents[5] / "shared" / "data"
needs_shared = pytest.mark.skipif(not (SHARED / "coco").is_dir(), reason="../shared/data is absent")


@dataclass(frozen=True)
class Truth:
    boxes: np.ndarray
    classes: np.ndarray
    labelled: bool = True
    ignored: Ignored = field(default_factory=Ignored)


Row = tuple[int, float, float, float, float]


def arrays(rows) -> tuple[np.ndarray, np.ndarray]:
    """Rows of class, x1, y1, x2, y2 as boxes cx, cy, w, h and classes."""
    table = np.array([r[1:] for r in rows], np.float64).reshape(-1, 4)
    boxes = np.concatenate([(table[:, :2] + table[:, 2:]) / 2, table[:, 2:] - table[:, :2]], axis=1)
    return boxes.astype(np.float32), np.array([r[0] for r in rows], np.int64)


def truth(*rows: Row, labelled: bool = True, difficult=(), crowd=()) -> Truth:
    """Rows of class, x1, y1, x2, y2; of ignored objects likewise."""
    marks = np.array([False] * len(difficult) + [True] * len(crowd), bool)
    return Truth(*arrays(rows), labelled, Ignored(*arrays([*difficult, *crowd]), marks))


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
        hard = [
            (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
            for x, y, w, h in label.ignored.boxes.astype(np.float64)
        ]
        gt.append(
            [[box, False, False] for box, c in zip(corners, label.classes, strict=True) if c == category]
        )
        gt[-1] += [
            [b, False, True] for b, c in zip(hard, label.ignored.classes, strict=True) if c == category
        ]
    count = sum(not object_[2] for objects in gt for object_ in objects)
    if not count:
        return None
    rows = [
        (float(s), i, b)
        for i, d in enumerate(seen)
        for b, s, c in zip(d.boxes.astype(np.float64), d.scores, d.classes, strict=True)
        if c == category
    ]
    rows.sort(key=lambda row: -row[0])
    tp, n, precision, recall = 0, 0, [], []
    for _, image, box in rows:
        best, claimed = -1.0, None
        for candidate in gt[image]:
            o = overlap(box, candidate[0])
            if o > best:
                best, claimed = o, candidate
        if best >= 0.5 and claimed[2]:
            continue  # "if ~gt(i).diff(jmax)": else it is neither a tp nor a fp
        n += 1
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
@given(st.lists(st.tuples(labelled, labelled, seen_in), min_size=1, max_size=4))
def test_equal_to_the_voc_devkit(images):
    labels = [truth(*gt, difficult=hard) for gt, hard, _ in images]
    seen = [found(*dt) for *_, dt in images]
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


def test_what_finds_a_difficult_object_is_neither_right_nor_wrong():
    """Twice found, it is still neither; an image of nothing else has no say at all."""
    labels = [truth((0, *LEFT), difficult=[(0, *RIGHT), (1, *LEFT)])]
    seen = [found((0, 0.9, *RIGHT), (0, 0.8, *RIGHT), (0, 0.7, *LEFT), (1, 0.9, *LEFT))]
    assert class_average_precisions(seen, labels) == {0: 1.0}
    assert coco_map(seen, labels) == pytest.approx(1.0)
    with pytest.raises(InputError, match="no labelled boxes"):
        map50(seen, [truth(difficult=[(0, *RIGHT)])])


def test_what_lies_in_a_crowd_region_is_neither_right_nor_wrong():
    """By the share of its own area; what finds a box there is right all the same."""
    inside, half, outside = (0.1, 0.1, 0.15, 0.2), (0.35, 0.1, 0.45, 0.2), (0.38, 0.1, 0.5, 0.2)
    labels = [truth((0, *inside), crowd=[(0, *LEFT)])]
    for box_, expected in ((inside, 1.0), (half, 1.0), (outside, 0.5)):
        seen = [found((0, 0.9, *box_), (0, 0.8, *inside))]
        assert map50(seen, labels) == pytest.approx(expected)


@st.composite
def coco_scenes(draw):
    """A COCO document with crowds, empty images, categories that are never used, and detections."""
    annotations, results = [], []
    count = draw(st.integers(1, 4))
    for image in range(1, count + 1):
        for category, crowd, (x1, y1, x2, y2) in draw(
            st.lists(st.tuples(st.sampled_from([7, 9]), st.booleans(), box), max_size=5)
        ):
            sides = [64 * (x2 - x1), 64 * (y2 - y1)]
            annotations.append({
                "id": len(annotations) + 1, "image_id": image, "category_id": category,
                "iscrowd": int(crowd), "bbox": [64 * x1, 64 * y1, *sides], "area": sides[0] * sides[1],
            })  # fmt: skip
        for category, (x1, y1, x2, y2) in draw(st.lists(st.tuples(st.sampled_from([7, 9]), box), max_size=6)):
            results.append({
                "image_id": image, "category_id": category, "score": 1 - len(results) / 100,
                "bbox": [64 * x1, 64 * y1, 64 * (x2 - x1), 64 * (y2 - y1)],
            })  # fmt: skip
    images = [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 64} for i in range(1, count + 1)]
    categories = [{"id": i, "name": n} for i, n in ((7, "red"), (8, "unused"), (9, "white"))]
    return {"images": images, "categories": categories, "annotations": annotations}, results


@settings(max_examples=60, deadline=None)
@given(scene=coco_scenes())
def test_coco_files_with_crowds_score_as_pycocotools_says(tmp_path_factory, scene):
    """The whole way: our reader and score, against pycocotools on the very file."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    document, results = scene
    if all(entry["iscrowd"] for entry in document["annotations"]):
        return  # nothing to score by; pycocotools says -1
    folder = tmp_path_factory.mktemp("coco")
    for entry in document["images"]:
        cv2.imwrite(str(folder / entry["file_name"]), np.zeros((64, 64, 3), np.uint8))
    (folder / "a.json").write_text(json.dumps(document))
    names = ("red", "unused", "white")
    data = open_dataset("coco", folder / "a.json", names=names)
    seen = []
    for entry in document["images"]:
        rows = []
        for result in results:
            if result["image_id"] == entry["id"]:
                x, y, w, h = np.divide(result["bbox"], 64)
                rows.append((result["category_id"] - 7, result["score"], x, y, x + w, y + h))
        seen.append(found(*sorted(rows, key=lambda row: -row[1])))
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(str(folder / "a.json"))
        evaluation = COCOeval(reference, reference.loadRes(results) if results else COCO(), "bbox")
        if results:
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
    expected = evaluation.stats[0] if results else 0.0
    scores = score_detections(seen, [data[i] for i in range(len(data))], names)
    assert scores["map"] == pytest.approx(expected, abs=1e-9)
    occurring = {names[e["category_id"] - 7] for e in document["annotations"] if not e["iscrowd"]}
    assert {name for name in scores if name.startswith("class_score_")} == {
        f"class_score_{n}" for n in occurring
    }


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
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n.startswith("voc") else []) for n in TABLE]
)
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


# -- the best that can become --------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 9999), images=st.integers(2, 12), classes=st.integers(1, 5))
def test_the_best_case_falls_to_the_score_itself(seed, images, classes):
    """With each image that is known: 1 without any, and never under what it will be."""
    detections, labels = random_scenes(seed, images, classes)
    if not any(len(label.classes) for label in labels if label.labelled):
        return
    best = [best_map50(detections[:count], labels) for count in range(images + 1)]
    assert best[0] == 1 and best[-1] == pytest.approx(map50(detections, labels), abs=1e-12)
    assert all(later <= earlier + 1e-12 for earlier, later in zip(best, best[1:], strict=False))


def test_the_best_case_is_reached_by_finding_all_else():
    labels = [truth((0, *LEFT)), truth((0, *LEFT)), truth((0, *LEFT))]
    wrong, right = found((0, 0.9, *RIGHT)), found((0, 0.95, *LEFT))
    assert best_map50([wrong], labels) == map50([wrong, right, right], labels) == pytest.approx(2 / 3)
