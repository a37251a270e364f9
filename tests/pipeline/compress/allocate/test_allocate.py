"""allocate.py against brute force, and what it says where a budget cannot be met."""

from __future__ import annotations

import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.apps.classifier.network import build
from paredown.pipeline.compress.allocate.allocate import (
    SMALLEST_RESOLUTION,
    Allocation,
    allocate,
    predicted_losses,
    uniform,
)
from paredown.pipeline.compress.allocate.cost import Cost, CostTerm, counted, group_widths
from paredown.pipeline.compress.coupling.coupling import Group, Member, couple
from paredown.pipeline.compress.sensitivity.sensitivity import Curve, Point, Sensitivity
from paredown.pipeline.graph.trace import trace
from paredown.targets.cards.card import ChannelMultiple
from paredown.targets.errors import BudgetError, UsageError

ONES = ChannelMultiple(conv=1, pointwise=1, depthwise=1, linear=1)


def group(name: str, units: int, locked: str = "") -> Group:
    return Group(name, (Member(name, "out", tuple((c,) for c in range(units))),), (), locked)


def product_cost(groups, *touching: tuple[str, ...], name="macs") -> Cost:
    """A part per tuple of groups: the product of their widths."""
    parts = tuple(
        CostTerm("+".join(names), names, lambda w, names=names: float(math.prod(w[n] for n in names)), True)
        for names in touching
    )
    return Cost(name, "things", {g.name: g.units for g in groups}, parts)


def random_problem(seed: int):
    """Up to five groups with random curves, and a cost of random tables over one to three of them."""
    rng = np.random.default_rng(seed)
    groups = [group(f"g{i}", 8) for i in range(int(rng.integers(2, 6)))]
    losses, parts = {}, []
    for g in groups:
        found = [8, *sorted(rng.choice(range(1, 8), int(rng.integers(1, 4)), replace=False), reverse=True)]
        drops = np.cumsum(rng.choice([0, 0.01, 0.05], len(found)))
        losses[g.name] = {int(w): float(d) for w, d in zip(found, drops - drops[0], strict=True)}
    for index in range(len(groups)):
        names = tuple(
            sorted(rng.choice([g.name for g in groups], min(int(rng.integers(1, 4)), len(groups)), False))
        )
        table = rng.uniform(0.5, 1.5, 9 ** len(names)).reshape([9] * len(names))

        def value(widths, names=names, table=table):
            return float(table[tuple(widths[n] for n in names)] * sum(widths[n] for n in names))

        parts.append(CostTerm(f"layer{index}", names, value, False))
    return groups, losses, Cost("latency", "ms", {g.name: 8 for g in groups}, tuple(parts))


def objective(losses, chosen, resolution: float) -> float:
    """The definition, with all units alike."""
    return sum(losses[n][w] - resolution * math.log(w / 8) for n, w in chosen.items())


def combinations(losses):
    for widths in itertools.product(*losses.values()):
        yield dict(zip(losses, widths, strict=True))


# -- against brute force -------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**20), st.floats(0.2, 0.99), st.sampled_from([0.0, 0.002]))
def test_the_least_loss_within_a_limit_is_that_of_brute_force(seed, limit, resolution):
    groups, losses, cost = random_problem(seed)
    weight = max(resolution, SMALLEST_RESOLUTION)
    feasible = [w for w in combinations(losses) if cost.share(w) <= limit]
    if not feasible:
        with pytest.raises(BudgetError):
            allocate(groups, losses, cost, limit=limit, resolution=resolution)
        return
    found = allocate(groups, losses, cost, limit=limit, resolution=resolution)
    assert found.optimal and found.achieved == cost.share(found.widths) <= limit + 1e-12
    best = min(objective(losses, w, weight) for w in feasible)
    assert objective(losses, found.widths, weight) == pytest.approx(best, abs=1e-6)
    assert found.predicted_drop == pytest.approx(objective(losses, found.widths, 0.0))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**20), st.floats(0.0, 0.3), st.sampled_from([0.0, 0.002]))
def test_the_least_cost_within_a_drop_is_that_of_brute_force(seed, tolerance, resolution):
    groups, losses, cost = random_problem(seed)
    found = allocate(groups, losses, cost, tolerance=tolerance, resolution=resolution)
    feasible = [w for w in combinations(losses) if objective(losses, w, resolution) <= tolerance + 1e-12]
    assert found.optimal and found.budget == "accuracy_drop" and found.cost == "latency"
    assert found.achieved == found.predicted_drop <= tolerance + 1e-12
    assert found.share == pytest.approx(min(cost.share(w) for w in feasible), abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**20), st.floats(0.3, 1.0))
def test_never_worse_than_uniform(seed, limit):
    groups, losses, _ = random_problem(seed)
    names = [g.name for g in groups]
    cost = product_cost(groups, *[(a, b) for a, b in itertools.pairwise(names)], (names[0],))
    try:
        plain = uniform(groups, losses, cost, limit, losses)
    except BudgetError:
        return
    found = allocate(groups, losses, cost, limit=limit)
    assert plain.achieved <= limit
    assert found.predicted_drop <= plain.predicted_drop + 1e-4  # the penalty that breaks ties


def test_resnet56_is_solved_to_proven_optimality():
    graph = trace(build("resnet56").eval(), (1, 3, 32, 32))
    groups = couple(graph)
    rng = np.random.default_rng(0)
    widths = {g.name: group_widths(graph, g, ONES, 8) for g in groups}
    losses = {
        g.name: {w: float(a * (1 - w / g.units) ** p) for w in widths[g.name]}
        for g, a, p in zip(
            groups, rng.gamma(1, 0.4, len(groups)), rng.uniform(1, 4, len(groups)), strict=True
        )
    }
    cost = counted(graph, groups, "macs")
    found = allocate(groups, losses, cost, limit=0.5, resolution=1 / 512)
    assert sum(len(w) > 1 for w in widths.values()) == 30
    assert found.optimal and 0.49 < found.achieved <= 0.5
    assert found.predicted_drop < uniform(groups, widths, cost, 0.5, losses).predicted_drop


# -- flat curves ---------------------------------------------------------------------------------------------


def test_flat_curves_are_cut_evenly_and_not_to_the_bone():
    groups = [group(f"g{i}", 8) for i in range(4)]
    losses = {g.name: dict.fromkeys(range(8, 0, -1), 0.0) for g in groups}
    cost = product_cost(groups, *[(g.name,) for g in groups])
    found = allocate(groups, losses, cost, limit=0.5, resolution=0.01)
    assert found.widths == dict.fromkeys(losses, 4)
    assert found.predicted_drop == 0


def test_a_tolerance_of_nothing_does_not_cut_what_a_sample_cannot_see():
    groups = [group("g", 8)]
    cost = product_cost(groups, ("g",))
    losses = {"g": dict.fromkeys(range(8, 0, -1), 0.0)}
    assert allocate(groups, losses, cost, tolerance=0.0, resolution=0.01).widths == {"g": 8}
    assert allocate(groups, losses, cost, tolerance=0.01, resolution=0.01).widths == {"g": 3}  # -log(3/8) < 1


def test_important_units_are_kept():
    groups = [group("a", 8), group("b", 8)]
    losses = {g.name: dict.fromkeys(range(8, 0, -1), 0.0) for g in groups}
    cost = product_cost(groups, ("a",), ("b",))
    importance = {"a": [1.0] * 8, "b": [100.0, 0, 0, 0, 0, 0, 0, 0]}
    assert allocate(groups, losses, cost, limit=9 / 16, importance=importance).widths == {"a": 8, "b": 1}


# -- what cannot be chosen -----------------------------------------------------------------------------------


def test_skipped_widths_are_never_chosen_and_named_where_they_stand_in_the_way():
    groups = [group("a", 8), group("b", 8, locked="makes the output")]
    losses = {"a": {8: 0.0, 6: 0.3, 4: None}, "b": {8: 0.0, 4: 0.0}}
    cost = product_cost(groups, ("a",), ("b",))
    assert allocate(groups, losses, cost, limit=0.9).widths == {"a": 6, "b": 8}
    with pytest.raises(BudgetError) as caught:
        allocate(groups, losses, cost, limit=0.8)
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert "macs = 0.8 cannot be met: the best is 0.875 of the original" in message
    assert "b cannot be cut" in message and "skipped in a" in message
    assert allocate(groups, losses, cost, limit=0.875).achieved == 0.875


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**20))
def test_what_is_said_to_be_reachable_is(seed):
    groups, losses, cost = random_problem(seed)
    with pytest.raises(BudgetError) as caught:
        allocate(groups, losses, cost, limit=0.0)
    best = float(str(caught.value).partition("the best is ")[2].split()[0])
    assert allocate(groups, losses, cost, limit=best).achieved <= best
    assert best <= min(cost.share(w) for w in combinations(losses)) + 1.1e-4


def test_groups_without_losses_stay_whole():
    groups = [group("a", 8), group("b", 8)]
    cost = product_cost(groups, ("a", "b"))
    assert allocate(groups, {"a": {8: 0.0, 2: 0.1}}, cost, limit=0.5).widths == {"a": 2, "b": 8}


@pytest.mark.parametrize("bad", [math.nan, -0.1, 1.5, math.inf])
def test_requests_that_are_no_share_are_refused(bad):
    groups = [group("a", 8)]
    cost = product_cost(groups, ("a",))
    for wanted in ({"limit": bad}, {"tolerance": bad}):
        with pytest.raises(UsageError, match="within 0 and 1"):
            allocate(groups, {}, cost, **wanted)
    with pytest.raises(UsageError, match="within 0 and 1"):
        uniform(groups, {}, cost, bad)


@pytest.mark.parametrize("wanted", [{}, {"limit": 0.5, "tolerance": 0.1}])
def test_exactly_one_request_is_taken(wanted):
    groups = [group("a", 8)]
    with pytest.raises(UsageError, match="not both"):
        allocate(groups, {}, product_cost(groups, ("a",)), **wanted)


def test_without_time_for_the_solver_the_limit_still_holds(monkeypatch):
    groups, losses, _ = random_problem(3)
    cost = product_cost(groups, *itertools.pairwise([g.name for g in groups]))

    def gives_up(*args, **kwargs):
        return SimpleNamespace(x=None, status=1, mip_gap=None)

    monkeypatch.setattr("scipy.optimize.milp", gives_up)
    found = allocate(groups, losses, cost, limit=0.9, seconds=0.0)
    assert found.widths == uniform(groups, losses, cost, 0.9).widths
    assert not found.optimal and found.gap is None and "found nothing" in found.notes[0]


def test_a_split_cost_is_said_not_to_be_exact_and_the_limit_holds():
    groups = [group(f"g{i}", 8) for i in range(4)]
    names = tuple(g.name for g in groups)
    part = CostTerm("layer", names, lambda w: float(math.prod(w[n] for n in names)) ** 0.5, False)
    cost = Cost("latency", "ms", dict.fromkeys(names, 8), (part,))
    losses = {n: {8: 0.0, 4: 0.01 * i, 2: 0.1} for i, n in enumerate(names)}
    found = allocate(groups, losses, cost, limit=0.6)
    assert found.achieved <= 0.6 and not found.optimal
    assert "not exact" in found.notes[0]


# -- the curves, the file ------------------------------------------------------------------------------------


def test_losses_are_monotone_and_skipped_points_have_none():
    points = [(8, 0.9), (6, 0.85), (4, 0.95), (2, None), (1, 0.2)]
    curve = Curve(
        "a", 8, tuple(Point(w, m, None, None, "" if m else "not measured") for w, m in reversed(points))
    )
    sensitivity = Sensitivity("m", 10, Point(0, 0.9, None, None), (curve,))
    found = predicted_losses(sensitivity)
    assert found["a"] == {
        8: 0.0,
        6: 0.0,  # no worse than a narrower one that is better than the whole
        4: 0.0,
        2: None,
        1: pytest.approx(0.7),
    }


def test_an_allocation_survives_json():
    groups, losses, cost = random_problem(5)
    found = allocate(groups, losses, cost, limit=0.9)
    assert Allocation.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found


def test_uniform_takes_the_largest_share_and_leaves_locked_groups():
    groups = [group("a", 8), group("b", 16), group("c", 4, locked="the input")]
    allowed = {"a": (8, 6, 4, 2), "b": (16, 8), "c": (4, 2)}
    cost = product_cost(groups, ("a",), ("b",), ("c",))
    found = uniform(groups, allowed, cost, 24 / 28)
    assert found.widths == {"a": 6, "b": 8, "c": 4} and found.predicted_drop is None
    with pytest.raises(BudgetError, match="the best is 0.5 of"):
        uniform(groups, allowed, cost, 0.4)
