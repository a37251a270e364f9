"""How many lines of Python code takes: whether it works on whole arrays, whatever else the machine does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def lines_of(function: Callable[[], Any]) -> int:
    """How many lines are executed while it runs, each as often as it is."""
    count = 0

    def seen(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return seen

    before = sys.gettrace()
    sys.settrace(seen)
    try:
        function()
    finally:
        sys.settrace(before)
    return count
