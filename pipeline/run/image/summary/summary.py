"""What a finished job of an image network says: its figures and notes, from the artefacts of its stages."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from paredown.calibration.census import Census
from paredown.calibration.datasets import census_of
from paredown.pipeline.device.rollback import fastest, slower_than_float
from paredown.pipeline.report.figures import NOISE, ORIGINAL, Figure
from paredown.pipeline.report.islands import island_note, island_report
from paredown.pipeline.run.image.read import traced_notes
from paredown.pipeline.run.image.summary.prune_summary import prune_figures, prune_notes, prune_report
from paredown.pipeline.run.image.summary.squantize_summary import SquantizeFacts
from paredown.pipeline.store.files import read_json
from paredown.targets.host.host import EXTRA_RUNTIMES

if TYPE_CHECKING:
    from paredown.pipeline.run.image.job import ImageJob

LEDGER = "ledger.json"
EXAMPLES, TIMES = "examples.json", "times.json"
ISLANDS = "islands.json"  # of the bench: runtime -> name -> milliseconds


class Summary:
    """The figures of one job.

    Args:
        job: whose goals have been reached, as far as is asked of them.
    """

    def __init__(self, job: ImageJob) -> None:
        self.job, self.recipe, self._figure = job, job.recipe, job.figure

    def stage_figures(self) -> list[Figure]:
        """Every figure that is the same on each run: scores, parity, sizes."""
        stages, figures = self.job, []
        for split, census in self._counts().items():
            figures += [self._figure("data", split, *row, "1") for row in census.rows()]
        for metric, value in read_json(stages.path(stages.original) / "size.json").items():
            figures.append(self._figure("trace", "fp32", metric, value, "1"))
        if stages.pruning is not None:
            figures += [self._figure(*row) for row in prune_figures(stages.pruning)]
        for variant, stage in stages.scores.items():
            for metric, value in read_json(stages.path(stage) / "score.json").items():
                figures.append(self._figure("score", variant, metric, value, "1"))
        figures += [self._figure(*row) for drop in stages.drops() for row in drop.rows()]
        known = {(figure.variant, figure.metric) for figure in figures}  # a detector's score has its classes
        figures += [each for each in stages.class_figures() if (each.variant, each.metric) not in known]
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

    def _counts(self) -> dict[str, Census]:
        """Split -> what is in its data; nothing of the data that an app brings along."""
        splits = {"train": self.job.training, "calibration": self.job.calibration, "test": self.job.test}
        counts = {split: census_of(data) for split, data in splits.items() if data is not None}
        return {split: census for split, census in counts.items() if census is not None}

    def _parity_figures(self, name: str) -> list[Figure]:
        """How far a runtime is from the integer graph, whole and by kind of operation."""
        parity = read_json(self.job.path(self.job.parity[name]) / "parity.json")
        outputs, figures = parity["outputs"], []
        figures.append(self._figure("parity", name, "parity_lsb", outputs["max_lsb"], "LSB"))
        share = outputs["differing"] / outputs["values"]
        figures.append(self._figure("parity", name, "parity_share", share, "1"))
        figures.append(self._figure("parity", name, "parity_inputs", parity["inputs"], "1"))
        for kind, apart in parity["kinds"].items():
            share = apart["differing"] / apart["values"]
            figures.append(self._figure("parity", name, f"parity_share_{kind}", share, "1"))
            figures.append(self._figure("parity", name, f"parity_lsb_{kind}", apart["max_lsb"], "LSB"))
        if "allowed" in parity:
            figures.append(self._figure("parity", name, "parity_allowed", parity["allowed"], "LSB"))
        return figures

    def figures(self) -> tuple[Figure, ...]:
        """Every figure of the run, timings and bundle sizes included."""
        figures = self.stage_figures()
        figures += self.job.bundle_sizes()
        if self.recipe.squantize.active:
            figures += [self._figure(*row) for row in self.squantized.figures()]
        for variant, values in self.times.items():
            for metric, value in values.items():
                unit = "MiB" if metric == "memory_peak" else "ms"
                figures.append(self._figure("bench", variant, metric, value, unit))
        return tuple(figures)

    @functools.cached_property
    def measured(self) -> dict[str, dict[str, float]]:
        """Variant -> metric -> what was measured on this machine, before anything was taken back.

        Empty where the target is another.
        """
        if not self.job.bench:
            return {}
        found: dict[str, dict[str, float]] = read_json(self.job.path(self.job.bench) / "bench.json")
        return found

    @property
    def times(self) -> dict[str, dict[str, float]]:
        """`measured`, by the variants that ship."""
        taken = {f"{name}-rejected": self.measured[name] for name in self.job.ships if self.measured}
        instead = {name: self.measured[name + was] for name, was in self.job.ships.items() if self.measured}
        return {**self.measured, **instead, **taken}

    @functools.cached_property
    def squantized(self) -> SquantizeFacts:
        """What the ledger counts."""
        return SquantizeFacts.from_dict(read_json(self.job.path(self.job.bundle) / LEDGER))

    def _squantize_notes(self) -> list[str]:
        (size,) = {int(each.value) for each in self.job.bundle_sizes()}
        return self.squantized.notes(size)

    def notes(self) -> tuple[str, ...]:
        """Plain sentences that belong beside the table."""
        notes = [f"data.{split}: {census.line()}" for split, census in self._counts().items()]
        doubts = self.job.path(self.job.scores["fp32"]) / "doubts.json"
        notes += read_json(doubts) if doubts.exists() else []
        notes += traced_notes(self.job.path(self.job.original))
        notes += prune_notes(self.job.pruning) if self.job.pruning else []
        notes += self._squantize_notes() if self.recipe.squantize.active else []
        notes += self.job.quantizing.notes()
        notes += self.job.drop_notes()
        for name in self.job.runtimes:
            if name in self.job.parity:
                parity = read_json(self.job.path(self.job.parity[name]) / "parity.json")
                if parity["first"]:
                    notes.append(f"{name} differs from the integer graph, first at {parity['first']}")
            told = read_json(self.job.path(self.job.lower[name]) / "lowered.json")
            if told["undelegated"]:
                notes.append(f"{name} runs outside the delegate: {', '.join(told['undelegated'])}")
        notes += self._saturating()
        notes += [island_note(row) for row in self._islands()]
        if self.job.bench:
            notes += slower_than(self.times, "-fp32", "float32")
            notes += against_original(self.times)
            medians = {name: measured["latency_p50"] for name, measured in self.measured.items()}
            notes += fastest(medians, self.job.runtimes)
            slow = slower_than_float(self.measured, self.job.runtimes) if self.job.ships else []
            notes += [veto.line() for veto in slow]
        elif self.job.device is None:
            notes.append(
                f"not validated on a device: scores and parity are from this machine, no latency for "
                f"{self.job.target.name} is known"
            )
        return tuple(notes)

    def _saturating(self) -> list[str]:
        """What is not promised of .onnx programs on a machine whose sums saturate."""
        named = [name for name in EXTRA_RUNTIMES if name in self.job.runtimes]
        if not named or not self.job.machine.saturates:
            return []
        from paredown.pipeline.lower.integer import beyond

        layers = beyond(self.job.integer_graph(), 63)
        if not layers:
            return []
        slow = (
            ", or the session option session.x64quantprecision = 1, which is slow"
            if "onnxruntime" in named
            else ""
        )
        return [
            f"{' and '.join(named)}: {len(layers)} layers ({layers[0]} first) have weight codes beyond 63, "
            "and this machine has no VNNI: sums of products saturate, and nothing is promised; set "
            f"quantize.weight_range = 63{slow}"
        ]

    def sections(self) -> dict[str, list[str]]:
        """Sections of the report, by their heads."""
        found = {"Pruning": prune_report(self.job.pruning) if self.job.pruning else []}
        if self.job.squantizing is not None:
            found["Sparse and low-bit weights"] = self.squantized.report(self.times)
        found["Operations that stay in float"] = island_report(self._islands())
        return found

    def _islands(self) -> list[dict[str, Any]]:
        """The operations without an integer form, with what they cost on each runtime."""
        job, found = self.job, []
        timed = read_json(job.path(job.bench) / ISLANDS) if job.bench else {}
        for name, stage in job.parity.items():
            told = read_json(job.path(stage) / "parity.json").get("islands", {})
            for each, facts in told.items():
                ms = timed.get(name, {}).get(each)
                found.append({"name": each, "runtime": name, "ms": ms, **facts})
        return found


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
