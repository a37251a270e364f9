"""Hybrid pruning and SQuantizer together: from the original to each stage, MACs, time, bytes, accuracy.

    python bench/cifar.py ../shared/data/cifar10 CIFAR
    python bench/hybrid.py resnet56 --cifar CIFAR | yolo | digits

The settings are those of bench/pruning.py and bench/squantizer.py; more follow as KEY=VALUE.
Bytes are those of a LiteRT program in a bundle of its own. The stages are timed side by side here, one
thread, and scored on the test images. With --runs the stages are kept. Prints Markdown.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import data, make_run, parsed
from pruning import SETTINGS
from record import Table
from squantizer import USUAL

from paredown.pipeline.bundle.packed.packing import pack_program
from paredown.pipeline.device.timing import interleaved
from paredown.pipeline.lower.runtimes import runtime
from paredown.pipeline.store.files import read_json

RUNS = 30
RUNTIMES = ("executorch", "litert")


def stage_of(case: str, name: str, settings: list[str], runs: Path) -> dict[str, Any]:
    """One stage on its way to the device: what it costs and finds, its programs and an input for them."""
    work = make_run(case, settings, runs)
    stages, recipe = work.job, work.job.recipe
    work.reach([*stages.lower.values(), *stages.baseline.values()])
    test, integer = work.job.task.data("test"), stages.integer_graph()
    score = lambda variant: work.job.task.score(stages.predictor(variant), test)[work.job.task.metric]  # noqa: E731
    traced = stages.pruning.trace if recipe.prune.active else stages.original
    programs = {each: stages.program(stages.lower[each]) for each in RUNTIMES}
    image = stages.preprocess(stages.calibration[0].image)[None]
    return {
        "name": name, "macs": read_json(stages.path(traced) / "size.json")["macs"],
        "score": score("integer"), "whole": score("fp32"),
        "bytes": len(pack_program(programs["litert"], integer.weights, integer.layer_parameters)),
        "programs": programs, "x": integer.input.out.quantize(image),
        "floats": {each: stages.program(stages.baseline[each]) for each in RUNTIMES}, "image": image,
        "state": sum(t.numel() * t.element_size() for t in work.job.task.network().state_dict().values()),
    }  # fmt: skip


def main() -> None:
    """Prints a row per stage."""
    arguments = parsed(__doc__, SETTINGS)
    torch.set_num_threads(1)
    case, runs = arguments.case, arguments.runs
    base = data(case, arguments.cifar.absolute())
    prune, squantize = SETTINGS[case], ("squantize.weight_bits=4", *USUAL[case])
    of = {"prune": [], "squantize": [], "recover": []}
    for setting in arguments.more:
        of[setting.partition(".")[0]].append(setting)
    pruned = [*base, *prune, *of["prune"], *of["recover"]]
    rows = [
        stage_of(case, "original, int8", base, runs),
        stage_of(case, "pruned", pruned, runs),
        stage_of(case, "pruned and SQuantizer", [*pruned, *squantize, *of["squantize"]], runs),
    ]
    calls: dict[str, tuple[Any, Any]] = {}
    for each in RUNTIMES:
        calls[f"fp32 {each}"] = runtime(each).load(rows[0]["floats"][each], 1, each), rows[0]["image"]
        for row in rows:
            calls[f"{row['name']} {each}"] = runtime(each).load(row["programs"][each], 1, each), row["x"]
    times = {name: float(np.median(ms)) for name, ms in interleaved(calls, RUNS, lambda d, t: None).items()}
    state, macs = rows[0]["state"], rows[0]["macs"]
    heads = ("stage", "MACs", "score", "KiB", "smaller", *(f"{each} ms" for each in RUNTIMES))
    original = {"name": "fp32", "macs": macs, "score": rows[0]["whole"], "bytes": state}
    with Table(f"hybrid-{case}", heads, arguments.record) as table:
        for row in (original, *rows):
            cells = [f"{row['macs'] / macs:.1%}", f"{row['score']:.4f}", f"{row['bytes'] / 1024:,.1f}"]
            ms = (f"{times[row['name'] + ' ' + each]:.2f}" for each in RUNTIMES)
            table.row(row["name"], *cells, f"{state / row['bytes']:.1f}x", *ms)


if __name__ == "__main__":
    main()
