"""Four bits in the program: the same results, half of the bytes, and still found when a bundle is packed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from paredown.pipeline.bundle.packed.packing import find_weights, pack_programs
from paredown.pipeline.compress.grids.grid import GridConfig
from paredown.pipeline.compress.squantize.fold import fold
from paredown.pipeline.compress.squantize.qat_network import LayerPlan, QatNetwork
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.pipeline.lower.integer import IntegerGraph, in_int4, quantize
from paredown.pipeline.lower.runtimes import runtime
from paredown.targets.runners.expand import expand_programs, holds_int4, laid_out, nibbles

SHAPE = (1, 2, 5, 5)


class Net(nn.Module):
    """50 -> 40 -> 33 -> 10: the last layer's rows are of odd length."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(50, 40), nn.Linear(40, 33), nn.Linear(33, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x.flatten(1))))))


@pytest.fixture(scope="module")
def integer() -> IntegerGraph:
    torch.manual_seed(3)
    network = Net().eval()
    plans = {f"{name}.weight": LayerPlan(GridConfig(4, "uniform"), sparsity=0.3) for name in "abc"}
    graph = fold(QatNetwork(network, trace(network, SHAPE), plans), SHAPE)
    values = graph.run(torch.randn(SHAPE))
    ranges = {name: (2 * float(v.min()), 2 * float(v.max())) for name, v in values.items()}
    return quantize(graph, ranges, input_range=(-3.0, 3.0))


@pytest.mark.parametrize("name", ["executorch", "litert"])
def test_four_bits_compute_what_eight_do_and_are_packed_as_well(integer: IntegerGraph, name: str) -> None:
    four = in_int4(integer, ("linear",))
    assert [node.int4 for node in four if node.weight is not None] == [True, True, False]
    small, large = (runtime(name).lower_integer(graph) for graph in (four, integer))
    assert not small.undelegated and small.subgraphs == 1
    saved = sum(node.weight.size // 2 for node in four if node.int4 and node.weight is not None)
    assert len(large.data) - len(small.data) > 0.9 * saved
    codes = np.random.default_rng(0).integers(-128, 128, SHAPE).astype(np.int8)
    (found,), (expected,) = runtime(name).load(small.data)(codes), reference.predict(integer, codes)
    assert np.array_equal(found, expected)
    weights = [node.weight for node in integer if node.weight is not None]
    assert {hole.layer: hole.form[-1] in "no" for hole in find_weights(small.data, weights)} == {
        0: True, 1: True, 2: False,
    }  # fmt: skip
    programs = {"small": small.data, "large": large.data}
    packed = pack_programs(programs, weights)
    assert expand_programs(packed) == programs
    assert len(packed) < 1.2 * len(pack_programs({"large": large.data}, weights))


def test_what_does_not_fit_keeps_eight_bits(integer: IntegerGraph) -> None:
    assert not any(node.int4 for node in in_int4(integer, ("conv2d",)))
    node = next(node for node in integer if node.weight is not None)
    node.weight[0, 0], before = 8, node.weight[0, 0]
    try:
        assert not in_int4(integer, ("linear",))[node.name].int4
    finally:
        node.weight[0, 0] = before


def test_nibbles_by_hand() -> None:
    codes = np.array([[1, -1, 7], [-8, 0, 3]], np.int8)
    assert holds_int4(codes) and not holds_int4(codes + np.int8(1))
    assert nibbles(codes).tolist() == [0xF1, 0x87, 0x30]
    assert laid_out(codes, "01n") == bytes([0xF1, 0x87, 0x30])
    assert laid_out(codes, "01o") == bytes([0x79, 0x0F, 0xB8])
    assert laid_out(codes, "10") == bytes([1, 0xF8, 0xFF, 0, 7, 3])
    assert nibbles(np.array([5, 6, 7], np.int8)).tolist() == [0x65, 0x07]
