"""Instructions of an inference on emulated Arm boards: ours beside ncnn and the runtimes' stock programs.

    python bench/arm.py [NETWORK ...] --peers PEERS/bin/python [--boards raspberry-pi-5] --keep FILE

The networks and PEERS are those of `bench/x86.py`. Stock: what `bench/versus_ptq.py` makes with ExecuTorch's
own quantizer, and with litert-torch and ai-edge-quantizer. ncnn: its defaults, so 16-bit floats where a core
computes with them; its package has no tool that makes int8. Counts are exact, for one thread; a core may do
several instructions at once, so they are no times. What was counted is in --keep: a bench that was stopped
goes on. SNR is against the float network on one input; of ours it is the integer graph's, of ncnn that on the
board. As in `bench/x86.py` ncnn is right where it is at most 6 dB below ours.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import Table, add_option
from versus_ptq import ai_edge_program, executorch_program, snr1
from x86 import CALIBRATE, NETWORKS, WITHIN, Peers, settled

from paredown.pipeline.device.executor import open_executor
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower.integer import quantize
from paredown.pipeline.lower.reference import run
from paredown.pipeline.lower.runtimes import RUNTIMES
from paredown.targets.cards.card import load_card
from paredown.targets.devices.counts import VARIABLE, read_counts
from paredown.targets.devices.programs import Program
from paredown.targets.emulated.board import hardware
from paredown.targets.emulated.sysroot import PLATFORMS, sysroot
from paredown.targets.runners.litert import TensorInfo

RUNTIMES_THERE = ("executorch", "litert")
NCNN = "ncnn, float"
RUNS = 3


def say(line: str) -> None:
    """Progress."""
    print(line, file=sys.stderr, flush=True)


class Case:
    """A network with everybody's programs.

    Args:
        name: of the network.
        peers: the Python of their environment.
        folder: to work in.
    """

    def __init__(self, name: str, peers: Path, folder: Path) -> None:
        torch.manual_seed(0)
        network, side = NETWORKS[name]()
        x = torch.rand(CALIBRATE, 3, side, side)
        network = settled(network, x)
        graph = trace(network, (1, 3, side, side))
        self.x, self.folder = x[:1].numpy(), folder
        values = [graph.run(each[None]) for each in x]
        ranges = {
            key: (min(float(v[key].min()) for v in values), max(float(v[key].max()) for v in values))
            for key in values[0]
        }
        self.wanted = [values[0][key].numpy() for key in graph.outputs]
        integer = quantize(graph, ranges, input_range=(0.0, 1.0))
        found = run(integer, integer.input.out.quantize(self.x))
        self.snr = min(
            snr1(want, integer[key].out.dequantize(found[key]))
            for want, key in zip(self.wanted, integer.outputs, strict=True)
        )
        ends = tuple(TensorInfo(tuple(integer[key].shape), "int8") for key in integer.outputs)
        self.programs = {
            f"ours, {key}": Program(
                key, RUNTIMES[key].lower_integer(integer).data, TensorInfo((1, 3, side, side), "int8"), ends
            )
            for key in RUNTIMES_THERE
        }
        self.failed: dict[str, str] = {}
        for runtime, make in {"executorch": executorch_program, "litert": ai_edge_program}.items():
            key = f"stock, {runtime}"
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    data = make(network, (1, 3, side, side), x)
            except Exception as error:  # a peer's, of whatever kind: its row says that it fails
                self.failed[key] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
                continue
            self.programs[key] = Program(runtime, data, *_ends(runtime, data, self.x.shape, self.wanted))
        (folder / "model.onnx").write_bytes(RUNTIMES["onnxruntime"].lower_float(graph).data)
        torch.jit.trace(network, x[:1]).save(folder / "model.pt")
        np.save(folder / "calibrate.npy", x.numpy())
        np.save(folder / "test.npy", x[:1].numpy())
        with Peers(peers, folder, ("ncnn",)) as found:
            self.without = found.told["ncnn float"].get("error", "")

    def ncnn(self, board: str, package: Path) -> tuple[float, float]:
        """Millions of instructions, and the SNR of its outputs there."""
        with hardware(load_card(board), "ncnn", sysroot, True, say) as there:
            home = there.root / "home" / "pi" / "peer"
            home.mkdir()
            with zipfile.ZipFile(package) as wheel:
                wheel.extractall(home)
            for name in ("model.ncnn.param", "model.ncnn.bin"):
                shutil.copy(self.folder / name, home)
            shutil.copy(Path(__file__).with_name("arm_peer.py"), home)
            np.save(home / "in.npy", self.x[0])
            variables = [f"{key}={value}" for key, value in {**there.environment, VARIABLE: "counts"}.items()]
            python = ["/usr/bin/env", "-i", *variables, "/usr/bin/python3", "peer/arm_peer.py", "peer"]
            subprocess.run([*there.emulator, *python, str(RUNS)], check=True)
            with np.load(home / "out.npz") as file:
                found = [file[key] for key in file.files]
            counts = read_counts((there.root / "home" / "pi" / "counts").read_text())
        return counts.total / 1e6, min(snr1(w, out) for w, out in zip(self.wanted, found, strict=True))


def _ends(
    runtime: str, data: bytes, shape: tuple[int, ...], wanted: list[Any]
) -> tuple[TensorInfo, tuple[TensorInfo, ...]]:
    """A stock program's input and outputs."""
    if runtime == "executorch":
        return TensorInfo(shape, "float32"), tuple(TensorInfo(each.shape, "float32") for each in wanted)
    from ai_edge_litert.interpreter import Interpreter

    told = Interpreter(model_content=data)
    source, *_ = told.get_input_details()
    infos = [
        TensorInfo(tuple(map(int, each["shape"])), np.dtype(each["dtype"]).name)
        for each in (source, *told.get_output_details())
    ]
    return infos[0], tuple(infos[1:])


def counted(name: str, arguments: argparse.Namespace, package: Path, known: dict[str, float]) -> None:
    """Counts what is not known yet of a network, board by board."""
    keys = [f"{name}/{board}" for board in arguments.boards]
    if all(f"{key}/{NCNN}" in known for key in keys):
        return
    with tempfile.TemporaryDirectory() as folder:
        case = Case(name, arguments.peers, Path(folder))
        for board, key in zip(arguments.boards, keys, strict=True):
            with open_executor(f"emulated:{board}", load_card(board), lambda event: None) as executor:
                for label, program in case.programs.items():
                    if f"{key}/{label}" not in known:
                        timing = executor.time({label: program}, case.x, 1, False, lambda done, total: None)
                        count = timing[label].million_instructions
                        assert count is not None
                        known[f"{key}/{label}"] = count
                        say(f"{key}/{label}: {count:.1f}")
            for label, why in case.failed.items():
                known[f"{key}/{label}"] = float("nan")
                say(f"{key}/{label}: {why}")
            known[f"dB {name}/ours"] = case.snr
            if f"{key}/{NCNN}" not in known:
                nothing = float("nan"), float("nan")
                count, snr = nothing if case.without else case.ncnn(board, package)
                known[f"{key}/{NCNN}"], known[f"dB {key}"] = count, snr
                say(f"{key}/{NCNN}: {count:.1f}, {snr:.1f} dB {case.without}")
            arguments.keep.write_text(json.dumps(known))


def rows(name: str, boards: list[str], known: Mapping[str, float], table: Table) -> None:
    """A row per program: millions of instructions, and times the least of the board."""
    labels = [key.rpartition("/")[2] for key in known if key.startswith(f"{name}/{boards[0]}/")]
    ours = known[f"dB {name}/ours"]
    for label in labels:
        cells, decibels = [], [ours] if label.startswith("ours") else []
        for board in boards:
            snr = known[f"dB {name}/{board}"]
            mine = {each: known[f"{name}/{board}/{each}"] for each in labels}
            found = {each: count for each, count in mine.items() if not np.isnan(count)}
            right = [count for each, count in found.items() if each != NCNN or snr >= ours - WITHIN]
            if label == NCNN:
                decibels.append(snr)
            if np.isnan(mine[label]):
                cells += ["fails", ""]
            else:
                wrong = label == NCNN and snr < ours - WITHIN
                cells += [f"{mine[label]:.1f}", "not right" if wrong else f"{mine[label] / min(right):.2f}"]
        table.row(name, label, *cells, ", ".join(f"{each:.1f}" for each in decibels if not np.isnan(each)))


def main() -> None:
    """Prints the rows of each network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--peers", type=Path, required=True, help="the Python of their environment")
    parser.add_argument("--boards", nargs="+", default=["raspberry-pi-3", "raspberry-pi-4", "raspberry-pi-5"])
    parser.add_argument("--keep", type=Path, required=True, help="file of what was counted")
    add_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(arguments.keep.read_text()) if arguments.keep.exists() else {}
    heads = ["network", "program"]
    for board in arguments.boards:
        heads += [f"{board}, millions", "times the least"]
    heads.append("SNR, dB")
    with tempfile.TemporaryDirectory() as folder, Table("arm", heads, arguments.record) as table:
        wheel = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        wheel += ["--python-version", "3.11", "--implementation", "cp", "--dest", folder, "ncnn"]
        wheel += [word for name in PLATFORMS for word in ("--platform", name)]
        subprocess.run(wheel, check=True)
        (package,) = Path(folder).glob("ncnn-*.whl")
        for name in arguments.networks:
            counted(name, arguments, package, known)
            rows(name, arguments.boards, known, table)
        table.note("one thread; exact counts of one inference, its input's and outputs' conversion included")


if __name__ == "__main__":
    main()
