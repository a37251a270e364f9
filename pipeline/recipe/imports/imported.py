"""What every importer gives back: a trained model of another tool as a plain torch module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True, eq=False)
class Imported:
    """A model that came from a file.

    Attributes:
        module: in evaluation mode, float32, made of plain torch modules with parameters. It takes one tensor
            of `shape`, images as (N, C, H, W), and returns a tensor or a tuple of tensors.
        shape: of that tensor; its batch, the first axis, is 1.
        format: of the file, for the user: "ONNX, opset 17".
        notes: what was changed or noticed, each one sentence without its full stop.
        outputs: names of what the module returns, in order; empty where the file has none.
        preprocess: keys of a recipe's [preprocess] that the model's own files say.
        labels: names of the classes, where the model's own files say them.
    """

    module: nn.Module
    shape: tuple[int, ...]
    format: str
    notes: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
