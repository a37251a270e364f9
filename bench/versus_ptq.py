"""int8 without training beside two peers: ExecuTorch's own quantizer, and ai-edge-quantizer for LiteRT.

    python bench/versus_ptq.py --zoo FOLDER --only resnet18 --only 'unet*' [--keep FOLDER]

FOLDER is as `bench/zoo.py` takes it. All calibrate on the same sixteen inputs, each as it does by default:
ours with an observer per tensor, chosen on two of the sixteen that no observer sees; ExecuTorch's quantizer
with histograms; ai-edge-quantizer with a moving average of the extremes. Weights are per channel. All are
judged on eight other inputs: SNR of the outputs to the float network's, the program's bytes, and
milliseconds on one thread, interleaved, from float inputs to float outputs.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import multiprocessing
import sys
import tempfile
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from record import Table, add_option
from torch import Tensor, nn
from zoo import IMAGES
from zoo_quality import snr
from zoo_stages import Samples, outputs, ready

from paredown.calibration.observers import Several
from paredown.pipeline.device.timing import interleaved
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower.integer import IntegerGraph, quantize
from paredown.pipeline.lower.runtimes import runtime
from paredown.pipeline.run.image.ptq.quantize_stages import HELD_OUT
from paredown.pipeline.run.image.ptq.ranges import choose
from paredown.pipeline.store.files import read_json, write_json

MAKERS = ("ours, ExecuTorch", "ExecuTorch's quantizer", "ours, LiteRT", "ai-edge-quantizer")
COLUMNS = ("network", *(f"{maker}: {what}" for maker in MAKERS for what in ("SNR, dB", "KiB", "ms")))


class Runner:
    """A program from floats to floats; `keep` is what must live as long."""

    def __init__(self, run: Callable[[NDArray[Any]], list[NDArray[Any]]], *keep: Any) -> None:
        self.run, self.keep = run, keep

    def __call__(self, x: NDArray[Any]) -> list[NDArray[Any]]:
        """The outputs of one input."""
        return self.run(x)

    def bound(self, x: NDArray[Any]) -> Callable[[], object]:
        """A call with its input, for timing."""
        return lambda: self.run(x)


def default(network: nn.Module, shape: tuple[int, ...], given: Tensor) -> IntegerGraph:
    """What `quantize.observer = "auto"` makes of a network: the pipeline's default."""
    graph, watch = trace(network, shape), dict[str, Several]()
    held = range(len(given))[HELD_OUT // 2 :: HELD_OUT]
    for index in set(range(len(given))) - set(held):
        for node, value in graph.run(given[index : index + 1]).items():
            watch.setdefault(node, Several()).update(value.numpy())
    each = {node: several.ranges() for node, several in watch.items()}
    source, names = graph.nodes[0].name, next(iter(each.values()))
    ends = (float(given.min()), float(given.max()))
    candidates = {name: {**{node: r[name] for node, r in each.items()}, source: ends} for name in names}
    ranges = choose(graph, candidates, given[list(held)], input_range=ends).ranges
    return quantize(graph, ranges, input_range=ends)


def ours(integer: IntegerGraph, name: str) -> tuple[Runner, int]:
    """The integer graph on a runtime; floats in and out, like the peers'."""
    tools = runtime(name)
    lowered = tools.lower_integer(integer)
    loaded = tools.load(lowered.data, 1, name)
    grids = [integer[output].out for output in integer.outputs]

    def run(x: NDArray[Any]) -> list[NDArray[Any]]:
        codes = loaded(integer.input.out.quantize(x))
        return [grid.dequantize(each) for grid, each in zip(grids, codes, strict=True)]

    return Runner(run), len(lowered.data)


def executorch_program(network: nn.Module, shape: tuple[int, ...], given: Tensor) -> bytes:
    """Prepare, calibrate and convert with XNNPACKQuantizer, as ExecuTorch's manual has it."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    x = torch.zeros(shape)
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(torch.export.export(network, (x,)).module(), quantizer)
    with torch.no_grad():
        for each in given:
            prepared(each[None])
    exported = torch.export.export(convert_pt2e(prepared), (x,))
    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    return bytes(lowered.buffer)


def executorch_ptq(network: nn.Module, shape: tuple[int, ...], given: Tensor) -> tuple[Runner, int]:
    """It on ExecuTorch's runtime."""
    from executorch.runtime import Runtime

    data = executorch_program(network, shape, given)
    program = Runtime.get().load_program(data)
    method = program.load_method("forward")

    def run(x: NDArray[Any]) -> list[NDArray[Any]]:
        return [each.numpy().copy() for each in method.execute([torch.from_numpy(x)])]

    return Runner(run, data, program), len(data)  # the runtime does not own the bytes


def ai_edge_program(network: nn.Module, shape: tuple[int, ...], given: Tensor) -> bytes:
    """A float .tflite of litert_torch, statically quantized to int8 weights and activations."""
    import litert_torch
    from ai_edge_quantizer import quantizer, recipe

    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "float.tflite", Path(folder) / "int8.tflite"
        litert_torch.convert(network, (torch.zeros(shape),)).export(str(source))
        tool = quantizer.Quantizer(str(source))
        tool.load_quantization_recipe(recipe.static_wi8_ai8())
        found = tool.calibrate({"serving_default": [{"args_0": each[None].numpy()} for each in given]})
        tool.quantize(found).export_model(str(made), overwrite=True)
        return made.read_bytes()


def ai_edge_ptq(network: nn.Module, shape: tuple[int, ...], given: Tensor) -> tuple[Runner, int]:
    """It on LiteRT."""
    from ai_edge_litert.interpreter import Interpreter

    data = ai_edge_program(network, shape, given)
    interpreter = Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    (source_tensor,) = interpreter.get_input_details()
    results = interpreter.get_output_details()

    def run(x: NDArray[Any]) -> list[NDArray[Any]]:
        interpreter.set_tensor(source_tensor["index"], _to(x, source_tensor))
        interpreter.invoke()
        return [_from(interpreter.get_tensor(each["index"]), each) for each in results]

    return Runner(run), len(data)


def _to(x: NDArray[Any], tensor: Any) -> NDArray[Any]:
    if tensor["dtype"] != np.int8:
        return x
    scale, zero = tensor["quantization"]
    return np.clip(np.round(x / scale) + zero, -128, 127).astype(np.int8)


def _from(codes: NDArray[Any], tensor: Any) -> NDArray[Any]:
    if codes.dtype != np.int8:
        return codes
    scale, zero = tensor["quantization"]
    return (codes.astype(np.float32) - zero) * scale


def matched(wanted: list[NDArray[Any]], found: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """The outputs of a program in the network's order: LiteRT's converter may give them another."""
    left, order = list(found), []
    for each in wanted:
        fits = [other for other in left if other.size == each.size]
        best = max(fits, key=lambda other: snr1(each, other))  # noqa: B023
        left = [other for other in left if other is not best]
        order.append(best.reshape(each.shape))
    return order


def snr1(wanted: NDArray[Any], found: NDArray[Any]) -> float:
    """Of one output, in dB."""
    noise = ((wanted - found.reshape(wanted.shape)) ** 2).sum()
    return float(10 * np.log10(max((wanted**2).sum(), 1e-30) / max(noise, 1e-30)))


def examine(name: str, images: Path, rounds: int) -> dict[str, str]:
    """One network, in a process of its own: the cells of its row."""
    torch.set_num_threads(1)
    net = importlib.import_module("nets").NETS[name]
    samples = Samples(net.shape, net.task, images)
    network, given, judged = ready(net, samples), samples(16, 100), samples(8, 500)
    wanted = [each.numpy() for each in outputs(network, judged)]
    integer = default(network, net.shape, given)
    makers: dict[str, Callable[[], tuple[Runner, int]]] = {
        MAKERS[0]: lambda: ours(integer, "executorch"),
        MAKERS[1]: lambda: executorch_ptq(network, net.shape, given),
        MAKERS[2]: lambda: ours(integer, "litert"),
        MAKERS[3]: lambda: ai_edge_ptq(network, net.shape, given),
    }
    cells, runners = {"network": name}, {}
    for maker, make in makers.items():
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                run, size = make()
                rows = [
                    matched([w[i : i + 1] for w in wanted], run(judged[i : i + 1].numpy())) for i in range(8)
                ]
        except Exception as error:  # noqa: BLE001  whatever a peer raises is a result
            reason = (str(error).strip() or repr(error)).splitlines()[0][:60]
            cells[f"{maker}: SNR, dB"] = f"fails: {type(error).__name__}: {reason}".replace("|", "/")
            continue
        found = [np.concatenate(each) for each in zip(*rows, strict=True)]
        cells[f"{maker}: SNR, dB"] = f"{min(snr(w, f) for w, f in zip(wanted, found, strict=True)):.1f}"
        cells[f"{maker}: KiB"] = f"{size / 1024:,.0f}"
        runners[maker] = (run, judged[:1].numpy())
    times = interleaved(runners, rounds, lambda done, total: None)
    for maker, ms in times.items():
        low, median, high = np.percentile(ms, [25, 50, 75])
        cells[f"{maker}: ms"] = f"{median:.2f} ({low:.2f} to {high:.2f})"
    return cells


def main() -> None:
    """Prints a row per network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--only", action="append", default=[], help="a name, * for any letters")
    parser.add_argument("--images", type=Path, default=IMAGES)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one network")
    parser.add_argument("--keep", type=Path, help="folder of what was found, to go on with")
    add_option(parser)
    arguments = parser.parse_args()
    sys.path[:0] = [str(arguments.zoo.resolve()), str((arguments.zoo / "extras").resolve())]
    every = importlib.import_module("nets").NETS
    names = [n for n in every if not arguments.only or any(fnmatch(n, each) for each in arguments.only)]
    with Table("versus_ptq", COLUMNS, arguments.record) as table:
        for name in names:
            path = arguments.keep / f"{name}.json" if arguments.keep else None
            if path is not None and path.exists():
                cells = read_json(path)
            else:
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    try:
                        cells = pool.apply_async(examine, (name, arguments.images, arguments.runs)).get(
                            arguments.timeout
                        )
                    except multiprocessing.TimeoutError:
                        cells = {"network": name, COLUMNS[1]: f"more than {arguments.timeout:.0f} s"}
                if path is not None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_json(path, cells)
            table.row(*(cells.get(column, "") for column in COLUMNS))
        table.note("One thread, median and quartiles. Random weights, batch norms from inputs.")


if __name__ == "__main__":
    main()
