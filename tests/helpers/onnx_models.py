"""ONNX models made of a few nodes, and what onnxruntime computes with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from paredown.pipeline.recipe.imports.imported import Imported
from paredown.pipeline.recipe.imports.onnx.compare import difference
from paredown.pipeline.recipe.imports.read import read

Shape = Sequence[int | str | None]


def model_of(
    nodes: Sequence[Any],
    shape: Shape,
    tensors: Mapping[str, np.ndarray] | None = None,
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
    kind: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model of one input `x`."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", kind, list(shape))],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in (tensors or {}).items()],
    )
    for value in graph.output:
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, producer_name="test"
    )


def saved(folder: Path, model: onnx.ModelProto, name: str = "model.onnx") -> Path:
    """The file of a model."""
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def compared(path: Path, shape: tuple[int, ...] | None = None, seed: int = 0) -> tuple[Imported, float]:
    """An imported model, and how far it is from onnxruntime, relative to its largest output."""
    found = read(path, shape)
    example = torch.from_numpy(np.random.default_rng(seed).standard_normal(found.shape).astype(np.float32))
    with torch.no_grad():
        made = found.module(example)
    parts = made if isinstance(made, tuple) else (made,)
    far = difference(path, found, example.numpy(), [part.numpy() for part in parts])
    assert far is not None, "onnxruntime does not run this model"
    return found, far


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    """Random weights."""
    return (np.random.default_rng(seed).standard_normal(shape) * 0.3).astype(np.float32)


def small_net(folder: Path, opset: int = 17, **changes: Any) -> Path:
    """Convolution, ReLU, pool and a linear layer over images of 3x8x8."""
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["a"], "/conv/Conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "/relu/Relu"),
        helper.make_node("GlobalAveragePool", ["b"], ["c"], "/pool/GlobalAveragePool"),
        helper.make_node("Flatten", ["c"], ["d"], "/Flatten"),
        helper.make_node("Gemm", ["d", "fc.weight", "fc.bias"], ["y"], "/fc/Gemm", transB=1),
    ]
    tensors = {
        "conv.weight": floats(4, 3, 3, 3),
        "conv.bias": floats(4),
        "fc.weight": floats(5, 4),
        "fc.bias": floats(5),
    }
    tensors |= changes.pop("tensors", {})
    return saved(folder, model_of(nodes, (1, 3, 8, 8), tensors, opset=opset, **changes))
