"""Batch norm after surgery: its statistics are those of the network that was, so they are taken anew."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from paredown.targets.errors import InputError


@torch.no_grad()
def recalibrate(network: nn.Module, images: Iterable[Tensor]) -> int:
    """Measures every batch norm's mean and variance anew, in place; weights stay as they are.

    Everything but batch norm is in evaluation mode meanwhile. The statistics are the plain averages over the
    batches, not a moving average, so the order of the batches does not matter (the method is known as precise
    batch norm, Wu & Johnson, arXiv 2105.07576; they also merge the variances of batches exactly).

    Args:
        network: modes and momenta are as before when it is done.
        images: batches (N, C, H, W), not labelled; a few hundred images are plenty.

    Returns:
        How many batch norms were measured anew; 0 where there are none, and then no image is looked at.

    Raises:
        InputError: no images, or a batch so small that a layer sees a single value a channel.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    modes = [(module, module.training) for module in network.modules()]
    momenta = [norm.momentum for norm in norms]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch's way to say: the average of all batches
            norm.train()
        seen = 0
        for batch in images:
            network(batch)
            seen += len(batch)
        if not seen:
            raise InputError("no images to measure batch norm's statistics on", where="recalibrate")
    except BaseException as error:
        network.load_state_dict(before)
        if isinstance(error, ValueError) and "more than 1 value per channel" in str(error):
            raise InputError(
                "batches of one image are too small to measure batch norm's statistics on",
                where="recalibrate",
                hint="give two images or more at once",
            ) from error
        raise
    finally:
        for module, mode in modes:
            module.training = mode
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return len(norms)
