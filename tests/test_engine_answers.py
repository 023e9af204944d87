"""What an answer says: the tool is answered, stops end it, a stream gives it in order and in whole characters."""

import pytest
import torch
from tiny import Reciter, tiny_model
from tiny_engine import BOS, END, OUTPUT, OUTPUT_END, TOKENIZER, VOCAB, reciting, run, texts

from nanochat import chat_format
from nanochat.command import UserError
from nanochat.engine import Engine
from nanochat.sampling import SamplingParams
from nanochat.transcript import Piece

PYTHON, PYTHON_END = (TOKENIZER.encode_special(n) for n in (chat_format.PYTHON_START, chat_format.PYTHON_END))


# --- the tool ---------------------------------------------------------------------------------------------------------


def call(expression: str) -> list[int]:
    return [PYTHON, *TOKENIZER.encode(expression), PYTHON_END]


def answer(text: str) -> list[int]:
    return [OUTPUT, *TOKENIZER.encode(text), OUTPUT_END]


def test_the_tools_answer_is_forced_and_the_model_goes_on_behind_it() -> None:
    before, forced, after = TOKENIZER.encode("It is "), answer("6302"), [*TOKENIZER.encode("6302."), END]
    script = [*before, *call("137*46"), *[7] * len(forced), *after]  # the model would say 7s where the tool answers
    [(ids, mask)] = reciting(script).generate_batch([[1, 1]])
    assert ids == [*before, *call("137*46"), *forced, *after]
    assert mask == [1] * len(before + call("137*46")) + [0] * len(forced) + [1] * len(after)


def test_rows_call_the_tool_at_their_own_time() -> None:
    scripts = [[*call("1+1"), 7, 7, 7, END], [50, 51, *call("2*4"), 7, 7, 7, 52, END], [60, END]]
    results = reciting(*scripts).generate_batch([[1] * 4, [2], [3, 3]])
    assert [ids for ids, _ in results] == [
        [*call("1+1"), *answer("2"), END],
        [50, 51, *call("2*4"), *answer("8"), 52, END],
        [60, END],
    ]


@pytest.mark.parametrize(
    ("expression", "mistake"),
    [("import os", "'import' is not understood"), ("1/0", "division by zero"), ("((", "this is no expression")],
)
def test_a_mistake_comes_back_to_the_model_as_text(expression: str, mistake: str) -> None:
    forced = answer(f"error: {mistake}")
    script = [*call(expression), *[7] * len(forced), 70, END]
    [(ids, mask)] = reciting(script, sequence_len=128).generate_batch([[1]])
    assert ids == [*call(expression), *forced, 70, END]
    assert mask == [1] * len(call(expression)) + [0] * len(forced) + [1, 1]


def test_a_call_without_tools_forces_nothing() -> None:
    script = [*call("1+1"), 70, END]
    engine = reciting(script)
    engine.submit([1], SamplingParams(tools=False))
    assert [token for update in run(engine) for token in update.ids] == script


def test_a_named_tool_answers_where_it_was_asked_for() -> None:
    expression = "convert(2, 'km', 'm')"
    script = [*call(expression), *[7] * len(answer("2000")), END]
    model = Reciter({1: script}, VOCAB, END, 128)
    engine = Engine(model, TOKENIZER, tools=["convert"])  # type: ignore[arg-type]
    assert engine.generate_batch([[1]])[0][0] == [*call(expression), *answer("2000"), END]
    with pytest.raises(UserError, match="no tool is called 'browse'"):
        Engine(model, TOKENIZER, tools=["browse"])  # type: ignore[arg-type]


def test_a_call_can_start_anew_and_an_end_without_a_start_is_nothing() -> None:
    script = [PYTHON_END, 70, PYTHON, *TOKENIZER.encode("99+"), *call("1+2"), 7, 7, 7, END]
    [(ids, _)] = reciting(script).generate_batch([[1]])
    assert ids == [*script[:-4], *answer("3"), END]


def test_a_call_is_answered_once() -> None:
    script = [*call("1+1"), 7, 7, 7, PYTHON_END, 71, END]
    [(ids, _)] = reciting(script).generate_batch([[1]])
    assert ids == [*call("1+1"), *answer("2"), PYTHON_END, 71, END]


def test_max_tokens_and_the_context_end_cut_a_tools_answer() -> None:
    script = [*call("1000000+1"), *[7] * 20]
    for engine, max_tokens in ((reciting(script), len(call("1000000+1")) + 2), (reciting(script, sequence_len=12), 50)):
        [(ids, mask)] = engine.generate_batch([[1]], max_tokens=max_tokens)
        expected = [*call("1000000+1"), *answer("1000001")][: min(max_tokens, engine.context_len - 1)]
        assert ids == expected
        assert mask[len(call("1000000+1")) :] == [0] * (len(expected) - len(call("1000000+1")))


def test_the_end_token_within_a_call_ends_the_row() -> None:
    script = [PYTHON, *TOKENIZER.encode("1+1"), END]
    assert reciting(script).generate_batch([[1]]) == [(script, [1] * len(script))]


# --- stops ------------------------------------------------------------------------------------------------------------


def said(engine: Engine, params: SamplingParams) -> tuple[str, list[int], str | None]:
    """Text, ids and the reason of the end."""
    engine.submit([1], params)
    updates = run(engine)
    text = "".join(piece.text for update in updates for piece in update.pieces)
    return text, [token for update in updates for token in update.ids], updates[-1].finish_reason


def test_a_stop_text_ends_the_answer_before_it_wherever_ids_cut_it() -> None:
    ids = TOKENIZER.encode("one\nUser: two")
    text, taken, reason = said(reciting([*ids, END]), SamplingParams(stop=("User:", "xyz")))
    assert (text, reason) == ("one\n", "stop")
    assert TOKENIZER.decode(taken).endswith("User:")
    text, taken, reason = said(reciting([*ids, END]), SamplingParams(stop=("Users",)))
    assert (text, taken, reason) == ("one\nUser: two", [*ids, END], "stop")


def test_a_stop_id_ends_the_answer_and_is_not_said() -> None:
    ids = TOKENIZER.encode("ab;cd")
    semicolon = TOKENIZER.encode(";")[0]
    text, taken, reason = said(reciting([*ids, END]), SamplingParams(stop_ids=(semicolon,)))
    assert (text, taken, reason) == ("ab", TOKENIZER.encode("ab;"), "stop")


def test_a_whole_batch_can_have_a_stop_text() -> None:
    engine = reciting([*TOKENIZER.encode("a.b"), END], [*TOKENIZER.encode("c"), END])
    names = [engine.submit([name], SamplingParams(stop=(".",))) for name in (1, 2)]
    updates = run(engine)
    assert ["".join(p.text for u in updates if u.request == name for p in u.pieces) for name in names] == ["a", "c"]


def test_reasons_of_the_end_are_told() -> None:
    assert said(reciting([10, END]), SamplingParams())[2] == "stop"
    assert said(reciting([10, BOS]), SamplingParams())[2] == "stop"
    assert said(reciting([10, 11, 12]), SamplingParams(max_tokens=2))[2] == "length"
    assert said(reciting(range(10, 90), sequence_len=8), SamplingParams())[2] == "length"


def test_penalties_keep_a_model_from_repeating_itself() -> None:
    even = tiny_model(sequence_len=48, n_layer=1)
    with torch.no_grad():
        even.lm_head.weight.zero_()
    engine = Engine(even, TOKENIZER)
    for penalty in (
        {"presence_penalty": 0.1},
        {"frequency_penalty": 0.1},
        {"logit_bias": {9: 1.0}, "presence_penalty": 2.0},
    ):
        [[ids]] = texts(engine, ([BOS], SamplingParams(max_tokens=20, temperature=0, tools=False, **penalty), 1))  # type: ignore[arg-type]
        assert len(set(ids)) == 20


# --- streaming --------------------------------------------------------------------------------------------------------


def joined(pieces: list[Piece]) -> list[tuple[str, str]]:
    """Neighbours of one type together."""
    made: list[tuple[str, str]] = []
    for piece in pieces:
        if made and made[-1][0] == piece.type:
            made[-1] = (piece.type, made[-1][1] + piece.text)
        else:
            made.append((piece.type, piece.text))
    return made


def test_a_stream_says_text_call_and_answer_in_their_order() -> None:
    forced = answer("6302")
    script = [*TOKENIZER.encode("It is "), *call("137*46"), *[7] * len(forced), *TOKENIZER.encode("6302."), END]
    pieces = list(reciting(script).stream([1]))
    assert joined(pieces) == [("text", "It is "), ("python", "137*46"), ("python_output", "6302"), ("text", "6302.")]


def test_a_stream_comes_piece_by_piece() -> None:
    engine = reciting([*TOKENIZER.encode("qqq"), END])
    stream = engine.stream([1])
    assert (next(stream), engine.model.fed) == (Piece("text", "q"), 1)  # type: ignore[attr-defined]
    assert (next(stream), engine.model.fed) == (Piece("text", "q"), 2)  # type: ignore[attr-defined]


def test_a_stream_gives_whole_characters_alone() -> None:
    text = "né 漢字 🦜!"
    ids = TOKENIZER.encode(text)
    assert len(ids) > len(text)  # characters are split over ids
    pieces = [piece.text for piece in reciting([*ids, END]).stream([1])]
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece and piece for piece in pieces)


def test_half_a_character_at_the_end_shows_as_the_replacement_and_not_in_what_follows() -> None:
    parrot = TOKENIZER.encode("🦜")[:2]
    assert [p.text for p in reciting([*parrot, END]).stream([1])] == ["\ufffd"]
    assert [p.text for p in reciting([*parrot, 7]).stream([1], max_tokens=2)] == ["\ufffd"]
    split = [*parrot, *call("1+1"), 7, 7, 7, END]
    assert joined(list(reciting(split).stream([1]))) == [("text", "\ufffd"), ("python", "1+1"), ("python_output", "2")]
