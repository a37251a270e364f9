"""Emulated boards: a Raspberry Pi's processor and files on this machine, reached over SSH like a real one.

What runs there computes what the board computes: QEMU's user mode executes the same instructions, from the
same kernels that the runtimes choose on that core. How long it takes says nothing; how many instructions it
takes is exact (`targets.emulated.instructions`). `targets.emulated.adb_board` is one that adb leads to.

Needs Debian's packages proot and qemu-user (and gcc to count instructions). No root.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from paredown.targets.cards.card import Target, load_card
from paredown.targets.devices.transports.ssh import SshAccess
from paredown.targets.emulated.instructions import plugin
from paredown.targets.emulated.sysroot import emulated, linked, sysroot
from paredown.targets.errors import DeviceError
from paredown.targets.host.cache import cache_folder
from paredown.targets.host.tools import output_of

USER, HOME = "pi", "/home/pi"
ENVIRONMENT = {
    "USER": USER, "LOGNAME": USER, "HOME": HOME, "SHELL": "/bin/sh", "LANG": "C.UTF-8",
    "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
}  # fmt: skip
#: For Python to execute the same instructions every time: the order of dictionaries, and what lies in memory.
REPEATABLE = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
PLUGIN = "/opt/paredown/instructions.so"  # on the board


@dataclass(frozen=True)
class Core:
    """What a Linux kernel tells of a core in /proc/cpuinfo; runtimes choose their kernels by it.

    Attributes:
        part: number of Arm's, from the core's Technical Reference Manual (MIDR_EL1).
        variant: major revision.
        revision: minor revision.
        features: that the kernel names.
    """

    part: str
    variant: str
    revision: int
    features: str


#: By QEMU's name. It must be the truth about the emulated core: a runtime that takes it for another one
#: executes instructions that it does not have. Never `max`: QEMU 7.2 then computes wrong int8 results.
CORES = {
    "cortex-a53": Core("0xd03", "0x0", 4, "fp asimd evtstrm crc32 cpuid"),
    "cortex-a72": Core("0xd08", "0x0", 3, "fp asimd evtstrm crc32 cpuid"),
    "cortex-a76": Core(
        "0xd0b", "0x4", 1,
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Hardware:
    """A board that nothing leads to yet.

    Attributes:
        folder: of this board alone, removed at its end.
        root: its root folder, on this machine.
        emulator: the start of a command line that runs a program there.
        environment: of every program.
    """

    folder: Path
    root: Path
    emulator: tuple[str, ...]
    environment: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class EmulatedBoard(SshAccess):
    """A running board and how to log in to it, with keys made for this run.

    Attributes:
        name: of its card.
        root: its root folder, on this machine.
    """

    name: str
    root: Path


def to_stderr(line: str) -> None:
    """Tells the user something."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def start(
    name: str, *, count_instructions: bool = False, say: Callable[[str], None] = to_stderr
) -> Iterator[EmulatedBoard]:
    """Starts a board; the first one on a machine is preceded by downloads, see `targets.emulated.sysroot`.

    Args:
        name: of the card, "raspberry-pi-5".
        count_instructions: whether programs there can count theirs, see `targets.emulated.instructions`. The
            board then has one core, for counts to repeat.
        say: told what is being done at the first start, a line at a time.

    Yields:
        The board, gone with everything that ran on it at the end.

    Raises:
        InputError: there is no such card.
        DeviceError: nobody has shown how to emulate it, a package is missing (the line names it), or it does
            not start.
    """
    import asyncssh

    from paredown.targets.emulated.server import HOST, BoardServer

    card = load_card(name)
    with hardware(card, f"{card.summary}, emulated", sysroot, count_instructions, say) as board:
        host_key, client_key = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
        key_file, known_hosts = board.folder / "id", board.folder / "known_hosts"
        client_key.write_private_key(key_file)
        key_file.chmod(0o600)  # or `ssh` does not use it
        with BoardServer(
            board.root, board.emulator, board.environment, host_key, client_key.export_public_key()
        ) as server:
            known_hosts.write_text(f"[{HOST}]:{server.port} {host_key.export_public_key().decode()}")
            yield EmulatedBoard(
                HOST, server.port, USER, key_file, known_hosts, name=card.name, root=board.root
            )


@contextmanager
def hardware(
    card: Target,
    model: str,
    files: Callable[[Path, Callable[[str], None]], Path],
    count_instructions: bool,
    say: Callable[[str], None],
) -> Iterator[Hardware]:
    """A board's processor and files, for `start` and its like.

    Args:
        card: of the device.
        model: as the board calls itself: figures bear it.
        files: one of `targets.emulated.sysroot`.
        count_instructions: as `start` has it.
        say: likewise.

    Raises:
        DeviceError: as `start`.
    """
    cpu, core = _core_of(card)
    cache = cache_folder()
    base = files(cache, say)
    with _own_folder(cache / "boards", card.name) as folder:
        root = folder / "root"
        linked(base, root)
        _describe(root, model, core, 1 if count_instructions else card.cores or 1)
        if count_instructions:
            shutil.copy(plugin(cache), root / PLUGIN.lstrip("/"))
        emulator = emulated(root, cpu, PLUGIN if count_instructions else "")
        output_of([*emulator, "/bin/true"], "starting the emulated board")
        yield Hardware(
            folder, root, tuple(emulator), ENVIRONMENT | (REPEATABLE if count_instructions else {})
        )


def _core_of(card: Target) -> tuple[str, Core]:
    cpu = card.emulate.cpu if card.emulate else ""
    if cpu not in CORES:
        raise DeviceError(
            "nobody has shown how to emulate this device", where=f"target {card.name}",
            hint=f"boards with these cores can be: {', '.join(CORES)}",
        )  # fmt: skip
    return cpu, CORES[cpu]


@contextmanager
def _own_folder(boards: Path, name: str) -> Iterator[Path]:
    """A new folder, removed at the end; those whose process was killed before its end are removed too."""
    boards.mkdir(parents=True, exist_ok=True)
    for lock in boards.glob("*/lock"):
        with lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # its process lives
                continue
            shutil.rmtree(lock.parent, ignore_errors=True)  # another process may be at it, too
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=boards) as folder:
        with (Path(folder) / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield Path(folder)


def _describe(root: Path, model: str, core: Core, cores: int) -> None:
    """Writes what a kernel would tell of this board."""
    processors = [
        f"processor\t: {index}\nBogoMIPS\t: 108.00\nFeatures\t: {core.features}\nCPU implementer\t: 0x41\n"
        f"CPU architecture: 8\nCPU variant\t: {core.variant}\nCPU part\t: {core.part}\n"
        f"CPU revision\t: {core.revision}\n\n"
        for index in range(cores)
    ]
    files = {"proc/cpuinfo": f"{''.join(processors)}Model\t\t: {model}\n"}
    files["proc/mounts"] = "board / ext4 rw 0 0\n"  # `df` asks it
    files |= {
        f"sys/devices/system/cpu/{name}": f"0-{cores - 1}\n" for name in ("possible", "present", "online")
    }
    files["etc/passwd"] = f"{USER}:x:{os.getuid()}:{os.getgid()}::{HOME}:/bin/sh\n"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
