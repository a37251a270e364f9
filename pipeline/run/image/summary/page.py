"""What a run of an image network gives its page beside figures, from the artefacts of its stages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paredown.pipeline.report.drop import read_details
from paredown.pipeline.run.image.prune_stages import SENSE
from paredown.pipeline.run.image.summary.summary import EXAMPLES, LEDGER, TIMES
from paredown.pipeline.store.files import read_json

if TYPE_CHECKING:
    from paredown.pipeline.run.image.job import ImageJob


def page_facts(job: ImageJob) -> dict[str, Any]:
    """See `pipeline.report.page.document.NOTHING`; single images are in the examples alone.

    Args:
        job: whose goals have been reached.
    """
    details = {
        name: {
            key: value for key, value in read_details(job.path(job.scores[name])).items() if key != "images"
        }
        for name in ("fp32", *job.runtimes)
    }
    found: dict[str, Any] = {
        "details": {name: told for name, told in details.items() if told},
        "parity": {name: read_json(job.path(stage) / "parity.json") for name, stage in job.parity.items()},
    }  # fmt: skip
    if job.examples is not None:
        found["examples"] = read_json(job.path(job.examples) / EXAMPLES)
    if job.bench is not None:
        found["times"] = read_json(job.path(job.bench) / TIMES)
    if job.squantizing is not None:
        found["ledger"] = read_json(job.path(job.bundle) / LEDGER)["rows"]
    if job.pruning is not None and job.recipe.prune.budget:
        found["sensitivity"] = read_json(job.path(job.pruning.sense) / SENSE)["sensitivity"]
        found["widths"] = _widths(job)
    return found


def _widths(job: ImageJob) -> list[dict[str, Any]]:
    """Channels that stay, per group."""
    pruning = job.pruning
    assert pruning is not None
    allocation = pruning.plan()["allocation"]
    if not allocation:
        return []
    rows = []
    for group in pruning.groups()[0]:
        each = group.channels // group.units
        makers = ", ".join(maker.node for maker in group.makers[:3])
        more = f" and {len(group.makers) - 3} more" if len(group.makers) > 3 else ""
        why = f"whole: it {group.locked}" if group.locked else ""
        kept = allocation["widths"][group.name] * each
        rows.append({"makers": makers + more, "kept": kept, "of": group.channels, "why": why})
    return rows
