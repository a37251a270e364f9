"""An import is compared with onnxruntime; a wrong one shows."""

from __future__ import annotations

import numpy as np
import torch
from onnx import helper
from onnx_models import floats, model_of, saved, small_net

from paredown.pipeline.recipe.imports.onnx.compare import difference
from paredown.pipeline.recipe.imports.read import read


def outputs(found, x):
    with torch.no_grad():
        made = found.module(torch.from_numpy(x))
    return [part.numpy() for part in (made if isinstance(made, tuple) else (made,))]


def test_the_same_is_no_difference_and_another_weight_is_one(tmp_path):
    path = small_net(tmp_path)
    found = read(path)
    x = floats(*found.shape)
    assert difference(path, found, x, outputs(found, x)) < 1e-6
    with torch.no_grad():
        found.module.fc.weight[0, 0] += 1
    assert difference(path, found, x, outputs(found, x)) > 1e-3


def test_other_sizes_than_the_file_declares_are_compared(tmp_path):
    path = small_net(tmp_path)
    found = read(path, (16, 12))
    assert any("declares 1x3x8x8" in note for note in found.notes)
    x = floats(*found.shape)
    assert difference(path, found, x, outputs(found, x)) < 1e-6


def test_images_with_channels_last_and_batches_are_compared(tmp_path):
    nodes = [
        helper.make_node("Transpose", ["x"], ["a"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["a", "w"], ["y"]),
    ]
    path = saved(tmp_path, model_of(nodes, (2, 8, 6, 3), {"w": floats(4, 3, 3, 3)}))
    found = read(path)
    assert found.shape == (1, 3, 8, 6)
    x = floats(*found.shape)
    assert difference(path, found, x, outputs(found, x)) < 1e-6


def test_what_onnxruntime_cannot_run_is_not_compared(tmp_path):
    path = small_net(tmp_path)
    found = read(path)
    path.write_bytes(b"broken")
    x = floats(*found.shape)
    try:
        told = difference(path, found, x, outputs(found, x))
    except Exception as error:  # a file that changed under our hands
        raise AssertionError from error
    assert told is None
    assert np.isfinite(x).all()
