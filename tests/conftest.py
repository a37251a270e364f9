"""Shared by all tests: where the data of the figures lies, and one thread for torch."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and labelled images that the figures are made with; users do not have it."""
    if not SHARED.is_dir():
        pytest.skip("the shared data of the figures is not on this machine")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
