"""A language model's bundle brought to a device, with what its runtimes need there."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Collection
from pathlib import Path

from paredown.pipeline.bundle.archive import Bundle
from paredown.pipeline.bundle.known_code import require_known_code
from paredown.pipeline.bundle.manifest import MANIFEST
from paredown.pipeline.store.event import Event, Tell, nobody
from paredown.targets.devices.device import Device, python_of

ARCHIVE = "members.zip"
LARGE = 1 << 20  # bytes: an archive needs the room of its members twice
UNPACK_S = 600.0


def bring(bundle: Bundle, device: Device, runtimes: Collection[str], tell: Tell = nobody) -> None:
    """Puts a bundle's files into a device's workspace, and ExecuTorch's own program where it is asked for.

    Args:
        bundle: of a language model.
        device: connected; it needs Python.
        runtimes: whose programs go there.
        tell: hears what is being brought.

    Raises:
        InputError: the bundle holds code that is not this version's, or a damaged program.
        DeviceError: the device failed, or there is no compiler for its architecture.
    """
    from paredown.pipeline.lower.executorch.verify.plan import check_program

    require_known_code(bundle)
    for model in bundle.manifest.language:
        if model.runtime == "executorch" and model.runtime in runtimes:
            check_program(bundle.read(model.file), f"{bundle.path}:{model.file}")
    tell(Event(f"bundle: to {device.address}", "running"))
    others = {model.file for model in bundle.manifest.language if model.runtime not in runtimes}
    members = {name: data for name, data in bundle.members.items() if name not in others}
    members[MANIFEST] = bundle.text
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / ARCHIVE
        with zipfile.ZipFile(local, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                if len(data) < LARGE:
                    archive.writestr(name, data)
        device.push(local, ARCHIVE)
        for name, data in members.items():
            if len(data) >= LARGE:
                local.write_bytes(data)
                device.push(local, name)
    device.run([python_of(device), "-m", "zipfile", "-e", ARCHIVE, "."], timeout=UNPACK_S)
    if "executorch" in runtimes:
        _bring_runner(device, tell)


def _bring_runner(device: Device, tell: Tell) -> None:
    """ExecuTorch's program for language models, beside the model."""
    from paredown.targets.devices.facts import facts
    from paredown.targets.host.cache import cache_folder
    from paredown.targets.runners.executorch_build import build

    tell(Event(f"executorch: runner to {device.address}", "running"))
    built = build(facts(device).arch, cache_folder())
    for file in sorted(path for path in built.rglob("*") if path.is_file()):
        device.push(file, f"executorch/{file.relative_to(built).as_posix()}")
