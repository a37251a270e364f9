"""Trying again: how often, on what, and with which pauses."""

from __future__ import annotations

import asyncio

import pytest

from paredown.targets.devices.transports import retry
from paredown.targets.devices.transports.retry import Patience, retried

pytestmark = pytest.mark.unit


class Attempt:
    """Fails so many times."""

    def __init__(self, failures: int, error: type[Exception] = ConnectionError) -> None:
        self.failures, self.error, self.calls = failures, error, 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error(self.calls)
        return "done"


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(retry.asyncio, "sleep", sleep)
    return slept


@pytest.mark.parametrize("failures", [0, 1, 3])
def test_it_is_tried_until_it_succeeds(pauses: list[float], failures: int) -> None:
    attempt = Attempt(failures)
    assert asyncio.run(retried(attempt, Patience(attempts=4, pause_s=8), (ConnectionError,))) == "done"
    assert attempt.calls == failures + 1 and len(pauses) == failures
    for tried, pause in enumerate(pauses):  # twice as long each time, at most half of it left out
        assert 4 * 2**tried <= pause <= 8 * 2**tried


def test_the_last_error_passes_and_no_pause_follows_it(pauses: list[float]) -> None:
    attempt = Attempt(99)
    with pytest.raises(ConnectionError, match="4"):
        asyncio.run(retried(attempt, Patience(attempts=4), (ConnectionError,)))
    assert attempt.calls == 4 and len(pauses) == 3


def test_another_error_is_not_tried_again(pauses: list[float]) -> None:
    attempt = Attempt(1, ValueError)
    with pytest.raises(ValueError):
        asyncio.run(retried(attempt, Patience(), (ConnectionError, TimeoutError)))
    assert attempt.calls == 1 and not pauses
