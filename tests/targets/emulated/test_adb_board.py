"""An emulated board behind adb: its parts on this machine, and all of it, an arm64 adbd, for real."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from adb_device import listens_on
from device_contract import gone, lives, until
from needs import needs
from ports import free_port
from small_programs import Small, small_programs
from tiny_project import call

from paredown.targets.cards.card import load_card
from paredown.targets.devices.doctor import examine
from paredown.targets.devices.errors import ExitStatusError, TimedOutError
from paredown.targets.devices.facts import facts
from paredown.targets.devices.programs import DevicePrograms, Program, TensorInfo
from paredown.targets.devices.shell.shell import ShellDevice
from paredown.targets.devices.transports.adb import AdbTransport
from paredown.targets.emulated import adb_board
from paredown.targets.emulated.adb_board import EmulatedAdbBoard
from paredown.targets.emulated.board import CORES, Hardware
from paredown.targets.emulated.leash import held
from paredown.targets.emulated.sysroot import LISTING
from paredown.targets.errors import DeviceError

ROOT = Path(__file__).parents[3]
NAME, ADDRESS = "android-arm64", "emulated:android-arm64"
PATH = {"PATH": "/usr/bin:/bin"}
NETWORKS = ("unix", "tcp", "tcp6", "udp", "udp6")  # tables in /proc/net

# -- its parts, on this machine ----------------------------------------------------------------------------


def noted(path: Path) -> list[int]:
    """The numbers of processes in a file, once they run."""
    until(lambda: path.is_file() and path.read_text().endswith("\n"), "the programs started")
    found = [int(pid) for pid in path.read_text().split()]
    assert all(map(lives, found))
    return found


def test_what_is_held_ends_with_us(tmp_path):
    pids = tmp_path / "pids"
    with held(["sh", "-c", f"echo $$ >{pids}; exec sleep 1000"], "TERM", tmp_path / "log", PATH) as holder:
        found = noted(pids)
        assert holder.poll() is None
    assert holder.poll() is not None
    gone(found)


def test_what_is_held_ends_where_we_are_killed(tmp_path):
    pids = tmp_path / "pids"
    program = f"""
from pathlib import Path
from paredown.targets.emulated.leash import held

with held(["sh", "-c", "echo $$ >{pids}; exec sleep 1000"], "TERM", Path("{tmp_path}/log"), {PATH}) as holder:
    holder.wait()
"""
    client = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    found = noted(pids)
    client.kill()
    client.wait()
    gone(found)


def test_of_what_ends_by_itself_the_log_says_why(tmp_path):
    with held(["sh", "-c", "echo no board >&2"], "TERM", tmp_path / "log", PATH) as holder:
        until(lambda: holder.poll() is not None, "it ended")
    assert (tmp_path / "log").read_text().splitlines()[0] == "no board"


_LISTENER = """
import errno, os, socket, subprocess, sys

assert "LD_PRELOAD" not in os.environ
device = socket.socket(socket.AF_INET6)
device.bind(("::", 5555))
device.listen()
for family in (socket.AF_INET, socket.AF_VSOCK):
    try:
        socket.socket(family)
    except OSError as error:
        assert error.errno == errno.EAFNOSUPPORT
    else:
        sys.exit("a socket of another kind")
try:
    socket.socket(socket.AF_UNIX).bind("\\0jdwp-control")
except OSError as error:
    assert error.errno == errno.EACCES
else:
    sys.exit("a second socket")
print("listens", flush=True)
device.accept()[0].sendall(b"hello")
"""


def test_what_would_listen_to_everybody_listens_on_a_file(tmp_path):
    """The library of the board's adbd, compiled for this machine and loaded into a program of its kind."""
    path, library = tmp_path / "socket", tmp_path / "library.so"
    flags = [flag for flag in adb_board.FLAGS if "SOCKET" not in flag]
    source = adb_board.SOURCE
    command = [needs("gcc", "gcc libc6-dev"), *flags, "-Wall", "-Wextra", "-Werror", f'-DSOCKET="{path}"']
    subprocess.run([*command, source, "-o", library], check=True)
    before = listens_on(5555)
    listener = subprocess.Popen(
        [sys.executable, "-c", _LISTENER], env={"LD_PRELOAD": str(library)}, stdout=subprocess.PIPE
    )
    assert listener.stdout and listener.stdout.readline() == b"listens\n"
    assert listens_on(5555) == before
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        assert client.recv(5) == b"hello"
    assert listener.wait() == 0


def test_a_missing_adb_is_named_with_its_package(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="`adb` is not installed; apt-get install adb"):
        with adb_board.start(NAME):
            pytest.fail("started")


def test_a_missing_compiler_is_named_before_anything_is_downloaded(tmp_path, monkeypatch):
    (tmp_path / "adb").symlink_to(needs("adb", "adb"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PAREDOWN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(adb_board.platform, "machine", lambda: "x86_64")
    with pytest.raises(DeviceError, match=r"`aarch64-linux-gnu-gcc` .*; apt-get install g\+\+-aarch"):
        with adb_board.start(NAME):
            pytest.fail("started")
    assert not (tmp_path / "cache").exists()


def test_a_folder_whose_name_is_too_long_for_a_socket(tmp_path, monkeypatch):
    needs("adb", "adb")
    needs("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu")
    long = tmp_path / ("x" * adb_board.LONGEST)

    @contextmanager
    def hardware(*asked: object) -> Iterator[Hardware]:
        yield Hardware(long, long / "root", (), {})

    monkeypatch.setattr(adb_board, "hardware", hardware)
    with pytest.raises(DeviceError, match="too long for a socket, 107 bytes .*; set PAREDOWN_CACHE to"):
        with adb_board.start(NAME):
            pytest.fail("started")


def test_its_card_says_how_to_start_it_and_what_it_is_not():
    card = load_card(NAME)
    assert card.emulate is not None and card.emulate.cpu in CORES and card.reach.kind == "adb"
    for words in (f"--device {ADDRESS}", "adb transport", "not Android", "its milliseconds mean nothing"):
        assert words in card.emulate.text


# -- the whole of it ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def users_server() -> Iterator[int]:
    """The port where the user's adb server would be, were it asked for anything."""
    with pytest.MonkeyPatch.context() as patch:
        port = free_port()
        patch.setenv("ANDROID_ADB_SERVER_PORT", str(port))
        yield port


@pytest.fixture(scope="module")
def packages(users_server: int) -> None:
    needs("qemu-aarch64", "qemu-user")
    needs("proot", "proot")
    needs("adb", "adb")
    needs("gcc", "gcc libc6-dev")
    needs("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu")


@pytest.fixture(scope="module")
def board(packages: None) -> Iterator[EmulatedAdbBoard]:
    with adb_board.start(NAME, count_instructions=True) as board:
        yield board


@pytest.fixture
def device(board: EmulatedAdbBoard) -> Iterator[ShellDevice]:
    with connected(board) as device:
        yield device
    assert not (board.root / device.workspace.lstrip("/")).exists()


def connected(board: EmulatedAdbBoard) -> ShellDevice:
    return ShellDevice(AdbTransport(board.serial, ADDRESS, server=board.server), emulated=True)


def processes_of(board: EmulatedAdbBoard) -> list[Path]:
    """The folders in /proc of all that runs for a board, and there: proot traces that."""
    folder, told = os.fsencode(board.root.parent), {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            tracer = re.search(r"TracerPid:\t(\d+)", (path / "status").read_text())
            told[path] = (folder in (path / "cmdline").read_bytes(), tracer and tracer[1])
        except OSError:  # it ended
            continue
    ours = {path.name for path, (named, _) in told.items() if named}
    return [path for path, (named, tracer) in told.items() if named or tracer in ours]


@pytest.mark.slow
class TestBoard:
    def test_it_is_an_arm64_board_that_says_what_it_is_not(self, device: ShellDevice) -> None:
        told = facts(device)
        assert (device.kind, device.emulated, told.arch) == ("adb", True, "aarch64")
        assert told.cpu == "64-bit Arm board, emulated, adb transport, Cortex-A76"
        assert {"board", "python3", "numpy", "ai-edge-litert"} <= {
            finding.name for finding in examine(device) if finding.state == "ok"
        }

    def test_every_package_is_listed_with_version_and_hash(self, board: EmulatedAdbBoard) -> None:
        lines = (board.root / LISTING).read_text().splitlines()
        assert all(re.fullmatch(r"\S+ \S+ sha256:[0-9a-f]{64}", line) for line in lines)
        names = [line.split()[0] for line in lines]
        assert {"adbd", "android-libboringssl", "libc6", "numpy"} <= set(names)
        assert len(names) == len(set(names))
        (adbd,) = (line.split()[1] for line in lines if line.startswith("adbd "))
        assert "~bpo12" in adbd

    def test_files_go_there_and_come_back(
        self, board: EmulatedAdbBoard, device: ShellDevice, payload: Path, tmp_path: Path
    ) -> None:
        device.push(payload, "a folder/x")
        there = board.root / device.workspace.lstrip("/") / "a folder" / "x"
        assert there.read_bytes() == payload.read_bytes()
        device.pull("a folder/x", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == payload.read_bytes()

    def test_programs_end_as_on_a_device(self, device: ShellDevice) -> None:
        done = device.run(["sh", "-c", "uname -m; echo words >&2"], timeout=60)
        assert (done.out, done.err) == ("aarch64\n", "words\n")
        with pytest.raises(ExitStatusError, match="ended with status 3: no model$"):
            device.run(["sh", "-c", "echo no model >&2; exit 3"], timeout=60)
        with pytest.raises(TimedOutError):
            device.run(["sh", "-c", "echo $$ >pid; sleep 1000"], timeout=5)
        assert device.run(["sh", "-c", "kill -0 $(cat pid) || echo gone"], timeout=60).out == "gone\n"

    def test_int8_is_bit_identical_and_counts_repeat(self, device: ShellDevice) -> None:
        programs = small_programs()
        there = DevicePrograms(device, "aarch64")
        outputs = (TensorInfo((1, 8, 4, 4)), TensorInfo((1, 5)))
        program = Program("executorch", programs.int8["executorch"], TensorInfo((1, 3, 8, 8)), outputs)
        found = [part for parts in there.run(program, programs.codes) for part in parts]
        assert b"".join(part.tobytes() for part in found) == programs.expected
        first, second = (there.time(program, programs.codes[:1], 3) for _ in range(2))
        assert first.instructions == second.instructions and not first.times_ms
        # SDOT, the densest instruction of this core, does 16 multiplications
        assert first.instructions and Small.MACS / 16 < first.instructions["simd"] < Small.MACS

    def test_it_is_on_no_network(self, board: EmulatedAdbBoard) -> None:
        opened = set()
        for process in processes_of(board):
            opened |= {str(link.readlink()) for link in (process / "fd").iterdir()}
        rows = {name: Path(f"/proc/net/{name}").read_text().splitlines()[1:] for name in NETWORKS}
        files = {f"socket:[{row.split()[6]}]" for row in rows.pop("unix") if str(board.root.parent) in row}
        assert len(files & opened) >= 2  # of adbd and of its server
        assert not opened & {f"socket:[{line.split()[9]}]" for lines in rows.values() for line in lines}
        assert board.root.parent.stat().st_mode & 0o077 == 0

    def test_nothing_is_left_of_it(self, packages: None, users_server: int) -> None:
        with adb_board.start(NAME) as other:
            with connected(other) as device:
                daemon = "setsid sh -c 'echo $$ >pid; exec sleep 1000' >/dev/null 2>&1 &"
                daemon += "until [ -s pid ]; do sleep 0.1; done; cat pid"
                pid = int(device.run(["sh", "-c", daemon], timeout=60).out)
            assert lives(pid) and len(processes_of(other)) > 5
        assert not processes_of(other) and not lives(pid) and not other.root.parent.exists()
        assert not listens_on(users_server)


@pytest.mark.slow
def test_digits_for_android_are_proved_there(packages: None, tmp_path: Path) -> None:
    done = call("run", "digits", "--target", NAME, "--smoke", "--runs", tmp_path)
    assert done.code == 0, done.err
    first, second = (validated(tmp_path / "digits" / NAME / "bundle.paredown") for _ in range(2))
    checks = {check["name"]: check for check in first["checks"]}
    there = [figure for figure in first["figures"] if figure["where"]["name"] == ADDRESS]
    assert {figure["tag"] for figure in there} == {"simulated"}
    assert {"emulated, adb transport" in figure["where"]["cpu"] for figure in there} == {True}
    assert not any(figure["metric"].startswith(("latency", "memory")) for figure in first["figures"])
    for runtime in ("executorch", "litert"):
        assert checks[f"{runtime} vectors"]["detail"].startswith("0 of ")
        counts = [instructions(found, runtime) for found in (first, second)]
        assert counts[0] == counts[1] > 1e6


def validated(bundle: Path) -> dict[str, Any]:
    done = call("validate", bundle, "--device", ADDRESS, "--limit", 4, "--json")
    assert done.code == 0, done.out + done.err
    return json.loads(done.out)


def instructions(document: dict[str, Any], runtime: str) -> float:
    (found,) = (
        f["value"] for f in document["figures"] if (f["variant"], f["metric"]) == (runtime, "instructions")
    )
    return found
