"""Networks that end in a softmax or in boxes: training and int8 want what stands before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from paredown.pipeline.recipe.imports.imported import Imported
from paredown.pipeline.recipe.imports.onnx.network import Network, needed

BOXES_NOTE = "the boxes that the file computes from its heads are left out: the network returns the heads"
ORDER_NOTE = "the outputs are in the order of the heads' levels here"
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


def last_maps(imported: Imported) -> dict[str, tuple[int, ...]]:
    """The maps that a network's last convolutions make, by the name of the value: their shapes.

    An exporter may compute boxes from them. The convolution by which it takes the mean of bins is none of
    them.
    """
    network = imported.module
    if not isinstance(network, Network):
        return {}
    shapes: dict[str, tuple[int, ...]] = {}
    hooks = []
    behind: set[str] = set()  # values from which another convolution is computed
    last = []
    for step in reversed(network.steps):
        module = network.get_submodule(step.path)
        convolution = isinstance(module, nn.Conv2d) and not _counts(module)
        if convolution and not behind & set(step.outputs):
            last.append(step)
        if convolution or behind & set(step.outputs):
            behind |= set(step.inputs)
    for step in last:

        def note(_module: nn.Module, _given: object, made: Tensor, name: str = step.outputs[0]) -> None:
            shapes[name] = tuple(made.shape)

        hooks.append(network.get_submodule(step.path).register_forward_hook(note))
    with torch.no_grad():
        network(torch.zeros(imported.shape))
    for hook in hooks:
        hook.remove()
    return {step.outputs[0]: shapes[step.outputs[0]] for step in reversed(last)}


def _counts(layer: nn.Conv2d) -> bool:
    """Whether a layer's weights are 0, 1, 2 and so on: the mean of probabilities of so many bins."""
    weight = layer.weight.detach().reshape(-1)
    return layer.out_channels == 1 and torch.equal(weight, torch.arange(len(weight), dtype=weight.dtype))


def before_boxes(imported: Imported, wanted: Sequence[tuple[int, ...]]) -> Imported:
    """The same model with the maps of a detector's heads as its outputs, in order.

    Args:
        imported: the model; where its outputs are those maps already it comes back as it is.
        wanted: shapes of the maps; those of one shape are taken in their running order.

    Returns:
        The model as it was where the last convolutions do not make these maps.
    """
    network = imported.module
    if not isinstance(network, Network):
        return imported
    left, outputs = last_maps(imported), []
    for shape in wanted:
        name = next((name for name, made in left.items() if made == tuple(shape)), None)
        if name is None:
            return imported
        del left[name]
        outputs.append(name)
    if left or not outputs or tuple(outputs) == network.outputs:
        return imported
    steps = needed(network.steps, outputs)
    modules = {step.path: network.get_submodule(step.path) for step in steps}
    note = ORDER_NOTE if set(outputs) == set(network.outputs) else BOXES_NOTE
    return replace(
        imported, module=Network(modules, steps, outputs).eval(), notes=(*imported.notes, note), outputs=()
    )
