"""The stage keys of known recipes, on a machine and with versions that are made up: they must never change.

    python tests/golden/keys.py > tests/golden/keys.json

A key that changes without a raised version throws away what users have trained. Left out are the stages
whose input is the device's own code (`bundle`, and what reads it), which changes with every release.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

VERSIONS = {
    "torch": "2.13.0", "executorch": "1.5.1", "ai-edge-litert": "2.3.0", "litert-torch": "0.10.0",
    "litert-lm-builder": "0.18.1", "numpy": "2.4.6", "zstandard": "0.25.0", "paredown": "0.1.0",
}  # fmt: skip
IMAGES = {
    "plain": (),
    "pruned": ("prune.macs=0.5",),
    "squantized": ("squantize.weight_bits=4", "squantize.sparsity=0.6"),
    "both": ("prune.macs=0.5", "prune.weight_sparsity=0.3", "squantize.weight_bits=4"),
}
TEXTS = {
    "plain": (),
    "pruned": ("language.ffn=0.5",),
    "squantized": ("language.sparsity=0.5", "language.weights_mib=0.2", "language.distil_steps=4"),
}
TARGETS = ("host", "raspberry-pi-5", "cortex-m4")
DEVICE_CODE = {"bundle"}


def stand_still(host: Any) -> None:
    """Replaces what the module of the host says of itself, before anything else of ours is imported."""
    machine = host.Machine(
        "host", "a CPU", 2, "x86_64", "Linux", 16384, "3.11.7", tuple(sorted(VERSIONS.items()))
    )
    host.this_machine = lambda name="host": machine
    host.package_version = lambda package: VERSIONS.get(package, "not installed")
    host.package_versions = lambda packages=(): tuple(
        (package, VERSIONS[package]) for package in sorted(packages) if package in VERSIONS
    )


def aerial_data(folder: Path) -> tuple[str, ...]:
    """Images, labels and weights of the recipe `aerial`, the same bytes everywhere; their settings."""
    generator = np.random.default_rng(5)
    for split, count in (("train", 6), ("test", 2)):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 256, (32, 48, 3), dtype=np.uint8)
            (folder / "images" / split / f"{index}.ppm").write_bytes(b"P6\n48 32\n255\n" + pixels.tobytes())
            (folder / "labels" / split / f"{index}.txt").write_text(f"{index % 3} 0.5 0.5 0.25 0.25\n")
    (folder / "aerial.names").write_text("car\nbus\nminibus\n")
    (folder / "aerial.safetensors").write_bytes(b"weights that nobody reads for a key")
    return (
        f"weights={folder}/aerial.safetensors", f"data.names={folder}/aerial.names",
        f"data.train={folder}/images/train", f"data.test={folder}/images/test",
    )  # fmt: skip


def plan_of(recipe: str, settings: tuple[str, ...], target: str, root: Path) -> dict[str, str]:
    """Stage -> key, as `paredown run --dry-run` has them."""
    from typer.testing import CliRunner

    door = importlib.import_module("paredown.apps.cli.main")
    words = ["run", recipe, "--target", target, "--runs", str(root), "--dry-run", "--json"]
    done = CliRunner().invoke(door.app, [*words, *(w for s in settings for w in ("--set", s))])
    if done.exit_code:
        return {"refused": str(json.loads(done.stdout)["exit_code"])}
    stages = json.loads(done.stdout)["stages"]
    later = DEVICE_CODE | ({"bench"} if recipe.startswith("gemma") else set())
    return {stage["name"]: stage["key"] for stage in stages if stage["name"] not in later}


def keys() -> dict[str, Any]:
    """Every plan: recipe, target, changes -> stage -> key."""
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        own = aerial_data(folder)
        for recipe, data, changes in (
            ("digits", (), IMAGES),
            ("aerial", own, IMAGES),
            ("gemma3-tiny", (), TEXTS),
        ):
            for target in TARGETS:
                for name, settings in changes.items():
                    plan = plan_of(recipe, (*data, *settings), target, folder / "runs")
                    found[f"{recipe} {target} {name}"] = plan
    return found


if __name__ == "__main__":
    stand_still(importlib.import_module("paredown.targets.host.host"))
    json.dump(keys(), sys.stdout, indent=1, sort_keys=True)
    print()
