"""The journal of a rollout: a file beside fleet.toml that says where each device is, whatever ends us."""

from __future__ import annotations

import contextlib
import fcntl
import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from paredown.pipeline.store.store import write_atomic
from paredown.targets.errors import InputError, UsageError

FORMAT = 1
State = Literal["waiting", "installing", "switching", "soaking", "done", "failed", "taken back", "left out"]
#: States of a device with which nothing is being done.
SETTLED = frozenset(("waiting", "done", "failed", "taken back", "left out"))
UNKNOWN = "unknown"


@dataclass
class Record:
    """Where a device is.

    Attributes:
        name: of the device.
        address: of it.
        stage: from 1 on; 0 = none.
        state: what was begun last, or how it ended.
        before: release when the rollout began; None = none, `unknown` = nobody could ask.
        now: release that was there when it was asked last; likewise.
        what: happened, in words.
        known: release that an earlier rollout left there, for a device that cannot be asked; or `unknown`.
    """

    name: str
    address: str
    stage: int
    state: State = "waiting"
    before: str | None = UNKNOWN
    now: str | None = UNKNOWN
    what: str = ""
    known: str | None = UNKNOWN

    def release(self, now: bool) -> str | None:
        """What was or is there, as far as anybody knows."""
        found = self.now if now else self.before
        return self.known if found == UNKNOWN and self.state != "left out" else found


@dataclass
class Journal:
    """A rollout as the file has it.

    Attributes:
        path: of the file.
        key: of what was asked for; the same command has the same.
        release: that is rolled out.
        bundle: its name.
        records: of all devices.
        begun: seconds since 1970.
        decision: what the policy said; empty = go on.
        finished: whether nothing is left to be done.
    """

    path: Path
    key: str
    release: str
    bundle: str
    records: list[Record]
    begun: float = field(default_factory=time.time)
    decision: Literal["", "stop", "roll-back"] = ""
    finished: bool = False

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def note(self, record: Record, **changes: Any) -> None:
        """Changes a record, and keeps it; from any thread.

        Raises:
            InputError: the file cannot be written.
        """
        with self._lock:
            for name, value in changes.items():
                setattr(record, name, value)
            self._write()

    def decide(self, **changes: Any) -> None:
        """Changes the rollout, and keeps it.

        Raises:
            InputError: the file cannot be written.
        """
        with self._lock:
            for name, value in changes.items():
                setattr(self, name, value)
            self._write()

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "format": FORMAT, "key": self.key, "release": self.release, "bundle": self.bundle,
            "begun": self.begun, "decision": self.decision, "finished": self.finished,
            "devices": [asdict(record) for record in self.records],
        }  # fmt: skip

    def _write(self) -> None:
        write_atomic(self.path, (json.dumps(self.to_dict(), indent=1) + "\n").encode())


def journal_file(fleet: Path) -> Path:
    """The journal of a fleet.toml: `fleet.rollout.json` beside it."""
    return fleet.with_suffix(".rollout.json")


@contextlib.contextmanager
def alone(fleet: Path) -> Iterator[None]:
    """Only one rollout of a fleet at a time.

    Raises:
        UsageError: another one is at work.
        InputError: nothing can be written beside fleet.toml.
    """
    path = fleet.with_suffix(".rollout.lock")
    try:
        file = path.open("a")
    except OSError as error:
        raise InputError(f"cannot write here: {error.strerror}", where=path) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            hint = "wait until it has ended; `paredown status --fleet` shows the devices"
            raise UsageError("another rollout of this fleet is at work", where=fleet, hint=hint) from None
        yield


def read_journal(path: Path) -> Journal | None:
    """The rollout that a file tells of; None where there is no file.

    Raises:
        InputError: it is damaged.
    """
    try:
        given = json.loads(path.read_bytes())
        if given.pop("format") != FORMAT:
            raise ValueError("another format")
        records = [Record(**each) for each in given.pop("devices")]
        return Journal(path, records=records, **given)
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        hint = "delete it to begin anew; `paredown status --fleet` shows the devices"
        raise InputError("is no journal of a rollout, or damaged", where=path, hint=hint) from error


def begin(path: Path, key: str, release: str, bundle: str, records: Sequence[Record], anew: bool) -> Journal:
    """The rollout that was interrupted, where it is the same, or a new one.

    Args:
        path: of the journal.
        key: of what is asked for.
        release: to be rolled out.
        bundle: its name.
        records: of a new rollout.
        anew: whether one that was interrupted is given up.

    Raises:
        UsageError: another one was interrupted.
        InputError: the file is damaged, or cannot be written.
    """
    old = read_journal(path)
    if old is not None and not old.finished and not anew:
        if old.key == key:
            return old
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(old.begun))
        what = f"the rollout of {old.bundle} {old.release}, begun {when}, is not finished"
        raise UsageError(what, where=path, hint="give the same command again, or give it up with --anew")
    known = {} if old is None else {(each.name, each.address): each.release(True) for each in old.records}
    for record in records:
        record.known = known.get((record.name, record.address), UNKNOWN)
    made = Journal(path, key, release, bundle, list(records))
    made.decide()
    return made
