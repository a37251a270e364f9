"""Time of every stage as a network gets deeper, and of sensing as a sample or the groups get more.

    python bench/growth.py                 # a minute
    python bench/growth.py --only stages --cifar CIFAR    # five minutes; bench/cifar.py makes CIFAR

CIFAR ResNets with random weights; those of the stages have trained ones. Seconds of processor time on one
thread, the least of some repeats. The last row is the slope of a straight line through the logarithms of size
and seconds: 1 is linear growth, 2 quadratic. A second table is of the sensitivity test: half the width of a
group, one point per group; its time in all, per point, and per point and image. A third one has the stages of
a whole run, pruning and a few steps of training included. Prints Markdown.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from cases import ROOT, data
from record import Table, add_option

from paredown.apps.classifier.network import CifarResNet
from paredown.pipeline.compress.coupling.coupling import couple
from paredown.pipeline.compress.sensitivity import ranking
from paredown.pipeline.compress.sensitivity.experiment import Experiment
from paredown.pipeline.compress.sensitivity.meter import Meter
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.recipe.file import load_recipe
from paredown.pipeline.run.run import Run
from paredown.pipeline.store.event import Event
from paredown.pipeline.store.stage import alone
from paredown.targets.cards.card import load_card

DEPTHS = (20, 32, 44, 56, 80, 110)
SENSED_DEPTHS = (20, 32, 44, 56)  # with 16 images and all groups
IMAGES = (16, 32, 64)  # of ResNet-20 with all groups
GROUPS = (3, 6, 9, 18)  # of ResNet-32, evenly spread, with 16 images
LEAST_S = 0.05  # of seconds that say something
STAGED_DEPTHS = (20, 32, 56)
STAGED = (
    "data.limit=256", "prune.macs=0.5", "prune.multiple=4", "prune.images=64", "recover.epochs=0.01",
    "squantize.weight_bits=4", "squantize.sparsity=0.6", "squantize.epochs=0.01", "bench.runs=10",
)  # fmt: skip


def slope(sizes: Sequence[float], seconds: Sequence[float]) -> str:
    """Of the logarithms."""
    return f"{np.polyfit(np.log(sizes), np.log(seconds), 1)[0]:.2f}"


def traced(arguments: argparse.Namespace) -> None:
    """A row per depth, and the slopes."""
    heads = ("layers", "operations", "groups", "trace, s", "couple, s", "both, s")
    found = []
    with Table("growth", heads, arguments.record) as table:
        for depth in DEPTHS:
            network, seconds = CifarResNet(depth, 10).eval(), []
            for _ in range(arguments.repeats):
                start = time.process_time()
                graph = trace(network, (1, 3, 32, 32))
                middle = time.process_time()
                groups = couple(graph)
                seconds.append((middle - start, time.process_time() - middle))
            each = np.min(seconds, axis=0)
            found.append((*each, each.sum()))
            cells = (f"{value:.3f}" for value in found[-1])
            table.row(f"ResNet-{depth}", len(graph.nodes), len(groups), *cells)
        table.row("slope", "", "", *(slope(DEPTHS, column) for column in np.transpose(found)))


def sense(depth: int, images: int, count: int | None, repeats: int) -> tuple[int, float]:
    """How many points, and the seconds that they take, the original network's run included."""
    graph = trace(CifarResNet(depth, 10).eval(), (1, 3, 32, 32))
    groups = couple(graph)
    free = [group for group in groups if not group.locked]
    chosen = free[:: len(free) // count][:count] if count else free
    widths = {group.name: [group.units // 2] for group in chosen}
    ranks = ranking.ranking(ranking.norm(graph, groups))
    x = np.random.default_rng(0).standard_normal((images, 3, 32, 32), np.float32)
    seconds = []
    for _ in range(repeats):
        meter = Meter(
            Experiment(graph, groups, ranks, widths, x, lambda outputs: (0.5, 0.0, 1.0), "none", chunk=16)
        )
        start = time.process_time()
        meter.ask(dict.fromkeys(meter.everything(), math.inf))
        seconds.append(time.process_time() - start)
    return len(widths), min(seconds)


def sensed(arguments: argparse.Namespace) -> None:
    """Rows of growing depth, images and groups, with their slopes."""
    heads = ("grows", "size", "points", "sense, s", "per point, s", "per point and image, ms")
    series = {
        "depth": [(depth, (depth, 16, None)) for depth in SENSED_DEPTHS],
        "images": [(images, (20, images, None)) for images in IMAGES],
        "groups": [(groups, (32, 16, groups)) for groups in GROUPS],
    }
    with Table("growth", heads, arguments.record, part="sense") as table:
        for name, rows in series.items():
            found = []
            for size, (depth, images, count) in rows:
                points, seconds = sense(depth, images, count, arguments.sensed)
                found.append((seconds, seconds / points, seconds / points / images))
                whole, each, least = found[-1]
                table.row(name, size, points, f"{whole:.3f}", f"{each:.4f}", f"{1000 * least:.2f}")
            slopes = (slope([size for size, _ in rows], column) for column in np.transpose(found))
            table.row(name, "slope", "", *slopes)


def stages(depth: int, cifar: Path) -> dict[str, float]:
    """Seconds of each stage of a run, made in this process alone."""
    found, began = dict[str, float](), [0.0]

    def hear(event: Event) -> None:
        if event.state == "running" and event.stage not in found:
            began[0] = time.process_time()
        elif event.state == "done":
            found[event.stage] = time.process_time() - began[0]

    recipe = load_recipe(
        ROOT / "apps" / "detector" / "recipes" / "digits.toml",
        [*data(f"resnet{depth}", cifar.absolute()), *STAGED],
    )
    with tempfile.TemporaryDirectory() as folder:
        Run("growth", recipe, load_card("host"), Path(folder), tell=hear, around=alone).execute()
    return found


def staged(arguments: argparse.Namespace) -> None:
    """A row per stage, its slope last."""
    heads = ("stage", *(f"ResNet-{depth}, s" for depth in STAGED_DEPTHS), "slope")
    runs = [[stages(depth, arguments.cifar) for depth in STAGED_DEPTHS] for _ in range(arguments.staged)]
    with Table("growth", heads, arguments.record, part="stages") as table:
        for name in runs[0][0]:
            if all(name in run for each in runs for run in each):
                least = np.min([[run[name] for run in each] for each in runs], axis=0)
                told = slope(STAGED_DEPTHS, least) if least.min() > LEAST_S else "too short"
                table.row(name, *(f"{seconds:.2f}" for seconds in least), told)
        table.note(f"settings: {' '.join(STAGED)}; the least of {arguments.staged} runs")


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sensed", type=int, default=2, help="repeats of the sensitivity test")
    parser.add_argument("--staged", type=int, default=2, help="repeats of a whole run")
    parser.add_argument("--only", choices=("trace", "sense", "stages"), help="one of the tables")
    parser.add_argument("--cifar", type=Path, help="for the stages: what bench/cifar.py made")
    add_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    trace(CifarResNet(8, 10), (1, 3, 32, 32))  # imports what the first one would
    made = {"trace": traced, "sense": sensed, "stages": staged}
    for name in [arguments.only] if arguments.only else ("trace", "sense"):
        made[name](arguments)


if __name__ == "__main__":
    main()
