"""SQuantizer's choices against their alternatives on ResNet-20, the same total epochs, several seeds.

    python tests/bench/cifar.py ../shared/data/cifar10 CIFAR
    python tests/bench/ablations.py --cifar CIFAR --epochs 2 --seeds 3 --plot ablations.png

One pass: sparsity and bits together. Two passes: weights are pruned to the same sparsity in half of the
epochs, and quantized in the other half, with gradients for all weights or only for those that are left. The
reverse order quantizes first and compares what comes out with the threshold. Scored on the test images, in
int8; zeros are those that are left in the end. Prints Markdown, mean and standard deviation; draws a plot.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from cases import data, make_run

from pipeline.stage import run_stage

ZEROS, BITS = 0.8, 4


def ways(epochs: float) -> dict[str, tuple[str, ...]]:
    """Name -> settings."""
    one = (f"squantize.epochs={epochs}", f"squantize.sparsity={ZEROS}")
    half = (
        f"prune.weight_sparsity={ZEROS}", f"recover.epochs={epochs / 2}", f"squantize.epochs={epochs / 2}",
        "recover.batch=64", "recover.lr=0.02", "recover.patience=100", "squantize.sigma=-30",
    )  # fmt: skip
    return {
        "one pass, dense gradients": one,
        "one pass, masked gradients": (*one, "squantize.masked_gradient=true"),
        "one pass, quantize -> sparsify": (*one, "squantize.order=quantize-first"),
        "two passes, dense gradients": half,
        "two passes, masked gradients": (*half, "squantize.masked_gradient=true"),
    }


def result(settings: list[str], runs: Path) -> tuple[float, float]:
    """Top-1 of the integer graph, and the share of zeros in the layers that were trained."""
    work = make_run("resnet20", settings, runs)
    stages = work.stages
    pruning = stages.pruning.all() if work.recipe.prune.active else ()
    squantize = stages.squantizing.squantize
    for stage in (stages.original, *pruning, squantize, stages.calibrate, stages.integer):
        run_stage(work.store, stage, lambda line: None)
    test = work.task.data("test")
    score = work.task.score(stages.predictor("integer"), test, lambda done, total: None)[work.task.metric]
    trained = [node.weight for node in stages.graph() if node.scale is not None]
    zeros, count = sum(int((w == 0).sum()) for w in trained), sum(w.numel() for w in trained)
    return score, zeros / count


def plot(rows: dict[str, list[tuple[float, float]]], path: Path) -> None:
    """Zeros against accuracy, a point per seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((6.5, 4), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    pane = figure.subplots()
    for size, marker, (name, found) in zip((11, 9, 8, 7, 5), "osD^v", rows.items(), strict=False):
        scores, zeros = zip(*found, strict=True)
        style = {"markersize": size, "fillstyle": "none", "markeredgewidth": 1.6}  # equal points show both
        pane.plot([100 * z for z in zeros], [100 * s for s in scores], marker, label=name, **style)
    pane.set_xlabel("zeros that are left, %")
    pane.set_ylabel("top-1, %")
    pane.grid(lw=0.3)
    pane.legend(fontsize=7)
    canvas.print_png(str(path))


def main() -> None:
    """Prints a row per way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar", type=Path, default=Path("cifar"))
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=None)
    parser.add_argument("--plot", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = arguments.runs or Path(tempfile.mkdtemp())
    usual = (
        f"squantize.weight_bits={BITS}",
        "squantize.batch=64",
        "squantize.lr=0.02",
        "squantize.patience=100",
    )
    rows: dict[str, list[tuple[float, float]]] = {}
    for seed in range(arguments.seeds):
        for name, settings in ways(arguments.epochs).items():
            asked = [*data("resnet20", arguments.cifar.absolute()), *usual, *settings]
            score, zeros = result([*asked, f"squantize.seed={seed}", f"recover.seed={seed}"], runs)
            rows.setdefault(name, []).append((score, zeros))
            print(f"seed {seed}, {name}: {score:.4f}, {zeros:.4f} zeros", file=sys.stderr, flush=True)
    print("| way | top-1, int8 | zeros that are left |\n|---|---|---|")
    for name, found in rows.items():
        cells = [f"{statistics.mean(v):.4f} ± {statistics.pstdev(v):.4f}" for v in zip(*found, strict=True)]
        print(f"| {name} | {' | '.join(cells)} |")
    if arguments.plot:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
