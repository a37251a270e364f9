"""Sampling against a plain implementation, against transformers' own filters, and at the edges of floats."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from paredown.apps.chat.device.generation.sampling import Sampler, Sampling, Stops, distribution
from paredown.targets.errors import InputError, UsageError

pytestmark = pytest.mark.unit

LOGITS = arrays(
    np.float32, st.integers(1, 40), elements=st.floats(-30, 30, width=32).map(lambda x: round(x, 1))
)
TEMPERATURES = st.sampled_from([0.1, 0.5, 1.0, 2.0])
TOP_P = st.sampled_from([0.1, 0.5, 0.9, 0.95, 1.0])


def plainly(logits, sampling):
    """Token -> probability, by the definition: one token after the other, in Python's own numbers."""
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    order = order[: sampling.top_k or None]
    highest = float(max(logits))
    powers = {token: math.exp((float(logits[token]) - highest) / sampling.temperature) for token in order}
    total = sum(powers.values())
    kept, reached = {}, 0.0
    for token in order:
        kept[token] = powers[token]
        reached += powers[token] / total
        if reached >= sampling.top_p and sampling.top_p < 1:
            break
    return {token: power / sum(kept.values()) for token, power in kept.items()}


def near_the_edge(logits, sampling):
    """Whether rounding alone decides which token is the last of top-p."""
    every = plainly(logits, Sampling(sampling.temperature, sampling.top_k, 1.0))
    sums = np.cumsum(list(every.values()))
    return bool(np.abs(sums - sampling.top_p).min() < 1e-9)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(LOGITS, TEMPERATURES, st.integers(0, 45), TOP_P)
def test_what_can_be_drawn_is_what_the_definition_says(logits, temperature, top_k, top_p):
    sampling = Sampling(temperature, top_k, top_p)
    tokens, shares = distribution(logits, sampling)
    wanted = plainly(logits, sampling)
    if top_p == 1 or not near_the_edge(logits, sampling):
        assert tokens.tolist() == list(wanted)
        np.testing.assert_allclose(shares, list(wanted.values()), rtol=1e-9)
    assert shares.sum() == pytest.approx(1) and (np.diff(shares) <= 0).all()


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 1.0), (7, 1.0), (0, 0.9), (64, 0.95), (0, 0.999), (5000, 0.5)]
)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
def test_transformers_keeps_the_same_tokens(top_k, top_p, temperature):
    """On a vocabulary so large that not all of it is sorted."""
    logits = np.random.default_rng(5).normal(0, 3, 20_000).astype(np.float32)
    scores = TemperatureLogitsWarper(temperature)(None, torch.from_numpy(logits)[None].double())
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    theirs = scores.softmax(-1)[0].numpy()
    tokens, shares = distribution(logits, Sampling(temperature, top_k, top_p))
    assert set(tokens) == set(np.flatnonzero(theirs))
    np.testing.assert_allclose(shares, theirs[tokens], rtol=1e-6)


def test_draws_are_as_frequent_as_they_are_likely():
    logits = np.log(np.float32([0.5, 0.3, 0.15, 0.05]))
    draw = Sampler(Sampling(1.0, 0, 1.0, seed=1))
    counts = np.bincount([draw(logits) for _ in range(5_000)], minlength=4)
    wanted = [0.5, 0.3, 0.15, 0.05]
    np.testing.assert_allclose(counts / 5_000, wanted, atol=0.03)  # four standard deviations


def test_a_seed_says_which_draws_come():
    logits = np.zeros(1000, np.float32)
    first, again, other = (
        [draw(logits) for _ in range(20)] for draw in (Sampler(Sampling(seed=seed)) for seed in (3, 3, 4))
    )
    assert first == again != other


@settings(max_examples=100, deadline=None, derandomize=True)
@given(LOGITS)
def test_greedy_is_the_first_of_the_highest(logits):
    assert Sampler(Sampling(temperature=0))(logits) == logits.tolist().index(max(logits.tolist()))
    assert Sampler(Sampling(top_k=1))(logits) == logits.tolist().index(max(logits.tolist()))


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1.0, 1e300])
@pytest.mark.parametrize("extremes", [[3e38, -3e38, 0], [-3e38, -3e38, -3e38], [-math.inf, 5, -math.inf]])
def test_no_logits_overflow(temperature, extremes):
    logits = np.float32(extremes)
    with np.errstate(all="raise", under="ignore"):
        tokens, shares = distribution(logits, Sampling(temperature, 0, 1.0))
        assert Sampler(Sampling(temperature, seed=0))(logits) in tokens
    assert np.isfinite(shares).all() and shares.sum() == pytest.approx(1)


@pytest.mark.parametrize("broken", [[math.nan, 1], [math.inf, 1], [-math.inf, -math.inf]])
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_no_numbers_are_refused(broken, temperature):
    with pytest.raises(InputError, match="the model's logits are (nan|inf|-inf)"):
        Sampler(Sampling(temperature))(np.float32(broken))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"temperature": -0.1}, "temperature -0.1 must be 0 or more"),
        ({"temperature": math.nan}, "temperature nan"),
        ({"temperature": math.inf}, "temperature inf"),
        ({"top_k": -1}, "top-k -1"),
        ({"top_p": 0.0}, "top-p 0.0 must be more than 0"),
        ({"top_p": 1.1}, "top-p 1.1"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_values_out_of_range_are_named(values, named):
    with pytest.raises(UsageError, match=named):
        Sampling(**values)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(st.text("ab\nc", max_size=4), max_size=12),
    st.lists(st.text("ab\nc", min_size=1, max_size=4), max_size=3),
)
def test_a_stream_stops_where_the_whole_text_would(pieces, strings):
    """The oracle has all of the text; a stream has to do without, and never takes anything back."""
    whole = "".join(pieces)
    ends = [(at + len(string), at) for string in strings if (at := whole.find(string)) >= 0]
    cut = min(ends)[1] if ends else None
    stops, shown = Stops(strings), ""
    for piece in pieces:
        shown += stops.take(piece)
        assert whole.startswith(shown)
    assert stops.stopped == (cut is not None)
    assert shown + stops.finish() == whole[:cut]


def test_text_is_held_back_only_while_it_may_be_a_stop():
    stops = Stops(["\nUser:"])
    assert [stops.take(text) for text in ("a", "\nUs", "es", "\n", "User", ": b", "c")] == [
        "a", "", "\nUses", "", "", "", "",
    ]  # fmt: skip
    assert stops.stopped and stops.finish() == ""


def test_an_empty_stop_string_is_refused():
    with pytest.raises(UsageError, match="an empty stop string"):
        Stops(["a", ""])
