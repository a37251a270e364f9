"""The strategy of `fit` on made-up worlds, in which what is right is known: brute force is the oracle."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paredown.pipeline.run.search.fit.strategy import (
    BITS,
    NEAR,
    PROBES,
    RUNGS,
    ZEROS,
    Candidate,
    Measured,
    Wanted,
    next_share,
    search,
)

pytestmark = pytest.mark.unit


@dataclass
class MadeUp:
    """A world of formulas: time falls with the MACs, bytes with bits and zeros, losses with epochs.

    Attributes:
        fixed: part of the time that does not hang on the MACs.
        power: of the share of MACs in the time.
        least: share of MACs.
        loss: drop of all that is taken away, untrained.
        trainings: that there is time for.
    """

    fixed: float = 0.1
    power: float = 1.0
    least: float = 0.1
    loss: float = 0.4
    trainings: float = 1e9
    judged: list[Candidate] = field(default_factory=list)
    timed: list[float] = field(default_factory=list)

    def floor(self) -> float:
        return self.least

    def cost(self, share: float) -> float:
        self.timed.append(share)
        return self.time(share)

    def time(self, share: float) -> float:
        return self.fixed + (1 - self.fixed) * share**self.power

    def kib(self, candidate: Candidate) -> float:
        bits, zeros = candidate.bits or 8, candidate.zeros or 0.0
        return 100 + 100 * (candidate.share or 1.0) * bits / 8 * (1 - zeros)

    def drop(self, candidate: Candidate) -> float:
        taken = 1 - (candidate.share or 1.0) + (0 if candidate.bits is None else 1 / candidate.bits)
        return self.loss * taken / (1 + 8 * candidate.epochs)

    def judge(self, candidate: Candidate) -> Measured:
        self.judged.append(candidate)
        cost = self.time(candidate.share or 1.0)
        return Measured(candidate, self.drop(candidate), cost, self.kib(candidate))

    def time_left(self, candidate: Candidate) -> bool:
        return sum(each.epochs > 0 for each in self.judged) < self.trainings


def test_int8_alone_is_all_that_is_measured_where_it_is_enough():
    world = MadeUp()
    found = search(world, Wanted(cost=1.0, kib=200.0, drop=0.01))
    assert found.chosen is not None and found.chosen.candidate == Candidate()
    assert world.judged == [Candidate()] and world.timed == []


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.floats(0.0, 0.6), st.sampled_from([0.5, 1.0, 2.0, 4.0]), st.sampled_from([0.05, 0.2, 0.5]),
    st.floats(0.05, 0.99),
)  # fmt: skip
def test_a_time_is_met_wherever_the_narrowest_network_meets_it_and_by_few_measurements(
    fixed, power, least, wanted
):
    world = MadeUp(fixed, power, least)
    found = search(world, Wanted(cost=wanted, drop=1.0))
    assert len(world.timed) <= PROBES + 1 and min(world.timed) >= least
    if world.time(least) > wanted:
        assert found.chosen is None and f"{world.time(least) - wanted:.4g} over" in found.why
        assert found.nearest.candidate.share == least and not any(each.epochs for each in world.judged)
    else:
        assert found.chosen is not None and found.chosen.cost is not None and found.chosen.cost <= wanted


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.floats(0.0, 0.5), st.floats(0.3, 0.95))
def test_of_a_time_that_falls_in_a_line_nearly_all_is_used(fixed, wanted):
    world = MadeUp(fixed, 1.0, 0.01)
    found = search(world, Wanted(cost=wanted))
    if world.time(0.01) < NEAR * wanted:
        assert found.chosen is not None and (found.chosen.cost or 0) >= NEAR * wanted
        assert len(world.timed) <= 2


def test_measured_shares_settle_it():
    assert next_share([(1.0, 1.0)], 2.0, 0.1) is None
    assert next_share([(1.0, 1.0), (0.5, 0.5)], 0.52, 0.1) is None
    assert next_share([(1.0, 1.0), (0.1, 0.5)], 0.3, 0.1) is None, "there is nothing narrower"
    between = next_share([(1.0, 1.0), (0.2, 0.2)], 0.6, 0.1)
    assert between is not None and 0.5 < between < 0.6


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.floats(100.0, 199.0))
def test_the_mildest_zeros_of_each_number_of_bits_keep_the_bytes(kib):
    world = MadeUp(loss=0.0)
    found = search(world, Wanted(kib=kib, drop=0.5))
    kept = [(b, z) for b, z in itertools.product(BITS, ZEROS) if world.kib(Candidate(None, b, z)) <= kib]
    if kept:
        mildest = {b: min(z for other, z in kept if other == b) for b in {b for b, _ in kept}}
        tried = {(c.bits, c.zeros) for c in world.judged[1:]}
        assert tried == set(mildest.items())
        assert found.chosen is not None and found.chosen.kib <= kib
    else:  # channels go where bits and zeros are not enough
        assert all(c.share is not None and c.share < 1 for c in world.judged[1:])
        assert (found.chosen is None) == (world.kib(Candidate(0.1, 2, 0.9)) > kib)


def test_the_race_halves_the_field_and_ends_with_the_first_that_keeps_the_drop():
    world = MadeUp(loss=0.9)
    found = search(world, Wanted(kib=140.0, drop=0.06))
    counts = [sum(c.epochs == rung for c in world.judged[1:]) for rung in RUNGS]
    assert counts[:2] == [3, 3] and counts[2] in (0, 2)
    assert found.chosen is not None and found.chosen.drop <= 0.06
    milder = [c for c in world.judged[1:] if c.epochs < found.chosen.candidate.epochs]
    assert all(world.drop(c) > 0.06 for c in milder), "epochs come last"


def test_a_drop_that_training_does_not_win_back_is_told_with_what_would_do():
    world = MadeUp(loss=5.0)
    found = search(world, Wanted(kib=140.0, drop=0.01))
    assert found.chosen is None and "the drop on held-out training images is" in found.why
    assert found.nearest == min(found.seen, key=lambda each: each.excess(Wanted(kib=140.0, drop=0.01)))
    assert [c.epochs for c in world.judged[-1:]] == [RUNGS[-1]]
    assert not found.nearest.over(Wanted(kib=found.nearest.kib, drop=found.nearest.drop))


def test_where_only_int8_itself_loses_too_much_it_is_trained():
    world = MadeUp(loss=0.5)
    base, drop = Candidate(), world.drop
    world.drop = lambda c: 0.05 if c == base else drop(c)  # type: ignore[method-assign]
    found = search(world, Wanted(drop=0.03))
    assert found.chosen is not None and found.chosen.candidate.bits == 8 and found.chosen.candidate.epochs > 0


def test_when_the_time_is_over_nothing_more_is_trained():
    world = MadeUp(loss=5.0, trainings=2)
    found = search(world, Wanted(kib=140.0, drop=0.01))
    assert found.chosen is None and found.why.startswith("the time for the search is over")
    assert sum(c.epochs > 0 for c in world.judged) == 2


def test_less_than_int8_may_be_asked_and_words_say_what_is_over():
    measured = Measured(Candidate(0.5, 4, 0.6, 0.25), 0.02, 3.0, 120.0)
    assert measured.candidate.line() == "0.5 of the MACs, 4 bits with 60% zeros, 0.25 of the recipe's epochs"
    assert measured.over(Wanted(2.0, 150.0, 0.01)) == {"cost": 1.0, "drop": pytest.approx(0.01)}
    assert Candidate().line() == "int8 alone"
