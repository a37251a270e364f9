"""Prefixes compute what the whole does on the way; with every tensor out the first difference is found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.pipeline.lower.integer import IntegerGraph, quantize
from paredown.pipeline.lower.litert.program import lower_integer
from paredown.pipeline.lower.litert.slices import exposed, first_difference, prefixes
from paredown.targets.runners.litert import load

SHAPE = (1, 3, 12, 12)


class Branches(nn.Module):
    """A residual addition and a concatenation: not every operation feeds the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.leaky_relu(self.a(x), 0.1)
        y = x + self.b(x)
        return self.c(torch.cat([nn.functional.max_pool2d(x, 2), nn.functional.max_pool2d(y, 2)], 1))


@pytest.fixture(scope="module")
def integer() -> IntegerGraph:
    torch.manual_seed(1)
    graph = trace(Branches().eval(), SHAPE)
    values = graph.run(torch.rand(SHAPE))
    ranges = {name: (float(v.min()), float(v.max())) for name, v in values.items()}
    return quantize(graph, ranges, input_range=(0.0, 1.0))


@pytest.fixture(scope="module")
def codes() -> np.ndarray:
    return np.random.default_rng(0).integers(-128, 128, SHAPE).astype(np.int8)


def test_every_prefix_gives_the_tensors_of_the_whole(integer: IntegerGraph, codes: np.ndarray) -> None:
    program, expected = lower_integer(integer).data, reference.run(integer, codes)
    parts = prefixes(program)
    assert [len(part.operations) for part in parts] == list(range(1, len(parts) + 1))
    assert sum(kind == "CONV_2D" for kind in parts[-1].operations) == 3
    seen = set()
    for part in parts:
        outputs = load(part.data)(codes)
        assert len(outputs) == len(part.names) == len(part.outputs)
        for name, tensor, found in zip(part.names, part.outputs, outputs, strict=True):
            assert found.shape == tensor.shape and np.array_equal(found, expected[name])
            seen.add(name)
    assert seen == {node.name for node in integer if node.kind != "input"}
    (whole,) = load(parts[-1].data)(codes)
    assert np.array_equal(whole, load(program)(codes)[0])


def test_the_first_difference_is_named(integer: IntegerGraph, codes: np.ndarray) -> None:
    program = lower_integer(integer).data
    part = exposed(program)
    ours = load(part.data)(codes)
    assert first_difference(part.names, ours, ours) == ""
    # one weight of the second convolution on "the other machine": what is before it stays equal
    weight = next(node.weight for node in integer if node.name.startswith("b") and node.weight is not None)
    at = program.find(weight.transpose(0, 2, 3, 1).tobytes())
    damaged = bytearray(program)
    damaged[at] ^= 0x7F
    theirs = load(exposed(bytes(damaged)).data)(codes)
    found = first_difference(part.names, ours, theirs)
    expected = next(n.name for n in integer if n.weight is weight)
    assert found.startswith(f"{expected}: ") and found.endswith("LSB")
