"""Checkpoints: what comes back, and what is refused without running anyone's code."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from paredown.pipeline.store.checkpoint import (
    damaged,
    load_checkpoint,
    load_run,
    save_checkpoint,
    save_weights,
)
from paredown.targets.errors import InputError

pytestmark = pytest.mark.unit


def test_a_state_comes_back(tmp_path: Path) -> None:
    state = {"step": 3, "tensor": torch.arange(4.0), "rows": [{"a": 1.5}], "text": "x", "none": None}
    save_checkpoint(tmp_path / "deep" / "ck", state)
    found = load_checkpoint(tmp_path / "deep" / "ck")
    assert torch.equal(found.pop("tensor"), state.pop("tensor")) and found == state


def test_weights_are_safetensors_of_the_same_bytes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    save_weights(tmp_path / "a", network)
    save_weights(tmp_path / "b", network)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    found = load_file(tmp_path / "a")
    assert found.keys() == network.state_dict().keys()
    assert all(torch.equal(found[name], values) for name, values in network.state_dict().items())


class Forged:
    def __reduce__(self):
        return (Path.touch, (Path("forged"),))


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ck").write_bytes(pickle.dumps({"state": Forged()}))
    with pytest.raises(InputError, match="is no checkpoint .*; delete it to start anew"):
        load_checkpoint(tmp_path / "ck")
    assert not (tmp_path / "forged").exists()


def test_what_is_not_a_dict_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "ck")
    with pytest.raises(InputError, match="is no checkpoint but a list"):
        load_checkpoint(tmp_path / "ck")


def test_only_the_same_run_goes_on(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "ck", {"identity": "mine", "step": 1})
    assert load_run(tmp_path / "ck", "mine")["step"] == 1
    for other in ("yours", ""):
        with pytest.raises(InputError, match="belongs to another run"):
            load_run(tmp_path / "ck", other)
    assert str(damaged(tmp_path / "ck", KeyError("step"))).startswith(f"{tmp_path / 'ck'}: is damaged")
