"""Texts for language models: files, or Python's own help, cut into pieces of equal length."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from paredown.targets.errors import InputError

Split = Literal["train", "calibration", "test"]


def pydoc_text(split: Split) -> str:
    """The topics of Python's help (`pydoc`, PSF licence), which every Python has: no download.

    Of ten topics in their order by name eight are for training, one is for calibration, one for scoring.
    """
    from pydoc_data.topics import topics

    wanted = {"calibration": (8,), "test": (9,)}.get(split, tuple(range(8)))
    return "\n\n".join(topics[name].strip() for i, name in enumerate(sorted(topics)) if i % 10 in wanted)


def file_text(path: Path) -> str:
    """A text file, or all .txt files of a folder in the order of their names.

    Raises:
        InputError: it is missing, empty, or not UTF-8.
    """
    try:
        files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
        text = "\n".join(file.read_text("utf-8") for file in files)
    except OSError as error:
        raise InputError(f"cannot read this text: {error.strerror}", where=error.filename or path) from error
    except UnicodeDecodeError as error:
        raise InputError(f"is no UTF-8 text: byte {error.start} is {error.reason}", where=path) from error
    if not text.strip():
        raise InputError("holds no text", where=path, hint="a .txt file, or a folder of them")
    return text


def fingerprint(text: str) -> str:
    """Sha256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()
