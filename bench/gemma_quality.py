"""What low-bit weights cost a Gemma 3: perplexity, bytes, and how often it would still say the same.

    python bench/gemma_quality.py --weights gemma-3-270m.gguf --test wiki.test.txt \\
        --calibration wiki.valid.txt --work quality

Without weights and texts it measures the tiny Gemma that ships with paredown, on Python's own help. Prints
Markdown, a row as soon as it is known. Everything is made as a recipe's run makes it, with a scale per block
of 32 unless the row says otherwise; activations are int8 per token wherever weights are codes. Codes, rows
and training's state stay in --work: a killed bench goes on there. Rounding, the choice of bits and training
never see the test's text; each row's text is read once. The interval is the paired bootstrap's over windows,
each resample scored by the row and by float32.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from record import Table, add_option
from torch import nn

from paredown.apps.chat.perplexity import Quality, agreement, eager, measure
from paredown.pipeline.compress.blockwise.channels import read_factors, write_factors
from paredown.pipeline.compress.blockwise.codes import (
    Residual,
    count,
    find_codes,
    put_residual,
    read_codes,
    read_residual,
    recipe_bits,
    write_codes,
    write_residual,
)
from paredown.pipeline.compress.blockwise.ffn_pruning import read_thinner, write_thinner
from paredown.pipeline.compress.blockwise.mixed_bits import measure_loss, mixed
from paredown.pipeline.compress.blockwise.modules import put
from paredown.pipeline.compress.blockwise.qat_training import train
from paredown.pipeline.compress.grids.weight import BlockWeight
from paredown.pipeline.recipe.file import load_recipe
from paredown.pipeline.recipe.language_task import LanguageTask, load_language_task
from paredown.pipeline.recipe.schema import Language, Recipe
from paredown.pipeline.report.drop import draws
from paredown.pipeline.store.files import read_json, write_json

RECIPES = Path(__file__).parents[1] / "apps" / "chat" / "recipes"
BLOCK = 32
RESIDUAL = 4000  # tokens
MB = 10**6

Codes = Mapping[str, BlockWeight]
Found = tuple[Codes, Residual | None]

#: The recipe's keys of rows with other scales, or with a residual.
CHANGED: dict[str, dict[str, Any]] = {
    "residual": {"residual_tokens": RESIDUAL},
    "layers": {"block": 0, "embedding_block": BLOCK},
    "rows": {"block": 0, "embedding_block": 0},
}

HEADS = (
    "weights", "MB", "perplexity", "change from fp32", "95 % interval", "on new tokens", "on repeated ones",
    "same top token",
)  # fmt: skip
AT_ONCE = 512  # tokens: low-bit layers make their weights anew for each call


@dataclass(frozen=True)
class Bench:
    """A recipe's language model, measured in one variant after the other.

    Attributes:
        recipe: of all variants.
        judge: a task with the test's windows.
        work: where everything stays.
        budgets: MiB of mixed codes, by the row's name; "" for rows without one of their own.
        table: takes the rows.
    """

    recipe: Recipe
    judge: LanguageTask
    work: Path
    budgets: Mapping[str, float]
    table: Table

    def int8(self) -> Found:
        """A scale per row."""
        return self._rounded(weight_bits=8, embedding_bits=8, rounding="nearest")

    def nearest(self) -> Found:
        """Without any data."""
        return self._rounded(rounding="nearest")

    def gptq(self) -> Found:
        """By the recipe's rounding."""
        return self._rounded()

    def budget(self, name: str) -> float:
        """MiB of a row's mixed codes."""
        return self.budgets.get(name, self.budgets[""])

    def mixed(self, name: str = "mixed", **changes: Any) -> Found:
        """Int8 where it helps most, within the row's budget."""
        changes = {"weights_mib": self.budget(name), **changes}
        language = self.language(**changes)
        blocks = f"{language.block_of(True)}-{language.block_of(False)}"
        path = self.work / f"sensitivity-{blocks}.json"
        task, network = self.network(**changes)
        bits = recipe_bits(task, network, language)
        if not path.exists():
            plain = language.model_copy(update={"residual_tokens": 0})
            write_json(path, measure_loss(task, network, bits, plain, _tick))
        return self._rounded(mixed(task, network, read_json(path), bits, language), **changes)

    def residual(self) -> Found:
        """Mixed bits, and frequent tokens' look-ups made up for."""
        return self.mixed("residual", **CHANGED["residual"])

    def sparse(self) -> Found:
        """SQuantizer's grid with 40 % zeros, within 4 bits."""
        return self._rounded(sparsity=0.4)

    def trained(self) -> Found:
        """Those with a residual after the recipe's training; the norms that it learned are left in a file."""
        start, residual = self.found("residual", self.residual)
        checkpoint, (task, network) = self.work / "distil.pt", self.network()
        codes, found = train(task, network, start, self.language(), checkpoint, _tick, residual)
        torch.save(dict(found.floats), self.work / "floats.pt")
        return codes, residual

    def _rounded(self, bits: Mapping[str, int] | None = None, **changes: Any) -> Found:
        (task, network), language = self.network(**changes), self.language(**changes)
        return find_codes(task, network, language, bits or recipe_bits(task, network, language), _tick)

    def language(self, **changes: Any) -> Language:
        """The recipe's section, changed."""
        return self.recipe.language.model_copy(update=changes)

    def network(self, **changes: Any) -> tuple[LanguageTask, nn.Module]:
        """The task of the changed recipe, and its network in full precision, balanced where that says so."""
        language = self.language(**changes)
        task = load_language_task(self.recipe.model_copy(update={"language": language}))
        network = task.network()
        if language.balances:
            path = self.work / "channels.safetensors"
            if not path.exists():
                write_factors(path, task, network)
            read_factors(path, task, network)
        return task, network

    def found(self, name: str, make: Callable[[], Found]) -> Found:
        """Codes and the look-ups' residual of --work, or new ones."""
        path, other = self.work / f"{name}.codes", self.work / f"{name}.residual"
        if not path.exists():
            codes, residual = make()
            if residual:
                write_residual(other, residual)
            write_codes(path, codes)
        return read_codes(path), read_residual(other) if other.exists() else None

    def row(self, name: str, label: str, network: nn.Module, size: float, whole: Quality | None) -> Quality:
        """Measures, unless it was measured before, and prints."""
        pieces = self.judge.pieces("test")
        path = self.work / f"{name}-{len(pieces)}x{pieces.shape[1]}.json"
        if path.exists():
            known = json.loads(path.read_text())
            arrays = (np.array(known[name]) for name in ("best", "losses", "each"))
            quality = Quality(known["perplexity"], known["tokens"], *arrays)
        else:
            quality = measure(eager(network, AT_ONCE), pieces)
            write_json(
                path,
                {
                    name: getattr(value, "tolist", lambda v=value: v)()
                    for name, value in vars(quality).items()
                },
            )
        cells = compared(quality, whole, pieces) if whole else ("",) * 5
        self.table.row(label, f"{size / MB:.2f}", f"{quality.perplexity:.3f}", *cells)
        return quality


def compared(quality: Quality, whole: Quality, pieces: NDArray[np.int64]) -> tuple[str, ...]:
    """How far a row is from float32 on the same windows: perplexity, its interval, and the same answers.

    Perplexity also on tokens that their window had before, and on those it had not: codes that look-up and
    output layer share make a token likelier that was just read.
    """
    weights = draws(len(whole.losses))
    ratios = quality.resampled(weights) / whole.resampled(weights) - 1
    low, high = np.percentile(ratios, (2.5, 97.5))
    change = quality.perplexity / whole.perplexity - 1
    before = [[token in piece[:n] for n, token in enumerate(piece[1:], 1)] for piece in pieces]
    again = np.concatenate(before)
    parts = (np.exp((quality.each - whole.each)[chosen].mean()) - 1 for chosen in (~again, again))
    same = f"{agreement(quality, whole):.1%}"
    return f"{change:+.1%}", f"{low:+.1%} to {high:+.1%}", *(f"{part:+.1%}" for part in parts), same


def rows(bench: Bench, only: list[str]) -> None:
    """Prints a row per variant."""

    def within(name: str) -> str:
        return f"int8 within {bench.budget(name):g} MiB, GPTQ"

    makers: dict[str, tuple[str, Callable[[], Found]]] = {
        "int8": ("int8", bench.int8),
        "nearest": ("int4, nearest", bench.nearest),
        "gptq": ("int4, GPTQ", bench.gptq),
        "mixed": (f"int4 with {within('mixed')}", bench.mixed),
        "residual": (
            f"int4 with {within('residual')}, look-ups with a residual",
            bench.residual,
        ),
        "trained": (
            f"with a residual, after {bench.language().distil_steps} steps of training",
            bench.trained,
        ),
        "layers": (
            f"layers with a scale per row, {within('layers')}",
            lambda: bench.mixed("layers", **CHANGED["layers"]),
        ),
        "rows": (
            f"all with a scale per row, {within('rows')}",
            lambda: bench.mixed("rows", **CHANGED["rows"]),
        ),
        "sparse": ("int4, 40 % zeros, GPTQ", bench.sparse),
    }
    task, plain = bench.network()
    whole = bench.row("fp32", "fp32", plain, _floats(plain), None)
    for name, (label, make) in makers.items():
        if only and name not in only:
            continue
        codes, residual = bench.found(name, make)
        network = bench.network(**CHANGED[name])[1] if name in CHANGED else copy.deepcopy(plain)
        put(network, codes, activation_bits=8)
        if residual:
            put_residual(network, residual)
        if name == "trained":
            network.load_state_dict(torch.load(bench.work / "floats.pt", weights_only=True), strict=False)
        size = count(codes, residual)["bytes"] + _floats(network)
        bench.row(name, label, network, size, whole)
    if not only or "thinner" in only:
        path = bench.work / "ffn.safetensors"
        facts = write_thinner(path, task, 0.75, BLOCK)
        read_thinner(path, plain)
        label = f"fp32, feed-forward {facts['before']} -> {facts['after']} channels"
        bench.row("thinner", label, plain, _floats(plain), whole)


def _floats(network: nn.Module) -> float:
    return sum(4 * parameter.numel() for parameter in network.parameters())


def _tick(done: int, total: int) -> None:
    """Rows are progress enough."""


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, help="a Hugging Face folder or a GGUF file")
    parser.add_argument("--test", type=Path, help="text to score on")
    parser.add_argument("--calibration", type=Path, help="text to calibrate and train on")
    parser.add_argument("--window", type=int, default=1024, help="tokens that are scored together")
    parser.add_argument("--windows", type=int, default=2, help="how many are scored")
    parser.add_argument(
        "--mib",
        action="append",
        default=[],
        help="budget of the mixed bits (152), or ROW=MIB; may be given again",
    )
    parser.add_argument("--set", action="append", default=[], help="language.KEY=VALUE of the recipe")
    parser.add_argument("--only", action="append", default=[], help="a row by name; may be given again")
    parser.add_argument("--work", type=Path, required=True)
    add_option(parser)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    wanted = [] if options.weights is None else [f"weights={options.weights}"]
    if options.test:
        texts = (("test", options.test), ("calibration", options.calibration))
        wanted += ["data.format=text", *(f"data.{split}={path}" for split, path in texts)]
    budgets = {"": 152.0}
    for each in options.mib:
        row, _, mib = each.rpartition("=")
        budgets[row] = float(mib)
    name = "gemma3-tiny" if options.weights is None else "gemma3-270m"
    recipe = load_recipe(RECIPES / f"{name}.toml", [*wanted, *options.set])
    scored = {"window": options.window, "test_tokens": options.window * options.windows}
    judge = recipe.model_copy(update={"language": recipe.language.model_copy(update=scored)})
    tokens = options.windows * (options.window - 1)
    print(f"{tokens:,} tokens scored, in windows of {options.window:,}\n")
    with Table("gemma-quality", HEADS, options.record) as table:
        table.note(f"{tokens:,} tokens scored, in windows of {options.window:,}.")
        drawn = len(draws(options.windows))
        table.note(f"Interval: {drawn:,} resamples of the windows, paired with float32.")
        rows(Bench(recipe, load_language_task(judge), options.work, budgets, table), options.only)


if __name__ == "__main__":
    main()
