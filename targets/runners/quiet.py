"""Silence for native libraries that talk to the terminal behind Python's back."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def quiet(output: bool = False) -> Iterator[None]:
    """Turns standard error away, both the descriptor and Python's own, while a native library is at work.

    Args:
        output: standard output's descriptor too.
    """
    sys.stderr.flush()
    sys.stdout.flush()
    saved = {number: os.dup(number) for number in ((1, 2) if output else (2,))}
    with Path(os.devnull).open("w") as null, contextlib.redirect_stderr(null):
        for number in saved:
            os.dup2(null.fileno(), number)
        try:
            yield
        finally:
            for number, copy in saved.items():
                os.dup2(copy, number)
                os.close(copy)
