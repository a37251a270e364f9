"""SavedModels: another Python converts them; here a program stands for it that writes an ONNX file."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from paredown.pipeline.recipe.imports.read import files, read
from paredown.pipeline.recipe.imports.saved_model import PYTHON
from paredown.targets.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    (made / "variables").mkdir(parents=True)
    (made / "saved_model.pb").write_bytes(b"graph")
    (made / "variables" / "variables.index").write_bytes(b"1")
    return made


def test_without_an_environment_the_line_says_what_to_run(folder: Path, monkeypatch):
    monkeypatch.delenv(PYTHON, raising=False)
    with pytest.raises(InputError) as caught:
        read(folder)
    text = str(caught.value)
    assert f"python -m tf2onnx.convert --saved-model {folder} --output model.onnx" in text
    assert PYTHON in text and "pip install tensorflow-cpu tf2onnx" in text
    assert [path.name for path in files(folder)] == ["saved_model.pb", "variables.index"]


def converter(tmp_path: Path, monkeypatch, code: str) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!{sys.executable}\nimport shutil, sys\n{code}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv(PYTHON, str(program))


def test_what_the_other_python_writes_is_imported(folder: Path, tmp_path: Path, monkeypatch):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    torch.onnx.export(network, (torch.zeros(1, 3, 8, 8),), tmp_path / "made.onnx", dynamo=False)
    converter(
        tmp_path,
        monkeypatch,
        f"shutil.copy({str(tmp_path / 'made.onnx')!r}, sys.argv[sys.argv.index('--output') + 1])",
    )
    found = read(folder)
    x = torch.rand(1, 3, 8, 8)
    assert torch.allclose(found.module(x), network(x), atol=1e-6)
    assert found.format.startswith("SavedModel, through ONNX")


def test_its_errors_are_passed_on(folder: Path, tmp_path: Path, monkeypatch):
    converter(tmp_path, monkeypatch, "sys.exit('No module named tf2onnx')")
    with pytest.raises(InputError, match=r"tf2onnx cannot convert it \(No module named tf2onnx\)"):
        read(folder)
    converter(tmp_path, monkeypatch, "open(sys.argv[sys.argv.index('--output') + 1], 'w').write('x')")
    with pytest.raises(InputError, match="as ONNX"):
        read(folder)
    monkeypatch.setenv(PYTHON, str(tmp_path / "none"))
    with pytest.raises(InputError, match="cannot run tf2onnx"):
        read(folder)
