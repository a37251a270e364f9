"""A rollout over boards of a few lines: policies, faults, and a death at every line of the journal."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.pipeline.device.deploy.deploy import Release
from paredown.pipeline.device.deploy.fleet import Policy
from paredown.pipeline.device.deploy.journal import SETTLED, Journal, Record, begin
from paredown.pipeline.device.deploy.rollout import go, succeeded
from paredown.pipeline.device.deploy.visit import Task, verdict
from paredown.targets.devices.errors import ConnectionLostError, NoSpaceError, UnreachableError
from paredown.targets.devices.service.board.home import command_digest
from paredown.targets.devices.service.board.starting import Health
from paredown.targets.errors import DeviceError

pytestmark = pytest.mark.unit
NEW = Release("new", b"", "app", {}, None, "host", "digits")
TASK = Task(NEW, ("--x",), Health(0.0), 9.0)
FAULTS = ("", "absent", "full", "vectors", "start", "window", "lost")


class Killed(BaseException):
    """We die here."""


@dataclass
class Board:
    """What a device does, as `Service` tells of it.

    Attributes:
        fault: what goes wrong there.
        release: that runs.
        visits: connections so far.
    """

    fault: str = ""
    release: str | None = "old"
    visits: int = 0
    installs: int = 0
    window: dict[str, Any] | None = None
    command: dict[str, Any] = field(default_factory=dict)

    @contextlib.contextmanager
    def connect(self) -> Iterator[Board]:
        self.visits += 1
        if self.fault == "absent":
            raise UnreachableError("refused", where="there")
        yield self

    def status(self) -> dict[str, Any]:
        if self.window and self.window["state"] == "open":
            if self.fault == "window":
                self.window |= {"state": "failed", "why": "ended with status 3", "returned": True}
                self.release = self.window["before"]
            else:
                self.window["state"] = "passed"
        return {
            "release": self.release, "running": self.release is not None, "window": self.window, "ended": {},
            "command": command_digest(self.command),
        }  # fmt: skip

    def install(self, archive, release, needs, envelope=None, allow_older=False, prepare=False):
        self.installs += 1
        if self.fault == "full":
            raise NoSpaceError("x", where="there")
        if self.fault == "vectors":
            raise DeviceError("its test vectors differ here", where="there")
        return {}

    def start(self, release, module, arguments, service=False, allow_older=False, health=None, hang_s=None):
        if self.fault == "start":
            raise DeviceError(f"it ended with status 1; release {self.release} runs again", where="there")
        before, self.release = self.release, release
        self.window = {"release": release, "before": before, "state": "open", "returned": False, "why": ""}
        self.command = {"module": module, "arguments": list(arguments), "hang_s": hang_s}
        if self.fault == "lost":  # once; the device completes the change by itself
            self.fault = ""
            raise ConnectionLostError("reset", where="there")
        return {"release": release}

    def back(self, release):
        assert release == "new"
        if self.window and self.window["release"] == release == self.release:
            self.release = self.window["before"]
        return {"release": self.release}


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paredown.pipeline.device.deploy.visit.time.sleep", lambda seconds: None)


def rolled(
    folder: Path, boards: list[Board], sizes: list[int], policy: Policy, die_at: int | None = None
) -> Journal:
    """One rollout, or the next part of it; `die_at` counts the writes of the journal until we die."""
    records, stage = [], 0
    for number, size in enumerate(sizes, 1):
        records += [Record(f"d{stage + i}", "local:", number) for i in range(size)]
        stage += size
    journal = begin(folder / "j.json", "k", "new", "digits", records, False)
    left, lock, write = [die_at], threading.Lock(), journal._write

    def dying() -> None:
        with lock:
            if left[0] is not None:
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
        write()

    journal._write = dying  # type: ignore[method-assign]
    by_name = {f"d{i}": board for i, board in enumerate(boards)}
    go(journal, policy, dict.fromkeys(by_name, TASK), lambda record: by_name[record.name].connect())
    return journal


def states(journal: Journal) -> list[str]:
    return [record.state for record in journal.records]


def test_each_fault_leaves_the_release_before_and_says_why(tmp_path: Path) -> None:
    boards = [Board(fault) for fault in FAULTS]
    journal = rolled(tmp_path, boards, [len(FAULTS)], Policy(then="go-on"))
    told = {fault: record for fault, record in zip(FAULTS, journal.records, strict=True)}
    assert [told[fault].state for fault in FAULTS] == ["done", *5 * ["failed"], "done"]
    assert told[""].before == "old" and told[""].now == "new"
    assert "cannot be reached: refused" in told["absent"].what and told["absent"].now == "unknown"
    assert "no space left" in told["full"].what and told["full"].now == "old"
    assert told["vectors"].what == "its test vectors differ here"
    assert told["start"].what == "it ended with status 1; release old runs again"
    assert told["window"].what == "it ended with status 3; release old runs again"
    assert [board.release for board in boards] == ["new", "old", "old", "old", "old", "old", "new"]
    assert journal.finished and not succeeded(journal)


def test_too_many_failures_stop_it(tmp_path: Path) -> None:
    boards = [Board(), Board("vectors"), Board(), Board()]
    journal = rolled(tmp_path, boards, [1, 1, 2], Policy())
    assert states(journal) == ["done", "failed", "waiting", "waiting"] and journal.decision == "stop"
    assert [board.visits for board in boards[2:]] == [0, 0]


def test_within_a_stage_too(tmp_path: Path) -> None:
    boards = [Board("vectors"), Board(), Board()]
    journal = rolled(tmp_path, boards, [3], Policy(parallel=1))
    assert states(journal) == ["failed", "waiting", "waiting"] and boards[1].visits == 0


def test_as_many_as_allowed_do_not(tmp_path: Path) -> None:
    boards = [Board("vectors"), Board(), Board("full"), Board()]
    journal = rolled(tmp_path, boards, [2, 2], Policy(failures=1))
    assert states(journal) == ["failed", "done", "failed", "done"] and journal.decision == ""


def test_it_is_taken_back_everywhere(tmp_path: Path) -> None:
    first = Board(release=None)
    boards = [Board(), first, Board("window"), Board()]
    journal = rolled(tmp_path, boards, [2, 1, 1], Policy(then="roll-back"))
    assert states(journal) == ["taken back", "taken back", "failed", "waiting"]
    assert [board.release for board in boards] == ["old", None, "old", "old"]
    assert [record.now for record in journal.records] == ["old", None, "old", "unknown"]


def test_what_runs_it_already_is_left_alone(tmp_path: Path) -> None:
    boards = [Board(), Board()]
    rolled(tmp_path, boards, [2], Policy())
    boards[1].fault = "vectors"  # it would be seen
    journal = rolled(tmp_path, boards, [2], Policy(then="roll-back"))
    assert states(journal) == ["done", "done"] and journal.records[0].what == "ran it already"
    assert [board.installs for board in boards] == [1, 1]


@settings(max_examples=60, deadline=None)
@given(
    faults=st.lists(st.sampled_from(FAULTS), min_size=1, max_size=6),
    cuts=st.lists(st.integers(0, 12), min_size=1, max_size=5),
    then=st.sampled_from(("stop", "go-on", "roll-back")),
    failures=st.integers(0, 2),
    data=st.data(),
)
def test_killed_anywhere_it_ends_as_if_it_had_not_been(
    tmp_path_factory, faults: list[str], cuts: list[int], then: Any, failures: int, data: st.DataObject
) -> None:
    """One board at a time, so that both go the same way; each release is one of two, and known."""
    first = data.draw(st.integers(1, len(faults)))
    sizes = [size for size in (first, len(faults) - first) if size]
    policy = Policy(then=then, failures=failures, parallel=1)
    calm = [Board(fault) for fault in faults]
    expected = rolled(tmp_path_factory.mktemp("calm"), calm, sizes, policy)
    folder, boards = tmp_path_factory.mktemp("killed"), [Board(fault) for fault in faults]
    journal = None
    for cut in (*cuts, None):
        with contextlib.suppress(Killed):
            journal = rolled(folder, boards, sizes, policy, die_at=cut)
            break
    assert journal is not None and journal.finished and journal.decision == expected.decision
    assert [board.release for board in boards] == [board.release for board in calm]
    assert [record.state for record in journal.records] == [record.state for record in expected.records]
    for record, board in zip(journal.records, boards, strict=True):
        assert record.state in SETTLED and record.now in (board.release, "unknown")


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({"window": {"release": "other", "state": "passed"}}, "another release was started meanwhile"),
        ({"window": None}, "another release was started meanwhile"),
        ({"window": {"release": "new", "state": "passed"}}, ""),
        ({"window": {"release": "new", "state": "open"}, "running": False, "ended": {"status": 0}}, ""),
        (
            {"window": {"release": "new", "state": "open"}, "running": False,
             "ended": {"status": -9, "why": "was killed by SIGKILL"}},
            "does not run: it was killed by SIGKILL",
        ),
        (
            {"window": {"release": "new", "state": "failed", "why": "x", "said": "y", "before": None,
                        "returned": False}},
            "it x: y; none to go back to",
        ),
    ],
)  # fmt: skip
def test_verdicts(status: dict[str, Any], said: str) -> None:
    class There(Board):
        def status(self) -> dict[str, Any]:
            return {"running": True, "release": "new", "ended": {}, **status}

    assert verdict("new", Health(0.0), There(), lambda seconds: None)[1] == said
