"""Locks between machines: one builds, the others wait; nobody's clock is looked at."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator

import pytest
from shared_stores import Failing

from paredown.pipeline.store.shared import turn as module
from paredown.pipeline.store.shared.objects import Objects, Trouble
from paredown.pipeline.store.shared.turn import Pace, turn

QUICK = Pace(beat=0.05, stale=0.5, poll=(0.02, 0.05))
LOCK = "locks/a"


def never() -> bool:
    return False


def record(owner: str, beat: int = 0, token: str = "theirs") -> bytes:
    return json.dumps({"owner": owner, "token": token, "beat": beat}).encode()


class Beating:
    """A lock of another machine that beats until it is told not to."""

    def __init__(self, objects: Objects) -> None:
        self._objects, self._ended, self._beats = objects, threading.Event(), 0
        self._thread = threading.Thread(target=self._beat)
        self._thread.start()

    def _beat(self) -> None:
        while not self._ended.wait(0.05):
            self._beats += 1
            self._objects.write(LOCK, record("far-away.1.2", self._beats))

    def end(self) -> None:
        self._ended.set()
        self._thread.join()


@pytest.fixture
def beating(url: str) -> Iterator[Beating]:
    objects = Objects(url)
    objects.write(LOCK, record("far-away.1.2"))
    other = Beating(objects)
    yield other
    other.end()


def test_the_lock_is_there_meanwhile_beats_and_is_gone_at_the_end(url):
    objects = Objects(url)
    with turn(objects, LOCK, never, pytest.fail, QUICK):
        first = json.loads(objects.read(LOCK))
        end = time.monotonic() + 10
        while (now := json.loads(objects.read(LOCK)))["beat"] == 0 and time.monotonic() < end:
            time.sleep(0.02)
        assert now["beat"] > first["beat"] and now["token"] == first["token"]
    assert objects.read(LOCK) is None


def test_whoever_waits_goes_on_when_it_is_made_and_takes_no_lock_that_beats(url, beating):
    objects, waited, began = Objects(url), list[str](), time.monotonic()
    with turn(objects, LOCK, lambda: time.monotonic() > began + 2 * QUICK.stale, waited.append, QUICK):
        assert waited == ["far-away"]
        assert json.loads(objects.read(LOCK))["token"] == "theirs"
    assert time.monotonic() > began + 2 * QUICK.stale
    assert json.loads(objects.read(LOCK))["token"] == "theirs", "it is not ours to remove"


def test_a_lock_that_beats_no_more_is_taken_over(url, beating):
    objects, began = Objects(url), time.monotonic()
    beating.end()
    with turn(objects, LOCK, never, lambda owner: None, QUICK):
        assert json.loads(objects.read(LOCK))["token"] != "theirs"
    assert time.monotonic() > began + QUICK.stale and objects.read(LOCK) is None


@pytest.mark.parametrize("left", [b"", b"{", b"[1]"])
def test_a_lock_that_nobody_can_read_is_taken_over_too(url, left):
    objects = Objects(url)
    objects.write(LOCK, left)
    waited: list[str] = []
    with turn(objects, LOCK, never, waited.append, QUICK):
        assert json.loads(objects.read(LOCK))["beat"] >= 0
    assert waited == ["another machine"]


def test_the_lock_of_a_dead_process_of_this_machine_is_taken_over_at_once(url, monkeypatch):
    objects = Objects(url)
    machine = module.owner_name().partition(".")[0]
    objects.write(LOCK, record(f"{machine}.999999999.1"))
    with turn(objects, LOCK, never, pytest.fail, Pace()):
        assert json.loads(objects.read(LOCK))["token"] != "theirs"


@pytest.mark.parametrize("hours", [-48, 48])
def test_clocks_that_differ_do_no_harm(url, beating, monkeypatch, hours):
    """The time of day is days off, and jumps; a lock that beats stays its owner's all the same."""
    monkeypatch.setattr(time, "time", lambda real=time.time: real() + 3600 * hours)
    began = time.monotonic()
    with turn(
        Objects(url), LOCK, lambda: time.monotonic() > began + 2 * QUICK.stale, lambda owner: None, QUICK
    ):
        assert json.loads(Objects(url).read(LOCK))["token"] == "theirs"


def test_a_lock_that_was_taken_from_us_is_left_alone(url):
    objects = Objects(url)
    with turn(objects, LOCK, never, pytest.fail, QUICK):
        objects.write(LOCK, record("far-away.1.2"))
        time.sleep(4 * QUICK.beat)
    assert json.loads(objects.read(LOCK))["token"] == "theirs"


def test_where_nothing_can_be_written_it_is_said_at_once(broken):
    Failing.writes = PermissionError("no")
    with (
        pytest.raises(Trouble, match="access is denied"),
        turn(Objects(broken), LOCK, never, pytest.fail, QUICK),
    ):
        pytest.fail("it was never held")


def test_a_store_that_goes_away_meanwhile_does_not_end_what_is_built(broken):
    with turn(Objects(broken), LOCK, never, pytest.fail, QUICK):
        Failing.writes = Failing.reads = ConnectionError("gone")
        time.sleep(4 * QUICK.beat)
