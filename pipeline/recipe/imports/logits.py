"""Networks that end in a softmax: training and int8 want what stands before it."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from paredown.pipeline.recipe.imports.imported import Imported
from paredown.pipeline.recipe.imports.onnx.network import Network

NOTE = "the softmax at the end is left out: the network returns logits"


def before_softmax(imported: Imported) -> Imported:
    """The same model without the softmax that makes its only output, if one does."""
    network = imported.module
    if not isinstance(network, Network) or len(network.outputs) != 1 or len(network.steps) < 2:
        return imported
    last = network.steps[-1]
    softmax = isinstance(network.get_submodule(last.path), (nn.Softmax, nn.LogSoftmax))
    if not softmax or last.outputs != network.outputs:
        return imported
    modules = {step.path: network.get_submodule(step.path) for step in network.steps[:-1]}
    made = Network(modules, network.steps[:-1], last.inputs).eval()
    return replace(imported, module=made, notes=(*imported.notes, NOTE))
