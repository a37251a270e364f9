"""mul, and sub beside add: torch's in float, plain integers and both runtimes on int8, ties when pruned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lowering_networks import Builder, f32
from operation_checks import assert_codes, assert_cut, assert_float, assert_network_exact
from prune_networks import conv, network

from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.targets.errors import InputError

SHAPE = (1, 4, 6, 5)


def squeeze(m, x):
    x = m.a(x)
    return m.c(x * torch.sigmoid(m.down(torch.relu(m.up(x.mean((2, 3), keepdim=True))))))


def excited():
    return network(squeeze, a=conv(4, 8, 3), up=conv(8, 6), down=conv(6, 8), c=conv(8, 5))


FUNCTIONS = {
    "two tensors": lambda m, x: m.c(m.a(x) * m.b(x)),
    "the same twice": lambda m, x: m.c(m.a(x) * m.a(x)),
    "a pixel over a map": lambda m, x: m.c(m.a(x) * m.b(x).mean((2, 3), keepdim=True)),
    "a map over a pixel": lambda m, x: m.c(m.b(x).mean((2, 3), keepdim=True) * m.a(x)),
    "difference": lambda m, x: m.c(torch.relu(m.a(x) - m.b(x))),
    "a pixel from a map": lambda m, x: m.c(m.a(x) - m.b(x).mean((2, 3), keepdim=True)),
    "a pixel plus a map": lambda m, x: m.c(m.b(x).mean((2, 3), keepdim=True) + m.a(x)),
}


def case(name):
    return network(FUNCTIONS[name], a=conv(4, 8, 3), b=conv(4, 8), c=conv(8, 5))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_both_programs_compute_it(name):
    assert_float(case(name), SHAPE)
    assert_network_exact(case(name), SHAPE)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_both_sides_lose_their_channels_together(name):
    groups = [group for group in assert_cut(case(name), SHAPE).values() if not group.locked]
    assert [{member.node for member in group.makers} for group in groups] in ([{"a", "b"}], [{"a", "a#2"}])


def test_squeeze_and_excitation():
    assert_float(excited(), SHAPE)
    assert_network_exact(excited(), SHAPE)
    groups = assert_cut(excited(), SHAPE)
    assert {group.name for group in groups.values() if not group.locked} == {"a", "up"}


@pytest.mark.parametrize("kind", ["mul", "sub"])
@pytest.mark.parametrize("seed", range(8))
def test_codes_are_those_of_plain_integers_and_of_both_runtimes(kind, seed):
    rng = np.random.default_rng(seed)
    b = Builder(seed, (1, 3, 5, 4), 10 ** rng.uniform(-2, 0))
    other = b.pool(b.conv("input", 3, 3), 1, 1)
    scales = [b.node(name).out.scale for name in ("input", other)]
    unit = scales[0] * scales[1] if kind == "mul" else max(scales)
    y = b.put(kind, ("input", other), (1, 3, 5, 4), f32(unit * 10 ** rng.uniform(-1, 1.5)), b.zero_point())
    graph = b.graph(y)
    x = rng.integers(-128, 128, (4, 3, 5, 4)).astype(np.int8)
    values = reference.run(graph, x)
    first, second, out = (b.node(name).out for name in ("input", other, y))
    one, two = (values[n].astype(object) - int(q.zero_point) for n, q in (("input", first), (other, second)))
    for index in np.ndindex(x.shape):
        if kind == "mul":
            factor = np.float32(first.scale) * np.float32(second.scale) / np.float32(out.scale)
            exact = np.rint(np.float32(one[index] * two[index]) * factor)
        else:
            real = one[index] * first.scale - two[index] * second.scale
            exact = real / out.scale
        wanted = np.clip(exact + out.zero_point, -128, 127)
        assert abs(values[y][index] - wanted) <= (0 if kind == "mul" else 0.502)
    assert_codes(graph, x, {})


def test_other_ranks_are_refused():
    with pytest.raises(InputError, match="joins tensors of 4 and 2 dims"):
        net = network(lambda m, x: x * m.a(x.mean((2, 3))), a=torch.nn.Linear(4, 5))
        trace(net, SHAPE, floats=False)
