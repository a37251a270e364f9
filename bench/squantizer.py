"""SQuantizer on real networks: accuracy, zeros, entropy and the rate that it allows.

    python bench/cifar.py ../shared/data/cifar10 CIFAR
    python bench/squantizer.py resnet20 --cifar CIFAR squantize.sparsity=0.6
    python bench/squantizer.py resnet56|yolo|digits ...
    python bench/squantizer.py mobilenet --cifar FOLDER    # bench/mobilenet.py prepares it

More settings follow as KEY=VALUE; several sparsities or bits make several rows: squantize.sparsity=0.6,0.8.
With --runs the stages are kept, and a killed run goes on where it was. Prints Markdown. `limit` is the size
that the entropy of the codes allows, layer by layer, biases as int32 and scales as float32 included; `bundle`
is what the LiteRT program takes in a bundle of its own, and the rate is of that. `codes apart`: how many
output codes of ExecuTorch and of LiteRT differ from the integer graph's on 32 inputs, and by how much.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from cases import combinations, data, make_run, parsed
from record import Table

from paredown.pipeline.bundle.packed.packing import pack_program
from paredown.pipeline.compress.training.data import preprocessed, run_network
from paredown.pipeline.store.files import read_json

USUAL = {
    "digits": ("squantize.epochs=10", "squantize.patience=10"),
    "yolo": ("squantize.epochs=24", "squantize.batch=16", "squantize.lr=0.001", "squantize.patience=24"),
    "mobilenet": (
        "squantize.epochs=12",
        "squantize.batch=16",
        "squantize.lr=0.002",
        "squantize.patience=24",
        "squantize.ema=0.98",
        "squantize.warmup=20",
        "squantize.per=channel",
        "squantize.grid=uniform",
        "squantize.sigma=-30",
        "squantize.rounding=gptq",
        "squantize.norm=frozen",
        "squantize.weight_bits=6",
        "squantize.ends=true",
        "squantize.bytes=0.46",
    ),  # fmt: skip
    "resnet20": ("squantize.epochs=6", "squantize.batch=64", "squantize.lr=0.02", "squantize.patience=20"),
    "resnet56": ("squantize.epochs=6", "squantize.batch=64", "squantize.lr=0.02", "squantize.patience=20"),
}


def entropy_bits(codes: np.ndarray) -> float:
    """Bits that an ideal code takes for all of these."""
    share = np.unique(codes, return_counts=True)[1] / codes.size
    return float(-(share * np.log2(share)).sum() * codes.size)


def row(case: str, settings: list[str], runs: Path) -> list[str]:
    """Trains, and scores what would be shipped."""
    work = make_run(case, settings, runs)
    stages = work.job
    squantizing = stages.squantizing
    work.reach([*stages.lower.values(), *stages.parity.values()])
    test, task = work.job.task.data("test"), work.job.task
    inputs = preprocessed(test, task.preprocess)
    whole = task.score_outputs(run_network(task.network(), inputs), test)[task.metric]
    graph, integer = stages.graph(), stages.integer_graph()
    outputs = []
    for part in inputs.split(16):
        values = graph.run(part)
        arrays = [values[name].numpy() for name in graph.outputs]
        outputs += [tuple(a[i : i + 1] for a in arrays) for i in range(len(part))]
    score = task.score_outputs(outputs, test)[task.metric]
    int8 = task.score(stages.predictor("integer"), test, lambda done, total: None)[task.metric]
    layers = [node for node in integer if node.weight is not None]
    coded = {node.parameters["weight"] for node in graph if node.scale is not None}
    zeros = sum(int((n.weight == 0).sum()) for n in graph if n.parameters.get("weight") in coded)
    count = sum(n.weight.numel() for n in graph if n.parameters.get("weight") in coded)
    bits = sum(entropy_bits(node.weight) for node in layers)
    bits += sum(32 * (node.bias.size + node.weight_scale.size) for node in layers)
    state = sum(t.numel() * t.element_size() for t in task.network().state_dict().values())
    packed = integer.weights, integer.layer_parameters
    wires = {name: len(pack_program(stages.program(stages.lower[name]), *packed)) for name in stages.lower}
    apart = [read_json(stages.path(stage) / "parity.json")["outputs"] for stage in stages.parity.values()]
    wire = wires["litert"]
    wanted = work.job.recipe.squantize
    return [
        case, f"{wanted.weight_bits}", f"{wanted.activation_bits or 8}", f"{zeros / max(1, count):.4f}",
        f"{whole:.4f}", f"{score:.4f}", f"{int8:.4f}", f"{100 * (whole - int8):.2f}",
        f"{bits / 8 / 1024:.1f}", f"{wire / 1024:.1f}", f"{wires['executorch'] / 1024:.1f}",
        f"{state / wire:.1f}x", f"{squantizing.history()['steps']}",
        "/".join(f"{100 * each['differing'] / each['values']:.4g} % by {each['max_lsb']}" for each in apart),
    ]  # fmt: skip


def main() -> None:
    """Prints a row per combination."""
    arguments = parsed(__doc__, USUAL)
    torch.set_num_threads(1)
    case, runs = arguments.case, arguments.runs
    heads = (
        "network", "bits", "act.", "zeros", "fp32", "float", "int8", "drop, points", "limit KiB",
        "bundle KiB", ".pte's", "rate", "steps", "codes apart",
    )  # fmt: skip
    base = [*data(case, arguments.cifar.absolute()), "squantize.weight_bits=4", *USUAL[case]]
    with Table(f"squantizer-{case}", heads, arguments.record) as table:
        for chosen in combinations(arguments.more):
            table.row(*row(case, [*base, *chosen], runs))


if __name__ == "__main__":
    main()
