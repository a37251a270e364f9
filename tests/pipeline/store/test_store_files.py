"""The files of an artefact: JSON, graphs, and how many threads torch has."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from paredown.pipeline.store.files import (
    PARALLEL_MACS,
    read_graph,
    read_json,
    set_threads,
    write_graph,
    write_json,
)

pytestmark = pytest.mark.unit


def test_json_is_sorted_whole_lines_and_never_nan(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"b": 1, "a": [1.5, None]})
    assert path.read_text() == '{\n "a": [\n  1.5,\n  null\n ],\n "b": 1\n}\n'
    assert read_json(path) == {"b": 1, "a": [1.5, None]}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, float("nan"))


def test_a_graph_comes_back_and_arrays_need_not_be_in_order(tmp_path: Path) -> None:
    turned = np.arange(12, dtype=np.float32).reshape(3, 4).T
    write_graph(tmp_path, b"{}", {"a:weight": turned, "b:bias": np.arange(3, dtype=np.int32)})
    structure, arrays = read_graph(tmp_path)
    assert structure == b"{}" and arrays.keys() == {"a:weight", "b:bias"}
    np.testing.assert_array_equal(arrays["a:weight"], turned)
    assert arrays["b:bias"].dtype == np.int32


@pytest.mark.parametrize("macs", [0, PARALLEL_MACS - 1, PARALLEL_MACS])
def test_a_small_network_has_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, macs: int) -> None:
    set_to: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(7)))
    (tmp_path / "size.json").write_text(json.dumps({"macs": macs}))
    set_threads(tmp_path)
    assert set_to == [7 if macs >= PARALLEL_MACS else 1]
