"""What a model file is, and what will be possible with it."""

from __future__ import annotations

import importlib.util
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paredown.targets.errors import InputError

if TYPE_CHECKING:
    from paredown.pipeline.lower.predict.inspect import Inspection
    from paredown.pipeline.recipe.imports.imported import Imported
    from paredown.targets.cards.card import Target

INT8 = "TFLite, int8"


@dataclass(frozen=True)
class Description:
    """A model file, read and traced.

    Attributes:
        format: with its version.
        shape: of the input, batch of one.
        outputs: name -> shape.
        parameters: how many numbers are trained.
        macs: multiply-accumulates of one inference; None where it cannot be traced.
        kinds: operation of the traced graph -> how many.
        notes: what was changed or noticed.
        problem: why it cannot be traced; nothing where it can.
        groups: groups of channels, and how many of them can be pruned.
        difference: the largest from onnxruntime, as a share of the largest output; None where not compared.
        inspection: what would run where.
    """

    format: str
    shape: tuple[int, ...]
    outputs: dict[str, tuple[int, ...]]
    parameters: int
    macs: int | None
    kinds: dict[str, int]
    notes: tuple[str, ...]
    problem: str
    groups: tuple[int, int] | None
    difference: float | None
    inspection: Inspection | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        plain = {name: value for name, value in asdict(self).items() if name != "inspection"}
        return plain | {"inspection": self.inspection.to_dict() if self.inspection else None}

    def lines(self) -> list[str]:
        """For a terminal, without the tables of `inspection`."""
        found = [
            f"format      {self.format}",
            f"input       {_by(self.shape)}",
            *(f"output      {name} {_by(shape)}" for name, shape in self.outputs.items()),
            f"parameters  {self.parameters:,}",
        ]
        if self.macs is not None:
            found.append(f"MACs        {self.macs:,}")
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.items())
            found.append(f"operations  {kinds}")
        if self.groups:
            found.append(f"pruning     {self.groups[1]} of {self.groups[0]} groups of channels can be cut")
        if self.difference is not None:
            runtime = "LiteRT" if self.format == "TFLite" else "onnxruntime"
            found.append(f"compared    {self.difference:.1e} from {runtime}, relative, on random numbers")
        return found + [f"note: {note}" for note in self.notes]


def describe(path: Path, shape: tuple[int, ...] | None, target: Target, couple: bool = True) -> Description:
    """Reads a model file and says what it is.

    Args:
        path: of the file.
        shape: of its input, where the file leaves it open.
        target: for which the placement is predicted.
        couple: whether each group of channels is cut on trial.

    Raises:
        InputError: it cannot be imported.
    """
    import torch

    from paredown.pipeline.compress.coupling.trial import couple_on_trial
    from paredown.pipeline.graph.trace import trace
    from paredown.pipeline.lower.predict.inspect import inspect_graph
    from paredown.pipeline.recipe.imports.read import read

    found = read(path, shape)
    torch.manual_seed(0)
    example = torch.randn(found.shape)
    with torch.no_grad():
        made = found.module(example)
    parts = made if isinstance(made, tuple) else (made,)
    notes = found.notes
    if found.format == INT8:
        from paredown.pipeline.lower.litert.reader.load import prospect

        notes = (*notes, prospect(path))
    names = found.outputs or tuple(f"output{index}" for index in range(len(parts)))
    problem, kinds, macs, groups, inspection = "", Counter[str](), None, None, None
    try:
        graph = trace(found.module, found.shape)
        macs = graph.macs
        kinds.update(node.kind for node in graph.nodes if node.kind != "input")
        inspection = inspect_graph(graph, target, tuple(target.runtimes), (-1.0, 1.0), path.name)
        if couple:
            every = couple_on_trial(found.module, graph)
            groups = len(every), sum(not group.locked for group in every)
    except InputError as error:
        problem = str(error)
    return Description(
        found.format, found.shape, dict(zip(names, (tuple(part.shape) for part in parts), strict=True)),
        sum(parameter.numel() for parameter in found.module.parameters()), macs,
        dict(kinds.most_common()), notes, problem, groups,
        _difference(path, found, example, parts), inspection,
    )  # fmt: skip


def _difference(path: Path, found: Imported, example: Any, parts: Any) -> float | None:
    """The largest difference from the file's own runtime, where it is here and runs it for this shape."""
    if found.format == INT8:
        return None
    if path.suffix.lower() == ".tflite":
        from paredown.pipeline.bundle.finished.program import describe as described
        from paredown.pipeline.bundle.finished.program import run

        made = zip(parts, run(described(path), example.numpy()).exact, strict=True)
        return max(
            float(abs(ours.numpy() - theirs).max() / max(abs(theirs).max(), 1e-9)) for ours, theirs in made
        )
    if path.suffix.lower() != ".onnx" or importlib.util.find_spec("onnxruntime") is None:
        return None
    from paredown.pipeline.recipe.imports.onnx.compare import difference

    return difference(path, found, example.numpy(), [part.numpy() for part in parts])


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a number"
