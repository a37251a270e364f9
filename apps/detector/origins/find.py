"""Finds where the network of a recipe is from."""

from __future__ import annotations

from typing import Any

from paredown.apps.detector.darknet.darknet import builtin_cfg, read_cfg
from paredown.apps.detector.origins.darknet import Darknet
from paredown.apps.detector.origins.origin import Origin, class_names
from paredown.apps.detector.origins.own import Own, of_file
from paredown.apps.own.model_file import ModelFile
from paredown.pipeline.recipe.factory import from_factory
from paredown.pipeline.recipe.imports.read import is_model
from paredown.pipeline.recipe.schema import EMBEDDED, FINISHED, Recipe
from paredown.targets.errors import InputError

#: The networks of `network.v8`, which is not imported for their names alone.
BUILTIN = ("yolov8-nano-like", "yolov8-nano-like-silu")


def origin_of(recipe: Recipe) -> Origin:
    """The network that a recipe names, without its weights.

    Raises:
        InputError: it cannot be read or made, or does not say what a detector must.
    """
    network = recipe.network
    file = ModelFile(network) if is_model(network) else None
    if recipe.decoding is not None and file is None and network != FINISHED:
        raise InputError("only a model file needs it", where="recipe, key decoding",
                         hint="give the network an attribute `decoding`")  # fmt: skip
    if network == FINISHED:
        return Own(recipe, None)
    if file is not None:
        return Own(recipe, lambda: of_file(recipe, file), model_file=file)
    if network in BUILTIN:
        return _builtin(recipe)
    if ":" in network:
        return _of_factory(recipe)
    return Darknet(recipe, read_cfg(network) if network.endswith(".cfg") else builtin_cfg(network, BUILTIN))


def _builtin(recipe: Recipe) -> Origin:
    if recipe.weights == EMBEDDED:
        what = f"the detector brings no weights of {recipe.network} along"
        raise InputError(what, where="recipe, key weights", hint="train some with `paredown train`")

    def build() -> Any:
        from paredown.apps.detector.network.v8 import builtin

        return builtin(recipe.network, len(class_names(recipe)))

    return Own(recipe, build)


def _of_factory(recipe: Recipe) -> Origin:
    from paredown.apps.detector.network import Yolo
    from paredown.apps.detector.network.own import is_own

    made, factory = from_factory(recipe.network, recipe.folder)
    if isinstance(made, Yolo):
        return Darknet(recipe, made.cfg, factory)
    if not is_own(made):
        raise InputError(
            f"{recipe.network} made a {type(made).__name__}, not a Yolo or a torch.nn.Module "
            "that says how its outputs are decoded",
            where="recipe, key network", hint="give it a mapping `decoding`",
        )  # fmt: skip
    return Own(recipe, lambda: from_factory(recipe.network, recipe.folder)[0], factory)
