"""A .litertlm: built, and run by LiteRT-LM itself where that is installed."""

from __future__ import annotations

import importlib.util

import pytest
from language_networks import CONFIG, FACTS, Codes, network
from needs import missing
from tiny_project import call

from paredown.apps.chat.device.models import load_model
from paredown.apps.chat.network.cache import empty_cache
from paredown.pipeline.lower.language.litert import lower_language
from paredown.pipeline.lower.language.litertlm import _metadata, to_litertlm


def test_other_turns_go_in_as_the_model_s_template():
    if importlib.util.find_spec("litert_lm_builder") is None:
        missing("litert_lm_builder is not installed")
    metadata = _metadata(FACTS, False, "{{ messages }}")
    assert metadata.jinja_prompt_template == "{{ messages }}" and not metadata.prompt_templates.user.prefix
    own = _metadata(FACTS, True, None)
    assert own.prompt_templates.user.prefix == "<start_of_turn>user\n" and not own.jinja_prompt_template


@pytest.mark.slow
def test_litert_lm_writes_what_our_own_runner_does(tmp_path):
    for package in ("litert_lm_builder", "litert_lm"):
        if importlib.util.find_spec(package) is None:
            missing(f"{package} is not installed")
    import litert_lm
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[:253]
    tokens = {token: i for i, token in enumerate(["<pad>", "<eos>", "<bos>", *letters])}
    tokenizer = Tokenizer(models.BPE(tokens, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    memory = empty_cache(CONFIG, FACTS.context, FACTS.chunk, ring=False)
    program = lower_language(network(Codes(4, 32)), memory, FACTS)
    path = tmp_path / "model.litertlm"
    path.write_bytes(to_litertlm(program, tokenizer.to_str().encode(), FACTS, turns=False))

    model, written = load_model(program, "litert"), []
    logits = model.feed([FACTS.bos, *tokenizer.encode("hello world").ids])
    while model.position < model.context and (token := int(logits.argmax())) not in FACTS.eos:
        written.append(token)
        logits = model.feed([token])
    with litert_lm.Engine(str(path)) as engine, engine.create_session() as session:
        session.run_prefill(["hello world"])
        (said,) = session.run_decode().texts
    assert len(said) > 8
    assert tokenizer.decode(written).startswith(said) or said.startswith(tokenizer.decode(written))


@pytest.mark.slow
def test_a_run_writes_one_beside_its_bundle_and_it_writes_text(tmp_path):
    for package in ("litert_lm_builder", "litert_lm"):
        if importlib.util.find_spec(package) is None:
            missing(f"{package} is not installed")
    import litert_lm

    settings = ("--set", 'lower.runtimes=["litert"]', "--set", "language.litertlm=true")
    done = call("run", "gemma3-tiny", "--runs", tmp_path, "--smoke", *settings)
    assert done.code == 0, done.err
    path = tmp_path / "gemma3-tiny" / "host" / "model.litertlm"
    with litert_lm.Engine(str(path)) as engine, engine.create_session() as session:
        session.run_prefill(["The assert statement"])
        (said,) = session.run_decode().texts
    bundle = path.with_name("bundle.paredown")
    options = ("--prompt", "The assert statement", "--temperature", "0", "--max-tokens", "8")
    assert said.startswith(call("chat", bundle, *options).out.strip())


def test_a_builder_that_is_not_installed_is_told_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr("paredown.pipeline.lower.language.litertlm.find_spec", lambda name: None)
    done = call("run", "gemma3-tiny", "--runs", tmp_path, "--set", "language.litertlm=true")
    assert done.code == 2 and "pip install litert-lm-builder" in done.line()
    one = ("--set", 'lower.runtimes=["executorch"]', "--set", "language.litertlm=true")
    done = call("run", "gemma3-tiny", "--runs", tmp_path, *one)
    assert done.code == 2 and "litertlm without litert" in done.line()
