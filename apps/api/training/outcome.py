"""What a training leaves: weights at any moment, the recipe that a run takes, names and a plot."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from torch import nn

from paredown.apps.api.training.source import Source
from paredown.apps.detector.network import Yolo
from paredown.apps.detector.network.weights import write_weights
from paredown.apps.own.doubts import TRAINED
from paredown.calibration.preprocess import Preprocess
from paredown.pipeline.report.figures import CLASS
from paredown.pipeline.store.checkpoint import save_weights
from paredown.pipeline.store.store import write_atomic
from paredown.targets.host.tools import lacks

MOST_CLASSES = 10  # that are named in a line
NEVER = 0.01  # a score below which a class is as good as never found
HEAD = "# Written by `paredown train`. Make a bundle of it: paredown run {name} --target host\n"


@dataclass(frozen=True)
class Files:
    """Where everything lies, beside the weights.

    Attributes:
        out: the best weights so far.
        last: those of the latest epoch.
        recipe: for `paredown run`.
        names: the classes, a line each.
        cfg: the network, where it is darknet's.
        plot: the curves.
        checkpoint: to resume from.
    """

    out: Path

    @property
    def last(self) -> Path:
        """Weights of the latest epoch."""
        return self.out.with_name(f"{self.out.stem}.last{self.out.suffix}")

    @property
    def recipe(self) -> Path:
        """For `paredown run`."""
        return self.out.with_suffix(".toml")

    @property
    def names(self) -> Path:
        """The classes."""
        return self.out.with_suffix(".names")

    @property
    def cfg(self) -> Path:
        """The network, where it is darknet's."""
        return self.out.with_suffix(".cfg")

    @property
    def plot(self) -> Path:
        """The curves."""
        return self.out.with_suffix(".png")

    @property
    def checkpoint(self) -> Path:
        """To resume from."""
        return self.out.with_name(self.out.name + ".checkpoint")


def metadata(names: Sequence[str], preprocess: Preprocess) -> dict[str, str]:
    """What the weights carry with them, so that a run notices where it does otherwise.

    It is one entry: safetensors writes several in any order, and the same weights are the same bytes.
    """
    facts = {"names": list(names), "preprocess": preprocess.to_dict()}
    return {TRAINED: json.dumps(facts, sort_keys=True)}


class Keeper:
    """Keeps the best weights, the latest, and the curves; all are whole at any moment.

    Args:
        files: where.
        facts: metadata of the weights.
        validated: whether there are scores; without, the latest weights are the best.
        metric: of the scores.
    """

    def __init__(self, files: Files, facts: Mapping[str, str], validated: bool, metric: str) -> None:
        self.files, self.facts, self.validated, self.metric = files, dict(facts), validated, metric
        self._history: Sequence[Mapping[str, float]] = ()

    def __call__(self, network: nn.Module, history: Sequence[Mapping[str, float]], better: bool) -> None:
        """Takes the state at the end of an epoch."""
        self._history = history
        if better or not self.validated or not self.files.out.exists():
            self._save(self.files.out, network)
        self._save(self.files.last, network)
        if not lacks("matplotlib", "the plot"):
            plot(self.files.plot, history, self.metric)

    def best(self) -> list[str]:
        """What the best weights score, each class too, and what to do for classes that are never found."""
        scored = [row for row in self._history if self.metric in row]
        if not scored:
            return []
        row = max(scored, key=lambda row: row[self.metric])
        classes = {name.removeprefix(CLASS): row[name] for name in row if name.startswith(CLASS)}
        line = f"best: epoch {row['epoch']:.0f}, validation {self.metric} {row[self.metric]:.4f}"
        if classes:
            worst = sorted(classes, key=lambda name: classes[name])[:MOST_CLASSES]
            left = len(classes) - len(worst)
            line += "; " + ", ".join(f"{name} {classes[name]:.3f}" for name in worst)
            line += f", {left} better ones" if left else ""
        never = [name for name, score in classes.items() if score < NEVER]
        if never:
            more = f" and {len(never) - MOST_CLASSES} more" if len(never) > MOST_CLASSES else ""
            hint = "more --epochs, a larger --size or more labelled boxes may help"
            return [line, f"hardly found at all: {', '.join(never[:MOST_CLASSES])}{more}; {hint}"]
        return [line]

    def _save(self, path: Path, network: nn.Module) -> None:
        if path.suffix == ".weights" and isinstance(network, Yolo):
            write_weights(path, network)
        else:
            save_weights(path, network, self.facts)


def plot(path: Path, history: Sequence[Mapping[str, float]], metric: str) -> None:
    """Draws loss and score over the epochs, as a PNG."""
    import io

    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    left.plot(epochs, [row["loss"] for row in history], color="#2563eb")
    left.set(title="training loss", xlabel="epoch")
    scored = [(row["epoch"], row[metric]) for row in history if metric in row]
    if scored:
        best = max(scored, key=lambda pair: pair[1])
        right.plot(*zip(*scored, strict=True), color="#059669", marker=".")
        right.plot(*best, color="#059669", marker="o", fillstyle="none", markersize=9)
        right.annotate(f"{best[1]:.4f}", best, xytext=(4, -16), textcoords="offset points", ha="right")
    right.set(title=f"validation {metric}", xlabel="epoch", ylim=(0, 1.02))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomic(path, buffer.getvalue())


def recipe_text(source: Source, network: str, preprocess: Mapping[str, Any], files: Files) -> str:
    """The recipe of a run on the same data.

    Args:
        source: with images to validate on.
        network: as the recipe names it.
        preprocess: keys of that section.
        files: of this training.
    """
    folder = files.recipe.parent

    def near(path: Path | None) -> str | None:
        return None if path is None else Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix()

    data = {
        "format": source.format, "names": files.names.name, "train": near(source.train),
        "calibration": near(source.train), "test": near(source.test or source.validation),
        "images": near(source.images), "labels": near(source.labels),
    }  # fmt: skip
    document = {
        "app": source.app, "network": network, "weights": files.out.name,
        **({"preprocess": dict(preprocess)} if preprocess else {}),
        "data": {key: value for key, value in data.items() if value is not None},
        "budget": {"accuracy_drop": 0.02},
    }  # fmt: skip
    return HEAD.format(name=files.recipe.name) + tomli_w.dumps(document)
