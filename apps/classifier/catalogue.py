"""The classifier's own networks by name, and what their public checkpoints expect; needs no torch."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from paredown.targets.errors import UsageError


@dataclass(frozen=True)
class Architecture:
    """What a network's public checkpoints were trained with.

    Attributes:
        side: width and height of the input, pixels.
        classes: of the data set.
    """

    side: int
    classes: int


_CIFAR, _IMAGENET = (32, 10), (224, 1000)
NETWORKS = {
    **{f"resnet{depth}": Architecture(*_CIFAR) for depth in (20, 32, 44, 56)},
    **{name: Architecture(*_IMAGENET) for name in ("resnet18", "resnet50", "mobilenet_v2")},
}


def architecture(name: str) -> Architecture:
    """One of `NETWORKS` by name.

    Raises:
        UsageError: there is none of that name; the nearest is named.
    """
    if name not in NETWORKS:
        near = difflib.get_close_matches(name, NETWORKS, n=1)
        guess = f", did you mean {near[0]!r}?" if near else ""
        hint = f'use "my_package.nets:factory" or one of: {", ".join(NETWORKS)}'
        raise UsageError(f"no built-in network {name!r}{guess}", where="recipe, key network", hint=hint)
    return NETWORKS[name]
