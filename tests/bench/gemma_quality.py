"""What low-bit weights cost a Gemma 3: perplexity, bytes, and how often it would still say the same.

    python tests/bench/gemma_quality.py --weights gemma-3-270m.gguf --test wiki.test.txt \\
        --calibration wiki.valid.txt --work /tmp/quality

Without weights and texts it measures the tiny Gemma that ships with paredown, on Python's own help. Prints
Markdown, a row as soon as it is known. Codes, rows and the training's state stay in --work: a killed bench
goes on there. Calibration and training never see the test's text. The head shares the embedding's codes;
activations are int8 per token wherever weights are codes.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from apps.chat.cache import empty_cache
from apps.chat.network import Gemma
from apps.chat.perplexity import Quality, agreement, eager, measure, windows
from apps.chat.texts import file_text, pydoc_text
from apps.chat.tokenizer import load_tokenizer
from apps.chat.weights import load_gemma
from pipeline.blocks.distil import DistilConfig, distil, divergence
from pipeline.blocks.grid import BlockGrid
from pipeline.blocks.modules import put
from pipeline.blocks.rounding import RoundingConfig
from pipeline.blocks.sensitivity import choose_block_bits, measure_divergence
from pipeline.blocks.thin import GatedFfn, thin_ffn
from pipeline.blocks.walk import Calibration, put_nearest, put_rounded
from pipeline.blocks.weight import BlockWeight
from pipeline.language.codes import read_codes, write_codes

ROOT = Path(__file__).parents[2]
ROW, BLOCK = BlockGrid(8, None), BlockGrid(4, 32)
FFN = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")

Codes = Mapping[str, BlockWeight]


@dataclass(frozen=True)
class Bench:
    """What is measured, on which tokens."""

    plain: Gemma
    test: list[np.ndarray]
    valid: list[np.ndarray]
    work: Path
    options: argparse.Namespace

    @property
    def layers(self) -> list[str]:
        """Names of the layers."""
        return [f"model.layers.{number}" for number in range(self.plain.config.layers)]

    def grids(self, linear: BlockGrid, head: BlockGrid | None) -> dict[str, BlockGrid]:
        """One grid for the projections, one for the head, which is the embedding too."""
        grids = {f"{layer}.{name}": linear for layer in self.layers for name in (*ATTENTION, *FFN)}
        return grids | ({"lm_head": head} if head else {})

    def run(self, network: nn.Module, sample: np.ndarray) -> Tensor:
        """Logits (T, vocabulary) of a window."""
        cache = empty_cache(self.plain.config, len(sample), len(sample))
        tokens = torch.from_numpy(sample)
        return network(tokens[None], torch.arange(len(sample)), cache)[0][0]

    @property
    def calibration(self) -> Calibration:
        """On the first windows of the calibration text."""
        return Calibration(self.run, self.valid[: self.options.calibration_windows], self.layers)

    @property
    def learned(self) -> list[np.ndarray]:
        """Windows to train on: those behind."""
        return self.valid[self.options.calibration_windows :]

    def nearest(self, linear: BlockGrid, head: BlockGrid | None) -> Codes:
        """The nearest codes."""
        return put_nearest(copy.deepcopy(self.plain), self.grids(linear, head), 8)

    def rounded(self, linear: BlockGrid, head: BlockGrid | None) -> Codes:
        """GPTQ and what follows it."""
        network, config = copy.deepcopy(self.plain), RoundingConfig()
        return put_rounded(network, self.grids(linear, head), self.calibration, config, activation_bits=8)

    def mixed(self) -> Codes:
        """Bits by sensitivity within --megabytes, then rounded."""
        parts = {
            f"{layer} {kind}": tuple(f"{layer}.{name}" for name in names)
            for layer in self.layers
            for kind, names in (("attention", ATTENTION), ("ffn", FFN))
        } | {"head": ("lm_head",)}
        sample = self.valid[0][:257]
        found, sizes = measure_divergence(
            self.plain, parts, {4: BLOCK, 8: ROW}, lambda n: self.run(n, sample), 8
        )
        bits = choose_block_bits(found, sizes, 0.0, self.options.megabytes * 1e6).widths
        grids = {name: {4: BLOCK, 8: ROW}[bits[part]] for part, names in parts.items() for name in names}
        return put_rounded(copy.deepcopy(self.plain), grids, self.calibration, activation_bits=8)

    def trained(self) -> Codes:
        """Codes of `rounded`, then trained on the full-precision network's probabilities."""
        student = copy.deepcopy(self.plain)
        start = self.codes("int4, GPTQ", lambda: self.rounded(BLOCK, BLOCK))
        put(student, start, 8)
        held_out, *texts = self.learned

        @torch.no_grad()
        def evaluate(network: nn.Module) -> float:
            return -float(divergence(self.run(network, held_out), self.run(self.plain, held_out)))

        config = DistilConfig(
            steps=self.options.steps, lr=self.options.lr, scale_lr=self.options.lr / 5, evaluate_every=20
        )

        def batch(step: int) -> np.ndarray:
            return texts[step % len(texts)][: self.options.tokens]

        checkpoint = self.work / "distil.ckpt"
        found = distil(student, self.plain, batch, self.run, config, evaluate=evaluate, checkpoint=checkpoint)
        # The head's codes go by the name of the embedding, which is met first.
        return {name.replace("model.embed_tokens", "lm_head"): codes for name, codes in found.weights.items()}

    def codes(self, name: str, make: Callable[[], Codes]) -> Codes:
        """Codes of --work, or new ones."""
        path = self.work / f"{name.replace(' ', '_')}.codes"
        if not path.exists():
            write_codes(path, make())
        return read_codes(path)

    def thinner(self, share: float) -> tuple[Gemma, str]:
        """The network in full precision with so many of its feed-forward channels."""
        network = copy.deepcopy(self.plain)
        ffns = [GatedFfn(*(f"{layer}.{name}" for name in FFN)) for layer in self.layers]
        found = thin_ffn(network, ffns, share, 32, self.calibration)
        return network, f"FFN {found[0].before} -> {len(found[0].kept)} channels, fp32"


def table(bench: Bench) -> None:
    """Prints a row per variant."""
    variants: dict[str, Callable[[], Codes]] = {
        "int8": lambda: bench.nearest(ROW, ROW),
        "int4, nearest": lambda: bench.nearest(BLOCK, BLOCK),
        "int4 rows, nearest": lambda: bench.nearest(BlockGrid(4, None), BLOCK),
        "int4, nearest, head int8": lambda: bench.nearest(BLOCK, ROW),
        "int4, GPTQ": lambda: bench.rounded(BLOCK, BLOCK),
        "int4, GPTQ, head int8": lambda: bench.rounded(BLOCK, ROW),
        "mixed, GPTQ": bench.mixed,
        "int4, GPTQ, distilled": bench.trained,
        "SQuantizer 4 bits, 40 % zeros": lambda: bench.nearest(BlockGrid(4, 32, "threshold", 0.4), ROW),
    }
    print("| weights | MB | perplexity | of fp32 | says the same |")
    print("|---|---|---|---|---|")
    whole = _row(bench, "fp32", bench.plain, sum(4 * p.numel() for p in bench.plain.parameters()), None)
    for name, make in variants.items():
        if bench.options.only and name not in bench.options.only:
            continue
        network, codes = copy.deepcopy(bench.plain), bench.codes(name, make)
        put(network, codes, 8)
        size = sum(each.bytes for each in codes.values()) + sum(4 * p.numel() for p in network.parameters())
        _row(bench, name, network, size, whole)
    if not bench.options.only:
        network, name = bench.thinner(0.75)
        _row(bench, name, network, sum(4 * p.numel() for p in network.parameters()), whole)


def _row(bench: Bench, name: str, network: Gemma, size: int, whole: Quality | None) -> Quality:
    """Measures, unless it was measured before, and prints."""
    path = bench.work / f"{name.replace(' ', '_').replace('%', '').replace('>', '')}.json"
    if path.exists():
        known = json.loads(path.read_text())
        quality = Quality(known["perplexity"], known["tokens"], np.array(known["best"]))
    else:
        quality = measure(eager(network), bench.test)
        path.write_text(json.dumps({**vars(quality), "best": quality.best.tolist()}))
    change, same = "", ""
    if whole:
        change = f"{100 * (quality.perplexity / whole.perplexity - 1):+.1f} %"
        same = f"{100 * agreement(quality, whole):.1f} %"
    print(f"| {name} | {size / 1e6:.2f} | {quality.perplexity:.3f} | {change} | {same} |", flush=True)
    return quality


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, default=ROOT / "apps" / "chat" / "tiny")
    parser.add_argument("--test", type=Path, help="text to score on")
    parser.add_argument("--calibration", type=Path, help="text to calibrate and train on")
    parser.add_argument("--window", type=int, default=1024, help="tokens that are scored together")
    parser.add_argument("--windows", type=int, default=2, help="how many are scored")
    parser.add_argument("--calibration-windows", type=int, default=8)
    parser.add_argument("--megabytes", type=float, default=160, help="budget of the mixed bits")
    parser.add_argument("--steps", type=int, default=60, help="of training")
    parser.add_argument("--tokens", type=int, default=256, help="of a training step, at most 512")
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--only", action="append", help="a row of the table; may be given again")
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    network = load_gemma(options.weights).requires_grad_(False)
    tokenizer = load_tokenizer(options.weights, network.config.vocabulary)

    def pieces(path: Path | None, split: str, length: int, count: int | None) -> list[np.ndarray]:
        text = file_text(path) if path else pydoc_text(split)  # type: ignore[arg-type]
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        return windows(ids, length, network.config.bos, count)

    test = pieces(options.test, "test", options.window, options.windows)
    length = min(512, options.window)
    valid = pieces(options.calibration, "train" if options.calibration is None else "", length, None)
    print(f"{network.config.layers} layers, {math.prod(test[0].shape) * len(test)} tokens in the test\n")
    table(Bench(network, test, valid, options.work, options))


if __name__ == "__main__":
    main()
