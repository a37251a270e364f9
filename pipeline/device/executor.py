"""Where a program is run to be proved: in this process, or on a device behind a transport."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from paredown.calibration.array_input import AnyInput
from paredown.calibration.datasets import Dataset
from paredown.pipeline.bundle.finished.apart import run_apart
from paredown.pipeline.lower.runtimes import runtime
from paredown.pipeline.store.event import Tell, nobody, steps
from paredown.targets.devices.programs import DevicePrograms, Outputs, Program, Tick, Timing
from paredown.targets.host.host import EXTRA_RUNTIMES, Machine, having, this_machine

if TYPE_CHECKING:
    from paredown.pipeline.lower.integer import Affine
    from paredown.targets.cards.card import Target
    from paredown.targets.devices.device import Device
    from paredown.targets.devices.facts import Facts

LOCAL = ("local", "local:")
SIMULATED = "simulated:"  # a microcontroller's interpreter, on this machine
CHUNK = 64  # images that are preprocessed and sent at once


class Executor(Protocol):
    """What runs programs.

    Attributes:
        machine: whose figures these are.
        emulated: whether milliseconds and memory mean nothing.
        local: whether it is this machine.
        exact: whether its int8 kernels are those of the integer graph; LiteRT Micro's round otherwise.
    """

    emulated: bool
    local: bool
    exact: bool

    @property
    def machine(self) -> Machine:
        """See above."""

    def run(self, program: Program, inputs: NDArray[Any], tick: Tick) -> Outputs:
        """The outputs of every sample, (n, channels, height, width) in, each output with a batch of one."""

    def time(
        self, programs: Mapping[str, Program], x: NDArray[Any], runs: int, memory: bool, tick: Tick
    ) -> dict[str, Timing]:
        """Times every program with the same sample, cast to what the program takes.

        Args:
            programs: variant -> what to time.
            x: a sample, (1, channels, height, width).
            runs: of each.
            memory: whether the peak has to be known; it may be even so.
            tick: progress.
        """


class Here:
    """This process, through the pipeline's own runtimes.

    Args:
        own: whether this machine made the programs; a stranger's run in a process of their own first.
    """

    emulated, local, exact = False, True, True

    def __init__(self, own: bool = True) -> None:
        self.machine, self._own = this_machine(), own
        self._loaded: dict[bytes, Any] = {}

    def run(self, program: Program, inputs: NDArray[Any], tick: Tick) -> Outputs:
        """See `Executor`."""
        runner, found = self._load(program), []
        for index in range(len(inputs)):
            found.append(runner(inputs[index : index + 1]))
            tick(index + 1, len(inputs))
        return found

    def time(
        self, programs: Mapping[str, Program], x: NDArray[Any], runs: int, memory: bool, tick: Tick
    ) -> dict[str, Timing]:
        """See `Executor`; interleaved, memory in a process of its own for each."""
        from paredown.pipeline.device.timing import interleaved

        samples = {name: x.astype(program.input.dtype) for name, program in programs.items()}
        peaks = _peaks(programs, samples) if memory else {}
        runners = {name: (self._load(program), samples[name]) for name, program in programs.items()}
        times = interleaved(runners, runs, tick)
        return {name: Timing(tuple(ms), memory_mib=peaks.get(name)) for name, ms in times.items()}

    def _load(self, program: Program) -> Any:
        if program.data not in self._loaded:
            if not self._own:
                run_apart(program)
            loaded = runtime(program.runtime).load(program.data, program.threads, program.where)
            self._loaded[program.data] = loaded
            if program.runtime in EXTRA_RUNTIMES:
                self.machine = having(self.machine, program.runtime)
        return self._loaded[program.data]


def _peaks(programs: Mapping[str, Program], samples: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """Peak memory of each program, in MiB, in a process of its own."""
    from paredown.pipeline.device.timing import peak_memory

    with tempfile.TemporaryDirectory() as folder:
        asked = {}
        for name, program in programs.items():
            path = Path(folder) / program.file
            path.write_bytes(program.data)
            asked[name] = (program.runtime, path, samples[name])
        return peak_memory(asked)


class OnDevice:
    """A device behind a transport.

    Args:
        device: connected.
        log: told what is being brought there.
    """

    local, exact = False, True

    def __init__(self, device: Device, log: Callable[[str], None]) -> None:
        from paredown.targets.devices.facts import machine

        self.device, self.emulated = device, device.emulated
        facts = self.look()
        self._machine = machine(device.address, facts)
        self._programs = DevicePrograms(device, facts.arch, log)

    @property
    def machine(self) -> Machine:
        """The device, with the versions of the runtimes that have run there."""
        return replace(self._machine, versions=tuple(sorted(self._programs.versions.items())))

    def look(self) -> Facts:
        """What the device is and how it is doing now."""
        from paredown.targets.devices.facts import facts

        return facts(self.device)

    def run(self, program: Program, inputs: NDArray[Any], tick: Tick) -> Outputs:
        """See `Executor`."""
        return self._programs.run(program, inputs, tick)

    def time(
        self, programs: Mapping[str, Program], x: NDArray[Any], runs: int, memory: bool, tick: Tick
    ) -> dict[str, Timing]:
        """See `Executor`; one after the other, each in a process of its own."""
        found = {}
        for done, (name, program) in enumerate(programs.items(), start=1):
            found[name] = self._programs.time(program, x.astype(program.input.dtype), runs)
            tick(done, len(programs))
        return found


def stands_for(executor: Executor, card: Target) -> bool:
    """Whether milliseconds of an executor can be those of a target: this machine's are its own alone."""
    return not executor.local or card.reach.kind == "local"


def check_address(address: str) -> None:
    """Refuses what is no address, before anything is made for it.

    Raises:
        UsageError: it is none.
    """
    if address not in (*LOCAL, SIMULATED):
        from paredown.targets.address import parse_address

        parse_address(address)


@contextlib.contextmanager
def open_executor(
    address: str, card: Target, tell: Tell = nobody, *, own: bool = False
) -> Iterator[Executor]:
    """Connects to a device, and disconnects in the end.

    Args:
        address: `local:` is this process, `simulated:` a microcontroller's interpreter here; else see
            `targets.address`.
        card: of the target, which says what is simulated.
        tell: hears what is being brought there.
        own: whether this machine made the programs that will run.

    Raises:
        UsageError: no such kind of address, or nothing of this target is simulated.
        DeviceError: the device cannot be reached.
    """
    if address in LOCAL:
        yield Here(own)
        return
    if address == SIMULATED:
        from paredown.pipeline.device.microcontroller import Microcontroller

        yield Microcontroller(card)
        return
    from paredown.targets.address import open_device

    with open_device(address) as device:
        yield OnDevice(device, steps(tell))


class Predictor:
    """`Predict` for the images of a data set in their order, sent to a program in chunks.

    Args:
        executor: what runs it.
        program: of int8 or float32.
        source: scale and zero point of an int8 input; of float32 it is not used.
        outputs: those of each output; of float32 1 and 0.
        data: the images that will be asked for, one after the other.
        preprocess: from an image to the network's input.
    """

    def __init__(
        self,
        executor: Executor,
        program: Program,
        source: Affine,
        outputs: tuple[Affine, ...],
        data: Dataset,
        preprocess: AnyInput,
    ) -> None:
        self.executor, self.program, self.source, self.outputs = executor, program, source, outputs
        self.data, self.preprocess = data, preprocess
        self._ahead: list[tuple[NDArray[Any], tuple[NDArray[Any], ...]]] = []
        self._next = 0

    def __call__(self, x: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """The outputs for the next image.

        Raises:
            ValueError: it is another one.
        """
        if not self._ahead:
            self._fetch()
        sent, found = self._ahead.pop(0)
        if not np.array_equal(self._encoded(x), sent):
            raise ValueError("images are asked for in another order than the data set's")
        return tuple(scale.dequantize(code) for scale, code in zip(self.outputs, found, strict=True))

    def _fetch(self) -> None:
        stop = min(self._next + CHUNK, len(self.data))
        images = [self.preprocess(self.data[index].image)[None] for index in range(self._next, stop)]
        sent = [self._encoded(image) for image in images]
        found = self.executor.run(self.program, np.concatenate(sent), lambda done, total: None)
        self._ahead, self._next = list(zip(sent, found, strict=True)), stop

    def _encoded(self, image: NDArray[np.float32]) -> NDArray[Any]:
        return image if self.program.input.dtype == "float32" else self.source.quantize(image)
