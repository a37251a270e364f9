"""From a torch module to an exported program: what stops it is said in the user's terms, with their line."""

from __future__ import annotations

import inspect
import io
import logging
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import nn

from paredown.pipeline.graph.aten import user_line
from paredown.targets.errors import InputError

#: Words of torch.export's errors -> what they mean, and what helps.
MEANINGS = {
    "data-dependent": (
        "a branch, a loop or a number depends on the values of a tensor",
        "a program on a device runs the same operations for every image: use torch.where, or a fixed number",
    ),
    "numpy()": ("a tensor becomes a numpy array", "compute with torch all the way"),
    "torch.cond": ("a branch depends on the values of a tensor", "use torch.where"),
    "when making fake tensor call": ("a branch depends on the values of a tensor", "use torch.where"),
    "is not a known type": (
        "it returns something that holds no tensors",
        "return a tensor or a tuple of them",
    ),
}
#: What torch logs of a network that it cannot export: dozens of lines, where one says it.
LOGGER = "torch.fx.experimental.symbolic_shapes"


def export(network: nn.Module, shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    """Exports a network in evaluation mode; its modules are left in the mode that they were in.

    Args:
        network: takes one float32 tensor.
        shape: of that tensor.

    Raises:
        InputError: it takes another number of inputs, has parameters that are not float32, fails on such an
            input, or torch cannot export it.
    """
    _check_inputs(network)
    _check_parameters(network)
    training = [module for module in network.modules() if module.training]  # some may be frozen
    network.eval()
    try:
        with _quiet():
            return torch.export.export(network, (torch.zeros(shape),))
    except Exception as error:  # noqa: BLE001  torch.export raises many kinds
        _check_runs(network, shape)
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        first = lines[0] if lines else type(error).__name__
        meaning, hint = next(
            (found for words, found in MEANINGS.items() if words in str(error)),
            (first, "torch.export must accept it: no control flow on data, no printing or numpy inside"),
        )
        raise InputError(
            f"the network cannot be traced: {meaning}",
            where=user_line(str(error)) or _raised_at(error) or _written_at(network, type(network).forward),
            hint=hint,
        ) from error
    finally:
        for module in training:
            module.training = True


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings about how it exports: what the user must know is in our errors."""
    logger = logging.getLogger(LOGGER)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):  # where it prints the graph so far
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _check_inputs(network: nn.Module) -> None:
    signature = inspect.signature(network.forward)
    try:
        signature.bind(torch.empty(0))
    except TypeError as error:
        takes = ", ".join(signature.parameters) or "nothing"
        raise InputError(
            f"the network's forward takes {takes}, not exactly one tensor",
            where=_written_at(network, type(network).forward),
            hint="wrap it in a module whose forward takes the image alone",
        ) from error


def _check_parameters(network: nn.Module) -> None:
    found = [*network.named_parameters(), *network.named_buffers()]
    other = [(name, t.dtype) for name, t in found if t.is_floating_point() or t.is_complex()]
    other = [(name, dtype) for name, dtype in other if dtype != torch.float32]
    if other:
        (name, dtype), more = other[0], len(other) - 1
        others = f", and {more} more are not float32" if more else ""
        raise InputError(
            f"parameter {name} is {str(dtype).removeprefix('torch.')}{others}",
            where=_written_at(network, type(network)),
            hint="networks are traced in float32: call .float() on the network where it is made",
        )


def _check_runs(network: nn.Module, shape: tuple[int, ...]) -> None:
    """Whether the network itself fails, exported or not."""
    try:
        with torch.no_grad():
            network(torch.zeros(shape))
    except Exception as error:  # the user's own code: whatever it raises is about it, not about us
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise InputError(
            f"the network cannot be traced: it fails on an input of {shape}: "
            f"{type(error).__name__}: {lines[0] if lines else 'no message'}",
            where=_raised_at(error) or _written_at(network, type(network).forward),
            hint="try it in torch first",
        ) from error


def _written_at(network: nn.Module, what: Any) -> str:
    """Where the user wrote the network's class or its forward; the class of what torch wrote."""
    try:
        file, (_, line) = inspect.getsourcefile(what), inspect.getsourcelines(what)
    except (OSError, TypeError):  # made in a shell, or by a program
        return type(network).__name__
    return type(network).__name__ if file is None or "/torch/" in file else f"{file}:{line}"


def _raised_at(error: Exception) -> str:
    """The last line of an exception's traceback that is neither torch's nor ours."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/torch/" not in f.filename and f.filename not in {__file__, "<string>"}]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else ""
