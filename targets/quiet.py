"""Silence for native libraries that talk to standard error behind Python's back."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Turns standard error away, both the descriptor and Python's own, while a native library is at work."""
    sys.stderr.flush()
    saved = os.dup(2)
    with Path(os.devnull).open("w") as null, contextlib.redirect_stderr(null):
        os.dup2(null.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
