"""The task of a network by the shapes of its outputs; what is not clear is not said."""

from __future__ import annotations

import pytest

from paredown.apps.api.imports.recognise import recognise

INPUT = (1, 3, 320, 320)


def heads(*channels: int, strides=(8, 16, 32)) -> list[tuple[int, ...]]:
    return [(1, count, 320 // s, 320 // s) for s in strides for count in channels]


@pytest.mark.parametrize(
    ("outputs", "classes", "task", "decoding"),
    [
        ([(1, 10)], 10, "classify", {}),
        ([(1, 10)], None, "classify", {}),
        ([(1, 21, 80, 80)], 21, "segment", {}),
        ([(1, 21, 320, 320)], None, "segment", {}),
        (heads(64, 3), 3, "detect", {"kind": "v8", "strides": [8, 16, 32], "bins": 16}),
        (heads(3, 64), 3, "detect", {"kind": "v8", "strides": [8, 16, 32], "bins": 16}),
        (heads(64, 64), 64, "detect", {"kind": "v8", "strides": [8, 16, 32], "bins": 16}),
        (heads(144), 80, "detect", {"kind": "v8", "strides": [8, 16, 32], "bins": 16}),
        (heads(85), 80, "detect", {"kind": "yolox", "strides": [8, 16, 32]}),
        (heads(4, 1, 7), 7, "detect", {"kind": "yolox", "strides": [8, 16, 32]}),
        (heads(1, 1, 4), 1, "detect", {"kind": "yolox", "strides": [8, 16, 32]}),
        (heads(64, 2, strides=(16, 32)), None, "detect", {"kind": "v8", "strides": [16, 32], "bins": 16}),
    ],
)
def test_outputs_show_a_task(outputs, classes, task, decoding):
    found = recognise(outputs, INPUT, classes)
    assert found is not None and found.task == task and found.decoding == decoding
    assert classes in (None, found.classes) and found.why


def test_v5_takes_the_anchors_that_it_begins_with():
    found = recognise(heads(255), INPUT, 80)
    assert found is not None and found.decoding["kind"] == "v5"
    assert (
        found.decoding["anchors"][0] == [[10, 13], [16, 30], [33, 23]] and len(found.decoding["anchors"]) == 3
    )


@pytest.mark.parametrize(
    ("outputs", "classes"),
    [
        ([(1, 10)], 11),
        ([(1, 10), (1, 10)], 10),
        ([(1, 5, 7, 8)], 5),  # no stride is the same both ways
        ([(1, 84, 2100)], 80),
        (heads(85), None),  # v8 of 21, yolox of 80
        (heads(64, 3)[:2], 3),  # one level may be anything
        (heads(64, 3)[:3], 3),  # other channels in each level
        (heads(64, 3, 1), 3),
        ([], 3),
        ([(1,)], 3),
    ],
)
def test_what_is_not_clear_is_not_said(outputs, classes):
    assert recognise(outputs, INPUT, classes) is None


def test_heads_are_seen_behind_boxes_that_a_file_computes():
    found = recognise([(1, 84, 2100)], INPUT, 80, heads(64, 80))
    assert found is not None and found.decoding["kind"] == "v8"
    assert recognise([(1, 80)], INPUT, 80, heads(64, 80)).task == "classify"  # not behind anything else
