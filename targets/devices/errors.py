"""What goes wrong on the way to a device and on it: each kind has its name, its class and exit code 5."""

from __future__ import annotations

import signal
from typing import ClassVar

from paredown.targets.errors import DeviceError

#: Exit statuses above it say which signal ended a program, as shells count.
SIGNALLED = 128

_FULL = ("No space left on device", "Disk quota exceeded")
_WHY_KILLED = {
    signal.SIGKILL: "`dmesg` there says whether memory ran out",
    signal.SIGILL: "it met an instruction that the CPU there does not have",
}


class NamedDeviceError(DeviceError):
    """A kind of failure: its name comes first in the line, what to do about it last.

    Args:
        detail: what exactly happened; empty where the name says it all.
        where: the address, as the user gave it.
        hint: what to do next, where that is not what is always to be done.
    """

    kind: ClassVar[str]
    remedy: ClassVar[str | None] = None

    def __init__(self, detail: str = "", *, where: object | None = None, hint: str | None = None) -> None:
        what = f"{self.kind}: {detail}" if detail else self.kind
        super().__init__(what, where=where and str(where).rstrip(":"), hint=hint or self.remedy)


class UnreachableError(NamedDeviceError):
    """Nobody answers there: refused, no route, no such name, no answer in time."""

    kind = "cannot be reached"
    remedy = "is it switched on, and are host and port right?"


class AuthenticationError(NamedDeviceError):
    """The device knows none of our keys."""

    kind = "authentication failed"
    remedy = "copy your key there: `ssh-copy-id USER@HOST` (no key yet: `ssh-keygen` first)"


class HostKeyUnknownError(NamedDeviceError):
    """Nothing says yet which key the device has."""

    kind = "host key unknown"


class HostKeyChangedError(NamedDeviceError):
    """The device shows another key than the one we know: another device, or somebody in between."""

    kind = "host key changed"


class ConnectionLostError(NamedDeviceError):
    """The connection broke off while we were working; what was being copied is not there."""

    kind = "connection lost"
    remedy = "check the cable or network and try again"


class AdbMissingError(NamedDeviceError):
    """The platform's `adb` is not installed."""

    kind = "no adb installed"
    remedy = "install Android's platform-tools (Debian: `apt install adb`)"


class NoAdbDeviceError(NamedDeviceError):
    """`adb` sees no device, or not the one that is asked for."""

    kind = "no adb device"
    remedy = "plug it in, switch USB debugging on, and see `adb devices`"


class SeveralAdbDevicesError(NamedDeviceError):
    """`adb` sees several devices and none was chosen."""

    kind = "several adb devices"


class AdbUnauthorisedError(NamedDeviceError):
    """The device has not yet accepted this machine's key."""

    kind = "adb device unauthorised"
    remedy = "unlock the device and accept the key of this machine"


class AdbPermissionsError(NamedDeviceError):
    """`adb` sees the device and this machine's user may not open it."""

    kind = "no permission to use the adb device"
    remedy = "`sudo apt install android-sdk-platform-tools-common`, join group plugdev, and plug it in again"


class AdbOfflineError(NamedDeviceError):
    """`adb` sees the device and cannot work with it."""

    kind = "adb device offline"
    remedy = "wait until it has started, plug it in again, or `adb reconnect`"


class LoginShellError(NamedDeviceError):
    """The login shell of the device's user did not do what it was given."""

    kind = "the login shell starts no sh"
    remedy = "does `ssh DEVICE sh -c true`, or `adb shell sh -c true`, work?"


class MissingToolError(NamedDeviceError):
    """The device lacks a program that every way to it needs."""

    kind = "the device lacks"
    remedy = "install them there; busybox has all of them"


class NoSpaceError(NamedDeviceError):
    """The device's file system is full."""

    kind = "no space left on the device"
    remedy = "make room there, or set TMPDIR there to a larger file system"


class PushDamagedError(NamedDeviceError):
    """Something else arrived on the device than what was sent; it was removed."""

    kind = "push arrived different"
    remedy = "try again: its sha256 there is not that of the file here"


class PullDamagedError(NamedDeviceError):
    """Something else came from the device than what is there; nothing was written."""

    kind = "pull arrived different"
    remedy = "try again: what came has not the sha256 that the device computed"


class NoSuchFileError(NamedDeviceError):
    """The device has no such file in its workspace."""

    kind = "no such file on the device"


class TimedOutError(NamedDeviceError):
    """Something took too long and was ended."""

    kind = "timeout"


class ExitStatusError(NamedDeviceError):
    """A program ended with a status other than 0."""

    kind = "failed"


class KilledError(NamedDeviceError):
    """A signal ended a program."""

    kind = "killed"


def failure(doing: str, status: int, err: str, where: str) -> NamedDeviceError:
    """What it means that a program on the device did not end well.

    Args:
        doing: what it was to do.
        status: its exit status, or 128 and the number of a signal.
        err: its standard error.
        where: the device.
    """
    last = last_line(err)
    if is_full(last):
        return NoSpaceError(doing + last, where=where)
    try:
        ended_by = signal.Signals(status - SIGNALLED)
    except ValueError:
        return ExitStatusError(f"{doing} ended with status {status}{last}", where=where)
    what = f"{doing} was ended by {ended_by.name} ({ended_by.value}){last}"
    return KilledError(what, where=where, hint=_WHY_KILLED.get(ended_by))


def is_full(said: str) -> bool:
    """Whether what a program says is that a file system is full."""
    return any(words in said for words in _FULL)


def last_line(err: str) -> str:
    """The last thing a program said, as the end of a line of ours; nothing where it said nothing."""
    lines = [line.strip() for line in err.splitlines() if line.strip()]
    return f": {lines[-1]}" if lines else ""
