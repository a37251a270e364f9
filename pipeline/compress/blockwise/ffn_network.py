"""Hybrid pruning of a language model: thinner feed-forward layers, and their weights in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from paredown.pipeline.compress.blockwise.ffn_pruning import thin_ffn
from paredown.pipeline.recipe.language_task import LanguageTask


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
