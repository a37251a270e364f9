"""Parameters of the stages that images and language models have in common: a class each, keys as ever.

A field marked optional is no part of a stage's key where it is None.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from paredown.pipeline.store.stage import OPTIONAL


@dataclass(frozen=True)
class LowerParams:
    """The runtime, the version of what writes its files, and what else decides a program.

    Attributes:
        package: that writes the files, where the runtime's name does not say it.
        int4: kinds of layers whose weights may be int4 there.
        context: most tokens of a conversation.
        chunk: tokens of a prompt that are read at once.
        cpu: of the machine on whose kernels the program was tried.
    """

    runtime: str
    version: str
    package: str | None = field(default=None, metadata=OPTIONAL)
    int4: tuple[str, ...] | None = field(default=None, metadata=OPTIONAL)
    context: int | None = field(default=None, metadata=OPTIONAL)
    chunk: int | None = field(default=None, metadata=OPTIONAL)
    cpu: str | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class ScoreParams:
    """What is scored, on what: a score belongs to the machine and the versions that computed it.

    Attributes:
        images: that are scored.
        preprocess: hash of the preprocessing.
        app: what identifies the network.
        window: tokens of a piece of text.
        tokens: that are scored.
        rule: by which the app scores, where it once was another.
    """

    variant: str
    machine: Mapping[str, Any]
    images: int | None = field(default=None, metadata=OPTIONAL)
    preprocess: str | None = field(default=None, metadata=OPTIONAL)
    app: Mapping[str, Any] | None = field(default=None, metadata=OPTIONAL)
    window: int | None = field(default=None, metadata=OPTIONAL)
    tokens: int | None = field(default=None, metadata=OPTIONAL)
    rule: str | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class BenchParams:
    """How latency is measured, and on what; `runs` are timed inferences of each variant."""

    threads: int
    machine: Mapping[str, Any]
    runs: int | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class BundleParams:
    """What goes into a bundle beside the models."""

    name: str
    card: Mapping[str, Any]
    recipe: Mapping[str, Any]
    tag: str
    app: Mapping[str, str]
    packages: Mapping[str, str]
    machine: Mapping[str, Any] | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class SampleParams:
    """What decides a bundle's labelled sample beside data and programs."""

    count: int
    app: str
    preprocess: str
    licence: str
    machine: Mapping[str, Any]
    rule: str | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class TraceParams:
    """What is traced, beside its weights."""

    shape: tuple[int, ...]
    torch: str
    network: Mapping[str, Any] | None = field(default=None, metadata=OPTIONAL)


def processes() -> int | None:
    """How many processes torchrun started, for a training's key; None = it is this one alone."""
    size = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
    return size if size > 1 else None
