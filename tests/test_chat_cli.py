"""The terminal chat, with an engine that recites; and the real thing on a tiny model."""

import io
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_chat import FIRST_CHARACTER, FakeEngine, FakeTokenizer

from nanochat.conversation import Conversation, Message, Part
from nanochat.terminal import Screen
from scripts.chat_cli import Chat, Config, talk

ROOT = Path(__file__).parent.parent
LONG_SECONDS = 300  # a test that would hang fails after this


def chat_with(engine: FakeEngine, plain: bool = False, **flags: object) -> Chat:
    return Chat(engine, FakeTokenizer(), Config(**flags), plain=plain)


def said(chat: Chat, *lines: str | type[BaseException], as_json: bool = False) -> tuple[str, str]:
    """The answers and the notes when a person types these lines; an exception stands for a key such as Ctrl-C."""
    typed = iter([*lines, EOFError])

    def read(prompt: str) -> str:
        line = next(typed)
        if isinstance(line, str):
            return line
        raise line

    out, notes = io.StringIO(), io.StringIO()
    talk(chat, read, Screen(out, notes, as_json=as_json))
    return out.getvalue(), notes.getvalue()


def prompts(engine: FakeEngine) -> list[str]:
    """What the model reads, a bar for every run of control tokens."""
    shown = ["".join("|" if i < FIRST_CHARACTER else chr(i - FIRST_CHARACTER) for i in ids) for ids in engine.prompts]
    return [re.sub(r"\|+", "|", text) for text in shown]


def test_a_question_is_answered_and_ctrl_d_ends():
    assert said(chat_with(FakeEngine()), "What is the capital of France?") == ("The capital of France is Paris.\n", "")


def test_the_next_turn_sees_the_last_ones_with_their_tool_calls():
    engine = FakeEngine()
    answers, _ = said(chat_with(engine), "What is 137 * 46?", "Sure?")
    assert "Let me work that out.\n[137*46 = 6302]137 times 46 is 6302.\n" in answers
    assert prompts(engine)[1] == "|What is 137 * 46?|Let me work that out.\n|137*46|6302|137 times 46 is 6302.|Sure?|"


def test_a_text_of_several_lines_is_one_question():
    engine = FakeEngine()
    said(chat_with(engine), "one\\", "two", "  three  ")
    assert prompts(engine)[0] == "|one\ntwo|"
    assert prompts(engine)[1].endswith("|three|")


def test_reset_starts_a_new_chat_and_keeps_the_system_text():
    engine = FakeEngine()
    said(chat_with(engine, system="Be brief."), "hello", "/reset", "again")
    assert [prompt.replace("\n", " ") for prompt in prompts(engine)] == ["|Be brief.  hello|", "|Be brief.  again|"]


def test_the_system_text_is_said_first_and_can_be_taken_away():
    engine = FakeEngine()
    _, notes = said(chat_with(engine), "/system", "/system Speak  German.", "/system", "hi", "/system -", "ho")
    assert notes.splitlines() == [
        "(no system text)", "(system text: Speak  German.)", "(system text: Speak  German.)", "(no system text)",
    ]  # fmt: skip
    assert prompts(engine)[0].startswith("|Speak  German.\n\nhi")
    assert prompts(engine)[1].startswith("|hi|")


def test_sampling_is_changed_in_the_chat():
    engine = FakeEngine()
    _, notes = said(chat_with(engine), "/temperature 0.25", "/top_k 7", "hi", "/top_k 0", "/temperature", "ho")
    assert notes.splitlines() == ["(temperature is 0.25)", "(top_k is 7)", "(top_k is 0)", "(temperature is 0.25)"]
    assert [(one.temperature, one.top_k) for one in engine.params] == [(0.25, 7), (0.25, None)]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/temperature hot", "temperature is a number, for example /temperature 0.6"),
        ("/temperature -1", "--temperature must be at least 0, got -1.0"),
        ("/temperature nan", "--temperature must be at least 0, got nan"),
        ("/top_k 1.5", "top_k is a whole number, for example /top_k 50"),
        ("/top_k -3", "--top_k must be at least 0 (0 takes all tokens), got -3"),
        ("/save", "/save needs the name of a file, for example /save chat.json"),
        ("/save x.json", "there is nothing to save yet"),
        ("/load", "/load needs the name of a file, for example /load chat.json"),
        ("/load nowhere.json", "cannot read nowhere.json: No such file or directory"),
        ("/what now", "/what is no command; /help lists them, and a space before it makes it a question"),
    ],
)
def test_a_mistake_in_a_command_is_one_sentence_and_the_chat_goes_on(line: str, says: str):
    engine = FakeEngine()
    answers, notes = said(chat_with(engine), line, "hello")
    assert notes == f"({says})\n"
    assert answers == "You said: hello\n"
    assert (engine.params[0].temperature, engine.params[0].top_k) == (Config.temperature, Config.top_k)


def test_commands_are_no_questions_and_help_lists_them():
    engine = FakeEngine()
    answers, notes = said(chat_with(engine), "/help", "   ", "/quit", "never read")
    for name in ("/reset", "/system", "/temperature", "/top_k", "/save FILE", "/load FILE", "/help", "/quit", "Ctrl-C"):
        assert name in notes
    assert (answers, engine.prompts) == ("", [])
    said(chat_with(engine), " /etc/hosts is what?")
    assert prompts(engine) == ["|/etc/hosts is what?|"]


def test_a_chat_is_saved_and_gone_on_with(tmp_path: Path):
    first, second, file = FakeEngine(), FakeEngine(), tmp_path / "my chat.json"
    said(chat_with(first), "What is 137 * 46?", "/system Be brief.", f"/save {file}")
    assert [path.name for path in tmp_path.iterdir()] == ["my chat.json"]
    saved = Conversation.from_dict(json.loads(file.read_text(encoding="utf-8")))
    assert [message.role for message in saved.messages] == ["system", "user", "assistant"]
    _, notes = said(chat_with(second), "something else", f"/load {file}", "Sure?", "/system")
    assert f"(loaded 1 turn of {file})" in notes
    assert "(system text: Be brief.)" in notes
    assert prompts(second)[1].startswith(
        "|Be brief.\n\nWhat is 137 * 46?|Let me work that out.\n|137*46|6302|137 times"
    )
    assert prompts(second)[1].endswith("6302.|Sure?|")


def test_a_chat_of_the_page_is_loaded_and_an_open_question_left_out(tmp_path: Path):
    """The page writes an answer without a tool as a text, and training data may end with a question."""
    file = tmp_path / "page.json"
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    file.write_text(json.dumps({"messages": messages}), encoding="utf-8")
    engine = FakeEngine()
    said(chat_with(engine), f"/load {file}", "d")
    assert prompts(engine) == ["|a|b|d|"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{half", "is no saved chat, which is one JSON object"),
        (b"\xff\xfe\x00", "is no saved chat, which is one JSON object"),
        (b"[]", "a conversation needs at least one message"),
        (b'{"messages": 5}', "expected"),
        (b'[{"role": "assistant", "content": "x"}]', "role is 'assistant', expected 'user'"),
        (b'[{"role": "robot", "content": "x"}]', "role is 'robot', allowed are"),
    ],
)
def test_a_file_that_is_no_chat_is_one_sentence_and_changes_nothing(tmp_path: Path, content: bytes, says: str):
    file = tmp_path / "broken.json"
    file.write_bytes(content)
    engine = FakeEngine()
    _, notes = said(chat_with(engine), "hello", f"/load {file}", "again")
    assert says in notes
    assert notes.count("\n") == 1
    assert prompts(engine)[1] == "|hello|You said: hello|again|"


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path):
    _, notes = said(
        chat_with(FakeEngine()), "hello", f"/save {tmp_path / 'nowhere' / 'chat.json'}", f"/save {tmp_path}"
    )
    assert "chat.json: No such file or directory)" in notes
    assert notes.count("cannot write") == 2
    assert list(tmp_path.iterdir()) == []


def tells_until_ctrl_c(question: str) -> Iterator[Part]:
    yield Part("text", "I was sa")
    if question == "tell":
        signal.raise_signal(signal.SIGINT)
    yield Part("text", "ying")
    yield Part("text", " this")


def test_ctrl_c_stops_the_answer_and_not_the_chat():
    engine = FakeEngine(answer=tells_until_ctrl_c)
    answers, notes = said(chat_with(engine), "tell", "go on")
    assert answers == "I was saying\nI was saying this\n", "the step that was being computed is not torn apart"
    assert notes == "(stopped)\n"
    assert engine.cancelled == [0]
    assert prompts(engine)[1] == "|tell|I was saying|go on|"


def test_ctrl_c_before_the_first_word_forgets_the_question():
    def at_once(question: str) -> Iterator[Part]:
        if question == "tell":
            signal.raise_signal(signal.SIGINT)
        yield from [Part("text", "")] * (question == "tell")
        yield Part("text", "yes")

    engine = FakeEngine(answer=at_once)
    chat = chat_with(engine)
    chat.messages = [Message("user", "a"), Message("assistant", "b")]
    said(chat, "tell", "hello")
    assert prompts(engine)[1].startswith("|a|b|")
    assert prompts(engine)[1].endswith("|hello|")


def test_a_second_ctrl_c_waits_for_nothing():
    def stuck(question: str) -> Iterator[Part]:
        yield Part("text", "half")
        if question == "tell":
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        yield Part("text", " and half")

    engine = FakeEngine(answer=stuck)
    answers, _ = said(chat_with(engine), "tell", "go on")
    assert answers == "half\nhalf and half\n"
    assert engine.cancelled == [0]
    assert prompts(engine)[1] == "|tell|half|go on|"


def test_ctrl_c_at_the_prompt_says_how_to_end():
    assert said(chat_with(FakeEngine()), KeyboardInterrupt, "hello")[1] == "(Ctrl-D or /quit ends)\n"


def test_the_oldest_turns_are_left_out_when_the_context_is_full_and_the_first_stays():
    engine = FakeEngine(answer=lambda _: [Part("text", "ok")], context_len=52)
    _, notes = said(chat_with(engine), "a" * 8, "b" * 8, "c" * 8, "d" * 8)
    assert prompts(engine)[2:] == [f"|{'a' * 8}|ok|{'c' * 8}|", f"|{'a' * 8}|ok|{'d' * 8}|"]
    assert "the chat is longer than the model's context: it does not see 1 older turn)" in notes
    assert "it does not see 2 older turns)" in notes


def test_a_text_that_never_fits_is_refused_and_the_chat_goes_on():
    engine = FakeEngine(context_len=20)
    _, notes = said(chat_with(engine), "x" * 30, "hello")
    assert "the last message has 34 tokens" in notes
    assert "at most 19 fit before the answer: shorten it" in notes
    assert prompts(engine) == ["|hello|"]


def test_a_base_model_continues_each_text_for_itself():
    engine = FakeEngine(answer=lambda _: [Part("text", " upon a time")])
    _, notes = said(chat_with(engine, plain=True), "Once", "/path/to", "Twice", "/system x", "y" * 1000)
    assert prompts(engine) == ["|Once", "|/path/to", "|Twice"]
    assert "a base model continues one text: it has no system text" in notes
    assert "the text has 1001 tokens and the model's context is 1000; shorten it" in notes


def test_flags_reach_the_engine_and_every_turn_has_a_seed_of_its_own():
    engine = FakeEngine()
    _, notes = said(chat_with(engine, temperature=0.0, top_k=0, max_tokens=9, seed=5), "a", "b")
    first, second = engine.params
    assert (first.max_tokens, first.temperature, first.top_k, first.seed) == (9, 0.0, None, 5)
    assert second.seed == 6
    assert notes == "(the answer was cut where --max_tokens or the model's context ends)\n" * 2


def test_bytes_that_are_no_text_do_not_break_the_encoder():
    engine = FakeEngine()
    said(chat_with(engine), "caf\udce9")
    prompts(engine)[0].encode("utf-8")


def test_json_gives_one_line_for_every_answer():
    lines, notes = said(chat_with(FakeEngine()), "What is 137 * 46?", "/reset", "hello", as_json=True)
    first, second = map(json.loads, lines.splitlines())
    assert notes == "(new chat)\n"
    assert first["answer"] == "Let me work that out.\n137 times 46 is 6302."
    assert first["parts"][1:3] == [{"type": "python", "text": "137*46"}, {"type": "python_output", "text": "6302"}]
    assert first["seconds"] >= 0
    assert {name: second[name] for name in ("prompt", "answer", "finish_reason", "completion_tokens")} == {
        "prompt": "hello", "answer": "You said: hello", "finish_reason": "stop", "completion_tokens": 15,
    }  # fmt: skip
    assert second["prompt_tokens"] == len("hello") + 4
