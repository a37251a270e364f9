"""The softmax at the end of a classifier goes, and nothing else."""

from __future__ import annotations

import pytest
import torch
from onnx import helper
from onnx_models import model_of, saved

from paredown.pipeline.recipe.imports.logits import NOTE, before_softmax
from paredown.pipeline.recipe.imports.read import read


@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
def test_the_last_softmax_goes(tmp_path, kind):
    nodes = [helper.make_node("Tanh", ["x"], ["a"]), helper.make_node(kind, ["a"], ["y"])]
    whole = read(saved(tmp_path, model_of(nodes, (1, 5))))
    found = before_softmax(whole)
    x = torch.linspace(-1, 1, 5)[None]
    assert torch.equal(found.module(x), torch.tanh(x))
    assert found.notes == (*whole.notes, NOTE) and found.shape == whole.shape


def test_any_other_end_stays(tmp_path):
    nodes = [helper.make_node("Softmax", ["x"], ["a"]), helper.make_node("Tanh", ["a"], ["y"])]
    whole = read(saved(tmp_path, model_of(nodes, (1, 5))))
    assert before_softmax(whole) is whole


def test_of_two_outputs_both_stay(tmp_path):
    nodes = [helper.make_node("Tanh", ["x"], ["a"]), helper.make_node("Softmax", ["a"], ["y"])]
    whole = read(saved(tmp_path, model_of(nodes, (1, 5), outputs=("a", "y"))))
    assert before_softmax(whole) is whole
