"""An imported module beside onnxruntime on the same input: the proof of an import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.pipeline.recipe.imports.imported import Imported

TYPES = {"tensor(float16)": np.float16, "tensor(double)": np.float64, "tensor(int32)": np.int32,
         "tensor(int64)": np.int64, "tensor(uint8)": np.uint8, "tensor(int8)": np.int8}  # fmt: skip


def difference(
    path: Path, found: Imported, example: NDArray[np.float32], outputs: Sequence[NDArray[np.float32]]
) -> float | None:
    """The largest difference over all outputs, each as a share of its own largest value.

    Args:
        path: of the ONNX file.
        found: what was imported from it.
        example: an input of the module.
        outputs: of the module.

    Returns:
        The difference; None where onnxruntime does not run the file on such an input.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    # its own rewriting changes sums, and may read the file anew with other kernels
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(
            _opened(path, found), options, providers=["CPUExecutionProvider"]
        )
        (given,) = session.get_inputs()
        fed = example
        declared = given.shape
        if len(declared) == 4 and fed.ndim == 4 and any("(N, H, W, C)" in note for note in found.notes):
            fed = fed.transpose(0, 2, 3, 1)
        if declared and isinstance(declared[0], int) and declared[0] > 1:
            fed = np.repeat(fed, declared[0], 0)
        fed = np.ascontiguousarray(fed.astype(TYPES.get(given.type, np.float32)))
        made = dict(
            zip((o.name for o in session.get_outputs()), session.run(None, {given.name: fed}), strict=True)
        )
    except Exception:  # noqa: BLE001  onnxruntime raises many kinds; what it cannot run is not compared
        return None
    worst = 0.0
    for name, ours in zip(found.outputs, outputs, strict=True):
        theirs = made[name].astype(np.float64)
        if theirs.shape != ours.shape and _long(theirs) == _long(ours):  # the batch is first here
            theirs = theirs.reshape(ours.shape)
        theirs = theirs[: len(ours)] if theirs.ndim and theirs.shape != ours.shape else theirs
        if theirs.shape != ours.shape:
            return float("inf")
        if theirs.size:
            size = max(float(np.abs(theirs).max()), 1e-9)
            worst = max(worst, float(np.abs(theirs - ours.astype(np.float64)).max()) / size)
    return worst


def _long(value: NDArray[Any]) -> tuple[int, ...]:
    return tuple(size for size in value.shape if size != 1)


def _opened(path: Path, found: Imported) -> str | bytes:
    """The file, or what it is without sizes that only fit another shape of its input."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    known = {tensor.name for tensor in model.graph.initializer}
    (given,) = (value for value in model.graph.input if value.name not in known)
    dims = given.type.tensor_type.shape.dim
    sizes = found.shape
    if any("(N, H, W, C)" in note for note in found.notes):
        sizes = (sizes[0], *sizes[2:], sizes[1])
    if all(not dim.dim_value or dim.dim_value == size for dim, size in zip(dims[1:], sizes[1:], strict=True)):
        return str(path)
    if any(tensor.external_data for tensor in model.graph.initializer):
        return str(path)
    for dim, size in zip(dims[1:], sizes[1:], strict=True):
        dim.dim_value = size
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    return bytes(model.SerializeToString())
