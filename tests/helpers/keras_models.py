"""Models made and computed by Keras itself, with torch below it, beside what we import of their files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

os.environ.setdefault("KERAS_BACKEND", "torch")
import keras  # noqa: E402

from paredown.pipeline.recipe.imports.imported import Imported  # noqa: E402
from paredown.pipeline.recipe.imports.keras.load import load  # noqa: E402


def filled(model: keras.Model, seed: int = 0) -> keras.Model:
    """Every weight drawn at random, variances above zero."""
    random = np.random.default_rng(seed)
    for weight in model.weights:
        name, shape = weight.path.rsplit("/", 1)[-1], tuple(weight.shape)
        if name == "count" or "seed" in weight.path:
            continue
        values = random.normal(0, 1 / max(np.prod(shape[:-1]) ** 0.5, 1), shape)
        weight.assign(random.uniform(0.5, 1.5, shape) if "variance" in name else values)
    return model


def saved(model: keras.Model, folder: Path, suffix: str = ".keras") -> Path:
    """The model's file."""
    path = folder / f"model{suffix}"
    model.save(path)
    return path


def beside(model: keras.Model, path: Path, most: float = 2e-5, inputs: int = 2) -> Imported:
    """Imports a file, and asserts that it says what Keras says of random inputs.

    Args:
        model: as it was saved.
        path: of its file.
        most: largest difference, as a share of the largest number.
        inputs: how many.
    """
    found = load(path)
    sizes = (1, *(int(size) for size in model.input_shape[1:]))
    for seed in range(inputs):
        x = np.random.default_rng(seed).normal(0, 1, sizes).astype(np.float32)
        with torch.no_grad():
            wanted = model(x, training=False)
            got = found.module(torch.from_numpy(first(x, found, "the input is")))
        wanted = wanted if isinstance(wanted, (list, tuple)) else [wanted]
        got = got if isinstance(got, tuple) else (got,)
        assert len(wanted) == len(got) == len(found.outputs)
        for name, ours, theirs in zip(found.outputs, got, wanted, strict=True):
            theirs = first(theirs.detach().numpy(), found, f"the output {name} is")
            assert ours.shape == theirs.shape
            scale = max(float(np.abs(theirs).max()), 1.0)
            assert float(np.abs(ours.numpy() - theirs).max()) <= most * scale
    return found


def first(x: np.ndarray, found: Imported, words: str) -> np.ndarray:
    """Keras's array with channels first, where a note says that the network has them so."""
    moved = any(note.startswith(words) for note in found.notes)
    return np.ascontiguousarray(np.moveaxis(x, -1, 1)) if moved else x


def turned(found: Imported) -> int:
    """How many permutes the network has."""
    return sum(module.extra_repr() == "permute" for module in found.module.modules())
