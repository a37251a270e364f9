"""An app as a service of systemd, which starts with the device. Python's own library only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from paredown.targets.devices.service.board.home import App, Failure, write

#: Of the user who deployed: nothing here needs root. What the app may not do is in three parts: become more,
#: change the system or whom it trusts, take the whole device's memory.
UNIT = """[Unit]
Description=paredown {name}
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart="{python}" "{supervisor}" run {name}
Restart=on-failure
RestartSec=5
WatchdogSec=60
TimeoutStopSec=20
OOMPolicy=continue
MemoryMax=80%
TasksMax=256
LimitCORE=0
UMask=0077
NoNewPrivileges=yes
PrivateUsers=yes
PrivateTmp=yes
ProtectSystem=full
ReadOnlyPaths=-%h/.config
InaccessiblePaths=-%h/.ssh -%h/.gnupg
ProtectKernelTunables=yes
ProtectControlGroups=yes
ProtectHostname=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
DevicePolicy=closed
{devices}

[Install]
WantedBy=default.target
"""
#: Cameras, serial lines, accelerators: by the names of their drivers.
DEVICES = (
    "char-video4linux", "char-media", "char-usb_device", "char-ttyACM", "char-ttyUSB", "char-ttyAMA",
    "char-ttyS", "char-drm", "char-dma_heap", "/dev/vchiq", "/dev/vcsm-cma", "/dev/apex_0",
)  # fmt: skip


def unit_text(name: str, supervisor: Path) -> str:
    """The unit of an app.

    Args:
        name: of the app.
        supervisor: its file.
    """
    devices = "\n".join(f"DeviceAllow={device} rw" for device in DEVICES)
    return UNIT.format(
        name=name, python=_quoted(sys.executable), supervisor=_quoted(str(supervisor)), devices=devices
    )


def _quoted(path: str) -> str:
    """Between quotation marks of a unit."""
    for sign, spelled in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        path = path.replace(sign, spelled)
    return path


def check_systemd() -> None:
    """Before anything is changed.

    Raises:
        Failure: there is none, or it refuses.
    """
    if shutil.which("systemctl") is None or shutil.which("loginctl") is None:
        raise Failure("this device has no systemd; leave --service out, and start the app when it starts")
    system("systemctl", "--user", "show-environment")


def enable(app: App, supervisor: Path) -> None:
    """Has systemd start the app now and with the device."""
    app.unit.parent.mkdir(parents=True, exist_ok=True)
    write(app.unit, unit_text(app.name, supervisor).encode())
    system("loginctl", "enable-linger")
    system("systemctl", "--user", "daemon-reload")
    system("systemctl", "--user", "enable", "--now", app.unit.name)


def disable(app: App) -> None:
    """Has systemd end and forget it."""
    system("systemctl", "--user", "disable", "--now", app.unit.name)
    app.unit.unlink()
    system("systemctl", "--user", "daemon-reload")


def system(*command: str) -> None:
    """Asks systemd.

    Raises:
        Failure: it refuses.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "XDG_RUNTIME_DIR": runtime}
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Failure(f"`{' '.join(command)}` failed: {said[-1] if said else done.returncode}")
