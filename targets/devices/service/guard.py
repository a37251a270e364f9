"""What a machine remembers of trust: whom it trusts, what it is, which releases it had, who changed what.

    ~/.config/paredown/trust.json            the signed trust document; without one, everything is taken
    ~/.config/paredown/board.json            what this device is, and the newest release of each bundle
    ~/.local/share/paredown/record.jsonl     who put what here, and when; the last few hundred

On a device `keeper.py` asks this file, which is copied there with it; on this machine the commands `trust`,
`verify` and those that open a bundle do. A file here that cannot be read refuses everything.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paredown.targets.devices.service import signed
from paredown.targets.devices.service.signed import Refused

MANIFEST, PACKED = "manifest.json", "models.packed"
MANIFEST_BYTES = 8 << 20
RECORDS = 300
_WHO = 80  # characters


def config() -> Path:
    """The folder of what is trusted."""
    return Path.home() / ".config/paredown"


@dataclass
class Expected:
    """What the files of a signed release must be; each is asked for once, the manifest first.

    Attributes:
        release: whose files they are.
        files: name -> sha256 of those that are known so far.
        sizes: name -> bytes, where that is known.
        seen: those that came.
    """

    release: signed.Release
    files: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.files[MANIFEST] = self.release.manifest
        if self.release.packed is not None:
            self.files[PACKED] = self.release.packed

    def check_head(self, name: str, size: int) -> None:
        """Before a file is read.

        Raises:
            Refused: it belongs to no such release, came already, or has another size.
        """
        if name not in self.files or name in self.seen or (not self.seen and name != MANIFEST):
            raise Refused(f"the signed release has no {name!r} here")
        if size != self.sizes.get(name, size) or (name == MANIFEST and size > MANIFEST_BYTES):
            raise Refused(f"{name} is not what was signed")

    def check(self, name: str, data: bytes) -> None:
        """Before a file is written.

        Raises:
            Refused: it is not what was signed.
        """
        if hashlib.sha256(data).hexdigest() != self.files[name]:
            raise Refused(f"{name} is not what was signed")
        self.seen.add(name)
        if name != MANIFEST:
            return
        try:
            for member, entry in json.loads(data)["members"].items():
                if entry["stored"] != PACKED or member == PACKED:
                    self.files[member], self.sizes[member] = entry["sha256"], entry["bytes"]
                else:
                    self.sizes[PACKED] = entry["stored_bytes"]
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise Refused(f"{MANIFEST} is none, although it is signed") from None

    def check_installed(self, folder: Path) -> None:
        """Before a release that is here already is used: its own proof compares its files with its manifest.

        Raises:
            Refused: what was signed is another one.
        """
        try:
            data = (folder / MANIFEST).read_bytes()
        except FileNotFoundError:
            data = b""
        self.check(MANIFEST, data)

    def check_whole(self) -> None:
        """After the last file.

        Raises:
            Refused: one is missing.
        """
        if missing := sorted(set(self.files) - self.seen):
            raise Refused(f"{missing[0]} is missing")


def present() -> signed.Trust | None:
    """The trust document of this machine.

    Raises:
        Refused: it is there, and damaged.
    """
    path = config() / "trust.json"
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return signed.Trust.of(signed.opened(text, signed.TRUST))
    except Refused as error:
        raise Refused(f"{path}: {error}; nothing is taken before it is put right") from None


def accept(text: bytes, target: str | None, who: str) -> dict[str, Any]:
    """Trusts the keys of a document from now on.

    Args:
        text: of the file. The first is trusted as it is; a later one must be newer, and signed by the
            present one's keys. Each must be signed by enough of its own: nobody shuts himself out.
        target: what this device is; None = as before, or what the first release is made for.
        who: asks for it.

    Returns:
        What `report` says.

    Raises:
        Refused: it is no document, or may not take the present one's place.
    """
    envelope = signed.opened(text, signed.TRUST)
    trust = signed.Trust.of(envelope)
    with _alone():
        old = present()
        again = old is not None and old.body() == envelope.body
        if old is not None and not again:
            trust.check_follows(old, envelope)
        signers = trust.signers(envelope)
        kept = _board()
        if target is not None and target != kept["target"]:
            kept["target"] = target
            _write(config() / "board.json", kept)
        if not again:
            write_bytes(config() / "trust.json", text)
            _record({"who": who, "what": f"trust document {trust.version}", "keys": signers})
    return report()


def admit(envelope: bytes | None, allow_older: bool) -> Expected | None:
    """Whether a release may be here.

    Args:
        envelope: what it is signed with; None = it is not.
        allow_older: whether a smaller number than was here already is fine.

    Returns:
        What its files must be; None on a machine that has no trust document, where all are taken.

    Raises:
        Refused: this machine takes signed releases alone, and this is none, or not one for it.
    """
    trust = present()
    if trust is None:
        return None
    if envelope is None:
        raise Refused(
            "not signed, and this device takes signed releases only; `paredown sign BUNDLE --key K`"
        )
    kept = _board()
    opened = signed.opened(envelope, signed.RELEASE)
    release, _ = signed.check(opened, trust, kept["target"], kept["newest"], allow_older)
    return Expected(release)


def started(envelope: bytes | None, app: str, release: str, who: str) -> None:
    """Notes a release that runs now.

    Args:
        envelope: that it was admitted with.
        app: where it runs.
        release: start of its sha256.
        who: put it there.
    """
    entry: dict[str, Any] = {"who": who, "what": f"{app} {release}"}
    with _alone():
        trust = present()
        if trust is not None and envelope is not None:
            opened = signed.opened(envelope, signed.RELEASE)
            kept = _board()
            of, signers = signed.Release.of(opened), trust.signers(opened)
            entry |= {"name": of.name, "release": of.release, "keys": signers}
            if of.release < kept["newest"].get(of.product, 0):
                entry["older"] = True
            kept["newest"][of.product] = max(of.release, kept["newest"].get(of.product, 0))
            kept["target"] = kept["target"] or of.target
            _write(config() / "board.json", kept)
        _record(entry)


def report() -> dict[str, Any]:
    """What this machine trusts and remembers.

    Raises:
        Refused: the trust document is damaged.
    """
    trust, kept = present(), _board()
    told = None if trust is None else json.loads(trust.body())
    return {"trust": told, "target": kept["target"], "newest": kept["newest"], "record": _records()}


def _board() -> dict[str, Any]:
    path = config() / "board.json"
    try:
        kept = json.loads(path.read_bytes())
        return {"target": kept["target"], "newest": dict(kept["newest"])}
    except FileNotFoundError:
        return {"target": None, "newest": {}}
    except (ValueError, KeyError, TypeError):
        raise Refused(f"{path} is damaged; nothing is taken before it is put right") from None


def _record_file() -> Path:
    return Path.home() / ".local/share/paredown/record.jsonl"


def _records() -> list[Any]:
    try:
        return [json.loads(line) for line in _record_file().read_text().splitlines()]
    except FileNotFoundError:
        return []
    except ValueError:
        raise Refused(f"{_record_file()} is damaged; move it away") from None


def _record(entry: dict[str, Any]) -> None:
    """Adds a line; the oldest ones go."""
    who = "".join(c for c in entry["who"] if c.isprintable())[:_WHO]
    lines = [*_records(), {"time": int(time.time()), **entry, "who": who}][-RECORDS:]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_bytes(_record_file(), text.encode())


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Only one at a time reads and writes these files."""
    config().mkdir(parents=True, exist_ok=True)
    with (config() / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(path: Path, document: Any) -> None:
    write_bytes(path, (json.dumps(document, sort_keys=True) + "\n").encode())


def write_bytes(path: Path, data: bytes) -> None:
    """A file that is whole or the one before, also after the power went."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
