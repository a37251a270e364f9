"""Feature matching: what modules inside a student make, pulled to what the teacher's make there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from paredown.targets.errors import InputError


@dataclass(frozen=True)
class FeatureTap:
    """One place where the student should match the teacher.

    Attributes:
        path: of a module that both networks have.
        channels: the teacher's channels that the student still has, in the student's order; None = all.
    """

    path: str
    channels: tuple[int, ...] | None = None


class Listener:
    """Keeps what modules of a network make; a context manager, so that no hook stays behind.

    Args:
        network: its modules are listened to.
        paths: of those modules.
        whose: the network's name in an error.

    Raises:
        InputError: there is no such module.
    """

    def __init__(self, network: nn.Module, paths: Sequence[str], whose: str) -> None:
        modules = dict(network.named_modules())
        for path in paths:
            if path not in modules:
                raise InputError(f"the {whose} has no module {path!r}", where="features")
        self._modules = {path: modules[path] for path in paths}
        self._handles: list[Any] = []
        self._heard: dict[str, Any] = {}

    def __enter__(self) -> Listener:
        for path, module in self._modules.items():

            def keep(_module: nn.Module, _inputs: Any, output: Any, path: str = path) -> None:
                self._heard[path] = output

            self._handles.append(module.register_forward_hook(keep))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def take(self) -> dict[str, Any]:
        """What was made since the last call, by path."""
        heard, self._heard = self._heard, {}
        return heard


def feature_loss(student: dict[str, Any], teacher: dict[str, Any], taps: Sequence[FeatureTap]) -> Tensor:
    """The normalised mean squared difference, summed over the taps: 0 is a match, 1 is as bad as all zero.

    Args:
        student: by path, (N, channels, ...).
        teacher: by path; of these the tap's channels are compared.
        taps: at least one.

    Raises:
        InputError: a feature is not one tensor, or the shapes differ.
    """
    total: Tensor | None = None
    for tap in taps:
        mine, theirs = student.get(tap.path), teacher.get(tap.path)
        if not isinstance(mine, Tensor) or not isinstance(theirs, Tensor):
            raise InputError("does not make one tensor", where=f"features, {tap.path}")
        if tap.channels is not None:
            theirs = theirs.index_select(1, torch.tensor(tap.channels, device=theirs.device))
        if mine.shape != theirs.shape:
            raise InputError(
                f"the student's {tuple(mine.shape)} is not the teacher's {tuple(theirs.shape)}",
                where=f"features, {tap.path}",
                hint="name the channels that the student kept",
            )
        loss = (mine - theirs).square().mean() / theirs.square().mean().clamp(min=1e-12)
        total = loss if total is None else total + loss
    assert total is not None
    return total
