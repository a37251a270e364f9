"""What a rollout does on one device: install, switch, wait for the verdict; and what it says of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from paredown.pipeline.device.deploy.deploy import Release
from paredown.pipeline.device.deploy.journal import UNKNOWN, Journal, Record
from paredown.targets.devices.errors import (
    AdbOfflineError,
    ConnectionLostError,
    NoAdbDeviceError,
    TimedOutError,
    UnreachableError,
)
from paredown.targets.devices.service.board.home import command_digest
from paredown.targets.devices.service.board.starting import Health
from paredown.targets.devices.service.service import READY_S
from paredown.targets.errors import DeviceError

#: What may be over when we come again.
LOST = (ConnectionLostError, UnreachableError, TimedOutError, AdbOfflineError, NoAdbDeviceError)
VISITS = 3
POLL_S = 1.0


class There(Protocol):
    """An app of a device; `Service` is one."""

    def install(
        self, archive: bytes, release: str, needs: Mapping[str, str], envelope: bytes | None = None,
        allow_older: bool = False, prepare: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        """See `Service.install`."""

    def start(
        self, release: str, module: str, arguments: Sequence[str], service: bool = False,
        allow_older: bool = False, health: Health | None = None, hang_s: float | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """See `Service.start`."""

    def status(self) -> dict[str, Any]:
        """See `Service.status`."""

    def back(self, release: str) -> dict[str, Any]:
        """See `Service.back`."""


Connect = Callable[[], AbstractContextManager[There]]


@dataclass(frozen=True)
class Task:
    """What is to be on a device.

    Attributes:
        release: to be installed.
        arguments: of the app there.
        health: what is asked of it.
        hang_s: seconds without a heartbeat, of an app that gave one.
        service: whether it starts with the device.
        allow_older: whether it may be older than what the device had.
        prepare: whether packages that are missing there are installed.
    """

    release: Release
    arguments: Sequence[str]
    health: Health
    hang_s: float
    service: bool = False
    allow_older: bool = False
    prepare: bool = True

    def runs(self, status: Mapping[str, Any]) -> bool:
        """Whether this very release runs there with these options."""
        command = {"module": self.release.module, "arguments": list(self.arguments), "hang_s": self.hang_s}
        return bool(
            status["running"]
            and status["release"] == self.release.name
            and status["command"] == command_digest(command)
        )


def visit(task: Task, record: Record, journal: Journal, connect: Connect) -> None:
    """Brings a release to a device; its record says how that ended. Nothing is raised for a device's fault.

    Args:
        task: what is to be there.
        record: of the device.
        journal: that keeps it.
        connect: opens the device.

    Raises:
        InputError: the journal cannot be written.
    """
    for left in reversed(range(VISITS)):
        try:
            with connect() as there:
                _work(task, record, journal, there)
            return
        except LOST as error:
            if left:
                time.sleep(POLL_S)
                continue
            journal.note(record, state="failed", what=error.what)
        except DeviceError as error:
            journal.note(record, state="failed", what=error.what)
            break
    _look(record, journal, connect)


def take_back(task: Task, record: Record, journal: Journal, connect: Connect) -> None:
    """Has the release before run again on a device, or nothing where there was none.

    Args:
        task: what was to be there.
        record: of the device.
        journal: that keeps it.
        connect: opens the device.

    Raises:
        InputError: the journal cannot be written.
    """
    try:
        with connect() as there:
            status = there.back(task.release.name)
            journal.note(
                record, state="taken back", now=status["release"], what=_joined(record.what, "taken back")
            )
    except DeviceError as error:
        journal.note(record, state="failed", what=_joined(record.what, f"not taken back: {error.what}"))
        _look(record, journal, connect)


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _look(record: Record, journal: Journal, connect: Connect) -> None:
    """What is there after something went wrong; nobody may answer."""
    try:
        with connect() as there:
            journal.note(record, now=there.status()["release"])
    except DeviceError:
        if record.now != UNKNOWN:  # it was reached before
            what = _joined(record.what, "could not be asked what runs there")
            journal.note(record, now=UNKNOWN, what=what)


def _work(task: Task, record: Record, journal: Journal, there: There) -> None:
    status = there.status()
    if record.before == UNKNOWN:
        journal.note(record, before=status["release"])
    journal.note(record, now=status["release"])
    window = status["window"] or {}
    if task.runs(status) and window.get("release") == task.release.name and window["state"] != "failed":
        if window["state"] == "passed":
            what = "" if record.state in ("switching", "soaking") else "ran it already"
            journal.note(record, state="done", what=what)
            return
    else:
        journal.note(record, state="installing")
        release = task.release
        there.install(
            release.archive, release.name, release.needs, release.signed, task.allow_older, task.prepare
        )
        journal.note(record, state="switching")
        status = there.start(
            release.name, release.module, task.arguments, task.service, task.allow_older, task.health,
            task.hang_s,
        )  # fmt: skip
    journal.note(record, state="soaking", now=status["release"])
    status, what = verdict(task.release.name, task.health, there)
    journal.note(record, state="failed" if what else "done", now=status["release"], what=what)


def verdict(
    release: str, health: Health, there: There, sleep: Callable[[float], None] = time.sleep
) -> tuple[dict[str, Any], str]:
    """Waits until a device has judged a release in its health window.

    Args:
        release: its name.
        health: what is asked of it.
        there: the app.
        sleep: waits.

    Returns:
        The app's last status, and why the release failed; empty where it holds.

    Raises:
        DeviceError: the connection is lost; the device goes on watching.
    """
    deadline = time.monotonic() + (health.seconds + READY_S) * (health.restarts + 2)
    while True:
        status = there.status()
        window = status["window"] or {}
        ended = status["ended"].get("status") if not status["running"] else None
        if window.get("release") != release:
            return status, "another release was started meanwhile"
        if window["state"] == "passed" or (window["state"] == "open" and ended == 0):
            return status, ""
        if window["state"] == "failed":
            said = f": {window['said']}" if window.get("said") else ""
            after = f"release {window['before']} runs again" if window["returned"] else "none to go back to"
            return status, f"it {window['why']}{said}; {after}"
        if ended is not None and not status["running"]:
            return status, f"does not run: it {status['ended'].get('why', 'ended')}"
        if time.monotonic() > deadline:
            return status, "gave no verdict in its health window"
        sleep(min(POLL_S, max(0.05, health.seconds / 10)))
