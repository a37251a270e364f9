"""Programs on a device: their runtime's runner is brought there once, samples go in, outputs come out.

The runners (`targets/runners/run_litert.py`, `targets/runners/onnxruntime/run.py`,
`targets/runners/executorch/run.cpp`) have one command line, one
format of files and one JSON; what they share is here.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.targets.devices.counts import VARIABLE, read_counts
from paredown.targets.devices.device import Device, python_of
from paredown.targets.errors import DeviceError
from paredown.targets.own_code import own_code
from paredown.targets.runners.litert import TensorInfo

#: What a board needs of ours to run a .tflite; it goes there as one file that Python runs as it is.
LITERT_FILES = (
    "__init__.py", "targets/__init__.py", "targets/errors.py", "targets/runners/quiet.py", 
    "targets/runners/__init__.py", "targets/runners/litert.py", "targets/runners/run_litert.py",
)  # fmt: skip
LITERT_MAIN = "import sys\nfrom paredown.targets.runners.run_litert import main\nsys.exit(main())\n"
#: The same for an .onnx.
ONNX_FILES = (
    *LITERT_FILES, "targets/runners/onnxruntime/__init__.py", "targets/runners/onnxruntime/run.py",
    "targets/runners/onnxruntime/runner.py",
)  # fmt: skip
ONNX_MAIN = "import sys\nfrom paredown.targets.runners.onnxruntime.run import main\nsys.exit(main())\n"
#: The same with OpenVINO.
OPENVINO_FILES = (
    *LITERT_FILES, "targets/runners/onnxruntime/__init__.py", "targets/runners/onnxruntime/openvino.py",
    "targets/runners/onnxruntime/run_openvino.py",
)  # fmt: skip
OPENVINO_MAIN = (
    "import sys\nfrom paredown.targets.runners.onnxruntime.run_openvino import main\nsys.exit(main())\n"
)
CHUNK_BYTES = 32 << 20  # of inputs that are sent at once: boards have little room in /tmp
TIMEOUT = 120.0  # seconds of a run, and of each sample of it: emulators take them
WARM_UP = 2
COUNTS, COUNTED_RUNS = "counts", 10

Tick = Callable[[int, int], None]
#: For every sample its outputs, each with a batch of one.
Outputs = list[tuple[NDArray[Any], ...]]


@dataclass(frozen=True)
class Program:
    """What is run.

    Attributes:
        runtime: of `executorch`, `litert`, `onnxruntime` and `openvino`.
        data: the file's bytes.
        input: one sample.
        outputs: of one sample.
        threads: of the runtime.
        where: names it in errors.
    """

    runtime: str
    data: bytes
    input: TensorInfo
    outputs: tuple[TensorInfo, ...]
    threads: int = 1
    where: str = "program"

    @property
    def file(self) -> str:
        """Its name on the device."""
        return f"{hashlib.sha256(self.data).hexdigest()[:16]}.{self.runtime}"


@dataclass(frozen=True)
class Timing:
    """How one program runs.

    Attributes:
        times_ms: of each run, in order; of an emulated device they mean nothing.
        load_ms: until it could run.
        memory_mib: peak of the process, runtime included; None where it was not measured.
        version: of the runtime that ran it.
        instructions: class -> per inference; empty where no emulator counted.
    """

    times_ms: tuple[float, ...]
    load_ms: float | None = None
    memory_mib: float | None = None
    version: str = ""
    instructions: Mapping[str, int] | None = None

    def percentile(self, share: float) -> float:
        """Milliseconds that so many percent of the runs took at most."""
        return float(np.percentile(self.times_ms, share))

    @property
    def million_instructions(self) -> float:
        """Of one inference, all classes.

        Raises:
            DeviceError: nothing counted them.
        """
        if self.instructions is None:
            raise DeviceError("no instructions were counted")
        return self.instructions["total"] / 1e6


class DevicePrograms:
    """Runs programs on one device.

    Args:
        device: connected.
        arch: of its userland, as `uname -m` says it.
        log: told what is being brought there.
    """

    def __init__(self, device: Device, arch: str, log: Callable[[str], None] = lambda line: None) -> None:
        self.device, self.arch, self.log = device, arch, log
        self._runners: dict[str, tuple[str, ...]] = {}
        self._pushed: set[str] = set()
        #: Package -> version, of the runtimes that have run.
        self.versions: dict[str, str] = {}

    def run(self, program: Program, inputs: NDArray[Any], tick: Tick = lambda done, total: None) -> Outputs:
        """The outputs of every sample.

        Args:
            program: what to run.
            inputs: (n, channels, height, width) of the program's dtype.
            tick: samples done, of how many.

        Returns:
            For every sample its outputs, each with a batch of one.

        Raises:
            DeviceError: the device or the runner failed; the line is the runner's own where it has one.
        """
        found: Outputs = []
        step = max(1, CHUNK_BYTES // program.input.bytes)
        for start in range(0, len(inputs), step):
            part = inputs[start : start + step]

            def on_line(line: str, start: int = start) -> None:
                if match := re.fullmatch(r"(\d+)/\d+", line.strip()):
                    tick(start + int(match[1]), len(inputs))

            _, data = self._execute(program, part, 0, on_line)
            found += _outputs(program, data, len(part))
            tick(len(found), len(inputs))
        return found

    def time(self, program: Program, x: NDArray[Any], runs: int) -> Timing:
        """Times one sample, (1, channels, height, width), after a warm-up; counts instead on an emulator.

        Raises:
            DeviceError: as `run`.
        """
        if self.device.emulated:
            return self._count(program, x)
        report, _ = self._execute(program, x, runs)
        return Timing(
            tuple(report["times_ms"]), report["load_ms"], report["peak_rss_kib"] / 1024, report["version"]
        )

    def _count(self, program: Program, x: NDArray[Any]) -> Timing:
        """Instructions of one inference, one thread; what the emulator's clock says is left out."""
        report, _ = self._execute(replace(program, threads=1), x, COUNTED_RUNS, counts=COUNTS)
        with tempfile.TemporaryDirectory() as folder:
            self.device.pull(COUNTS, Path(folder) / COUNTS)
            counts = read_counts((Path(folder) / COUNTS).read_text(), self.device.address)
        return Timing((), version=report["version"], instructions=asdict(counts))

    def _execute(
        self,
        program: Program,
        inputs: NDArray[Any],
        runs: int,
        on_line: Callable[[str], None] | None = None,
        counts: str = "",
    ) -> tuple[dict[str, Any], bytes]:
        """One start of the runner: its JSON and the outputs; `counts` is for what an emulator counts."""
        runner = self._runner(program.runtime)
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder)
            if program.file not in self._pushed:
                (local / "program").write_bytes(program.data)
                self.device.push(local / "program", program.file)
                self._pushed.add(program.file)
            (local / "in").write_bytes(np.ascontiguousarray(inputs).tobytes())
            self.device.push(local / "in", "in.bin")
            command = [*runner, program.file, "--inputs", "in.bin", "--outputs", "out.bin"]
            command += ["--runs", str(runs), "--warmup", str(min(runs, WARM_UP))]
            command += ["--threads", str(program.threads), *(["--marks"] if counts else [])]
            done = self.device.run(
                command, timeout=TIMEOUT * (1 + len(inputs) + runs), on_line=on_line,
                environment={VARIABLE: counts} if counts else None,
            )  # fmt: skip
            self.device.pull("out.bin", local / "out")
            try:
                report = json.loads(done.out)
                report["times_ms"], report["load_ms"], report["peak_rss_kib"]
                package, _, version = report["version"].rpartition(" ")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DeviceError(
                    f"the runner of {program.runtime} says nothing that can be read",
                    where=self.device.address,
                ) from error
            self.versions[package.replace("_", "-") or program.runtime] = version
            return report, (local / "out").read_bytes()

    def _runner(self, runtime: str) -> tuple[str, ...]:
        """The command of a runtime's runner, which is brought there when it is first needed."""
        if runtime not in self._runners:
            self.log(f"{runtime}: runner to {self.device.address}")
            archives = {
                "litert": litert_archive, "onnxruntime": onnxruntime_archive, "openvino": openvino_archive,
            }  # fmt: skip
            if make := archives.get(runtime):
                self._runners[runtime] = self._archive(f"run_{runtime}.pyz", make())
            else:
                self._runners[runtime] = self._executorch()
        return self._runners[runtime]

    def _archive(self, name: str, data: bytes) -> tuple[str, ...]:
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / name
            archive.write_bytes(data)
            self.device.push(archive, archive.name)
        return python_of(self.device), name

    def _executorch(self) -> tuple[str, ...]:
        from paredown.targets.host.cache import cache_folder
        from paredown.targets.runners.executorch_build import build

        built = build(self.arch, cache_folder())
        for file in sorted(path for path in built.rglob("*") if path.is_file()):
            self.device.push(file, f"executorch/{file.relative_to(built).as_posix()}")
        return ("executorch/run",)


def litert_archive() -> bytes:
    """The LiteRT runner as one file for `python3 FILE`; the same bytes every time."""
    return _archived(LITERT_FILES, LITERT_MAIN)


def onnxruntime_archive() -> bytes:
    """The same of ONNX Runtime."""
    return _archived(ONNX_FILES, ONNX_MAIN)


def openvino_archive() -> bytes:
    """The same of OpenVINO."""
    return _archived(OPENVINO_FILES, OPENVINO_MAIN)


def _archived(files: tuple[str, ...], start: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        members = {name: path.read_text() for name, path in own_code(files).items()}
        members["__main__.py"] = start
        for name, text in sorted(members.items()):
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), text, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _outputs(program: Program, data: bytes, samples: int) -> Outputs:
    """The runner's file of outputs, cut up."""
    each = sum(tensor.bytes for tensor in program.outputs)
    if len(data) != samples * each:
        raise DeviceError(
            f"{program.where} gave {len(data)} bytes for {samples} samples, not {samples * each}",
            hint="is it the model that the bundle describes?",
        )
    file = io.BytesIO(data)

    def read(tensor: TensorInfo) -> NDArray[Any]:
        return np.frombuffer(file.read(tensor.bytes), tensor.dtype).reshape(tensor.shape)

    return [tuple(read(tensor) for tensor in program.outputs) for _ in range(samples)]
