"""The fast test against plain evaluation, and what it may leave out."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from prune_networks import conv, masked, network, outputs, programs, randomized
from torch import nn

from paredown.pipeline.compress.coupling.coupling import couple
from paredown.pipeline.compress.sensitivity.ranking import norm, ranking
from paredown.pipeline.compress.sensitivity.sensitivity import (
    GIVEN_UP,
    NOT_ASKED,
    Curve,
    Meter,
    Outputs,
    Point,
    Sensitivity,
    choose_chunk,
    measure,
    plain,
)
from paredown.pipeline.graph.graph import Graph
from paredown.pipeline.graph.trace import trace
from paredown.targets.errors import InputError, UsageError


def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = F.relu(self.stem(x))
    x = F.relu(self.second(F.relu(self.first(x))) + x)
    return self.head(F.relu(self.last(x)).mean((2, 3)))


class Case:
    """A network that agrees with itself on every image, and what measuring it takes."""

    def __init__(self, images: int, seed: int = 0) -> None:
        self.net = network(
            forward, seed, stem=conv(3, 8, 3), first=conv(8, 8, 3), second=conv(8, 8, 3),
            last=nn.Conv2d(8, 16, 3, 2, 1), head=nn.Linear(16, 4),
        )  # fmt: skip
        self.graph = trace(self.net, (1, 3, 8, 8))
        self.groups = couple(self.graph)
        self.x = np.random.default_rng(seed).standard_normal((images, 3, 8, 8), np.float32)
        logits = outputs(self.net, torch.from_numpy(self.x))[0].numpy()
        self.centre = logits.mean(0)  # the random head prefers a class by far
        self.truth = (logits - self.centre).argmax(1)
        self.ranks = ranking(norm(self.graph, self.groups))
        self.widths = {g.name: tuple(range(g.units, 0, -1)) for g in self.groups if not g.locked}
        self.calls: list[int] = []

    def score(self, found: Sequence[Outputs]) -> tuple[float, float, float]:
        assert all(len(o) == 1 and o[0].shape == (1, 4) for o in found)
        self.calls.append(len(found))
        n = len(found)
        p = float((np.array([(o[0][0] - self.centre).argmax() for o in found]) == self.truth[:n]).mean())
        half = 1.96 * (p * (1 - p) / n + 1 / n**2) ** 0.5
        return p, p - half, p + half

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.graph, self.groups, self.ranks, self.widths, self.x, self.score, "top1"

    def run(self, way, **options) -> Sensitivity:  # noqa: ANN001
        return way(*self.arguments, **options)


@pytest.fixture(scope="module")
def case() -> Case:
    return Case(40)


@pytest.fixture(scope="module")
def slow(case) -> Sensitivity:
    return case.run(plain)


def points(found: Sensitivity) -> dict[tuple[str, int], Point]:
    return {(c.group, p.width): p for c in found.curves for p in c.points}


def assert_reported_as(found: Sensitivity, expected: Sensitivity) -> None:
    """The same points; what is reported is equal, what is not says why."""
    truth = points(expected)
    assert points(found).keys() == truth.keys()
    for key, point in points(found).items():
        if point.skipped:
            assert (point.metric, point.low, point.high) == (None, None, None)
        else:
            assert point == truth[key]


def test_measuring_everything_is_plain_evaluation(case, slow):
    found = case.run(measure)
    assert found == slow
    assert len(found.curves) == 3 and all(p.skipped == "" for c in found.curves for p in c.points)
    metrics = {p.metric for c in found.curves for p in c.points}
    assert len(metrics) > 5  # the case says something


def test_plain_evaluation_is_the_users_own_masked_module(case, slow):
    """Hooks that zero channels in the module itself, one image at a time."""
    for (name, width), point in points(slow).items():
        kept = {name: tuple(sorted(case.ranks[name][:width]))}
        module = masked(case.net, case.graph, case.groups, kept)
        found = [tuple(o.numpy() for o in outputs(module, torch.from_numpy(x[None]))) for x in case.x]
        assert (point.metric, point.low, point.high) == case.score(found)


def test_full_width_is_the_baseline_and_leads_every_curve(case, slow):
    assert slow.baseline.metric == 1.0 and slow.images == 40 and slow.metric == "top1"
    for curve in slow.curves:
        assert [p.width for p in curve.points] == list(case.widths[curve.group])
        assert curve.points[0] == Point(curve.units, 1.0, slow.baseline.low, slow.baseline.high)


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

    arguments = (graph, groups, ranks, widths, x, score, "sum")
    assert measure(*arguments, chunk=2) == plain(*arguments, chunk=2)


@pytest.mark.parametrize("options", [{"chunk": 1}, {"chunk": 64}, {"memory": 1}])
def test_chunks_and_memory_do_not_change_the_metric(case, slow, options):
    assert case.run(measure, **options) == slow


def test_a_meter_measures_what_it_is_asked_for(case, slow):
    meter, truth = Meter(*case.arguments), points(slow)
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
    meter = Meter(*case.arguments)
    for place in meter.everything():
        meter.ask({place: math.inf})
    assert meter.found() == slow


def test_a_point_may_be_given_up_part_way():
    """None is given up that loses less than its limit, and what was given up is measured when asked again."""
    case = Case(256)
    slow, meter = points(case.run(plain)), Meter(*case.arguments)
    case.calls.clear()
    lost = meter.ask(dict.fromkeys(meter.everything(), 0.1))
    assert {32, 64, 128, 256} >= set(case.calls) and min(case.calls) < 256
    given_up = {place: least for place, (least, whole) in lost.items() if not whole}
    assert given_up
    for place, least in given_up.items():
        assert 0.1 < least and 1.0 - slow[place].metric > 0.1
    found = points(meter.found())
    assert {found[place].skipped.split(":")[0] for place in given_up} <= {
        f"{GIVEN_UP} {images} images" for images in (32, 64, 128)
    }
    place = next(iter(given_up))
    assert meter.ask({place: 0.0}) == {place: (1.0 - slow[place].metric, True)}


def test_a_small_sample_is_never_judged_part_way(case):
    case.calls.clear()
    meter = Meter(*case.arguments)
    meter.ask(dict.fromkeys(meter.everything(), 0.0))
    assert set(case.calls) == {40}


def test_progress_rises_to_its_total(case):
    ticks: list[tuple[int, int]] = []
    case.run(measure, tick=lambda done, total: ticks.append((done, total)))
    assert [t for t, _ in ticks] == sorted(t for t, _ in ticks)
    assert {total for _, total in ticks} == {(7 + 7 + 15) * 40}
    assert ticks[-1][0] == ticks[-1][1]


def test_it_survives_json(slow, case):
    meter = Meter(*case.arguments)
    meter.ask({("stem", 4): math.inf})
    for found in (slow, meter.found()):
        assert Sensitivity.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert slow.to_dict()["curves"][0]["points"][0]["skipped"] == ""
    assert isinstance(slow.curves[0], Curve)


def test_bad_input_is_named(case):
    def run(widths=None, ranks=None, x=None):  # noqa: ANN001, ANN202
        return measure(
            case.graph, case.groups, ranks or case.ranks, widths or {"stem": [4]},
            case.x if x is None else x, case.score, "top1",
        )  # fmt: skip

    with pytest.raises(UsageError, match="no images"):
        run(x=case.x[:0])
    for width in (0, 9):
        with pytest.raises(InputError, match=f"stem: no width of {width} units"):
            run({"stem": [width]})
    with pytest.raises(InputError, match="unknown"):
        run({"unknown": [1]})
    with pytest.raises(InputError, match="first.*ranking"):
        run({"first": [1]}, {"first": [0, 1]})
    with pytest.raises(InputError, match="head: cannot be cut"):
        run({"head": [1]})


def test_a_chunk_fits_the_memory(case):
    graph: Graph = case.graph
    size = 4 * sum(int(np.prod(node.shape)) for node in graph)
    assert choose_chunk(graph, 10**6, 20 * size) == 10
    assert choose_chunk(graph, 10**6, 1) == 1
    assert choose_chunk(graph, 1) == 1
    assert choose_chunk(graph, 130) == 44  # three even chunks, not two and a rest


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

    arguments = (graph, groups, ranking(norm(graph, groups)), widths, x, score, "top1")
    assert measure(*arguments, chunk=12) == plain(*arguments, chunk=12)
    fast, slow = logits[:5], logits[5:]
    assert len(slow) == 5

    def flat(found: list[list[Outputs]]) -> list[bytes]:
        return [b"".join(o[0].tobytes() for o in sample) for sample in found]

    assert flat(fast[:1]) == flat(slow[:1])
    assert sorted(flat(fast[1:])) == sorted(flat(slow[1:]))
    assert len(set(flat(fast))) == 5
