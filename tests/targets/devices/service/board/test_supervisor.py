"""Apps that crash, hang, are killed, fill the disk: a real supervisor keeps real processes of a few lines."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from device_contract import lives, until

from paredown.targets.devices.service.board import starting, supervisor
from paredown.targets.devices.service.board.home import App, Failure
from paredown.targets.devices.service.board.starting import Health

#: Does what its arguments ask for, after it said that it is ready.
PROGRAM = """
import os, pathlib, signal, socket, sys, time
def beat():
    to = os.environ["NOTIFY_SOCKET"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.sendto(b"WATCHDOG=1", "\\0" + to[1:])
here = pathlib.Path(os.environ["PAREDOWN_READY"]).parent
count = here / "count"
count.write_text(str(int(count.read_text() if count.exists() else 0) + 1))
(here / "pid").write_text(str(os.getpid()))
pathlib.Path(os.environ["PAREDOWN_READY"]).touch()
for word in sys.argv[1:]:
    if word == "crash":
        raise SystemExit("it is no good")
    if word == "crash-once" and count.read_text() == "1":
        raise SystemExit("it is no good yet")
    if word == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if word == "hang":
        beat()
        time.sleep(1000)
    if word == "errors":
        print("error: it goes on badly\\n" * 20, end="", flush=True)  # seen at once
    if word == "mute":
        os.close(1), os.close(2)
while True:
    time.sleep(0.02)
    if "beat" in sys.argv:
        beat()
"""


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[App]:
    monkeypatch.setenv("HOME", str(tmp_path))
    app = App("app")
    yield app
    if app.running():
        starting.stop(app, 0.2)


def start(
    app: App, release: str, *words: str, health: Health | None = None, hang_s: float = 60.0
) -> dict[str, Any]:
    (app.releases / release).mkdir(parents=True, exist_ok=True)
    (app.releases / release / "program.py").write_text(PROGRAM)
    (app.home / "count").unlink(missing_ok=True)
    command = {"module": "program", "arguments": list(words), "hang_s": hang_s}
    return starting.start(app, release, command, False, 60.0, "me@here", health=health)


def window(app: App) -> dict[str, Any]:
    return dict(app.status()["window"])


def test_one_that_is_killed_is_started_again_and_says_why(app: App) -> None:
    start(app, "r1", "beat")
    supervisor_, first = app.status()["pid"], int((app.home / "pid").read_text())
    os.kill(first, signal.SIGKILL)
    until(lambda: app.status()["restarts"] == 1 and app.status()["state"] == "runs", "it runs again")
    status = app.status()
    assert status["running"] and status["pid"] == supervisor_ and int((app.home / "pid").read_text()) != first
    assert status["ended"]["why"].startswith("was killed by SIGKILL") and status["ended"]["status"] == -9
    assert "paredown: it was killed by SIGKILL" in (app.home / "log").read_text()


@pytest.mark.slow
def test_one_that_hangs_is_ended_and_started_again(app: App) -> None:
    """Even if it does not listen: it is killed, after the seconds that an app has to complete its files."""
    start(app, "r1", "deaf", "hang", hang_s=1.0)
    until(lambda: app.status()["restarts"] == 1, "it was started again")
    assert app.status()["ended"]["why"] == "gave no heartbeat for 1 s"


def test_one_that_gives_heartbeats_or_never_gave_one_is_left_alone(app: App) -> None:
    start(app, "r1", "beat", "mute", hang_s=1.5, health=Health(3.0))
    until(lambda: window(app)["state"] == "passed", "its window is over")
    assert app.status()["restarts"] == 0 and not app.status()["ended"]
    start(app, "r2", "mute", hang_s=0.5, health=Health(1.0))
    until(lambda: window(app)["state"] == "passed", "its window is over")
    assert app.status()["restarts"] == 0


@pytest.mark.parametrize(
    ("words", "hang_s", "why"),
    [
        (("crash",), 60.0, "ended with status 1"),
        (("hang",), 0.5, "gave no heartbeat for 0.5 s"),
        (("errors",), 60.0, "said 20 errors in its health window"),
    ],
)
def test_one_that_fails_in_its_window_gives_way(
    app: App, words: tuple[str, ...], hang_s: float, why: str
) -> None:
    """With nobody there: who started it is gone by then."""
    start(app, "r1", "beat")
    start(app, "r2", *words, hang_s=hang_s, health=Health(60.0, 0, 10))
    until(lambda: window(app)["state"] == "failed" and app.status()["state"] == "runs", "r1 is back")
    status = app.status()
    assert status["release"] == "r1" and status["running"] and lives(int((app.home / "pid").read_text()))
    assert window(app)["why"] == why and window(app)["returned"]
    assert f"paredown: it {why}; release r1 comes back" in (app.home / "log").read_text()


def test_a_failure_that_is_allowed_begins_the_window_anew(app: App) -> None:
    start(app, "r1", "crash-once", health=Health(1.0, restarts=1))
    until(lambda: window(app)["state"] == "passed", "it holds")
    assert window(app)["failures"] == 1 and app.status()["restarts"] == 1


def test_where_there_is_nothing_to_go_back_to_it_is_tried_again(app: App) -> None:
    start(app, "r1", "crash-once", health=Health(60.0, restarts=0))
    until(lambda: app.status()["restarts"] == 1 and app.status()["state"] == "runs", "it runs again")
    assert window(app)["state"] == "failed" and not window(app)["returned"]


def test_the_options_before_come_back_too(app: App) -> None:
    start(app, "r1", "beat")
    start(app, "r1", "crash", health=Health(60.0, restarts=0))
    until(lambda: window(app)["state"] == "failed" and app.status()["state"] == "runs", "it runs as before")
    assert json.loads((app.releases / "r1.json").read_bytes())["arguments"] == ["beat"]


def test_a_supervisor_that_is_killed_takes_the_app_along(app: App) -> None:
    """Else nobody would watch it; under systemd both are started again."""
    start(app, "r1", health=Health(60.0, restarts=0))
    child = int((app.home / "pid").read_text())
    os.kill(app.status()["pid"], signal.SIGKILL)
    until(lambda: not lives(child) and not app.running(), "both are gone")
    start(app, "r1")
    start(app, "r2", health=Health(60.0, restarts=0))
    until(lambda: window(app)["armed"], "the supervisor saw that it is ready")
    os.kill(app.status()["pid"], signal.SIGKILL)
    until(lambda: not app.running(), "both are gone")
    program = app.home / "keeping" / "supervisor.py"  # as systemd does
    subprocess.Popen([sys.executable, program, "run", "app"], start_new_session=True)
    until(lambda: window(app)["state"] == "failed" and app.status()["state"] == "runs", "it runs again")
    assert app.status()["release"] == "r1"  # the window was open: a device that dies of r2 shall live
    assert window(app)["why"] == "was interrupted: the device or the supervisor started again"


def test_going_back_by_hand(app: App) -> None:
    start(app, "r1", "beat")
    start(app, "r2", "beat")
    assert starting.back(app, "r9", 60.0)["release"] == "r2"  # that is not what runs
    assert starting.back(app, "r2", 60.0)["release"] == "r1" and app.running()


def test_going_back_from_the_first(app: App) -> None:
    start(app, "r1", "beat")
    assert starting.back(app, "r1", 60.0)["release"] is None and not app.running()


def test_a_pause_is_ended_by_stop(app: App) -> None:
    start(app, "r1", "crash")
    until(lambda: app.status()["state"] == "waits", "it waits")
    status = starting.stop(app, 5.0)
    assert status["was_running"] and status["state"] == "ended" and status["ended"]["said"] == "it is no good"


def test_a_full_disk_takes_no_state_away(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no new file could be made: what is there is written over in its place."""
    start(app, "r1", "beat")

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    before = (app.home / "run.json").read_bytes()
    monkeypatch.setattr(supervisor, "write", full)
    kept = supervisor.Supervisor(app, 0)
    kept._note("runs")
    assert json.loads((app.home / "run.json").read_bytes())["pid"] == os.getpid()
    kept._put("none.json", {})
    assert not (app.home / "none.json").exists()
    (app.home / "run.json").write_bytes(before)


def test_systemd_hears_that_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as above:
        above.bind("\0paredown-test-above")
        monkeypatch.setenv("NOTIFY_SOCKET", "@paredown-test-above")
        monkeypatch.setenv("WATCHDOG_USEC", "1")
        watchdog = supervisor.Watchdog()
        watchdog.tell("WATCHDOG=1")
        assert above.recv(100) == b"WATCHDOG=1"
        assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & set(os.environ)  # the app has another one
        assert not watchdog.beats()
        above.sendto(b"STATUS=x\nWATCHDOG=1", "\0" + watchdog.name[1:])
        above.sendto(b"STATUS=x", "\0" + watchdog.name[1:])
        assert watchdog.beats() and not watchdog.beats()


def test_reasons() -> None:
    assert supervisor.reason(3, True) == "ended with status 3"
    assert supervisor.reason(-9, False) == "was killed by SIGKILL"
    assert (
        supervisor.reason(-9, True) == "was killed by SIGKILL; the kernel ended a process for lack of memory"
    )
    assert supervisor.reason(-63, False) == "was killed by signal 63" and supervisor.oom_kills() >= 0


def test_it_says_what_it_needs(app: App, capsys: pytest.CaptureFixture[str]) -> None:
    assert supervisor.main(["x"]) == supervisor.FAILED
    assert capsys.readouterr().err == "supervisor.py run NAME\n"
    with pytest.raises(Failure, match="no app called other was deployed here"):
        starting.stop(App("other"), 0.1)
