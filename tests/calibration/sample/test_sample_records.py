"""Samples that somebody else wrote are refused in a line."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from paredown.calibration.sample.records import MEMBER, encode_array, encode_png, open_sample
from paredown.targets.errors import InputError

pytestmark = pytest.mark.unit
IMAGE = encode_png(np.zeros((4, 6, 3), np.uint8))
HUGE = IMAGE[:16] + (1 << 20).to_bytes(4, "big") * 2 + IMAGE[24:]


def listed(**changes) -> bytes:
    entry = {"image": "sample-00.png", "objects": {"boxes": [[0.5, 0.5, 0.2, 0.2]], "classes": [1]}}
    return json.dumps({"version": 1, "licence": "ours", "images": [entry | changes]}).encode()


def opened(members):
    return open_sample(members, ("cat", "dog"), "a.paredown", lambda sample, arrays: (sample, arrays))


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({MEMBER: b"["}, "it is not JSON"),
        ({MEMBER: b"[" * 100_000}, "it is not JSON"),
        ({MEMBER: json.dumps({"version": 2, "licence": "", "images": []}).encode()}, "version"),
        ({MEMBER: listed(objects={"classes": ["cat"]})}, "objects.classes"),
        ({MEMBER: listed(objects={"classes": [-1]})}, "objects.classes"),
        ({MEMBER: listed(code="os.system")}, "code"),
    ],
)
def test_lists_that_are_none(members, words):
    with pytest.raises(InputError, match="the labelled sample is broken") as caught:
        opened(members)
    assert words in str(caught.value) and "a.paredown" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "content", "words"),
    [
        ({"image": "manifest.json"}, b"", "it has no file 'manifest.json'"),
        ({"image": "sample-99.png"}, b"", "it has no file 'sample-99.png'"),
        ({}, b"GIF89a", "neither a JPEG nor a PNG of a usual size"),
        ({}, HUGE, "neither a JPEG nor a PNG of a usual size"),
        ({}, IMAGE[:40], "truncated PNG"),
        ({"objects": {"classes": [2]}}, IMAGE, "do not fit together"),
        ({"objects": {"boxes": [[0, 0, 1, 1]], "classes": [0, 1]}}, IMAGE, "do not fit together"),
        ({"ignored": {"classes": [1]}}, IMAGE, "ignored objects do not fit"),
        ({"arrays": {"mask": "sample-00.png"}}, IMAGE, "is no array of numbers"),
        ({}, b"\x93NUMPY\x01\x00" + pickle.dumps([1]), "is no array of numbers"),
        ({}, encode_array(np.array(["text"])), "is no array of numbers"),
        ({}, encode_array(np.zeros(4))[:-8], "is no array of numbers"),
    ],
)
def test_images_and_arrays_that_are_none(changes, content, words):
    with pytest.raises(InputError, match=r"a\.paredown") as caught:
        opened({MEMBER: listed(**changes), "sample-00.png": content})[0]
    assert words in str(caught.value)


def test_a_sound_one():
    members = {MEMBER: listed(arrays={"points": "sample-00.points.npy"}), "sample-00.png": IMAGE,
               "sample-00.points.npy": encode_array(np.ones((2, 3), np.float32))}  # fmt: skip
    data = opened(members)
    sample, arrays = data[0]
    assert sample.image.shape == (4, 6, 3) and sample.classes.tolist() == [1] and sample.labelled
    assert arrays["points"].sum() == 6 and len(data) == 1
    other = opened(members | {"sample-00.png": encode_png(np.ones((4, 6, 3), np.uint8))})
    assert data.fingerprint() != other.fingerprint() == other.fingerprint()
    with pytest.raises(IndexError):
        data[1]
