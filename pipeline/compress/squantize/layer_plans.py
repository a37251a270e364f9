"""Which layers become sparse and low-bit, and how, from the recipe's section."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from paredown.pipeline.compress.grids.grid import TOP, GridConfig
from paredown.pipeline.compress.squantize.qat_network import GridSchedule, LayerPlan, quantizable
from paredown.pipeline.compress.training.sparsify import prunable
from paredown.pipeline.graph.graph import Graph
from paredown.pipeline.recipe.schema import Squantize
from paredown.targets.cards.tomlfile import nearest
from paredown.targets.errors import UsageError

INT8 = 8  # bits of a layer that post-training quantization takes care of


def layer_plans(
    wanted: Squantize,
    graph: Graph,
    network: nn.Module,
    bits: Mapping[str, int] | None = None,
    most: int = TOP,
) -> dict[str, LayerPlan]:
    """State-dict name of each weight that is made sparse and low-bit -> how.

    The first and last layers and depthwise convolutions keep int8: they are small and most sensitive.

    Args:
        wanted: the recipe's section.
        graph: traced from the network.
        network: its parameters that are trained can be squantized.
        bits: weight -> bits, chosen for a budget; the recipe's own `layers` win.
        most: the largest weight code.

    Raises:
        UsageError: `layers` names one that the network does not have, or nothing is left.
    """
    assert wanted.weight_bits is not None
    possible = {name.removesuffix(".weight"): name for name in quantizable(graph, network)}
    for layer in wanted.layers:
        if layer not in possible:
            guess = nearest(layer, possible)
            raise UsageError(
                f"squantize.layers names {layer}, which the network does not have"
                + (f"; did you mean {guess}?" if guess else ""),
                hint=f"its layers are {', '.join(possible)}",
            )
    usual = set(prunable(graph, ends=wanted.ends))
    chosen = {layer: wanted.weight_bits for layer, name in possible.items() if name in usual}
    changed = {name.removesuffix(".weight"): found for name, found in (bits or {}).items()} | wanted.layers
    chosen |= changed
    plans = {}
    for layer, name in possible.items():
        if layer in chosen and changed.get(layer) != INT8:
            config = GridConfig(
                chosen[layer], wanted.grid, wanted.order, wanted.masked_gradient, wanted.per, most
            )
            plans[name] = LayerPlan(config, wanted.zeros, wanted.sigma)
    if not plans:
        raise UsageError(
            "no layer is left to be made sparse and low-bit",
            where="squantize",
            hint="a network of one or two layers needs squantize.ends = true",
        )
    return plans


def schedule(wanted: Squantize, steps: int) -> GridSchedule:
    """The recipe's parts as steps."""
    delay = round(wanted.delay * steps)
    return GridSchedule(delay, round(wanted.ramp * (steps - delay)))
