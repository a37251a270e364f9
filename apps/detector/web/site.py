"""A bundle's detector as a static web page: the sources of `web/`, the network, and LiteRT.js."""

from __future__ import annotations

import hashlib
import html
import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paredown.apps.detector.device.boxes.decode import check_thresholds, decoder_of
from paredown.pipeline.bundle.archive import Bundle
from paredown.pipeline.bundle.manifest import Model
from paredown.targets.errors import DeviceError, InputError, UsageError
from paredown.targets.host.cache import cache_folder, key_of, made_once
from paredown.targets.runners.unpacked import described

SOURCES = Path(__file__).parent
#: For npm, no part of the page: the lock pins LiteRT.js by version and sha512 of the package.
PACKAGE, LOCK = "package.json", "package-lock.json"
RUNTIME = "litert"
PROGRAM, MODEL, WORKER, INDEX = "model.tflite", "model.json", "sw.js", "index.html"
#: LiteRT.js without and with threads, and for processors without relaxed SIMD; others are never loaded.
_VARIANTS = ("litert_wasm_internal", "litert_wasm_threaded_internal", "litert_wasm_compat_internal")


@dataclass(frozen=True)
class Site:
    """A folder that any web server can hand out.

    Attributes:
        folder: with index.html.
        files: in it, relative.
        bytes: of all of them; a browser loads one of the runtime's three variants.
    """

    folder: Path
    files: tuple[str, ...]
    bytes: int


def build(bundle: Bundle, out: Path, modules: Path | None = None) -> Site:
    """Puts a page together.

    Args:
        bundle: of `apps.detector`, with a LiteRT model.
        out: the folder, made where it is not there; files of an earlier page in it are replaced.
        modules: a `node_modules` with LiteRT.js; by default npm fetches it, once per machine.

    Raises:
        UsageError: the bundle is no detector's, or has no LiteRT model; the folder holds something else.
        InputError: `modules` has no LiteRT.js, or another version of it.
        DeviceError: npm is missing or fails.
    """
    page = _page(bundle)
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MODEL).is_file())):
        raise UsageError("holds something that is no page", where=out, hint="give --out a new folder")
    shell = {**_sources(bundle.manifest.name), **page}
    files = {**shell, **_runtime(modules or fetched())}
    kept = sorted({"./", *shell} - {INDEX, WORKER})
    version = _version(files).encode()
    files[INDEX] = files[INDEX].replace(b"@VERSION@", version)
    hashes = {
        name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items()) if name != WORKER
    }
    hashes["./"] = hashes[INDEX]
    files[WORKER] = (
        files[WORKER]
        .replace(b"@VERSION@", version)
        .replace(b'["@FILES@"]', json.dumps(kept).encode())
        .replace(b'{ "@HASHES@": "" }', json.dumps(hashes).encode())
    )
    for name, data in files.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return Site(out, tuple(sorted(files)), sum(map(len, files.values())))


def _sources(name: str) -> dict[str, bytes]:
    """The page's own files, with the bundle's name where they say so."""
    spelled = {".html": html.escape(name), ".webmanifest": json.dumps(name)[1:-1]}
    own = (path for path in sorted(SOURCES.iterdir()) if path.is_file() and path.suffix != ".py")
    files = {path.name: path.read_bytes() for path in own}
    del files[PACKAGE], files[LOCK]
    for file, data in files.items():
        if (spelling := spelled.get(Path(file).suffix)) is not None:
            files[file] = data.replace(b"@NAME@", spelling.encode())
    return files


def _version(files: Mapping[str, bytes]) -> str:
    """Another one for other files: the service worker keeps a page until its version changes."""
    return key_of(*(part for item in sorted(files.items()) for part in item))


def _page(bundle: Bundle) -> dict[str, bytes]:
    """The network and what the page has to know of it."""
    manifest = bundle.manifest
    if manifest.app != "apps.detector":
        what = f"is a bundle of {manifest.app}; the page shows detections"
        raise UsageError(what, where=bundle.path, hint="give it a bundle of apps.detector")
    entry = next((model for model in manifest.models if model.runtime == "litert"), None)
    if entry is None:
        raise UsageError(
            "has no LiteRT model, and browsers run that", where=bundle.path,
            hint="make it with --set lower.runtimes='[\"litert\"]'",
        )  # fmt: skip
    app = bundle.json("app.json")
    with described(f"{bundle.path}:app.json"):
        decoder_of(app)  # of a version that the page knows too
        check_thresholds(app)
    decoding = next(key for key in ("heads", "yolo", "anchors") if key in app)
    facts = {
        "name": manifest.name, "file": PROGRAM,
        "labels": bundle.read("labels.txt").decode().rstrip("\n").split("\n"),
        **{key: app[key] for key in (decoding, "nms_iou", "show_threshold")},
        "preprocess": dict(manifest.preprocess), "input": _input(entry),
    }  # fmt: skip
    return {MODEL: (json.dumps(facts, indent=1) + "\n").encode(), PROGRAM: _program(bundle, entry)}


def _input(entry: Model) -> dict[str, Any] | None:
    """How an integer network codes its input; None of one in float32."""
    if entry.dtype == "float32":
        return None
    return {"scale": entry.input.scale, "zero_point": entry.input.zero_point}


def _program(bundle: Bundle, entry: Model) -> bytes:
    data = bundle.read(entry.file)
    if entry.dtype == "float32":
        return data
    from paredown.pipeline.lower.litert.float_io import with_float_io

    return with_float_io(data)


# -- LiteRT.js -----------------------------------------------------------------------------------------------


def pinned() -> dict[str, str]:
    """The packages of LiteRT.js and the version of each, as the lock has them."""
    packages = json.loads((SOURCES / LOCK).read_text())["packages"]
    return {name.removeprefix("node_modules/"): entry["version"] for name, entry in packages.items() if name}


def fetched() -> Path:
    """The `node_modules` with LiteRT.js; npm gets it the first time and checks it against the lock.

    Raises:
        DeviceError: npm is missing or fails.
    """
    lock = (SOURCES / LOCK).read_bytes()
    return made_once(cache_folder() / f"litertjs-{key_of(lock)}", _install) / "node_modules"


def _install(folder: Path) -> None:
    npm = shutil.which("npm")
    wanted = f"@litertjs/core@{pinned()['@litertjs/core']}"
    otherwise = f"give --litertjs the node_modules of a machine on which `npm install {wanted}` ran"
    if npm is None:
        raise DeviceError(
            "the page needs LiteRT.js, and `npm`, which fetches it, is not installed",
            hint=f"apt-get install npm, or {otherwise}",
        )
    for name in (PACKAGE, LOCK):
        shutil.copy(SOURCES / name, folder)
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    if done.returncode:
        reason = " ".join(done.stderr.replace("npm error", " ").split()) or f"exit status {done.returncode}"
        raise DeviceError(f"npm could not fetch {wanted}: {reason[:200]}", hint=otherwise)


def _runtime(modules: Path) -> dict[str, bytes]:
    """The files of LiteRT.js that the page loads: name below the page -> bytes.

    Its one import by package name is turned into one by path, since workers have no import map.
    """
    core, loader = modules / "@litertjs" / "core", modules / "@litertjs" / "wasm-utils"
    for package, version in pinned().items():
        _check_version(modules / package / "package.json", package, version)
    wasm = [f"{variant}.{suffix}" for variant in _VARIANTS for suffix in ("js", "wasm")]
    try:
        files = {f"{RUNTIME}/wasm/{name}": (core / "wasm" / name).read_bytes() for name in wasm}
        files[f"{RUNTIME}/package.json"] = (core / "package.json").read_bytes()  # licence and origin
        files[f"{RUNTIME}/wasm-utils.js"] = _plain((loader / "dist" / "index.js").read_text())
        text = (core / "dist" / "index.js").read_text()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=error.filename) from error
    changed = "// Changed by paredown: the import below, from a package's name to a path.\n"
    files[f"{RUNTIME}/index.js"] = changed.encode() + _plain(
        text.replace('"@litertjs/wasm-utils"', '"./wasm-utils.js"')
    )
    return files


def _plain(text: str) -> bytes:
    """Without the name of a source map, which is not shipped."""
    return "\n".join(line for line in text.split("\n") if not line.startswith("//# source")).encode()


def _check_version(path: Path, package: str, wanted: str) -> None:
    hint = f"npm install @litertjs/core@{wanted}, and give --litertjs its node_modules"
    try:
        found = json.loads(path.read_text())["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"no package {package} here", where=path.parent, hint=hint) from error
    if found != wanted:
        raise InputError(f"{package} {found}, the page was proven with {wanted}", where=path, hint=hint)
