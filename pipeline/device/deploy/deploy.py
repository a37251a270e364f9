"""Deployment: a bundle becomes an app that stays on a device, proved there before the old one gives way."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paredown.pipeline.bundle.archive import Bundle, unpack
from paredown.pipeline.bundle.known_code import require_known_code
from paredown.pipeline.bundle.manifest import MANIFEST, PACKED
from paredown.pipeline.store.event import Event, Tell, nobody
from paredown.targets.devices.device import Device
from paredown.targets.devices.service.board.starting import Health
from paredown.targets.devices.service.service import Service
from paredown.targets.errors import InputError

#: What every app needs there: module, or several of which one is enough -> package.
NEEDS = {
    "numpy": "numpy", "cv2": "opencv-python-headless", "ai_edge_litert|tflite_runtime": "ai-edge-litert",
}  # fmt: skip
#: And what one app alone needs.
OWN_NEEDS = {"drone": {"pymavlink": "pymavlink"}}
#: And what some of its options need: the start of an argument -> likewise.
OPTION_NEEDS = {
    "--save": {"av": "av"}, "--mqtt": {"paho": "paho-mqtt"}, "serial:": {"serial": "pyserial"},
    "--mavlink=serial:": {"serial": "pyserial"},
}  # fmt: skip
PROVE = "targets/runners/prove.py"
RELEASE_DIGITS = 12


@dataclass(frozen=True)
class Release:
    """A bundle as devices take it.

    Attributes:
        name: start of the archive's sha256.
        archive: a tar file, its manifest first.
        module: of Python in it, which is the app.
        needs: what must be there: module, or several of which one is enough -> package.
        signed: what the bundle is signed with.
        target: card that it is made for.
        bundle: its name.
    """

    name: str
    archive: bytes
    module: str
    needs: Mapping[str, str]
    signed: bytes | None
    target: str
    bundle: str


@dataclass(frozen=True)
class Deployment:
    """An app that runs now.

    Attributes:
        device: its address.
        name: of the app there.
        release: start of the sha256 of what is installed.
        previous: the release before, which stays there; None where there was none.
        running: whether it still does; a short film is over at once.
        service: whether it starts with the device.
        codes: of the test vectors, compared there.
        differing: of these.
    """

    device: str
    name: str
    release: str
    previous: str | None
    running: bool
    service: bool
    codes: int
    differing: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def deploy(
    path: str | Path,
    device: Device,
    app: str = "camera",
    *,
    name: str | None = None,
    arguments: Sequence[str] = (),
    service: bool = False,
    allow_older: bool = False,
    prepare: bool = False,
    health: Health | None = None,
    tell: Tell = nobody,
) -> Deployment:
    """Installs a bundle on a device, proves it there, and lets it take the old one's place.

    Args:
        path: the bundle.
        device: connected.
        app: the module below the bundle's `device` folder.
        name: of the app there; several of one kind need several; None = that of `app`.
        arguments: of the app.
        service: whether it starts with the device.
        allow_older: whether a device that has a trust document may go back to an older release.
        prepare: whether packages that are missing there are installed, into a virtual environment of ours.
        health: what is asked of it afterwards, and watched there, with nobody here; else the one before
            comes back. None = three minutes.
        tell: hears of each step.

    Raises:
        InputError: the bundle is broken, carries no such app, or code that is not this version's.
        UsageError: this is no name.
        DeviceError: the device does not trust the bundle, it fails its test vectors there or does not start;
            what ran before runs on.
    """
    there = Service(device, name or app)
    release = release_of(path, app, arguments)
    tell(Event(f"release {release.name}", "running"))
    proof = there.install(release.archive, release.name, release.needs, release.signed, allow_older, prepare)
    detail = f"{proof['differing']} of {proof['codes']} codes differ"
    tell(Event(f"release {release.name}", "done", detail=detail))
    tell(Event(f"{there.name}", "running"))
    status = there.start(release.name, release.module, arguments, service, allow_older, health or Health())
    tell(Event(f"{there.name}", "done", detail=f"runs on {device.address}"))
    return Deployment(
        device.address, there.name, release.name, status["previous"], status["running"], status["service"],
        proof["codes"], proof["differing"],
    )  # fmt: skip


def release_of(path: str | Path, app: str, arguments: Sequence[str] = ()) -> Release:
    """Reads a bundle.

    Args:
        path: the bundle.
        app: the module below its `device` folder.
        arguments: of the app, some of which need more packages.

    Raises:
        InputError: it is broken, carries no such app, or code that is not this version's.
    """
    bundle = unpack(path)
    require_known_code(bundle)
    module = f"{bundle.package}.device.{app}"
    for member in (f"{module.replace('.', '/')}.py", f"{bundle.house}{PROVE}"):
        if member not in bundle.members:
            what = f"a bundle of {bundle.manifest.app} carries no {member}"
            hint = (
                "make it again with `paredown run`, name another --app, or prove it there with "
                "`paredown validate --device`"
            )
            raise InputError(what, where=path, hint=hint)
    archive = release_archive(bundle)
    name = hashlib.sha256(archive).hexdigest()[:RELEASE_DIGITS]
    needs = NEEDS | OWN_NEEDS.get(app, {})
    for start, more in OPTION_NEEDS.items():
        needs |= more if any(argument.startswith(start) for argument in arguments) else {}
    manifest = bundle.manifest
    return Release(name, archive, module, needs, bundle.signed, manifest.target, manifest.name)


def release_archive(bundle: Bundle) -> bytes:
    """A bundle as a device without zstd takes it, models packed as they are; the same bytes every time.

    The manifest comes first: a device that was told its sha256 checks each file before it writes it.
    """
    packed = {name for name, entry in bundle.manifest.members.items() if entry.stored == PACKED != name}
    files = {name: data for name, data in bundle.members.items() if name not in packed}
    files[MANIFEST] = bundle.text
    if packed:
        with zipfile.ZipFile(bundle.path) as archive:
            files[PACKED] = archive.read(PACKED)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in sorted(files.items(), key=lambda item: (item[0] != MANIFEST, item[0])):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return gzip.compress(buffer.getvalue(), mtime=0)
