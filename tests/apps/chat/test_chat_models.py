"""Opening a bundle's language model, and what it refuses to read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paredown.apps.chat.device.models import load_model, open_model
from paredown.apps.chat.network.cache import empty_cache
from paredown.apps.chat.network.config import GemmaConfig
from paredown.apps.chat.network.network import Gemma
from paredown.pipeline.lower.language.litert import lower_language
from paredown.pipeline.lower.language.network import LanguageFacts
from paredown.targets.errors import InputError, UsageError


@pytest.fixture(scope="module")
def program() -> bytes:
    config = GemmaConfig(
        local=(True, False), width=32, ffn=32, heads=2, kv_heads=1, head_dim=16, window=4, vocabulary=64,
        max_positions=16,
    )  # fmt: skip
    torch.manual_seed(0)
    facts = LanguageFacts(vocabulary=64, context=16, chunk=4, longest=16, bos=2, eos=(1,))
    return lower_language(Gemma(config).eval(), empty_cache(config, 16, 4), facts)


@pytest.fixture
def bundle(program, tmp_path):
    (tmp_path / "model.tflite").write_bytes(program)
    return tmp_path


def test_a_bundle_without_a_choice_opens_what_it_has(bundle):
    model = open_model(bundle)
    assert (model.vocabulary, model.context, model.chunk, model.position) == (64, 16, 4, 0)


@pytest.mark.parametrize("runtime", ["executorch", "onnx"])
def test_a_runtime_without_a_program_is_named_with_those_there_are(bundle, runtime):
    with pytest.raises(UsageError, match=rf"no program for {runtime}; it has one for litert$"):
        open_model(bundle, runtime)


def test_a_folder_without_any_program_is_no_bundle_of_a_model(tmp_path):
    with pytest.raises(UsageError, match="no program for any runtime"):
        open_model(tmp_path)


def test_an_unknown_runtime_is_refused(program):
    with pytest.raises(UsageError, match="unknown runtime `onnx`"):
        load_model(program, "onnx")


def test_damage_names_the_file(bundle):
    path = bundle / "model.tflite"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"model\.tflite: not a language model"):
        open_model(bundle)


@pytest.mark.parametrize("tokens", [[], [64], [-1], [3, 99], [5] * 17], ids=str)
def test_what_cannot_be_read_changes_nothing(bundle, tokens):
    model = open_model(bundle)
    model.feed([3, 4])
    with pytest.raises(ValueError):
        model.feed(tokens)
    assert model.position == 2


def test_after_a_reset_a_text_starts_over(bundle):
    model = open_model(bundle)
    first = model.feed([3, 4, 5, 6, 7])
    model.feed([8, 9])
    model.reset()
    assert model.position == 0
    assert np.array_equal(model.feed([3, 4, 5, 6, 7]), first)
    assert model.position == 5


def test_logits_stay_what_they_were_when_the_model_reads_on(bundle):
    model = open_model(bundle)
    first = model.feed([3])
    kept = first.copy()
    model.feed([4])
    assert first.shape == (64,) and first.dtype == np.float32
    assert np.array_equal(first, kept)
