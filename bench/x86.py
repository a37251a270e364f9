"""int8 and float32 on every runtime, side by side, one thread: five networks of the race on x86.

    python bench/x86.py [NETWORK ...] [--runs 20] [--weight-range 63]

Weights are random: time does not depend on them. Prints Markdown, and what the CPU can do with int8.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from record import Table, add_option
from torch import nn

from paredown.apps.classifier.network import build
from paredown.apps.detector.network import YoloV2
from paredown.pipeline.device.rollback import FLOAT, fastest
from paredown.pipeline.device.timing import interleaved
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower.integer import quantize
from paredown.pipeline.lower.runtimes import RUNTIMES
from paredown.targets.host.host import this_machine

COLUMNS = ("network", "runtime", "int8 ms", "p25", "p75", "float32 ms", "against its float32",
           "against the best float32")  # fmt: skip


def lite() -> nn.Module:
    """YOLO-LITE, trial 3: seven convolutions, five pools."""
    widths, layers, channels = (16, 32, 64, 128, 128, 256), list[nn.Module](), 3
    for index, width in enumerate(widths):
        layers += [
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.1),
        ]
        layers += [nn.MaxPool2d(2)] if index < 5 else []
        channels = width
    return nn.Sequential(*layers, nn.Conv2d(channels, 125, 1))


def yolo(name: str) -> Callable[[], tuple[nn.Module, int]]:
    """A network of the detector, and the size of its input."""

    def make() -> tuple[nn.Module, int]:
        network = YoloV2.builtin(name)
        return network, network.height

    return make


NETWORKS: dict[str, Callable[[], tuple[nn.Module, int]]] = {
    "yolov2-tiny-voc": yolo("yolov2-tiny-voc"),
    "yolo-lite": lambda: (lite(), 224),
    "mobilenet_v2": lambda: (build("mobilenet_v2", 1000), 224),
    "resnet56": lambda: (build("resnet56", 10), 32),
    "digits": yolo("yolov2-nano"),
}


def main() -> None:
    """Prints one row per network and runtime."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--weight-range", type=int, choices=(63, 127), default=127)
    add_option(parser)
    arguments = parser.parse_args()
    has = this_machine().instructions
    notes = [
        f"One thread, {arguments.runs} interleaved runs; weight codes within {arguments.weight_range}; "
        f"the processor's instructions for int8: {has or 'unknown'}."
    ]
    with Table("x86", COLUMNS, arguments.record, notes=notes) as table:
        for name in arguments.networks:
            torch.manual_seed(0)
            network, side = NETWORKS[name]()
            graph = trace(network.eval(), (1, 3, side, side))
            x = torch.rand(1, 3, side, side)
            ranges = {key: (float(v.min()), float(v.max())) for key, v in graph.run(x).items()}
            integer = quantize(graph, ranges, input_range=(0.0, 1.0), most=arguments.weight_range)
            codes, runners = integer.input.out.quantize(x.numpy()), {}
            for key, runtime in RUNTIMES.items():
                runners[key + FLOAT] = (runtime.load(runtime.lower_float(graph).data), x.numpy())
                runners[key] = (runtime.load(runtime.lower_integer(integer).data), codes)
            times = interleaved(runners, arguments.runs, lambda done, total: None)
            medians = {key: float(np.median(values)) for key, values in times.items()}
            best = min(medians[key + FLOAT] for key in RUNTIMES)
            for key in RUNTIMES:
                low, high = np.percentile(times[key], [25, 75])
                own, whole = medians[key + FLOAT], medians[key]
                table.row(name, key, f"{whole:.2f}", f"{low:.2f}", f"{high:.2f}", f"{own:.2f}",
                          f"{own / whole:.2f}x", f"{best / whole:.2f}x")  # fmt: skip
            print(*fastest(medians, list(RUNTIMES)), sep="\n")


if __name__ == "__main__":
    main()
