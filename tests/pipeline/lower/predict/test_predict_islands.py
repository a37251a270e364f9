"""What `inspect` says of an operation in float is what the runtimes do; what a run refuses at its start."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lowering_networks import ranges_of
from operation_checks import RUNTIMES, usual_runtimes
from prune_networks import conv, network
from torch import Tensor, nn

from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower.integer import quantize
from paredown.pipeline.lower.parity import check
from paredown.pipeline.lower.predict.inspect import inspect_graph
from paredown.pipeline.lower.predict.islands import island_times, not_numbers, refused
from paredown.targets.cards.card import load_card
from paredown.targets.errors import InputError

SHAPE = (1, 4, 6, 6)
HOST = load_card("host")


def mixed(m: nn.Module, x: Tensor) -> Tensor:
    return m.c(torch.maximum(F.mish(m.a(x)), m.b(x).cumsum(2)).exp())


def built() -> nn.Module:
    return network(mixed, a=conv(4, 8, 3), b=conv(4, 8), c=conv(8, 4))


@pytest.mark.slow
def test_inspect_and_both_runtimes_agree_and_parity_grants_a_code():
    graph = trace(built(), SHAPE, opaque=True)
    report = inspect_graph(graph, HOST, usual_runtimes(HOST), (-1.0, 1.0), "net")
    integer = quantize(graph, ranges_of(graph), input_range=(-1.0, 1.0))
    refused(graph, {name: HOST.runtime(name) for name in RUNTIMES})
    for place in report.placements:
        runtime = RUNTIMES[place.runtime]
        lowered = runtime.lower_integer(integer)
        assert place.segments == lowered.subgraphs == 2
        assert [each.name for each in place.leaving] == ["cumsum"] and len(lowered.undelegated) == 1
        found = check(
            integer, runtime.load(lowered.data), lambda g, r=runtime: r.load(r.lower_integer(g).data),
            np.zeros((2, *SHAPE[1:]), np.int8), 1,
        )  # fmt: skip
        assert not found.first and found.allowed >= 1
        assert {"mish", "cumsum", "maximum", "exp"} == set(found.islands)
        assert max(apart.max_lsb for apart in found.islands.values()) <= 1
    assert set(island_times("litert", integer, 2)) == {"mish", "cumsum", "maximum", "exp"}
    said = [note for note in report.notes if "prune_networks.py:" in note]
    assert len(said) == 4 and any("cumsum.default" in note and "executorch: cpu" in note for note in said)


def test_what_one_runtime_has_not_is_refused_before_anything_is_trained():
    graph = trace(network(lambda m, x: m.a(x).topk(2, 1)[1], a=conv(4, 8)), SHAPE)
    cards = {name: HOST.runtime(name) for name in RUNTIMES}
    refused(graph, {"litert": cards["litert"]})
    with pytest.raises(InputError, match="prune_networks.*topk.*ExecuTorch.*litert alone"):
        refused(graph, cards)
    report = inspect_graph(graph, HOST, usual_runtimes(HOST), (-1.0, 1.0), "net")
    places = {place.runtime: {each.place for each in place.leaving} for place in report.placements}
    assert places == {"executorch": {"refused"}, "litert": {"cpu"}}


def test_values_outside_a_functions_domain_are_counted():
    graph = trace(network(lambda m, x: x.log()), SHAPE)
    x = torch.ones(1, *SHAPE[1:])
    not_numbers(graph, graph.run(x))
    x[0, 0, 0, :3], x[0, 1, 0, 0] = 0, -1
    with pytest.raises(InputError, match=r"prune_networks\.py:\d+: log.default makes 4 of 144 values"):
        not_numbers(graph, graph.run(x))
