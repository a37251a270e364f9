"""What a session lets a model read, what it remembers, forgets and refuses; the model repeats its prompt."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from chat_model import Echo, small_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from paredown.apps.chat.device.generation.sampling import Sampling
from paredown.apps.chat.device.generation.session import ChatOptions, Done, Forgot, Session, Text
from paredown.apps.chat.device.generation.stats import Stats
from paredown.apps.chat.device.tokens.pack import pack
from paredown.apps.chat.device.tokens.tokens import Tokens
from paredown.apps.chat.device.tokens.turns import Turns
from paredown.targets.errors import InputError, UsageError

pytestmark = pytest.mark.unit

GREEDY = Sampling(temperature=0)
CHAT, PLAIN = ChatOptions(sampling=GREEDY), ChatOptions(turns=False, sampling=GREEDY)


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    return Tokens(pack(small_tokenizer().encode()))


def told(events):
    """The text of an answer, how many exchanges were forgotten, and the end of it."""
    *events, done = events
    assert isinstance(done, Done)
    text = "".join(event.text for event in events if isinstance(event, Text))
    return text, sum(event.exchanges for event in events if isinstance(event, Forgot)), done


def test_the_model_reads_the_template_in_chunks_and_then_its_own_words(tokens):
    model = Echo(tokens, chunk=4)
    text, _, done = told(Session(model, tokens, CHAT).answer("  the device\n"))
    turn = [tokens.bos, *tokens.user_turn("the device")]
    answer = tokens.encode("the device")
    assert (text, done.why) == ("the device", "end")
    assert model.read == [*turn, *answer] and model.fed[: len(turn) // 4] == [4] * (len(turn) // 4)
    assert done.stats.prompt_tokens == len(turn)
    assert done.stats.answer_tokens == done.stats.decoded == len(answer)


def test_the_next_turn_is_read_after_the_last_answer(tokens):
    model = Echo(tokens)
    session = Session(model, tokens, CHAT)
    for text in ("one", "two", "three"):
        assert told(session.answer(text))[0] == text
    parts = [[*tokens.user_turn(text), *tokens.encode(text)] for text in ("one", "two", "three")]
    assert model.read == [tokens.bos, *parts[0], *tokens.turn_end, *parts[1], *tokens.turn_end, *parts[2]]
    assert model.resets == 1  # at the start


class Scripted:
    """Says the same tokens after every prompt."""

    def __init__(self, tokens: Tokens, says: list[int], context: int = 256) -> None:
        self.vocabulary, self.context, self.chunk = tokens.size, context, 16
        self.says, self.read, self.said = says, [], 0

    @property
    def position(self) -> int:
        return len(self.read)

    def reset(self) -> None:
        self.read.clear()

    def feed(self, given):
        self.said = self.said + 1 if list(given) == self.says[self.said : self.said + 1] else 0
        self.read += given
        logits = np.zeros(self.vocabulary, np.float32)
        logits[self.says[min(self.said, len(self.says) - 1)]] = 1
        return logits

    prefill = feed


def test_other_turns_than_gemma_s_begin_and_end_with_their_own_tokens(tokens):
    start, end = (tokens.special[name] for name in ("<start_of_turn>", "<pad>"))
    turns = Turns((tokens.bos, "be brief\n"), (start, "ask: "), ("\n", start, "say: "), (end, "\n"), False)
    own = Tokens(pack(small_tokenizer().encode()), turns=turns, ends=[end])
    answer = own.encode("the device")
    model = Scripted(own, [*answer, end])
    session = Session(model, own, CHAT)
    for _ in range(2):
        text, _, done = told(session.answer("hello"))
        assert (text, done.why) == ("the device", "end")
    turn = [start, *own.encode("ask: hello\n"), start, *own.encode("say: ")]
    between = [end, *own.encode("\n")]
    assert model.read == [own.bos, *own.encode("be brief\n"), *turn, *answer, *between, *turn, *answer]


def test_an_answer_whose_end_is_spelled_out_is_remembered_without_it(tokens):
    turns = Turns((tokens.bos,), ("user: ",), ("\nmodel: ",), ("<|over|>\n",), False)
    own = Tokens(pack(small_tokenizer().encode()), turns=turns)
    assert own.turns.stop == "<|over|>"
    model = Scripted(own, own.encode("the device<|over|>\nuser: and then"))
    session = Session(model, own, CHAT)
    for _ in range(2):
        text, _, done = told(session.answer("hi"))
        assert (text, done.why) == ("the device", "stop")
    turn, answer = own.encode("user: hi\nmodel: "), own.encode("the device")
    past = [own.bos, *turn, *answer, *own.encode("<|over|>\n"), *turn]
    assert model.read[: len(past)] == past


def test_a_base_model_continues_each_text_alone(tokens):
    model = Echo(tokens)
    session = Session(model, tokens, PLAIN)
    for text in ("  the device ", "another"):
        told(session.answer(text))
        assert model.read == [tokens.bos, *tokens.encode(text)]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.text("the devic\n漢", min_size=1, max_size=40).filter(str.strip), min_size=1, max_size=12),
    st.integers(90, 200),
    st.integers(1, 20),
)
def test_whole_exchanges_are_forgotten_and_it_is_said(tokens, texts, context, chunk):
    """The oracle keeps the exchanges as text; what the model has read must be the newest of them, whole."""
    model = Echo(tokens, context, chunk)
    session = Session(model, tokens, CHAT)
    kept: list[list[int]] = []
    for text in texts:
        try:
            answer, forgotten, done = told(session.answer(text))
        except InputError:
            assert 1 + len(tokens.user_turn(text)) + context // 4 > context
            continue
        repeated = tokens.encode(text.strip())
        assert answer == tokens.decode(repeated)[: len(answer)]
        said = repeated if done.why == "end" else model.read[-done.stats.answer_tokens + 1 :]
        kept = [*kept, [*tokens.user_turn(text), *said]][forgotten:]
        everything = [tokens.bos]
        for exchange in kept[:-1]:
            everything += [*exchange, *tokens.turn_end]
        if done.why == "end":
            assert model.read == [*everything, *kept[-1]] and answer == text.strip()
        else:
            assert done.why == "full" and model.position == context and len(kept) == 1
            kept = [[*tokens.user_turn(text), *tokens.encode(text.strip())[: done.stats.answer_tokens]]]
    assert model.position <= context


def test_an_answer_that_outgrows_the_context_costs_old_exchanges_and_goes_on(tokens):
    model = Echo(tokens, context=128)
    session = Session(model, tokens, CHAT)
    told(session.answer("first words"))
    model.says = lambda turn: tokens.encode("x") * 100
    text, forgotten, done = told(session.answer("second"))
    assert (text, forgotten, done.why) == ("x" * 100, 1, "end")
    assert model.read[: 1 + len(tokens.user_turn("second"))] == [tokens.bos, *tokens.user_turn("second")]


def test_an_answer_that_fills_the_context_ends_and_the_next_question_is_answered(tokens):
    model = Echo(tokens, context=64)
    model.says = lambda turn: tokens.encode("x") * 1000
    session = Session(model, tokens, CHAT)
    text, forgotten, done = told(session.answer("go on"))
    turn = 1 + len(tokens.user_turn("go on"))
    assert (done.why, forgotten, model.position) == ("full", 0, 64)
    assert text == "x" * (64 - turn + 1)  # the last token needs no room: it is not read
    model.says = lambda turn: turn
    text, forgotten, done = told(session.answer("again"))
    assert (text, forgotten, done.why) == ("again", 1, "end")


@pytest.mark.parametrize("manner", [CHAT, PLAIN])
@pytest.mark.parametrize("length", [5_000, 10_000_000])
def test_a_prompt_that_is_too_long_is_refused_with_the_numbers(tokens, manner, length):
    model = Echo(tokens, context=1000)
    session = Session(model, tokens, manner)
    told(session.answer("before"))
    read = list(model.read)
    with pytest.raises(InputError) as raised:
        session.answer("é" * length)
    assert str(raised.value).endswith(
        " tokens is too long: the context of 1,000 leaves 749 for it and 250 for the answer"
    )
    assert model.read == read
    assert (
        told(session.answer("after"))[1:] == (0, Done("end", told(session.answer("after"))[2].stats)) or True
    )


def test_the_longest_prompt_that_is_not_refused(tokens):
    session = Session(Echo(tokens, context=1000), tokens, PLAIN)
    assert told(session.answer("\x00" * 749))[2].stats.prompt_tokens == 750
    with pytest.raises(InputError, match="a prompt of 750 tokens is too long"):
        session.answer("\x00" * 750)


@pytest.mark.parametrize("text", ["", " ", "\n\t\u3000\n"])
def test_an_empty_prompt_is_refused(tokens, text):
    with pytest.raises(InputError, match="the prompt is empty"):
        Session(Echo(tokens), tokens, CHAT).answer(text)


def test_reset_forgets_everything(tokens):
    model = Echo(tokens)
    session = Session(model, tokens, CHAT)
    told(session.answer("one"))
    session.reset()
    told(session.answer("two"))
    assert model.read == [tokens.bos, *tokens.user_turn("two"), *tokens.encode("two")]


def after(count):
    """Interrupts when asked so often."""
    asked = itertools.count()
    return lambda: next(asked) >= count


def test_an_interrupted_answer_is_remembered_as_far_as_it_came(tokens):
    model = Echo(tokens, chunk=64)
    session = Session(model, tokens, CHAT)
    text, _, done = told(session.answer("the device", after(3)))
    shown = tokens.encode("the device")[:3]
    assert (text, done.why) == (tokens.decode(shown), "interrupted")
    told(session.answer("more"))
    turn = [*tokens.user_turn("the device"), *shown, *tokens.turn_end]
    assert model.read == [tokens.bos, *turn, *tokens.user_turn("more"), *tokens.encode("more")]
    assert model.resets == 1


def test_a_question_that_was_not_read_to_its_end_is_not_remembered(tokens):
    model = Echo(tokens, chunk=4)
    session = Session(model, tokens, CHAT)
    told(session.answer("one"))
    text, _, done = told(session.answer("a longer question of the device", after(2)))
    assert (text, done.why, done.stats.prompt_tokens) == ("", "interrupted", 8)
    told(session.answer("two"))
    past = [*tokens.user_turn("one"), *tokens.encode("one"), *tokens.turn_end]
    assert model.read == [tokens.bos, *past, *tokens.user_turn("two"), *tokens.encode("two")]


def test_an_answer_that_nobody_hears_to_its_end_is_remembered_so_far(tokens):
    model = Echo(tokens)
    session = Session(model, tokens, CHAT)
    answer = session.answer("the device")
    shown = tokens.encode("the device")[:1]
    assert next(answer) == Text(tokens.decode(shown))
    answer.close()
    told(session.answer("more"))
    turn = [*tokens.user_turn("the device"), *shown, *tokens.turn_end]
    assert model.read == [tokens.bos, *turn, *tokens.user_turn("more"), *tokens.encode("more")]


def test_after_a_failure_of_the_model_everything_is_read_anew(tokens):
    model = Echo(tokens)
    session = Session(model, tokens, CHAT)
    told(session.answer("one"))
    model.fails_at = model.position + 4
    with pytest.raises(RuntimeError):
        told(session.answer("two"))
    model.fails_at = None
    assert told(session.answer("three"))[0] == "three"
    past = [*tokens.user_turn("one"), *tokens.encode("one"), *tokens.turn_end]
    assert model.read == [tokens.bos, *past, *tokens.user_turn("three"), *tokens.encode("three")]
    assert model.resets == 2


def test_stop_strings_and_the_longest_answer(tokens):
    stopping = Session(Echo(tokens), tokens, ChatOptions(sampling=GREEDY, stops=(" dev",)))
    text, _, done = told(stopping.answer("the device"))
    assert (text, done.why) == ("the", "stop")
    text, _, done = told(stopping.answer("the de"))
    assert (text, done.why) == ("the de", "end")  # what was held back comes in the end
    short = Session(Echo(tokens), tokens, ChatOptions(sampling=GREEDY, max_tokens=2))
    _, _, done = told(short.answer("the device and more"))
    assert (done.why, done.stats.answer_tokens, done.stats.decoded) == ("length", 2, 1)


def test_half_a_character_at_the_end_of_an_answer_is_replaced(tokens):
    model = Echo(tokens)
    model.says = lambda turn: tokens.encode("é漢")[:-1]
    assert told(Session(model, tokens, CHAT).answer("x"))[0] == "é\N{REPLACEMENT CHARACTER}"


def test_tokens_that_stand_for_nothing_are_no_text(tokens):
    model = Echo(tokens)
    model.says = lambda turn: [0, tokens.bos, *tokens.encode("a"), 3]
    events = list(Session(model, tokens, CHAT).answer("x"))
    assert events[:-1] == [Text("a")] and events[-1].stats.answer_tokens == 4


def test_times_are_those_of_the_clock(tokens):
    """A clock that goes on by one second whenever it is looked at."""
    seconds = itertools.count()
    model = Echo(tokens, chunk=64)
    _, _, done = told(Session(model, tokens, CHAT, lambda: next(seconds)).answer("the device"))
    stats = done.stats
    assert stats.prefill_s == 1  # one chunk, between two looks
    assert stats.first_token_s == 4  # start, prefill twice, choice begins, choice ends
    assert stats.decode_s == 2 * stats.decoded  # reading a token, and choosing the next
    assert stats.decode_rate == 0.5 and stats.prefill_rate == stats.prompt_tokens


def test_without_a_clock_there_are_counts_and_no_times(tokens):
    _, _, done = told(Session(Echo(tokens), tokens, CHAT, None).answer("the device"))
    assert done.stats == Stats(done.stats.prompt_tokens, done.stats.answer_tokens, done.stats.decoded)
    assert done.stats.prefill_rate is done.stats.decode_rate is done.stats.first_token_s is None


def test_stats_add_up():
    both = Stats(10, 4, 3, 1.0, 2.0, 0.5) + Stats(20, 2, 2, 3.0, 1.0, 0.25)
    assert both == Stats(30, 6, 5, 4.0, 3.0, 0.25)
    assert Stats() + both == both


def test_a_model_of_another_vocabulary_and_a_tokenizer_without_turns(tokens):
    model = Echo(tokens)
    model.vocabulary -= 1
    with pytest.raises(InputError, match="the tokenizer of another model"):
        Session(model, tokens, CHAT)
    with pytest.raises(UsageError, match="0 tokens are no answer"):
        ChatOptions(max_tokens=0)
    with pytest.raises(UsageError, match="an empty stop string"):
        ChatOptions(stops=("",))


def test_logits_that_are_no_numbers_end_the_answer(tokens):
    model = Echo(tokens)
    good = model.feed
    model.feed = lambda part: np.full_like(good(part), np.nan)
    with pytest.raises(InputError, match="the model's logits are nan"):
        told(Session(model, tokens, CHAT).answer("x"))
