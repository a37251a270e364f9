"""Locks between machines: one builds a stage while the others wait for what it makes.

A lock is an object with its owner and a heartbeat: a number that the owner raises. Who waits looks whether
that number changes, and takes the lock over where it stayed the same for long enough by the waiter's own
stopwatch. No time of day is compared, so clocks that differ do no harm. Two machines that take one lock over
at once both build: that costs time and nothing else, since equal stages give equal bytes.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from paredown.pipeline.store.shared.objects import Objects, Trouble
from paredown.pipeline.store.store import owner_lives, owner_name

BEAT_S, STALE_S = 10.0, 60.0
POLL_S = (0.5, 5.0)  # between two looks: at first, and at most


@dataclass(frozen=True)
class Pace:
    """Seconds of a lock.

    Attributes:
        beat: between two heartbeats.
        stale: after which a heartbeat that did not change is that of nobody.
        poll: between a waiter's looks, at first and at most.
    """

    beat: float = BEAT_S
    stale: float = STALE_S
    poll: tuple[float, float] = POLL_S


@contextlib.contextmanager
def turn(
    objects: Objects,
    name: str,
    made: Callable[[], bool],
    waits: Callable[[str], None],
    pace: Pace | None = None,
) -> Iterator[None]:
    """Holds a lock; or goes on without it as soon as what it stands for is made.

    Args:
        objects: where it lies.
        name: of the lock.
        made: whether what the lock's holder makes is there.
        waits: hears once for whom this process waits.
        pace: of the lock.

    Raises:
        Trouble: the lock can be neither read nor written.
    """
    pace, token = pace or Pace(), uuid.uuid4().hex
    held = _wait(objects, name, made, waits, pace, token)
    if not held:
        yield
        return
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(objects, name, token, pace.beat, ended), daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        with contextlib.suppress(Trouble):  # who waits sees what is made, or that nobody beats any more
            if _token(objects.read(name)) == token:
                objects.remove(name)


def _wait(
    objects: Objects,
    name: str,
    made: Callable[[], bool],
    waits: Callable[[str], None],
    pace: Pace,
    token: str,
) -> bool:
    """Whether the lock is ours; else what it stands for is made."""
    last: bytes | None = None
    since, pause, told = time.monotonic(), pace.poll[0], False
    while not objects.create(name, _record(token, 0)):
        seen = objects.read(name)
        if seen is None:
            continue
        if seen != last:
            last, since = seen, time.monotonic()
        owner = _owner(seen)
        if not owner_lives(owner) or time.monotonic() - since > pace.stale:
            objects.write(name, _record(token, 0))
            return True
        if not told:
            waits(owner.partition(".")[0] or "another machine")
            told = True
        time.sleep(pause)
        pause = min(1.5 * pause, pace.poll[1])
        if made():
            return False
    return True


def _beat(objects: Objects, name: str, token: str, every: float, ended: threading.Event) -> None:
    """Raises the number until the end, or until the lock is another's."""
    number = 0
    with contextlib.suppress(Trouble):  # the build goes on; at worst another machine builds it too
        while not ended.wait(every):
            if _token(objects.read(name)) != token:
                return
            number += 1
            objects.write(name, _record(token, number))


def _record(token: str, beat: int) -> bytes:
    return json.dumps({"owner": owner_name(), "token": token, "beat": beat}).encode()


def _token(record: bytes | None) -> str:
    return _field(record, "token")


def _owner(record: bytes | None) -> str:
    return _field(record, "owner")


def _field(record: bytes | None, name: str) -> str:
    """A field of a lock's record; empty where the record is none, as one that is being written."""
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        return str(json.loads(record or b"{}").get(name, ""))
    return ""
