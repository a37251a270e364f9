"""Prunes and recovers real networks, and scores them before, after the cut and after recovery.

    python bench/cifar.py ../shared/data/cifar10 CIFAR
    python bench/pruning.py resnet56 --cifar CIFAR                # half the MACs; about half an hour
    python bench/pruning.py yolo                                  # 60 % of the MACs, no labels
    python bench/pruning.py digits                                # 40 % of the MACs
    paredown train digits --network yolov8-nano-like --size 160 --epochs 5 --out V8/v8.safetensors
    python bench/pruning.py v8 --cifar V8                         # 40 % of the MACs

More settings follow as KEY=VALUE (prune.weight_sparsity=0.6); several values make several rows:
recover.seed=0,1,2. With --runs the stages are kept, and a killed run goes on where it was. Prints Markdown.
"""

from __future__ import annotations

from pathlib import Path

import torch
from cases import combinations, data, make_run, parsed
from record import Table

from paredown.pipeline.compress.training.data import preprocessed, run_network
from paredown.pipeline.store.files import read_json
from paredown.pipeline.store.stage import stored

SETTINGS = {
    "digits": ("prune.macs=0.4", "prune.multiple=8", "recover.epochs=10", "recover.patience=10"),
    "v8": ("prune.macs=0.4", "prune.multiple=8", "recover.epochs=4", "recover.patience=10"),
    "yolo": (
        "prune.macs=0.6", "prune.multiple=8", "recover.epochs=24", "recover.batch=16",
        "recover.lr=0.001", "recover.patience=24", "recover.evaluations=24",
    ),
    "resnet56": (
        "prune.macs=0.5", "prune.multiple=4", "recover.epochs=14", "recover.batch=64", "recover.lr=0.02",
        "recover.patience=20", "recover.evaluations=20",
    ),
}  # fmt: skip


def row(case: str, settings: list[str], runs: Path) -> list[str]:
    """Prunes, recovers, and scores all three on the test images."""
    work = make_run(case, settings, runs)
    pruning = work.job.pruning
    work.reach([pruning.trace])
    test = work.job.task.data("test")
    inputs = preprocessed(test, work.job.task.preprocess)
    scores = [
        work.job.task.score_outputs(run_network(network, inputs), test)[work.job.task.metric]
        for network in (work.job.task.network(), pruning.pruned(), pruning.network())
    ]
    whole, thin = (
        read_json(stored(work.store, s) / "size.json")["macs"] for s in (work.job.original, pruning.trace)
    )
    history = pruning.history()
    zeros, count = (sum(layer[key] for layer in history["sparsity"]) for key in ("zeros", "count"))
    return [
        case, f"{thin / whole:.3f}", f"{zeros / count:.4f}" if count else "-", *(f"{s:.4f}" for s in scores),
        f"{100 * (scores[0] - scores[2]):.2f}", str(history["steps"]),
    ]  # fmt: skip


def main() -> None:
    """Prints a row per combination."""
    arguments = parsed(__doc__, SETTINGS)
    torch.set_num_threads(1)
    case, runs = arguments.case, arguments.runs
    base = [*data(case, arguments.cifar.absolute()), *SETTINGS[case]]
    heads = ("network", "MACs", "zeros", "whole", "cut", "recovered", "drop, points", "steps")
    with Table(f"pruning-{case}", heads, arguments.record) as table:
        for chosen in combinations(arguments.more):
            table.row(*row(case, [*base, *chosen], runs))


if __name__ == "__main__":
    main()
