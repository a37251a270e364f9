"""What other tools' post-training quantization loses on a network: a yardstick for ours.

ONNX Runtime's static quantizer: QDQ, a scale per channel of the weights, extremes of the same calibration
inputs, its own fusions before. It runs with the option that keeps sums from saturating.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
LEAST_OPSET = 13  # with scales per channel


class _Inputs:
    """What the quantizer asks for its calibration inputs."""

    def __init__(self, name: str, inputs: Floats) -> None:
        self._left = [{name: each[None]} for each in inputs]

    def get_next(self) -> dict[str, Floats] | None:
        """The next one; None at the end."""
        return self._left.pop(0) if self._left else None


def onnxruntime_outputs(path: Path, calibration: Floats, test: Floats) -> list[Floats]:
    """Each output of the network that ONNX Runtime's quantizer makes of a file, over all test inputs.

    Args:
        path: of a float model.
        calibration: its inputs, as the file has them, without the batch of one.
        test: likewise.

    Raises:
        Exception: whatever the quantizer or the runtime says.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    logging.getLogger().setLevel(logging.ERROR)
    model = onnx.load(str(path))
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, (1, *test.shape[1:]), strict=True):
        dim.Clear()
        dim.dim_value = size
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    if model.opset_import[0].version < LEAST_OPSET:
        model = onnx.version_converter.convert_version(model, LEAST_OPSET)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        plain, ready, made = (Path(folder) / f"{name}.onnx" for name in ("plain", "ready", "made"))
        onnx.save(model, str(plain))
        quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
        quantize_static(
            str(ready), str(made), _Inputs(model.graph.input[0].name, calibration),
            quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )  # fmt: skip
        session: Any = _session(made)
        name = session.get_inputs()[0].name
        found = [session.run(None, {name: each[None]}) for each in test]
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
