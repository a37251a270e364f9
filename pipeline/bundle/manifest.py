"""The manifest of a bundle: what it says of itself, and the names that mean something in it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from paredown.pipeline.recipe.schema import Recipe
from paredown.targets.cards.card import RuntimeName, Schema, Target

FORMAT = 4  # 3 held the device's code without the folder paredown/
READABLE = (3, FORMAT)
MANIFEST = "manifest.json"
PACKED = "models.packed"
FORMER_KEYS = ("flat", "hopeless")  # of [prune], in bundles of before lazy allocation
_MEMBER_LIMIT = 1 << 32  # bytes; a false size must not ask for all memory
_MOST_VALUES = 1 << 28  # of an input or output

Count = Annotated[int, Field(ge=0)]


class TensorSpec(Schema):
    """An input or output of a model: real = scale * (code - zero_point)."""

    name: str
    shape: Annotated[tuple[int, ...], Field(strict=False, min_length=1)]
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    zero_point: int

    @field_validator("shape")
    @classmethod
    def _shape(cls, shape: tuple[int, ...]) -> tuple[int, ...]:
        if min(shape) < 1 or math.prod(shape) > _MOST_VALUES:
            raise ValueError(f"{list(shape)} is no shape of a tensor")
        return shape


class Model(Schema):
    """A runtime's program and how to feed it; of float32 models scales and zero points are 1 and 0."""

    runtime: RuntimeName
    file: str
    dtype: Literal["int8", "float32"]
    layout: str
    input: TensorSpec
    outputs: Annotated[tuple[TensorSpec, ...], Field(strict=False, min_length=1)]
    vectors: str = "vectors"


class LanguageModel(Schema):
    """A runtime's program of a language model."""

    runtime: RuntimeName
    file: str
    context: Annotated[int, Field(ge=1)]
    chunk: Annotated[int, Field(ge=1)]
    vocabulary: Annotated[int, Field(ge=1)]


class ScoredOn(Schema):
    """The test images behind the scores; of a language model, the pieces of text."""

    images: Count
    fingerprint: str


class FileEntry(Schema):
    """One file: its own size and sha256, and under which name and size it is stored.

    Models that are packed together name the same stored file, `PACKED`, and the size of all of it.
    """

    bytes: Annotated[int, Field(ge=0, le=_MEMBER_LIMIT)]
    sha256: str
    stored: str
    stored_bytes: Count


class MetricName(Schema):
    """The metric that budgets speak of; see `pipeline.report.budget.Metric`."""

    name: str
    less_is_better: bool = False


class Manifest(Schema):
    """What a bundle says of itself."""

    format: int
    name: str
    target: str
    card: Target
    app: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")]
    network: Mapping[str, Any]
    recipe: Recipe
    models: Annotated[tuple[Model, ...], Field(strict=False)] = ()
    language: Annotated[tuple[LanguageModel, ...], Field(strict=False)] = ()
    preprocess: Mapping[str, Any]
    preprocess_hash: str
    test: ScoredOn
    metric: MetricName | None = None
    figures: Annotated[tuple[Mapping[str, Any], ...], Field(strict=False)]
    versions: Mapping[str, str]
    licences: Mapping[str, str]
    members: Mapping[str, FileEntry]

    @field_validator("recipe", mode="before")
    @classmethod
    def _recipe(cls, recipe: Any) -> Any:
        """Without the keys that recipes had once."""
        if not isinstance(recipe, Mapping) or not isinstance(recipe.get("prune"), Mapping):
            return recipe
        kept = {key: value for key, value in recipe["prune"].items() if key not in FORMER_KEYS}
        return {**recipe, "prune": kept}

    @property
    def programs(self) -> tuple[Model | LanguageModel, ...]:
        """What the runtimes read."""
        return (*self.models, *self.language)

    @model_validator(mode="after")
    def _programs(self) -> Manifest:
        if bool(self.models) == bool(self.language):
            raise ValueError("either models of images or of language")
        return self


def wire_bytes(manifest: Manifest) -> dict[str, int]:
    """What the models take of a bundle.

    Returns:
        Runtime -> bytes; those that are packed with others are under "shared", as one number.
    """
    packed = [m for m in manifest.models if manifest.members[m.file].stored == PACKED]
    sizes: dict[str, int] = {m.runtime: manifest.members[m.file].stored_bytes for m in manifest.models}
    if len(packed) < 2:
        return sizes
    shared = [sizes.pop(model.runtime) for model in packed]
    return {"shared": shared[0], **sizes}
