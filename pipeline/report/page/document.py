"""What the page shows, as one JSON document: a run keeps it, so that pages are made again without the run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paredown.pipeline.recipe.task import Metric
from paredown.pipeline.report.budget import Limit, limit_rows
from paredown.pipeline.report.checks import Check
from paredown.pipeline.report.figures import SCORES, Figure, parse_figures
from paredown.pipeline.report.verdict import Verdict
from paredown.targets.errors import InputError

FORMAT = 1
DOCUMENT, PAGE, BURSTS = "report.json", "report.html", "bench.json"
#: What only some runs have, and what stands for it in others.
NOTHING: Mapping[str, Any] = {
    "details": {}, "examples": None, "sensitivity": None, "widths": [], "ledger": [], "times": {},
    "parity": {}, "bursts": [],
}  # fmt: skip


def document(
    name: str,
    target: str,
    summary: str,
    metric: Metric,
    figures: Sequence[Figure],
    *,
    limits: Sequence[Limit] = (),
    verdict: Verdict | None = None,
    checks: Sequence[Check] = (),
    notes: Sequence[str] = (),
    card: Sequence[tuple[str, str]] = (),
    command: str = "",
    recipe: str = "",
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Puts a document together.

    Args:
        name: of the recipe.
        target: of the card.
        summary: of the card.
        metric: of the task.
        figures: all of them.
        limits: of the budget.
        verdict: whether it may ship; None where nobody decides.
        checks: of a device.
        notes: one sentence each.
        card: name and value of what else there is to know.
        command: that makes it again.
        recipe: resolved, as TOML.
        facts: some of the keys of `NOTHING`.
    """
    return {
        "format": FORMAT, "name": name, "target": target, "summary": summary, "metric": asdict(metric),
        "figures": [figure.to_dict() for figure in figures],
        "limits": [list(row) for row in limit_rows(limits)],
        "verdict": None if verdict is None else verdict.to_dict(),
        "checks": [asdict(check) | {"state": check.state} for check in checks],
        "notes": list(notes),
        "card": [list(row) for row in card], "command": command, "recipe": recipe,
        **NOTHING, **(facts or {}),
    }  # fmt: skip


def read_document(folder: Path) -> dict[str, Any]:
    """The document of a run, with the minutes of `paredown bench` where they lie beside it.

    Raises:
        InputError: the folder is no run's, or its files are broken.
    """
    path = folder / DOCUMENT
    if not path.exists():
        hint = "give the folder of one target, as runs/digits/host; an older run has to be run again"
        raise InputError(f"has no {DOCUMENT}", where=folder, hint=hint)
    found = _read(path)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise InputError("is no report of this version", where=path, hint="run the recipe again")
    minutes = folder / BURSTS
    if minutes.exists():
        told = _read(minutes)
        found["bursts"] = told.get("bursts", []) if isinstance(told, dict) else []
    parse_figures(found.get("figures") or [], path)
    return found


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=path) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not JSON: {error}", where=path, hint="run the recipe again") from error


def bundle_document(manifest: Any, path: Path, sizes: Mapping[str, int]) -> dict[str, Any]:
    """The card of a bundle: what its manifest says. Nothing is proven by it, so there is no verdict.

    Args:
        manifest: `pipeline.bundle.manifest.Manifest`.
        path: of the bundle.
        sizes: member -> bytes.
    """
    figures = parse_figures(manifest.figures, path)
    about = manifest.recipe.about
    names = {figure.metric for figure in figures}
    metric = manifest.metric
    if metric is not None:
        known = Metric(metric.name, metric.less_is_better)
    else:  # of format 3
        known = Metric(next((name for name in SCORES if name in names), SCORES[0]))
    programs = [f"{model.file} ({model.runtime}, {sizes[model.file]:,} bytes)" for model in manifest.programs]
    told = (
        ("intended use", about.use), ("test data", about.data),
        ("scored on", f"{manifest.test.images} of fingerprint {manifest.test.fingerprint[:12]}"),
        ("licence of weights and data", about.licence),
        *((f"licence of {name}", value) for name, value in manifest.licences.items()),
        ("app", manifest.app), ("programs", ", ".join(programs)),
        ("versions", ", ".join(f"{name} {value}" for name, value in manifest.versions.items())),
    )  # fmt: skip
    card = [(name, value or "not given (recipe, section [about])") for name, value in told]
    return document(
        manifest.name, manifest.target, manifest.card.summary, known, figures, card=card,
        notes=["figures as the bundle carries them; `paredown validate` proves them on a device"],
        command=f"paredown validate {path.name}",
    )  # fmt: skip
