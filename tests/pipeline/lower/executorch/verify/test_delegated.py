"""XNNPACK's graph in a program: each thing that the delegate looks up without a question is looked at."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from lowering_networks import random_graph
from pte_files import compiled, decompiled, flatbuffer, opened, payloads

from paredown.pipeline.lower.executorch.verify.delegated import check_graph
from paredown.pipeline.lower.executorch.verify.flatbuffer import Damaged
from paredown.pipeline.lower.executorch.writer.delegate import written

Graph = dict[str, Any]


@pytest.fixture(scope="module")
def parts() -> tuple[Graph, dict[str, int]]:
    """A graph as flatc's JSON, and the bytes of the constants that it names."""
    file = opened(written(random_graph(3, expose=True)))
    (payload,) = payloads(file)
    graph = json.loads(decompiled(flatbuffer(payload)).replace("inf", "1e39"))
    return graph, {each["named_key"]: 1 << 20 for each in graph["constant_data"] if "named_key" in each}


def tensor(value: Graph) -> Graph:
    table = value["xvalue_union"]
    return table.get("tensor_value", table)


def first(graph: Graph, wanted: Callable[[Graph], bool]) -> Graph:
    return next(value for value in graph["xvalues"] if wanted(value))


def channelwise(value: Graph) -> bool:
    return value["xvalue_union"].get("quant_params_type") == "PerChannelQuant"


def checked(graph: Graph, named: dict[str, int]) -> int:
    return check_graph(memoryview(compiled(json.dumps(graph).replace("1e+39", "inf"))), named)


def test_what_we_write_passes(parts):
    graph, named = parts
    assert checked(graph, named) == len(graph["input_ids"]) + len(graph["output_ids"])


def forget(graph: Graph) -> None:
    graph["xvalues"] = graph["xvalues"][:-1]


def lost(graph: Graph) -> None:
    graph["constant_data"][1]["named_key"] = "nobody"


def fewer(graph: Graph) -> None:
    params = first(graph, channelwise)["xvalue_union"]["quant_params"]
    params["scale"] = params["scale"][:-1]
    params.pop("scale_buffer_idx", None)


def axis(graph: Graph) -> None:
    first(graph, channelwise)["xvalue_union"]["quant_params"]["channel_dim"] = 9


def large(graph: Graph) -> None:
    tensor(first(graph, lambda value: tensor(value).get("constant_buffer_idx", 0) > 0))["dims"][0] = 1 << 24


def axes(graph: Graph) -> None:
    tensor(graph["xvalues"][0])["num_dims"] = 2


def outside(graph: Graph) -> None:
    graph["num_externs"] = 0


def other(graph: Graph) -> None:
    node = graph["xnodes"][0]["xnode_union"]
    node["output_id"] = 70_000


def untyped(graph: Graph) -> None:
    tensor(graph["xvalues"][0])["datatype"] = "xnn_datatype_invalid"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (forget, "which the graph has not|none of its values"),
        (lost, "wants data called 'nobody'"),
        (fewer, "scales, and .* channels"),
        (axis, "an axis that it has not"),
        (large, "its constant is shorter or missing"),
        (axes, "has a shape that is none"),
        (outside, "an input or output that the graph has not"),
        (other, "reads or writes value 70000"),
        (untyped, "of no type that XNNPACK has"),
    ],
)
def test_each_fault_has_a_line(parts, change, said):
    graph, named = json.loads(json.dumps(parts[0])), parts[1]
    change(graph)
    with pytest.raises(Damaged, match=said):
        checked(graph, named)
