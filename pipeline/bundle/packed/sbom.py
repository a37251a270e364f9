"""What a bundle is made of, as CycloneDX 1.6 (https://cyclonedx.org): packages, their versions, and models.

Nothing in it tells of a time or a machine, so that equal bundles have equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from importlib import metadata
from typing import Any

from paredown.targets.host.host import package_version

SBOM = "sbom.cdx.json"
#: Runtime -> the package that runs its programs.
RUNNERS = {"litert": "ai-edge-litert", "executorch": "executorch", "onnxruntime": "onnxruntime"}
#: What the device's code needs beside one of them.
DEVICE = ("numpy", "opencv-python-headless")
_LONGEST = 60  # characters of a licence's name; some packages put the whole text there


def bundle_sbom(manifest: Mapping[str, Any], members: Mapping[str, bytes]) -> bytes:
    """The SBOM of a bundle.

    Packages that run its models are "required"; those that only made it are "excluded" from what runs.

    Args:
        manifest: as it is given to `pack`: its name, app, models and versions are read.
        members: name -> bytes; of the models sha256 and size are told.

    Returns:
        JSON.
    """
    programs = [*manifest.get("models", ()), *manifest.get("language", ())]
    needed = {RUNNERS.get(each["runtime"], each["runtime"]) for each in programs} | set(DEVICE)
    versions = {"paredown": package_version("paredown"), **manifest["versions"]}
    parts = [package(name, version, needed=name in needed) for name, version in sorted(versions.items())]
    parts += [_model(each, members[each["file"]]) for each in programs]
    return document(
        manifest["name"], None, parts, properties={"app": manifest["app"], "target": manifest["target"]}
    )


def document(
    name: str, version: str | None, components: Sequence[Mapping[str, Any]], properties: Mapping[str, str]
) -> bytes:
    """A CycloneDX document without a time and without a number that is drawn.

    Args:
        name: of what it is about.
        version: of it.
        components: as `package` makes them.
        properties: what else is to be told of it.
    """
    about: dict[str, Any] = {"type": "application", "bom-ref": "about", "name": name}
    if version is not None:
        about["version"] = version
    about["properties"] = [{"name": f"paredown:{key}", "value": value} for key, value in properties.items()]
    told = {
        "bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1,
        "metadata": {"component": about},
        "components": list(components),
        "dependencies": [{"ref": "about", "dependsOn": sorted(each["bom-ref"] for each in components)}],
    }  # fmt: skip
    return (json.dumps(told, indent=1, sort_keys=True) + "\n").encode()


def package(
    name: str, version: str, licence: str | None = None, digest: str | None = None, *, needed: bool = True
) -> dict[str, Any]:
    """A package of the Python index.

    Args:
        name: of it.
        version: of it; a build's own label ("+cpu") is left out.
        licence: in words; None = as the installed package says.
        digest: sha256 of the file it is installed from, if it is known.
        needed: whether what the document is about needs it to run.
    """
    version = version.partition("+")[0]
    licence = licence or licence_of(name)
    found: dict[str, Any] = {
        "type": "library", "bom-ref": f"pkg:pypi/{name}@{version}", "name": name, "version": version,
        "purl": f"pkg:pypi/{name}@{version}", "scope": "required" if needed else "excluded",
    }  # fmt: skip
    if licence:
        found["licenses"] = [{"license": {"name": licence}}]
    if digest:
        found["hashes"] = [{"alg": "SHA-256", "content": digest}]
    return found


def licence_of(name: str) -> str:
    """The licence of an installed package in a few words; nothing where it says none, or is not installed."""
    try:
        found = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return ""
    # not found["License"]: where something imports the package importlib_metadata, that raises
    expression, plain = ((found.get_all(name) or [None])[0] for name in ("License-Expression", "License"))
    return licence_text(expression, plain, found.get_all("Classifier") or [])


def licence_text(expression: str | None, plain: str | None, classifiers: Iterable[str]) -> str:
    """A licence in a few words, from the three places in which packages name it."""
    named = [line.rpartition(" :: ")[2] for line in classifiers if line.startswith("License :: ")]
    short = plain if plain and "\n" not in plain and len(plain) <= _LONGEST else None
    return (expression or short or ", ".join(named)).strip()


def _model(entry: Mapping[str, Any], data: bytes) -> dict[str, Any]:
    return {
        "type": "machine-learning-model", "bom-ref": entry["file"], "name": entry["file"],
        "hashes": [{"alg": "SHA-256", "content": sha256(data).hexdigest()}],
        "properties": [
            {"name": "paredown:runtime", "value": entry["runtime"]},
            {"name": "paredown:bytes", "value": str(len(data))},
        ],
    }  # fmt: skip
