"""What a bundle may ask of the machine that opens it: looked at before anything in it is expanded.

Hashes say that a file is what its maker made, not that he meant well. A file that is small and expands to
gigabytes, lists a hundred thousand members, hides one behind another, or names a member so that some machine
writes it elsewhere, is refused whatever its hashes say.
"""

from __future__ import annotations

import json
import os
import re
import stat
import unicodedata
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from paredown.targets.errors import InputError
from paredown.targets.runners.expand import expandable, leads_out

FILE_BYTES = 8 << 30
MEMBERS = 4096
MANIFEST_BYTES, SIGNATURE_BYTES = 8 << 20, 1 << 16
NAME_BYTES = 200
_LOCAL_HEADER = 30  # bytes of a zip entry before its name
_UTF8 = 0x800  # the only flag of an entry that our own have
#: Control characters but line ends and tabs, halves of surrogate pairs, and what turns the direction of text.
_STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
#: Names that Windows keeps for devices, with any suffix.
_RESERVED = {"con", "prn", "aux", "nul", *(f"{kind}{n}" for kind in ("com", "lpt") for n in range(1, 10))}


def bounded(path: Path, most: int = FILE_BYTES) -> bytes:
    """A file's bytes; nothing that has no end, or is larger than anything of that kind.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no file, or too large.
    """
    # Without O_NONBLOCK opening a named pipe waits for somebody who writes.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError("it is no regular file")
        if facts.st_size > most:
            raise ValueError(f"{facts.st_size:,} bytes, more than {most:,}")
        return file.read(facts.st_size)


def json_document(text: bytes) -> Any:
    """JSON without the numbers that are none.

    Raises:
        ValueError: it is not JSON, or says NaN or Infinity.
        RecursionError: it is nested too deeply.
    """

    def refused(word: str) -> Any:
        raise ValueError(f"{word} is no number")

    return json.loads(text, parse_constant=refused)


def check_text(document: Any, what: str) -> None:
    """Looks for characters that steer a terminal, or turn the order of what it shows.

    Args:
        document: text, or JSON with texts anywhere.
        what: names it in the error.

    Raises:
        InputError: there is one.
    """
    waiting = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            if found := _STEERS.search(value):
                raise InputError(f"{what} holds the control character {found.group()!r}")
        elif isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value


def check_entries(archive: zipfile.ZipFile, manifest: str) -> None:
    """Looks at the zip's own directory.

    Args:
        archive: open.
        manifest: name of the one entry that may be deflated.

    Raises:
        InputError: an entry is compressed, encrypted, no file, there twice, or lies over another.
        KeyError: there is no manifest.
    """
    entries = archive.infolist()
    if len(entries) > MEMBERS:
        raise InputError(f"has {len(entries):,} members, more than {MEMBERS:,}")
    seen, end = set[str](), 0
    for entry in sorted(entries, key=lambda each: each.header_offset):
        name = entry.filename
        if name in seen:
            raise InputError(f"has two members called {name!r}")
        if entry.compress_type != zipfile.ZIP_STORED and (name, entry.compress_type) != (
            manifest,
            zipfile.ZIP_DEFLATED,
        ):
            raise InputError(f"member {name!r} is compressed, which no bundle's is")
        if entry.flag_bits & ~_UTF8 or stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
            raise InputError(f"member {name!r} is encrypted, or no plain file")
        if entry.header_offset < end:
            raise InputError(f"member {name!r} lies over another")
        end = entry.header_offset + _LOCAL_HEADER + len(name.encode()) + entry.compress_size
        seen.add(name)
    if end > archive.start_dir:
        raise InputError("its last member lies over the directory")
    if archive.getinfo(manifest).file_size > MANIFEST_BYTES:
        raise InputError(f"its {manifest} is larger than {MANIFEST_BYTES:,} bytes")


def check_listed(
    archive: zipfile.ZipFile, stored: Sequence[str], shared: str, manifest: str, last: str
) -> None:
    """Each stored file is one member's, or that of all programs, or of signatures, which are the last entry.

    Args:
        archive: open.
        stored: under which name each member lies.
        shared: the file that many members may be stored as.
        manifest: the file that names them.
        last: that of the signatures, if there are any.

    Raises:
        InputError: a stream that many name would be many times as much; what nobody names is hidden.
    """
    own = [name for name in stored if name != shared]
    if len(own) != len(set(own)) or last in own:
        raise InputError("has members that are stored as one")
    entries = archive.infolist()
    if last in {entry.filename for entry in entries[:-1]}:
        raise InputError(f"its {last} is not its last entry")
    if entries[-1].filename == last and entries[-1].file_size > SIGNATURE_BYTES:
        raise InputError(f"its {last} is larger than {SIGNATURE_BYTES:,} bytes")
    if hidden := sorted({entry.filename for entry in entries} - {*stored, manifest, last}):
        raise InputError(f"holds {hidden[0]!r}, which its manifest does not name")


def check_sizes(sizes: Iterable[int], file: int) -> None:
    """Looks at what all members would take.

    Args:
        sizes: bytes of each, expanded.
        file: bytes of the bundle.

    Raises:
        InputError: more than a bundle of this size expands to.
    """
    if (total := sum(sizes)) > expandable(file):
        raise InputError(f"would expand to {total:,} bytes, more than a bundle of {file:,} bytes may")


def check_names(names: Iterable[str]) -> None:
    """Looks at names of members: each must be a path of its own on every system.

    Raises:
        InputError: one leads out of the folder, is kept by some system, or is another's on some.
    """
    files, folders = dict[str, str](), dict[str, str]()
    for name in names:
        if leads_out(name):
            raise InputError(f"member {name!r} leads out of the folder")
        parts = name.split("/")
        if not all(map(_plain, parts)) or len(name.encode()) > NAME_BYTES:
            raise InputError(f"member {name!r} has a name that not every system can write")
        key = [unicodedata.normalize("NFC", part).casefold() for part in parts]
        whole = "/".join(key)
        if (twin := files.setdefault(whole, name)) != name or (twin := folders.get(whole, name)) != name:
            raise InputError(f"members {name!r} and {twin!r} are one file on some systems")
        if whole in folders:
            raise InputError(f"member {name!r} is also the folder of another")
        for depth in range(1, len(parts)):
            above = "/".join(key[:depth])
            if above in files:
                raise InputError(f"member {files[above]!r} is also the folder of {name!r}")
            spelled = "/".join(parts[:depth])
            if folders.setdefault(above, spelled) != spelled:
                raise InputError(f"folders {spelled!r} and {folders[above]!r} are one on some systems")


def _plain(part: str) -> bool:
    """Whether a part of a path is a name everywhere."""
    try:
        part.encode()
    except UnicodeEncodeError:
        return False
    return (
        part not in ("", ".")
        and part.isprintable()
        and not set(part) & set('<>:"|?*')
        and part[-1] not in " ."
        and part.partition(".")[0].rstrip().casefold() not in _RESERVED
    )
