"""A network in training as it will run on the device: sparse low-bit weights, low-bit activations, live BN.

`QatNetwork` runs the traced graph with the parameters of the user's own module, by their names: it copies
none, and when it is gone the module is what it was, but trained. Every forward pass makes codes of the latent
weights anew (`pipeline.compress.grids.grid`); batch norm stays live, and becomes a part of the scales in the
end (`pipeline.compress.squantize.fold`). The clips of activations sit where the integer graph has its
tensors, one for all that share a scale (`pipeline.compress.squantize.clip_places`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.pipeline.compress.grids.grid import GridConfig, fake_quantize, sigma_for
from paredown.pipeline.compress.squantize.clip import Clip, prescribed
from paredown.pipeline.compress.squantize.clip_places import clip_places, kept_at_8_bits
from paredown.pipeline.graph.graph import Graph, Node, apply
from paredown.pipeline.graph.operations.kinds import operation

#: Tensors by their names in the network's state dict.
State = Mapping[str, Tensor]

SOLVE_EVERY = 20  # steps between two solutions for a wanted sparsity


@dataclass(frozen=True)
class LayerPlan:
    """What becomes of a layer's weights.

    Attributes:
        config: the grid.
        sparsity: wanted share of zeros; None where sigma is given.
        sigma: the threshold in standard deviations of |W|; None where a sparsity is wanted.
    """

    config: GridConfig
    sparsity: float | None = None
    sigma: float | None = None


@dataclass(frozen=True)
class GridSchedule:
    """When the quantizers set in.

    Attributes:
        delay: steps in float before they do.
        ramp: steps after these over which a wanted sparsity rises to its full value, fast first (cubic).
    """

    delay: int = 0
    ramp: int = 0

    def share(self, step: int) -> float:
        """The part of the wanted sparsity at a step, 0..1."""
        if not self.ramp:
            return 1.0
        left = 1 - min(max(step - self.delay, 0) / self.ramp, 1.0)
        return 1 - left**3


class QatNetwork(nn.Module):
    """The network with quantizers on; in evaluation mode exactly what is shipped, whatever the schedule.

    How far it is and the present thresholds are buffers, so that a resumed run goes on with the very same.

    Args:
        network: the user's; its parameters are trained in place.
        graph: traced from it, no opaque nodes.
        plans: state-dict name of a weight -> what becomes of it; the others stay float.
        activation_bits: 2 to 8, of what layers read; None leaves activations float.
        schedule: when the quantizers set in.
        live_norm: whether batch norm takes each batch's statistics in training, and learns from them.
    """

    step: Tensor
    sigmas: Tensor

    def __init__(
        self,
        network: nn.Module,
        graph: Graph,
        plans: Mapping[str, LayerPlan],
        activation_bits: int | None = None,
        schedule: GridSchedule | None = None,
        live_norm: bool = True,
    ) -> None:
        super().__init__()
        self.network, self.plans, self.schedule = network, dict(plans), schedule or GridSchedule()
        self.momenta, self.live_norm = _momenta(network, graph), live_norm
        state = dict(network.named_parameters()) | dict(network.named_buffers())
        # The graph's own weights are used only where they are no parameters of the network.
        self.graph = Graph(tuple(_light(node, state) for node in graph), graph.outputs)
        self._layers = {node.parameters["weight"]: node for node in self.graph if "weight" in node.parameters}
        self.places = clip_places(graph, plans) if activation_bits else ()
        self.kept = kept_at_8_bits(graph, self.places)
        self.clips = nn.ModuleList(
            Clip(activation_bits or 8, place.high, place.low, signed=place.signed) for place in self.places
        )
        self.clip_of = {name: index for index, place in enumerate(self.places) for name in place.makers}
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("sigmas", torch.zeros(len(self.plans), dtype=torch.float64))
        self._frozen: tuple[Any, dict[str, Tensor]] | None = None

    def _apply(self, fn: Any, recurse: bool = True) -> QatNetwork:
        """Brings along the tensors that are the graph's own when the module goes to another device."""
        super()._apply(fn, recurse)
        self.graph = Graph(tuple(_applied(node, fn) for node in self.graph), self.graph.outputs)
        return self

    @property
    def state(self) -> State:
        """Parameters and buffers of the network."""
        return dict(self.network.named_parameters()) | dict(self.network.named_buffers())

    @property
    def clips_named(self) -> dict[str, Clip]:
        """Name of a tensor -> the clip behind what makes it."""
        return {node: self.clips[index] for node, index in self.clip_of.items()}  # type: ignore[misc]

    def grids(self) -> dict[str, dict[str, Any]]:
        """Name of a tensor -> its grid: the number of levels, those below zero, and the step."""
        return {
            name: {"levels": clip.levels + 1, "below_zero": clip.below, "step": float(clip.step.detach())}
            for name, clip in self.clips_named.items()
        }

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The network's outputs, as the network itself returns them."""
        if self.training:
            self.step += 1
        on = not self.training or int(self.step) > self.schedule.delay
        state = self.state
        values = self._values(x, state, self.quantized(state) if on else {}, self.clip_of if on else {})
        outputs = tuple(values[name] for name in self.graph.outputs)
        return outputs if len(outputs) > 1 else outputs[0]

    def _values(
        self, x: Tensor, state: State, weights: Mapping[str, Tensor], clipped: Mapping[str, int]
    ) -> dict[str, Tensor]:
        """Every tensor of the network by name, with these weights and clips in the place of its own."""
        values: dict[str, Tensor] = {}
        for node in self.graph:
            inputs = [values[name] for name in node.inputs]
            if node.kind == "input":
                values[node.name] = x
            elif node.name in clipped:
                values[node.name] = self._clipped(node, inputs, state, weights)
            else:
                values[node.name] = self.compute(node, inputs, state, weights)
        return values

    def _clipped(
        self, node: Node, inputs: Sequence[Tensor], state: State, weights: Mapping[str, Tensor]
    ) -> Tensor:
        """Computes one node and clips what it makes."""
        clip = self.clips_named[node.name]
        if not clip.signed:  # the clip is the ReLU
            return clip(inputs[0])
        made, fixed = self.compute(node, inputs, state, weights), operation(node.kind).fixed(node)
        return clip(made if fixed is None else prescribed(made, *fixed))

    def compute(
        self, node: Node, inputs: Sequence[Tensor], state: State, weights: Mapping[str, Tensor]
    ) -> Tensor:
        """Computes one node, with these weights in the place of the network's own; no clips."""
        if "weight" in node.parameters and node.weight is None:
            return self._layer(node, inputs[0], state, weights)
        return apply(node, *inputs)

    def _layer(self, node: Node, x: Tensor, state: State, weights: Mapping[str, Tensor]) -> Tensor:
        names = node.parameters
        weight = weights.get(names["weight"])
        if weight is None:
            weight = own_weight(node, state)
        x = apply(replace(node, weight=weight, bias=state[names["bias"]] if "bias" in names else None), x)
        if "bn_mean" not in names:
            return x
        gamma, beta = (state[names[role]] if role in names else None for role in ("bn_weight", "bn_bias"))
        mean, var = state[names["bn_mean"]], state[names["bn_var"]]
        momentum, eps = self.momenta[names["bn_mean"]], node.attrs["bn_eps"]
        return F.batch_norm(x, mean, var, gamma, beta, self.training and self.live_norm, momentum, eps)

    def quantized(self, state: State | None = None) -> dict[str, Tensor]:
        """The weights that the codes stand for, by state-dict name, (out, ...) as the graph has them.

        Args:
            state: the network's parameters, if they are at hand.
        """
        state = state or dict(self.network.named_parameters())
        if self.training:
            self._solve(state)
            plans = zip(self.plans.items(), self.sigmas, strict=True)
            return {
                name: fake_quantize(self.latent(name, state), sigma, plan.config)
                for (name, plan), sigma in plans
            }
        with torch.no_grad():
            versions = tuple((state[n].data_ptr(), state[n]._version) for n in self.plans)
            if self._frozen is None or self._frozen[0] != versions:
                weights = {name: self.latent(name, state) for name in self.plans}
                found = {
                    name: fake_quantize(weight, self.final_sigma(name, weight), self.plans[name].config)
                    for name, weight in weights.items()
                }
                self._frozen = (versions, found)
            return self._frozen[1]

    def latent(self, name: str, state: State) -> Tensor:
        """The weight that is trained, (out, ...) as the graph has it; it shares the parameter's memory."""
        return own_weight(self._layers[name], state)

    def final_sigma(self, name: str, weight: Tensor) -> float:
        """A layer's threshold as it is shipped: the wanted sparsity, to the weight.

        Args:
            name: of the weight.
            weight: of `latent`.
        """
        plan = self.plans[name]
        if plan.sparsity is None:
            return plan.sigma or 0.0
        return sigma_for(weight, plan.sparsity, plan.config.per)

    def _solve(self, state: State) -> None:
        """This step's thresholds; a wanted sparsity is solved for every so often, by the step's number."""
        since = int(self.step) - self.schedule.delay - 1
        if since % SOLVE_EVERY:
            return
        share = self.schedule.share(int(self.step))
        for index, (name, plan) in enumerate(self.plans.items()):
            if plan.sparsity is not None:
                weight = self.latent(name, state)
                self.sigmas[index] = sigma_for(weight, plan.sparsity * share, plan.config.per)
            else:
                self.sigmas[index] = plan.sigma or 0.0

    @torch.no_grad()
    def start_clips(self, images: Tensor) -> None:
        """Sets every clip to what loses least on a few images.

        Args:
            images: (N, C, H, W) float32, unlabelled.

        Raises:
            InputError: an activation that never fires on them, or is not a number.
        """
        state, training = self.state, self.training
        values = self.eval()._values(images, state, {}, {})
        for index, clip in enumerate(self.clips):
            names = [name for name, its in self.clip_of.items() if its == index]
            clip.start(torch.cat([values[name].flatten() for name in names]), ", ".join(names))  # type: ignore[operator]
        self.train(training)


def own_weight(node: Node, state: State) -> Tensor:
    """A layer's weight, (out, ...) as the graph has it, from the parameter that its module has."""
    return operation(node.kind).own(state[node.parameters["weight"]], int(node.attrs.get("groups", 1)))


def quantizable(graph: Graph, network: nn.Module) -> tuple[str, ...]:
    """State-dict names of the weights that can be trained as codes, in running order."""
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    names: dict[str, None] = {}
    for node in graph:
        if operation(node.kind).weighted and node.parameters.get("weight") in trained:
            names[node.parameters["weight"]] = None
    return tuple(names)


def _light(node: Node, state: State) -> Node:
    """The node without weights that are parameters of the network."""
    own = node.parameters.get("weight") in state
    plain = all(name in state for name in node.parameters.values())
    return replace(node, weight=None, bias=None, source="") if own and plain else node


def _applied(node: Node, fn: Any) -> Node:
    """The node with this done to its tensors."""
    held = (node.weight, node.bias, node.value)
    weight, bias, value = (None if tensor is None else fn(tensor) for tensor in held)
    return replace(node, weight=weight, bias=bias, value=value)


def _momenta(network: nn.Module, graph: Graph) -> dict[str, float]:
    """State-dict name of a running mean -> the momentum of the module that it belongs to."""
    found: dict[str, float] = {}
    for node in graph:
        if "bn_mean" in node.parameters:
            name = node.parameters["bn_mean"]
            owner: Any = network.get_submodule(name.rpartition(".")[0])
            momentum = getattr(owner, "momentum", 0.1)
            found[name] = 0.1 if momentum is None else float(momentum)
    return found
