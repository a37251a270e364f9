"""YOLO-LITE on emulated Raspberry Pis: instructions per inference of every variant, and mAP on the board.

    python bench/emulated.py                    # three boards, both runtimes; about 20 minutes
    python bench/emulated.py --images 8 --boards raspberry-pi-5

Variants: the network in float32 and int8, pruned to 65 % of the MACs at several multiples (not recovered: the
count does not know), and with 4-bit weights of which 60 % are zero (not trained, likewise). mAP of the int8
network on the first images, from the board's outputs, beside this machine's from the same images. Counts are
exact for one thread on that core; they are no milliseconds. Prints Markdown.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from cases import data, make_run
from record import Table, add_option

from paredown.calibration.datasets import First
from paredown.pipeline.device.executor import Executor, Here, Predictor, open_executor
from paredown.pipeline.run.run import Run
from paredown.targets.cards.card import load_card
from paredown.targets.devices.programs import Program
from paredown.targets.runners.litert import TensorInfo
from paredown.targets.runners.vectors import test_inputs

PRUNED = ("prune.macs=0.65", "recover.epochs=0", "prune.reconstruct=false")
VARIANTS = {
    "int8": (),
    **{f"pruned, multiples of {m}": (*PRUNED, f"prune.multiple={m}") for m in (8, 16, 32)},
    "4 bits, 60 % zeros": ("squantize.weight_bits=4", "squantize.epochs=0"),
}


def made(settings: tuple[str, ...], runs: Path) -> Run:
    """A run of YOLO-LITE up to its programs."""
    work = make_run("yolo", [*data("yolo", Path()), *settings], runs)
    work.reach([*work.job.lower.values(), *work.job.baseline.values()])
    return work


def program(work: Run, name: str, dtype: str) -> Program:
    """The program of a runtime, in int8 or float32."""
    stages, integer = work.job, work.job.integer_graph()
    stage = stages.lower[name] if dtype == "int8" else stages.baseline[name]
    outputs = tuple(TensorInfo(tuple(integer[output].shape), dtype) for output in integer.outputs)
    return Program(name, stages.program(stage), TensorInfo(tuple(integer.input.shape), dtype), outputs)


def score(work: Run, name: str, executor: Executor, images: int) -> float:
    """mAP@0.5 of the int8 program on the first images, from an executor's outputs."""
    integer, test = work.job.integer_graph(), First(work.job.task.data("test"), images)
    outputs = tuple(integer[output].out for output in integer.outputs)
    source = integer.input.out
    predict = Predictor(
        executor, program(work, name, "int8"), source, outputs, test, work.job.task.preprocess
    )
    return work.job.task.score(predict, test)[work.job.task.metric]


def say(line: str) -> None:
    """Progress."""
    print(line, file=sys.stderr)


def main() -> None:
    """Prints a table per board."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--boards", default="raspberry-pi-3,raspberry-pi-4,raspberry-pi-5")
    parser.add_argument("--runs", type=Path, default=None, help="keep the store here")
    add_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    root = arguments.runs or Path(tempfile.mkdtemp())
    works = {name: made(settings, root) for name, settings in VARIANTS.items()}
    whole = works["int8"]
    runtimes = whole.job.runtimes
    here = {name: score(whole, name, Here(), arguments.images) for name in runtimes}
    x = test_inputs(tuple(whole.job.integer_graph().input.shape), 1)
    heads = ("board", "runtime", "float32", *VARIANTS, "int8 mAP there", "here")
    with Table("emulated", heads, arguments.record) as table:
        for board in arguments.boards.split(","):
            with open_executor(f"emulated:{board}", load_card(board), say) as executor:
                for name in runtimes:
                    programs = {"float32": program(whole, name, "float32")}
                    programs |= {each: program(work, name, "int8") for each, work in works.items()}
                    found = executor.time(programs, x, 1, False, lambda done, total: None)
                    counts = [f"{timing.million_instructions:.1f}" for timing in found.values()]
                    there = score(whole, name, executor, arguments.images)
                    table.row(board, name, *counts, f"{there:.6f}", f"{here[name]:.6f}")


if __name__ == "__main__":
    main()
