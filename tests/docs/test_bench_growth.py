"""How stages grow: which seconds are a stage's, and what a slope is of."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from benches import bench

from paredown.pipeline.store.event import Event

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def growth() -> Iterator[ModuleType]:
    with bench("growth") as module:
        yield module


def test_slopes_are_of_the_least_of_all_runs(
    growth: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = iter(range(1, 3))
    first = growth.STAGED_DEPTHS[0]

    def stages(depth: int, cifar: Path) -> dict[str, float]:
        slower = 1.0 if depth != first else float(next(runs))  # the second run's first network
        found = {"trace": slower * depth / 10, "squantize": depth**2 / 100, "preview": depth / 10_000}
        return found | ({"bench": 1.0} if depth == first else {})

    monkeypatch.setattr(growth, "stages", stages)
    growth.staged(Namespace(cifar=tmp_path, staged=2, record=None))
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert lines[2:] == [
        ["trace", "2.00", "3.20", "5.60", "1.00"],
        ["squantize", "4.00", "10.24", "31.36", "2.00"],
        ["preview", "0.00", "0.00", "0.01", "too short"],
    ]


def test_a_stage_takes_from_its_begin_to_its_end(
    growth: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe is a real one: its settings are keys that there are."""
    clock = iter([10.0, 12.5, 20.0, 21.0])
    asked: dict[str, Any] = {}

    class Told:
        """Stands for a run."""

        def __init__(self, name: str, recipe: Any, card: Any, folder: Path, *, tell: Callable[[Event], None],
                     around: Any) -> None:  # fmt: skip
            asked.update(recipe=recipe)
            self._tell = tell

        def execute(self) -> None:
            for event in (
                Event("trace", "running"), Event("trace", "done"), Event("couple", "reused"),
                Event("prune", "running"), Event("prune", "done"),
            ):  # fmt: skip
                self._tell(event)

    monkeypatch.setattr(growth, "Run", Told)
    monkeypatch.setattr(growth, "time", SimpleNamespace(process_time=lambda: next(clock)))
    assert growth.stages(20, tmp_path) == {"trace": 2.5, "prune": 1.0}
    recipe = asked["recipe"]
    assert recipe.network == "resnet20" and recipe.prune.macs == 0.5 and recipe.squantize.weight_bits == 4
