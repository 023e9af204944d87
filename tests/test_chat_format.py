"""chat_format against an oracle written out by hand, and its invariants on arbitrary conversations."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.chat_format import fit, parse_completion, render_conversation, render_prompt
from nanochat.command import UserError
from nanochat.conversation import Conversation, Message, Part
from nanochat.tokenizer import RustBPETokenizer

MARKS = ["user_start", "user_end", "assistant_start", "assistant_end"]
MARKS += ["python_start", "python_end", "output_start", "output_end"]
SPECIALS = [f"<|{name}|>" for name in ["bos", *MARKS]]
BOS, USER, USER_END, ASSISTANT, ASSISTANT_END, PYTHON, PYTHON_END, OUTPUT, OUTPUT_END = range(256, 265)


class ByteEncoder:
    """One id per byte; the nine control tokens behind them."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_special(self, name: str) -> int:
        return 256 + SPECIALS.index(name)

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")


ENCODER = ByteEncoder()

# Texts that spell control tokens are as likely as others.
texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.lists(st.sampled_from([*SPECIALS, "x", "<|", "|>", "\n"]), max_size=4).map("".join),
)
parts = st.lists(st.builds(Part, st.sampled_from(["text", "python", "python_output"]), texts), max_size=5)
assistants = st.one_of(texts, parts).map(lambda content: Message("assistant", content))
users = texts.map(lambda text: Message("user", text))


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    messages = [Message("system", draw(texts))] if draw(st.booleans()) else []
    for turn in range(draw(st.integers(1, 5))):
        messages.append(draw(users if turn % 2 == 0 else assistants))
    return Conversation(messages)


def joined(parts: list[Part]) -> list[Part]:
    """Neighbouring texts as one, empty ones away: all that rendering may lose."""
    result: list[Part] = []
    for part in parts:
        if part.type == "text" and result and result[-1].type == "text":
            result[-1] = Part("text", result[-1].text + part.text)
        elif part.type != "text" or part.text:
            result.append(part)
    return [part for part in result if part.type != "text" or part.text]


def test_a_conversation_is_rendered_as_written_out_by_hand() -> None:
    conversation = Conversation(
        [
            Message("user", "6*7"),
            Message(
                "assistant", [Part("text", "a"), Part("python", "6"), Part("python_output", "42"), Part("text", "!")]
            ),
            Message("user", "ok"),
            Message("assistant", "by"),
        ]
    )
    ids, mask = render_conversation(conversation, ENCODER)
    said, heard = 1, 0
    expected = [
        (BOS, heard),
        (USER, heard),
        *[(ord(c), heard) for c in "6*7"],
        (USER_END, heard),
        (ASSISTANT, heard),
        (ord("a"), said),
        (PYTHON, said),
        (ord("6"), said),
        (PYTHON_END, said),
        (OUTPUT, heard),
        *[(ord(c), heard) for c in "42"],
        (OUTPUT_END, heard),
        (ord("!"), said),
        (ASSISTANT_END, said),
        (USER, heard),
        *[(ord(c), heard) for c in "ok"],
        (USER_END, heard),
        (ASSISTANT, heard),
        *[(ord(c), said) for c in "by"],
        (ASSISTANT_END, said),
    ]
    assert list(zip(ids, mask, strict=True)) == expected


def test_a_system_message_stands_in_front_of_the_first_user_text_only() -> None:
    turns = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    with_system = Conversation([Message("system", "Be brief."), *turns])
    merged = Conversation([Message("user", "Be brief.\n\na"), *turns[1:]])
    assert render_conversation(with_system, ENCODER) == render_conversation(merged, ENCODER)
    assert render_prompt(with_system, ENCODER) == render_prompt(merged, ENCODER)
    assert [message.role for message in with_system.messages] == ["system", "user", "assistant", "user"]
    assert turns[0].content == "a"


@given(conversations())
def test_the_mask_is_one_exactly_on_what_the_assistant_says(conversation: Conversation) -> None:
    ids, mask = render_conversation(conversation, ENCODER, max_tokens=10_000)
    # An automaton of its own that walks over the ids; "heard" covers the user, the tool and the marks around them.
    state, expected = "heard", []
    for token in ids:
        if token in (BOS, USER, USER_END, ASSISTANT, OUTPUT, OUTPUT_END):
            expected.append(0)
            state = "said" if token in (ASSISTANT, OUTPUT_END) else "heard"
        else:
            expected.append(int(state == "said"))
            state = "heard" if token == ASSISTANT_END else state
    assert mask == expected
    said = sum(
        len(part.text.encode()) + (2 if part.type == "python" else 0)
        for message in conversation.messages
        if message.role == "assistant"
        for part in message.parts
        if part.type != "python_output"
    )
    assert sum(mask) == said + sum(message.role == "assistant" for message in conversation.messages)


@given(conversations())
def test_no_text_becomes_control(conversation: Conversation) -> None:
    ids, _ = render_conversation(conversation, ENCODER, max_tokens=10_000)
    control = [token for token in ids if token >= 256]
    expected = [BOS]
    for message in conversation.messages:
        if message.role == "user":
            expected += [USER, USER_END]
        elif message.role == "assistant":
            marks = {"text": [], "python": [PYTHON, PYTHON_END], "python_output": [OUTPUT, OUTPUT_END]}
            expected += [ASSISTANT, *(mark for part in message.parts for mark in marks[part.type]), ASSISTANT_END]
    assert control == expected


@given(conversations())
def test_the_prompt_is_the_beginning_of_the_conversation(conversation: Conversation) -> None:
    """The model is asked in the very ids it was trained on."""
    prompt = render_prompt(conversation, ENCODER)
    answered = conversation.messages
    if answered[-1].role != "assistant":
        answered = [*answered, Message("assistant", "yes")]
    ids, _ = render_conversation(Conversation(answered), ENCODER, max_tokens=10_000)
    assert ids[: len(prompt)] == prompt
    assert parse_completion(ids[len(prompt) :], ENCODER) == joined(answered[-1].parts)


@given(conversations(), st.integers(1, 80))
def test_an_over_long_conversation_is_cropped(conversation: Conversation, max_tokens: int) -> None:
    ids, mask = render_conversation(conversation, ENCODER, max_tokens=10_000)
    cropped = render_conversation(conversation, ENCODER, max_tokens=max_tokens)
    assert cropped == (ids[:max_tokens], mask[:max_tokens])


def test_mask_all_trains_on_every_token() -> None:
    conversation = Conversation([Message("user", "a"), Message("assistant", [Part("python_output", "1")])])
    ids, mask = render_conversation(conversation, ENCODER, mask_all=True)
    assert ids == render_conversation(conversation, ENCODER)[0]
    assert mask == [1] * len(ids)


@pytest.fixture(scope="module")
def tokenizer() -> RustBPETokenizer:
    """A real one, whose vocabulary has whole words that look like control tokens."""
    return RustBPETokenizer.train_from_iterator([" ".join(SPECIALS * 50), "the cat sat on the mat " * 50], 400)


@given(conversation=conversations(), text=texts)
def test_the_same_holds_with_a_real_tokenizer(
    tokenizer: RustBPETokenizer, conversation: Conversation, text: str
) -> None:
    first_special = min(tokenizer.encode_special(name) for name in SPECIALS)
    assert all(token < first_special for token in tokenizer.encode(text))
    ids, mask = render_conversation(conversation, tokenizer, max_tokens=10_000)
    by_bytes, _ = render_conversation(conversation, ENCODER, max_tokens=10_000)
    names = {tokenizer.encode_special(name): 256 + index for index, name in enumerate(SPECIALS)}
    assert [names[token] for token in ids if token >= first_special] == [token for token in by_bytes if token >= 256]
    assert len(mask) == len(ids)
    if conversation.messages[-1].role == "assistant":
        completion = ids[len(render_prompt(conversation, tokenizer)) :]
        assert parse_completion(completion, tokenizer) == joined(conversation.messages[-1].parts)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([], []),
        ([ASSISTANT_END, ord("x")], []),
        ([ord("a"), BOS, ord("x")], [Part("text", "a")]),
        ([PYTHON, ord("1")], [Part("python", "1")]),
        ([PYTHON, PYTHON_END], [Part("python", "")]),
        ([PYTHON, ord("1"), OUTPUT, ord("2"), OUTPUT_END], [Part("python", "1"), Part("python_output", "2")]),
        ([PYTHON_END, ord("a"), USER, ord("b"), OUTPUT_END, ord("c")], [Part("text", "abc")]),
    ],
)
def test_whatever_a_model_samples_can_be_parsed(ids: list[int], expected: list[Part]) -> None:
    assert parse_completion(ids, ENCODER) == expected


@given(st.lists(st.integers(0, 264)))
def test_parsing_never_fails_and_never_shows_control_ids(ids: list[int]) -> None:
    text = "".join(part.text for part in parse_completion(ids, ENCODER))
    assert not any(name in text for name in SPECIALS) or b"<|" in bytes(t for t in ids if t < 256)


def test_a_malformed_conversation_is_refused() -> None:
    with pytest.raises(UserError, match="role is 'assistant', expected 'user'"):
        render_conversation(Conversation([Message("assistant", "hi")]), ENCODER)
    with pytest.raises(UserError, match="at least one message"):
        render_prompt(Conversation([]), ENCODER)


def messages_of(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in conversation.messages]


def talk(*texts: str, system: str | None = None) -> Conversation:
    """Question, answer, question, ..."""
    turns = [Message("assistant" if index % 2 else "user", text) for index, text in enumerate(texts)]
    return Conversation([*([Message("system", system)] if system is not None else []), *turns])


def test_what_fits_is_left_alone_and_what_does_not_loses_its_oldest_turns_but_the_first() -> None:
    whole = talk("first", "yes", "second", "b" * 40, "third", "no", "last", system="be kind")
    needed = len(render_prompt(whole, ENCODER))
    assert messages_of(fit(whole, ENCODER, needed)) == messages_of(whole)
    shorter = fit(whole, ENCODER, needed - 1)
    assert [text for _, text in messages_of(shorter)] == ["be kind", "first", "yes", "third", "no", "last"]
    assert [text for _, text in messages_of(fit(whole, ENCODER, 39))] == ["be kind", "first", "yes", "last"]


def test_the_first_turn_goes_when_it_leaves_no_room_for_the_last_question() -> None:
    whole = talk("f" * 50, "yes", "second", "no", "l" * 20, system="kind")
    kept = fit(whole, ENCODER, len(render_prompt(whole, ENCODER)) - 50)
    assert [text for _, text in messages_of(kept)] == ["kind", "second", "no", "l" * 20]


def test_a_question_that_alone_is_too_long_is_one_sentence() -> None:
    with pytest.raises(
        UserError, match=r"the last message has 34 tokens, .* at most 33 fit before the answer: shorten"
    ):
        fit(talk("first", "yes", "l" * 30), ENCODER, 33)


@given(conversations(), st.integers(1, 200))
def test_what_fit_gives_fits_and_is_the_newest_of_the_conversation(conversation: Conversation, room: int) -> None:
    try:
        kept = fit(conversation, ENCODER, room)
    except UserError:
        questions = [m for m in conversation.messages if m.role == "user"]
        alone = [m for m in conversation.messages if m.role == "system"] + questions[-1:]
        assert len(render_prompt(Conversation(alone), ENCODER)) > room
        return
    assert len(render_prompt(kept, ENCODER)) <= room
    messages = list(conversation.messages)
    if messages[-1].role == "assistant":
        messages.pop()
    assert all(any(message is one for one in messages) for message in kept.messages)
    assert kept.messages[-1] is messages[-1]
    if len(render_prompt(conversation, ENCODER)) <= room:
        assert kept.messages == messages
