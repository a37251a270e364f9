"""Turns of five families of chat templates, against transformers' `apply_chat_template`; what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chat_model import small_tokenizer
from gemma_models import oracle, save_gguf, save_hf
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from paredown.apps.chat.device.tokens.pack import pack
from paredown.apps.chat.device.tokens.tokens import Tokens
from paredown.apps.chat.device.tokens.turns import Turns
from paredown.apps.chat.weights.chat_template import compiled, find_template, find_turns, named_tokens
from paredown.pipeline.recipe.file import load_recipe
from paredown.pipeline.recipe.language_task import load_language_task
from paredown.targets.errors import InputError

pytestmark = pytest.mark.unit

RECIPES = [Path(__file__).parents[3] / "apps" / "chat" / "recipes"]
MARKS = (
    "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|user|>",
    "<|assistant|>", "<|end|>",
)  # fmt: skip
NAMES = {"bos_token": "<bos>", "eos_token": "<eos>"}
GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}{%- set loop_messages = messages[1:] -%}
{%- else -%}{%- set loop_messages = messages -%}{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' }}
    {%- if message['content'] is string -%}{{ message['content'] | trim }}
    {%- else -%}{%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}{%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"""
CHATML = """{% for message in messages %}
{% if loop.first and message['role'] != 'system' %}
{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}
{% endif %}
{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}{% generation %}
{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}
{% else %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
LLAMA = """{% set loop_messages = messages %}{% for message in loop_messages %}
{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'
 + message['content'] | trim + '<|eot_id|>' %}
{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""
MISTRAL = """{{ bos_token }}{% for message in messages %}
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] | trim + eos_token }}
{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"""
PHI = """{% for message in messages %}
{% if message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '<|end|>\n' }}
{% elif message['role'] == 'assistant' %}{{ '<|assistant|>\n' + message['content'] + '<|end|>\n' }}{% endif %}
{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"""
TEMPLATES = {"gemma": GEMMA, "chatml": CHATML, "llama": LLAMA, "mistral": MISTRAL, "phi": PHI}
TEXTS = st.text(st.characters(exclude_categories=("Cs", "Co")), min_size=1, max_size=30).filter(str.strip)


def with_marks(special: bool) -> bytes:
    """The small tokenizer, with the marks of other families as tokens of their own, or as text."""
    document = json.loads(small_tokenizer())
    if special:
        size = 1 + max(*document["model"]["vocab"].values(), *(t["id"] for t in document["added_tokens"]))
        like = next(token for token in document["added_tokens"] if token["content"] == "<bos>")
        marks = [like | {"id": size + n, "content": mark} for n, mark in enumerate(MARKS)]
        document["added_tokens"] += marks
    return json.dumps(document).encode()


@pytest.fixture(scope="module", params=[True, False], ids=["tokens", "text"])
def tokenizer(request: pytest.FixtureRequest) -> bytes:
    return with_marks(request.param)


@pytest.fixture(scope="module")
def special() -> bytes:
    return with_marks(True)


def turns_of(template: str, tokenizer: bytes) -> Turns:
    return compiled(template, NAMES, tokenizer, Tokens(pack(tokenizer)), "a model")


def line(template: str, tokenizer: bytes) -> str:
    with pytest.raises(InputError) as caught:
        turns_of(template, tokenizer)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("a model: its chat template")
    return str(caught.value)


@pytest.mark.parametrize("family", TEMPLATES)
def test_transcripts_are_those_of_transformers(tokenizer, family, tmp_path):
    """Every prompt of a chat of any texts, token by token; answers are what the model said."""
    turns = turns_of(TEMPLATES[family], tokenizer)
    ours = Tokens(pack(tokenizer), turns=Turns.from_json(json.loads(json.dumps(turns.as_json()))))
    (tmp_path / "tokenizer.json").write_bytes(tokenizer)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), **NAMES)
    starts_with = " " if family == "mistral" else ""

    @settings(max_examples=15, deadline=None, derandomize=True)
    @given(st.lists(TEXTS, min_size=1, max_size=7).filter(lambda texts: len(texts) % 2))
    def check(texts):
        chat = [
            {"role": ("user", "assistant")[n % 2], "content": text.strip() if n % 2 else text}
            for n, text in enumerate(texts)
        ]
        found = list(ours.start)
        for n, message in enumerate(chat):
            if n % 2:
                found += [*ours.encode(starts_with + message["content"]), *ours.turn_end]
            else:
                found += ours.user_turn(message["content"])
        wanted = theirs.apply_chat_template(
            chat, chat_template=TEMPLATES[family], add_generation_prompt=True, tokenize=False
        )
        assert theirs.decode(found, clean_up_tokenization_spaces=False) == theirs.decode(
            theirs.encode(wanted, add_special_tokens=False), clean_up_tokenization_spaces=False
        )
        if len(chat) == 1:
            assert found == theirs.encode(wanted, add_special_tokens=False)

    check()


def test_a_token_ends_an_answer_or_a_text_does(special):
    tokens, plain = Tokens(pack(special)), with_marks(False)
    chatml = turns_of(CHATML, special)
    assert chatml.ends == (tokens.special["<|im_end|>"],) and chatml.stop == ""
    spelled = turns_of(CHATML, plain)
    assert spelled.ends == () and spelled.stop == "<|im_end|>"
    assert turns_of(MISTRAL, special).ends == (tokens.special["<eos>"],)
    assert turns_of(GEMMA, special) == tokens.own_turns


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for m in messages %}", "is broken"),
        ("{{ raise_exception('no chats') }}", "fails on plain turns: no chats"),
        ("{{ messages[0].nothing.more }}", "fails on plain turns"),
        ("hello", "it writes a text of the chat 0 times"),
        (GEMMA + "{{ messages[-1]['content'] }}", "it writes a text of the chat 2 times"),
        (GEMMA.replace("bos_token", "strftime_now('%d %b %Y') + bos_token"), "writes the date"),
        (GEMMA.replace("| trim }}", "| upper }}"), "it writes a text of the chat 1 times|is not its parts"),
        (CHATML.replace("message['content'] + '<|im_end|>' }}", "message['content'].split('</think>')[-1] + "
                        "'<|im_end|>' }}"), "a chat of 6 turns is not its parts"),
        (GEMMA.replace("model\n' }}", "model\n<think>' }}"), "an earlier answer begins in another way"),
        ("{{ ''.__class__.__mro__ }}" + GEMMA, "fails on plain turns"),
    ],
    ids=["syntax", "raises", "undefined", "constant", "twice", "date", "upper", "thinks", "opens", "escapes"],
)  # fmt: skip
def test_a_template_that_does_more_is_refused_by_name(special, template, said):
    found = line(template, special)
    assert any(each in found for each in said.split("|")), found


def test_where_a_template_is_found(tmp_path):
    assert find_template(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert find_template(tmp_path) is None
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "processor's"}))
    assert find_template(tmp_path) == "processor's"
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "listed"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert find_template(tmp_path) == "listed"
    (tmp_path / "chat_template.jinja").write_text("own file")
    assert find_template(tmp_path) == "own file"
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named[:1]}))
    with pytest.raises(InputError, match="no list with one named default"):
        find_template(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match="tokenizer_config.json: not valid JSON"):
        find_template(tmp_path)


def test_a_folder_names_its_tokens(special, tmp_path):
    tokens = Tokens(pack(special))
    assert named_tokens(tmp_path, tokens)["eos_token"] == "<eos>"
    config = {"eos_token": {"content": "<|im_end|>"}, "bos_token": "<pad>", "model_max_length": 5}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": MISTRAL}))
    assert named_tokens(tmp_path, tokens)["bos_token"] == "<pad>"
    turns = find_turns(tmp_path, special, tokens)
    assert turns.start == (tokens.special["<pad>"],) and turns.end[0] == tokens.special["<|im_end|>"]


def test_a_gguf_file_s_template(tmp_path):
    path = save_gguf(oracle(), tmp_path / "model.gguf", template="{{ bos_token }}x")
    assert find_template(path) == "{{ bos_token }}x"


def test_turns_that_are_none():
    good = Turns((1,), ("a",), (2, "b"), (3,), True).as_json()
    assert Turns.from_json(good).end == (3,)
    for wrong in ({"start": [1.5]}, {"ask": [None]}, {"strip": 1}, {"end": [True]}):
        with pytest.raises(ValueError, match="a turn|strip"):
            Turns.from_json(good | wrong)


def members(folder: Path) -> dict:
    recipe = load_recipe("gemma3-tiny", [f"weights={folder}"], RECIPES)
    return json.loads(load_language_task(recipe).bundle_members()["app.json"])


def test_what_a_bundle_says_of_turns_and_ends(special, tmp_path):
    """Gemma's own and none need no more than a word; a template that is added makes another key."""
    size = Tokens(pack(special)).size
    save_hf(oracle(vocab_size=size, num_hidden_layers=1), tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(special)
    assert members(tmp_path) == {"template": "none"}
    before = task_hash(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(GEMMA)
    assert members(tmp_path) == {"template": "gemma"} and task_hash(tmp_path) != before
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    names = Tokens(pack(special)).special
    found = members(tmp_path)
    assert found["template"] == "turns" and found["ends"] == sorted({1, names["<|im_end|>"]})
    assert Turns.from_json(found["turns"]) == turns_of(CHATML, special)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 9]}))
    assert members(tmp_path)["ends"] == sorted({1, 9, names["<|im_end|>"]})


def task_hash(folder: Path) -> str:
    return load_language_task(load_recipe("gemma3-tiny", [f"weights={folder}"], RECIPES)).weights_hash()
