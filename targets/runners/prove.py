"""Proves an unpacked bundle on its board: `python3 -m paredown.targets.runners.prove`, in its folder.

Every member is what the manifest says, and the LiteRT model gives the very codes that the bundle's test
vectors want. Copied to boards as it is: numpy and one runtime. Prints one JSON document.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paredown.targets.errors import DeviceError, InputError, ParedownError
from paredown.targets.runners.litert import Runner
from paredown.targets.runners.vectors import test_inputs

#: Float kernels add in an order of their own: of the largest output.
FLOAT_TOLERANCE = 1e-3


def prove(folder: Path) -> dict[str, Any]:
    """Hashes, then test vectors.

    Args:
        folder: with manifest.json.

    Returns:
        `members`, `codes` that were compared, how many of them are `differing`, by how much at most
        (`apart`: LSB, or of float32 the share of the largest output).

    Raises:
        InputError: the folder is no unpacked bundle with a LiteRT model, or damaged.
        DeviceError: the model gives something else here.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        hashes = {name: entry["sha256"] for name, entry in manifest["members"].items()}
        entry = next(model for model in manifest["models"] if model["runtime"] == "litert")
        vectors, file, dtype = entry["vectors"], entry["file"], np.dtype(entry["dtype"])
        allowed = _allowed(manifest["figures"], dtype)
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise InputError("no unpacked bundle with a LiteRT model", where=folder) from error
    for name, sha256 in hashes.items():
        path = folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            raise InputError("missing or damaged: not what the manifest says", where=path)
    facts = json.loads((folder / f"{vectors}.json").read_bytes())
    data = (folder / f"{vectors}.bin").read_bytes()
    runner = Runner((folder / file).read_bytes(), 1, file)
    real = folder / f"{vectors}.in"
    found = [runner(x[None]) for x in _inputs(facts, dtype, real.read_bytes() if real.exists() else b"")]
    given = hashlib.sha256()
    worst, differing, compared, offset = 0.0, 0, 0, 0
    for place, shape in enumerate(facts["outputs"]):
        ours = np.concatenate([sample[place] for sample in found])
        expected = np.frombuffer(data, dtype, ours.size, offset).reshape(facts["count"], *shape[1:])
        offset += expected.nbytes
        given.update(ours.tobytes())
        apart = np.abs(ours.astype(np.float64) - expected)
        scale = max(float(np.abs(expected).max()), 1e-9) if dtype == np.float32 else 1.0
        worst, compared = max(worst, float(apart.max()) / scale), compared + apart.size
        differing += int(np.count_nonzero(apart))
    if facts.get("also") == given.hexdigest():  # the runtime's reference kernels: right, too
        worst, differing = 0.0, 0
    if not worst <= allowed:  # NaN, too
        what = f"its test vectors differ here: {differing} of {compared} values, by up to {worst:g}"
        raise DeviceError(what, where=file, hint="`paredown validate` finds the first operation that does")
    return {"members": len(hashes), "codes": compared, "differing": differing, "apart": worst}


def _allowed(figures: Any, dtype: np.dtype[Any]) -> float:
    """What the bundle itself says of its runtime's rounding; a smoke run's figures say nothing."""
    if dtype == np.float32:
        return FLOAT_TOLERANCE
    said = {"parity_lsb", "parity_allowed"}
    known = (f for f in figures if f["variant"] == "litert" and f["metric"] in said)
    return max((float(f["value"]) for f in known if f["tag"] != "smoke"), default=0.0)


def _inputs(facts: dict[str, Any], dtype: np.dtype[Any], real: bytes) -> NDArray[Any]:
    if facts["seed"] is None:
        codes = np.frombuffer(real, np.int8).reshape(facts["count"], *facts["input"][1:])
    else:
        codes = test_inputs(tuple(facts["input"]), facts["count"], facts["seed"])
    if dtype == np.int8:
        return codes
    return (codes.astype(np.float32) - facts["zero_point"]) * np.float32(facts["scale"])


def main() -> int:
    """The command; returns the exit code."""
    try:
        print(json.dumps(prove(Path.cwd())))
    except ParedownError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
