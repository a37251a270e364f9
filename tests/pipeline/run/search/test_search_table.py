"""The table of a sweep: costs with their units, and the points that nothing beats."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paredown.pipeline.recipe.task import Metric
from paredown.pipeline.report.figures import Figure
from paredown.pipeline.report.page.document import document
from paredown.pipeline.report.page.render import render_comparison
from paredown.pipeline.report.verdict import Verdict
from paredown.pipeline.run.search.table import Row, heads_of, marked, page_parts, row_of
from paredown.targets.host.host import Machine

pytestmark = pytest.mark.unit
HERE = Machine("here", "cpu", 1, "x86_64", "Linux", 0, "3.11")


def row(score: float, cost: float, size: float, **more) -> Row:
    return Row("p", "p", more.pop("target", "host"), {}, "f", "SHIP", metric="top1", score=score, cost=cost,
               unit="ms", bundle_kib=size, **more)  # fmt: skip


values = st.integers(0, 4).map(float)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(values, values, values), min_size=1, max_size=7))
def test_the_marked_are_those_that_no_other_dominates(points):
    """Against the definition, spelled out."""
    found = marked([row(*point) for point in points])
    for (score, cost, size), each in zip(points, found, strict=True):
        beaten = any(
            s >= score and c <= cost and b <= size and (s, c, b) != (score, cost, size) for s, c, b in points
        )
        assert each.best is not beaten


def test_targets_are_not_compared_with_each_other_and_less_may_be_better():
    found = marked([row(0.9, 1.0, 1.0), row(0.5, 2.0, 2.0, target="raspberry-pi-5"), row(0.8, 2.0, 2.0)])
    assert [each.best for each in found] == [True, True, False]
    less = [row(s, 1.0, 1.0, less_is_better=True) for s in (9.0, 8.0)]
    assert [each.best for each in marked(less)] == [False, True]
    assert not marked([Row("p", "p", "host", {}, "f", "FAILED", "why")])[0].best


def made(name: str, cost: tuple[str, float, str], tag: str = "measured") -> dict:
    rows = [("score", "fp32", "top1", 0.9, "1"), ("score", "litert", "top1", 0.8, "1"),
            ("lower", "litert", "file_bytes", 2048.0, "B"), ("bundle", "litert", "bundle_bytes", 4096.0, "B"),
            ("bench", "litert", *cost)]  # fmt: skip
    figures = [Figure(*each, "simulated" if each[2] == "instructions" else tag, HERE) for each in rows]
    verdict = Verdict("DO NOT SHIP", ("litert: too slow",), (), "litert", "the only program")
    return document(name, "host", "x", Metric("top1"), figures, verdict=verdict)


def test_a_row_is_what_the_run_says():
    bare = Row("p", "net", "host", {"prune.macs": "0.5"}, "f", "FAILED")
    found = row_of(bare, made("p", ("latency_p50", 1.25, "ms")))
    assert (found.program, found.score, found.bundle_kib) == ("litert", 0.8, 4)
    assert (found.cost, found.unit) == (1.25, "ms")
    assert (found.verdict, found.reason) == ("DO NOT SHIP", "litert: too slow")
    assert heads_of([found]) == (
        ("recipe", "macs", "target", "program", "top1", "time", "bundle KiB", "verdict"),
        ("prune.macs",),
    )
    expected = ("net", "0.5", "host", "litert", "0.8000", "1.25 ms", "4.0", "DO NOT SHIP")
    assert found.cells(("prune.macs",)) == expected
    counted = row_of(bare, made("p", ("instructions", 3.2e6, "1")))
    assert (counted.cost, counted.unit) == (3.2, "M instr.")


def test_the_page_begins_with_the_table_and_a_plot_for_each_cost():
    kinds = [("latency_p50", 1.25, "ms"), ("latency_p50", 2.5, "ms"), ("instructions", 3e6, "1"),
             ("instructions", 4e6, "1")]  # fmt: skip
    documents = [made(f"p{number}", kind) for number, kind in enumerate(kinds)]
    rows = [row_of(Row(d["name"], "p", "host", {}, "f", ""), d) for d in documents]
    failed = Row("p<9>", "p<9>", "host", {}, "f", "FAILED", "no <room>")
    page = render_comparison(documents, page_parts(marked([*rows, failed]))).decode()
    assert page.count("<svg") == 3 and "Sweep of 5 points" in page
    assert all(f"top1 over {cost}" in page for cost in ("the bundle", "the median time", "the instructions"))
    assert "p&lt;9&gt;" in page and "no &lt;room&gt;" in page and "p<9>" not in page
    assert "Sweep" not in render_comparison(documents).decode()


def test_figures_of_a_smoke_run_are_marked_and_in_no_plot():
    documents = [made(f"p{number}", ("latency_p50", number + 1.0, "ms"), "smoke") for number in range(2)]
    rows = [row_of(Row(d["name"], "p", "host", {}, "f", ""), d) for d in documents]
    assert all(each.cells(())[3] == "0.8000!" for each in rows)
    assert page_parts(rows)["plots"] == []
