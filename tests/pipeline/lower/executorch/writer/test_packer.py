"""Flatbuffers: byte for byte what flatc and ExecuTorch's serializer make of the same data."""

from __future__ import annotations

import pytest
from lowering_networks import Builder, random_graph
from pte_files import closed, compiled, decompiled, flatbuffer, opened, payloads

from paredown.pipeline.lower.executorch.schema import XNNPACK
from paredown.pipeline.lower.executorch.writer.delegate import written
from paredown.pipeline.lower.executorch.writer.packer import Packer


@pytest.fixture(scope="module")
def data():
    return written(random_graph(3, expose=True))


def test_the_program_is_what_executorch_writes_of_what_it_reads(data):
    assert closed(opened(data)) == data


def test_the_delegates_graph_is_what_flatc_makes_of_its_own_json():
    """With scales that are few digits long: flatc shortens numbers."""
    b = Builder(3, scale=0.5)
    x = b.leaky(b.conv("input", 4, scale=0.25, clamp="relu"), 0.125, 2.0)
    x = b.concat(b.pool(x), b.pool(x))
    graph = b.graph(b.mean(b.add(x, x, scale=0.5)), b.reorg(b.pad(x, (0, 1, 0, 0))))
    (payload,) = payloads(opened(written(graph)))
    assert compiled(decompiled(flatbuffer(payload))) == flatbuffer(payload)


def test_a_field_that_a_table_does_not_have_is_an_error():
    with pytest.raises(KeyError, match="colour"):
        Packer(XNNPACK, sorted_fields=True).pack("XNNGraph", {"colour": 1})
