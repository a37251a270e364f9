"""A release goes to a fleet, stage by stage; too many failures end it, or take it back."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paredown.pipeline.bundle.archive import unpack
from paredown.pipeline.bundle.signing.release import verify_bundle
from paredown.pipeline.device.deploy.deploy import release_of
from paredown.pipeline.device.deploy.fleet import Fleet, FleetDevice, Policy, load_fleet, stages
from paredown.pipeline.device.deploy.journal import (
    SETTLED,
    UNKNOWN,
    Journal,
    Record,
    alone,
    begin,
    journal_file,
)
from paredown.pipeline.device.deploy.visit import Task, There, take_back, visit
from paredown.pipeline.store.event import Event, Tell, nobody
from paredown.pipeline.store.store import canonical_json
from paredown.targets.address import open_device
from paredown.targets.devices.service.board.starting import Health
from paredown.targets.devices.service.service import Service
from paredown.targets.errors import DeviceError, UsageError

#: Opens a device's app.
Open = Callable[[FleetDevice, str], AbstractContextManager[There]]


@dataclass(frozen=True)
class Asked:
    """What a rollout shall do.

    Attributes:
        bundle: the file.
        app: the module below its `device` folder.
        name: of the app on the devices; None = that of `app`.
        stages: as `fleet.stages` reads them.
        soak_s: seconds that a release has to live on a device.
        arguments: of the app, on all devices.
        service: whether it starts with the device.
        allow_older: whether a device may go back to an older signed release.
        prepare: whether packages that are missing there are installed.
        anew: whether a rollout that was interrupted is given up.
    """

    bundle: Path
    app: str = "camera"
    name: str | None = None
    stages: str = "1,all"
    soak_s: float = 60.0
    arguments: Sequence[str] = ()
    service: bool = False
    allow_older: bool = False
    prepare: bool = True
    anew: bool = False


def roll_out(path: Path, asked: Asked, tell: Tell = nobody) -> Journal:
    """Rolls a bundle out to a fleet, or goes on where that was interrupted.

    Args:
        path: of fleet.toml; the journal is kept beside it.
        asked: what to do.
        tell: hears of each device.

    Returns:
        What became of each device.

    Raises:
        UsageError: another rollout is at work or was interrupted; the bundle is for no device of the fleet.
        InputError: the fleet or the bundle is broken, or the journal cannot be written.
    """
    fleet = load_fleet(path)
    release = release_of(asked.bundle, asked.app, asked.arguments)
    if release.signed is not None:
        verify_bundle(unpack(asked.bundle), None)  # whose it is, and whether that counts, devices say
    meant = [each for each in fleet.device if each.target in (None, release.target)]
    if not meant:
        what = f"is made for {release.target}, and no device of {path} is one"
        raise UsageError(what, where=asked.bundle)
    name = asked.name or asked.app
    planned = stages(meant, asked.stages)
    tasks = {
        each.name: Task(
            release, (*asked.arguments, *each.arguments),
            Health(asked.soak_s, fleet.health.restarts, fleet.health.errors), fleet.health.hang,
            asked.service, asked.allow_older, asked.prepare,
        )
        for each in meant
    }  # fmt: skip
    with alone(path):
        journal = begin(
            journal_file(path), _key(fleet, asked, release.name), release.name, release.bundle,
            _records(fleet, planned, release.target), asked.anew,
        )  # fmt: skip
        devices = {each.name: each for each in meant}

        def connect(record: Record) -> AbstractContextManager[There]:
            return opened(devices[record.name], name)

        go(journal, fleet.policy, tasks, connect, tell)
    return journal


@contextlib.contextmanager
def opened(device: FleetDevice, name: str) -> Iterator[Service]:
    """Connects to a device of a fleet.

    Args:
        device: of the fleet.
        name: of the app, where the device has no other for it.

    Raises:
        DeviceError: it cannot be reached.
    """
    with open_device(device.address) as connected:
        yield Service(connected, device.app_name or name)


def go(
    journal: Journal,
    policy: Policy,
    tasks: Mapping[str, Task],
    connect: Callable[[Record], AbstractContextManager[There]],
    tell: Tell = nobody,
) -> None:
    """Does what is left of a rollout.

    Args:
        journal: where it is.
        policy: how many may fail, and what happens then.
        tasks: name of a device -> what is to be there.
        connect: opens a device.
        tell: hears of each device.

    Raises:
        InputError: the journal cannot be written.
    """

    def bring(record: Record) -> None:
        tell(Event(f"stage {record.stage}: {record.name}", "running"))
        visit(tasks[record.name], record, journal, lambda: connect(record))
        what = f"failed: {record.what}" if record.state == "failed" else record.what
        tell(Event(f"stage {record.stage}: {record.name}", "done", detail=what))

    def undo(record: Record) -> None:
        take_back(tasks[record.name], record, journal, lambda: connect(record))
        tell(Event(f"{record.name}", "done", detail=record.what))

    strict = policy.then != "go-on"
    for number in sorted({record.stage for record in journal.records} - {0}):
        stage = [record for record in journal.records if record.stage == number]
        too_many = functools.partial(_too_many, stage, policy.failures if strict else len(stage))
        begun = [each for each in stage if each.state not in SETTLED]  # these are ended, whatever was decided
        waiting = [each for each in stage if each.state == "waiting"]
        at_once(begun, bring, policy.parallel, lambda: False)
        if not journal.decision:
            at_once(waiting, bring, policy.parallel, too_many)
        if not journal.decision and too_many():
            journal.decide(decision="stop" if policy.then == "stop" else "roll-back")
    if journal.decision == "roll-back":
        at_once([each for each in journal.records if _to_undo(each, journal.release)], undo, policy.parallel,
                lambda: False)  # fmt: skip
    journal.decide(finished=True)


def _too_many(stage: Sequence[Record], failures: int) -> bool:
    return sum(record.state == "failed" for record in stage) > failures


def _to_undo(record: Record, release: str) -> bool:
    """Whether this rollout brought its release to a device that has it, or had it when it was lost."""
    brought = record.state in ("done", "failed") and record.before not in (release, UNKNOWN)
    return brought and record.now in (release, UNKNOWN)


def at_once(
    records: Sequence[Record], work: Callable[[Record], None], parallel: int, enough: Callable[[], bool]
) -> None:
    """Works on several devices at a time, in their order.

    Args:
        records: of the devices.
        work: on one.
        parallel: how many at a time.
        enough: asked before each one, whether the others are left alone.

    Raises:
        BaseException: what one of them raised; the others come to their end first.
    """
    waiting: queue.SimpleQueue[Record] = queue.SimpleQueue()
    for record in records:
        waiting.put(record)
    raised: list[BaseException] = []

    def worker() -> None:
        while not raised and not enough():
            try:
                record = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                work(record)
            except BaseException as error:  # told below, by whoever waits for us
                raised.append(error)

    threads = [threading.Thread(target=worker, daemon=True) for _ in range(min(parallel, len(records)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]


def succeeded(journal: Journal) -> bool:
    """Whether each device of a stage runs the release."""
    return all(record.state == "done" for record in journal.records if record.stage)


def ask(fleet: Fleet, name: str) -> list[tuple[FleetDevice, dict[str, Any] | str]]:
    """What runs on each device of a fleet, or why that cannot be said.

    Args:
        fleet: the devices.
        name: of the app, where a device has no other for it.
    """
    found: dict[str, dict[str, Any] | str] = {}
    devices = {each.name: each for each in fleet.device}

    def look(record: Record) -> None:
        try:
            with opened(devices[record.name], name) as there:
                found[record.name] = there.status()
        except DeviceError as error:
            found[record.name] = error.what

    at_once(
        [Record(each.name, each.address, 0) for each in fleet.device], look, fleet.policy.parallel,
        lambda: False,
    )  # fmt: skip
    return [(each, found[each.name]) for each in fleet.device]


def _records(fleet: Fleet, planned: Sequence[Sequence[str]], target: str) -> list[Record]:
    stage_of = {name: number for number, names in enumerate(planned, 1) for name in names}
    made = []
    for each in fleet.device:
        record = Record(each.name, each.address, stage_of.get(each.name, 0))
        if each.target not in (None, target):
            record.state, record.what = "left out", f"is a {each.target}; the bundle is for {target}"
        elif not record.stage:
            record.what = "in no stage"
        made.append(record)
    return made


def _key(fleet: Fleet, asked: Asked, release: str) -> str:
    """Another one for another rollout."""
    wanted = {
        "release": release, "fleet": fleet.model_dump(mode="json"), "app": asked.app, "name": asked.name,
        "stages": asked.stages, "soak": asked.soak_s, "arguments": list(asked.arguments),
        "service": asked.service, "older": asked.allow_older,
    }  # fmt: skip
    return hashlib.sha256(canonical_json(wanted).encode()).hexdigest()
