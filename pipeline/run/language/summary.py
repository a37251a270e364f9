"""What a finished job of a language model says: its figures and notes, from the artefacts of its stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from paredown.pipeline.report.figures import Figure
from paredown.pipeline.store.files import read_json

if TYPE_CHECKING:
    from paredown.pipeline.run.language.job import LanguageJob

MIB = 2**20
LITERTLM, COUNTS, PLAN, HISTORY = "model.litertlm", "codes.json", "ffn.json", "history.json"


class Summary:
    """The figures of one job.

    Args:
        job: whose goals have been reached, as far as is asked of them.
    """

    def __init__(self, job: LanguageJob) -> None:
        self.job, self._figure = job, job.figure

    def facts(self) -> Mapping[str, Any]:
        """What was counted of the codes: bytes, bits, weights."""
        found: dict[str, Any] = read_json(self.job.path(self.job.codes) / COUNTS)
        return found

    def history(self) -> Mapping[str, Any] | None:
        """What training the codes gave; None where they are not trained."""
        return read_json(self.job.path(self.job.distil) / HISTORY) if self.job.distil else None

    def widths(self) -> Mapping[str, Any] | None:
        """Channels of the feed-forward layers before and after pruning, and what each layer lost."""
        return read_json(self.job.path(self.job.prune) / PLAN) if self.job.prune else None

    def score(self, variant: str) -> dict[str, float]:
        """Metric to value."""
        found: dict[str, float] = read_json(self.job.path(self.job.scores[variant]) / "score.json")
        return found

    def stage_figures(self) -> list[Figure]:
        """What is the same on each run: scores and sizes."""
        found = [
            self._figure("score", variant, metric, value, "1")
            for variant in self.job.scores
            for metric, value in self.score(variant).items()
        ]
        found += [self._figure(*row) for drop in self.job.drops() for row in drop.rows()]
        for name in self.job.runtimes:
            found.append(
                self._figure("lower", name, "file_bytes", len(self.job.program(self.job.lower[name])), "B")
            )
        found.append(self._figure("quantize", "codes", "weight_bytes", self.facts()["bytes"], "B"))
        return found

    def figures(self) -> tuple[Figure, ...]:
        """Everything that there is."""
        return (*self.stage_figures(), *self._sizes(), *self._speeds())

    def _sizes(self) -> list[Figure]:
        found = self.job.bundle_sizes()
        if self.job.package:
            size = (self.job.path(self.job.package) / LITERTLM).stat().st_size
            found.append(self._figure("litertlm", "litertlm", "file_bytes", size, "B"))
        return found

    def _speeds(self) -> list[Figure]:
        from paredown.pipeline.device.language.speed import figures

        if self.job.bench is None:
            return []
        measured = read_json(self.job.path(self.job.bench) / "bench.json")
        return [
            f
            for name, facts in measured.items()
            for f in figures(name, facts, self.job.tag, self.job.machine)
        ]

    def notes(self) -> tuple[str, ...]:
        """Plain sentences that belong beside the table."""
        notes: list[str] = []
        before = self.score("fp32")["perplexity"]
        notes += self.job.drop_notes()
        notes += self._changes(before)
        if self.job.device is None and self.job.bench is None:
            notes.append(f"not validated on a device: no speed for {self.job.target.name} is known")
        return tuple(notes)

    def _changes(self, before: float) -> list[str]:
        """What pruning, mixed bits, zeros and training did to the network."""
        notes, language = [], self.job.recipe.language
        if widths := self.widths():
            after = self.score("pruned")["perplexity"] / before - 1
            notes.append(
                f"pruned: feed-forward layers {widths['before']:,} -> {widths['after']:,} channels, "
                f"perplexity {after:+.1%} in float32"
            )
        counted = self.facts()
        if language.weights_mib is not None:
            matrices, size = counted["matrices"], counted["bytes"] / MIB
            notes.append(
                f"{matrices.get('8', 0)} of {sum(matrices.values())} matrices have 8 bits, "
                f"{size:,.2f} of {language.weights_mib:,.2f} MiB"
            )
        if language.sparsity:
            share = counted["zeros"] / counted["weights"]
            for name in self.job.runtimes:
                pays = self.job.target.runtime(name).pays.zeros
                notes.append(
                    f"{name}: {share:.0%} of the codes are zero, which buys {pays.buys}: {pays.note}"
                )
        if told := self.history():
            notes.append(
                f"training moved the divergence on text held out from {-told['baseline']:.4f} "
                f"to {-told['best']:.4f} nats, best after step {told['best_step']}"
            )
        return notes
