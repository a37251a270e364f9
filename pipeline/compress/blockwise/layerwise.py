"""A network's matrices into codes, layer after layer, each with the inputs that the codes before it leave.

What runs the network on a calibration batch is a function of the caller's. The layers' other arguments
(masks, positions, memories) are recorded once, in the plain network; then the hidden states alone go from
layer to layer, through layers that are in codes already. Within a layer, matrices with the same input are
rounded together, and those behind them see their codes (GPTQ's order, Frantar et al., arXiv 2210.17323).
Matrices outside of the layers (a head, and the embedding that shares its weights) come first, with the plain
network's inputs: everything else is measured behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from paredown.pipeline.compress.blockwise.modules import fake_int8, plain_weight, put
from paredown.pipeline.compress.grids.block_grid import BlockGrid, nearest
from paredown.pipeline.compress.grids.rounding import RoundingConfig, rounded
from paredown.pipeline.compress.grids.weight import BlockWeight
from paredown.targets.errors import InputError

SHARED_DAMPING = 0.1
#: Runs a network on one calibration batch; what it returns is not looked at.
Run = Callable[[nn.Module, Any], Any]
Tick = Callable[[int, int], None]
Seen = Callable[[str, tuple[Any, ...], dict[str, Any]], object]


@dataclass(frozen=True)
class Calibration:
    """How inputs for rounding are made.

    Attributes:
        run: of the network and a batch; no layer writes into what it is given (a cache, say).
        batches: of calibration data, never of test data.
        layers: names of the modules whose first argument and (first) result are the hidden states, in order.
    """

    run: Run
    batches: Sequence[Any]
    layers: Sequence[str]


class _Reached(Exception):
    """Ends a run where nothing behind matters."""


def put_nearest(
    network: nn.Module, grids: Mapping[str, BlockGrid], activation_bits: int | None = None
) -> dict[str, BlockWeight]:
    """Puts the nearest codes into a network, in place, without any data.

    Args:
        network: changed in place.
        grids: name of a linear layer or embedding -> its codes.
        activation_bits: see `BlockLinear`.
    """
    weights = {name: nearest(plain_weight(network, name), grid) for name, grid in grids.items()}
    put(network, weights, activation_bits)
    return weights


@torch.no_grad()
def put_rounded(
    network: nn.Module,
    grids: Mapping[str, BlockGrid],
    calibration: Calibration,
    config: RoundingConfig | None = None,
    *,
    shared: RoundingConfig | None = None,
    activation_bits: int | None = None,
    outside: Callable[[Mapping[str, BlockWeight]], None] | None = None,
    tick: Tick | None = None,
) -> dict[str, BlockWeight]:
    """Puts codes into a network, in place, with which its matrices' outputs change least.

    Args:
        network: changed in place; nothing of it may be in codes yet.
        grids: name of a linear layer -> its codes; of an embedding too, which gets the nearest. An embedding
            that shares a linear layer's weights is named by that layer.
        calibration: what is run.
        config: how codes are found.
        shared: the same for linear layers whose weights something else shares, as an embedding: there the
            plain error counts too, by the damping, which is `SHARED_DAMPING` at least where this is None.
        activation_bits: see `BlockLinear`; the inputs are rounded likewise.
        outside: takes the codes of the matrices that are in no layer once they are in the network, and may
            change it before the layers are rounded to what is left of its outputs.
        tick: takes (layers done, layers in all).

    Returns:
        The codes by name.

    Raises:
        InputError: a name that is no linear layer or embedding, or one that no run reaches.
    """
    config = config or RoundingConfig()
    walk = _Walk(network, grids, calibration, activation_bits)
    walk.outside(config, shared or replace(config, damping=max(config.damping, SHARED_DAMPING)))
    if outside:
        outside(walk.found)
    walk.start()
    for done, layer in enumerate(calibration.layers, 1):
        walk.inside(layer, config)
        if tick:
            tick(done, len(calibration.layers))
    return walk.found


class _Walk:
    """How far it is: the codes so far, and the hidden states in front of the next layer."""

    def __init__(
        self,
        network: nn.Module,
        grids: Mapping[str, BlockGrid],
        calibration: Calibration,
        activation_bits: int | None,
    ) -> None:
        self.network, self.grids = network, grids
        self.calibration, self.activation_bits = calibration, activation_bits
        self.found: dict[str, BlockWeight] = {}
        self.hidden: list[Tensor] = []
        self.others: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {}

    def outside(self, config: RoundingConfig, shared: RoundingConfig) -> None:
        """Rounds what is in no layer, and records what the layers are called with."""
        inner = tuple(f"{layer}." for layer in self.calibration.layers)
        names = [name for name in self.grids if not name.startswith(inner)]
        linears = [name for name in names if isinstance(_module(self.network, name), nn.Linear)]
        moments = self._record(linears)
        for name in names:
            weight, grid = plain_weight(self.network, name), self.grids[name]
            if name in linears:
                uses = sum(getattr(module, "weight", None) is weight for module in self.network.modules())
                codes = rounded(weight, moments[name], grid, shared if uses > 1 else config)
            else:
                codes = nearest(weight, grid)
            self._put({name: codes})

    def start(self) -> None:
        """Runs what is before the first layer."""
        first = self.calibration.layers[:1]
        run_until(
            self.network, first, self.calibration, lambda name, args, kwargs: self.hidden.append(args[0])
        )

    def _record(self, linears: Sequence[str]) -> dict[str, Tensor]:
        """One run of the plain network: the layers' other arguments, and moments of these inputs."""
        moments: dict[str, Tensor] = {}

        def seen(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if name in linears:
                self._add(moments, name, args[0])
            else:
                self.others.setdefault(name, []).append((args[1:], kwargs))

        run_until(self.network, [*self.calibration.layers, *linears], self.calibration, seen)
        return moments

    def inside(self, layer: str, config: RoundingConfig) -> None:
        """Rounds a layer's matrices, and takes the hidden states through it."""
        for together in self._by_input(layer):
            moments: dict[str, Tensor] = {}

            def add(
                name: str, args: tuple[Any, ...], kwargs: dict[str, Any], moments: dict[str, Tensor] = moments
            ) -> None:
                self._add(moments, name, args[0])
                raise _Reached

            with _calls(self.network, together[:1], add):
                for number in range(len(self.hidden)):
                    with suppress(_Reached):
                        self._through(layer, number)
            (common,) = moments.values()
            self._put(
                {
                    name: rounded(plain_weight(self.network, name), common, self.grids[name], config)
                    for name in together
                }
            )
        self.hidden = [self._through(layer, number) for number in range(len(self.hidden))]

    def _by_input(self, layer: str) -> list[list[str]]:
        """A layer's matrices in running order, those with the same input together."""
        names = [name for name in self.grids if name.startswith(f"{layer}.")]
        calls: list[tuple[str, Tensor]] = []
        with _calls(self.network, names, lambda name, args, kwargs: calls.append((name, args[0]))):
            self._through(layer, 0)
        _all_run(set(names) - {name for name, _ in calls})
        groups: list[list[str]] = []
        for at, (name, x) in enumerate(calls):
            if at and x is calls[at - 1][1]:
                groups[-1].append(name)
            else:
                groups.append([name])
        return groups

    def _through(self, layer: str, number: int) -> Tensor:
        """A batch's hidden states behind a layer."""
        args, kwargs = self.others[layer][number]
        out = _module(self.network, layer)(self.hidden[number], *args, **kwargs)
        return out[0] if isinstance(out, tuple) else out

    def _add(self, moments: dict[str, Tensor], name: str, x: Tensor) -> None:
        """Adds the second moments of inputs, as the matrix will get them."""
        _add(moments, name, fake_int8(x) if self.activation_bits else x)

    def _put(self, weights: Mapping[str, BlockWeight]) -> None:
        put(self.network, weights, self.activation_bits)
        self.found.update(weights)


@torch.no_grad()
def input_moments(network: nn.Module, names: Sequence[str], calibration: Calibration) -> dict[str, Tensor]:
    """Second moments of the inputs of linear layers, summed over all calibration tokens.

    Args:
        network: in full precision.
        names: of linear layers.
        calibration: runs it; its layers' names are not used.

    Returns:
        Name -> float32 (in, in).

    Raises:
        InputError: a name that is missing, or one that no run reaches.
    """
    moments: dict[str, Tensor] = {}
    run_until(network, names, calibration, lambda name, args, kwargs: _add(moments, name, args[0]))
    return moments


def run_until(network: nn.Module, names: Sequence[str], calibration: Calibration, seen: Seen) -> None:
    """Runs every batch until each of these modules was called once."""
    for batch in calibration.batches if names else ():
        left = set(names)

        def note(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], left: set[str] = left) -> None:
            seen(name, args, kwargs)
            left.discard(name)
            if not left:
                raise _Reached

        with _calls(network, names, note), suppress(_Reached):
            calibration.run(network, batch)
        _all_run(left)


def _add(moments: dict[str, Tensor], name: str, x: Tensor) -> None:
    """Adds the second moments of inputs to those so far."""
    x = x.flatten(0, -2).float()
    moments[name] = moments.get(name, torch.zeros(())) + x.T @ x


@contextmanager
def _calls(network: nn.Module, names: Sequence[str], seen: Seen) -> Iterator[None]:
    """Tells of every call of these modules, before it happens."""

    def hook(name: str) -> Callable[..., object]:
        return lambda module, args, kwargs: seen(name, args, kwargs)

    handles = [
        _module(network, name).register_forward_pre_hook(hook(name), with_kwargs=True) for name in names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _all_run(left: Collection[str]) -> None:
    if left:
        raise InputError(f"{min(left)} is never run", where="put_rounded", hint="leave it out")


def _module(network: nn.Module, name: str) -> nn.Module:
    try:
        return network.get_submodule(name)
    except AttributeError as error:
        raise InputError(f"{name} is missing", where="put_rounded", hint="names are the network's") from error
