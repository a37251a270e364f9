"""Thinner feed-forward layers: whole hidden channels of gate, up and down go, and down makes good for them.

A channel's importance is what it adds to the layer's output on calibration tokens: its second moment times
the squared norm of its column in `down`. The least important go; then `down` is solved again, so that its
output is as near as it can be to what it was, in the least-squares sense. Our design.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from paredown.pipeline.compress.allocate.cost import nearest, widths
from paredown.pipeline.compress.blockwise.layerwise import Calibration, input_moments
from paredown.pipeline.compress.blockwise.modules import plain_weight

if TYPE_CHECKING:
    from paredown.pipeline.recipe.language_task import LanguageTask

DAMPING = 1e-3  # of the moments, as a share of their mean


@dataclass(frozen=True)
class GatedFfn:
    """Names of the three linear layers of a gated feed-forward layer: down(act(gate(x)) * up(x))."""

    gate: str
    up: str
    down: str


@dataclass(frozen=True)
class Thinned:
    """What became of one feed-forward layer.

    Attributes:
        ffn: which.
        before: hidden channels it had.
        kept: those that stay, by their former numbers, ascending.
        lost: share of the output's second moment that is lost on the calibration tokens.
    """

    ffn: GatedFfn
    before: int
    kept: tuple[int, ...]
    lost: float


@torch.no_grad()
def thin_ffn(
    network: nn.Module, ffns: Sequence[GatedFfn], share: float, multiple: int, calibration: Calibration
) -> tuple[Thinned, ...]:
    """Takes hidden channels out of feed-forward layers, in place.

    All get the same width where they had the same: one number in a model's configuration says it.

    Args:
        network: in full precision; changed in place.
        ffns: its feed-forward layers.
        share: of the hidden channels to keep, 0..1; the width becomes the nearest multiple, never 0.
        multiple: of channels that the target's kernels want.
        calibration: runs the network; its layers' names are not used.

    Raises:
        UsageError: the share is not within 0..1, or no multiple fits.
        InputError: a name that is no linear layer, or one that no run reaches.
    """
    moments = input_moments(network, [ffn.down for ffn in ffns], calibration)
    return tuple(_thinned(network, ffn, share, multiple, moments[ffn.down].double()) for ffn in ffns)


def _thinned(network: nn.Module, ffn: GatedFfn, share: float, multiple: int, moments: Tensor) -> Thinned:
    down = plain_weight(network, ffn.down).double()
    before = down.shape[1]
    width = nearest(share, widths(before, 1, multiple))
    importance = moments.diagonal() * down.square().sum(0)
    kept = torch.argsort(importance, descending=True, stable=True)[:width].sort().values
    ridge = DAMPING * moments.diagonal().mean().clamp_min(1e-30) * torch.eye(width, dtype=torch.float64)
    solved = torch.linalg.solve(
        moments[kept][:, kept] + ridge, moments[kept] @ down.T + ridge @ down[:, kept].T
    )
    error = -down
    error[:, kept] += solved.T
    whole = ((down @ moments) * down).sum().clamp_min(1e-30)
    lost = float(((error @ moments) * error).sum() / whole)
    for name in (ffn.gate, ffn.up):
        _keep(network.get_submodule(name), kept, rows=True)
    _keep(network.get_submodule(ffn.down), kept, rows=False)
    plain_weight(network, ffn.down).copy_(solved.T)
    return Thinned(ffn, before, tuple(kept.tolist()), lost)


def _keep(module: nn.Module, kept: Tensor, rows: bool) -> None:
    """Leaves these outputs (rows) or inputs of a linear layer."""
    assert isinstance(module, nn.Linear)
    trained = module.weight.requires_grad
    module.weight = nn.Parameter(module.weight[kept] if rows else module.weight[:, kept], trained)
    if rows:
        module.out_features = len(kept)
        if module.bias is not None:
            module.bias = nn.Parameter(module.bias[kept], trained)
    else:
        module.in_features = len(kept)


def write_thinner(path: Path, task: LanguageTask, share: float, multiple: int) -> dict[str, Any]:
    """Takes channels out of the trained network, and writes the matrices that it changes.

    Args:
        path: of the file.
        task: of the network.
        share: of every feed-forward layer's channels to keep.
        multiple: what the width becomes a multiple of.

    Returns:
        For the report: the widths before and after, and what each layer's output loses, as a share.
    """
    network = task.network()
    ffns = task.ffns(network)
    calibration = task.calibration(network, task.pieces("calibration"))
    found = thin_ffn(network, ffns, share, multiple, calibration)
    names = [name for ffn in ffns for name in (ffn.gate, ffn.up, ffn.down)]
    save_file({name: network.get_submodule(name).weight.detach().contiguous() for name in names}, path)
    lost = {each.ffn.down: each.lost for each in found}
    return {"before": found[0].before, "after": len(found[0].kept), "lost": lost}


def read_thinner(path: Path, network: nn.Module) -> None:
    """Makes the trained network the thinner one, in place."""
    for name, weight in load_file(path).items():
        module = network.get_submodule(name)
        assert isinstance(module, nn.Linear)
        module.weight = nn.Parameter(weight, requires_grad=False)
        module.out_features, module.in_features = weight.shape
