"""Runs an .onnx with ONNX Runtime's CPU provider; numpy only beside it.

A program of the integer graph has uint8 codes, each 128 more than ours: outside they are int8, as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.targets.errors import DeviceError, InputError
from paredown.targets.runners.litert import TensorInfo, signed, unsigned

#: On x86 without VNNI, sums of two products of a uint8 and an int8 saturate at int16; this keeps them exact.
PRECISE = "session.x64quantprecision"


def runtime() -> Any:
    """ONNX Runtime's package.

    Raises:
        DeviceError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise DeviceError(
            "onnxruntime is not installed", hint='pip install "paredown[onnxruntime]"'
        ) from None
    onnxruntime.set_default_logger_severity(4)
    return onnxruntime


class Runner:
    """A loaded .onnx of one input.

    Args:
        data: the file's bytes.
        threads: of ONNX Runtime.
        where: named in errors.
        precise: never saturate, also where that is slow: see `PRECISE`.

    Attributes:
        input: what it takes; codes are int8 here.
        outputs: what it gives.
        package: ONNX Runtime with its version.

    Raises:
        InputError: the bytes are not a model that ONNX Runtime loads.
    """

    def __init__(self, data: bytes, threads: int = 1, where: object = ".onnx", precise: bool = False) -> None:
        self._where, self._data = where, data
        self._ort = runtime()
        self._options = {PRECISE: "1"} if precise else {}
        try:
            self.session = self._session(threads)
        except Exception as error:  # noqa: BLE001  the binding's errors have no base but this
            raise InputError(
                "not an ONNX model that this runtime loads (truncated or damaged?)", where=where,
                hint="make it again with `paredown run`",
            ) from error  # fmt: skip
        self._input = self.session.get_inputs()[0]
        self._outputs = [output.name for output in self.session.get_outputs()]
        self.input = _info(self._input)
        self.outputs = tuple(_info(output) for output in self.session.get_outputs())
        self.package = f"onnxruntime {self._ort.__version__}"

    def _session(self, threads: int) -> Any:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4
        for key, value in self._options.items():
            options.add_session_config_entry(key, value)
        return self._ort.InferenceSession(self._data, options, providers=["CPUExecutionProvider"])

    def __call__(self, x: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Runs one input, (1, channels, height, width), int8 or in the model's own dtype; outputs alike.

        Raises:
            InputError: the model does not take this input, or stops on the way.
        """
        try:
            made = self.session.run(self._outputs, {self._input.name: self._given(x)})
        except Exception as error:  # noqa: BLE001  the binding's errors have no base but this
            shape, dtype = tuple(self._input.shape), self._input.type
            raise InputError(
                f"the model takes {dtype} {shape} and stops on {x.dtype} {x.shape}", where=self._where
            ) from error
        return tuple(signed(each) if each.dtype == np.uint8 else each for each in made)

    def bound(self, x: NDArray[Any]) -> Callable[[], object]:
        """A call with its input in place, for timing."""
        self(x)  # says what does not fit
        binding = self.session.io_binding()
        binding.bind_cpu_input(self._input.name, self._given(x))
        for name in self._outputs:
            binding.bind_output(name)
        return lambda: self.session.run_with_iobinding(binding)

    def _given(self, x: NDArray[Any]) -> NDArray[Any]:
        unsigned_here = self._input.type == "tensor(uint8)" and x.dtype == np.int8
        return np.ascontiguousarray(unsigned(x) if unsigned_here else x)


def _info(described: Any) -> TensorInfo:
    """An input or an output from the session's own description."""
    dtype = described.type.removeprefix("tensor(").removesuffix(")")
    return TensorInfo(tuple(described.shape), {"uint8": "int8", "float": "float32"}.get(dtype, dtype))


def load(data: bytes, threads: int = 1, where: object = ".onnx") -> Runner:
    """Loads a model; see `Runner`."""
    return Runner(data, threads, where)
