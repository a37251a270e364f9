"""Reading a flatbuffer: what flatc reads in it, and nothing but one kind of error whatever was done to it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowering_networks import random_graph
from pte_files import decompiled, flatbuffer, opened, payloads

from paredown.pipeline.lower.executorch.schema import XNNPACK, schema
from paredown.pipeline.lower.executorch.verify.flatbuffer import Damaged, Reader
from paredown.pipeline.lower.executorch.writer.delegate import written


@pytest.fixture(scope="module")
def graph() -> bytes:
    (payload,) = payloads(opened(written(random_graph(3, expose=True))))
    return flatbuffer(payload)


def assert_alike(ours: Any, theirs: Any, kind: str) -> None:
    """A value of ours and flatc's JSON of it; fields that one of them leaves out are zero."""
    known = schema(XNNPACK)
    if kind.startswith("["):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_alike(a, b, kind[1:-1])
    elif kind in known.tables:
        for word, field in known.tables[kind].items():
            if field.type in known.unions:
                assert ours[word][0] == theirs[f"{word}_type"]
                assert_alike(ours[word][1], theirs[word], known.unions[field.type][ours[word][0]][1])
            elif word in ours or word in theirs:
                assert_alike(ours.get(word, 0), theirs.get(word, 0), field.type)
    elif kind in known.enums and isinstance(theirs, str):
        assert ours == known.enums[kind][1][theirs]
    elif kind == "float":
        assert ours == pytest.approx(theirs, abs=1e-6)  # flatc writes six digits
    else:
        assert ours == theirs


def test_it_reads_what_flatc_reads(graph):
    theirs = json.loads(decompiled(graph).replace("inf", "1e39"))
    ours = Reader(XNNPACK, graph).read("XNNGraph")
    text = json.dumps(ours, default=lambda each: each.tolist()).replace("Infinity", "1e39")
    assert_alike(json.loads(text), theirs, "XNNGraph")


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_whatever_is_done_to_it_it_is_read_or_damaged(graph, data):
    broken = bytearray(graph)
    for at in data.draw(st.lists(st.integers(0, len(graph) - 1), min_size=1, max_size=6)):
        broken[at] = data.draw(st.integers(0, 255))
    try:
        found = Reader(XNNPACK, bytes(broken[: data.draw(st.integers(0, len(graph)))])).read("XNNGraph")
    except Damaged as error:
        assert str(error)
    else:
        assert isinstance(found, dict)


def test_a_reference_must_lead_forward():
    """So that no table holds itself."""
    words = np.zeros(64, "<u4")
    words[0] = 32  # the root table
    data = bytearray(words.tobytes())
    slots = schema(XNNPACK).tables["XNNGraph"]["xnodes"].slot
    places = np.array([6 + 2 * slots, 8, *[0] * slots, 4], "<u2").tobytes()
    data[16 : 16 + len(places)] = places
    data[32:36] = np.array([16], "<i4").tobytes()  # the places of its fields are 16 bytes before it
    data[36:40] = np.array([2**31], "<u4").tobytes()
    with pytest.raises(Damaged, match=r"XNNGraph\.xnodes refers to nothing"):
        Reader(XNNPACK, bytes(data)).read("XNNGraph")
