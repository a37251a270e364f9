"""Folders of Hugging Face's vision models: `config.json` and `model.safetensors`, read by transformers.

Only files of the folder are read, and no code of it is run.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paredown.pipeline.recipe.imports.folders import CONFIG, PREPROCESSOR, WEIGHTS
from paredown.pipeline.recipe.imports.imported import Imported
from paredown.targets.errors import InputError

#: End of an architecture's name -> transformers' class, what it gives of the outputs, and their names.
TASKS = {
    "ForImageClassification": ("AutoModelForImageClassification", ("logits",)),
    "ForSemanticSegmentation": ("AutoModelForSemanticSegmentation", ("logits",)),
    "ForObjectDetection": ("AutoModelForObjectDetection", ("logits", "pred_boxes")),
    "ForDepthEstimation": ("AutoModelForDepthEstimation", ("predicted_depth",)),
}
MOST_CONFIG = 16 * 2**20
RESAMPLES = {2: "pillow-bilinear", 3: "pillow-bicubic", 4: "area"}  # as Pillow counts its filters


class Outputs(nn.Module):
    """A model of transformers that takes images alone and returns tensors.

    Args:
        model: of transformers.
        names: of its outputs.
    """

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, images: Tensor) -> Any:
        """Images (N, C, H, W) to a tensor, or a tuple of them."""
        found = self.model(pixel_values=images)
        parts = tuple(getattr(found, name) for name in self.names)
        return parts[0] if len(parts) == 1 else parts


def load(path: Path, shape: tuple[int, ...] | None = None) -> Imported:
    """Reads a folder of Hugging Face's; see `imports.read`.

    Raises:
        InputError: transformers is not installed, a file is missing or damaged, or the model is of a kind
            that is not known or brings its own code.
    """
    config = _json(path / CONFIG)
    if config.get("auto_map"):
        raise InputError("needs code that comes with the model, which is not run", where=path,
                         hint="export the model as ONNX, and import that")  # fmt: skip
    named = config.get("architectures") or []
    kind = str(named[0]) if isinstance(named, list) and named else "none"
    found = next((task for end, task in TASKS.items() if kind.endswith(end)), None)
    if found is None:
        raise InputError(f"its architecture is {kind}", where=path / CONFIG,
                         hint=f"known are those that end in {', '.join(TASKS)}")  # fmt: skip
    if not (path / WEIGHTS).is_file():
        raise InputError(f"no {WEIGHTS}; pickled and split weights are not read", where=path,
                         hint='call model.save_pretrained(folder, max_shard_size="99GB")')  # fmt: skip
    network = _model(path, *found)
    size, preprocess, notes = _preprocessing(path)
    full = _shape(config, size, shape, path)
    kind_of_weights = str(config.get("dtype", config.get("torch_dtype", "float32")))
    if kind_of_weights not in ("float32", "None"):
        notes.append(f"{kind_of_weights} made float32")
    return Imported(
        network.float().eval(), full, f"Hugging Face, {kind}", tuple(notes), found[1], preprocess,
        _labels(config),
    )  # fmt: skip


def _model(path: Path, name: str, outputs: tuple[str, ...]) -> nn.Module:
    try:
        import transformers
    except ImportError:
        raise InputError("folders of Hugging Face need transformers", where=path,
                         hint="pip install transformers") from None  # fmt: skip
    told = logging.getLogger("transformers")
    level = told.level
    bars = transformers.utils.logging.is_progress_bar_enabled()
    try:
        told.setLevel(logging.ERROR)
        transformers.utils.logging.disable_progress_bar()
        made, about = getattr(transformers, name).from_pretrained(
            str(path), local_files_only=True, trust_remote_code=False, use_safetensors=True,
            output_loading_info=True, dtype=torch.float32, attn_implementation="eager",
        )  # fmt: skip
    except Exception as error:  # transformers raises many kinds for a damaged folder
        reason = next(
            (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        raise InputError(f"transformers cannot read the model ({reason[:160]})", where=path) from error
    finally:
        told.setLevel(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()
    for key, words in (("missing_keys", "lacks"), ("mismatched_keys", "has another shape of")):
        if names := sorted(map(str, about.get(key, ()))):
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise InputError(f"{WEIGHTS} {words} {names[0]}{more}", where=path)
    return Outputs(made, outputs)


def _preprocessing(path: Path) -> tuple[tuple[int, int] | None, dict[str, Any], list[str]]:
    """Height and width of the images, keys of [preprocess], and a note of how they are prepared."""
    if not (path / PREPROCESSOR).is_file():
        return None, {}, []
    config = _json(path / PREPROCESSOR)
    cropped = bool(config.get("do_center_crop"))
    size = _size(config.get("crop_size")) if cropped else None
    size = size or _size(config.get("size"))
    made: dict[str, Any] = {}
    if size:
        made |= {"width": size[1], "height": size[0]}
    shortest = isinstance(config.get("size"), Mapping) and "shortest_edge" in config["size"]
    for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
        if config.get("do_normalize", True) and _numbers(config.get(theirs)):
            made[ours] = [float(value) for value in config[theirs]]
    notes = []
    if not config.get("do_rescale", True):  # then the network takes 0 to 255, and a recipe speaks of 0 to 1
        for ours, plain in (("mean", 0.0), ("std", 1.0)):
            made[ours] = [value / 255 for value in made.get(ours, [plain] * 3)]
    made["resize"] = "crop" if cropped or shortest else "stretch"
    if cropped and shortest and size and config["size"]["shortest_edge"] != size[0]:
        made["shorter_side"] = config["size"]["shortest_edge"]
    if config.get("resample") in RESAMPLES:
        made["resample"] = RESAMPLES[config["resample"]]
    said = ", ".join(f"{key} = {value}" for key, value in made.items())
    notes.append(f"{PREPROCESSOR} says for [preprocess]: {said}")
    return size, made, notes


def _numbers(value: Any) -> bool:
    return (
        isinstance(value, list) and 1 <= len(value) <= 4 and all(isinstance(v, (int, float)) for v in value)
    )


def _labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes by `id2label`; nothing where it is made of numbers alone, or has gaps."""
    given = config.get("id2label")
    if not isinstance(given, Mapping) or sorted(given) != sorted(str(i) for i in range(len(given))):
        return ()
    names = tuple(" ".join(str(given[str(index)]).split()) for index in range(len(given)))
    made_up = all(name == f"LABEL_{index}" for index, name in enumerate(names))
    return () if made_up or "" in names or len(set(names)) < len(names) else names


def _size(given: Any) -> tuple[int, int] | None:
    if isinstance(given, int):
        return given, given
    if isinstance(given, Mapping):
        found = (
            given.get("height", given.get("shortest_edge")),
            given.get("width", given.get("shortest_edge")),
        )
        if all(isinstance(each, int) and each > 0 for each in found):
            return int(found[0]), int(found[1])
    return None


def _shape(
    config: Mapping[str, Any], size: tuple[int, int] | None, asked: tuple[int, ...] | None, path: Path
) -> tuple[int, ...]:
    """The input's shape: as asked, or as the folder says it."""
    channels = config.get("num_channels", 3)
    channels = channels if isinstance(channels, int) else 3
    said = size or _size(config.get("image_size"))
    if asked is None and said is None:
        raise InputError("does not say the size of its images", where=path, hint="give it: --shape 3x224x224")
    given = tuple(asked or said or ())
    if len(given) == 2:
        return (1, channels, *given)
    if len(given) not in (3, 4) or given[-3] != channels or (len(given) == 4 and given[0] != 1):
        raise InputError(f"takes images of {channels} channels, and {'x'.join(map(str, given))} does not fit",
                         where=path, hint=f"give --shape {channels}x224x224")  # fmt: skip
    return (1, *given[-3:])


def _json(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > MOST_CONFIG:
            raise InputError("is larger than 16 MiB", where=path)
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read it: {error.strerror}", where=path) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"is no JSON ({str(error)[:80]})", where=path) from None
    if not isinstance(found, dict):
        raise InputError("is no JSON object", where=path)
    return found
