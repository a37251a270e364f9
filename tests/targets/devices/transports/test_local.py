"""This machine as a device, with each shell that a board may have."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from device_contract import TWO_PROGRAMS, DeviceContract, client_of, gone, interrupt, lives, pids_in
from needs import needs

from paredown.targets.address import open_device
from paredown.targets.devices.errors import MissingToolError, UnreachableError
from paredown.targets.devices.shell.shell import script
from paredown.targets.errors import DeviceError

#: What the scripts need of a device, and what the tests' own programs use.
TOOLS = ("cat", "chmod", "cut", "dirname", "env", "mkdir", "mktemp", "mv", "rm", "setsid", "sleep", "wc")
USED = ("echo", "false", "kill", "printf", "pwd", "touch")


@pytest.fixture
def folders(tmp_path, monkeypatch) -> Path:
    """Where the workspaces are made."""
    folders = tmp_path / "device"
    folders.mkdir()
    monkeypatch.setenv("TMPDIR", str(folders))
    return folders


@pytest.fixture
def board(tmp_path):
    """Makes a folder of programs, given name -> path, to be the only ones of a device."""

    def make(programs: dict[str, str]) -> str:
        folder = tmp_path / "bin"
        folder.mkdir()
        for name, path in programs.items():
            (folder / name).symlink_to(path)
        return str(folder)

    return make


class TestLocal(DeviceContract):
    @pytest.fixture
    def device(self, folders):
        with open_device("local:") as device:
            assert (device.kind, device.emulated, device.address) == ("local", False, "local:")
            assert Path(device.workspace).is_relative_to(folders)
            yield device
        assert not list(folders.iterdir())


class TestBusybox(DeviceContract):
    """A board that has busybox and nothing else."""

    @pytest.fixture
    def device(self, folders, board, monkeypatch):
        busybox = needs("busybox", "busybox")
        monkeypatch.setenv("PATH", board({tool: busybox for tool in ("sh", "sha256sum", *TOOLS, *USED)}))
        with open_device("local:") as device:
            yield device
        assert not list(folders.iterdir())


class TestAndroid(DeviceContract):
    """Android's shell and programs, mksh and toybox."""

    @pytest.fixture
    def device(self, folders, board, monkeypatch):
        toybox = needs("toybox", "toybox")
        programs = {tool: toybox for tool in ("sha256sum", *TOOLS, *USED)}
        monkeypatch.setenv("PATH", board({**programs, "sh": needs("mksh", "mksh")}))
        with open_device("local:") as device:
            yield device
        assert not list(folders.iterdir())


class TestBash(DeviceContract):
    """Where sh is bash, which talks about the programs that it lost."""

    @pytest.fixture
    def device(self, folders, board, monkeypatch):
        bash = needs("bash", "bash")
        monkeypatch.setenv("PATH", f"{board({'sh': bash})}:{os.environ['PATH']}")
        with open_device("local:") as device:
            yield device
        assert not list(folders.iterdir())


def test_what_a_device_lacks_is_named(folders, board, monkeypatch):
    programs = {tool: needs(tool, "coreutils") for tool in TOOLS if tool not in ("setsid", "mktemp")}
    monkeypatch.setenv("PATH", board({**programs, "sh": needs("sh", "dash")}))
    with pytest.raises(MissingToolError) as raised:
        open_device("local:")
    assert str(raised.value) == (
        "local: the device lacks: mktemp setsid sha256sum; install them there; busybox has all of them"
    )
    assert raised.value.exit_code == 5
    assert not list(folders.iterdir())


def test_no_shell(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnreachableError, match="cannot be reached: cannot start sh: .*; a POSIX system"):
        open_device("local:")


def test_no_folder_can_be_made(tmp_path, monkeypatch, board):
    """Full or read-only everywhere: nobody can make a folder, so that this holds for root too."""
    programs = {tool: needs(tool, "coreutils") for tool in (*TOOLS, "sha256sum", "sh")}
    mktemp = tmp_path / "mktemp"
    mktemp.write_text("#!/bin/sh\necho 'mktemp: No space left on device' >&2; exit 1\n")
    mktemp.chmod(0o755)
    monkeypatch.setenv("PATH", board({**programs, "mktemp": str(mktemp)}))
    with pytest.raises(DeviceError, match="making a folder ended with status 1: no folder can be"):
        open_device("local:")


def test_ctrl_c_ends_what_runs_and_cleans_up(folders, tmp_path):
    with client_of("local:", tmp_path) as (process, pids):
        interrupt(process)
        assert not any(map(lives, pids))
        assert not list(folders.iterdir())


def test_nothing_outlives_a_client_that_is_killed(folders, tmp_path):
    with client_of("local:", tmp_path) as (process, pids):
        process.kill()
        gone(pids)


def test_a_program_ends_by_its_own_limit_when_nobody_can_tell_it(folders, board):
    """Somebody holds the other end of the leash and says nothing: a link that went silent."""
    base = folders / "base"
    (base / "work").mkdir(parents=True)
    (base / "jobs").mkdir()
    line = script.run(str(base), "job", 1, ["sh", "-c", TWO_PROGRAMS], {})
    process = subprocess.Popen(["sh", "-c", line], stdin=subprocess.PIPE, start_new_session=True)
    pids = pids_in(base / "work")
    assert process.wait(timeout=60) == 128 + 9
    gone(pids)
    assert not list((base / "jobs").iterdir())
    process.stdin.close()


def test_the_next_to_come_ends_what_nobody_could(folders):
    """The watcher itself was killed: its note is left."""
    with open_device("local:") as device:
        jobs = Path(device.workspace).parent / "jobs"
        left = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        (jobs / "left").write_text(f"{left.pid}\n")
    assert left.wait(timeout=30) == -9
