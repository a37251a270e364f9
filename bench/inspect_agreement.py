"""Does `paredown inspect` tell where operations run? Its prediction against what the runtimes did, op by op.

    python bench/inspect_agreement.py               # about 5 minutes on 2 cores; or --input 96

Random weights, and ranges of one random image: which operations a network has decides where they run, and not
their values. The prediction sees neither the ranges nor the programs. All of the three networks stay on their
delegates, so there is a fourth that does not: ResNet-18 with leaky ReLUs. Prints Markdown.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from record import Table, add_option
from torch import nn

from paredown.apps.classifier.network import build
from paredown.apps.detector.darknet.darknet import builtin_cfg
from paredown.apps.detector.network import YoloV2
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower.executorch import program as executorch
from paredown.pipeline.lower.integer import IntegerGraph, quantize
from paredown.pipeline.lower.litert import program as litert
from paredown.pipeline.lower.predict.inspect import signs
from paredown.pipeline.lower.predict.placement import Placement, place
from paredown.targets.cards.card import load_card
from paredown.targets.mcu.vela import compile_for
from paredown.targets.runners.litert import Runner

#: Network -> the side of its input.
NETWORKS = {"yolov2-voc": 416, "resnet18": 224, "resnet18-leaky": 224, "mobilenet_v2": 224}
HOST, NPU = "host", "cortex-m55-ethos-u55-128"
#: What ExecuTorch calls an operation that it leaves outside; it does not name the node.
ATEN = {
    "conv2d": "convolution", "depthwise_conv2d": "convolution", "linear": "linear", "relu": "relu",
    "relu6": "hardtanh", "leaky_relu": "leaky_relu", "max_pool2d": "max_pool2d_with_indices", "add": "add",
    "concat": "cat", "mean": "mean", "pad": "constant_pad_nd", "reshape": "view_copy",
    "reorg": "permute_copy", "permute": "permute_copy",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One network on one runtime.

    Attributes:
        where: the runtime and its delegate.
        placement: the prediction.
        predicted: names of the operations outside the delegate.
        real: the same, of what the runtime did; of ExecuTorch, kinds of operations.
        calls: delegate calls that the runtime makes; None where it does not tell.
    """

    where: str
    placement: Placement
    predicted: Counter[str]
    real: Counter[str]
    calls: int | None

    def cells(self) -> list[str]:
        """As a row of the table has them."""
        count = len(self.placement.operations)
        wrong = (self.predicted - self.real).total() + (self.real - self.predicted).total()
        calls = "not told" if self.calls is None else f"{self.placement.segments} / {self.calls}"
        outside = f"{self.predicted.total()} / {self.real.total()}"
        return [self.where, str(count), outside, calls, f"{count - wrong} of {count}"]


def network_of(name: str) -> nn.Module:
    """A network with random weights."""
    torch.manual_seed(0)
    if name.startswith("yolo"):
        return YoloV2(builtin_cfg(name)).eval()
    network = build(name.removesuffix("-leaky"))
    if name.endswith("-leaky"):
        for block in [module for module in network.modules() if hasattr(module, "relu")]:
            block.relu = nn.LeakyReLU(0.1)
    return network.eval()


def rows(name: str, side: int) -> Iterator[Row]:
    """The network on both runtimes of the host, and on the Ethos-U."""
    graph = trace(network_of(name), (1, 3, side, side), opaque=True)
    guess = quantize(graph, signs(graph, (0.0, 1.0)), input_range=(0.0, 1.0))
    image = torch.rand((1, 3, side, side), generator=torch.Generator().manual_seed(0))
    ranges = {key: (float(v.min()), float(v.max())) for key, v in graph.run(image).items()}
    integer = quantize(graph, ranges, input_range=(0.0, 1.0))
    for card, runtime, check in (
        (HOST, "litert", on_litert),
        (NPU, "litert", on_ethos),
        (HOST, "executorch", on_executorch),
    ):
        yield check(place(graph, guess, load_card(card), runtime), integer)


def on_litert(placement: Placement, integer: IntegerGraph) -> Row:
    """LiteRT names the tensors that are made outside its delegate."""
    runner = Runner(litert.lower_integer(integer).data)
    real = Counter({node_of(tensor) for tensor in runner.undelegated_tensors()})
    return Row("LiteRT, XNNPACK", placement, names(placement), real, runner.undelegated()[0])


def on_ethos(placement: Placement, integer: IntegerGraph) -> Row:
    """Vela names the operators on the CPU."""
    compiled = compile_for(load_card(NPU), litert.lower_integer(integer).data)
    real = Counter({node_of(operator.name) for operator in compiled.on_cpu})
    where = f"{compiled.accelerator}, Vela {compiled.vela}"
    return Row(where, placement, names(placement), real, None)


def on_executorch(placement: Placement, integer: IntegerGraph) -> Row:
    """ExecuTorch names kinds of operations; casts between the sides are none of the network's."""
    lowered = executorch.lower_integer(integer)
    real = Counter(kind.split(".")[1] for kind in lowered.undelegated if not kind.startswith("quantized_"))
    predicted = Counter(ATEN[operation.kind] for operation in placement.leaving)
    return Row("ExecuTorch, XNNPACK", placement, predicted, real, lowered.subgraphs)


def names(placement: Placement) -> Counter[str]:
    """Of the operations that are predicted to leave."""
    return Counter(operation.name for operation in placement.leaving)


def node_of(tensor: str) -> str:
    """The node whose tensor this is in a .tflite."""
    return re.sub(r"(:plain|:nhwc|/padded|/before|/after)$", "", tensor)


def main() -> None:
    """Prints one row per network and runtime."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--input", type=int, help="side of the input image, a multiple of 32")
    add_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("int8, random weights; predicted / real\n")
    heads = ("network", "runtime", "operations", "outside the delegate", "delegate calls", "agree")
    with Table("inspect-agreement", heads, arguments.record) as table:
        for name in arguments.networks:
            side = arguments.input or NETWORKS[name]
            for row in rows(name, side):
                table.row(f"{name} at {side}", *row.cells())


if __name__ == "__main__":
    main()
