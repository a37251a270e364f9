"""What pruning says for itself in a run's figures and notes."""

from __future__ import annotations

from paredown.pipeline.report.markdown import training_notes
from paredown.pipeline.run.image.prune_stages import PLOT, PruneStages
from paredown.pipeline.store.files import read_json
from paredown.pipeline.store.stage import stored

#: stage, variant, metric, value, unit
Row = tuple[str, str, str, float, str]


def prune_figures(pruning: PruneStages) -> list[Row]:
    """Size, budget and recovery of the pruned network."""
    rows: list[Row] = []
    for metric, value in read_json(stored(pruning.store, pruning.trace) / "size.json").items():
        rows.append(("trace", "pruned", metric, value, "1"))
    if allocation := pruning.plan()["allocation"]:
        rows.append(("prune", "pruned", "budget_requested", allocation["requested"], "1"))
        rows.append(("prune", "pruned", "budget_achieved", allocation["achieved"], "1"))
    history = pruning.history()
    for metric, name in (("baseline", "held_out_before_recovery"), ("best", "held_out_recovered")):
        if history[metric] is not None:
            rows.append(("recover", "pruned", name, history[metric], "1"))
    if sparsity := history["sparsity"]:
        zeros, count = (sum(layer[key] for layer in sparsity) for key in ("zeros", "count"))
        rows.append(("recover", "pruned", "sparsity", zeros / count, "1"))
    return rows


def prune_notes(pruning: PruneStages) -> list[str]:
    """Plain sentences: what was asked, what was reached, how recovery went."""
    notes = []
    sizes = [read_json(stored(pruning.store, s) / "size.json") for s in (pruning.original, pruning.trace)]
    whole, thin = (size["macs"] for size in sizes)
    before, after = (size["parameters"] for size in sizes)
    if allocation := pruning.plan()["allocation"]:
        proven = "proven best" if allocation["optimal"] else "not proven best"
        notes.append(
            f"pruned for {allocation['budget']} {allocation['requested']:g}: reached "
            f"{allocation['achieved']:.4g} (predicted, widths {proven}); {thin / whole:.1%} of the MACs and "
            f"{after / before:.1%} of the weights stay"
        )
        notes += [str(note) for note in allocation["notes"]]
    history = pruning.history()
    notes += training_notes("recovery", history)
    if sparsity := history["sparsity"]:
        zeros, count = (sum(layer[key] for layer in sparsity) for key in ("zeros", "count"))
        notes.append(f"{zeros:,} of {count:,} weights of the inner layers are zero ({zeros / count:.2%})")
    return notes


def prune_report(pruning: PruneStages) -> list[str]:
    """Widths per group and zeros per layer, as Markdown."""
    lines = []
    if allocation := pruning.plan()["allocation"]:
        groups, _ = pruning.groups()
        lines += ["| channels of | kept | of | group |", "|---|---|---|---|"]
        for group in groups:
            width = allocation["widths"][group.name]
            each = group.channels // group.units
            makers = ", ".join(maker.node for maker in group.makers[:3])
            more = f" and {len(group.makers) - 3} more" if len(group.makers) > 3 else ""
            why = f"whole: it {group.locked}" if group.locked else ""
            lines.append(f"| {makers}{more} | {width * each} | {group.channels} | {why} |")
        if (stored(pruning.store, pruning.sense) / PLOT).exists():
            lines += ["", f"![What each group of channels is worth]({PLOT})"]
    if sparsity := pruning.history()["sparsity"]:
        lines += ["", "| weights of | zero | of |", "|---|---|---|"]
        lines += [f"| {layer['name']} | {layer['zeros']:,} | {layer['count']:,} |" for layer in sparsity]
    return lines
