"""MLPerf Tiny's int8 programs beside our variants of the same networks.

    python bench/cifar.py ../shared/data/cifar10 CIFAR
    python bench/mlperf.py ic WORK --cifar CIFAR      # ResNet8, 500 images of CIFAR-10
    python bench/mlperf.py vww WORK                   # Visual Wake Words, 64 images of COCO
    python bench/mlperf.py table WORK --record

MLPerf's own `.tflite` comes in twice: by `paredown bundle`, as it is, and by `paredown run`, with its own
codes in our programs. The others start from its `.h5`. All are scored on the same images with the same
preprocessing and timed in turns. An image of COCO shows a person where one covers at least half a percent of
it; as MLPerf's own data it is made 96x96 by averaging (`preprocess.resample`). Nothing of the scored images
is trained, calibrated or chosen on. More settings of the recipe follow as KEY=VALUE.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from cases import SHARED
from cifar import NAMES
from deployed import asked, execute, tabled

from paredown.apps.api.finished import Asked, bundle
from paredown.pipeline.bundle.archive import unpack
from paredown.pipeline.device.executor import Here
from paredown.pipeline.device.validate.programs import bundle_program
from paredown.pipeline.device.validate.validate import validate
from paredown.pipeline.run.job import BUNDLE
from paredown.pipeline.store.files import read_json, write_json
from paredown.targets.cards.card import load_card
from paredown.targets.devices.programs import Program
from paredown.targets.mcu.tflm import run as run_tflm
from paredown.targets.runners.litert import TensorInfo

MODELS = SHARED / "mlperf-tiny"
COLUMNS = ("network", "variant", "top-1", "MACs", "file", "bundle", "median ms", "arena")
PERSON, LEAST = 0, 0.005  # COCO's class, and the share of an image that it covers
RUNS = 400
FILE, KEPT = "MLPerf's int8 .tflite", "the same codes in our .tflite"
GENTLE = {"ic": "prune.macs=0.965"}  # two more rows, of a network that loses much by the case's own share


def ic_case(work: Path, options: argparse.Namespace) -> tuple[str, Path, Path, list[str]]:
    """ResNet8: its name, the .h5, the int8 .tflite and the recipe."""
    cifar = options.cifar.absolute()
    (work / "names.txt").write_text("".join(f"{name}\n" for name in NAMES))
    folder = MODELS / "ic"
    return "ResNet8", folder / "pretrainedResnet.h5", folder / "pretrainedResnet_quant.tflite", [
        "data.format=cifar", f"data.train={cifar / 'lossless'}", f"data.test={cifar / 'test'}",
        "preprocess.mean=[0]", f"preprocess.std=[{1 / 255}]", "prune.macs=0.86", "prune.multiple=8",
        "prune.images=256", "recover.epochs=6", "recover.batch=64", "recover.lr=0.001",
        "recover.norm=frozen", "recover.patience=20", "squantize.weight_bits=7", "squantize.sparsity=0.15",
        "squantize.per=channel", "squantize.grid=uniform", "squantize.rounding=gptq",
        "squantize.norm=frozen", "squantize.epochs=5", "squantize.patience=20", "squantize.batch=64",
        "squantize.lr=0.001",
    ]  # fmt: skip


def vww_case(work: Path, options: argparse.Namespace) -> tuple[str, Path, Path, list[str]]:
    """MobileNetV1 0.25: likewise."""
    for split, part in (("train", "train"), ("val", "test")):
        for label in sorted((SHARED / "coco" / "labels" / split).glob("*.txt")):
            rows = np.loadtxt(label, ndmin=2).reshape(-1, 5)
            person = bool((rows[rows[:, 0] == PERSON][:, 3:].prod(axis=1) >= LEAST).any())
            folder = work / part / ("person" if person else "no person")
            folder.mkdir(parents=True, exist_ok=True)
            image = SHARED / "coco" / "images" / split / f"{label.stem}.jpg"
            (folder / image.name).unlink(missing_ok=True)
            (folder / image.name).symlink_to(image.resolve())
    (work / "names.txt").write_text("no person\nperson\n")
    return "Visual Wake Words", MODELS / "vww" / "vww_96.h5", MODELS / "vww" / "vww_96_int8.tflite", [
        "data.format=imagefolder", f"data.train={work / 'train'}", f"data.test={work / 'test'}",
        "preprocess.mean=[0]", "preprocess.std=[1]", "preprocess.resize=stretch", "preprocess.resample=area",
        "prune.macs=0.8", "prune.images=64", "recover.epochs=4", "recover.batch=16", "recover.lr=0.001",
        "squantize.weight_bits=6", "squantize.sparsity=0.3", "squantize.per=channel",
        "squantize.grid=uniform", "squantize.rounding=gptq", "squantize.norm=frozen", "squantize.epochs=4",
        "squantize.batch=16", "squantize.lr=0.001",
    ]  # fmt: skip


CASES = {"ic": ic_case, "vww": vww_case}


def rows_of(name: str, work: Path, options: argparse.Namespace) -> list[list[str]]:
    """The rows of one network."""
    title, h5, tflite, settings = CASES[name](work, options)
    common = ["app=apps.classifier", f"data.names={work / 'names.txt'}", 'lower.runtimes=["litert"]',
              "lower.allow_float=false", "bench.runs=10"]  # fmt: skip
    plain = [each for each in settings if each.startswith(("data.", "preprocess."))]
    made, runs = {}, {}
    ours = [*settings, *options.more]
    variants = [(KEPT, tflite, plain), ("int8", h5, plain), ("pruned + SQuantizer", h5, ours)]
    if name in GENTLE:
        variants.append(("gently pruned + SQuantizer", h5, [*ours, GENTLE[name]]))
        unpruned = [each for each in ours if not each.startswith(("prune.", "recover."))]
        variants.append(("SQuantizer alone, untrained", h5, [*unpruned, "squantize.epochs=0"]))
    for variant, source, more in variants:
        word = variant.split()[0]
        made[variant], runs[variant] = execute(f"{name}-{word}", [*common, f"network={source}", *more], work)
    kept = {FILE: work / "mlperf.paredown"}
    kept |= {variant: result.folder / BUNDLE for variant, result in runs.items()}
    score = sealed(tflite, made[KEPT].job.task, kept[FILE])
    programs = {variant: litert(path) for variant, path in kept.items()}
    times = Here().time(programs, np.zeros(next(iter(programs.values())).input.shape, np.int8), RUNS, False,
                        lambda done, total: None)  # fmt: skip
    figures = {v: {(f.variant, f.metric): f.value for f in r.figures} for v, r in runs.items()}
    scores = {variant: values["litert", "top1"] for variant, values in figures.items()} | {FILE: score}
    whole = figures["int8"]["fp32", "macs"]
    macs = {variant: values.get(("pruned", "macs"), whole) for variant, values in figures.items()}
    rows = [[title, "fp32, MLPerf's .h5", f"{figures['int8']['fp32', 'top1']:.4f}", f"{whole / 1e6:.2f} M",
             *["-"] * 4]]  # fmt: skip
    for variant, program in programs.items():
        arena = run_tflm(program.data, np.zeros(program.input.shape, np.int8)).arena.bytes
        rows.append([
            title, variant, f"{scores[variant]:.4f}", f"{macs.get(variant, whole) / 1e6:.2f} M",
            f"{len(program.data):,}", f"{alone(kept[variant], program):,}",
            f"{times[variant].percentile(50):.3f}", f"{arena:,}",
        ])  # fmt: skip
    return rows


def sealed(tflite: Path, task: Any, path: Path) -> float:
    """Makes MLPerf's bundle, proves it, and scores its outputs on the task's test images."""
    from paredown.pipeline.device.executor import Predictor
    from paredown.pipeline.lower.integer import Affine

    bundle(Asked((tflite,)), load_card("host"), path)
    assert validate(path, runs=1).passed
    model, data = unpack(path).manifest.models[0], task.data("test")
    affines = [Affine(t.scale, t.zero_point) for t in (model.input, *model.outputs)]
    predict = Predictor(Here(), litert(path), affines[0], tuple(affines[1:]), data, task.preprocess)
    return task.score(predict, data)["top1"]


def litert(path: Path) -> Program:
    """The LiteRT program of a bundle."""
    opened = unpack(path)
    model = next(each for each in opened.manifest.models if each.runtime == "litert")
    assert isinstance(bundle_program(opened, model).input, TensorInfo)
    return bundle_program(opened, model)


def alone(path: Path, program: Program) -> int:
    """Bytes of the program in a bundle that carries no other."""
    import zstandard

    opened = unpack(path)
    model = next(each for each in opened.manifest.models if each.runtime == "litert")
    entry = opened.manifest.members[model.file]
    packed = len(zstandard.ZstdCompressor(19).compress(program.data))
    return min(entry.stored_bytes, packed)


def main() -> None:
    """One network, or the table of those that are done."""
    options = asked(__doc__, CASES)
    if options.case == "table":
        done = [options.work / name / "rows.json" for name in CASES]
        rows = [row for path in done if path.exists() for row in read_json(path)["rows"]]
        tabled("mlperf", COLUMNS, rows, options)
        return
    work = options.work.absolute() / options.case
    work.mkdir(parents=True, exist_ok=True)
    rows = rows_of(options.case, work, options)
    write_json(work / "rows.json", {"rows": rows})
    for row in rows:
        print(" | ".join(row))


if __name__ == "__main__":
    main()
