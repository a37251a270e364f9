"""What a training step costs with the quantizers on: time and memory against the plain step, interleaved.

    python bench/step_cost.py [--batch 64] [--steps 12]

One thread, forward and backward of ResNet-20 on random images; seconds of the process. Memory is what
autograd keeps for the backward pass, each storage counted once. Prints Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from record import Table, add_option
from torch import Tensor, nn

from paredown.apps.classifier.network import build
from paredown.pipeline.compress.grids.grid import GridConfig
from paredown.pipeline.compress.squantize.qat_network import LayerPlan, QatNetwork, quantizable
from paredown.pipeline.graph.trace import trace


def kept_bytes(network: nn.Module, x: Tensor) -> int:
    """Bytes that the backward pass needs."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = network(x).square().mean()
    loss.backward()
    return sum(seen.values())


def main() -> None:
    """Prints one row per way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12)
    add_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(arguments.batch, 3, 32, 32)
    network = build("resnet20").eval()
    graph = trace(network, (1, 3, 32, 32))
    plans = {name: LayerPlan(GridConfig(4), sparsity=0.6) for name in quantizable(graph, network)}
    ways: dict[str, nn.Module] = {"plain": network}
    for bits in (None, 8, 4):
        live = QatNetwork(network, graph, plans, bits)
        if bits:
            live.start_clips(x)
        ways["weights 4 bits" + (f", activations {bits}" if bits else "")] = live
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.steps + 2):
        for name, module in ways.items():
            module.train()
            start = time.process_time()
            module(x).square().mean().backward()
            times[name].append(time.process_time() - start)
    heads = ("step", "median s (p10-p90)", "against plain", "kept MiB", "against plain")
    base = statistics.median(times["plain"][2:])
    memory = {name: kept_bytes(module.train(), x) for name, module in ways.items()}
    with Table("step-cost", heads, arguments.record) as table:
        for name, found in times.items():
            tenths = statistics.quantiles(found[2:], n=10)
            middle = statistics.median(found[2:])
            table.row(
                name, f"{middle:.3f} ({tenths[0]:.3f}-{tenths[-1]:.3f})", f"{middle / base:.2f}x",
                f"{memory[name] / 2**20:.0f}", f"{memory[name] / memory['plain']:.2f}x",
            )  # fmt: skip


if __name__ == "__main__":
    main()
