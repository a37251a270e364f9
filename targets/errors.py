"""The errors a user can cause, each one line and each with its documented exit code.

This is the lowest file of the house: every room raises these, so it imports nothing of ours.
"""

from __future__ import annotations

import functools


@functools.cache
def _pictures() -> dict[int, int]:
    """Code points that are not let through, and what stands for them: their picture, or U+FFFD."""
    pictured = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
    turning = [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]  # the direction of what follows
    return pictured | dict.fromkeys([*range(0x80, 0xA0), *turning, *range(0xD800, 0xE000)], 0xFFFD)


def visible(text: str) -> str:
    """Text of a file, a device or a model whose control characters are shown instead of obeyed.

    Line ends and tabs stay.
    """
    return text.translate(_pictures())


class ParedownError(Exception):
    """An error a user can act on: what is wrong, where, and what to do next, in one line.

    Args:
        what: what is wrong, with the offending value.
        where: file, line, key or device it was found at; printed first.
        hint: what to do next; printed last.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: object | None = None, hint: str | None = None) -> None:
        self.what = what
        line = what if where is None else f"{where}: {what}"
        if hint:
            line = f"{line.rstrip('.')}; {hint}"
        super().__init__(visible(" ".join(line.split())))


class UsageError(ParedownError):
    """A command, an option or a recipe key that is not what it should be (exit code 2)."""

    exit_code = 2


class BudgetError(ParedownError):
    """The result is outside the recipe's or the card's budget (exit code 3)."""

    exit_code = 3


class InputError(ParedownError):
    """A file that the user gave is broken, empty, of the wrong shape or missing (exit code 4)."""

    exit_code = 4


class DeviceError(ParedownError):
    """A device, cluster or shared store cannot be reached, or failed while working for us (exit code 5)."""

    exit_code = 5
