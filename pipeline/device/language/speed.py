"""How fast a bundle's language model reads and writes, by the app's own code for devices.

`python -m APP.device.speed RUNTIME ...` runs in the unpacked bundle's folder, here or on a device, a process
per runtime and round, and prints one JSON: tokens a second, time to the first token, peak memory.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from paredown.pipeline.bundle.archive import extract, unpack
from paredown.pipeline.bundle.known_code import require_known_code
from paredown.pipeline.report.figures import Figure, Tag
from paredown.targets.errors import DeviceError
from paredown.targets.host.host import Machine

PROMPT, ANSWER, ROUNDS = 64, 32, 3
SMOKE = (8, 4, 1)
UNITS = {"prefill_rate": "1/s", "decode_rate": "1/s", "first_token": "ms", "memory_peak": "MiB"}


def command(app: str, runtime: str, prompt: int, answer: int, threads: int) -> list[str]:
    """What measures, behind the name of a Python."""
    return ["-m", f"{app}.device.speed", runtime, str(prompt), str(answer), str(threads)]


def lengths(context: int, answer: int = ANSWER) -> tuple[int, int]:
    """Tokens that are read and then written: so many, or as many as the context has room for."""
    prompt = min(PROMPT, context // 2)
    return prompt, min(answer, context - prompt)


def measure_here(
    bundle: Path, smoke: bool, tick: Callable[[int, int], None], threads: int = 1
) -> dict[str, dict[str, float]]:
    """Every runtime of a bundle on this machine, round and round; the medians.

    Raises:
        InputError: the bundle holds code that is not this version's.
        DeviceError: one failed.
    """
    opened = unpack(bundle)
    require_known_code(opened)
    app, names = opened.package, [str(model.runtime) for model in opened.manifest.language]
    context = min(model.context for model in opened.manifest.language)
    prompt, answer, rounds = SMOKE if smoke else (*lengths(context), ROUNDS)
    found: dict[str, list[Mapping[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        extract(opened, Path(folder))
        for done in range(rounds * len(names)):
            name = names[done % len(names)]
            asked = command(app, name, prompt, answer, threads)
            run = subprocess.run(
                [sys.executable, "-P", *asked], cwd=folder, capture_output=True, text=True
            )  # -P: this machine's own packages, which can build what is not in the bundle
            found[name].append(parse(run.stdout, run.returncode, run.stderr, name))
            tick(done + 1, rounds * len(names))
    return {name: medians(rows) for name, rows in found.items()}


def parse(out: str, status: int, err: str, runtime: str) -> dict[str, float]:
    """What one process measured.

    Raises:
        DeviceError: it failed, or said something else.
    """
    try:
        document = json.loads(out.strip().splitlines()[-1]) if not status else {}
        return {name: float(document[name]) for name in UNITS}
    except (ValueError, KeyError, IndexError, TypeError) as error:
        last = (err.strip().splitlines() or ["it says nothing"])[-1]
        raise DeviceError(f"{runtime} could not be measured: {last}") from error


def medians(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each number."""
    return {name: statistics.median(row[name] for row in rows) for name in UNITS}


def figures(variant: str, facts: Mapping[str, Any], tag: Tag, machine: Machine) -> list[Figure]:
    """What was measured, as figures."""
    return [Figure("bench", variant, name, facts[name], unit, tag, machine) for name, unit in UNITS.items()]
