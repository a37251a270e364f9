"""Tries damaged inputs on parsers: each ends in a result or in one line, in bounded time and memory.

A finding is any other exception than ours, a signal, more seconds or memory than the bound, or a file outside
of the folder that the input lies in. Every input has a number; `one(target, number)` makes it again.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import tempfile
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paredown.targets.errors import ParedownError

SECONDS = 20.0  # for an input, on a machine that does other things too
MEMORY = 1 << 30  # bytes that an input may add
MEMORY_DISK = "/dev/shm"  # a file made and removed there costs no disk anything


@dataclass(frozen=True)
class Target:
    """A parser under test.

    Attributes:
        name: of it.
        seeds: file name -> good bytes of it; the file is written where `run` finds it. Made once.
        mutate: damages one of them.
        run: reads the file, in a folder that is empty but for it.
        share: inputs that CI tries.
        patience: so many times `SECONDS` are the bound, where processes are started.
    """

    name: str
    seeds: Callable[[], dict[str, bytes]]
    mutate: Callable[[bytes, random.Random], bytes]
    run: Callable[[Path], Any]
    share: int = 60
    patience: int = 1


@dataclass(frozen=True)
class Finding:
    """An input that did more than to be refused."""

    target: str
    number: int
    what: str


class Slow(BaseException):
    """An input took too long; nothing below catches it."""


def one(target: Target, seeds: dict[str, bytes], number: int) -> tuple[str, bytes]:
    """File name and content of an input."""
    chance = random.Random(f"{target.name} {number}")
    name = chance.choice(sorted(seeds))
    return name, target.mutate(seeds[name], chance)


def attempts(target: Target, numbers: Sequence[int]) -> Iterator[tuple[bool, Finding | None]]:
    """Tries inputs in this process.

    Yields:
        For each whether it was read at all, and what was found.
    """
    seeds = target.seeds()
    with tempfile.TemporaryDirectory(dir=MEMORY_DISK if os.access(MEMORY_DISK, os.W_OK) else None) as outer:
        folder = Path(outer) / "in"
        for number in numbers:
            folder.mkdir(exist_ok=True)
            name, data = one(target, seeds, number)
            (folder / name).write_bytes(data)
            read, what = _tried(target, folder / name)
            outside = [found.name for found in Path(outer).iterdir() if found != folder]
            if outside:
                what = f"wrote {outside} outside"
            yield read, Finding(target.name, number, what) if what else None
            for path in (*(Path(outer) / found for found in outside), *folder.iterdir()):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _tried(target: Target, path: Path) -> tuple[bool, str]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    before = _resident("VmRSS")
    try:
        with _within(SECONDS * target.patience), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.run(path)
        read = True
    except ParedownError as error:
        read = False
        if any(unicodedata.category(c) in ("Cc", "Cs") for c in str(error)):
            return False, f"says {str(error)[:200]!r}"
    except Slow:
        return False, f"takes more than {SECONDS * target.patience:g} s"
    except BaseException as error:  # that is what is looked for
        frames = traceback.extract_tb(error.__traceback__)
        place = next((f for f in reversed(frames) if "fuzz" not in f.filename), frames[-1])
        return (
            False,
            f"{type(error).__name__}: {str(error)[:150]} ({Path(place.filename).name}:{place.lineno})",
        )
    more = _resident("VmHWM") - before
    return read, f"takes {more >> 20} MiB" if more > MEMORY else ""


def _resident(key: str) -> int:
    """Bytes of this process in memory: now (VmRSS), or at its peak (VmHWM)."""
    text = Path("/proc/self/status").read_text()
    return int(text[text.index(key) + len(key) + 1 :].split(None, 1)[0]) << 10


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
    def late(*_: object) -> None:
        raise Slow

    old = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
