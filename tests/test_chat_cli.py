"""The terminal chat, with an engine that recites; and the real thing on a tiny model."""

import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_chat import FIRST_CHARACTER, FakeEngine, FakeTokenizer, save_random_checkpoint

from nanochat.command import UserError
from nanochat.conversation import Part
from scripts import chat_cli
from scripts.chat_cli import Chat, Config, Screen, talk


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def chat_with(engine: FakeEngine, plain: bool = False, **flags: object) -> Chat:
    return Chat(engine, FakeTokenizer(), Config(**flags), plain=plain)


def said(chat: Chat, *lines: str | type[BaseException], out: io.StringIO | None = None) -> str:
    """What the screen shows when a person types these lines; an exception stands for a key such as Ctrl-C."""
    typed = iter([*lines, EOFError])

    def read(prompt: str) -> str:
        line = next(typed)
        if isinstance(line, str):
            return line
        raise line

    out = out or io.StringIO()
    talk(chat, read, out)
    return out.getvalue()


def prompts(engine: FakeEngine) -> list[str]:
    """What the model reads, a bar for every run of control tokens."""
    shown = ["".join("|" if i < FIRST_CHARACTER else chr(i - FIRST_CHARACTER) for i in ids) for ids in engine.prompts]
    return [re.sub(r"\|+", "|", text) for text in shown]


def test_a_question_is_answered_and_ctrl_d_ends():
    shown = said(chat_with(FakeEngine()), "What is the capital of France?")
    assert "The capital of France is Paris.\n" in shown


def test_the_next_turn_sees_the_last_ones_with_their_tool_calls():
    engine = FakeEngine()
    said(chat_with(engine), "What is 137 * 46?", "Sure?")
    assert prompts(engine)[1] == "|What is 137 * 46?|Let me work that out.\n|137*46|6302|137 times 46 is 6302.|Sure?|"


def test_clear_starts_a_new_chat():
    engine = FakeEngine()
    said(chat_with(engine), "hello", "/clear", "again")
    assert prompts(engine)[1] == "|again|"


def test_commands_are_no_questions():
    engine = FakeEngine()
    shown = said(chat_with(engine), "/help", "/what now", "   ", "/quit", "never read")
    assert "/clear" in shown
    assert "/what is no command" in shown
    assert engine.prompts == []


def test_a_tool_call_is_shown_in_brackets_and_dim_on_a_terminal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    plain = said(chat_with(FakeEngine()), "What is 137 * 46?")
    assert "Let me work that out.\n[137*46 = 6302]137 times 46 is 6302.\n" in plain
    assert "\x1b" not in plain
    on_terminal = said(chat_with(FakeEngine()), "What is 137 * 46?", out=Terminal())
    assert "\x1b[2m[137*46 = 6302]\x1b[0m137 times" in on_terminal


def test_tool_calls_in_pieces_and_without_an_answer_are_closed():
    out = io.StringIO()
    screen = Screen(out)
    for kind, text in [
        ("python", "1"), ("python", "/0"), ("text", "Hm. "),
        ("python", "1+"), ("python", "1"), ("python_output", "2"), ("python", "2*2"), ("python_output", "4"),
    ]:  # fmt: skip
        screen.show(Part(kind, text))
    screen.end()
    assert out.getvalue() == "[1/0]Hm. [1+1 = 2][2*2 = 4]\n"


def test_no_colour_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in said(chat_with(FakeEngine()), "What is 137 * 46?", out=Terminal())


def test_a_model_cannot_drive_the_terminal():
    engine = FakeEngine(answer=lambda _: iter([Part("text", "\x1b]0;title\x07\x9b2Jred\r\tümläut 👩‍🚀\n")]))
    shown = said(chat_with(engine), "hi", out=Terminal())
    assert "]0;title2Jred\tümläut 👩‍🚀\n" in shown
    assert not set("\x1b\x07\x9b\r") & set(shown)


def test_ctrl_c_stops_the_answer_and_not_the_chat():
    def stopped(question: str) -> Iterator[Part]:
        yield Part("text", "I was sa")
        if question == "tell":
            raise KeyboardInterrupt
        yield Part("text", "ying")

    engine = FakeEngine(answer=stopped)
    shown = said(chat_with(engine), "tell", "go on")
    assert "I was sa\n(stopped)" in shown
    assert "I was saying\n" in shown
    assert prompts(engine)[1] == "|tell|I was sa|go on|"


def test_ctrl_c_before_the_first_word_forgets_the_question():
    def at_once(question: str) -> Iterator[Part]:
        if question == "tell":
            raise KeyboardInterrupt
        yield Part("text", "yes")

    engine = FakeEngine(answer=at_once)
    said(chat_with(engine), "tell", "hello")
    assert prompts(engine)[1] == "|hello|"


def test_ctrl_c_at_the_prompt_says_how_to_end():
    assert "Ctrl-D or /quit ends" in said(chat_with(FakeEngine()), KeyboardInterrupt, "hello")


def test_the_oldest_turns_are_dropped_when_the_context_is_full():
    engine = FakeEngine(answer=lambda _: iter([Part("text", "ok")]), context_len=44)
    shown = said(chat_with(engine), "a" * 10, "b" * 10, "c" * 10)
    assert prompts(engine)[1:] == [f"|{'a' * 10}|ok|{'b' * 10}|", f"|{'b' * 10}|ok|{'c' * 10}|"]
    assert shown.count("1 oldest turn(s) dropped") == 1


def test_a_text_that_never_fits_is_refused_and_the_chat_goes_on():
    engine = FakeEngine(context_len=20)
    shown = said(chat_with(engine), "x" * 30, "hello")
    assert "34 tokens and the model's context is 20; shorten it" in shown
    assert prompts(engine) == ["|hello|"]


def test_a_base_model_continues_each_text_for_itself():
    engine = FakeEngine(answer=lambda _: iter([Part("text", " upon a time")]))
    said(chat_with(engine, plain=True), "Once", "/path/to", "Twice")
    assert prompts(engine) == ["|Once", "|/path/to", "|Twice"]


def test_flags_reach_the_engine_and_every_turn_has_a_seed_of_its_own():
    engine = FakeEngine()
    said(chat_with(engine, temperature=0.0, top_k=0, max_tokens=9, seed=5), "a", "b")
    first, second = engine.params
    assert (first.max_tokens, first.temperature, first.top_k, first.seed) == (9, 0.0, None, 5)
    assert second.seed == 6


def test_bytes_that_are_no_text_do_not_break_the_encoder():
    engine = FakeEngine()
    said(chat_with(engine), "caf\udce9")
    prompts(engine)[0].encode("utf-8")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"prompt": "  "}, "--prompt is empty"),
        ({"temperature": -1.0}, "--temperature must be at least 0"),
        ({"top_k": -1}, "--top_k must be at least 0"),
        ({"max_tokens": 0}, "--max_tokens must be at least 1"),
    ],
)
def test_a_flag_that_no_answer_can_have_is_one_sentence(wrong: dict, says: str):
    with pytest.raises(UserError, match=re.escape(says)):
        chat_cli.main(Config(**wrong))


def test_a_dry_run_says_what_it_would_do(capsys: pytest.CaptureFixture[str]):
    chat_cli.main(Config(dry_run=True, prompt="hi"))
    assert "sft, else mid, else base" in capsys.readouterr().out


REAL = {"max_tokens": 12, "device_type": "cpu", "dtype": "float32"}


def test_one_prompt_prints_the_answer_alone_and_the_checkpoint_to_stderr(
    base_dir: Path, capsys: pytest.CaptureFixture[str]
):
    save_random_checkpoint("sft")
    save_random_checkpoint("base")
    answers = []
    for _ in range(2):
        chat_cli.main(Config(prompt="Who are you?", **REAL))
        shown = capsys.readouterr()
        assert shown.err == "sft d1, step 7, on cpu\n"
        answers.append(shown.out)
    assert answers[0] == answers[1] != "\n", "the same seed gives the same answer"
    chat_cli.main(Config(prompt="The sky", source="base", **REAL))
    shown = capsys.readouterr()
    assert shown.err == "base d1, step 7, on cpu (a base model: it continues your text)\n"
    assert shown.out not in ("", "\n", answers[0])


def test_the_tool_is_left_out_of_a_single_answer():
    out = io.StringIO()
    chat_with(FakeEngine()).answer("What is 137 * 46?", Screen(out, with_tools=False), out)
    assert out.getvalue() == "Let me work that out.\n137 times 46 is 6302.\n"


def test_a_real_chat_goes_on_when_its_context_is_full(
    base_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    save_random_checkpoint("mid", context_len=64)
    monkeypatch.setattr(sys, "stdin", io.StringIO("The capital of France\n" * 5))
    chat_cli.main(Config(**REAL))
    shown = capsys.readouterr()
    assert shown.err == "mid d1, step 7, on cpu\n"
    assert "oldest turn(s) dropped" in shown.out
    assert shown.out.count("\n> ") == 6


def test_without_any_checkpoint_the_first_command_is_named(base_dir: Path):
    with pytest.raises(UserError, match=re.escape("run `python -m scripts.base_train` first")):
        chat_cli.main(Config(prompt="hi", **REAL))
