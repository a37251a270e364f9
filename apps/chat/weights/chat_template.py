"""A model's own chat template: found, rendered as transformers does, and made the turns that a device sets.

A template is a program (jinja2) of whoever published the model; it runs here, in a sandbox, never on a
device. What it writes around the texts of a chat is taken from rendered samples; further samples, in text and
in tokens, then show that nothing else was in it. A template that does more than that is refused by name.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paredown.apps.chat.device.tokens.tokens import Tokens
from paredown.apps.chat.device.tokens.turns import Part, Turns
from paredown.apps.chat.network.config import read_object
from paredown.targets.errors import InputError

#: Stand for texts: of a private area of Unicode, so that no template has them or takes them for white space.
_USER, _MODEL = "\ue000{}\ue001", "\ue002{}\ue003"
_TODAY = "\ue004"
_HINT = "give the model a chat_template.jinja of plain turns, or take its template out to continue texts"
#: Texts that a template could treat in another way than the placeholders.
_SAMPLES = (
    ("Hello", "Hi! How are you?"),
    ("  spaces around \n", "one\n\ntwo"),
    ("{{ braces }} {% x %} 'quotes' \"double\" <tag> &amp;", "- a\n- b"),
    ("naïve 漢字 \U0001f469\u200d\U0001f467", "é"),
    ("a<think>b</think>c", "<think>why</think>\n\nso"),
    ("the last", ""),
)


def find_template(path: Path) -> str | None:
    """A model's chat template: instruction-tuned ones have it, base models continue plain text.

    A folder's is in chat_template.jinja, else in tokenizer_config.json, else in chat_template.json, as
    transformers reads them.

    Raises:
        InputError: its files are broken.
    """
    if not path.is_dir():
        from paredown.apps.chat.weights.gguf import contents, read_gguf

        reader, key = read_gguf(path), "tokenizer.chat_template"
        return _text(contents(reader, key, path), path) if key in reader.fields else None
    file = path / "chat_template.jinja"
    if file.exists():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the chat template: {error}", where=file) from error
    for name in ("tokenizer_config.json", "chat_template.json"):
        if (path / name).exists() and (found := read_object(path / name).get("chat_template")) is not None:
            return _text(found, path / name)
    return None


def named_tokens(path: Path, tokens: Tokens) -> dict[str, str]:
    """What templates call `bos_token` and the like: of tokenizer_config.json, else Gemma's own."""
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    if path.is_dir():
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            table = read_object(path / name) if (path / name).exists() else {}
            for key, value in table.items():
                text = value.get("content") if isinstance(value, dict) else value
                if key.endswith("_token") and isinstance(text, str):
                    names[key] = text
        return names
    from paredown.apps.chat.weights.gguf import metadata, read_gguf

    numbers = metadata(read_gguf(path), path)
    texts = {number: name for name, number in tokens.special.items()}
    for key, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        number = numbers.get(f"tokenizer.ggml.{theirs}_token_id")
        if number in texts:
            names[f"{key}_token"] = texts[number]
    return names


def find_turns(path: Path, tokenizer: bytes, tokens: Tokens) -> Turns | None:
    """The turns of a model's chats; None of one that was taught none.

    Args:
        path: of the model.
        tokenizer: its tokenizer.json.
        tokens: the same, as the device has it.

    Raises:
        InputError: its template is broken, or does more than to put turns around texts.
    """
    template = find_template(path)
    if template is None:
        return None
    return compiled(template, named_tokens(path, tokens), tokenizer, tokens, path)


class Template:
    """A chat template, rendered as `apply_chat_template` of transformers renders it.

    Args:
        source: jinja2.
        names: `bos_token` and the like.
        where: names the model in errors.

    Raises:
        InputError: it is no template.
    """

    def __init__(self, source: str, names: Mapping[str, str], where: object) -> None:
        import jinja2
        from jinja2 import ext, nodes
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Generation(ext.Extension):
            """What the model is to say is marked so for training; the marks say nothing."""

            tags = {"generation"}  # noqa: RUF012 -- as jinja2 wants it

            def parse(self, parser: Any) -> Any:
                line = next(parser.stream).lineno
                body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
                return nodes.Scope(body, lineno=line)

        def refuse(message: str) -> None:
            raise jinja2.TemplateError(message)

        def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
            return json.dumps(value, ensure_ascii=ensure_ascii, **options)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
        )
        environment.filters["tojson"] = tojson
        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = lambda form: _TODAY
        self._names, self._where, self._errors = names, where, jinja2.TemplateError
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            what = f"its chat template is broken: {_in_a_line(error)}"
            raise InputError(what, where=where, hint=_HINT) from error

    def render(self, texts: Sequence[str]) -> str:
        """The prompt that asks for an answer.

        Args:
            texts: the user's and the model's in turn; the last one is the user's.

        Raises:
            InputError: the template refuses these turns, or writes the date.
        """
        messages = [
            {"role": "assistant" if number % 2 else "user", "content": text}
            for number, text in enumerate(texts)
        ]
        try:
            text = self._template.render(messages=messages, add_generation_prompt=True, **self._names)
        except (self._errors, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
            what = f"its chat template fails on plain turns: {_in_a_line(error)}"
            raise InputError(what, where=self._where, hint=_HINT) from error
        if _TODAY in text:
            raise InputError("its chat template writes the date", where=self._where, hint=_HINT)
        return text


def compiled(source: str, names: Mapping[str, str], tokenizer: bytes, tokens: Tokens, where: object) -> Turns:
    """The turns that a template puts around texts.

    Args:
        source: jinja2.
        names: `bos_token` and the like.
        tokenizer: the model's tokenizer.json.
        tokens: the same, as the device has it.
        where: names the model in errors.

    Raises:
        InputError: it is broken, or does more than that.
    """
    template = Template(source, names, where)
    users, models = ([form.format(n) for n in range(3)] for form in (_USER, _MODEL))
    said = template.render([users[0], models[0], users[1], models[1], users[2]])
    pieces: list[str] = []
    for text in (users[0], models[0], users[1], models[1], users[2]):
        if said.count(text) != 1:
            raise _more(f"it writes a text of the chat {said.count(text)} times", where)
        before, said = said.split(text)
        pieces.append(before)
    first, ask, between, *_ = pieces
    generation = (
        said  # what asks for the last answer; models begin theirs with the white space that is missing
    )
    if not ask.startswith(generation) or ask[len(generation) :].strip():
        raise _more("an earlier answer begins in another way than a new one", where)
    over, rest = _answer_end(_parts(between, tokens.special))
    if not "".join(map(str, over)).strip():
        raise _more("nothing ends an answer", where)
    start, end, lead = _common_end(_parts(first, tokens.special), rest)
    end = _joined(over, end)
    strip = _spaced(users[0]) not in template.render([_spaced(users[0])])
    turns = Turns(start, lead, _parts(generation, tokens.special), end, strip)
    _prove(template, turns, ask[len(generation) :], tokenizer, tokens, where)
    return turns


def _prove(
    template: Template, turns: Turns, begun: str, tokenizer: bytes, tokens: Tokens, where: object
) -> None:
    """Sample chats: the turns have to be what the template writes, in text and in tokens.

    Args:
        template: of the model.
        turns: made of it.
        begun: white space that an answer begins with.
        tokenizer: the model's tokenizer.json.
        tokens: the same, as the device has it.
        where: names the model in errors.
    """
    from tokenizers import Tokenizer

    whole, own = Tokenizer.from_buffer(tokenizer), tokens.with_turns(turns)
    names = {token: name for name, token in tokens.special.items()}
    start, lead, ask, end = (
        "".join(part if isinstance(part, str) else names[part] for part in parts)
        for parts in (turns.start, turns.lead, turns.ask, turns.end)
    )
    spaced = [_USER.format(0), _spaced(_MODEL.format(0)), _USER.format(1)]
    strips = spaced[1] not in template.render(spaced)

    def asked(text: str) -> str:
        return f"{lead}{text.strip() if turns.strip else text}{ask}"

    for count in range(len(_SAMPLES)):
        texts: list[str] = []
        wanted = start
        for user, model in _SAMPLES[:count]:
            texts += [user, model]
            wanted += f"{asked(user)}{begun}{model.strip() if strips else model}{end}"
        user = _SAMPLES[count][0]
        if template.render([*texts, user]) != wanted + asked(user):
            raise _more(f"a chat of {count + 1} turns is not its parts", where)
        for before, tokens_before in ((start, own.start), (end, own.turn_end)):
            found = whole.encode(before + asked(user), add_special_tokens=False).ids
            if found != [*tokens_before, *own.user_turn(user)]:
                raise _more("its turns and its texts share tokens", where)


def _answer_end(parts: tuple[Part, ...]) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    """What ends an answer, a token or a line, and what follows it: a chat can begin like that, too."""
    if not parts or isinstance(parts[0], int):
        return parts[:1], parts[1:]
    found = re.match(r"\s*[^\n]*\s*", parts[0])
    assert found is not None  # it matches nothing, too
    rest = parts[0][found.end() :]
    return (found[0],), ((rest, *parts[1:]) if rest else parts[1:])


def _joined(parts: tuple[Part, ...], more: tuple[Part, ...]) -> tuple[Part, ...]:
    """One after the other; texts beside each other are one."""
    if parts and more and isinstance(parts[-1], str) and isinstance(more[0], str):
        return (*parts[:-1], parts[-1] + more[0], *more[1:])
    return (*parts, *more)


def _common_end(
    first: tuple[Part, ...], other: tuple[Part, ...]
) -> tuple[tuple[Part, ...], tuple[Part, ...], tuple[Part, ...]]:
    """Both without the end that they share, and that."""
    same = 0
    while same < min(len(first), len(other)) and first[-1 - same] == other[-1 - same]:
        same += 1
    one, two = first[: len(first) - same], other[: len(other) - same]
    shared = first[len(first) - same :]
    if one and two and isinstance(one[-1], str) and isinstance(two[-1], str):
        text = os.path.commonprefix((one[-1][::-1], two[-1][::-1]))[::-1]
        if text:
            one, two = (_cut(parts, len(text)) for parts in (one, two))
            shared = (text, *shared)
    return one, two, shared


def _cut(parts: tuple[Part, ...], count: int) -> tuple[Part, ...]:
    """Parts whose last one, a text, ends so much earlier."""
    left = str(parts[-1])[:-count]
    return (*parts[:-1], left) if left else parts[:-1]


def _parts(text: str, special: Mapping[str, int]) -> tuple[Part, ...]:
    """A text cut at its special tokens, the longest first as `tokenizers` does."""
    pattern = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
    return tuple(special.get(piece, piece) for piece in re.split(f"({pattern})", text) if piece)


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _spaced(text: str) -> str:
    return f"\n {text} \n"


def _text(found: Any, where: object) -> str:
    """A template as files have it: its text, or a list of named ones of which "default" counts."""
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    if not isinstance(found, str):
        raise InputError("`chat_template` is no text, and no list with one named default", where=where)
    return found


def _more(what: str, where: object) -> InputError:
    line = f"its chat template does more than to put turns around texts: {what}"
    return InputError(line, where=where, hint=_HINT)
