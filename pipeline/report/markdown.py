"""The run's report in Markdown: the table, the budget, and what cannot be said in numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from paredown.pipeline.report.budget import Limit, limit_rows
from paredown.pipeline.report.figures import Figure, own_scores
from paredown.pipeline.report.verdict import Verdict
from paredown.targets.cards.card import Target

_COLUMNS = (
    ("macs", "MACs", "{:,.0f}"),
    ("map50", "mAP@0.5", "{:.4f}"), ("map", "mAP", "{:.4f}"), ("top1", "top-1", "{:.4f}"),
    ("top5", "top-5", "{:.4f}"),
    ("miou", "mIoU", "{:.4f}"), ("pixel_accuracy", "pixel accuracy", "{:.4f}"), ("pck", "PCK@0.2", "{:.4f}"),
    ("r2", "R²", "{:.4f}"), ("perplexity", "perplexity", "{:.2f}"),
    ("prefill_rate", "prefill, tokens/s", "{:.1f}"), ("decode_rate", "decode, tokens/s", "{:.1f}"),
    ("first_token", "first token, ms", "{:.0f}"),
    ("parity_lsb", "parity, LSB", "{:.0f}"), ("file_bytes", "file bytes", "{:,.0f}"),
    ("bundle_bytes", "bundle bytes", "{:,.0f}"), ("instructions", "instructions", "{:,.0f}"),
    ("latency_p50", "median ms", "{:.2f}"),
    ("latency_p90", "p90 ms", "{:.2f}"), ("memory_peak", "peak MiB", "{:.0f}"),
)  # fmt: skip


def training_notes(stage: str, history: Mapping[str, Any]) -> list[str]:
    """How a training went: what it brought, and what it took.

    Args:
        stage: in words.
        history: as `pipeline.compress.training.recover.Recovered.facts` has it, with the measure.
    """
    if history["baseline"] is None:
        return []
    note = (
        f"{stage}: {history['measure']} on held-out training images {history['baseline']:.4f} -> "
        f"{history['best']:.4f}, best after {history['best_step']} of {history['steps']} steps"
    )
    if history["history"]:
        note += f"; {history['history'][-1]['epoch']:g} epochs in {history['seconds']:.0f} s"
        note += f" on {history['device']}{', stopped early' if history['stopped_early'] else ''}"
    return [note]


def markdown(
    name: str,
    target: Target,
    figures: Sequence[Figure],
    limits: Sequence[Limit],
    verdict: Verdict | None,
    notes: Sequence[str],
    sections: Mapping[str, Sequence[str]] | None = None,
    preview: bool = True,
) -> str:
    """Writes the report.

    Args:
        name: of the recipe.
        target: the card.
        figures: of the run; their order is kept.
        limits: of the budget.
        verdict: whether it may ship; None where nobody decides.
        notes: one sentence each.
        sections: head -> lines of a section of its own; empty ones are left out.
        preview: whether there is a picture.
    """
    cells = {(f.variant, f.metric): f for f in figures}
    variants = list(dict.fromkeys(f.variant for f in figures))
    own = tuple((metric, metric, "{:.4f}") for metric in own_scores(figures))
    columns = [c for c in (*own, *_COLUMNS) if any((v, c[0]) in cells for v in variants)]
    lines = [f"# {name} for {target.name}", "", target.summary, ""]
    if verdict is not None:
        lines += [f"**{verdict.word}**", *(["", *(f"- {each}" for each in verdict.reasons)]), ""]
    lines.append("| variant | " + " | ".join(head for _, head, _ in columns) + " |")
    lines.append("|---" * (len(columns) + 1) + "|")
    for variant in variants:
        row = [variant]
        for metric, _, form in columns:
            figure = cells.get((variant, metric))
            mark = "" if figure is None or figure.tag == "measured" else f" ({figure.tag})"
            row.append("" if figure is None else form.format(figure.value) + mark)
        lines.append("| " + " | ".join(row) + " |")
    lines += ["", "Figures without a mark were measured."]
    lines += [f"- {where}" for where in sorted({f.where.line() for f in figures})]
    lines += _parity(cells, variants)
    if limits:
        lines += ["", "## Budget", "", "| limit | variant | allowed | reached | |", "|---|---|---|---|---|"]
        lines += ["| " + " | ".join(row) + " |" for row in limit_rows(limits)]
    if verdict is not None and verdict.warnings:
        lines += ["", "## Warnings", "", *(f"- {line}" for line in verdict.warnings)]
    for head, section in (sections or {}).items():
        lines += ["", f"## {head}", "", *section] if section else []
    lines += ["", "## What zeros and fewer bits buy on this target", ""]
    for runtime, facts in target.runtimes.items():
        for what, pay in (("zeros", facts.pays.zeros), ("low bits", facts.pays.low_bits)):
            lines.append(f"- {runtime}, {what}: {pay.buys} ({pay.note})")
    if notes:
        lines += ["", "## Notes", "", *(f"- {note}" for note in notes)]
    lines += ["", "![What the model finds on test images](preview.png)"] if preview else []
    return "\n".join([*lines, ""])


def _parity(cells: Mapping[tuple[str, str], Figure], variants: Sequence[str]) -> list[str]:
    """A table of the operations' parity, one row per kind; empty where none was measured."""
    prefix = "parity_share_"
    kinds = sorted({metric.removeprefix(prefix) for _, metric in cells if metric.startswith(prefix)})
    runtimes = [v for v in variants if any((v, prefix + kind) in cells for kind in kinds)]
    if not runtimes:
        return []
    lines = ["", "## Parity, per kind of operation", ""]
    lines += ["Each operation on the runtime's own inputs, against the reference interpreter.", ""]
    lines.append("| kind | " + " | ".join(f"{name}: codes that differ, by up to" for name in runtimes) + " |")
    lines.append("|---" * (len(runtimes) + 1) + "|")
    for kind in kinds:
        row = [kind]
        for name in runtimes:
            share, most = cells[name, prefix + kind].value, cells[name, f"parity_lsb_{kind}"].value
            row.append(f"{100 * share:.4g} %, {most:.0f} LSB")
        lines.append("| " + " | ".join(row) + " |")
    return lines
