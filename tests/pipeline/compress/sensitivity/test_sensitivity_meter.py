"""The meter against plain evaluation, and what it may leave out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prune_networks import programs, randomized
from sensitivity_case import Case, assert_reported_as, points

from paredown.pipeline.compress.coupling.coupling import couple
from paredown.pipeline.compress.sensitivity.experiment import Experiment, Outputs
from paredown.pipeline.compress.sensitivity.meter import Meter, measure
from paredown.pipeline.compress.sensitivity.plain import plain
from paredown.pipeline.compress.sensitivity.ranking import norm, ranking
from paredown.pipeline.compress.sensitivity.sensitivity import GIVEN_UP, NOT_ASKED, Sensitivity
from paredown.pipeline.graph.trace import trace


@pytest.fixture(scope="module")
def case() -> Case:
    return Case(40)


@pytest.fixture(scope="module")
def slow(case) -> Sensitivity:
    return case.run(plain)


def test_measuring_everything_is_plain_evaluation(case, slow):
    found = case.run(measure)
    assert found == slow
    assert len(found.curves) == 3 and all(p.skipped == "" for c in found.curves for p in c.points)
    metrics = {p.metric for c in found.curves for p in c.points}
    assert len(metrics) > 5  # the case says something


@settings(max_examples=5, deadline=None)
@given(net=st.one_of(programs(), programs(unknown=True)), seed=st.integers(0, 1000))
def test_random_networks_measure_as_plain_evaluation_does(net, seed):
    """With a metric that sees every bit of every output."""
    graph = trace(randomized(net, seed).eval(), (1, 3, 8, 8), opaque=True)
    groups = couple(graph)
    legal = {g.name: [w for w in range(1, g.units) if w % g.step == 0] for g in groups if not g.locked}
    widths = {name: found[:: max(1, len(found) // 2)] for name, found in legal.items()}
    rng = np.random.default_rng(seed)
    ranks = {g.name: rng.permutation(g.units).tolist() for g in groups}
    x = rng.standard_normal((5, 3, 8, 8), np.float32)

    def score(found: Sequence[Outputs]) -> tuple[float, float, float]:
        value = float(sum(np.abs(o.astype(np.float64)).sum() for image in found for o in image))
        return value, value, value

    asked = Experiment(graph, groups, ranks, widths, x, score, "sum", chunk=2)
    assert measure(asked) == plain(asked)


@pytest.mark.parametrize("options", [{"chunk": 1}, {"chunk": 64}, {"memory": 1}, {"keep": 0}])
def test_chunks_and_memory_do_not_change_the_metric(case, slow, options):
    assert case.run(measure, **options) == slow


def test_a_meter_measures_what_it_is_asked_for(case, slow):
    meter, truth = Meter(case.experiment()), points(slow)
    asked = {("stem", 4): math.inf, ("last", 1): math.inf, ("stem", 2): 0.0}
    lost = meter.ask(asked)
    assert lost == {place: (1.0 - truth[place].metric, True) for place in asked}
    again = len(case.calls)
    assert meter.ask({("stem", 4): 0.0}) == {("stem", 4): lost["stem", 4]}
    assert len(case.calls) == again, "what was measured once is known"
    found = meter.found()
    assert_reported_as(found, slow)
    full = {(c.group, c.units) for c in found.curves}
    assert {key for key, point in points(found).items() if not point.skipped} == {*asked, *full}
    assert {point.skipped for point in points(found).values()} == {"", NOT_ASKED}


def test_everything_asked_for_is_what_measuring_gives(case, slow):
    meter = Meter(case.experiment())
    for place in meter.everything():
        meter.ask({place: math.inf})
    assert meter.found() == slow


def test_a_point_stops_when_it_is_certain_to_lose_more_than_its_limit():
    """None that loses less, and what it says is lost is lost."""
    case = Case(256)
    slow, meter = points(case.run(plain)), Meter(case.experiment())
    case.calls.clear()
    lost = meter.ask(dict.fromkeys(meter.everything(), 0.1))
    assert set(case.calls) == {256}, "a score is of the whole sample"
    stopped = {place: least for place, (least, whole) in lost.items() if not whole}
    assert 0 < len(stopped) < len(lost)
    for place, least in stopped.items():
        assert 0.1 < least <= 1.0 - slow[place].metric
    found = points(meter.found())
    assert {found[place].skipped.rpartition(" images")[0] for place in stopped} <= {
        f"{GIVEN_UP} {images}" for images in range(32, 256, 32)
    }
    assert_reported_as(meter.found(), case.run(plain))


@pytest.mark.parametrize("memory", [1 << 30, 1])
def test_a_stopped_point_goes_on_where_it_was(memory):
    """With room for its outputs; without, it begins again, to the same end."""
    case = Case(256)
    meter, fresh = Meter(case.experiment(memory=memory)), Meter(case.experiment())
    (least, whole) = meter.ask({("last", 1): 0.1})["last", 1]
    assert not whole
    (more, whole) = meter.ask({("last", 1): least + 0.1})["last", 1]
    assert more > least + 0.1 and not whole
    known = fresh.ask({("last", 1): math.inf})
    assert meter.ask({("last", 1): 0.0}) == known, "what loses more, and is asked for still, is measured"


def test_without_a_best_case_every_point_is_measured_whole(case):
    meter = Meter(case.experiment(most=None))
    assert all(whole for _, whole in meter.ask(dict.fromkeys(meter.everything(), 0.0)).values())


def test_the_original_network_runs_once(case):
    """Rounds that ask about groups of the first one find its tensors."""
    meter = Meter(case.experiment(chunk=10))
    for width in (4, 1, 2):
        meter.ask({(name, width): math.inf for name in case.widths})
        assert meter.original.runs == 4


def test_progress_rises_to_its_total(case):
    ticks: list[tuple[int, int]] = []
    case.run(measure, tick=lambda done, total: ticks.append((done, total)))
    assert [t for t, _ in ticks] == sorted(t for t, _ in ticks)
    assert {total for _, total in ticks} == {(7 + 7 + 15) * 40}
    assert ticks[-1][0] == ticks[-1][1]


def test_resnet56_measures_as_plain_evaluation_does(shared):
    """Four of its groups on real images: a stage, and blocks early, in the middle and late."""
    import cv2

    from paredown.apps.classifier.network import build

    net = build("resnet56", 10)
    path = shared / "cifar10-resnets" / "resnet56-4bfd9763.th"
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    net.load_state_dict({k.removeprefix("module."): v for k, v in state.items()}, strict=False)
    sheet = cv2.imread(str(shared / "cifar10" / "test500.png"))[:12, :, ::-1] / 255
    sheet = (sheet - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    x = sheet.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2).astype(np.float32).copy()
    graph = trace(net.eval(), (1, 3, 32, 32))
    groups = couple(graph)
    widths = {"layer2.0.conv2": [16], "layer1.2.conv1": [8], "layer2.4.conv1": [4], "layer3.8.conv1": [8]}
    logits: list[list[Outputs]] = []

    def score(found: Sequence[Outputs]) -> tuple[float, float, float]:
        logits.append(list(found))
        return 0.5, 0.0, 1.0

    asked = Experiment(graph, groups, ranking(norm(graph, groups)), widths, x, score, "top1", chunk=12)
    assert measure(asked) == plain(asked)
    fast, slow = logits[:5], logits[5:]
    assert len(slow) == 5

    def flat(found: list[list[Outputs]]) -> list[bytes]:
        return [b"".join(o[0].tobytes() for o in sample) for sample in found]

    assert flat(fast[:1]) == flat(slow[:1])
    assert sorted(flat(fast[1:])) == sorted(flat(slow[1:]))
    assert len(set(flat(fast))) == 5
