from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paredown.pipeline.recipe.task import Metric
from paredown.pipeline.report.budget import (
    Limit,
    Violation,
    budget_limits,
    check_budget,
    limit_rows,
    shipped,
    violations,
)
from paredown.pipeline.report.figures import Figure
from paredown.targets.cards.card import Budget
from paredown.targets.host.host import Machine

pytestmark = pytest.mark.unit

HOST = Machine("host", "AMD EPYC", 2, "x86_64", "Linux", 24000, "3.11.7")

MAP = Metric("map50")


def figures(drop=0.0, kib=10.0, ms=1.0, mib=50.0, tag="measured"):
    values = {
        ("fp32", "map50", "1"): 0.5,
        ("litert", "map50", "1"): 0.5 - drop,
        ("litert", "file_bytes", "B"): 7000,
        ("litert-fp32", "file_bytes", "B"): 70000,
        ("litert-fp32", "latency_p50", "ms"): 99.0,
        ("litert", "bundle_bytes", "B"): kib * 1024,
        ("litert", "latency_p50", "ms"): ms,
        ("litert", "latency_p90", "ms"): 99.0,
        ("litert", "memory_peak", "MiB"): mib,
    }
    return [Figure("x", v, m, value, unit, tag, HOST) for (v, m, unit), value in values.items()]


LIMITS = Budget(accuracy_drop=0.01, bundle_kib=10, latency_ms=1, memory_mib=50)


def test_instructions_are_limited_in_millions_as_an_emulated_board_counts_them():
    counted = Figure("bench", "litert", "instructions", 3.2e6, "1", "simulated", HOST)
    assert check_budget(Budget(instructions_m=3.2), [*figures(), counted], MAP) == ()
    (violation,) = check_budget(Budget(instructions_m=3), [*figures(), counted], MAP)
    assert violation.line() == "litert: instructions_m is 3.2, 0.2 over the budget of 3"
    (unknown,) = budget_limits(Budget(instructions_m=3), figures(), MAP)
    assert unknown.kept is None


def test_limits_that_are_just_kept_are_kept():
    # 0.5 - 0.49 is 0.010000000000000009 in binary: rounding breaks no budget
    assert check_budget(LIMITS, figures(drop=0.01), MAP) == ()
    assert check_budget(LIMITS, figures(drop=-0.3, kib=1, ms=0.1, mib=1), MAP) == ()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"drop": 0.02}, Violation("litert", "accuracy_drop", 0.01, 0.020000000000000018)),
        ({"kib": 12}, Violation("litert", "bundle_kib", 10, 12)),
        ({"ms": 1.001}, Violation("litert", "latency_ms", 1, 1.001)),
        ({"mib": 51}, Violation("litert", "memory_mib", 50, 51)),
    ],
)
def test_each_limit_alone(change, expected):
    assert check_budget(LIMITS, figures(**change), MAP) == (expected,)
    assert check_budget(Budget(), figures(**change), MAP) == ()


def test_the_line_says_what_by_how_much():
    (violation,) = check_budget(Budget(bundle_kib=10), figures(kib=12.5), MAP)
    assert violation.line() == "litert: bundle_kib is 12.5, 2.5 over the budget of 10"


def test_no_drop_at_all_can_be_asked_for():
    assert check_budget(Budget(accuracy_drop=0), figures(), MAP) == ()
    assert len(check_budget(Budget(accuracy_drop=0), figures(drop=0.001), MAP)) == 1


@pytest.mark.parametrize(
    ("perplexity", "over"), [(10.0, None), (5.0, None), (11.0, None), (12.0, 0.2), (30.0, 2.0)]
)
def test_a_rise_of_perplexity_is_the_drop_as_a_share(perplexity, over):
    values = {"fp32": 10.0, "litert": perplexity}
    found = [Figure("x", v, "perplexity", value, "1", "measured", HOST) for v, value in values.items()]
    found.append(Figure("x", "litert", "file_bytes", 7000, "B", "measured", HOST))
    broken = check_budget(Budget(accuracy_drop=0.1), found, Metric("perplexity", less_is_better=True))
    assert [(b.limit, b.found) for b in broken] == (
        [] if over is None else [("accuracy_drop", pytest.approx(over))]
    )


def test_smoke_figures_break_nothing_and_missing_ones_neither():
    assert check_budget(LIMITS, figures(0.4, 99, 99, 99, tag="smoke"), MAP) == ()
    assert check_budget(LIMITS, [], MAP) == ()
    assert check_budget(LIMITS, figures(drop=0.4), Metric("top1")) == ()


@given(st.floats(0, 1), st.floats(1e-3, 1e6), st.floats(1e-3, 1e6))
def test_a_limit_is_broken_exactly_when_it_is_exceeded(drop, found, allowed):
    broken = check_budget(Budget(latency_ms=allowed), figures(drop=drop, ms=found), MAP)
    assert (
        bool(broken) == (found > allowed * (1 + 1e-8) + 1e-8) or abs(found - allowed) < 1e-7 * allowed + 1e-8
    )


@pytest.mark.parametrize(
    ("before", "after", "over"), [(20.0, 20.4, True), (20.0, 19.0, False), (20.0, 20.1, False)]
)
def test_where_less_is_better_a_rise_is_the_drop(before, after, over):
    """A perplexity of 20.4 is 2 % worse than one of 20; one of 19 is better, and no drop at all."""
    values = {"fp32": before, "litert": after}
    found = [
        Figure("score", name, "perplexity", value, "1", "measured", HOST) for name, value in values.items()
    ]
    found.append(Figure("lower", "litert", "file_bytes", 1, "B", "measured", HOST))
    broken = check_budget(Budget(accuracy_drop=0.01), found, Metric("perplexity", less_is_better=True))
    assert [violation.variant for violation in broken] == (["litert"] if over else [])


def scored(value=0.4, **classes):
    rows = [*figures(drop=0.5 - value)]
    rows += [
        Figure("classes", "litert", f"class_score_{n}", v, "1", "measured", HOST) for n, v in classes.items()
    ]
    return rows


def test_floors_are_broken_from_below():
    budget = Budget(least_score=0.5, least_class_score=0.3)
    over = check_budget(budget, scored(0.4, cat=0.9, dog=0.1, cow=0.2), MAP)
    assert [each.line() for each in over] == [
        "litert: least_score is 0.4, 0.1 below the floor of 0.5",
        "litert: least_class_score of class 'dog' is 0.1, 0.2 below the floor of 0.3",
        "litert: least_class_score of class 'cow' is 0.2, 0.1 below the floor of 0.3",
    ]
    kept = budget_limits(budget, scored(0.6, cat=0.9, dog=0.31), MAP)
    assert [(row[0], *row[2:]) for row in limit_rows(kept)] == [
        ("least_score", "at least 0.5", "0.6", "kept"),
        ("least_class_score (dog)", "at least 0.3", "0.31", "kept"),
    ]
    unknown = budget_limits(budget, scored(0.6), MAP)
    assert [limit.state for limit in unknown] == ["kept", "not known"] and violations(unknown) == ()


def test_where_less_is_better_the_worst_score_is_the_highest():
    rows = [Figure("score", "litert", "perplexity", 20.0, "1", "measured", HOST)]
    rows.append(Figure("lower", "litert", "file_bytes", 1, "B", "measured", HOST))
    metric = Metric("perplexity", less_is_better=True)
    assert check_budget(Budget(least_score=21), rows, metric) == ()
    (over,) = check_budget(Budget(least_score=19), rows, metric)
    assert over.line() == "litert: least_score is 20, 1 over the budget of 19"


def test_what_does_not_ship_is_not_judged():
    rows = [
        Figure("x", name, "file_bytes", 1, "B", "measured", HOST)
        for name in ("litert", "litert-original", "litert-rejected", "litert-fp32", "executorch")
    ]
    assert shipped(rows) == ("executorch", "litert")


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=1), st.floats(0, 1), st.booleans())
def test_a_limit_is_kept_broken_or_not_known(found, allowed, floor):
    limits = [Limit("litert", "least_score", allowed, value, floor=floor) for value in found]
    assert len(violations(limits)) == [limit.kept for limit in limits].count(False)
    assert [limit.kept is None for limit in limits] == [value is None for value in found]
