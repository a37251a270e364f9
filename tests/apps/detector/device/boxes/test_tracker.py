"""Tracks and what is counted of them, on ways whose right answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from paredown.apps.detector.device.boxes.counting import Counting, parse_line, parse_zone
from paredown.apps.detector.device.boxes.decode import Detections
from paredown.apps.detector.device.boxes.tracker import Tracker, TrackerConfig
from paredown.targets.errors import UsageError

pytestmark = pytest.mark.unit

SIDE = 0.1


def detections(*objects: tuple[float, float, float, int]) -> Detections:
    """Of (x, y, score, class); x, y is the middle of a square."""
    rows = np.array(objects, np.float32).reshape(-1, 4)
    half = np.float32(SIDE / 2)
    boxes = np.concatenate([rows[:, :2] - half, rows[:, :2] + half], axis=1)
    return Detections(boxes, rows[:, 2], rows[:, 3].astype(np.int64))


def ids(tracks) -> list[int]:
    return [track.id for track in tracks]


def follow(tracker: Tracker, way, step: float = 0.1, start: float = 0.0) -> list[int]:
    """The ids along a way of one sure object."""
    found = [tracker.update(detections((x, y, 0.9, 0)), start + i * step) for i, (x, y) in enumerate(way)]
    return [track.id for tracks in found for track in tracks]


def test_one_object_has_one_id():
    assert follow(Tracker(), [(0.1 + 0.02 * i, 0.5) for i in range(40)]) == [1] * 40


def test_two_that_pass_each_other_keep_theirs():
    tracker, left, right = Tracker(), [], []
    for i in range(31):
        x = 0.2 + 0.02 * i
        tracks = tracker.update(detections((x, 0.50, 0.9, 0), (1 - x, 0.53, 0.8, 0)), 0.1 * i)
        assert len(tracks) == 2
        left += [t.id for t in tracks if abs(t.score - 0.9) < 1e-6]
        right += [t.id for t in tracks if abs(t.score - 0.8) < 1e-6]
    assert set(left) == {1} and set(right) == {2}


def test_the_order_of_detections_does_not_matter():
    random = np.random.default_rng(0)
    places = random.uniform(0.1, 0.9, (8, 2))
    ordered, shuffled = Tracker(), Tracker()
    for i in range(10):
        places += random.normal(0, 0.01, places.shape)
        rows = [(x, y, 0.6 + 0.04 * n, n % 2) for n, (x, y) in enumerate(places)]
        first = ordered.update(detections(*rows), 0.1 * i)
        second = shuffled.update(detections(*[rows[n] for n in random.permutation(len(rows))]), 0.1 * i)
        by_score = [sorted((t.score, t.box) for t in tracks) for tracks in (first, second)]
        assert by_score[0] == by_score[1] and len(first) == 8
    assert ordered.total == shuffled.total == {0: 4, 1: 4}


def test_one_that_was_hidden_comes_back_where_it_was_going():
    tracker = Tracker()
    assert set(follow(tracker, [(0.1 + 0.03 * i, 0.5) for i in range(10)])) == {1}
    for i in range(10, 18):  # behind a pillar; it goes on by more than its width
        assert tracker.update(detections(), 0.1 * i) == ()
    assert ids(tracker.update(detections((0.1 + 0.03 * 18, 0.5, 0.9, 0)), 1.8)) == [1]


def test_one_that_was_away_for_long_is_another():
    tracker = Tracker()
    follow(tracker, [(0.5, 0.5)] * 3)
    assert tracker.alive == {1}
    tracker.update(detections(), 3.0)
    assert tracker.alive == frozenset()
    assert follow(tracker, [(0.5, 0.5)] * 3, start=3.1) == [2, 2]  # shown from its second detection on


def test_unsure_detections_continue_a_track_and_begin_none():
    tracker = Tracker()
    follow(tracker, [(0.3, 0.5)] * 3)
    tracks = tracker.update(detections((0.3, 0.5, 0.2, 0), (0.7, 0.5, 0.2, 0)), 0.3)
    assert ids(tracks) == [1] and tracks[0].score == pytest.approx(0.2)
    assert tracker.update(detections((0.7, 0.5, 0.2, 0)), 0.4) == ()
    assert tracker.update(detections((0.3, 0.5, 0.05, 0)), 0.5) == ()


def test_another_class_is_another_object():
    tracker = Tracker()
    tracker.update(detections((0.5, 0.5, 0.9, 0)), 0.0)
    assert tracker.update(detections((0.5, 0.5, 0.9, 1)), 0.1) == ()  # new, so not shown yet
    assert ids(tracker.update(detections((0.5, 0.5, 0.9, 1)), 0.2)) == [2]


def test_a_flicker_is_no_object():
    tracker = Tracker(TrackerConfig(hits=3))
    tracker.update(detections((0.1, 0.1, 0.9, 0)), 0.0)
    for i in range(1, 20):
        assert len(tracker.update(detections((0.1, 0.1, 0.9, 0), (0.9, 0.05 * i, 0.9, 0)), i * 5.0)) <= 1
    assert tracker.total == {0: 1}


def test_a_camera_that_drops_frames_loses_nobody():
    """The same way, seen at steps of changing length."""
    tracker, seen = Tracker(), []
    for at in np.cumsum([0.05, 0.05, 0.3, 0.1, 0.4, 0.05, 0.3, 0.3, 0.05]):
        seen += ids(tracker.update(detections((0.1 + 0.3 * at, 0.5, 0.9, 0)), float(at)))
    assert seen == [1] * 9


def test_the_tracker_forgets_what_is_gone():
    tracker = Tracker()
    for i in range(300):
        tracker.update(detections((0.1 + 0.8 * (i % 7) / 7, 0.1 + 0.8 * (i % 5) / 5, 0.9, 0)), 2.0 * i)
        assert len(tracker.alive) <= 1 and len(tracker._kept) == 1


def walk(counting: Counting, feet, step: float = 0.1, id_score: float = 0.9) -> None:
    """One object whose foot takes this way."""
    tracker = Tracker()
    for i, (x, y) in enumerate(feet):
        tracks = tracker.update(detections((x, y - SIDE / 2, id_score, 0)), i * step)
        assert len(tracks) == 1
        counting.update(tracks, tracker.alive, i * step)


def way(start, end, steps: int = 12):
    return [tuple(np.array(start) + (np.array(end) - start) * i / steps) for i in range(steps + 1)]


@pytest.mark.parametrize(
    ("start", "end", "counted"),
    [
        ((0.5, 0.3), (0.5, 0.7), {"in": 1, "out": 0}),  # downwards: to the right of a line that goes right
        ((0.5, 0.7), (0.5, 0.3), {"in": 0, "out": 1}),
        ((0.95, 0.3), (0.95, 0.7), {"in": 0, "out": 0}),  # beside its end
        ((0.2, 0.45), (0.8, 0.45), {"in": 0, "out": 0}),  # along it
        ((0.3, 0.3), (0.7, 0.6), {"in": 1, "out": 0}),
    ],
)
def test_a_line_is_crossed(start, end, counted):
    counting = Counting([parse_line("door=0.1,0.5,0.9,0.5")])
    walk(counting, way(start, end))
    assert counting.to_dict()["lines"] == {"door": counted}


def test_there_and_back_and_trembling_on_the_line():
    counting = Counting([parse_line("door=0.1,0.5,0.9,0.5")])
    walk(counting, way((0.5, 0.3), (0.5, 0.7)) + way((0.5, 0.7), (0.5, 0.3)))
    assert counting.to_dict()["lines"]["door"] == {"in": 1, "out": 1}
    trembling = [(0.5, 0.5 + 0.004 * (-1) ** i) for i in range(50)]
    walk(counting, way((0.5, 0.3), (0.5, 0.49)) + trembling + way((0.5, 0.51), (0.5, 0.7)))
    assert counting.to_dict()["lines"]["door"] == {"in": 2, "out": 1}


def test_a_zone_is_entered_and_left():
    counting = Counting(zones=[parse_zone("till=0.4,0.2,0.6,0.2,0.6,0.9,0.4,0.9")])
    walk(counting, way((0.1, 0.5), (0.5, 0.5), 8) + [(0.5, 0.5)] * 10)
    told = counting.to_dict()["zones"]["till"]
    # in at the 7th step of 8 (x = 0.4 is the edge, which belongs to it, at step 6), there until step 18
    assert told == {"inside": 1, "entered": 1, "longest_s": pytest.approx(1.2, abs=1e-9)}
    walk(counting, way((0.5, 0.5), (0.9, 0.5)))
    assert counting.to_dict()["zones"]["till"]["inside"] == 0


def test_two_at_once_are_two():
    counting, tracker = Counting([parse_line("a=0.5,0,0.5,1")]), Tracker()
    for i in range(11):
        x = 0.2 + 0.06 * i
        tracks = tracker.update(detections((x, 0.2, 0.9, 0), (1 - x, 0.8, 0.9, 0)), 0.1 * i)
        counting.update(tracks, tracker.alive, 0.1 * i)
    assert counting.to_dict()["lines"]["a"] == {"in": 1, "out": 1}


@pytest.mark.parametrize(
    "text", ["", "a", "a=", "a=1,2", "a=0,0,0,0", "=0,0,1,1", "a=0,0,1,x", "a=0,0,nan,1"]
)
def test_what_is_no_line(text):
    with pytest.raises(UsageError, match="--line: .*door="):
        parse_line(text)


@pytest.mark.parametrize("text", ["a=0,0,1,1", "a=0,0,1,1,2,2", "a=0,0,1,1,0"])
def test_what_is_no_zone(text):
    with pytest.raises(UsageError, match="--zone: .*till="):
        parse_zone(text)
