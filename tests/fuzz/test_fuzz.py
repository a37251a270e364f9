"""A fixed share of what `bench/fuzz.py` tries for as long as it is asked to."""

from __future__ import annotations

import json
import mmap
import random
from dataclasses import replace

import numpy as np
import pytest

from paredown.pipeline.bundle.finished.child import INPUTS, USUAL
from paredown.pipeline.bundle.finished.program import in_child
from paredown.targets.errors import InputError
from tests.fuzz import forgeries, harness
from tests.fuzz.forked import forked_children
from tests.fuzz.harness import Target, attempts, one
from tests.fuzz.mutate import ODD, json_bytes, of_bytes, of_json, of_text
from tests.fuzz.targets import TARGETS
from tests.helpers.forge import forged


@pytest.mark.parametrize("name", TARGETS)
def test_good_files_are_read(name, tmp_path):
    """Or else what follows would only show that something is refused."""
    for file, data in TARGETS[name].seeds().items():
        (tmp_path / file).write_bytes(data)
        TARGETS[name].run(tmp_path / file)


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_read_or_refused_in_one_line(name):
    tried = [finding for _, finding in attempts(TARGETS[name], range(TARGETS[name].share))]
    assert len(tried) == TARGETS[name].share
    assert [finding for finding in tried if finding] == []


#: Inputs in which something was found once, by target.
FOUND = {
    "bundle, inner documents": [4, 5, 7, 14, 15, 22, 52, 54], "tflite, edited": [0, 1, 5, 9, 14],
    "darknet cfg": [75, 133, 383, 402, 446], "weights": [568], "onnx": [360, 2747], "language config": [5187],
    "arrays": [870, 3726, 6175, 26049], "tokenizer": [1], "forged bundles": [23, 936],
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_once_stays_mended(name):
    assert [finding for _, finding in attempts(TARGETS[name], FOUND[name]) if finding] == []


def test_the_traps_of_forged_bundles_work(monkeypatch):
    """A stranger's module is executed where a bundle may name code, and the harness sees that."""

    def forge(seed, chance):
        text, members = forgeries._golden()
        manifest = json.loads(text)
        manifest["recipe"] |= {"network": "evil:make", "data": {"format": "digits"}}
        return forged(manifest, members)

    monkeypatch.setattr(forgeries, "COMMANDS", (("validate", "B", "--times", "1", "--limit", "1"),))
    target = replace(TARGETS["forged bundles"], mutate=forge)
    assert [finding for _, finding in attempts(target, [0])] == [None]
    monkeypatch.setattr("paredown.pipeline.device.validate.validate.check_no_code", lambda recipe: None)
    ((_, finding),) = attempts(target, [0])
    assert finding and finding.what == "wrote ['executed'] outside"


@pytest.mark.slow
def test_forked_children_end_as_started_ones_do(tmp_path):
    """A good program, and one that ends its process by a signal."""
    programs = TARGETS["programs"]
    seeds = programs.seeds()
    (tmp_path / "model.pte").write_bytes(seeds["model.pte"])
    (tmp_path / "model.tflite").write_bytes(one(programs, seeds, 926)[1])
    np.save(tmp_path / INPUTS, np.zeros((1, 3, 32, 32), np.int8))

    def ends():
        yield str(in_child(tmp_path / "model.pte", "executorch", tmp_path, (USUAL,)))
        with pytest.raises(InputError, match="ended by signal") as died:
            in_child(tmp_path / "model.tflite", "litert", tmp_path, (USUAL,))
        yield str(died.value)

    started = list(ends())
    with forked_children():
        assert list(ends()) == started


def target(run):
    return Target("a", lambda: {"x": b"0123456789" * 9}, of_bytes, run)


def found(run, count=3):
    return [finding.what if finding else "" for _, finding in attempts(target(run), range(count))]


def refuse(text):
    def run(path):
        raise InputError(text)

    return run


@pytest.mark.unit
def test_the_harness_tells_what_is_a_finding(monkeypatch):
    assert found(lambda path: None) == found(refuse("no good")) == ["", "", ""]
    assert "ZeroDivisionError" in found(lambda path: 1 / 0)[0]
    assert "wrote ['evil'] outside" in found(lambda path: (path.parent.parent / "evil").write_text(""))[0]
    assert "SystemExit" in found(lambda path: exit(3))[0]
    monkeypatch.setattr(harness, "SECONDS", 0.05)

    def hang(path):
        while True:
            pass

    assert "takes more than" in found(hang, 1)[0]
    monkeypatch.setattr(harness, "SECONDS", 20.0)
    monkeypatch.setattr(harness, "MEMORY", 1 << 20)
    kept = []

    def grow(path):  # pages of the kernel's: a heap may have as much free
        kept.append(mmap.mmap(-1, 64 << 20))
        kept[-1].write(b"x" * len(kept[-1]))

    assert all("MiB" in what for what in found(grow))


@pytest.mark.unit
@pytest.mark.parametrize("mutate", [of_bytes, of_text, json_bytes()])
def test_the_same_number_makes_the_same_damage(mutate):
    seed = json.dumps({"a": [1, 2, {"b": "c"}], "d": 0.5}, indent=1).encode()
    made = [mutate(seed, random.Random(number)) for number in range(40)]
    assert made == [mutate(seed, random.Random(number)) for number in range(40)]
    assert len(set(made)) > 30 and sum(each == seed for each in made) < 4


@pytest.mark.unit
def test_damaged_json_leaves_the_original_alone():
    seed, odd = {"a": [1, {"b": None}]}, repr(ODD)
    for number in range(1000):
        of_json(seed, random.Random(number))
    assert seed == {"a": [1, {"b": None}]}
    assert repr(ODD) == odd, "a number makes other damage after other numbers"
