"""What every transport must do, whatever is behind it; their tests inherit these and give a `device`.

The device of a test is this machine, so what is really there and what really runs can be looked at directly.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from paredown.targets.devices.device import Device
from paredown.targets.devices.errors import (
    ExitStatusError,
    KilledError,
    NoSpaceError,
    NoSuchFileError,
    TimedOutError,
)
from paredown.targets.errors import DeviceError, InputError

#: Starts a program that starts another one, and notes the numbers of both.
TWO_PROGRAMS = "sleep 1000 & echo $$ $! >pids; wait"
NASTY = (
    "",
    " ",
    "a b",
    "'",
    '"',
    "$HOME",
    "`id`",
    "\\",
    "\n",
    "*",
    "-n",
    "~",
    "é€",
    "a'\"'\"'b",
    "!!",
    ";ls",
)


def until(condition, what):
    """Waits for what has to happen sooner or later, on a busy machine too."""
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.02)
    pytest.fail(f"in vain: {what}")


def lives(pid):
    """Whether a process runs, of which a zombie has only the number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def pids_in(workspace):
    """The programs of TWO_PROGRAMS, once they run."""
    noted = Path(workspace) / "pids"
    until(lambda: noted.is_file() and len(noted.read_text().split()) == 2, "the programs started")
    found = [int(pid) for pid in noted.read_text().split()]
    assert all(map(lives, found))
    return found


def gone(pids):
    until(lambda: not any(map(lives, pids)), f"{pids} ended")


class Running:
    """A program that a device runs meanwhile, in a thread."""

    def __init__(self, device: Device, command: str = TWO_PROGRAMS, timeout: float = 60) -> None:
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(device, command, timeout), daemon=True)
        self._thread.start()
        self.pids = pids_in(device.workspace)

    def _run(self, device, command, timeout):
        try:
            device.run(["sh", "-c", command], timeout=timeout)
        except DeviceError as error:
            self.error = error

    def end(self):
        """The error that it ended with."""
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self.error


_CLIENT = """
import sys
from pathlib import Path
from paredown.targets.address import open_device

with open_device(sys.argv[1]) as device:
    Path(sys.argv[2]).write_text(device.workspace)
    device.run(["sh", "-c", sys.argv[3]], timeout=60)
"""


@contextmanager
def client_of(address, folder) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A process of its own with TWO_PROGRAMS running on a device: the process, and what runs there."""
    noted = folder / "workspace of the client"
    process = subprocess.Popen(
        [sys.executable, "-c", _CLIENT, address, noted, TWO_PROGRAMS],
        cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        until(lambda: noted.is_file() and noted.read_text(), "the client has a device")
        yield process, pids_in(noted.read_text())
    finally:
        process.kill()
        process.communicate()


def interrupt(process) -> None:
    """Ctrl-C, which it answers by cleaning up and then as every program does."""
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert err.rstrip().endswith("KeyboardInterrupt")


class DeviceContract:
    def test_a_file_goes_there_and_comes_back(self, device, payload, tmp_path):
        device.push(payload, "a folder/it's $HOME")
        there = Path(device.workspace) / "a folder" / "it's $HOME"
        assert there.read_bytes() == payload.read_bytes()
        assert [path.name for path in there.parent.iterdir()] == [there.name]
        device.pull("a folder/it's $HOME", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == payload.read_bytes()
        assert not list(tmp_path.glob(".back*"))

    def test_an_empty_file_too(self, device, tmp_path):
        (tmp_path / "empty").touch()
        device.push(tmp_path / "empty", "empty")
        device.pull("empty", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == b""

    def test_a_push_replaces_what_was_there(self, device, payload, tmp_path):
        (tmp_path / "other").write_bytes(b"other")
        device.push(payload, "x")
        device.push(tmp_path / "other", "x")
        assert (Path(device.workspace) / "x").read_bytes() == b"other"

    def test_what_can_be_executed_stays_so(self, device, tmp_path):
        program = tmp_path / "program"
        program.write_text("#!/bin/sh\necho it runs\n")
        device.push(program, "program")
        assert not stat.S_IMODE((Path(device.workspace) / "program").stat().st_mode) & 0o111
        program.chmod(0o755)
        device.push(program, "program")
        assert device.run(["./program"], timeout=30).out == "it runs\n"

    def test_a_program_runs_in_the_workspace_with_its_very_arguments(self, device):
        done = device.run(["printf", r"%s\0", *NASTY], timeout=30)
        assert done.out.split("\0")[:-1] == list(NASTY)
        assert device.run(["pwd", "-P"], timeout=30).out.strip() == os.path.realpath(device.workspace)
        assert done.code == 0 and done.err == "" and done.seconds > 0

    def test_its_environment_and_its_empty_standard_input(self, device):
        done = device.run(
            ["sh", "-c", 'printf "%s" "$A$B"; cat'], timeout=30, environment={"A": "it's ", "B": "$A;\n"}
        )
        assert done.out == "it's $A;\n"

    def test_lines_of_standard_error_are_told_as_they_come(self, device):
        lines, told = [], threading.Event()

        def on_line(line):
            lines.append(line)
            (Path(device.workspace) / "go on").touch()  # without it, the program would wait for ever
            told.set()

        script = (
            'echo "step 1" >&2; while [ ! -e "go on" ]; do sleep 0.05; done; printf "step\\0362" >&2; exit 7'
        )
        done = device.run(["sh", "-c", script], timeout=30, on_line=on_line, check=False)
        assert told.is_set() and lines == ["step 1", "step\x1e2"]
        assert (done.code, done.err) == (7, "step 1\nstep\x1e2")

    def test_an_exit_status_is_an_error_with_the_last_line(self, device):
        with pytest.raises(ExitStatusError, match=r"failed: `sh -c .* ended with status 3: no model$"):
            device.run(["sh", "-c", "echo first >&2; echo no model >&2; exit 3"], timeout=30)

    def test_status_1_is_the_programs_own(self, device):
        assert device.run(["false"], timeout=30, check=False).code == 1

    def test_no_such_program(self, device):
        with pytest.raises(ExitStatusError, match=r"status 127: .*no-such-program"):
            device.run(["no-such-program"], timeout=30)

    def test_a_killed_program_says_by_which_signal(self, device):
        running = Running(device)
        os.kill(running.pids[0], 9)
        assert isinstance(running.end(), KilledError)
        assert "was ended by SIGKILL (9)" in str(running.error)
        gone(running.pids)  # the one that it had started too
        with pytest.raises(KilledError, match=r"SIGSEGV \(11\)"):
            device.run(["sh", "-c", "kill -SEGV $$"], timeout=30)
        assert device.run(["sh", "-c", "kill -TERM $$"], timeout=30, check=False).code == 128 + 15

    def test_a_timeout_ends_all_of_it(self, device):
        with pytest.raises(TimedOutError, match=r"timeout: .* took longer than 1 s and was ended: working$"):
            device.run(["sh", "-c", f"echo working >&2; {TWO_PROGRAMS}"], timeout=1)
        pids = [int(pid) for pid in (Path(device.workspace) / "pids").read_text().split()]
        assert len(pids) == 2 and not any(map(lives, pids))
        assert device.run(["echo", "still there"], timeout=30).out == "still there\n"

    def test_what_a_program_leaves_behind_ends_with_it(self, device):
        device.run(["sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $! >left"], timeout=30)
        gone([int((Path(device.workspace) / "left").read_text())])

    def test_closing_ends_what_runs_and_removes_the_workspace(self, device):
        running = Running(device)
        device.close()
        gone(running.pids)
        assert isinstance(running.end(), DeviceError)
        assert not Path(device.workspace).parent.exists()
        device.close()  # once more is nothing

    def test_two_programs_at_the_same_time(self, device):
        running = Running(device)
        assert device.run(["echo", "meanwhile"], timeout=30).out == "meanwhile\n"
        assert all(map(lives, running.pids))
        os.kill(running.pids[0], 9)
        assert isinstance(running.end(), KilledError)

    def test_no_such_file(self, device, tmp_path):
        (tmp_path / "back").write_bytes(b"before")
        with pytest.raises(NoSuchFileError, match="no such file on the device: nothing.bin"):
            device.pull("nothing.bin", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == b"before"

    def test_no_space(self, device, payload):
        """/dev/full is full for anyone, on any machine."""
        (Path(device.workspace) / "x.part").symlink_to("/dev/full")
        with pytest.raises(NoSpaceError, match="no space left on the device: writing x: .*; make room there"):
            device.push(payload, "x")
        assert not list(Path(device.workspace).iterdir())
        device.push(payload, "x")
        assert (Path(device.workspace) / "x").read_bytes() == payload.read_bytes()

    def test_names_that_lead_out_of_the_workspace(self, device, payload, tmp_path):
        for name in ("../x", "/tmp/x", "a/../../x", ""):
            with pytest.raises(InputError, match="leads out of the device's workspace"):
                device.push(payload, name)
            with pytest.raises(InputError, match="leads out of the device's workspace"):
                device.pull(name, tmp_path / "back")

    def test_names_that_look_like_options(self, device, payload, tmp_path):
        device.push(payload, "-rf")
        device.pull("-rf", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == payload.read_bytes()

    def test_a_folder_is_no_file(self, device, payload, tmp_path):
        device.push(payload, "folder/x")
        with pytest.raises(ExitStatusError, match="writing folder .*is a folder"):
            device.push(payload, "folder")
        with pytest.raises(NoSuchFileError):
            device.pull("folder", tmp_path / "back")

    def test_files_of_this_machine_that_cannot_be_read_or_written(self, device, payload, tmp_path):
        with pytest.raises(InputError, match="missing: cannot read this file: No such file"):
            device.push(tmp_path / "missing", "x")
        device.push(payload, "x")
        with pytest.raises(InputError, match="back: cannot write here: No such file"):
            device.pull("x", tmp_path / "no folder" / "back")

    def test_a_program_is_talked_to(self, device):
        script = 'while read -r line; do echo "$A $line"; done'
        with device.talk(["sh", "-c", script], timeout=60, environment={"A": "got"}) as program:
            for line in ("one", "two  words", "it's $HOME", "é", "x" * 100_000):
                program.send(line)
                assert program.receive(30) == f"got {line}"
            with pytest.raises(TimeoutError):
                program.receive(0.01)
            assert device.run(["echo", "meanwhile"], timeout=30).out == "meanwhile\n"

    def test_how_a_dialogue_ends(self, device):
        with device.talk(["sh", "-c", "echo last; printf unended"], timeout=60) as program:
            assert [program.receive(30), program.receive(30)] == ["last", "unended"]
            for _ in range(2):
                with pytest.raises(EOFError):
                    program.receive(30)
            program.send("nobody reads this")
        with device.talk(["sh", "-c", "read -r x; echo no model >&2; exit 4"], timeout=60) as program:
            program.send("")
            with pytest.raises(ExitStatusError, match=r"`sh -c .* ended with status 4: no model$"):
                program.receive(30)
        with device.talk(["sh", "-c", "sleep 1000"], timeout=1) as program:
            with pytest.raises(TimedOutError, match="took longer than 1 s"):
                program.receive(30)

    def test_leaving_a_dialogue_ends_the_program_and_what_it_started(self, device):
        with device.talk(["sh", "-c", TWO_PROGRAMS], timeout=60):
            pids = pids_in(device.workspace)
        gone(pids)
        assert device.run(["echo", "still there"], timeout=30).out == "still there\n"

    def test_closing_the_device_ends_a_dialogue(self, device):
        program = device.talk(["sh", "-c", TWO_PROGRAMS], timeout=60)
        pids = pids_in(device.workspace)
        device.close()
        gone(pids)
        with pytest.raises((DeviceError, EOFError)):
            program.receive(30)
