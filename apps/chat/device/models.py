"""Language models on the runtimes that a device can have: numpy and LiteRT, or ExecuTorch's own program."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import io
import json
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Protocol

import numpy as np
from numpy.typing import NDArray

from paredown.apps.chat.device.language_model import LanguageModel
from paredown.targets.errors import DeviceError, InputError, UsageError
from paredown.targets.runners.litert import interpreter_class
from paredown.targets.runners.quiet import quiet

FILES = {"executorch": "model.pte", "litert": "model.tflite"}
_GIVEN = {"tokens", "input_pos"}  # of a signature's inputs; the others are the cache
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
    return LitertModel(path, threads)


def load_model(program: bytes, runtime: str, threads: int = 1, where: object = "program") -> LanguageModel:
    """A model from a program's bytes; raises as `open_model`."""
    if runtime not in FILES:
        raise UsageError(f"unknown runtime `{runtime}`", hint=f"known: {', '.join(FILES)}")
    with tempfile.TemporaryDirectory() as folder:  # it is loaded, or mapped, by the time the file is removed
        path = Path(folder) / FILES[runtime]
        path.write_bytes(program)
        if runtime == "litert":
            return LitertModel(path, threads, where)
        return ExecutorchModel(path, threads, where=where)


class _Model:
    """What both runtimes share: the position and the checks; tokens are read chunk by chunk."""

    vocabulary: int
    context: int
    chunk: int

    def __init__(self) -> None:
        self.position = 0

    def feed(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Reads on; see `LanguageModel.feed`."""
        return self._read(self._checked(tokens), True)

    def prefill(self, tokens: Sequence[int]) -> None:
        """Reads on; see `LanguageModel.prefill`."""
        self._read(self._checked(tokens), False)

    def _checked(self, tokens: Sequence[int]) -> NDArray[np.int32]:
        given = np.asarray(tokens, np.int32)
        if not given.size or given.min() < 0 or given.max() >= self.vocabulary:
            raise ValueError(f"tokens of 0..{self.vocabulary - 1}, one or more, not {list(tokens)[:4]}")
        if self.position + given.size > self.context:
            raise ValueError(f"{given.size} tokens after {self.position} are beyond {self.context}")
        return given

    def reset(self) -> None:
        """Forgets all that was read: what lies in the cache beyond the position is never seen."""
        self.position = 0

    def _read(self, tokens: NDArray[np.int32], wanted: bool) -> NDArray[np.float32]:
        """Reads on; the logits after the last token where they are wanted."""
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
        assert stdin and stderr and isinstance(stdout, io.BufferedReader)  # they were asked for
        self._to, self._from, self._errors = stdin, stdout, stderr
        line = self._from.readline()
        self._go_on(bool(line))
        facts = json.loads(line)
        self.vocabulary, self.context, self.chunk = facts["vocabulary"], facts["context"], facts["chunk"]
        _widen(self._from, 4 * self.vocabulary)

    def __del__(self) -> None:
        """Ends the process."""
        process = getattr(self, "_process", None)
        if process is not None:
            process.kill()
            for pipe in (self._to, self._from, self._errors):
                pipe.close()
            process.wait()

    def _read(self, tokens: NDArray[np.int32], wanted: bool) -> NDArray[np.float32]:
        for first in range(0, len(tokens), self.chunk):
            part = tokens[first : first + self.chunk]
            last = wanted and first + self.chunk >= len(tokens)
            head = np.array([len(part) if last else -len(part), self.position], np.int32)
            try:
                self._to.write(head.tobytes() + part.tobytes())
                self._to.flush()
            except OSError:
                self._go_on(False)
            logits = np.empty(self.vocabulary if last else 1, np.float32)
            self._go_on(self._from.readinto(logits.data.cast("B")) == logits.nbytes)
            self.position += len(part)
        return logits

    def _go_on(self, whole: bool) -> None:
        """Nothing where the process said all it had to; else why it ended."""
        if whole:
            return
        said = self._errors.read().decode(errors="replace").strip()
        status = self._process.wait()
        line = said.replace(str(self._path), "").strip(": ") or f"ended with exit code {status}"
        kind = InputError if status == InputError.exit_code else DeviceError
        raise kind(line, where=self._where)


def _widen(pipe: IO[bytes], size: int) -> None:
    """Makes room in a pipe for so many bytes at once: by its usual 64 KiB a megabyte takes milliseconds.

    Where the system has no such call or no such room it stays as it is. Linux gives everyone 1 MiB at most.
    """
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, min(size, 1 << 20))


def _built() -> Path:
    from paredown.targets.host.cache import cache_folder
    from paredown.targets.runners.executorch_build import build

    return build("native", cache_folder()) / RUNNER.name


class LitertModel(_Model):
    """A .tflite of signatures: `prefill` for whole chunks, `decode` for single tokens, `decode_N` before N.

    Args:
        path: of the program.
        threads: of the XNNPACK delegate.
        where: names the program in errors.

    Raises:
        InputError: it is no language model that this runtime loads.
        DeviceError: no runtime is installed.
    """

    def __init__(self, path: Path, threads: int = 1, where: object | None = None) -> None:
        super().__init__()
        with path.open("rb") as file:
            # The runtime reads offsets unchecked: a file that does not even begin as one can crash it.
            head = file.read(16)
        if len(head) < 16 or head[4:8] != b"TFL3":
            raise InputError("not a TFLite model (truncated or damaged?)", where=where or path)
        try:
            engine = _engine()
            with quiet():
                self._signatures = engine(path, threads)
                shapes = self._signatures.shapes
                self.chunk = shapes["tokens"][1]
                held = [shape[2] for name, shape in shapes.items() if name not in _GIVEN]
                self.context = max(held)  # that of a global layer's cache
                self.vocabulary = self._signatures.vocabulary
                reaches = [key.removeprefix("decode_") for key in self._signatures.keys]
                self._reaches = sorted(int(reach) for reach in reaches if reach.isdecimal())
        except (ValueError, RuntimeError, KeyError, IndexError) as error:
            raise InputError(
                "not a language model that this runtime loads (truncated or damaged?)", where=where or path,
                hint="make it again with `paredown run`",
            ) from error  # fmt: skip
        weakref.finalize(self, self._signatures.close)

    def _read(self, tokens: NDArray[np.int32], wanted: bool) -> NDArray[np.float32]:
        """In chunks, filled up with what is written over later; a last token with logits by `decode`."""
        before = tokens[:-1] if wanted else tokens
        logits = np.zeros(0, np.float32)
        while len(before) > 1 and self.position + self.chunk <= self.context:
            part, before = before[: self.chunk], before[self.chunk :]
            padded = np.zeros((1, self.chunk), np.int32)
            padded[0, : len(part)] = part
            self._signatures.run("prefill", padded, self._positions(self.chunk))
            self.position += len(part)
        for token in (*before, *tokens[len(tokens) - wanted :]):
            short = (f"decode_{reach}" for reach in self._reaches if self.position < reach)
            given = np.array([[token]], np.int32)
            logits = self._signatures.run(next(short, "decode"), given, self._positions(1))
            self.position += 1
        return logits

    def _positions(self, length: int) -> NDArray[np.int32]:
        return np.arange(self.position, self.position + length, dtype=np.int32)


class _Signatures(Protocol):
    """A loaded .tflite and its cache.

    Attributes:
        shapes: of `prefill`'s inputs.
        keys: the signatures' names.
        vocabulary: logits of a token.
    """

    shapes: dict[str, tuple[int, ...]]
    keys: list[str]
    vocabulary: int

    def run(self, key: str, tokens: NDArray[np.int32], positions: NDArray[np.int32]) -> NDArray[np.float32]:
        """Reads tokens (1, T) into the cache; the logits (vocabulary,), or none of `prefill`."""

    def close(self) -> None:
        """Frees it."""


def _engine() -> Callable[[Path, int], _Signatures]:
    """LiteRT's own interface, in one cache; the slower interpreter where that cannot be imported."""
    try:
        with quiet():
            from ai_edge_litert import compiled_model, options  # noqa: F401  (as old as the arguments used)
    except ImportError as error:
        print(f"note: {error}: the slower interpreter of LiteRT answers", file=sys.stderr)
        return _Interpreted
    return _Compiled


class _Compiled:
    """The signatures' caches are one: each is given the same memory to read and to write.

    A token then changes its own rows alone. Passed in and out as values, the cache is copied three times at
    each token, which takes as long as the weights do.
    """

    def __init__(self, path: Path, threads: int) -> None:
        from ai_edge_litert.compiled_model import CompiledModel
        from ai_edge_litert.cpu_options import CpuOptions
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
        from ai_edge_litert.options import Options

        _hush_at_exit()
        # It checks the file's offsets, which the other follows unchecked, and computes nothing.
        plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        Interpreter(model_path=str(path), experimental_op_resolver_type=plain)
        # Weights as the kernels want them, once for all signatures; the name stands for no file.
        options = CpuOptions(num_threads=threads, xnnpack_weight_cache_path=":memory")
        model = CompiledModel.from_file(str(path), options=Options(cpu_options=options))
        self.keys = list(model.get_signature_list())
        details = model.get_input_tensor_details("prefill")
        self.shapes = {name: tuple(map(int, entry["shape"])) for name, entry in details.items()}
        self.vocabulary = int(model.get_output_tensor_details("decode")["logits"]["shape"][-1])
        self._given = {
            key: {name: model.create_input_buffer_by_name(key, name) for name in _GIVEN} for key in self.keys
        }
        self._cache = {
            name: model.create_input_buffer_by_name("prefill", name)
            for name in self.shapes if name not in _GIVEN
        }  # fmt: skip
        for name, buffer in self._cache.items():
            buffer.write(np.zeros(self.shapes[name], np.float32))
        self._logits = model.create_output_buffer_by_name("decode", "logits")
        self._model = model

    def run(self, key: str, tokens: NDArray[np.int32], positions: NDArray[np.int32]) -> NDArray[np.float32]:
        given = self._given[key]
        given["tokens"].write(tokens)
        given["input_pos"].write(positions)
        if key == "prefill":
            self._model.run_by_name(key, given | self._cache, self._cache)
            return np.zeros(0, np.float32)
        self._model.run_by_name(key, given | self._cache, self._cache | {"logits": self._logits})
        logits: NDArray[np.float32] = self._logits.read(self.vocabulary, np.float32)
        return logits

    def close(self) -> None:
        with quiet():  # it tells of every accelerator that it did not use
            del self._model, self._given, self._cache, self._logits


@functools.cache
def _hush_at_exit() -> None:
    """LiteRT has an environment of its own that tells of its end when the process is already over."""
    atexit.register(lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), 2))


class _Interpreted:
    """The cache goes into each call and comes out of it."""

    def __init__(self, path: Path, threads: int) -> None:
        interpreter = interpreter_class()(model_path=str(path), num_threads=threads)
        interpreter.allocate_tensors()  # or the delegate announces itself at the first token
        self.keys = ["prefill", "decode"]
        self._runners = {key: interpreter.get_signature_runner(key) for key in self.keys}
        inputs = self._runners["prefill"].get_input_details()
        self.shapes = {name: tuple(map(int, entry["shape"])) for name, entry in inputs.items()}
        self.vocabulary = int(self._runners["decode"].get_output_details()["logits"]["shape"][-1])
        held = self.shapes.keys() - _GIVEN
        self._cache = {name: np.zeros(self.shapes[name], np.float32) for name in held}

    def run(self, key: str, tokens: NDArray[np.int32], positions: NDArray[np.int32]) -> NDArray[np.float32]:
        self._cache = self._runners[key](tokens=tokens, input_pos=positions, **self._cache)
        logits: NDArray[np.float32] = self._cache.pop("logits", np.zeros(0, np.float32))
        return logits.reshape(-1)

    def close(self) -> None:
        self._runners.clear()
