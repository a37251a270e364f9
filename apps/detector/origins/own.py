"""Networks that say how their outputs are decoded: of our own, a factory's, a model file, a finished one."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from paredown.apps.detector.device.boxes.heads import Heads, heads_of
from paredown.apps.detector.origins.origin import Origin, class_names
from paredown.apps.own.model_file import ModelFile
from paredown.apps.own.task import input_size
from paredown.calibration.preprocess import Preprocess
from paredown.pipeline.recipe.schema import EMBEDDED, Recipe
from paredown.pipeline.store.store import file_hash
from paredown.targets.errors import InputError


class Own(Origin):
    """A network with an attribute `decoding`.

    Args:
        recipe: resolved.
        build: makes it, with random weights unless it is of a file; None of a finished program, which
            nobody can build and whose decoding the recipe says.
        factory: the source file of the factory that makes it, if one does.
        model_file: that it is of.

    Raises:
        InputError: it does not say its size or its decoding, or its outputs are others.
    """

    heads: Heads

    def __init__(
        self, recipe: Recipe, build: Callable[[], Any] | None, factory: Path | None = None,
        model_file: ModelFile | None = None,
    ) -> None:  # fmt: skip
        self._recipe, self._build, self._factory, self.model_file = recipe, build, factory, model_file
        network = build() if build else None
        self.notes = getattr(network, "notes", ())
        self.preprocess = self._made_preprocess(network)
        self.names = class_names(recipe)
        shape = self.preprocess.input_shape
        if network is None:
            self.heads = heads_of(recipe.decoding, (shape[3], shape[2]))
            self.output_names = ("xy", "wh", "obj", "cls")
        else:
            from paredown.apps.detector.network.own import checked_heads

            self.heads, self.output_names = checked_heads(network, shape, len(self.names), recipe.network)
        self.decoder = self.heads.decoder
        self.untrained = "" if self.heads.kind == "v8" else self.heads.kind

    def _made_preprocess(self, network: Any) -> Preprocess:
        size: dict[str, Any] = {} if network is None else dict(input_size(network))
        known = {**size, **self._recipe.preprocess.changes()}
        if missing := [name for name in ("width", "height") if name not in known]:
            raise InputError(
                f"{self._recipe.network} does not say its input's {' and '.join(missing)}",
                where="recipe, section [preprocess]",
                hint=f"set {' and '.join(missing)}, or give the network an attribute input_size",
            )
        return Preprocess(**known)

    def identity(self) -> Mapping[str, Any]:
        """Its name, classes and heads; of a model file the file's."""
        identity: dict[str, Any] = {
            "network": self._recipe.network,
            "classes": len(self.names),
            "heads": json.loads(json.dumps(self.heads.to_dict())),  # as a bundle's manifest has it
        }
        if self._factory is not None:
            identity["factory"] = file_hash(self._factory)
        return identity | (self.model_file.identity() if self.model_file else {})

    def network(self, weights: Path) -> Any:
        """Of a checkpoint, or of the model file's own weights."""
        from paredown.pipeline.recipe.weights import load_checkpoint

        assert self._build is not None, "a finished program has no network"
        network = self._build()
        self.notes = getattr(network, "notes", ())
        if self.model_file is None or self._recipe.weights != EMBEDDED:
            of = f"{self._recipe.network} with {len(self.names)} classes"
            self.notes += load_checkpoint(weights, network, of)
        return network.eval()

    def loss(self, outputs: Any, labels: Any) -> Any:
        """That of v8 heads."""
        from paredown.apps.detector.train.v8_loss import v8_loss

        return v8_loss(_several(outputs), labels, self.heads)

    def distillation(self, student: Any, teacher: Any) -> Any:
        """By head."""
        from paredown.apps.detector.train.distil import heads_distillation

        return heads_distillation(_several(student), _several(teacher), self.heads)

    def features(self) -> tuple[str, ...]:
        """None: the outputs are enough."""
        return ()


def of_file(recipe: Recipe, file: ModelFile) -> Any:
    """The network of a model file, which the recipe says how to decode; `notes` say how it was read.

    Raises:
        InputError: the recipe does not say it, or the file cannot be read.
    """
    from paredown.pipeline.recipe.imports.logits import before_boxes

    if recipe.decoding is None:
        raise InputError(
            "does not say how its outputs become boxes", where=recipe.network,
            hint='set decoding = { kind = "v8", strides = [8, 16, 32] }, as the heads have it',
        )  # fmt: skip
    wanted = recipe.preprocess
    size = (wanted.height, wanted.width) if wanted.height and wanted.width else None
    found = file.imported(size)
    heads = heads_of(recipe.decoding, (found.shape[-1], found.shape[-2]))
    for shapes in heads.expected(len(class_names(recipe))):
        found = before_boxes(found, shapes)
    network: Any = copy.deepcopy(found.module)
    network.decoding, network.input_size = dict(recipe.decoding), found.shape[-2:]
    network.notes = found.notes
    return network


def _several(outputs: Any) -> Any:
    """The outputs of a network that may return one alone."""
    return outputs if isinstance(outputs, tuple | list) else [outputs]
