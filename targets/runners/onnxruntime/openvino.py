"""Runs an .onnx with OpenVINO's CPU plugin; numpy only beside it.

As for ONNX Runtime, codes of the file are uint8, each 128 more than ours: outside they are int8.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.targets.errors import DeviceError, InputError
from paredown.targets.runners.litert import TensorInfo, signed, unsigned

#: float32 stays float32: where a processor has bfloat16, OpenVINO would compute in that.
PRECISION = "f32"
DTYPES = {"u8": "int8", "i8": "int8", "f32": "float32", "f16": "float16", "f64": "float64"}


def runtime() -> Any:
    """OpenVINO's package.

    Raises:
        DeviceError: it is not installed.
    """
    try:
        import openvino
    except ImportError:
        raise DeviceError("openvino is not installed", hint='pip install "paredown[openvino]"') from None
    return openvino


class Runner:
    """A loaded .onnx of one input.

    Args:
        data: the file's bytes.
        threads: of OpenVINO.
        where: named in errors.

    Attributes:
        model: compiled.
        input: what it takes; codes are int8 here.
        outputs: what it gives.
        package: OpenVINO with its version.

    Raises:
        InputError: the bytes are not a model that OpenVINO loads.
    """

    def __init__(self, data: bytes, threads: int = 1, where: object = ".onnx") -> None:
        self._where, self._openvino = where, runtime()
        asked = {
            "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": PRECISION,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        }  # fmt: skip
        try:
            _check_whole(data)
            core = self._openvino.Core()
            self.model = core.compile_model(core.read_model(data), "CPU", asked)
            self.input = _info(self.model.input(0))
            self.outputs = tuple(_info(output) for output in self.model.outputs)
            self._request = self.model.create_infer_request()
        except Exception as error:  # noqa: BLE001  the binding's errors have no base but this
            raise InputError(
                "not an ONNX model that this runtime loads (truncated or damaged?)", where=where,
                hint="make it again with `paredown run`",
            ) from error  # fmt: skip
        self.package = f"openvino {self._openvino.__version__.partition('-')[0]}"

    def __call__(self, x: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Runs one input, (1, channels, height, width), int8 or in the model's own dtype; outputs alike.

        Raises:
            InputError: the model does not take this input, or stops on the way.
        """
        self.bound(x)
        made = [np.array(self._request.get_output_tensor(i).data) for i in range(len(self.outputs))]
        return tuple(signed(each) if each.dtype == np.uint8 else each for each in made)

    def bound(self, x: NDArray[Any]) -> Callable[[], object]:
        """A call with its input in place, for timing.

        Raises:
            InputError: as a call.
        """
        wanted = self.model.input(0).get_element_type().to_dtype()
        given = unsigned(x) if wanted == np.uint8 and x.dtype == np.int8 else x
        try:
            if given.dtype != wanted or given.shape != self.input.shape:
                raise ValueError("OpenVINO would convert it in silence")
            self._request.set_input_tensor(self._openvino.Tensor(np.ascontiguousarray(given)))
            self._request.infer()
        except Exception as error:  # noqa: BLE001  the binding's errors have no base but this
            shape, dtype = self.input.shape, np.dtype(wanted).name
            raise InputError(
                f"the model takes {dtype} {shape} and stops on {x.dtype} {x.shape}", where=self._where
            ) from error
        return self._request.infer


def _check_whole(data: bytes) -> None:
    """Refuses a file that is cut off: OpenVINO computes with what is left of it.

    The fields of a protobuf message have a tag and, these of a model all but numbers, a length. The last one
    that is written is the version of the operators (field 8).

    Raises:
        ValueError, IndexError: a field goes on where the file ends, or that one is not there.
    """
    at, fields = 0, set()

    def number() -> int:
        nonlocal at
        found = shift = 0
        while True:
            byte, at = data[at], at + 1
            found |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return found

    while at < len(data):
        tag = number()
        fields.add(tag >> 3)
        kind = tag & 7
        if kind == 0:
            number()
        else:
            length = number() if kind == 2 else {1: 8, 5: 4}.get(kind, len(data))
            at += length
    if at > len(data) or 8 not in fields:
        raise ValueError("cut off")


def _info(described: Any) -> TensorInfo:
    """An input or an output from the model's own description."""
    dtype = described.get_element_type().get_type_name()
    return TensorInfo(tuple(described.get_shape()), DTYPES.get(dtype, dtype))


def load(data: bytes, threads: int = 1, where: object = ".onnx") -> Runner:
    """Loads a model; see `Runner`."""
    return Runner(data, threads, where)
