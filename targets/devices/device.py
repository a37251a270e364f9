"""What every way to a device can do: push, run, talk, pull, clean up. `targets.address` opens one.

The protocol is small on purpose, so that a board on the other end of a cable, an emulated one and this very
machine are the same thing to the rest of the house.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

Kind = Literal["local", "ssh", "adb"]


@dataclass(frozen=True)
class Completed:
    """A program that ran on a device.

    Attributes:
        code: its exit status.
        out: standard output.
        err: standard error.
        seconds: that it took, by this machine's clock, the way there and back included.
    """

    code: int
    out: str
    err: str
    seconds: float


class Dialogue(Protocol):
    """A program that runs on a device and is talked to line by line; a context manager that ends it."""

    def send(self, line: str) -> None:
        """Gives it a line to read; where it has ended, `receive` says so.

        Args:
            line: without its end.
        """

    def receive(self, timeout: float) -> str:
        """The next line of its standard output.

        Args:
            timeout: seconds to wait for it.

        Raises:
            TimeoutError: none came so far.
            EOFError: it has ended, and well.
            DeviceError: it was killed, took too long, ended with another status, or the connection is lost.
        """

    def close(self) -> None:
        """Ends it, if it still runs."""

    def __enter__(self) -> Self:
        """The dialogue itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes it."""


class Device(Protocol):
    """A connection; a context manager that leaves the device as it was.

    Attributes:
        address: as the user gave it.
        kind: of transport.
        emulated: whether an emulator is behind it, whose milliseconds mean nothing.
        workspace: an absolute folder on the device, new and empty, removed at the end.
    """

    address: str
    kind: Kind
    emulated: bool
    workspace: str

    def push(self, source: Path, target: str) -> None:
        """Copies a file: it appears under its name with the right sha256, or not at all.

        Args:
            source: on this machine; where it may be executed, it may be there.
            target: relative to the workspace; folders in between are made.

        Raises:
            InputError: the source cannot be read, or the target leads out of the workspace.
            DeviceError: the connection is lost, there is no space, or something else arrived.
        """

    def pull(self, source: str, target: Path) -> None:
        """Copies a file back; `target` appears whole, with the right sha256, or stays as it was.

        Raises:
            InputError: the target cannot be written, or the source leads out of the workspace.
            DeviceError: the connection is lost, there is no such file, or it came truncated.
        """

    def run(
        self,
        command: Sequence[str],
        *,
        timeout: float,
        environment: Mapping[str, str] | None = None,
        on_line: Callable[[str], None] | None = None,
        check: bool = True,
    ) -> Completed:
        """Runs a program in the workspace, and ends it where it takes too long or we are interrupted.

        Args:
            command: program and arguments, quoted for no shell.
            timeout: seconds.
            environment: variables beside those that are there.
            on_line: told each line of its standard error as it comes, in another thread.
            check: whether an exit status other than 0 is an error; of a program that was killed, the status
                is 128 and the number of the signal.

        Raises:
            DeviceError: it was killed, took too long, ended with another status, or the connection is lost.
        """

    def talk(
        self, command: Sequence[str], *, timeout: float, environment: Mapping[str, str] | None = None
    ) -> Dialogue:
        """Starts a program in the workspace to talk to it; it ends as one of `run` does, or when closed.

        Args:
            command: program and arguments, quoted for no shell.
            timeout: seconds that it may run.
            environment: variables beside those that are there.

        Raises:
            DeviceError: the connection is lost.
        """

    def close(self) -> None:
        """Ends what we started, removes the workspace, disconnects; logs what fails of it, never raises."""

    def __enter__(self) -> Self:
        """The connection itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes it."""


def python_of(device: Device) -> str:
    """The Python of a device: of this machine the one that runs now, activated or not."""
    return sys.executable if device.kind == "local" else "python3"
