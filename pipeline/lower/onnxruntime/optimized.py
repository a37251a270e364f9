"""The graph that ONNX Runtime makes of an .onnx on this machine: what runs on codes, and what in float."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

from paredown.pipeline.lower.onnxruntime.writer import helper
from paredown.targets.runners.onnxruntime.runner import runtime

#: Kernels that compute on codes.
ON_CODES = ("QLinear", "QGemm", "QMoE", "MatMulInteger", "ConvInteger", "DynamicQuantize")
#: Operators that move or select values, or change their type, whatever the values are.
MOVING = frozenset(
    {
        "Reshape", "Transpose", "Concat", "Slice", "Pad", "Gather", "Clip", "MaxPool", "Squeeze", "Unsqueeze",
        "Split", "Resize", "Flatten", "Identity", "Expand", "Tile", "ReorderInput", "ReorderOutput",
        "NhwcMaxPool", "Upsample", "Constant", "Cast",
    }
)  # fmt: skip


def optimized(data: bytes) -> Counter[str]:
    """Operators of the optimised graph, and how many of each there are.

    Args:
        data: the file's bytes.

    Raises:
        DeviceError: `onnx`, which reads the graph, or `onnxruntime` is not installed.
    """
    onnx, ort = helper(), runtime()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return Counter(node.op_type for node in onnx.load(path).graph.node)


def in_float(data: bytes) -> tuple[str, ...]:
    """Operators of a program of codes that are computed in float, conversions included."""
    found = optimized(data)
    names = [name for name in found if name not in MOVING and not name.startswith(ON_CODES)]
    return tuple(name for name in sorted(names) for _ in range(found[name]))
