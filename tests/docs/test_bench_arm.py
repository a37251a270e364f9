"""Instructions on Arm: what of the counts stands in a row, and what is counted at all."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from benches import bench

pytestmark = pytest.mark.unit
HEADS = (
    "network",
    "program",
    "old, millions",
    "times the least",
    "new, millions",
    "times the least",
    "SNR, dB",
)
COUNTS = {
    "net/old/ours, litert": 10.0, "net/old/stock, litert": 15.0, "net/old/ncnn, float": 5.0,
    "net/new/ours, litert": 8.0, "net/new/stock, litert": 16.0, "net/new/ncnn, float": 4.0,
}  # fmt: skip
NAN = float("nan")


@pytest.fixture(scope="module")
def arm() -> Iterator[ModuleType]:
    with bench("arm") as module:
        yield module


def rows_of(arm: ModuleType, known: dict[str, float]) -> dict[str, list[str]]:
    """Program -> the cells behind its name."""
    with arm.Table("arm", HEADS) as table:
        arm.rows("net", ["old", "new"], known, table)
    assert {row[0] for row in table.rows} == {"net"}
    return {row[1]: row[2:] for row in table.rows}


def test_a_peer_that_is_right_may_be_the_least(arm: ModuleType) -> None:
    found = rows_of(arm, {**COUNTS, "dB net/ours": 30.0, "dB net/old": 24.0, "dB net/new": 41.5})
    assert found == {
        "ours, litert": ["10.0", "2.00", "8.0", "2.00", "30.0"],
        "stock, litert": ["15.0", "3.00", "16.0", "4.00", ""],
        "ncnn, float": ["5.0", "1.00", "4.0", "1.00", "24.0, 41.5"],
    }


def test_one_that_is_not_right_or_fails_is_no_measure(arm: ModuleType) -> None:
    known = {**COUNTS, "net/new/ncnn, float": NAN, "dB net/ours": 30.0, "dB net/old": 23.9, "dB net/new": NAN}
    found = rows_of(arm, known)
    assert found["ours, litert"] == ["10.0", "1.00", "8.0", "1.00", "30.0"]
    assert found["stock, litert"] == ["15.0", "1.50", "16.0", "2.00", ""]
    assert found["ncnn, float"] == ["5.0", "not right", "fails", "", "23.9"]


def test_a_stock_program_that_cannot_be_made_fails_on_every_board(arm: ModuleType) -> None:
    known = {key: NAN if "stock" in key else count for key, count in COUNTS.items()}
    found = rows_of(arm, {**known, "dB net/ours": 30.0, "dB net/old": 24.0, "dB net/new": 41.5})
    assert found["stock, litert"] == ["fails", "", "fails", "", ""]
    assert found["ours, litert"] == ["10.0", "2.00", "8.0", "2.00", "30.0"]


class Made:
    """Stands for a network with everybody's programs."""

    snr, without, x = 30.0, "", None
    programs = {"ours, litert": "mine", "stock, litert": "theirs"}
    failed: Mapping[str, str] = {}

    def __init__(self, name: str, peers: Path, folder: Path) -> None:
        assert name == "net"

    def ncnn(self, board: str, package: Path) -> tuple[float, float]:
        return 4.0, 41.5


def test_a_bench_that_was_stopped_counts_what_is_not_known(
    arm: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[tuple[str, str]] = []

    @contextmanager
    def there(address: str, *_: Any) -> Iterator[Any]:
        def time(programs: dict[str, str], *_: Any) -> dict[str, Any]:
            (label,) = programs
            timed.append((address, label))
            return {label: SimpleNamespace(million_instructions=12.0)}

        yield SimpleNamespace(time=time)

    monkeypatch.setattr(arm, "Case", Made)
    monkeypatch.setattr(arm, "open_executor", there)
    monkeypatch.setattr(arm, "load_card", lambda name: name)
    asked = Namespace(boards=["old", "new"], peers=tmp_path, keep=tmp_path / "kept.json")
    known = {key: count for key, count in COUNTS.items() if "new" not in key} | {"dB net/old": 24.0}
    arm.counted("net", asked, tmp_path, known)
    assert timed == [("emulated:new", "ours, litert"), ("emulated:new", "stock, litert")]
    assert known["net/old/ours, litert"] == 10.0 and known["net/new/ours, litert"] == 12.0
    assert (known["net/new/ncnn, float"], known["dB net/new"], known["dB net/old"]) == (4.0, 41.5, 24.0)
    assert json.loads(asked.keep.read_text()) == known
    monkeypatch.setattr(arm, "Case", None)  # all is known: nothing is made
    arm.counted("net", asked, tmp_path, known)
