"""Language models on the runtimes that a device can have: numpy and LiteRT, or ExecuTorch's own program."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paredown.apps.chat.device.language_model import LanguageModel
from paredown.targets.errors import DeviceError, InputError, UsageError
from paredown.targets.runners.litert import interpreter_class
from paredown.targets.runners.quiet import quiet

FILES = {"executorch": "model.pte", "litert": "model.tflite"}
RUNNER = Path("executorch", "language")  # where a device keeps it; beside it, its libraries


def open_model(folder: Path, runtime: str | None = None, threads: int = 1) -> LanguageModel:
    """The model of an unpacked bundle.

    Args:
        folder: of the bundle.
        runtime: "executorch" or "litert"; None = the first one that the bundle has a program for.
        threads: that it computes with.

    Raises:
        UsageError: no such runtime, or the bundle has no program for it.
        InputError: the program is damaged.
        DeviceError: the runtime is not installed.
    """
    present = [name for name, file in FILES.items() if (folder / file).is_file()]
    if runtime is not None and runtime not in present or not present:
        raise UsageError(
            f"no program for {runtime or 'any runtime'}", where=folder,
            hint=f"it has one for {' and '.join(present) or 'none'}",
        )  # fmt: skip
    runtime = runtime or present[0]
    path = folder / FILES[runtime]
    if runtime == "executorch":
        return ExecutorchModel(path, threads, folder / RUNNER)
    return LitertModel(path.read_bytes(), threads, path)


def load_model(program: bytes, runtime: str, threads: int = 1, where: object = "program") -> LanguageModel:
    """A model from a program's bytes; raises as `open_model`."""
    if runtime not in FILES:
        raise UsageError(f"unknown runtime `{runtime}`", hint=f"known: {', '.join(FILES)}")
    if runtime == "litert":
        return LitertModel(program, threads, where)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILES[runtime]
        path.write_bytes(program)
        return ExecutorchModel(path, threads, where=where)  # it is loaded by the time the file is removed


class _Model:
    """What both runtimes share: the position and the checks; tokens are read chunk by chunk."""

    vocabulary: int
    context: int
    chunk: int

    def __init__(self) -> None:
        self.position = 0

    def feed(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Reads on; see `LanguageModel.feed`."""
        given = np.asarray(tokens, np.int32)
        if not given.size or given.min() < 0 or given.max() >= self.vocabulary:
            raise ValueError(f"tokens of 0..{self.vocabulary - 1}, one or more, not {list(tokens)[:4]}")
        if self.position + given.size > self.context:
            raise ValueError(f"{given.size} tokens after {self.position} are beyond {self.context}")
        return self._read(given)

    def reset(self) -> None:
        """Forgets all that was read: what lies in the cache beyond the position is never seen."""
        self.position = 0

    def _read(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        raise NotImplementedError


class ExecutorchModel(_Model):
    """A .pte in a process of its own, which needs no torch; see targets/runners/executorch/language.cpp.

    Args:
        path: of the program.
        threads: of ExecuTorch's pool.
        runner: the process's program; where there is none, one is built for this machine.
        where: names the program in errors.

    Raises:
        InputError: it is no language model that this runtime loads.
        DeviceError: the runtime does not run here.
    """

    def __init__(
        self, path: Path, threads: int = 1, runner: Path | None = None, where: object | None = None
    ) -> None:
        super().__init__()
        if runner is None or not runner.is_file():
            runner = _built()
        self._where, self._path = where or path, path
        self._process = subprocess.Popen(
            [runner.absolute(), path.absolute(), "--threads", str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        stdin, stdout, stderr = self._process.stdin, self._process.stdout, self._process.stderr
        assert stdin and stdout and stderr  # they were asked for
        self._to, self._from, self._errors = stdin, stdout, stderr
        facts = json.loads(self._output(self._from.readline()))
        self.vocabulary, self.context, self.chunk = facts["vocabulary"], facts["context"], facts["chunk"]

    def __del__(self) -> None:
        """Ends the process."""
        process = getattr(self, "_process", None)
        if process is not None:
            process.kill()
            for pipe in (self._to, self._from, self._errors):
                pipe.close()
            process.wait()

    def _read(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        logits = b""
        for first in range(0, len(tokens), self.chunk):
            part = tokens[first : first + self.chunk]
            head = np.array([len(part), self.position], np.int32)
            try:
                self._to.write(head.tobytes() + part.tobytes())
                self._to.flush()
            except OSError:
                self._output(b"")
            logits = self._output(self._from.read(4 * self.vocabulary), 4 * self.vocabulary)
            self.position += len(part)
        return np.frombuffer(logits, np.float32)

    def _output(self, data: bytes, length: int = 1) -> bytes:
        """What the process said, if it is whole; else why it ended."""
        if len(data) >= length:
            return data
        said = self._errors.read().decode(errors="replace").strip()
        status = self._process.wait()
        line = said.replace(str(self._path), "").strip(": ") or f"ended with exit code {status}"
        kind = InputError if status == InputError.exit_code else DeviceError
        raise kind(line, where=self._where)


def _built() -> Path:
    from paredown.targets.host.cache import cache_folder
    from paredown.targets.runners.executorch_build import build

    return build("native", cache_folder()) / RUNNER.name


class LitertModel(_Model):
    """A .tflite of two signatures, `prefill` for whole chunks and `decode` for single tokens.

    Args:
        data: the file's bytes.
        threads: of the XNNPACK delegate.
        where: names it in errors.

    Raises:
        InputError: it is no language model that this interpreter loads.
        DeviceError: no interpreter is installed.
    """

    def __init__(self, data: bytes, threads: int = 1, where: object = ".tflite") -> None:
        super().__init__()
        self._where = where
        # The interpreter reads offsets unchecked: a file that does not even begin as one can crash it.
        if len(data) < 16 or data[4:8] != b"TFL3":
            raise InputError("not a TFLite model (truncated or damaged?)", where=where)
        with quiet():
            try:
                self._interpreter = interpreter_class()(model_content=data, num_threads=threads)
                self._interpreter.allocate_tensors()  # or the delegate announces itself at the first token
                self._prefill = self._interpreter.get_signature_runner("prefill")
                self._decode = self._interpreter.get_signature_runner("decode")
                inputs = self._prefill.get_input_details()
                shapes = {name: tuple(map(int, entry["shape"])) for name, entry in inputs.items()}
                logits = self._decode.get_output_details()["logits"]
                self.chunk = shapes.pop("tokens")[1]
                shapes.pop("input_pos")
                self.context = max(shape[2] for shape in shapes.values())  # that of a global layer's cache
                self.vocabulary = int(logits["shape"][-1])
            except (ValueError, RuntimeError, KeyError, IndexError) as error:
                raise InputError(
                    "not a language model that this interpreter loads (truncated or damaged?)", where=where,
                    hint="make it again with `paredown run`",
                ) from error  # fmt: skip
        self._cache = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}

    def _read(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """All but the last token in chunks, filled up with what is written over later; it by `decode`."""
        before = tokens[:-1]
        while len(before) > 1 and self.position + self.chunk <= self.context:
            part, before = before[: self.chunk], before[self.chunk :]
            padded = np.zeros((1, self.chunk), np.int32)
            padded[0, : len(part)] = part
            self._cache = self._prefill(tokens=padded, input_pos=self._positions(self.chunk), **self._cache)
            self.position += len(part)
        for token in (*before, tokens[-1]):
            given = np.array([[token]], np.int32)
            outputs = self._decode(tokens=given, input_pos=self._positions(1), **self._cache)
            logits = outputs.pop("logits")
            self._cache = outputs
            self.position += 1
        return logits.reshape(-1)

    def _positions(self, length: int) -> NDArray[np.int32]:
        return np.arange(self.position, self.position + length, dtype=np.int32)
