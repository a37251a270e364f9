"""lazy.py against `allocate` on complete curves, and what it asks for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.pipeline.compress.allocate.allocate import allocate
from paredown.pipeline.compress.allocate.cost import Cost, CostTerm
from paredown.pipeline.compress.allocate.lazy import Curves, allocate_lazily
from paredown.pipeline.compress.coupling.coupling import Group, Member
from paredown.targets.errors import BudgetError, UsageError

pytestmark = pytest.mark.unit
UNITS = 8


def layer(before: str, after: str, factor: float) -> CostTerm:
    """A layer between two groups; without a name one end has three channels."""
    names = tuple(name for name in (before, after) if name)
    return CostTerm(f"{before}>{after}", names, lambda w: factor * w.get(before, 3) * w.get(after, 3), True)


class Problem:
    """Groups in a chain whose curves fall by random steps, and what was asked of them.

    Args:
        seed: of everything.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        names = [f"g{i}" for i in range(int(rng.integers(2, 6)))]
        self.groups = [
            Group(name, (Member(name, "out", tuple((c,) for c in range(UNITS))),), (), "") for name in names
        ]
        self.losses = {}
        for name in names:
            steps = np.cumsum(rng.choice([0, 0.004, 0.02, 0.1], UNITS - 1)) * rng.uniform(0.5, 1.5)
            self.losses[name] = {UNITS: 0.0} | {UNITS - 1 - i: float(d) for i, d in enumerate(steps)}
        pairs = zip(["", *names], [*names, ""], strict=True)
        parts = tuple(layer(before, after, rng.uniform(1, 3)) for before, after in pairs)
        self.cost = Cost("macs", "things", dict.fromkeys(names, UNITS), parts)
        self.widths = {name: tuple(found) for name, found in self.losses.items()}
        self.importance = {name: rng.uniform(0.1, 1, UNITS).tolist() for name in names}
        self.asked: list[tuple[str, int]] = []
        self.stopped = 0

    def whole(self, places):
        self.asked += places
        return {(name, width): (self.losses[name][width], True) for name, width in places}

    def early(self, places):
        """Stops what is over its limit at a little over it."""
        found = {}
        for (name, width), limit in places.items():
            drop = self.losses[name][width]
            found[name, width] = (drop, True) if drop <= limit else ((limit + drop) / 2, False)
            self.stopped += drop > limit
        self.asked += places
        return found


def same(problem: Problem, ask, **budget: float) -> None:
    options = {"importance": problem.importance, "resolution": 0.001, **budget}
    try:
        full = allocate(problem.groups, problem.losses, problem.cost, **options)
    except BudgetError:
        with pytest.raises(BudgetError):
            allocate_lazily(problem.groups, problem.widths, ask, problem.cost, **options)
        return
    found = allocate_lazily(problem.groups, problem.widths, ask, problem.cost, **options)
    assert found.widths == full.widths
    assert found.predicted_drop == pytest.approx(full.predicted_drop, abs=1e-12)
    assert found.optimal


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**20), st.floats(0.1, 0.95))
def test_the_widths_within_a_cost_are_those_of_complete_curves(seed, limit):
    problem = Problem(seed)
    same(problem, problem.whole, limit=limit)
    assert len(set(problem.asked)) == len(problem.asked), "nothing is asked for twice"


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**20), st.floats(0.1, 0.95))
def test_stopping_points_at_their_limits_changes_nothing(seed, limit):
    """What is beyond its limit counts as what it has lost by then, until the answer needs more of it."""
    problem = Problem(seed)
    same(problem, problem.early, limit=limit)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**20), st.floats(0.0, 0.3))
def test_the_least_cost_within_a_drop_is_that_of_complete_curves(seed, tolerance):
    problem = Problem(seed)
    same(problem, problem.early, tolerance=tolerance)


def test_it_asks_for_few_points_and_stops_most_of_them():
    """Of curves as networks have them: flat down to a width of their own, steep below it."""
    problem, rng = Problem(0), np.random.default_rng(1)
    for name, curve in problem.losses.items():
        end = int(rng.integers(1, 7))
        problem.losses[name] = {width: 0.0 if width >= end else 0.2 * (end - width) for width in curve}
    measured: set[tuple[str, int]] = set()

    def ask(places):
        found = problem.early(places)
        measured.update(place for place, (_, whole) in found.items() if whole)
        return found

    same(problem, ask, limit=0.4)
    groups = len(problem.groups)
    assert len(set(problem.asked)) <= groups * (UNITS - 1) / 2 and len(measured) <= 2 * groups
    assert problem.stopped > 0


def test_what_is_known_lies_between_what_was_measured():
    known = Curves({"a": (8, 6, 4, 2)}, {"a": 8})
    assert known.least() == {"a": {8: 0.0, 6: 0.0, 4: 0.0, 2: 0.0}}
    assert known.most()["a"] == {2: math.inf, 4: math.inf, 6: math.inf, 8: 0.0}
    known.drops["a", 4] = (0.1, True)
    assert known.least()["a"] == {8: 0.0, 6: 0.0, 4: 0.1, 2: 0.1}
    assert known.most()["a"] == {8: 0.0, 6: 0.1, 4: 0.1, 2: math.inf}
    known.drops["a", 6] = (0.3, False)  # given up, but a narrower one is known to lose less
    assert known.least()["a"] == {8: 0.0, 6: 0.1, 4: 0.1, 2: 0.1}
    known.drops["a", 2] = (0.05, True)  # noise: no wider one counts as worse
    assert set(known.least()["a"].values()) == {0.0, 0.05} and known.most()["a"][6] == 0.05
    known.drops = {("a", 4): (0.2, False)}
    assert known.least()["a"] == {8: 0.0, 6: 0.0, 4: 0.2, 2: 0.2} and known.most()["a"][2] == math.inf


def test_it_asks_for_the_narrowest_first_then_for_middles():
    known = Curves({"a": (8, 6, 5, 4, 3, 2), "b": (8,)}, {"a": 8, "b": 8})
    assert known.narrowest() == [("a", 2)]
    known.drops["a", 2] = (0.5, True)
    assert known.ask_about("a", 6) == ("a", 4)
    known.drops["a", 4] = (0.4, True)
    assert known.ask_about("a", 6) == ("a", 5) and known.ask_about("a", 3) == ("a", 3)
    known.drops["a", 3] = (0.45, False)
    assert known.ask_about("a", 3) == ("a", 3), "what was given up is measured"


def test_it_goes_a_little_beyond_what_a_point_is_known_to_lose():
    known = Curves({"a": (8, 6, 4)}, {"a": 8}, {("a", 6): (0.2, False), ("a", 4): (0.1, False)})
    assert known.limits([("a", 6), ("a", 4)], 0.01) == pytest.approx({("a", 6): 0.26, ("a", 4): 0.26})
    assert Curves({"a": (8, 6, 4)}, {"a": 8}).limits([("a", 6)], 0.01) == {("a", 6): 0.01}


def test_what_is_open_may_lose_more_than_it_does_at_least():
    known = Curves({"a": (8, 6, 4)}, {"a": 8, "locked": 8}, {("a", 6): (0.2, True)})
    assert known.open([("locked", 8), ("a", 8), ("a", 6), ("a", 4)]) == [("a", 4)]


def test_a_locked_group_stays_whole():
    problem = Problem(1)
    name = problem.groups[0].name
    problem.groups[0] = Group(name, problem.groups[0].makers, (), "it says so")
    del problem.widths[name]
    found = allocate_lazily(problem.groups, problem.widths, problem.whole, problem.cost, limit=0.8)
    assert found.widths[name] == UNITS and name not in {group for group, _ in problem.asked}


def test_two_budgets_are_refused():
    problem = Problem(2)
    with pytest.raises(UsageError, match="not both"):
        allocate_lazily(problem.groups, problem.widths, problem.whole, problem.cost, limit=0.5, tolerance=0.1)
