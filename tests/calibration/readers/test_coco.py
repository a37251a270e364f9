"""The reader of COCO annotations: round trips, wrong entries named, and the pycocotools oracle."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from calibration_samples import NAMES, H, W, boxes, put, put_image
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.calibration.datasets import open_dataset
from paredown.calibration.readers.coco import parse_coco
from paredown.calibration.readers.records import Classes
from paredown.targets.errors import InputError

pytestmark = pytest.mark.unit


def coco(**change) -> dict:
    document = {
        "images": [{"id": 7, "file_name": "a.png", "width": W, "height": H}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 18, "bbox": [10, 5, 20, 10], "iscrowd": 0}],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
    }
    return {**document, **change}


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([18, 3]), boxes()), max_size=5))
def test_coco_round_trip(rows):
    annotations = [
        {"image_id": 7, "category_id": c, "bbox": [(cx - w / 2) * W, (cy - h / 2) * H, w * W, h * H]}
        for c, (cx, cy, w, h) in rows
    ]
    document = json.dumps(coco(annotations=annotations))
    images, found, ignored, labelled = parse_coco(document, Classes(NAMES), "a.json")
    assert labelled and not ignored and images == {7: ("a.png", (W, H))}
    got = found.get(7, [])
    assert [index for index, _ in got] == [{18: 1, 3: 0}[c] for c, _ in rows]
    np.testing.assert_allclose([box for _, box in got], [box for _, box in rows], rtol=1e-6, atol=1e-9)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(["images", "annotations", "categories"]),
    st.sampled_from(
        ["", "id", "image_id", "category_id", "bbox", "file_name", "width", "height", "name", "iscrowd"]
    ),
    json_values,
)
def test_coco_with_one_wrong_value_is_boxes_or_an_input_error(key, field, value):
    document = coco()
    if field:
        document[key][0][field] = value
    else:
        document[key] = value
    try:
        _, boxes, *_ = parse_coco(json.dumps(document), Classes(NAMES), "a.json")
    except InputError as error:
        assert "a.json" in str(error)
    else:
        assert all(math.isfinite(v) for rows in boxes.values() for _, box in rows for v in box)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"a\.json:1: malformed JSON"),
        ('{"images": [\n\n}', r"a\.json:3: malformed JSON"),
        ("[1]", "expected a JSON object, found list"),
        ("[" * 100_000, "malformed JSON"),
        ("1" * 10_000, "malformed JSON"),
        ("{}", "no list 'images'"),
        (coco(images=[]), "no images in this file"),
        (coco(images=[1]), r"images\[0\]: not a JSON object"),
        (coco(images=[{"id": 1, "width": 1, "height": 1}]), "no file_name"),
        (coco(images=[{"id": 1, "file_name": "a.png", "height": 1}]), "width None and height 1"),
        (coco(images=coco()["images"] * 2), r"images\[1\]: image id 7 for the second time"),
        (coco(categories=coco()["categories"] * 2), r"categories\[2\]: category id 18 for the second time"),
        (coco(categories=None), "no list 'categories'"),
        (coco(annotations=[{"image_id": 8, "category_id": 18}]), "image_id 8 is not among"),
        (coco(annotations=[{"image_id": 7, "category_id": 1}]), "category_id 1 is not among"),
        (coco(annotations=[{"image_id": 7, "category_id": 18}]), "bbox None is not four"),
        (coco(annotations=[{"image_id": 7, "category_id": 18, "bbox": [1, 2, 3]}]), "is not four"),
        (
            coco(annotations=[{"image_id": 7, "category_id": 18, "bbox": [1, 2, float("nan"), 3]}]),
            "is not four finite",
        ),
        (
            coco(annotations=[{"image_id": 7, "category_id": 18, "bbox": [1, 2, 10**400, 3]}]),
            "is not four finite",
        ),
        (coco(annotations=[{"image_id": 7, "category_id": 18, "bbox": [1, 2, -3, 3]}]), "without area"),
        (coco(annotations=[{"image_id": 7, "category_id": 18, "bbox": [1, 2, W, 3]}] * 2), None),
        (coco(annotations=[{"image_id": 7, "category_id": 18, "bbox": [5, 2, W, 3]}]), "outside the image"),
        (coco(categories=[{"id": 18, "name": "cat"}]), "class 'cat' is not one of"),
        (
            coco(images=[{"id": 7, "file_name": "b.png", "width": W, "height": H}]),
            "no image 'b.png'.*data.images",
        ),
        (coco(images=[{"id": 7, "file_name": "nul\0", "width": W, "height": H}]), r"no image 'nul\\x00'"),
    ],
)
def test_bad_coco_files_are_named(tmp_path, text, words):
    put_image(tmp_path / "a.png")
    path = put(tmp_path / "a.json", text if isinstance(text, str) else json.dumps(text))
    if words is None:
        assert (
            len(open_dataset("coco", path, names=NAMES)[0].boxes) == 2
        )  # one pixel over the edge is rounding
        return
    with pytest.raises(InputError, match=words) as caught:
        open_dataset("coco", path, names=NAMES)
    assert str(caught.value).startswith(str(path))


def test_coco_images_beside_below_or_elsewhere(tmp_path):
    path = put(tmp_path / "set/a.json", json.dumps(coco()))
    for folder, images in (("set/images", None), ("other", tmp_path / "other"), ("set", None)):
        put_image(tmp_path / folder / "a.png")
        sample = open_dataset("coco", path, names=NAMES, images=images, require_labels=True)[0]
        assert sample.name == "a.png" and sample.classes.tolist() == [1]
        assert sample.boxes.tolist() == [[0.5, 0.5, 0.5, 0.5]]
        (tmp_path / folder / "a.png").unlink()
    with pytest.raises(InputError, match="no such folder of images"):
        open_dataset("coco", path, names=NAMES, images=tmp_path / "nowhere")


def test_coco_sets_crowds_apart_and_leaves_out_boxes_without_width_or_height(tmp_path):
    put_image(tmp_path / "a.png")
    annotations = [
        {"image_id": 7, "category_id": 18, "bbox": [1, 1, 5, 5], "iscrowd": 1},
        {"image_id": 7, "category_id": 18, "bbox": [1, 1, 5, 5], "iscrowd": "0", "ignore": True},
        {"image_id": 7, "category_id": 18, "bbox": [1, 1, 0, 5]},
        {"image_id": 7, "category_id": 3, "bbox": [1, 1, 5, 5]},
    ]
    path = put(tmp_path / "a.json", json.dumps(coco(annotations=annotations)))
    data = open_dataset("coco", path, names=NAMES)
    assert data[0].classes.tolist() == [0]
    ignored = data[0].ignored
    assert ignored.classes.tolist() == [1, 1] and ignored.crowd.all() and ignored.boxes.shape == (2, 4)
    whole = data.fingerprint()
    annotations[0]["iscrowd"] = "perhaps"
    put(path, json.dumps(coco(annotations=annotations)))
    with pytest.raises(InputError, match=r"a\.json: annotations\[0\]: iscrowd is 'perhaps', neither 0 nor 1"):
        open_dataset("coco", path, names=NAMES)
    annotations[0]["iscrowd"] = False
    put(path, json.dumps(coco(annotations=annotations)))
    assert open_dataset("coco", path, names=NAMES).fingerprint() != whole


@pytest.mark.parametrize("folder", ["val2017", "images/val2017", "images", "."])
def test_images_are_found_as_coco_has_them(tmp_path, folder):
    put_image(tmp_path / folder / "a.png")
    path = put(tmp_path / "annotations" / "instances_val2017.json", json.dumps(coco()))
    assert len(open_dataset("coco", path, names=NAMES)[0].boxes) == 1


def test_coco_test_set_is_unlabelled(tmp_path):
    put_image(tmp_path / "a.png")
    path = put(tmp_path / "a.json", json.dumps({"images": coco()["images"], "categories": []}))
    assert open_dataset("coco", path, names=NAMES)[0].labelled is False
    with pytest.raises(InputError, match="no labels for any of the 1 images.*no 'annotations'"):
        open_dataset("coco", path, names=NAMES, require_labels=True)
