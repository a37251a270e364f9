"""The device-side TFLite runner: which interpreter it finds, and what it says about damaged files."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from paredown.targets.errors import DeviceError, InputError
from paredown.targets.runners import litert

ROOT = Path(__file__).parents[3]


class Fake:
    """An interpreter that doubles its input."""

    def __init__(self, model_content: bytes, num_threads: int) -> None:
        self.threads, self.value = num_threads, None
        if model_content.endswith(b"bad"):
            raise ValueError("Model provided has model identifier 'xxxx'")

    def allocate_tensors(self) -> None:
        pass

    def get_input_details(self) -> list:
        return [{"index": 0, "shape": np.array([1, 2, 3, 4]), "dtype": np.int8}]

    def get_output_details(self) -> list:
        return [{"index": 1}, {"index": 2}]

    def set_tensor(self, index: int, value: np.ndarray) -> None:
        if value.shape != (1, 2, 3, 4):
            raise ValueError("Cannot set tensor: Dimension mismatch")
        self.value = value

    def invoke(self) -> None:
        if self.value.max() == 99:
            raise RuntimeError("Input tensor 3 lacks data")

    def get_tensor(self, index: int) -> np.ndarray:
        return self.value if index == 1 else self.value.reshape(1, -1)


MODULES = ["ai_edge_litert.interpreter", "tflite_runtime.interpreter", "tensorflow.lite"]


def only(monkeypatch: pytest.MonkeyPatch, available: str | None) -> None:
    """Makes one of the runtimes importable and hides the others."""
    for name in MODULES:
        top, _, leaf = name.partition(".")
        if name == available:
            package, module = types.ModuleType(top), types.ModuleType(name)
            module.Interpreter = Fake
            setattr(package, leaf, module)
            monkeypatch.setitem(sys.modules, top, package)
            monkeypatch.setitem(sys.modules, name, module)
        else:
            monkeypatch.setitem(sys.modules, top, None)
            monkeypatch.setitem(sys.modules, name, None)


MODEL = b"\0\0\0\0TFL3" + b"\0" * 20


@pytest.mark.parametrize("available", MODULES)
def test_each_runtime_is_found_when_it_is_the_only_one(monkeypatch, available):
    only(monkeypatch, available)
    runner = litert.Runner(MODEL, threads=3)
    assert isinstance(runner.interpreter, Fake)
    assert runner.interpreter.threads == 3


def test_the_newest_runtime_wins(monkeypatch):
    only(monkeypatch, "tflite_runtime.interpreter")
    package = types.ModuleType("ai_edge_litert.interpreter")
    package.Interpreter = type("Newest", (Fake,), {})
    monkeypatch.setitem(sys.modules, "ai_edge_litert", types.ModuleType("ai_edge_litert"))
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", package)
    assert type(litert.Runner(MODEL).interpreter).__name__ == "Newest"


def test_no_runtime_is_a_device_error_that_says_what_to_install(monkeypatch):
    only(monkeypatch, None)
    with pytest.raises(DeviceError, match="pip install ai-edge-litert"):
        litert.Runner(MODEL)


def test_layouts_are_turned_both_ways(monkeypatch):
    only(monkeypatch, MODULES[0])
    x = np.arange(24, dtype=np.int8).reshape(1, 4, 2, 3)
    runner = litert.Runner(MODEL)
    four, two = runner(x)
    assert np.array_equal(four, x)
    assert np.array_equal(two, x.transpose(0, 2, 3, 1).reshape(1, -1))
    assert four.flags["C_CONTIGUOUS"]
    runner.bound(x)()


@pytest.mark.parametrize("data", [b"", b"TFL3", b"\0" * 100, b"PK\3\4" + b"x" * 100, MODEL[:12]])
def test_what_is_no_model_is_refused_before_an_interpreter_reads_it(data):
    with pytest.raises(InputError, match=r"model\.tflite: not a TFLite model"):
        litert.Runner(data, where="model.tflite")


def test_errors_of_the_interpreter_are_input_errors(monkeypatch):
    only(monkeypatch, MODULES[0])
    with pytest.raises(InputError, match="m: not a TFLite model that this interpreter loads"):
        litert.Runner(MODEL + b"bad", where="m")
    runner = litert.Runner(MODEL, where="m")
    with pytest.raises(InputError, match=r"m: the model takes int8 \(1, 2, 3, 4\) \(NHWC\), not int8 \(1, 5"):
        runner(np.zeros((1, 4, 5, 3), np.int8))
    with pytest.raises(InputError, match="m: the model does not run: Input tensor 3 lacks data"):
        runner(np.full((1, 4, 2, 3), 99, np.int8))


def test_quiet_silences_native_code_and_gives_standard_error_back(capfd):
    import os

    with litert.quiet():
        os.write(2, b"chatter")
    os.write(2, b"words")
    assert capfd.readouterr().err == "words"


def test_quiet_gives_standard_error_back_after_an_error(capfd):
    import os

    with pytest.raises(RuntimeError), litert.quiet():
        raise RuntimeError
    os.write(2, b"words")
    assert capfd.readouterr().err == "words"


def test_it_needs_numpy_and_nothing_heavier():
    code = (
        "import sys; import paredown.targets.runners.litert; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'executorch', 'ai_edge_litert', 'cv2')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
