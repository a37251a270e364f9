"""The chat's side of a recipe: Gemma 3 with its texts, and what the device needs.

Torch is imported only where a network is built: a run in which everything is reused never needs it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from paredown.apps.chat.texts import Split, file_text, fingerprint, pydoc_text
from paredown.pipeline.recipe.language_task import PredictTokens
from paredown.pipeline.recipe.schema import Language, Recipe
from paredown.pipeline.recipe.task import Scores
from paredown.pipeline.store.store import file_hash
from paredown.targets.errors import InputError, UsageError
from paredown.targets.own_code import own_code

if TYPE_CHECKING:
    from torch import Tensor

    from paredown.apps.chat.device.language_model import LanguageModel
    from paredown.apps.chat.device.tokens.tokens import Tokens
    from paredown.apps.chat.device.tokens.turns import Turns
    from paredown.apps.chat.network.config import GemmaConfig
    from paredown.pipeline.compress.blockwise.channels import Channels
    from paredown.pipeline.compress.blockwise.ffn_pruning import GatedFfn
    from paredown.pipeline.compress.blockwise.layerwise import Calibration
    from paredown.pipeline.lower.language.network import LanguageFacts

TINY = "tiny"  # the weights that ship
NETWORK = "gemma3"
CACHE_BYTES, SCALE_BYTES = 4, 4  # of a key or value, and of a scale
LOW_BITS = 4
DEVICE = (
    "__init__", "chat", "generation/*", "language_model", "models", "score", "serve", "speed", "terminal",
    "tokens/__init__", "tokens/tokens", "tokens/turns",
)  # fmt: skip


class ChatTask:
    """Gemma 3 of a Hugging Face folder or a GGUF file; a `LanguageTask`.

    Args:
        recipe: resolved.

    Raises:
        InputError: the weights' file is missing, broken, or no Gemma 3's.
        UsageError: another network is asked for.
    """

    name = "apps.chat"

    def __init__(self, recipe: Recipe) -> None:
        from paredown.apps.chat.weights.weights import open_weights

        if recipe.network != NETWORK:
            hint = f'set it to "{NETWORK}": which size, the weights\' own file says'
            raise UsageError(f"no network `{recipe.network}`", where="recipe, key network", hint=hint)
        self.recipe, self.language = recipe, recipe.language
        self.path = Path(__file__).with_name(TINY) if recipe.weights == TINY else Path(recipe.weights)
        if not self.path.exists():
            hint = "--set weights=PATH: a Hugging Face folder, or a .gguf file"
            raise InputError("no such folder or file (`weights` of the recipe)", where=self.path, hint=hint)
        self._file = open_weights(self.path)
        self.config: GemmaConfig = self._file.config
        self.vocabulary, self.bos, self.ends = self.config.vocabulary, self.config.bos, self.config.eos
        self.facts()  # sizes that do not fit are told before any work

    # -- network -------------------------------------------------------------------------------------------

    @property
    def network_id(self) -> Mapping[str, Any]:
        """The numbers of its configuration."""
        config = dataclasses.asdict(self.config)
        # Fields that came later are named where they say something: the keys of earlier runs stay.
        later = {"rope_factor_local": 1.0, "tied": True}
        config = {key: value for key, value in config.items() if later.get(key) != value}
        lists = {"local": list(self.config.local), "eos": list(self.config.eos)}
        return {"app": self.name, **config, **lists}

    @functools.cached_property
    def _factors(self) -> dict[int, float]:
        """Of the output layer's columns those that are balanced, and by what: where a row has one scale.

        Blocks keep an outlier to themselves, and 8 bits have room for it.
        """
        if self.language.block_of(linear=False) or self.language.embedding_bits != LOW_BITS:
            return {}
        from paredown.apps.chat.network.balance import outliers
        from paredown.apps.chat.weights.rows import EMBEDDING, HEAD, ROWS

        name = EMBEDDING if self.config.tied else HEAD
        return outliers(self._file.rows(name, 0, min(ROWS, self.vocabulary)))

    @functools.cached_property
    def _hash(self) -> str:
        if self.path.is_file():
            return file_hash(self.path)
        read = (".safetensors", ".json", ".jinja")
        names = sorted(p for p in self.path.iterdir() if p.suffix in read)
        listed = "".join(f"{path.name} {file_hash(path)}\n" for path in names)
        return hashlib.sha256(listed.encode()).hexdigest()

    def weights_hash(self) -> str:
        """Sha256 over the weights' files and the tokenizer; where columns are balanced, their factors too."""
        if not self._factors:
            return self._hash
        return hashlib.sha256(f"{self._hash} {self._factors}".encode()).hexdigest()

    def network(self) -> Any:
        """The trained network in evaluation mode, its output layer balanced where that helps."""
        from paredown.apps.chat.network.balance import balance_head
        from paredown.apps.chat.weights.weights import load_gemma

        network = load_gemma(self.path)
        balance_head(network, self._factors)
        return network

    def facts(self) -> LanguageFacts:
        """Sizes of a program.

        Raises:
            InputError: a context beyond what the network was trained for, or a chunk beyond the context.
        """
        from paredown.pipeline.lower.language.network import LanguageFacts

        wanted = self.language
        return LanguageFacts(
            self.vocabulary, wanted.context, wanted.chunk, self.config.max_positions, self.bos, self.ends
        )

    def device_bytes(self, language: Language) -> int:
        """Memory of the weights as codes with a scale per block, of a residual, and of the ring buffers."""
        from paredown.apps.chat.network.cache import slots

        config = self.config
        attention = config.width * config.head_dim * (2 * config.heads + 2 * config.kv_heads)
        linears = config.layers * (attention + 3 * config.width * round(config.ffn * (language.ffn or 1)))
        rows = config.vocabulary * config.width * (1 if config.tied else 2)
        weights = (linears * language.weight_bits + rows * language.embedding_bits) // 8
        scales = sum(
            SCALE_BYTES * count // (language.block_of(linear) or config.width)
            for linear, count in ((True, linears), (False, rows))
        )
        held = weights + scales
        if language.residual_tokens:
            from paredown.pipeline.compress.blockwise.codes import residual_bytes

            tokens = min(language.residual_tokens, config.vocabulary)
            held += residual_bytes(tokens, config.width, config.vocabulary)
        if language.weights_mib is not None:  # which mixed bits fill up
            held = max(held, int(language.weights_mib * 2**20))
        slotted = sum(slots(config, local, language.context, language.chunk) for local in config.local)
        return held + slotted * 2 * config.kv_heads * config.head_dim * CACHE_BYTES

    def matrices(self, network: Any) -> tuple[tuple[str, ...], str]:
        """The projections of every layer, and the head."""
        from torch import nn

        linears = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
        return tuple(name for name in linears if name != "lm_head"), "lm_head"

    def calibration(self, network: Any, pieces: NDArray[np.int64]) -> Calibration:
        """Runs whole pieces."""
        import torch

        from paredown.apps.chat.network.cache import empty_cache
        from paredown.pipeline.compress.blockwise.layerwise import Calibration

        length = pieces.shape[1]
        cache, positions = empty_cache(self.config, length, length), torch.arange(length)

        def run(model: Any, piece: Any) -> Any:
            return model(piece, positions, cache)

        return Calibration(run, [torch.from_numpy(piece)[None] for piece in pieces], self._layers)

    @property
    def _layers(self) -> list[str]:
        return [f"model.layers.{number}" for number in range(self.config.layers)]

    def ffns(self, network: Any) -> list[GatedFfn]:
        """Of every layer."""
        from paredown.pipeline.compress.blockwise.ffn_pruning import GatedFfn

        parts = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
        return [GatedFfn(*(f"{layer}.{part}" for part in parts)) for layer in self._layers]

    def channels(self, network: Any) -> list[Channels]:
        """Of every layer."""
        from paredown.apps.chat.network.balance import layer_channels

        return layer_channels(network)

    def lesson(self, pieces: NDArray[np.int64]) -> Callable[[Any, NDArray[np.int64]], Tensor]:
        """Whole pieces, with the head's rows for their tokens alone."""
        import torch

        from paredown.apps.chat.network.cache import empty_cache
        from paredown.pipeline.compress.blockwise.modules import some_outputs

        tokens = torch.from_numpy(np.unique(pieces))

        def logits(network: Any, piece: NDArray[np.int64]) -> Tensor:
            length = len(piece)
            cache = empty_cache(self.config, length, length)
            hidden, _ = network.model(
                torch.from_numpy(piece)[None], torch.arange(length), cache, torch.Tensor.index_copy
            )
            return some_outputs(network.lm_head, hidden[0], tokens)

        return logits

    # -- texts ---------------------------------------------------------------------------------------------

    def _text(self, split: str) -> str:
        data = self.recipe.data
        if data.format == "pydoc":
            return pydoc_text(cast("Split", split))
        own = {"test": data.test, "train": data.train or data.calibration}
        path = own.get(split, data.calibration)
        assert path is not None  # the recipe's schema asks for both
        return file_text(Path(path))

    def fingerprint(self, split: str) -> str:
        """Sha256 of a split's text."""
        return fingerprint(self._text(split))

    def pieces(self, split: str) -> NDArray[np.int64]:
        """As many as the recipe asks for, if the text has them; of "train" all.

        Raises:
            InputError: the text does not fill one.
        """
        from paredown.apps.chat.perplexity import windows
        from paredown.apps.chat.tokenizer import load_tokenizer

        tokenizer, wanted = load_tokenizer(self.path, self.vocabulary), self.language
        ids = tokenizer.encode(self._text(split), add_special_tokens=False).ids
        if split == "train":
            return np.stack(windows(ids, wanted.distil_tokens, self.bos))
        tokens = wanted.test_tokens if split == "test" else wanted.calibration_tokens
        count = min(max(1, tokens // wanted.window), len(ids) // (wanted.window - 1))
        return np.stack(windows(ids, wanted.window, self.bos, max(1, count)))

    def predict(self, network: Any) -> PredictTokens:
        """In torch, in chunks."""
        from paredown.apps.chat.perplexity import eager

        return eager(network)

    def score(self, predict: PredictTokens, progress: Callable[[int, int], None]) -> dict[str, float]:
        """Perplexity on the test text's pieces."""
        from paredown.apps.chat.perplexity import measure

        pieces = self.pieces("test")

        def counted() -> Iterator[NDArray[np.int64]]:
            for done, piece in enumerate(pieces, start=1):
                yield piece
                progress(done, len(pieces))

        found = measure(predict, counted())
        return Scores({"perplexity": found.perplexity}, len(pieces), found.resampled)

    # -- programs ------------------------------------------------------------------------------------------

    def lower(self, network: Any, runtime: str) -> bytes:
        """A program with the recipe's context and chunk."""
        from paredown.apps.chat.network.cache import empty_cache
        from paredown.apps.chat.network.network import Stateful

        facts = self.facts()
        if runtime == "executorch":
            from paredown.pipeline.lower.language import executorch as language_executorch

            sizes = (network, facts.context, facts.chunk)
            steps = (Stateful(*sizes), Stateful(*sizes, keep="none"))
            return language_executorch.lower_language(*steps, facts).data
        from paredown.pipeline.lower.language import litert as language_litert

        memory = empty_cache(self.config, facts.context, facts.chunk)
        reach = language_litert.REACH if facts.context >= 2 * language_litert.REACH else None
        return language_litert.lower_language(network, memory, facts, reach)

    def litertlm(self, network: Any) -> bytes:
        """For LiteRT-LM, which takes the shortest cache for the context: every layer has a full one."""
        from paredown.apps.chat.network.cache import empty_cache
        from paredown.apps.chat.tokenizer import tokenizer_json
        from paredown.apps.chat.weights.chat_template import find_template
        from paredown.pipeline.lower.language.litert import lower_language
        from paredown.pipeline.lower.language.litertlm import to_litertlm

        facts = self.facts()
        memory = empty_cache(self.config, facts.context, facts.chunk, ring=False)
        program = lower_language(network, memory, facts)
        _, tokens, turns = self._chat
        own = turns is not None and turns == tokens.own_turns
        template = None if own else find_template(self.path)
        facts = dataclasses.replace(facts, eos=tuple(sorted({*facts.eos, *(turns.ends if turns else ())})))
        return to_litertlm(program, tokenizer_json(self.path), facts, own, template)

    def open(self, program: bytes, runtime: str, threads: int) -> PredictTokens:
        """A program on this machine, read token by token."""
        from paredown.apps.chat.device.models import load_model

        model: LanguageModel = load_model(program, runtime, threads)

        def predict(tokens: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
            model.reset()
            for token in tokens.tolist():
                yield model.feed([token])[None]

        return predict

    # -- device --------------------------------------------------------------------------------------------

    @functools.cached_property
    def _chat(self) -> tuple[bytes, Tokens, Turns | None]:
        """The tokenizer packed and as the device has it, and the turns of a chat, if the model knows any."""
        from paredown.apps.chat.device.tokens.pack import pack
        from paredown.apps.chat.device.tokens.tokens import Tokens
        from paredown.apps.chat.tokenizer import tokenizer_json
        from paredown.apps.chat.weights.chat_template import find_turns

        document = tokenizer_json(self.path)
        packed = pack(document, self.path)
        tokens = Tokens(packed, self.path)
        return packed, tokens, find_turns(self.path, document, tokens)

    def bundle_members(self) -> dict[str, bytes]:
        """The tokenizer as arrays, the turns of a chat, and what ends an answer."""
        packed, tokens, turns = self._chat
        settings: dict[str, Any] = {"template": "none"}
        ends = set(self.ends)
        if turns is not None:
            settings = {"template": "gemma"}
            if turns != tokens.own_turns:
                settings = {"template": "turns", "turns": turns.as_json()}
            ends |= set(turns.ends)
        if not ends <= tokens.ends:  # else those that are known by their names
            settings["ends"] = sorted(ends)
        text = json.dumps(settings, sort_keys=True, indent=1) + "\n"
        return {"tokenizer.npz": packed, "app.json": text.encode()}

    def device_files(self) -> dict[str, Path]:
        """The code that runs on the device: numpy and one runtime, no torch."""
        return own_code(("apps/chat/__init__.py", *(f"apps/chat/device/{name}.py" for name in DEVICE)))
