"""Trying again, with growing pauses that differ from caller to caller."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long a device is waited for and how often it is tried.

    Attributes:
        attempts: to connect, and to copy a file over a connection that breaks; programs are run only once.
        pause_s: seconds after the first attempt; each further pause is twice as long. A random half of it
            is left out, so that many callers do not return all at once.
        answer_s: seconds in which a device has to answer when we connect.
        keepalive_s: seconds between two signs of life that we ask a silent ssh connection for.
        grace_s: seconds in which a program that we end has to be gone.
    """

    attempts: int = 4
    pause_s: float = 0.5
    answer_s: float = 15.0
    keepalive_s: float = 5.0
    grace_s: float = 10.0


PATIENCE = Patience()


async def retried(
    attempt: Callable[[], Awaitable[T]], patience: Patience, on: tuple[type[Exception], ...]
) -> T:
    """Calls `attempt` until it succeeds, fails with another error than `on`, or is not to be tried again."""
    for tried in range(patience.attempts - 1):
        try:
            return await attempt()
        except on:
            await asyncio.sleep(patience.pause_s * 2**tried * random.uniform(0.5, 1))
    return await attempt()
