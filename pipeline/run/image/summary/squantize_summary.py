"""What SQuantizer's pass says for itself in a run's figures, notes and report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from paredown.pipeline.bundle.packed.ledger import LayerLedger, total_limit
from paredown.pipeline.report.figures import ORIGINAL
from paredown.pipeline.report.markdown import training_notes

#: stage, variant, metric, value, unit
Row = tuple[str, str, str, float, str]
VARIANT = "squantized"


@dataclass(frozen=True)
class SquantizeFacts:
    """What there is to say.

    Attributes:
        rows: the ledger.
        history: of the pass.
        state_bytes: of the original network's float32 state dict.
        programs: runtime -> bytes of its program.
        wire: runtime -> bytes of its program in a bundle of its own.
        together: bytes of all programs in the run's bundle.
        buys: runtime -> what zeros and what low bits buy there, as the target's card says.
    """

    rows: tuple[LayerLedger, ...]
    history: Mapping[str, Any]
    state_bytes: int
    programs: Mapping[str, int]
    wire: Mapping[str, int]
    together: int
    buys: Mapping[str, tuple[str, str]]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> SquantizeFacts:
        """The inverse of `to_dict`, also after JSON."""
        return cls(**{**fields, "rows": tuple(LayerLedger(**row) for row in fields["rows"])})

    @property
    def trained(self) -> list[LayerLedger]:
        """The layers whose codes were trained."""
        return [row for row in self.rows if row.trained]

    @property
    def weights(self) -> int:
        """Weights of these layers."""
        return sum(row.weights for row in self.trained)

    @property
    def zeros(self) -> int:
        """Zeros among these."""
        return sum(row.zeros for row in self.trained)

    @property
    def bits(self) -> float:
        """Entropy of these, per weight."""
        return sum(row.entropy * row.weights for row in self.trained) / max(1, self.weights)

    def figures(self) -> list[Row]:
        """Zeros, entropy and bytes."""
        found: list[Row] = [
            ("squantize", VARIANT, "sparsity", self.zeros / max(1, self.weights), "1"),
            ("squantize", VARIANT, "entropy_bits", self.bits, "1"),
            ("squantize", VARIANT, "limit_bytes", total_limit(self.rows), "B"),
            ("squantize", "fp32", "state_bytes", self.state_bytes, "B"),
        ]
        for name, size in self.wire.items():
            found.append(("bundle", name, "wire_bytes", size, "B"))
            found.append(("bundle", name, "compression", self.state_bytes / size, "1"))
        for metric, name in (("baseline", "held_out_before_training"), ("best", "held_out_trained")):
            if self.history[metric] is not None:
                found.append(("squantize", VARIANT, name, self.history[metric], "1"))
        return found

    def notes(self, file: int) -> list[str]:
        """Plain sentences: what was reached, what it is worth in bytes, and in time.

        Args:
            file: bytes of the whole bundle: all its programs, the code that runs there, and its papers.
        """
        history = self.history
        notes = training_notes("squantize", history)
        notes.append(
            f"squantize: {self.zeros:,} of {self.weights:,} weights in {len(self.trained)} of "
            f"{len(self.rows)} layers are zero ({self.zeros / max(1, self.weights):.2%}), "
            f"{self.bits:.2f} bits of entropy per weight"
        )
        if alone := [row.name for row in self.trained if row.weights - row.zeros <= 1]:
            notes.append(
                f"squantize: the threshold would have left nothing of {', '.join(alone)}; the largest weight "
                "was kept: lower sigma, or set squantize.layers for it"
            )
        for name, size in self.wire.items():
            notes.append(
                f"{name}: the program in the bundle is {self.state_bytes / size:.1f}x smaller than the "
                f"float32 state dict ({size:,} of {self.state_bytes:,} bytes; biases and scales included), "
                f"the whole file with the code that runs there {self.state_bytes / file:.1f}x"
            )
        if len(self.wire) > 1:
            notes.append(f"in this bundle the programs share their codes: {self.together:,} bytes together")
        if grids := history.get("activations"):
            signed = [name for name, grid in grids.items() if grid["below_zero"]]
            levels = max(grid["levels"] for grid in grids.values())
            below = f"; {len(signed)} have levels below zero: {', '.join(signed)}" if signed else ""
            notes.append(f"squantize: {len(grids)} activations have {levels} levels{below}")
        if kept := history["int8_activations"]:
            notes.append(f"squantize: {len(kept)} activations keep 8 bits: {', '.join(kept)}")
        if untimed := [name for name, buys in self.buys.items() if "time" not in buys]:
            notes.append(
                f"{' and '.join(untimed)}: these zeros and bits buy bytes in storage and on the wire, and "
                "nothing in time on this target: its int8 kernels multiply by zero too"
            )
        for name, (zeros, bits) in self.buys.items():
            if name not in untimed:
                notes.append(f"{name}: on this target zeros buy {zeros}, low bits buy {bits}")
        return notes

    def report(self, times: Mapping[str, Mapping[str, float]]) -> list[str]:
        """The ledger as Markdown.

        Args:
            times: variant -> metric -> milliseconds on the target; empty where nothing was measured there.
        """
        lines = ["| runtime | program, bytes | in the bundle | smaller | int8 before, ms | after, ms |"]
        lines.append("|---|---|---|---|---|---|")
        for name, size in self.wire.items():
            before, after = (times.get(variant, {}).get("latency_p50") for variant in (name + ORIGINAL, name))
            shown = ["not measured" if ms is None else f"{ms:.2f}" for ms in (before, after)]
            lines.append(
                f"| {name} | {self.programs[name]:,} | {size:,} | {self.state_bytes / size:.1f}x | "
                f"{shown[0]} | {shown[1]} |"
            )
        lines += ["", f"Smaller than the float32 state dict, {self.state_bytes:,} bytes. Per layer:", ""]
        lines.append("| layer | weights | not zero | codes | entropy, bits | packed, bytes | limit, bytes |")
        lines.append("|---|---|---|---|---|---|---|")
        for row in self.rows:
            mark = "" if row.trained else " (int8)"
            lines.append(
                f"| {row.name}{mark} | {row.weights:,} | {row.weights - row.zeros:,} | {row.codes} | "
                f"{row.entropy:.2f} | {row.packed + row.extra:,} | {row.limit + row.extra:,.0f} |"
            )
        weights, zeros = sum(row.weights for row in self.rows), sum(row.zeros for row in self.rows)
        packed = sum(row.packed + row.extra for row in self.rows)
        lines.append(
            f"| all | {weights:,} | {weights - zeros:,} | | | {packed:,} | {total_limit(self.rows):,.0f} |"
        )
        lines += ["", "Both count a layer's int32 biases and float32 scales."]
        return lines
