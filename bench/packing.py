"""What do weight codes take on the wire? Their entropy against packed bytes, and whole programs.

    python bench/packing.py --weights resnet20.th

Without weights of a CIFAR ResNet the network is a random one. Its codes are made in one shot, without
training: the first and the last layer 8-bit, the others of the threshold grid. Prints Markdown; every packed
stream is expanded again and compared. Entropy is of order 0, each layer with its own distribution and for
nothing: a decoder would have to be told it.
"""

from __future__ import annotations

import argparse
import dataclasses
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from record import Table, add_option
from scipy.stats import entropy

from paredown.apps.classifier.network import build
from paredown.pipeline.bundle.packed.packing import pack_codes, pack_program, pack_programs
from paredown.pipeline.compress.grids.grid import GridConfig, encode, sigma_for
from paredown.pipeline.graph.trace import trace
from paredown.pipeline.lower.integer import IntegerGraph, quantize
from paredown.pipeline.lower.runtimes import RUNTIMES, runtime
from paredown.pipeline.recipe.weights import load_checkpoint
from paredown.targets.runners.expand import expand_program, expand_programs, unpack_codes

GRIDS = ((8, 0.0), (4, 0.6), (4, 0.84), (4, 0.95), (3, 0.9), (2, 0.7), (2, 0.95))  # bits, zeros
LARGE = 5000
WHAT = (
    "Codes of one network, made in one shot: the first and the last layer 8-bit, the others of the threshold "
    "grid. Entropy is of order 0, each layer with its own distribution. Last four columns: bytes as a share "
    "of the entropy."
)


def limit(layers: Sequence[NDArray[np.int8]]) -> float:
    """Order-0 entropy in bytes."""
    counts = [np.unique(layer, return_counts=True)[1] for layer in layers]
    return float(sum(count.sum() * entropy(count, base=2) for count in counts) / 8)


def integer_graph(name: str, weights: Path | None) -> IntegerGraph:
    """The 8-bit graph of a network."""
    torch.manual_seed(0)
    network = build(name).eval()
    if weights:
        fixed = [key for key in network.state_dict() if "shortcut" in key]
        load_checkpoint(weights, network, name, fixed)
    side = 32 if name[6:] in {"20", "32", "44", "56"} else 224
    image = torch.rand(1, 3, side, side)
    graph = trace(network, tuple(image.shape))
    ranges = {key: (float(v.min()), float(v.max())) for key, v in graph.run(image).items()}
    return quantize(graph, ranges, input_range=(0.0, 1.0))


def coarser(integer: IntegerGraph, bits: int, zeros: float) -> IntegerGraph:
    """The graph with fewer different codes, and more zeros."""
    if bits == 8:
        return integer
    nodes = list(integer.nodes)
    places = [index for index, node in enumerate(nodes) if node.weight is not None]
    for index in places[1:-1]:
        weight = torch.from_numpy(np.asarray(nodes[index].weight, np.float32))
        if float((weight != 0).float().mean()) < 1 - zeros:
            continue  # a shortcut of ones and zeros
        codes, _ = encode(weight, sigma_for(weight, zeros), GridConfig(bits=bits))
        nodes[index] = dataclasses.replace(nodes[index], weight=codes.numpy().astype(np.int8))
    return dataclasses.replace(integer, nodes=tuple(nodes))


def of_codes(integer: IntegerGraph, zstd: zstandard.ZstdCompressor) -> list[str]:
    """What the codes of all layers take, against their entropy."""
    layers = integer.weights
    flat = np.concatenate([layer.ravel() for layer in layers])
    packed, least, plain = pack_codes(*layers), limit(layers), flat.tobytes()
    assert (unpack_codes(packed) == flat).all()
    large = [layer for layer in layers if layer.size > LARGE and limit([layer]) > 0.3 * layer.size / 8]
    alone = [len(pack_codes(layer)) / limit([layer]) for layer in large]
    return [
        f"{flat.size:,}", f"{(flat == 0).mean():.1%}", f"{least:,.0f}", f"{len(packed):,}",
        f"{len(packed) / least:.3f}", f"{min(alone):.2f} to {max(alone):.2f}",
        f"{len(zlib.compress(plain, 9)) / least:.2f}", f"{len(zstd.compress(plain)) / least:.2f}",
    ]  # fmt: skip


def of_programs(integer: IntegerGraph, zstd: zstandard.ZstdCompressor) -> dict[str, list[str]]:
    """What whole programs take, alone and together, by runtime."""
    layers, parameters = integer.weights, integer.layer_parameters
    programs = {name: runtime(name).lower_integer(integer).data for name in RUNTIMES}
    both = pack_programs(programs, layers, parameters)
    assert expand_programs(both) == programs
    found = {}
    for name, program in programs.items():
        one = pack_program(program, layers, parameters)
        assert expand_program(one) == program
        sizes = (len(program), len(zstd.compress(program)), len(one), len(both))
        found[name] = [f"{size:,}" for size in sizes]
    return found


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--weights", type=Path)
    add_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    whole = integer_graph(arguments.network, arguments.weights)
    zstd = zstandard.ZstdCompressor(level=19)
    first = (
        "codes", "weights", "zeros", "entropy B", "packed B", "of entropy", "large layers alone", "zlib",
        "zstd",
    )  # fmt: skip
    second = ("programs", "codes", "file B", "zstd B", "packed B", "both, packed B")
    found: list[tuple[object, ...]] = []
    with Table("packing", first, arguments.record, part="codes", notes=[WHAT]) as table:
        for bits, zeros in GRIDS:
            integer = coarser(whole, bits, zeros)
            label = f"{bits}-bit, {zeros:.0%}" if zeros else f"{bits}-bit"
            table.row(label, *of_codes(integer, zstd))
            found += [(name, label, *cells) for name, cells in of_programs(integer, zstd).items()]
    print()
    with Table("packing", second, arguments.record, part="programs") as table:
        for row in found:
            table.row(*row)


if __name__ == "__main__":
    main()
