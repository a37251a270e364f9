"""Models that are folders: what they are, and which of their files decide it."""

from __future__ import annotations

from pathlib import Path

HUGGING_FACE, SAVED_MODEL = "Hugging Face", "SavedModel"
CONFIG, WEIGHTS, PREPROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"
#: What transformers reads where it is there: weights in parts, with their index, and adapters.
OTHERS = ("model*.safetensors", "model*.safetensors.index.json", "adapter_*")
GRAPH = "saved_model.pb"


def kind(path: Path) -> str | None:
    """What a folder holds; None of what is no folder, or holds no model."""
    try:
        if not path.is_dir():
            return None
        if (path / GRAPH).is_file():
            return SAVED_MODEL
        return HUGGING_FACE if (path / CONFIG).is_file() else None
    except (OSError, ValueError):  # a name that no file system takes
        return None


def files(path: Path) -> tuple[Path, ...]:
    """The files that decide what the model is."""
    if kind(path) == SAVED_MODEL:
        return (path / GRAPH, *sorted((path / "variables").glob("variables.*")))
    usual = [path / name for name in (CONFIG, WEIGHTS, PREPROCESSOR)]
    others = sorted({found for pattern in OTHERS for found in path.glob(pattern)} - set(usual))
    return tuple(file for file in (*usual, *others) if file.is_file())
