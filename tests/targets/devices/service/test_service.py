"""Apps that stay on a device: systemd's side of it, names, logs that stay short. No app of ours is needed."""

from __future__ import annotations

import io
import json
import os
import signal
import stat
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from device_contract import until

from paredown.targets.address import open_device
from paredown.targets.devices.errors import NoSpaceError
from paredown.targets.devices.service import keeper
from paredown.targets.devices.service.board import supervisor, unit
from paredown.targets.devices.service.board.log import LOG_BYTES
from paredown.targets.devices.service.service import Service
from paredown.targets.errors import DeviceError

#: An app: it says that it is ready, and then what its arguments ask for.
APP = """
import os, pathlib, sys, time
print("hello", *sys.argv[1:], flush=True)
pathlib.Path(os.environ["PAREDOWN_READY"]).touch()
if "talk" in sys.argv:
    for index in range(60000):
        print(f"{index:06} " + 64 * "x")
while "stay" in sys.argv:
    time.sleep(0.05)
"""
#: Stands for systemd: notes what it is asked for, starts what a unit says, in a session of its own.
SYSTEMCTL = """#!{python}
import os, pathlib, re, subprocess, sys
home = pathlib.Path(os.environ["HOME"])
with (home / "asked").open("a") as file:
    print(pathlib.Path(sys.argv[0]).name, *sys.argv[1:], file=file)
if "--now" in sys.argv and "enable" in sys.argv:
    unit = (home / ".config/systemd/user" / sys.argv[-1]).read_text()
    command = re.search(r'^ExecStart="(.*)" "(.*)" run (.*)$', unit, re.M).groups()
    quiet = dict(stdin=-3, stdout=-3, stderr=-3)
    subprocess.Popen([command[0], command[1], "run", command[2]], start_new_session=True, **quiet)
"""


@pytest.fixture
def home(tmp_path, monkeypatch) -> Iterator[Path]:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    yield folder
    with open_device("local:") as device:
        for app in (folder / ".local/share/paredown").glob("*/run.lock"):
            Service(device, app.parent.name).stop(grace_s=0.5)


@pytest.fixture
def service(home) -> Iterator[Service]:
    with open_device("local:") as device:
        yield Service(device, "app")


def programs(folder: Path, monkeypatch, names=("systemctl", "loginctl")) -> None:
    """Puts a systemd of ours before the system's."""
    folder.mkdir()
    for name in names:
        (folder / name).write_text(SYSTEMCTL.format(python=sys.executable))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def archive(**files: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name.replace("__", "/").replace("_py", ".py"))
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


def install(service: Service, release: str = "r1", proof: str = "print('{}')") -> None:
    service.install(archive(app_py=APP, targets__runners__prove_py=proof), release, {})


def test_it_runs_stops_and_says_what_it_said(service, home):
    install(service)
    started = service.start("r1", "app", ["stay", "a b", "$HOME"])
    assert started["running"] and started["release"] == "r1" and started["previous"] is None
    said: list[str] = []
    service.logs(said.append)
    assert said == ["release r1 starts", "hello stay a b $HOME"]
    assert service.stop()["was_running"] and not service.status()["running"]


def test_what_ignores_a_kind_end_is_killed(service):
    text = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + APP
    service.install(archive(app_py=text, targets__runners__prove_py="print('{}')"), "r1", {})
    service.start("r1", "app", ["stay"])
    ended = service.stop(grace_s=0.2)
    assert ended["was_running"] and not ended["running"]


def test_the_log_stays_short_and_can_be_followed(service, home):
    install(service)
    service.start("r1", "app", ["talk", "stay"])
    folder = home / ".local/share/paredown/app"
    last: list[str] = []
    while not last or not last[-1].startswith("059999"):
        service.logs(last.append, lines=1)
    sizes = {path.name: path.stat().st_size for path in folder.glob("log*")}
    assert set(sizes) == {"log", "log.1"} and max(sizes.values()) <= LOG_BYTES
    assert sum(sizes.values()) > LOG_BYTES
    service.stop()
    said: list[str] = []
    service.logs(said.append, lines=3, follow=True)  # it has ended: nothing to wait for
    assert [line[:6] for line in said] == ["059997", "059998", "059999"]


def test_systemd_keeps_it(service, home, tmp_path, monkeypatch):
    programs(tmp_path / "bin", monkeypatch)
    install(service)
    with open_device("local:") as device:  # whose shell has the new PATH
        there = Service(device, "app")
        assert there.start("r1", "app", ["stay"], service=True)["service"]
        unit = home / ".config/systemd/user/paredown-app.service"
        text = unit.read_text()
        assert "Restart=on-failure" in text and "WantedBy=default.target" in text
        there.start("r1", "app", ["stay", "more"], service=True)  # an upgrade never leaves it disabled
        assert there.status()["running"] and there.stop()["was_running"] and not unit.exists()
    asked = (home / "asked").read_text().splitlines()
    assert asked == [
        "systemctl --user show-environment",
        "loginctl enable-linger",
        "systemctl --user daemon-reload",
        "systemctl --user enable --now paredown-app.service",
        "systemctl --user show-environment",
        "systemctl --user stop paredown-app.service",
        "loginctl enable-linger",
        "systemctl --user daemon-reload",
        "systemctl --user enable --now paredown-app.service",
        "systemctl --user disable --now paredown-app.service",
        "systemctl --user daemon-reload",
    ]


def test_without_systemd_nothing_is_touched(service, home, tmp_path, monkeypatch):
    install(service)
    service.start("r1", "app", ["stay"])
    monkeypatch.setattr(unit.shutil, "which", lambda name: None)
    with pytest.raises(keeper.Failure, match="no systemd; leave --service out"):
        keeper.start(keeper.App("app"), "r1", {"module": "app", "arguments": []}, True, 1.0)
    assert service.status()["running"]


def test_a_systemd_that_refuses_is_one_line(service, home, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    for name in ("systemctl", "loginctl"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\necho 'Failed to connect to bus' >&2\nexit 1\n")
        (tmp_path / "bin" / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    install(service)
    with open_device("local:") as device:
        with pytest.raises(
            DeviceError, match="local: `systemctl --user show-environment` failed: Failed to con"
        ):
            Service(device, "app").start("r1", "app", ["stay"], service=True)


def test_what_goes_wrong_is_one_line(service, home):
    for call in (service.stop, lambda: service.logs(print)):
        with pytest.raises(DeviceError, match="local: no app called app was deployed here"):
            call()
    with pytest.raises(DeviceError, match="release r9 is not installed"):
        service.start("r9", "app", [])
    with pytest.raises(
        DeviceError, match="no nosuchmodule or other for .*; there: python3 -m pip install some-package"
    ):
        needs = {"nosuchmodule|other": "some-package", "json": "x", "nosuchmodule|json": "y"}
        service.install(archive(app_py=APP), "r1", needs)
    with pytest.raises(DeviceError, match="the vectors differ"):
        install(service, proof="raise SystemExit('the vectors differ')")
    with pytest.raises(NoSpaceError, match="local: no space left on the device; make room there"):
        install(service, proof="raise SystemExit('[Errno 28] No space left on device')")
    with pytest.raises(DeviceError, match="has no place in a release"):
        service.install(archive(**{"..__evil": "x"}), "r1", {})
    assert not list((home / ".local/share/paredown/app/releases").iterdir())
    assert not (home / ".local/share/paredown/evil").exists()


def test_only_one_at_a_time_changes_anything(service, home):
    app = keeper.App("app")
    with app.changing(), pytest.raises(DeviceError, match="somebody else is deploying app just now"):
        service.stop()
    install(service)


def test_a_second_supervisor_of_the_same_app_gives_up(service, home, capsys):
    install(service)
    service.start("r1", "app", ["stay"])
    assert supervisor.main(["run", "app"]) == supervisor.FAILED
    assert capsys.readouterr().err == "app runs already\n"
    status = json.loads(json.dumps(service.status()))
    assert status["running"]


def current(home: Path) -> str:
    return (home / ".local/share/paredown/app/current").readlink().name


def releases(home: Path) -> set[str]:
    return {path.name for path in (home / ".local/share/paredown/app/releases").iterdir() if path.is_dir()}


def test_an_upgrade_keeps_the_one_before_and_no_more(service, home):
    previous = []
    for release in ("r1", "r2", "r3", "r3"):
        install(service, release)
        previous.append(service.start(release, "app", ["stay"])["previous"])
    assert previous == [None, "r1", "r2", "r3"] and current(home) == "r3"
    assert releases(home) == {"r2", "r3"}  # also after the same was deployed again


def test_one_that_does_not_start_gives_way_to_the_one_before(service, home):
    install(service)
    service.start("r1", "app", ["stay", "first"])
    bad = archive(app_py="print('something'); raise SystemExit(3)", targets__runners__prove_py="print('{}')")
    service.install(bad, "r2", {})
    with pytest.raises(DeviceError, match="it ended with status 3: something; release r1 runs again"):
        service.start("r2", "app", ["stay"])
    assert service.status()["running"] and current(home) == "r1"
    # new options of the same release, too
    with pytest.raises(DeviceError, match="release r1 runs again"):
        service.start("r1", "nosuchmodule", [])
    said: list[str] = []
    service.logs(said.append, lines=1)
    while said[-1] != "hello stay first":
        service.logs(said.append, lines=1)
    assert service.status()["running"]


def test_releases_that_fail_do_not_stay(service, home):
    for release in ("r1", "r2"):
        install(service, release)
        service.start(release, "app", ["stay"])
    bad = archive(app_py="raise SystemExit(3)", targets__runners__prove_py="print('{}')")
    for release in ("r3", "r4"):
        service.install(bad, release, {})
        with pytest.raises(DeviceError, match="release r2 runs again"):
            service.start(release, "app", ["stay"])
    assert current(home) == "r2" and "r2" in releases(home)
    assert not releases(home) & {"r3", "r4"}


def test_one_that_never_gets_ready_gives_way_too(service, home, monkeypatch):
    monkeypatch.setattr("paredown.targets.devices.service.service.READY_S", 0.3)
    install(service)
    service.install(
        archive(app_py="import time; time.sleep(100)", targets__runners__prove_py="print('{}')"), "r2", {}
    )
    with pytest.raises(DeviceError, match="it was not ready after 0.3 s; `paredown logs` shows"):
        service.start("r2", "app", [])
    assert not service.status()["running"] and service.status()["release"] is None


def test_what_was_killed_in_the_midst_leaves_no_release(service, home):
    part = home / ".local/share/paredown/app/releases/.part-0123"
    part.mkdir(parents=True)
    (part / "half").write_bytes(b"x")
    install(service)
    assert releases(home) == {"r1"}


def test_the_kernel_lets_go_of_a_killed_app(service):
    """No process number is believed that is not backed by the lock."""
    install(service)
    pid = service.start("r1", "app", ["stay"])["pid"]
    os.killpg(pid, signal.SIGKILL)
    until(lambda: not service.status()["running"], "it has ended")
    assert not service.stop()["was_running"]


def wheel(folder: Path, name: str, module: str) -> Path:
    """A package of one module, as pip takes it."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr(f"{module}.py", "SAID = 'installed'")
        info = f"{name}-1.0.dist-info"
        made.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        made.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        made.writestr(f"{info}/RECORD", "")
    return path


@pytest.mark.slow
def test_what_is_missing_is_installed_into_an_environment_of_its_own(service, home, tmp_path):
    """As a device needs it whose own Python is managed by its system."""
    package = wheel(tmp_path, "paredown_probe", "paredown_probe")
    app = "import paredown_probe, os, pathlib\nprint(paredown_probe.SAID, flush=True)\n"
    app += "pathlib.Path(os.environ['PAREDOWN_READY']).touch()\n"
    files = archive(app_py=app, targets__runners__prove_py="print('{}')")
    broken = {"paredown_probe": str(tmp_path / "gone.whl")}
    with pytest.raises(DeviceError, match="cannot install .*gone.whl: .*; there: .* -m pip install"):
        service.install(files, "r1", broken, prepare=True)
    assert not (home / ".local/share/paredown/venv").exists()
    service.install(files, "r1", {"paredown_probe": str(package)}, prepare=True)
    service.start("r1", "app", [])
    said: list[str] = []
    service.logs(said.append)
    assert "installed" in said
