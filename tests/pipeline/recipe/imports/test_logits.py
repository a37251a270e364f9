"""The softmax at the end of a classifier goes, and boxes behind a detector's heads, and nothing else."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from onnx import helper
from onnx_models import model_of, saved
from torch import Tensor, nn

from paredown.pipeline.recipe.imports.logits import (
    BOXES_NOTE,
    NOTE,
    ORDER_NOTE,
    before_boxes,
    before_softmax,
)
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


class Boxed(nn.Module):
    """Heads of two levels, and the boxes that an exporter computes from them: means of bins, scores."""

    def __init__(self, parts: tuple[int, ...] = (64, 3), computed: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.computed = computed
        self.stem, self.down = nn.Conv2d(3, 8, 8, 8), nn.Conv2d(8, 8, 3, 2, 1)
        self.heads = nn.ModuleList(nn.Conv2d(8, count, 1) for _ in range(2) for count in parts)
        self.bins = nn.Conv2d(16, 1, 1, bias=False)
        with torch.no_grad():
            self.bins.weight.copy_(torch.arange(16.0).reshape(1, 16, 1, 1))

    def maps(self, x: Tensor) -> list[Tensor]:
        x = torch.relu(self.stem(x))
        levels = (x, torch.relu(self.down(x)))
        return [head(levels[i // (len(self.heads) // 2)]) for i, head in enumerate(self.heads)]

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        maps = self.maps(x)
        if not self.computed:
            return maps[2], maps[0], maps[3], maps[1]
        flat = torch.cat([torch.cat(maps[i : i + 2], 1).flatten(2) for i in (0, 2)], 2)
        sides, scores = flat.split((64, flat.shape[1] - 64), 1)
        sides = sides.reshape(len(x), 4, 16, -1).transpose(1, 2).softmax(1)
        return torch.cat([self.bins(sides)[:, 0], scores.sigmoid()], 1)


def exported(network: nn.Module, folder: Path, side: int = 32) -> Path:
    path = folder / "boxes.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network.eval(), (torch.zeros(1, 3, side, side),), str(path), dynamo=False)
    return path


WANTED = ((1, 64, 4, 4), (1, 3, 4, 4), (1, 64, 2, 2), (1, 3, 2, 2))


@pytest.mark.parametrize(("computed", "note"), [(True, BOXES_NOTE), (False, ORDER_NOTE)])
def test_boxes_go_and_the_heads_come_in_order(tmp_path, computed, note):
    network = Boxed(computed=computed)
    whole = read(exported(network, tmp_path))
    found = before_boxes(whole, WANTED)
    x = torch.rand(2, 3, 32, 32)
    for ours, theirs in zip(found.module(x), network.maps(x), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert found.notes == (*whole.notes, note)
    assert before_boxes(found, WANTED) is found


def test_other_maps_than_the_wanted_leave_the_model_as_it_is(tmp_path):
    whole = read(exported(Boxed(), tmp_path))
    for wanted in (WANTED[:2], (*WANTED, (1, 9, 2, 2)), ((1, 65, 4, 4), *WANTED[1:]), ()):
        assert before_boxes(whole, wanted) is whole
