"""A .litertlm for LiteRT-LM: our .tflite with the tokenizer and what else its engine wants to know."""

from __future__ import annotations

import contextlib
import io
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from paredown.pipeline.lower.language.network import LanguageFacts
from paredown.targets.errors import UsageError

#: Gemma's turns, as its model card has them: what stands before and behind a text of each.
TURNS = {
    "user": ("<start_of_turn>user\n", "<end_of_turn>\n"),
    "model": ("<start_of_turn>model\n", "<end_of_turn>\n"),
}


def to_litertlm(
    model: bytes, tokenizer: bytes, facts: LanguageFacts, turns: bool, template: str | None = None
) -> bytes:
    """Packs a model.

    Args:
        model: of `language_litert.lower_language`, with a cache that is as long as the context on every
            layer: LiteRT-LM takes the shortest one for what there is room for.
        tokenizer: a `tokenizer.json`.
        facts: of the model.
        turns: whether it was taught to chat in Gemma's turns; a base model gets the bare text.
        template: the chat template of one that was taught other turns, which LiteRT-LM renders.

    Raises:
        UsageError: LiteRT-LM's builder is not installed.
    """
    check_installed()
    import litert_lm_builder as builder

    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(scratch)
        parts = {
            "model.tflite": model, "tokenizer.json": tokenizer,
            "metadata.pb": _metadata(facts, turns, template).SerializeToString(),
        }  # fmt: skip
        for name, data in parts.items():
            (folder / name).write_bytes(data)
        made = builder.LitertLmFileBuilder()
        made.add_system_metadata(builder.Metadata("Authors", "paredown", builder.DType.STRING))
        made.add_llm_metadata(str(folder / "metadata.pb"))
        made.add_hf_tokenizer(str(folder / "tokenizer.json"))
        made.add_tflite_model(str(folder / "model.tflite"), builder.TfLiteModelType.PREFILL_DECODE)
        stream = io.BytesIO()
        made.build(stream)
        return stream.getvalue()


def check_installed() -> None:
    """Refuses where LiteRT-LM's builder is missing.

    Raises:
        UsageError: it is.
    """
    if find_spec("litert_lm_builder") is None:
        raise UsageError("LiteRT-LM's builder is not installed", hint="pip install litert-lm-builder")


def _metadata(facts: LanguageFacts, turns: bool, template: str | None) -> Any:
    from litert_lm_builder.runtime.proto import llm_metadata_pb2, llm_model_type_pb2

    metadata = llm_metadata_pb2.LlmMetadata()
    metadata.start_token.token_ids.ids.append(facts.bos)
    for token in facts.eos:
        metadata.stop_tokens.add().token_ids.ids.append(token)
    metadata.max_num_tokens = facts.context
    gemma, generic = llm_model_type_pb2.Gemma3(), llm_model_type_pb2.GenericModel()
    kind = {"gemma3": gemma} if turns else {"generic_model": generic}
    metadata.llm_model_type.CopyFrom(llm_model_type_pb2.LlmModelType(**kind))
    if template is not None:
        metadata.jinja_prompt_template = template
    for name, (prefix, suffix) in TURNS.items() if turns else ():
        affixes = getattr(metadata.prompt_templates, name)
        affixes.prefix, affixes.suffix = prefix, suffix
    return metadata
