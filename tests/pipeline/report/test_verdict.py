"""The verdict: a pure function of figures, limits and checks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paredown.pipeline.recipe.task import Metric
from paredown.pipeline.report.budget import Limit
from paredown.pipeline.report.figures import Figure
from paredown.pipeline.report.verdict import Check, Verdict, decide, recommended
from paredown.targets.host.host import Machine

pytestmark = pytest.mark.unit
HOST = Machine("host", "AMD EPYC", 2, "x86_64", "Linux", 24000, "3.11.7")
MAP = Metric("map50")
KEPT = Limit("litert", "accuracy_drop", 0.01, 0.001)
BROKEN = Limit("litert", "bundle_kib", 10, 12)
UNKNOWN = Limit("litert", "latency_ms", 5, None)
GOOD, BAD = Check("hashes", True, "3 members"), Check("litert vectors", False, "9 of 9 codes differ")
UNDONE = Check("latency", None, "not measured: emulated")


def figure(variant, metric, value, unit="1", tag="measured"):
    return Figure("x", variant, metric, value, unit, tag, HOST)


def figures(tag="measured", **ms):
    found = [figure("fp32", "map50", 0.5, tag=tag)]
    for name, value in (ms or {"litert": 1.0}).items():
        found += [
            figure(name, "map50", 0.5, tag=tag), figure(name, "file_bytes", 100 * len(name), "B", tag),
            figure(name, "latency_p50", value, "ms", tag),
        ]  # fmt: skip
    return found


def test_what_is_kept_and_measured_ships():
    assert (
        decide([KEPT], [GOOD], figures(), MAP).line() == "SHIP with litert (the only program that may ship)"
    )


def test_a_broken_limit_or_a_failed_check_does_not_ship_and_says_why():
    assert decide([KEPT, BROKEN, UNKNOWN], [GOOD], figures(), MAP).line() == (
        "DO NOT SHIP (litert: bundle_kib is 12, 2 over the budget of 10)"
    )
    assert decide([KEPT], [GOOD, BAD, UNDONE], figures(), MAP, ["a time"]).line() == (
        "DO NOT SHIP (litert vectors failed: 9 of 9 codes differ)"
    )


def test_a_large_drop_that_no_limit_judges_is_not_proven():
    worse = [f for f in figures() if (f.variant, f.metric) != ("litert", "map50")]
    worse.append(figure("litert", "map50", 0.4))
    line = decide([], [GOOD], worse, MAP).line()
    assert line == (
        "NOT PROVEN (missing: litert: a limit for what map50 may lose; it loses 0.1000 "
        "(budget.accuracy_drop))"
    )
    for name in ("accuracy_drop", "least_score"):
        assert decide([Limit("litert", name, 0.2, 0.1)], [GOOD], worse, MAP).word == "SHIP"
    better = [f for f in worse if f.value != 0.4] + [figure("litert", "map50", 0.46)]
    assert decide([], [GOOD], better, MAP).word == "SHIP"


@pytest.mark.parametrize(
    ("limits", "checks", "missing", "said"),
    [
        ([UNKNOWN], [], [], "litert: nothing says latency_ms, and the budget limits it"),
        ([KEPT], [GOOD, UNDONE], [], "latency: not measured: emulated"),
        ([KEPT], [], ["a validation on raspberry-pi-5"], "a validation on raspberry-pi-5"),
    ],
)
def test_what_nobody_measured_is_not_proven(limits, checks, missing, said):
    assert decide(limits, checks, figures(), MAP, missing).line() == f"NOT PROVEN (missing: {said})"


def test_a_smoke_run_and_a_program_without_a_score_prove_nothing():
    assert decide([], [], figures("smoke"), MAP).reasons == ("all test images: a smoke run proves nothing",)
    unscored = [each for each in figures() if each.variant != "litert" or each.metric != "map50"]
    assert decide([], [], unscored, MAP).reasons == ("litert: no score",)


def test_a_class_that_is_never_found_is_a_warning_unless_a_floor_judges_it():
    rows = [*figures(), figure("litert", "class_score_cow", 0.0), figure("litert", "class_score_cat", 0.5)]
    verdict = decide([KEPT], [], rows, MAP)
    assert verdict.line().endswith("; 1 warning") and "class 'cow' is never found" in verdict.warnings[0]
    floor = Limit("litert", "least_class_score", 0.3, 0.0, of="cow", floor=True)
    judged = decide([floor], [], rows, MAP)
    assert judged.word == "DO NOT SHIP" and judged.warnings == ()
    assert "least_class_score of class 'cow' is 0, 0.3 below the floor of 0.3" in judged.line()


def test_many_classes_that_are_never_found_are_one_warning_of_each_program():
    scores = {"cow": 0.0, "cat": 0.5, "dog": 0.0, "pig": 0.009, "hen": 0.0, "ant": 0.0}
    rows = figures(litert=1.0, executorch=2.0)
    rows += [figure("litert", f"class_score_{name}", score) for name, score in scores.items()]
    rows += [figure("executorch", f"class_score_{name}", 0.0) for name in ("cow", "cat")]
    assert decide([KEPT], [], rows, MAP).warnings == (
        "executorch: 2 of 2 classes are never found right ('cow', 'cat'); "
        "budget.least_class_score makes that an error",
        "litert: 5 of 6 classes are never found right ('cow', 'dog', 'pig' and 2 more); "
        "budget.least_class_score makes that an error",
    )


def test_codes_that_differ_are_a_warning():
    rows = [*figures(), figure("litert", "parity_lsb", 2, "LSB")]
    assert "by up to 2 LSB" in decide([], [], rows, MAP).warnings[0]
    assert decide([], [], [*rows, figure("litert", "parity_allowed", 3, "LSB")], MAP).warnings == ()


def test_the_recommended_runtime_is_the_fastest_or_else_the_smallest():
    fast = figures(litert=1.0, executorch=2.0)
    assert recommended(["executorch", "litert"], fast, MAP) == (
        "litert",
        "1.00 ms against 2.00 of executorch",
    )
    alike = figures(litert=1.0, executorch=1.01)
    name, why = recommended(["executorch", "litert"], alike, MAP)
    assert name == "litert" and why == "as fast as the others, and the smallest file"
    untimed = [each for each in alike if each.metric != "latency_p50"]
    assert recommended(["executorch", "litert"], untimed, MAP)[1] == "the smallest file; nothing was timed"
    assert recommended([], fast, MAP) == ("", "")
    half = [each for each in alike if (each.variant, each.metric) != ("litert", "latency_p50")]
    assert recommended(["executorch", "litert"], half, MAP)[1] == "the smallest file; not all were timed"


def test_a_slow_program_is_not_recommended_for_its_size_and_one_with_other_codes_not_for_its_speed():
    rows = figures(litert=1.01, executorch=1.0, ort=30.0)
    names = ["executorch", "litert", "ort"]
    assert recommended(names, rows, MAP) == ("litert", "as fast as executorch, and the smallest file")
    wrong = [*figures(litert=1.0, ort=0.5), figure("ort", "parity_lsb", 2, "LSB")]
    assert recommended(["litert", "ort"], wrong, MAP) == ("litert", "the only program that may ship")
    both = [*wrong, figure("litert", "parity_lsb", 1, "LSB")]
    assert recommended(["litert", "ort"], both, MAP)[0] == "ort"


def test_a_runtime_that_breaks_a_limit_is_never_recommended():
    fast = figures(litert=1.0, executorch=2.0)
    assert decide([BROKEN], [], fast, MAP).runtime == "executorch"
    assert decide([], [BAD], fast, MAP).runtime == "executorch"


states = st.sampled_from([True, False, None])


@st.composite
def limits(draw):
    allowed = draw(st.floats(0.1, 1))
    found = {True: allowed / 2, False: allowed * 2, None: None}[draw(states)]
    return Limit(draw(st.sampled_from(["litert", "executorch"])), "latency_ms", allowed, found)


@given(
    st.lists(limits(), max_size=4),
    st.lists(st.builds(Check, st.just("litert vectors"), states, st.just("d")), max_size=4),
    st.lists(st.just("a time"), max_size=1),
    st.sampled_from(["measured", "simulated", "smoke"]),
)
def test_it_ships_only_what_is_whole(found, checks, missing, tag):
    """Nothing broken or failed, nothing unknown, skipped, missing or smoke; and broken comes first."""
    rows = [figure("litert", "map50", 0.5, tag=tag), figure("litert", "file_bytes", 9, "B", tag)]
    verdict = decide(found, checks, rows, MAP, missing)
    broken = any(limit.kept is False for limit in found) or any(c.passed is False for c in checks)
    unknown = any(limit.kept is None for limit in found) or any(c.passed is None for c in checks)
    whole = not (broken or unknown or missing or tag == "smoke")
    assert (verdict.word == "DO NOT SHIP") == broken and (verdict.word == "SHIP") == whole
    assert bool(verdict.reasons) == (verdict.word != "SHIP")
    assert verdict.line().startswith(verdict.word) and "\n" not in verdict.line()


@given(st.lists(limits(), max_size=4), limits())
def test_one_limit_more_never_helps(found, more):
    order: list[str] = ["SHIP", "NOT PROVEN", "DO NOT SHIP"]
    rows = figures()
    before, after = (decide(each, [], rows, MAP).word for each in (found, [*found, more]))
    assert order.index(after) >= order.index(before)


def test_more_than_three_reasons_are_counted():
    line = Verdict("DO NOT SHIP", tuple("abcde")).line()
    assert line == "DO NOT SHIP (a; b; c; and 2 more)"
