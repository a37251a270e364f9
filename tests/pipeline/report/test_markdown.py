from __future__ import annotations

from paredown.pipeline.report.budget import Limit
from paredown.pipeline.report.figures import Figure
from paredown.pipeline.report.markdown import markdown
from paredown.pipeline.report.verdict import Verdict
from paredown.targets.cards.card import load_card
from paredown.targets.host.host import Machine

HOST = Machine("host", "AMD EPYC", 2, "x86_64", "Linux", 24000, "3.11.7", (("torch", "2.13.0"),))


def figure(variant, metric, value, unit="1", tag="measured"):
    return Figure("x", variant, metric, value, unit, tag, HOST)


FIGURES = (
    figure("fp32", "map50", 0.51234),
    figure("litert", "map50", 0.5, tag="smoke"),
    figure("litert", "file_bytes", 1234567, "B"),
    figure("litert", "latency_p50", 3.14159, "ms", "predicted"),
    figure("litert", "undelegated_ops", 0),
)


def test_the_table_has_a_row_per_variant_and_a_mark_on_what_was_not_measured():
    lines = markdown("tiny", load_card("host"), FIGURES, (), None, ()).splitlines()
    assert lines[0] == "# tiny for host"
    at = next(i for i, line in enumerate(lines) if line.startswith("| variant"))
    assert lines[at : at + 4] == [
        "| variant | mAP@0.5 | file bytes | median ms |",
        "|---|---|---|---|",
        "| fp32 | 0.5123 |  |  |",
        "| litert | 0.5000 (smoke) | 1,234,567 | 3.14 (predicted) |",
    ]
    assert f"- {HOST.line()}" in lines and lines.count(f"- {HOST.line()}") == 1


def test_budget_notes_and_what_pays_are_said():
    card = load_card("raspberry-pi-5")
    limits = (Limit("litert", "bundle_kib", 8, 9.0), Limit("litert", "least_score", 0.5, None, floor=True))
    verdict = Verdict("DO NOT SHIP", ("litert: bundle_kib is 9",), ("class 'x' is never found",))
    text = markdown("tiny", card, FIGURES, limits, verdict, ["not validated on a device"])
    assert "| bundle_kib | litert | at most 8 | 9 | BROKEN |" in text
    assert "| least_score | litert | at least 0.5 | - | not known |" in text
    assert "**DO NOT SHIP**\n\n- litert: bundle_kib is 9\n" in text
    assert "## Warnings\n\n- class 'x' is never found\n" in text
    assert "## Notes\n\n- not validated on a device\n" in text
    for name, runtime in card.runtimes.items():
        assert f"- {name}, zeros: {runtime.pays.zeros.buys} ({runtime.pays.zeros.note})" in text
    quiet = markdown("tiny", card, FIGURES, (), None, ())
    assert "## Budget" not in quiet and "## Notes" not in quiet
    assert quiet.endswith("![What the model finds on test images](preview.png)\n")
