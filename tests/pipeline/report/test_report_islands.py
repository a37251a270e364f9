"""The report names every operation that stays in float, and what it costs."""

from __future__ import annotations

import pytest

from paredown.pipeline.report.islands import island_note, island_report

pytestmark = pytest.mark.unit
ROW = {
    "op": "cumsum.default", "name": "scan", "line": "net.py:7", "runtime": "litert", "elements": 2304,
    "float_bytes": 18432, "outside": ["CUMSUM"], "differing": 1, "values": 1000, "max_lsb": 1, "ms": 0.25,
}  # fmt: skip


def test_a_row_for_each_with_place_size_difference_and_time():
    row = island_report([ROW])[-1]
    assert row == (
        "| cumsum.default | scan | net.py:7 | litert | 2,304 | 18,432 | CUMSUM | 0.1 %, 1 LSB | 0.250 |"
    )
    assert island_report([]) == []


def test_a_sentence_says_where_it_runs():
    assert island_note(ROW) == (
        "litert computes scan, cumsum.default (net.py:7), in float: beside the delegate: CUMSUM, "
        "0.250 ms alone"
    )
    assert island_note({**ROW, "outside": [], "ms": None}).endswith("in float: within the delegate")
