"""From a trained network and a target device to a validated bundle that runs there.

    import paredown

    result = paredown.run("digits", target="raspberry-pi-5", device="ssh://pi@board")
    with paredown.load(result.bundle) as model:
        print(model.detect("photo.png"))

This file travels to devices in every bundle: importing it loads nothing but the standard library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import Any

    from paredown.apps.api.model import Classification, Detection, Keypoint, Model
    from paredown.pipeline.recipe.schema import Recipe
    from paredown.pipeline.report.checks import Validation
    from paredown.pipeline.run.run import Result
    from paredown.targets.errors import DeviceError, InputError, ParedownError, UsageError

    __version__: str

__all__ = [
    "Classification", "Detection", "DeviceError", "InputError", "Keypoint", "Model", "ParedownError",
    "Recipe", "Result", "UsageError", "Validation", "__version__", "load", "run", "validate",
]  # fmt: skip


def run(
    recipe: str | Path | Recipe,
    target: str | Path = "host",
    device: str | None = None,
    set: Mapping[str, Any] | None = None,
    runs: str | Path = "runs",
    smoke: bool = False,
    limit: int | None = None,
    *,
    log: Callable[[str], None] = lambda line: None,
) -> Result:
    """Makes a bundle from a recipe, as the command `paredown run` does.

    Args:
        recipe: the name of a known recipe, a .toml file, or a `Recipe`.
        target: the name of a target card, or a .toml file.
        device: where to prove the bundle, as "ssh://user@host"; None = nowhere.
        set: keys of the recipe to set, as {"prune.macs": 0.5}.
        runs: folder of the runs and of stored results; the run itself is in RUNS/RECIPE/TARGET.
        smoke: run every stage on a handful of samples; the figures mean nothing.
        limit: score at most this many images on the device.
        log: told when a stage begins and when it is done, a line each.

    Returns:
        Folder, bundle and figures. A broken budget raises nothing: ask `passed`.

    Raises:
        UsageError: no such recipe, or the target cannot run it.
        InputError: a file of the recipe is missing or broken, or a key or value is not accepted.
        DeviceError: the device cannot be reached, or failed.
    """
    from paredown.apps.api.runs import run as make

    return make(recipe, target, device, set or {}, runs, smoke, limit, log)


def validate(
    bundle: str | Path, device: str = "local:", limit: int | None = None, score: bool = True
) -> Validation:
    """Checks a bundle on a device, as the command `paredown validate` does.

    Args:
        bundle: the .paredown file.
        device: an address, as "ssh://user@host"; "local:" is this machine.
        limit: score at most this many test images.
        score: whether to score on the recipe's test images.

    Returns:
        Checks and figures. What failed raises nothing: ask `passed`.

    Raises:
        UsageError: no such kind of address.
        InputError: the bundle or the recipe's data is broken.
        DeviceError: the device cannot be reached, or failed.
    """
    from paredown.pipeline.device.validate.validate import validate as prove

    return prove(bundle, device, limit=limit, score=score)


def load(bundle: str | Path, threads: int = 1) -> Model:
    """Opens a bundle's model in this process.

    Args:
        bundle: the .paredown file.
        threads: of the runtime.

    Raises:
        UsageError: the bundle's app is not known here.
        InputError: the file is no bundle, or damaged, or has no program that can run here.
        DeviceError: the runtime is not installed.
    """
    from paredown.apps.api.model import Model

    return Model(bundle, threads)


def __getattr__(name: str) -> object:
    """Classes and the version, imported when they are asked for."""
    if name == "__version__":
        from importlib.metadata import version

        return version("paredown")
    if name in ("DeviceError", "InputError", "ParedownError", "UsageError"):
        from paredown.targets import errors

        return getattr(errors, name)
    if name in ("Classification", "Detection", "Keypoint", "Model"):
        from paredown.apps.api import model

        return getattr(model, name)
    if name == "Result":
        from paredown.pipeline.run.run import Result

        return Result
    if name == "Recipe":
        from paredown.pipeline.recipe.schema import Recipe

        return Recipe
    if name == "Validation":
        from paredown.pipeline.report.checks import Validation

        return Validation
    raise AttributeError(f"module 'paredown' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
