"""What an app gives the pipeline for a language model; nothing here knows which one it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from paredown.pipeline.recipe.schema import Language, Recipe
from paredown.pipeline.recipe.task import import_app
from paredown.targets.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from paredown.pipeline.compress.blockwise.channels import Channels
    from paredown.pipeline.compress.blockwise.ffn_pruning import GatedFfn
    from paredown.pipeline.compress.blockwise.layerwise import Calibration

#: The tokens of a piece (window,) to logits (window, vocabulary), each after all tokens up to its own; whole,
#: or in blocks of rows one after the other.
PredictTokens = Callable[[NDArray[np.int64]], Iterable[NDArray[np.float32]]]


class LanguageTask(Protocol):
    """An app's side of a recipe for a language model; made cheaply, loads nothing before it is asked.

    Attributes:
        name: import path of the app.
        network_id: everything but weights and texts that decides what the network is; JSON-able.
        vocabulary: rows of the embedding.
        bos: the token that every text starts with.
        ends: the tokens that end an answer.
    """

    name: str
    network_id: Mapping[str, Any]
    vocabulary: int
    bos: int
    ends: tuple[int, ...]

    def weights_hash(self) -> str:
        """sha256 over the weights' files and the tokenizer."""

    def network(self) -> Any:
        """The trained `torch.nn.Module` in evaluation mode, float32."""

    def device_bytes(self, language: Language) -> int:
        """Memory that the network takes on a device: its weights as codes, and its key-value cache."""

    def pieces(self, split: str) -> NDArray[np.int64]:
        """The texts of "calibration" or "test" as pieces (N, window), of "train" (N, distil_tokens).

        Each begins with `bos`. Training takes what there is, the others as much as the recipe wants.
        """

    def fingerprint(self, split: str) -> str:
        """Sha256 of a split's text."""

    def matrices(self, network: Any) -> tuple[tuple[str, ...], str]:
        """Names of the linear layers, and of the output layer, which shares the embedding's weights."""

    def ffns(self, network: Any) -> Sequence[GatedFfn]:
        """Names of the feed-forward layers' matrices."""

    def channels(self, network: Any) -> Sequence[Channels]:
        """What the layers' matrices read, and what writes it, wherever factors can move between the two."""

    def calibration(self, network: Any, pieces: NDArray[np.int64]) -> Calibration:
        """How the network is run on pieces, for rounding."""

    def lesson(self, pieces: NDArray[np.int64]) -> Callable[[Any, NDArray[np.int64]], Tensor]:
        """Runs a network on a piece (T,), to logits (T, tokens) of those tokens that occur in `pieces`.

        They hold nearly all probability there; a large vocabulary's rest would take most of the time.
        """

    def predict(self, network: Any) -> PredictTokens:
        """Runs a network of `network()`, or one with low-bit matrices, in torch."""

    def score(self, predict: PredictTokens, progress: Callable[[int, int], None]) -> dict[str, float]:
        """Perplexity on the test texts ("perplexity")."""

    def lower(self, network: Any, runtime: str) -> bytes:
        """A runtime's program of a network of `network()`, or one with low-bit matrices."""

    def litertlm(self, network: Any) -> bytes:
        """The same for LiteRT-LM, with the tokenizer."""

    def open(self, program: bytes, runtime: str, threads: int) -> PredictTokens:
        """A program, run on this machine token by token as a chat does."""

    def bundle_members(self) -> dict[str, bytes]:
        """Files that the device needs beside the models (tokenizer, template)."""

    def device_files(self) -> dict[str, Path]:
        """Source files that run on the device: path in the bundle to file here."""


def load_language_task(recipe: Recipe) -> LanguageTask:
    """Imports the recipe's app and asks it for its task.

    Raises:
        InputError: there is no such app, or it has no `make_language_task(recipe)`.
    """
    app = import_app(recipe.app, "apps.chat")
    make: Callable[[Recipe], LanguageTask] | None = getattr(app, "make_language_task", None)
    if make is None:
        what = f"app `{recipe.app}` takes no texts: it has no function make_language_task(recipe)"
        raise InputError(what, where="recipe, key app", hint="apps.chat does")
    return make(recipe)
