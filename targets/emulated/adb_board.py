"""An emulated board behind Android's own adb: Debian's arm64 adbd runs in the emulator, with all it starts.

It is the way to an Android device and a 64-bit Arm processor, and not Android: Debian's C library instead of
bionic, no NNAPI, no APKs, no drivers. Its figures say so: "emulated, adb transport".

Nothing of it is on a network, not even on the loopback, where every user of this machine could open it: adbd
and an adb server of its own are reached by sockets in the board's folder. The user's own adb server and
~/.android are left alone.

Needs Debian's packages adb, proot, qemu-user and g++-aarch64-linux-gnu (and gcc to count instructions). No
root.
"""

from __future__ import annotations

import platform
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from paredown.targets.cards.card import load_card
from paredown.targets.devices.errors import last_line
from paredown.targets.emulated.board import Hardware, hardware, to_stderr
from paredown.targets.emulated.leash import held
from paredown.targets.emulated.sysroot import adb_sysroot
from paredown.targets.errors import DeviceError
from paredown.targets.host.cache import cache_folder, key_of, made_once
from paredown.targets.host.tools import output_of, tool

MODEL = "64-bit Arm board, emulated, adb transport"
ADBD = "/usr/lib/android-sdk/platform-tools/adbd"
#: On the board.
SOCKET, LIBRARY = "/run/adbd", "/opt/paredown/adbd_socket.so"
SOURCE = Path(__file__).with_name("adbd_socket.c")
FLAGS = ("-O2", "-shared", "-fPIC", f'-DSOCKET="{SOCKET}"')
#: For a server that looks for no devices: not by USB nor in the network (adb 29 does so all the same, 34 does
#: not), nor for Android's own emulators.
ALONE = {"ADB_USB": "0", "ADB_MDNS": "0", "ADB_LOCAL_TRANSPORT_MAX_PORT": "1"}
LONGEST = 107  # bytes of a socket's path: sun_path of Linux, less the zero at its end
START_S = 120.0  # seconds in which adbd listens, and then answers, on a busy machine


@dataclass(frozen=True)
class EmulatedAdbBoard:
    """A running board and how to reach it, for `targets.devices.transports.adb.AdbTransport`.

    Attributes:
        name: of its card.
        root: its root folder, on this machine.
        serial: by which its adb server knows it.
        server: the socket of that server.
    """

    name: str
    root: Path
    serial: str
    server: str


@contextmanager
def start(
    name: str, *, count_instructions: bool = False, say: Callable[[str], None] = to_stderr
) -> Iterator[EmulatedAdbBoard]:
    """Starts a board; see `targets.emulated.board.start`.

    Args:
        name: of the card, "android-arm64".
        count_instructions: as there.
        say: likewise.

    Yields:
        The board, gone with everything that ran on it and with its adb server at the end.

    Raises:
        InputError: there is no such card.
        DeviceError: nobody has shown how to emulate it, a package is missing (the line names it), or it does
            not start.
    """
    card = load_card(name)
    adb, library = tool("adb", "adb"), _library()
    with hardware(card, MODEL, adb_sysroot, count_instructions, say) as board:
        device, server = board.root / SOCKET.lstrip("/"), board.folder / "adb"
        for path in (device, server):
            _require_short(path)
        shutil.copy(library, board.root / LIBRARY.lstrip("/"))
        found = EmulatedAdbBoard(
            card.name, board.root, f"localfilesystem:{device}", f"localfilesystem:{server}"
        )
        with _adbd(board) as daemon, _server(board, adb, found.server) as host:
            _wait_for(device, daemon, board.folder / "adbd.log")
            _wait_for(server, host, board.folder / "adb.log")
            _connect(adb, found)
            yield found


@contextmanager
def _adbd(board: Hardware) -> Iterator[subprocess.Popen[bytes]]:
    preload = [*board.emulator, "/usr/bin/env", f"LD_PRELOAD={LIBRARY}"]
    # The dynamic loader goes on without what it cannot preload, and adbd would listen to everybody.
    loaded = output_of([*preload, "LD_TRACE_LOADED_OBJECTS=1", ADBD], "starting adbd")
    if LIBRARY not in loaded:
        raise DeviceError(f"adbd does not load {LIBRARY}, which keeps it from listening to everybody")
    log = board.folder / "adbd.log"
    # QUIT is the signal by which proot ends with everything that runs in it.
    with held([*preload, ADBD], "QUIT", log, board.environment) as holder:
        yield holder


@contextmanager
def _server(board: Hardware, adb: str, server: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = {"PATH": board.environment["PATH"], "HOME": str(board.folder), **ALONE}
    command = [adb, "-L", server, "nodaemon", "server"]
    with held(command, "TERM", board.folder / "adb.log", environment) as holder:
        try:
            yield holder
        finally:  # where it ended before its time, an `adb` has started another one
            subprocess.run([adb, "-L", server, "kill-server"], capture_output=True)


def _library() -> Path:
    """What keeps adbd off the network, for the board's processor.

    Raises:
        DeviceError: there is no C compiler for it, or it fails.
    """
    if platform.machine() == "aarch64":
        compiler = tool("gcc", "gcc libc6-dev")
    else:
        compiler = tool("aarch64-linux-gnu-gcc", "g++-aarch64-linux-gnu")
    version = output_of([compiler, "-dumpfullversion"], "asking the compiler for its version")
    name = Path(LIBRARY).name

    def make(folder: Path) -> None:
        command = [compiler, *FLAGS, str(SOURCE), "-o", str(folder / name)]
        output_of(command, "building the socket of adbd")

    key = key_of(SOURCE.read_bytes(), version, *FLAGS)
    return made_once(cache_folder() / "plugins" / key, make) / name


def _require_short(path: Path) -> None:
    if len(bytes(path)) > LONGEST:
        raise DeviceError(
            f"this path is too long for a socket, {LONGEST} bytes are the most", where=path,
            hint="set PAREDOWN_CACHE to a folder with a shorter one",
        )  # fmt: skip


def _wait_for(path: Path, holder: subprocess.Popen[bytes], log: Path) -> None:
    """Waits until somebody listens there."""
    end = time.monotonic() + START_S
    while time.monotonic() < end and holder.poll() is None:
        with socket.socket(socket.AF_UNIX) as client:
            if client.connect_ex(str(path)) == 0:
                return
        time.sleep(0.02)
    said = last_line(log.read_text(errors="replace"))
    raise DeviceError(f"{log.stem} of the emulated board does not start{said}")


def _connect(adb: str, board: EmulatedAdbBoard) -> None:
    """Makes the board known to its server, which gives up sooner than a busy machine has answered."""
    command, end = [adb, "-L", board.server, "connect", board.serial], time.monotonic() + START_S
    while True:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if "connected to" in done.stdout:  # "already", where it was an earlier attempt
            return
        if time.monotonic() > end:
            said = last_line(done.stdout + done.stderr)
            raise DeviceError(
                f"adb does not connect to the emulated board{said}",
                hint="adb 29 and 34 do, `adb --version` tells yours",
            )
        time.sleep(0.1)
