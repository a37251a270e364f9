"""Twenty devices: OpenSSH's servers with homes of their own, and emulated Raspberry Pis; real faults."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from needs import needs
from signing import A, manifested, released, tarred, trusting
from ssh_device import HOST, Sshd, known_hosts_line, new_key

from paredown.pipeline.device.deploy.deploy import Release
from paredown.pipeline.device.deploy.fleet import Fleet, Policy, stages
from paredown.pipeline.device.deploy.journal import Journal, Record, alone, begin, read_journal
from paredown.pipeline.device.deploy.rollout import go, succeeded
from paredown.pipeline.device.deploy.visit import Task
from paredown.targets.address import open_device
from paredown.targets.devices.service.board.starting import Health
from paredown.targets.devices.service.service import Board, Service
from paredown.targets.devices.shell.shell import ShellDevice
from paredown.targets.devices.transports.retry import Patience
from paredown.targets.devices.transports.ssh import SshAccess, SshTransport
from paredown.targets.emulated.board import start as emulated
from paredown.targets.errors import DeviceError

ONE_TRY = Patience(attempts=1, answer_s=60.0)
APP = """
import os, pathlib, time
pathlib.Path(os.environ["PAREDOWN_READY"]).touch()
time.sleep(0.3)
if NUMBER == 2 and (pathlib.Path.home() / "bad-window").exists():
    raise SystemExit("this release is no good here")
while True:
    time.sleep(0.2)
"""
PROVE = """
import pathlib
if NUMBER == 2 and (pathlib.Path.home() / "bad-vectors").exists():
    raise SystemExit("model.tflite: its test vectors differ here: 3 of 100")
print("{}")
"""


def release(number: int) -> Release:
    """A signed release of a few lines."""
    files = {
        "app.py": f"NUMBER = {number}\n{APP}".encode(),
        "targets/runners/prove.py": f"NUMBER = {number}\n{PROVE}".encode(),
    }
    manifest = manifested(files)
    archive = tarred({"manifest.json": manifest, **files})
    envelope = released(A, manifest=hashlib.sha256(manifest).hexdigest(), release=number)
    name = hashlib.sha256(archive).hexdigest()[:12]
    return Release(name, archive, "app", {}, envelope, "raspberry-pi-5", "digits")


@dataclass
class Place:
    """A device of this test; its home is None where it is on an emulated board."""

    access: SshAccess
    home: Path | None


class Loopback:
    """Servers on this machine's loopback."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._host, self._client = new_key(folder / "host"), new_key(folder / "id")
        self._servers: dict[str, Sshd] = {}

    def add(self, name: str, full: bool = False) -> Place:
        here = self._folder / name
        home, work = here / "home", here / "tmp"
        for path in (home, work):
            path.mkdir(parents=True)
        prefix: list[str] = []
        if full:
            mount = f'mount -t tmpfs -o size=16k paredown \'{work}\' && exec "$0" "$@"'
            prefix = [needs("unshare", "util-linux"), "--mount", "sh", "-c", mount]
        self._servers[name] = server = Sshd(here, self._folder / "host", self._client, work, home, prefix)
        (here / "known").write_text(known_hosts_line(self._host, server.port))
        return Place(SshAccess(HOST, server.port, None, self._folder / "id", here / "known"), home)

    def end(self, name: str) -> None:
        self._servers.pop(name).close()

    def close(self) -> None:
        for server in self._servers.values():
            server.close()


@contextlib.contextmanager
def connected(place: Place) -> Iterator[Service]:
    with ShellDevice(SshTransport(place.access, place.access.host, ONE_TRY), patience=ONE_TRY) as device:
        yield Service(device, "app")


def rolled(folder: Path, places: dict[str, Place], given: Release, text: str, policy: Policy) -> Journal:
    fleet = Fleet.model_validate({"device": [{"name": n, "address": f"ssh://{n}"} for n in places]})
    number = {name: i for i, names in enumerate(stages(fleet.device, text), 1) for name in names}
    records = [Record(name, f"ssh://{name}", number.get(name, 0)) for name in places]
    journal = begin(folder / "fleet.rollout.json", "k", given.name, given.bundle, records, False)
    task = Task(given, (), Health(2.0, restarts=0), 60.0)
    go(journal, policy, dict.fromkeys(places, task), lambda record: connected(places[record.name]))
    return journal


def runs(place: Place) -> str | None:
    with connected(place) as there:
        status = there.status()
        assert status["running"]
        return status["release"]


@pytest.mark.slow
def test_twenty_devices_four_of_them_with_a_fault(tmp_path: Path) -> None:
    needs("qemu-aarch64", "qemu-user")
    needs("proot", "proot")
    old, new = release(1), release(2)
    (tmp_path / "trust.json").write_bytes(trusting((A,)))
    with contextlib.ExitStack() as stack:
        loopback = Loopback(tmp_path)
        stack.callback(loopback.close)
        places = {f"d{i:02}": loopback.add(f"d{i:02}") for i in range(18)}
        for name in ("pi-1", "pi-2"):
            places[name] = Place(stack.enter_context(emulated("raspberry-pi-5")), None)
        for place in places.values():
            with connected(place) as there:
                Board(there.device).trust(tmp_path / "trust.json", "raspberry-pi-5")
                stack.callback(_stopped, place)
        first = rolled(tmp_path, places, old, "all", Policy(parallel=4))
        assert succeeded(first), first.to_dict()
        # now the faults: one is gone, one full, one fails its vectors, one its health window
        loopback.end("d03")
        places["d05"] = Place(loopback.add("d05-full", full=True).access, places["d05"].home)
        (tmp_path / "d05-full" / "home").rmdir()
        (tmp_path / "d05-full" / "home").symlink_to(tmp_path / "d05" / "home")
        (tmp_path / "d07" / "home" / "bad-vectors").touch()
        (tmp_path / "d09" / "home" / "bad-window").touch()
        # a policy that stops: the first five are done, but for one, and nothing else is touched
        stopped = rolled(tmp_path, places, new, "1,5,all", Policy(then="stop", parallel=4))
        assert stopped.decision == "stop" and stopped.finished
        states = {record.name: record.state for record in stopped.records}
        assert states == {name: "waiting" for name in places} | {
            "d00": "done", "d01": "done", "d02": "done", "d03": "failed", "d04": "done",
        }  # fmt: skip
        # one that goes on: sixteen have it, four say why not, and each runs a release that is known
        last = rolled(tmp_path, places, new, "1,5,all", Policy(then="go-on", parallel=4))
        told = {record.name: record for record in last.records}
        bad = {"d03", "d05", "d07", "d09"}
        assert {name for name, record in told.items() if record.state == "failed"} == bad
        assert all(record.state == "done" for name, record in told.items() if name not in bad)
        assert "cannot be reached" in told["d03"].what and told["d03"].now == "unknown"
        assert told["d03"].release(True) == old.name  # as the rollout before left it
        assert "no space left on the device" in told["d05"].what
        assert told["d07"].what == "model.tflite: its test vectors differ here: 3 of 100"
        assert told["d09"].what.startswith("it ended with status 1: this release is no good here; release ")
        assert told["d00"].what == "ran it already"
        for name in ("d07", "d09", "d10", "pi-1", "pi-2"):
            assert runs(places[name]) == told[name].now == (old if name in bad else new).name
        status = subprocess.run(
            [sys.executable, "-c", "import sys; from paredown.targets.devices.service.board.home import App; "
             "print(App('app').status()['release'])"],
            env={**os.environ, "HOME": str(places["d05"].home)}, capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
        assert status == old.name


def test_two_apps_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second fails in its health window; the policy takes the release back from the first, too."""
    monkeypatch.setenv("HOME", str(tmp_path))
    app = APP.replace("NUMBER == 2 and", "'bad' in __import__('sys').argv or").encode()
    archive = tarred({"app.py": app, "targets/runners/prove.py": b"print('{}')"})
    given = Release("r1", archive, "app", {}, None, "host", "digits")

    @contextlib.contextmanager
    def local(record: Record) -> Iterator[Service]:
        with open_device("local:") as device:
            yield Service(device, record.name)

    records = [Record("a", "local:", 1), Record("b", "local:", 2)]
    journal = begin(tmp_path / "j.json", "k", "r1", "digits", records, False)
    health = Health(0.5, restarts=0)
    tasks = {"a": Task(given, (), health, 60.0), "b": Task(given, ("bad",), Health(60.0, 0), 60.0)}
    try:
        go(journal, Policy(then="roll-back"), tasks, local)
        told = [(record.state, record.before, record.now) for record in journal.records]
        assert told == [("taken back", None, None), ("taken back", None, None)]
        assert "this release is no good here; none to go back to; taken back" in journal.records[1].what
        for record in records:
            with local(record) as there:
                assert not there.status()["running"]
    finally:
        for record in records:
            with contextlib.suppress(DeviceError), local(record) as there:
                there.stop(grace_s=0.5)


def _stopped(place: Place) -> None:
    with contextlib.suppress(Exception), connected(place) as there:
        there.stop(grace_s=1.0)


FLEET = """
[policy]
then = "roll-back"

[[device]]
name = "a"
address = "local:"
app_name = "a"

[[device]]
name = "b"
address = "local:"
app_name = "b"

[[device]]
name = "c"
address = "ssh://nobody@127.0.0.1:9"
target = "raspberry-pi-4"
"""


@pytest.mark.slow
def test_a_rollout_that_is_killed_goes_on_with_the_same_command(
    tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a user calls it; a second one at the same time is refused."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "fleet.toml").write_text(FLEET)
    (tmp_path / "photos").mkdir()
    command = [
        sys.executable, "-m", "paredown.apps.cli", "deploy", str(tiny.bundle), "--fleet", "fleet.toml",
        "--stages", "1,all", "--soak", "5s", "--", "--source", str(_clip(tmp_path)), "--realtime",
    ]  # fmt: skip
    journal = tmp_path / "fleet.rollout.json"

    def soaking() -> bool:
        return journal.exists() and '"soaking"' in journal.read_text()

    first = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        while not soaking():  # for as long as it takes on this machine
            assert first.poll() is None, "it has ended before its first health window"
            time.sleep(0.02)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert not (read_journal(journal) or pytest.fail("none")).finished
    with alone(tmp_path / "fleet.toml"):
        second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert second.returncode == 2 and "another rollout of this fleet is at work" in second.stderr
    other = subprocess.run([*command, "--json"], cwd=tmp_path, capture_output=True, text=True)
    assert other.returncode == 2 and "is not finished; give the same command again" in other.stderr
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    try:
        assert done.returncode == 0, done.stderr
        told = read_journal(journal)
        assert told and told.finished and [r.state for r in told.records] == ["done", "done", "left out"]
        assert "left out is a raspberry-pi-4; the bundle is for host" in " ".join(done.stdout.split())
    finally:
        with open_device("local:") as device:
            for name in ("a", "b"):
                Service(device, name).stop(grace_s=1.0)


def _clip(folder: Path) -> Path:
    import cv2
    import numpy as np

    path = folder / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 5.0, (96, 72))
    for index in range(3000):
        writer.write(np.full((72, 96, 3), index % 256, np.uint8))
    writer.release()
    return path
