"""Time of tracing and coupling as a network gets deeper: CIFAR ResNets of 20 to 110 layers, random weights.

    python bench/growth.py                 # half a minute

Seconds of processor time on one thread, the least of some repeats. The last row is the slope of a straight
line through the logarithms of depth and seconds: 1 is linear growth, 2 quadratic. Prints Markdown.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from record import Table, add_option

from paredown.apps.classifier.network import CifarResNet
from paredown.pipeline.compress.coupling.coupling import couple
from paredown.pipeline.graph.trace import trace

DEPTHS = (20, 32, 44, 56, 80, 110)


def main() -> None:
    """Prints a row per depth, and the slopes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    add_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    trace(CifarResNet(8, 10), (1, 3, 32, 32))  # imports what the first one would
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
        slopes = [np.polyfit(np.log(DEPTHS), np.log(column), 1)[0] for column in np.transpose(found)]
        table.row("slope", "", "", *(f"{slope:.2f}" for slope in slopes))


if __name__ == "__main__":
    main()
