"""Checkpoints' files: what is read of them, and what is not run."""

from __future__ import annotations

import argparse
import os
import pickle
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from paredown.pipeline.recipe.weights_file import is_torchscript, read_weights_file
from paredown.targets.errors import InputError

pytestmark = pytest.mark.unit
STATE = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.zeros(2)}


def line(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_weights_file(path)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text
    return text


@pytest.mark.parametrize(
    "beside",
    [
        np.float64(91.2), np.float32(1), np.int64(3), np.arange(3), argparse.Namespace(out=Path("runs/x")),
        types.SimpleNamespace(a=1), {1, 2}, Path("/tmp/x"), np.random.RandomState(0).get_state(legacy=True),
    ],
    ids=str,
)  # fmt: skip
def test_what_trainers_leave_beside_the_tensors_is_no_reason_to_stop(tmp_path: Path, beside: object):
    path = tmp_path / "x.pt"
    torch.save({"state_dict": STATE, "beside": beside}, path)
    assert torch.equal(read_weights_file(path)["state_dict"]["weight"], STATE["weight"])


def test_settings_of_a_trainer_that_is_not_installed(tmp_path: Path, monkeypatch):
    module = types.ModuleType("lightning_fabric.utilities.data")
    kind = type("AttributeDict", (dict,), {"__module__": module.__name__})
    module.AttributeDict = kind
    path = tmp_path / "x.ckpt"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "lightning_fabric", types.ModuleType("lightning_fabric"))
        patch.setitem(
            sys.modules, "lightning_fabric.utilities", types.ModuleType("lightning_fabric.utilities")
        )
        patch.setitem(sys.modules, module.__name__, module)
        torch.save({"state_dict": STATE, "hyper_parameters": kind(lr=0.1, deep=kind(a=1))}, path)
    assert torch.equal(read_weights_file(path)["state_dict"]["weight"], STATE["weight"])


class Reducer:
    """A pickle of this runs code where it is opened without care."""

    def __init__(self, path: Path, call=os.mkdir) -> None:
        self.path, self.call = path, call

    def __reduce__(self):
        return self.call, (str(self.path),)


@pytest.mark.parametrize("new", [True, False])
def test_a_pickle_that_would_run_code_names_it(tmp_path: Path, new: bool):
    path, trap = tmp_path / "evil.pt", tmp_path / "ran"
    torch.save({"model": STATE, "extra": Reducer(trap)}, path, _use_new_zipfile_serialization=new)
    assert "posix.mkdir" in line(path) if new else "tensors only" in line(path)
    path.write_bytes(pickle.dumps({"model": STATE, "extra": Reducer(trap)}))
    assert "tensors only" in line(path)
    assert not trap.exists()


def test_whole_modules_say_how_to_save_the_tensors(tmp_path: Path):
    path = tmp_path / "x.pt"
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3)), path)
    assert "it would import torch.nn.modules" in line(path) and "state_dict()" in line(path)


@pytest.mark.parametrize(("name", "command"), [
    ("ultralytics.nn.tasks", "yolo export model=x.pt format=onnx"),
    ("models.yolo", "python export.py --weights x.pt --include onnx"),
])  # fmt: skip
def test_pickled_yolos_say_how_to_export_them(tmp_path: Path, monkeypatch, name: str, command: str):
    path, modules = tmp_path / "x.pt", name.split(".")
    with monkeypatch.context() as patch:
        for length in range(1, len(modules) + 1):
            full = ".".join(modules[:length])
            patch.setitem(sys.modules, full, types.ModuleType(full))
        kind = type("DetectionModel", (nn.Module,), {"__module__": name})
        sys.modules[name].DetectionModel = kind
        torch.save({"model": kind(), "epoch": 1}, path)
    assert line(path).endswith(command)
    assert f"{name}.DetectionModel" in line(path)


def test_torchscript_is_seen_without_being_loaded(tmp_path: Path):
    path, other = tmp_path / "x.pt", tmp_path / "y.pt"
    torch.jit.save(torch.jit.trace(nn.Linear(3, 2), torch.zeros(1, 3)), path)
    torch.save(STATE, other)
    assert is_torchscript(path) and not is_torchscript(other) and not is_torchscript(tmp_path)
    assert "is a TorchScript program" in line(path)


def test_files_that_are_something_else(tmp_path: Path):
    path = tmp_path / "x.pt"
    for content in (b"", b"PK\3\4", b"\x80\x02}.", b"hello" * 99):
        path.write_bytes(content)
        if content != b"\x80\x02}.":
            line(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
    assert "tensors only" in line(path)
    torch.save([1, 2], path)
    assert "holds a list" in line(path)
    assert "cannot read" in line(tmp_path / "none.pt")
    assert "unknown kind of weights" in line(tmp_path / "none.onnx")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_files_are_read_or_are_one_line(tmp_path: Path, data: st.DataObject):
    path = tmp_path / "x.pt"
    torch.save({"model": STATE, "best": np.float64(1)}, path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    for _ in range(data.draw(st.integers(0, 6))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        read_weights_file(path)
    except InputError as error:
        assert "\n" not in str(error)
