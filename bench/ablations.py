"""SQuantizer's choices against their alternatives on ResNet-20, the same total epochs, several seeds.

    python bench/cifar.py ../shared/data/cifar10 CIFAR
    python bench/ablations.py --cifar CIFAR --epochs 2 --seeds 3 --plot ablations.png

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
from record import Table, add_option

ZEROS, BITS = 0.8, 4
ONE, TWO = "one pass, dense gradients", "two passes, dense gradients"
ONE_MASKED, TWO_MASKED = "one pass, masked gradients", "two passes, masked gradients"
REVERSED = "one pass, quantize -> sparsify"
QUESTIONS = {
    "One pass or two?": (ONE, TWO, TWO_MASKED),
    "Which comes first?": (ONE, REVERSED),
    "Gradients for zeros?": (ONE, ONE_MASKED, TWO, TWO_MASKED),
}


def ways(epochs: float) -> dict[str, tuple[str, ...]]:
    """Name -> settings."""
    one = (f"squantize.epochs={epochs}", f"squantize.sparsity={ZEROS}")
    half = (
        f"prune.weight_sparsity={ZEROS}", f"recover.epochs={epochs / 2}", f"squantize.epochs={epochs / 2}",
        "recover.batch=64", "recover.lr=0.02", "recover.patience=100", "squantize.sigma=-30",
    )  # fmt: skip
    return {
        ONE: one,
        ONE_MASKED: (*one, "squantize.masked_gradient=true"),
        REVERSED: (*one, "squantize.order=quantize-first"),
        TWO: half,
        TWO_MASKED: (*half, "squantize.masked_gradient=true"),
    }


def result(settings: list[str], runs: Path) -> tuple[float, float]:
    """Top-1 of the integer graph, and the share of zeros in the layers that were trained."""
    work = make_run("resnet20", settings, runs)
    stages = work.job
    work.reach([stages.integer])
    test = work.job.task.data("test")
    score = work.job.task.score(stages.predictor("integer"), test, lambda done, total: None)[
        work.job.task.metric
    ]
    trained = [node.weight for node in stages.graph() if node.scale is not None]
    zeros, count = sum(int((w == 0).sum()) for w in trained), sum(w.numel() for w in trained)
    return score, zeros / count


def plot(rows: dict[str, list[tuple[float, float]]], path: Path) -> None:
    """A pane per question: zeros against accuracy, a mark per seed, a line through the means."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((10, 3.8), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    styles = dict(zip(rows, zip("osD^v", ("C0", "C1", "C2", "C3", "C4"), strict=True), strict=True))
    for pane, (question, names) in zip(figure.subplots(1, 3, sharey=True), QUESTIONS.items(), strict=True):
        for name in names:
            marker, colour = styles[name]
            scores, zeros = ([100 * value for value in values] for values in zip(*rows[name], strict=True))
            style = {"color": colour, "fillstyle": "none", "markeredgewidth": 1.6}
            pane.plot(zeros, scores, marker, label=name, **style)
            pane.axhline(statistics.mean(scores), color=colour, lw=0.8, ls=":")
        pane.set_title(question, fontsize=10)
        pane.set_xlabel("zeros that are left, %")
        pane.grid(lw=0.3)
        pane.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.17), frameon=False)
    figure.axes[0].set_ylabel("top-1, int8, %")
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
    add_option(parser)
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
    heads = ("way", "top-1, int8", "zeros that are left", "against the first, seed by seed")
    with Table("ablations", heads, arguments.record) as table:
        for name, found in rows.items():
            apart = [score - first for (score, _), (first, _) in zip(found, rows[ONE], strict=True)]
            columns = (*zip(*found, strict=True), apart)
            cells = [f"{statistics.mean(each):.4f} ± {statistics.pstdev(each):.4f}" for each in columns]
            table.row(name, *cells)
    if arguments.plot:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
