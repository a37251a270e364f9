"""What a finished run says: its figures and notes, from the artefacts of its stages."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from paredown.pipeline.recipe.schema import Recipe
from paredown.pipeline.report.figures import NOISE, ORIGINAL, Figure, Tag
from paredown.pipeline.run.image.prune_summary import prune_figures, prune_notes
from paredown.pipeline.run.image.squantize_summary import Facts
from paredown.pipeline.run.image.stages import Stages
from paredown.pipeline.store.files import read_json
from paredown.pipeline.store.stage import Stage
from paredown.targets.cards.card import Target
from paredown.targets.host.host import this_machine

BUNDLE, LEDGER = "bundle.paredown", "ledger.json"


class Results:
    """The figures of one run.

    Args:
        recipe: resolved.
        stages: which must have run when they are asked for.
        target: the card.
        smoke: every figure says so.

    Attributes:
        bench: the stage that times, where the target is this machine.
        bundle: the stage that packs.
        proved: whether a device says the rest.
    """

    bench: Stage | None
    bundle: Stage
    proved = False

    def __init__(self, recipe: Recipe, stages: Stages, target: Target, smoke: bool) -> None:
        self.recipe, self.stages, self.target = recipe, stages, target
        self.tag: Tag = "smoke" if smoke else "measured"
        self.machine = this_machine()

    def _figure(self, stage: str, variant: str, metric: str, value: float, unit: str) -> Figure:
        return Figure(stage, variant, metric, value, unit, self.tag, self.machine)

    def stage_figures(self) -> list[Figure]:
        """Every figure that is the same on each run: scores, parity, sizes."""
        stages, figures = self.stages, []
        for metric, value in read_json(stages.path(stages.original) / "size.json").items():
            figures.append(self._figure("trace", "fp32", metric, value, "1"))
        if self.recipe.prune.active:
            figures += [self._figure(*row) for row in prune_figures(stages.pruning)]
        for variant, stage in stages.scores.items():
            for metric, value in read_json(stages.path(stage) / "score.json").items():
                figures.append(self._figure("score", variant, metric, value, "1"))
        for name in stages.runtimes:
            if name in stages.parity:
                figures += self._parity_figures(name)
            programs = {name: stages.lower[name], f"{name}-fp32": stages.baseline[name]}
            if name in stages.originals:
                programs[f"{name}{ORIGINAL}"] = stages.originals[name]
            if name in stages.rejected:
                programs[f"{name}-rejected"] = stages.rejected[name]
            for variant, stage in programs.items():
                size = (stages.path(stage) / "program").stat().st_size
                facts = read_json(stages.path(stage) / "lowered.json")
                figures.append(self._figure("lower", variant, "file_bytes", size, "B"))
                figures.append(self._figure("lower", variant, "subgraphs", facts["subgraphs"], "1"))
                undelegated = len(facts["undelegated"])
                figures.append(self._figure("lower", variant, "undelegated_ops", undelegated, "1"))
        return figures

    def _parity_figures(self, name: str) -> list[Figure]:
        """How far a runtime is from the integer graph, whole and by kind of operation."""
        parity = read_json(self.stages.path(self.stages.parity[name]) / "parity.json")
        outputs, figures = parity["outputs"], []
        figures.append(self._figure("parity", name, "parity_lsb", outputs["max_lsb"], "LSB"))
        share = outputs["differing"] / outputs["values"]
        figures.append(self._figure("parity", name, "parity_share", share, "1"))
        figures.append(self._figure("parity", name, "parity_inputs", parity["inputs"], "1"))
        for kind, apart in parity["kinds"].items():
            share = apart["differing"] / apart["values"]
            figures.append(self._figure("parity", name, f"parity_share_{kind}", share, "1"))
            figures.append(self._figure("parity", name, f"parity_lsb_{kind}", apart["max_lsb"], "LSB"))
        return figures

    def figures(self) -> tuple[Figure, ...]:
        """Every figure of the run, timings and bundle sizes included."""
        figures = self.stage_figures()
        bundle = (self.stages.path(self.bundle) / BUNDLE).stat().st_size
        figures += [
            self._figure("bundle", name, "bundle_bytes", bundle, "B") for name in self.stages.runtimes
        ]
        if self.recipe.squantize.active:
            figures += [self._figure(*row) for row in self.squantized.figures()]
        for variant, values in self.times.items():
            for metric, value in values.items():
                unit = "MiB" if metric == "memory_peak" else "ms"
                figures.append(self._figure("bench", variant, metric, value, unit))
        return tuple(figures)

    @functools.cached_property
    def times(self) -> dict[str, dict[str, float]]:
        """Variant -> metric -> what was measured on this machine; empty where the target is another."""
        if not self.bench:
            return {}
        found: dict[str, dict[str, float]] = read_json(self.stages.path(self.bench) / "bench.json")
        return found

    @functools.cached_property
    def squantized(self) -> Facts:
        """What the ledger counts."""
        return Facts.from_dict(read_json(self.stages.path(self.bundle) / LEDGER))

    def notes(self) -> tuple[str, ...]:
        """Plain sentences that belong beside the table."""
        notes = prune_notes(self.stages.pruning) if self.recipe.prune.active else []
        notes += self.squantized.notes() if self.recipe.squantize.active else []
        for name in self.stages.runtimes:
            if name in self.stages.parity:
                parity = read_json(self.stages.path(self.stages.parity[name]) / "parity.json")
                if parity["first"]:
                    notes.append(f"{name} differs from the integer graph, first at {parity['first']}")
            facts = read_json(self.stages.path(self.stages.lower[name]) / "lowered.json")
            if facts["undelegated"]:
                notes.append(f"{name} runs outside the delegate: {', '.join(facts['undelegated'])}")
        if self.bench:
            notes += slower_than(self.times, "-fp32", "float32")
            notes += against_original(self.times)
        elif not self.proved:
            notes.append(
                f"not validated on a device: scores and parity are from this machine, no latency for "
                f"{self.target.name} is known"
            )
        return tuple(notes)


def slower_than(times: Mapping[str, Mapping[str, float]], suffix: str, what: str) -> list[str]:
    """A plain sentence for every runtime on which the shipped program takes longer than another of its kind.

    Args:
        times: variant -> what was measured of it.
        suffix: of the variants to compare with, as "-fp32" in "litert-fp32".
        what: they are, in words.
    """
    notes = []
    for name, measured in times.items():
        before = times.get(f"{name}{suffix}", {}).get("latency_p50")
        now = measured["latency_p50"]
        if before is not None and now > before:
            notes.append(
                f"{name}: int8 is slower than {what} on this machine ({now:.2f} against {before:.2f} ms)"
            )
    return notes


def against_original(times: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A plain sentence per runtime: the time of the shipped program as a share of the original network's."""
    notes = []
    for name, measured in times.items():
        if whole := times.get(f"{name}{ORIGINAL}"):
            now, before = measured["latency_p50"], whole["latency_p50"]
            slower = ": slower" if now > NOISE * before else ""
            notes.append(
                f"{name}: takes {now / before:.2f} of the original network's time in int8, measured "
                f"({now:.2f} against {before:.2f} ms){slower}"
            )
    return notes
