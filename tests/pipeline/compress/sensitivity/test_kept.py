"""Kept tensors against the engine's own run, with room for all, some and none of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sensitivity_case import Case

from paredown.pipeline.compress.sensitivity import kept
from paredown.pipeline.compress.sensitivity.experiment import MEMORY
from paredown.pipeline.compress.sensitivity.forward import Engine
from paredown.pipeline.compress.sensitivity.kept import Kept, free_memory


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(Case(1).graph, 4)


def sample() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((10, 3, 8, 8), np.float32)


@pytest.mark.parametrize(("room", "again"), [(10**9, 0), (2 * 4 * 1024 * 4, 1), (0, 3)])
def test_tensors_are_those_of_a_run_and_computed_again_only_without_room(engine, room, again):
    """Two tensors of (4, 8, 8, 8) float32 per chunk, three chunks."""
    names = frozenset(op.name for op in engine.ops[1:3])
    x, found = sample(), Kept(engine, sample(), room)
    assert len(found.outputs(names)) == 10 and found.runs == 3
    assert found.bytes <= room
    for index, (part, _) in enumerate(engine.chunks(x)):
        expected, values = engine.run(part, names), found.tensors(index, names)
        assert all(torch.equal(values[name], expected[name]) for name in names)
    assert found.runs == 3 + again


def test_outputs_are_cut_to_the_sample(engine):
    found = Kept(engine, sample()).outputs()
    whole = np.concatenate(
        [engine.outputs(engine.run(x, frozenset()))[0] for x, _ in engine.chunks(sample())]
    )
    assert np.array_equal(np.concatenate([o[0] for o in found]), whole[:10])


def test_more_tensors_can_be_asked_for_later(engine):
    first, second, *_ = (op.name for op in engine.ops[1:])
    found = Kept(engine, sample())
    found.outputs(frozenset({first}))
    assert {first, second} <= found.tensors(0, frozenset({second})).keys()
    runs = found.runs
    assert {first, second} <= found.tensors(0, frozenset({first, second})).keys() and found.runs == runs


def test_dead_channels_are_zero_in_all_of_a_chunk(engine):
    x = torch.ones(4, 3, 2, 2)
    x[:, 1] = 0
    x[:3, 2] = 0
    assert Kept(engine, sample()).dead(0, "x", x) == {1}


def test_free_memory_is_the_least_that_the_system_says(tmp_path, monkeypatch):
    assert 0 < free_memory() < 1 << 50
    most, used = tmp_path / "most", tmp_path / "used"
    most.write_text("5000000\n")
    used.write_text("2000000\n")
    monkeypatch.setattr(kept, "LIMITS", ((str(most), str(used)), (str(tmp_path / "none"), str(used))))
    assert free_memory() == 3_000_000
    most.write_text("max\n")
    assert free_memory() > 3_000_000 or free_memory() < MEMORY
