"""Layers that exporters take apart are whole again, and compute the same."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from onnx_models import compared
from torch import Tensor, nn

from paredown.pipeline.recipe.imports.imported import Imported


def exported(network: nn.Module, shape: tuple[int, ...], path: Path, opset: int = 14, **options: Any) -> Path:
    """The file that torch's older exporter writes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(), (torch.zeros(shape),), str(path), dynamo=False, opset_version=opset, **options
        )
    return path


def kinds(found: Imported) -> list[str]:
    return [type(found.module.get_submodule(step.path)).__name__ for step in found.module.steps]


class Function(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


@pytest.mark.parametrize(
    ("network", "wanted"),
    [
        (nn.GELU(), ["GELU"]),
        (nn.Mish(), ["Mish"]),
        (nn.LayerNorm(6), ["LayerNorm"]),
        (nn.LayerNorm(6, elementwise_affine=False), ["LayerNorm"]),
        (nn.Linear(6, 4), ["Linear"]),
        (nn.Linear(6, 4, bias=False), ["Linear"]),
        (Function(lambda x: x * (x + 3).clamp(0, 6) / 6), ["Hardswish"]),
        (Function(lambda x: (x + 3).clamp(0, 6) / 6), ["Hardsigmoid"]),
        (Function(lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))), ["GELU"]),
        (Function(lambda x: x * (0.5 * (1 + torch.erf(x / math.sqrt(2))))), ["GELU"]),
        (Function(lambda x: 0.5 * (x * (1 + torch.erf(x * math.sqrt(0.5))))), ["GELU"]),
    ],
)
def test_a_layer_is_whole_again(tmp_path, network, wanted):
    found, far = compared(exported(network, (1, 5, 6), tmp_path / "net.onnx"))
    assert kinds(found) == wanted
    assert far < 1e-6


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x * torch.erf(x / 1.5) + 1) * 0.5,
        lambda x: (torch.erf(x / math.sqrt(2)) + 1) * x,
        lambda x: x * (x + 3).clamp(0, 6),
        lambda x: (x + 2).clamp(0, 6) / 6,
        lambda x: (x - x.mean(-2, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-5).sqrt(),
    ],
)
def test_what_only_looks_like_one_stays_apart(tmp_path, function):
    found, far = compared(exported(Function(function), (1, 5, 6), tmp_path / "net.onnx"))
    assert not {"GELU", "Hardswish", "Hardsigmoid", "LayerNorm"} & set(kinds(found))
    assert far < 1e-6


class Both(nn.Module):
    """A network that returns what is in the middle of a pattern, too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        product = x @ self.linear.weight.t()
        return product, product + self.linear.bias


def test_what_something_else_reads_stays(tmp_path):
    found, far = compared(exported(Both(), (1, 5, 6), tmp_path / "net.onnx"))
    assert far < 1e-6 and len(found.outputs) == 2
