"""network/v8.py: the shapes that it promises, untrained and small where it should be; traced and cut."""

from __future__ import annotations

import pytest
import torch
from operation_checks import integer_of
from torch import nn

from paredown.apps.detector.device.boxes.heads import heads_of
from paredown.apps.detector.network.v8 import BUILTIN, PRIOR, V8Like, builtin
from paredown.apps.detector.origins.find import BUILTIN as NAMES
from paredown.targets.errors import UsageError


def shapes(network: nn.Module, side: int) -> list[tuple[int, ...]]:
    with torch.no_grad():
        return [tuple(part.shape) for part in network.eval()(torch.zeros(1, 3, side, side))]


@pytest.mark.unit
@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_built_in_networks_are_what_they_say(name: str) -> None:
    network = builtin(name, 7)
    assert network.input_size == 320
    found = shapes(network, 64)
    assert found == [(1, n, side, side) for side in (8, 4, 2) for n in (64, 7)]
    heads_of(network.decoding, (64, 64)).check(found, 7)
    kind = nn.SiLU if name.endswith("silu") else nn.ReLU
    assert {type(m) for m in network.modules() if isinstance(m, nn.SiLU | nn.ReLU)} == {kind}


@pytest.mark.unit
def test_their_names_are_known_without_torch() -> None:
    assert tuple(BUILTIN) == NAMES
    with pytest.raises(UsageError, match="no built-in network 'v9'; use one of: yolov8-nano-like"):
        builtin("v9", 2)


@pytest.mark.unit
@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("bins", [1, 6])
def test_levels_and_bins_are_free(levels: int, bins: int) -> None:
    network = V8Like(3, widths=(4, 8, 8, 16), depths=(1, 1, 2), levels=levels, bins=bins)
    found = shapes(network, 32)
    heads_of(network.decoding, (32, 32)).check(found, 3)
    assert len(found) == 2 * levels


@pytest.mark.unit
def test_untrained_it_is_sure_of_nothing() -> None:
    torch.manual_seed(0)
    network = V8Like(3, widths=(4, 8, 8, 16), depths=(1, 1, 2)).eval()
    with torch.no_grad():
        _, classes, *_ = network(torch.zeros(1, 3, 32, 32))
    assert float(classes.sigmoid().mean()) == pytest.approx(PRIOR, rel=0.5)


@pytest.mark.unit
@pytest.mark.parametrize(
    "wrong", [{"activation": "mish"}, {"depths": (1,)}, {"levels": 0}, {"levels": 5}], ids=str
)
def test_what_is_no_network_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="no network of"):
        V8Like(3, **wrong)


@pytest.mark.parametrize("activation", [pytest.param("relu", marks=pytest.mark.slow), "silu"])
def test_it_is_traced_and_made_integer_with_a_scale_for_each_output(activation: str) -> None:
    torch.manual_seed(0)
    network = V8Like(
        3, widths=(4, 8, 8, 16), depths=(1, 1, 1), levels=2, bins=4, activation=activation
    ).eval()
    graph = integer_of(network, (1, 3, 32, 32))
    nodes = {node.name: node for node in graph.nodes}
    assert len(graph.outputs) == 4
    assert nodes[graph.outputs[0]].out.scale != nodes[graph.outputs[1]].out.scale
