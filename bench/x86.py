"""The race on x86: every program of ours beside OpenVINO with NNCF, ONNX Runtime and ncnn, one thread.

    python bench/x86.py [NETWORK ...] --peers PEERS/bin/python [--runs 20] [--weight-range 63] [--isa AVX2]

`bench/x86_peers.py` says what PEERS needs; without --peers only ours run. Weights are random (with the
statistics of real batch normalisations): time does not depend on them. 16 random inputs set the ranges of
all, four others are the test: SNR is against the float network. Ours are compared with the integer graph,
code by code. Runs are interleaved, across the two processes. --isa holds oneDNN, so OpenVINO, to an
instruction set; other runtimes have no such switch and are left out then.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from record import Table, add_option
from torch import nn

from paredown.apps.classifier.network import build
from paredown.apps.detector.network import YoloV2
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower.integer import quantize
from paredown.pipeline.lower.parity import compare
from paredown.pipeline.lower.runtimes import RUNTIMES
from paredown.targets.host.host import this_machine

COLUMNS = ("network", "program", "whose", "ms", "p25", "p75", "SNR, dB", "codes apart",
           "against the best right peer")  # fmt: skip
ONEDNN = "ONEDNN_MAX_CPU_ISA"
CALIBRATE, TEST, WARM_UP = 16, 4, 3
WITHIN = 6.0  # dB below our integer graph: a program that is farther from float than that is not right
Floats = NDArray[np.float32]


def lite() -> nn.Module:
    """YOLO-LITE, trial 3: seven convolutions, five pools."""
    widths, layers, channels = (16, 32, 64, 128, 128, 256), list[nn.Module](), 3
    for index, width in enumerate(widths):
        layers += [
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.1),
        ]
        layers += [nn.MaxPool2d(2)] if index < 5 else []
        channels = width
    return nn.Sequential(*layers, nn.Conv2d(channels, 125, 1))


def yolo(name: str) -> Callable[[], tuple[nn.Module, int]]:
    """A network of the detector, and the size of its input."""

    def make() -> tuple[nn.Module, int]:
        network = YoloV2.builtin(name)
        return network, network.height

    return make


NETWORKS: dict[str, Callable[[], tuple[nn.Module, int]]] = {
    "yolov2-tiny-voc": yolo("yolov2-tiny-voc"),
    "yolo-lite": lambda: (lite(), 224),
    "mobilenet_v2": lambda: (build("mobilenet_v2", 1000), 224),
    "resnet56": lambda: (build("resnet56", 10), 32),
    "digits": yolo("yolov2-nano"),
}


def settled(network: nn.Module, x: torch.Tensor) -> nn.Module:
    """The network with the statistics that its batch normalisations have on these inputs."""
    norms = [each for each in network.modules() if isinstance(each, nn.BatchNorm2d)]
    for each in norms:
        each.reset_running_stats()
        each.momentum = None
    network.train()
    with torch.no_grad():
        network(x)
    return network.eval()


def snr(wanted: list[Floats], found: list[Floats]) -> float:
    """Of the worst output, in dB."""
    return min(
        float(10 * np.log10(np.square(want).sum() / max(np.square(want - real).sum(), 1e-30)))
        for want, real in zip(wanted, found, strict=True)
    )


class Peers:
    """The process of the peers; a context manager.

    Args:
        python: of their environment.
        folder: with the network and the inputs.
        only: names that they start with; all where there are none.
    """

    def __init__(self, python: Path, folder: Path, only: tuple[str, ...]) -> None:
        command = [python, Path(__file__).with_name("x86_peers.py"), folder, "--only", *only]
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.folder, self.told = folder, json.loads(self._line())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()

    def _line(self) -> str:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise SystemExit(f"bench/x86_peers.py ended: {self._child.wait()}")
        return line

    def ms(self, name: str) -> float:
        """One run of a peer."""
        assert self._child.stdin is not None
        print(name, file=self._child.stdin, flush=True)
        return float(self._line())

    def outputs(self, name: str, wanted: list[Floats]) -> list[Floats]:
        """What a peer makes of the test's inputs."""
        files = self.told[name]["outputs"]
        return [np.load(self.folder / f).reshape(w.shape) for f, w in zip(files, wanted, strict=True)]


def race(calls: Mapping[str, Callable[[], float]], runs: int) -> dict[str, list[float]]:
    """Milliseconds of each, round and round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(WARM_UP + runs):
        for name, call in calls.items():
            ms = call()
            if turn >= WARM_UP:
                times[name].append(ms)
    return times


def timed(call: Callable[[], object]) -> Callable[[], float]:
    """A call that says its milliseconds."""

    def ms() -> float:
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e3

    return ms


def network_rows(name: str, arguments: argparse.Namespace, table: Table) -> None:
    """One network: the rows of all its programs."""
    torch.manual_seed(0)
    network, side = NETWORKS[name]()
    x, test = torch.rand(CALIBRATE, 3, side, side), torch.rand(TEST, 3, side, side)
    graph = trace(settled(network, x), (1, 3, side, side))
    low, high = dict[str, float](), dict[str, float]()
    for each in x:
        for key, value in graph.run(each[None]).items():
            low[key] = min(low.get(key, np.inf), float(value.min()))
            high[key] = max(high.get(key, -np.inf), float(value.max()))
    ranges = {key: (low[key], high[key]) for key in low}
    integer = quantize(graph, ranges, input_range=(0.0, 1.0), most=arguments.weight_range)
    real = [graph.run(each[None]) for each in test]
    wanted = [np.concatenate([each[key].numpy() for each in real]) for key in graph.outputs]
    codes = integer.input.out.quantize(test.numpy())
    calls, facts = dict[str, Callable[[], float]](), dict[str, tuple[str, float, str]]()
    for key, runtime in RUNTIMES.items() if not arguments.isa else (("openvino", RUNTIMES["openvino"]),):
        runner = runtime.load(runtime.lower_integer(integer).data)
        made = [runner(codes[i : i + 1]) for i in range(TEST)]
        outputs = [integer[n].out.dequantize(np.concatenate([each[i] for each in made])).reshape(w.shape)
                   for i, (n, w) in enumerate(zip(integer.outputs, wanted, strict=True))]  # fmt: skip
        apart = compare(integer, runner, codes)
        share = f"{apart.differing} of {apart.values} by {apart.max_lsb}" if apart.differing else "0"
        calls[f"{key} int8"] = timed(runner.bound(codes[:1]))
        facts[f"{key} int8"] = ("ours", snr(wanted, outputs), share)
        program = runtime.lower_float(graph)
        floats = runtime.load(program.data)
        outputs = [
            np.concatenate(parts)
            for parts in zip(*(floats(each[None].numpy()) for each in test), strict=True)
        ]
        calls[f"{key} float32"] = timed(floats.bound(test[:1].numpy()))
        facts[f"{key} float32"] = (
            "ours",
            snr(wanted, [o.reshape(w.shape) for o, w in zip(outputs, wanted, strict=True)]),
            "",
        )
    best = max(found for whose, found, apart in facts.values() if apart)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "model.onnx").write_bytes(RUNTIMES["onnxruntime"].lower_float(graph).data)
        with contextlib.suppress(RuntimeError):  # what torch cannot trace ncnn goes without
            torch.jit.trace(network, x[:1]).save(folder / "model.pt")
        np.save(folder / "calibrate.npy", x.numpy())
        np.save(folder / "test.npy", test.numpy())
        if not arguments.peers:
            return rows(name, race(calls, arguments.runs), facts, best, table)
        with Peers(arguments.peers, folder, ("OpenVINO",) if arguments.isa else ()) as peers:
            for key, told in peers.told.items():
                if "error" in told:
                    print(f"{name}: {key}: {told['error']}", flush=True)
                    continue
                calls[key] = lambda key=key: peers.ms(key)  # type: ignore[misc]
                facts[key] = ("peer", snr(wanted, peers.outputs(key, wanted)), "")
            return rows(name, race(calls, arguments.runs), facts, best, table)


def rows(
    name: str, times: Mapping[str, list[float]], facts: Mapping[str, tuple[str, float, str]], best: float,
    table: Table,
) -> None:  # fmt: skip
    """A network's rows, fastest first, and who won."""
    medians = {key: float(np.median(values)) for key, values in times.items()}
    right = [key for key, (_, found, apart) in facts.items() if found >= best - WITHIN and apart in ("", "0")]
    peers = [medians[key] for key in right if facts[key][0] == "peer"]
    for key in sorted(medians, key=medians.__getitem__):
        whose, found, apart = facts[key]
        p25, p75 = np.percentile(times[key], [25, 75])
        against = f"{medians[key] / min(peers):.2f}x" if peers else ""
        against = against if key in right else "not right"
        table.row(
            name,
            key,
            whose,
            f"{medians[key]:.2f}",
            f"{p25:.2f}",
            f"{p75:.2f}",
            f"{found:.1f}",
            apart,
            against,
        )


def main() -> None:
    """Prints the rows of each network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--peers", type=Path, help="the Python of their environment")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--weight-range", type=int, choices=(63, 127), default=127)
    parser.add_argument("--isa", default="", help="of oneDNN, as AVX2: OpenVINO alone, ours and theirs")
    add_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.isa:
        os.environ[ONEDNN] = arguments.isa
    held = f", of which oneDNN may use {arguments.isa}" if arguments.isa else ""
    notes = [
        f"One thread, {arguments.runs} interleaved runs: median and quartiles. Weight codes within "
        f"{arguments.weight_range}. The processor's instructions for int8: "
        f"{this_machine().instructions or 'unknown'}{held}.",
        f"SNR is against the float network, on {TEST} random inputs; {CALIBRATE} others set the ranges. A "
        f"program is right where its SNR is at most {WITHIN:.0f} dB below that of our best int8 one, and, of "
        "ours, no code is apart from the integer graph. OpenVINO's float is its default, bfloat16 where the "
        "processor has it.",
    ]
    with Table("x86", COLUMNS, arguments.record, notes=notes) as table:
        for name in arguments.networks:
            network_rows(name, arguments, table)


if __name__ == "__main__":
    main()
