"""Which layers get how many bits, by hand and for a budget."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from paredown.pipeline.compress.allocate.allocate import BudgetError
from paredown.pipeline.compress.squantize.bits import choose_bits, measure_bits, packed_bytes
from paredown.pipeline.compress.squantize.fold import fold
from paredown.pipeline.compress.squantize.layer_plans import layer_plans, schedule
from paredown.pipeline.compress.squantize.qat_network import GridSchedule, QatNetwork
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.recipe.schema import Squantize
from paredown.targets.errors import UsageError

SHAPE = (1, 3, 8, 8)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    convs = [nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(3)]
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3), nn.ReLU()]
    for conv in convs:
        layers += [conv, nn.BatchNorm2d(8), nn.ReLU()]
    layers += [nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(8 * 16, 4)]
    return nn.Sequential(*layers).eval()


def bits_of(network: nn.Module, **wanted: object) -> dict[str, int]:
    plans = layer_plans(Squantize.model_validate(wanted), trace(network, SHAPE), network)
    return {name: plan.config.bits for name, plan in plans.items()}


def test_inner_layers_by_default(network: nn.Module):
    assert bits_of(network, weight_bits=4) == {"2.weight": 4, "5.weight": 4, "8.weight": 4}
    ends = bits_of(network, weight_bits=2, ends=True)
    assert ends == dict.fromkeys(("0.weight", "2.weight", "5.weight", "8.weight", "13.weight"), 2)


def test_single_layers_by_name(network: nn.Module):
    layers = {"2": 2, "5": 8, "13": 3}
    assert bits_of(network, weight_bits=4, layers=layers) == {"2.weight": 2, "8.weight": 4, "13.weight": 3}
    assert bits_of(network, weight_bits=8, layers={"5": 8}) == {"2.weight": 8, "8.weight": 8}


def test_wrong_layers_are_refused(network: nn.Module):
    with pytest.raises(UsageError, match="squantize.layers names 3, which .*its layers are 0, 2, 5"):
        bits_of(network, weight_bits=4, layers={"3": 2})
    with pytest.raises(UsageError, match="no layer is left"):
        bits_of(network, weight_bits=4, layers=dict.fromkeys(("2", "5", "8"), 8))
    with pytest.raises(UsageError, match="no layer is left.*ends = true"):
        bits_of(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), weight_bits=4)


def test_parts_of_the_schedule_are_steps():
    wanted = Squantize(weight_bits=4, delay=0.25, ramp=0.5)
    assert schedule(wanted, 400) == GridSchedule(100, 150)
    assert schedule(Squantize(weight_bits=4, ramp=0.0), 7) == GridSchedule(0, 0)


def score(outputs: list) -> tuple[float, float, float]:
    value = -float(np.mean([np.abs(o[0]).mean() for o in outputs]))
    return value, value - 0.1, value + 0.1


def test_a_point_is_the_network_with_one_layer_quantized(network: nn.Module):
    graph = trace(network, SHAPE)
    plans = layer_plans(Squantize(weight_bits=4), graph, network)
    x = torch.randn(40, *SHAPE[1:], generator=torch.Generator().manual_seed(0))
    found, sizes = measure_bits(network, graph, plans, x, score, "m", lambda done, total: None, (2, 4))
    assert [[p.width for p in curve.points] for curve in found.curves] == [[8, 4, 2]] * 3
    for name in plans:
        alone = QatNetwork(network, graph, {name: plans[name]})
        outputs = alone.eval()(x).detach().numpy()
        curve = next(c for c in found.curves if c.group == name)
        expected = score([(row,) for row in outputs])[0]
        assert curve.points[1].metric == pytest.approx(expected, abs=1e-6)
        node = next(n for n in fold(alone, SHAPE) if n.parameters.get("weight") == name)
        assert sizes[name][4] == packed_bytes(node) < sizes[name][8]


def test_points_of_rounded_weights_leave_the_network_alone(network: nn.Module):
    graph = trace(network, SHAPE)
    wanted = Squantize(weight_bits=4, grid="uniform", rounding="gptq", sigma=-30, per="channel")
    plans = layer_plans(wanted, graph, network)
    x = torch.randn(40, *SHAPE[1:], generator=torch.Generator().manual_seed(0))
    before = copy.deepcopy(network.state_dict())
    whole = network(x).detach().numpy()

    def near(outputs: list) -> tuple[float, float, float]:
        value = -float(np.mean([np.square(o[0] - w).mean() for o, w in zip(outputs, whole, strict=True)]))
        return value, value, value

    def losses(rounding: torch.Tensor | None) -> list[float]:
        asked = (network, graph, plans, x, near, "m", lambda done, total: None, (2,), rounding)
        return [curve.points[1].metric for curve in measure_bits(*asked)[0].curves]

    assert sum(losses(x)) > 0.8 * sum(losses(None))  # both below zero
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def made(drops: dict[str, dict[int, float]]):
    from paredown.pipeline.compress.sensitivity.sensitivity import Curve, Point, Sensitivity

    curves = tuple(
        Curve(n, 8, tuple(Point(b, 0.9 - d, 0, 1) for b, d in {8: 0.0, **found}.items()))
        for n, found in drops.items()
    )
    return Sensitivity("m", 100, Point(0, 0.9, 0, 1), curves)


DROPS = {"a": {4: 0.0, 2: 0.01}, "b": {4: 0.05, 2: 0.3}}
SIZES = {"a": {8: 800.0, 4: 400.0, 2: 200.0}, "b": {8: 800.0, 4: 400.0, 2: 200.0}}


def test_bits_for_a_budget_are_the_best_ones():
    assert choose_bits(made(DROPS), SIZES, 400.0, limit=0.7).widths == {"a": 2, "b": 8}
    assert choose_bits(made(DROPS), SIZES, 400.0, limit=0.5).widths == {"a": 2, "b": 4}
    assert choose_bits(made(DROPS), SIZES, 400.0, tolerance=0.03).widths == {"a": 2, "b": 8}


def test_drops_finer_than_an_image_count_only_where_they_are_known():
    drops = {"a": {4: 1e-5}, "b": {6: 1e-4}}
    sizes = {"a": {8: 800.0, 4: 600.0}, "b": {8: 800.0, 6: 600.0}}

    def widths(resolution: float | None) -> dict[str, int]:
        return dict(choose_bits(made(drops), sizes, 400.0, limit=0.9, resolution=resolution).widths)

    assert widths(0.0) == {"a": 4, "b": 8}
    assert widths(None) == {"a": 8, "b": 6}  # of 100 images both are none: the fewer bits are taken away


def test_too_small_a_budget_says_what_can_be_reached():
    with pytest.raises(BudgetError, match="0.4"):
        choose_bits(made(DROPS), SIZES, 400.0, limit=0.3)
