"""What signatures cost: processor time on this machine, instructions on an emulated Raspberry Pi.

    python bench/signing.py BUNDLE [--board raspberry-pi-5] [--runs 50] [--record]

Here a bundle is signed (`paredown sign`) and its signatures are checked against a trust document, in one
process. On the board its device checks the signature with Python's own library alone, and then the sha256 of
every file that comes: what `paredown deploy` adds to a release, before anything is written. The counts are
exact; they are no milliseconds.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from record import Table, add_option

from paredown.pipeline.bundle.archive import Bundle, unpack
from paredown.pipeline.bundle.signing.keys import new_key, read_private
from paredown.pipeline.bundle.signing.release import (
    new_trust,
    of_keys,
    read_trust,
    sign_bundle,
    sign_trust,
    verify_bundle,
)
from paredown.pipeline.device.deploy.deploy import release_archive
from paredown.targets.address import open_device
from paredown.targets.devices.counts import VARIABLE, read_counts
from paredown.targets.devices.device import Device, python_of
from paredown.targets.devices.service import ed25519
from paredown.targets.devices.service.service import KEEPER, keeper_archive

COLUMNS = ["what", "milliseconds of processor time here", "million instructions on the board"]
#: On the board: marks as `targets/emulated/instructions.c` reads them around what is asked for.
THERE = f"""
import os, sys, tarfile
from pathlib import Path
sys.path.insert(0, {KEEPER!r})
from paredown.targets.devices.service import guard
envelope, what = Path("envelope.json").read_bytes(), sys.argv[1]
if guard.present() is None:
    guard.accept(Path("trust.json").read_bytes(), sys.argv[2], "bench")
with tarfile.open("release") as tar:
    files = [(each.name, tar.extractfile(each).read()) for each in tar]
def signature():
    return guard.admit(envelope, True)
def digests(expected):
    for name, data in files:
        expected.check_head(name, len(data))
        expected.check(name, data)
    expected.check_whole()
def bracketed(call, tag):
    os.isatty(0x7e570000 | tag)
    call()
    os.isatty(0x7e570000 | tag + 1)
for _ in range(5):
    bracketed(lambda: None, 0)
for _ in range(3):
    expected = signature()
    bracketed(signature if what == "signature" else lambda: digests(expected), 2)
"""


def milliseconds(call: Callable[[], object], runs: int) -> float:
    """Of this process's processor time, the median of some calls, after one that is not counted."""
    call()
    found = []
    for _ in range(runs):
        start = time.process_time()
        call()
        found.append((time.process_time() - start) * 1e3)
    return statistics.median(found)


def counted(device: Device, what: str, target: str) -> float:
    """Million instructions of one of the two checks on a board that holds what they need."""
    command = [python_of(device), "there.py", what, target]
    device.run(command, timeout=600, environment={VARIABLE: f"{what}.counts"})
    with tempfile.TemporaryDirectory() as folder:
        device.pull(f"{what}.counts", Path(folder) / "counts")
        return read_counts((Path(folder) / "counts").read_text()).total / 1e6


def on_board(address: str, folder: Path, bundle: Bundle, trust: Path) -> dict[str, float]:
    """Million instructions of both checks of a signed bundle."""
    assert bundle.signed is not None  # it was just signed
    files = {
        KEEPER: keeper_archive(), "there.py": THERE.encode(), "envelope.json": bundle.signed,
        "trust.json": trust.read_bytes(), "release": release_archive(bundle),
    }  # fmt: skip
    with open_device(address) as device:
        for name, data in files.items():
            (folder / name).write_bytes(data)
            device.push(folder / name, name)
        return {what: counted(device, what, bundle.manifest.target) for what in ("signature", "digests")}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--board", default="raspberry-pi-5")
    parser.add_argument("--runs", type=int, default=50)
    add_option(parser)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Table("signing", COLUMNS, given.record) as table:
        folder = Path(name)
        (folder / "keys").mkdir()
        private, _, key = new_key("alice", folder / "keys")
        secret = read_private(private)
        path, document = folder / "x.paredown", folder / "trust-1.json"
        shutil.copy(given.bundle, path)
        new_trust(document, of_keys({key.id: key}))
        sign_trust(document, secret)
        trust = read_trust(document)[1]
        here = timed(path, secret, given.runs)
        bundle = unpack(path)
        here |= {
            "verify a bundle that is open": milliseconds(lambda: verify_bundle(bundle, trust), given.runs),
            "open and verify": milliseconds(lambda: verify_bundle(unpack(path), trust), given.runs),
        }
        table.note(f"A bundle of {path.stat().st_size / 1024:,.0f} KiB with {len(bundle.members)} files.")
        for what, spent in here.items():
            table.row(what, f"{spent:.2f}", "-")
        there = on_board(f"emulated:{given.board}", folder, bundle, document)
        table.row(f"{given.board}: signature and trust document", "-", f"{there['signature']:.1f}")
        table.row(f"{given.board}: sha256 of every file", "-", f"{there['digests']:.1f}")


def timed(path: Path, secret: Ed25519PrivateKey, runs: int) -> dict[str, float]:
    """What signing costs, and its parts."""
    message = hashlib.sha512(b"message").digest()
    signature, public = secret.sign(message), secret.public_key().public_bytes_raw()
    return {
        "sign a file": milliseconds(lambda: sign_bundle(path, secret, 1, anew=True), runs),
        "of that, open it: every hash, every program": milliseconds(lambda: unpack(path), runs),
        "one signature, by cryptography": milliseconds(lambda: secret.sign(message), runs),
        "one check, by Python alone": milliseconds(lambda: ed25519.verify(public, message, signature), runs),
    }


if __name__ == "__main__":
    main()
