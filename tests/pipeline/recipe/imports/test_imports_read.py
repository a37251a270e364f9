"""Model files are told apart by suffix and first bytes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from onnx_models import small_net

from paredown.pipeline.recipe.imports.imported import Imported
from paredown.pipeline.recipe.imports.read import SUFFIXES, files, is_model, read
from paredown.targets.errors import InputError


def test_a_model_is_read_by_its_suffix(tmp_path):
    found = read(small_net(tmp_path))
    assert isinstance(found, Imported)
    assert found.shape == (1, 3, 8, 8) and found.format == "ONNX, opset 17" and found.outputs == ("y",)
    assert not found.module.training
    assert {p.dtype for p in found.module.parameters()} == {torch.float32}


def test_suffixes_say_what_is_a_model():
    assert ".onnx" in SUFFIXES
    assert is_model("a/b.ONNX") and is_model("net.onnx")
    assert not is_model("net.cfg") and not is_model("my.nets:make") and not is_model("resnet18")


def test_another_suffix_is_refused(tmp_path):
    path = tmp_path / "net.xyz"
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"not a model file \(.xyz\); known are .onnx"):
        read(path)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(InputError, match="cannot read the model: No such file"):
        read(tmp_path / "gone.onnx")


def test_the_files_of_a_model_are_its_own_first(tmp_path):
    path = small_net(tmp_path)
    assert files(path) == (path,)


def test_asking_what_is_a_model_needs_no_torch():
    code = "import sys, paredown.pipeline.recipe.imports.read; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
