"""`.pt2` and TorchScript files that are damaged, or would run something."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from paredown.pipeline.recipe.imports.exported import pt2, torchscript
from paredown.targets.errors import InputError


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("good") / "net.pt2"
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    batch = torch.export.Dim("batch")
    torch.export.save(
        torch.export.export(network, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: batch},)), path
    )
    return path


def changed(good: Path, folder: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """The same archive with other members."""
    with zipfile.ZipFile(good) as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(members)
    path = folder / "changed.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(f"net/{name}", content)
    return path


def line(path: Path, load=pt2.load) -> str:
    with pytest.raises(InputError) as caught:
        load(path, (1, 3, 8, 8))
    text = str(caught.value)
    assert str(path) in text and "\n" not in text
    return text


class Reducer:
    """A pickle of this makes a folder where it is opened without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_an_archive_that_was_only_packed_again_is_good(good: Path, tmp_path: Path):
    assert pt2.load(changed(good, tmp_path, lambda members: None)).shape == (1, 3, 8, 8)


def test_nothing_is_unpickled_or_evaluated(good: Path, tmp_path: Path):
    trap = tmp_path / "ran"
    buffer = io.BytesIO()
    torch.save((Reducer(trap),), buffer)

    def examples(members: dict[str, bytes]) -> None:
        members["data/sample_inputs/model.pt"] = buffer.getvalue()

    def weights(members: dict[str, bytes]) -> None:
        config = json.loads(members["data/weights/model_weights_config.json"])
        first = next(iter(config["config"].values()))
        first["use_pickle"] = True
        members[f"data/weights/{first['path_name']}"] = buffer.getvalue()
        members["data/weights/model_weights_config.json"] = json.dumps(config).encode()

    def constants(members: dict[str, bytes]) -> None:
        members["data/constants/custom_obj_0"] = pickle.dumps(Reducer(trap))
        members["data/constants/model_constants_config.json"] = json.dumps(
            {
                "config": {
                    "x": {
                        "path_name": "custom_obj_0",
                        "is_param": False,
                        "use_pickle": True,
                        "tensor_meta": None,
                    }
                }
            }
        ).encode()

    def size(members: dict[str, bytes]) -> None:
        code = f"__import__('os').mkdir({str(trap)!r})"
        text = members["models/model.json"].decode()
        members["models/model.json"] = text.replace(expression(text), json.dumps(code)[1:-1]).encode()

    def target(members: dict[str, bytes]) -> None:
        text = members["models/model.json"].decode()
        members["models/model.json"] = text.replace("torch.ops.aten.relu.default", "torch.hub.load").encode()

    def name(members: dict[str, bytes]) -> None:
        text = members["models/model.json"].decode()
        members["models/model.json"] = text.replace('"name": "input"', '"name": "input=open(1)"').encode()

    for change, words in (
        (examples, "example inputs are a pickle"),
        (weights, "pickled objects"),
        (constants, "pickled objects"),
        (size, "no sum or product of sizes"),
        (target, "calls torch.hub.load"),
        (name, "which is no name"),
    ):
        assert words in line(changed(good, tmp_path, change)), change
        assert not trap.exists()


def expression(text: str) -> str:
    """A size of the program, as its JSON spells it."""
    found: list[str] = []

    def walk(value: object) -> None:
        if isinstance(value, dict):
            found.extend(each for key, each in value.items() if key == "expr_str")
            for each in value.values():
                walk(each)
        elif isinstance(value, list):
            for each in value:
                walk(each)

    walk(json.loads(text))
    return json.dumps(found[0])[1:-1]


def test_archives_of_something_else(good: Path, tmp_path: Path):
    path = tmp_path / "x.pt2"
    for content in (b"", b"hello", b"PK\3\4" + bytes(99)):
        path.write_bytes(content)
        assert "not a program of torch.export" in line(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")
    assert "older torch" in line(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/models/model.json", bytes(200 * 2**20))
    assert "far more than its size" in line(path)
    assert "cannot read" in line(tmp_path / "none.pt2")
    assert "holds 0 programs" in line(
        changed(good, tmp_path, lambda members: members.pop("models/model.json"))
    )
    assert "no JSON" in line(
        changed(good, tmp_path, lambda members: members.update({"models/model.json": b"{"}))
    )


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_files_are_read_or_are_one_line(good: Path, tmp_path: Path, data: st.DataObject):
    content = bytearray(good.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    for _ in range(data.draw(st.integers(0, 6))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.pt2"
    path.write_bytes(content)
    try:
        pt2.load(path)
    except InputError as error:
        assert "\n" not in str(error)


class Reads(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.from_file("/etc/hostname", False, 1)


def test_torchscript_that_reaches_files_is_not_loaded(tmp_path: Path):
    path = tmp_path / "net.pt"
    torch.jit.save(torch.jit.script(Reads()), path)
    assert "calls torch.from_file" in line(path, torchscript.load)


class Loops(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        while bool(x.sum() > 1):
            x = x / 2
        return x


def test_torchscript_that_cannot_be_converted(tmp_path: Path):
    path = tmp_path / "net.pt"
    torch.jit.save(torch.jit.script(Loops()), path)
    assert "torch cannot convert the program" in line(path, torchscript.load)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "not a TorchScript program" in line(path, torchscript.load)
    torch.jit.save(torch.jit.trace(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8)), path)
    with pytest.raises(InputError, match=r"does not say the shape of its input; .*--shape 3x224x224"):
        torchscript.load(path)
    with pytest.raises(InputError, match="fails on an input of 1x5x8x8"):
        torchscript.load(path, (5, 8, 8))
