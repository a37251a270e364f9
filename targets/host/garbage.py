"""How often Python looks for circles of garbage."""

from __future__ import annotations

import gc


def look_less_often() -> None:
    """Makes searches for circles of garbage rare, for the rest of this process.

    torch makes millions of objects that stay. Looking through them again and again is a tenth of what its
    import and the tracing of a network take.
    """
    gc.set_threshold(50_000, 20, 20)
