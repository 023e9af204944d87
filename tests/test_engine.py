"""Generation: the cache changes nothing, rows do not disturb each other, the tool answers, everything ends in time."""

from collections.abc import Sequence

import pytest
import torch
from tiny import Reciter, tiny_model, tiny_tokenizer

from nanochat import chat_format
from nanochat.command import UserError
from nanochat.engine import Engine
from nanochat.gpt import GPT
from nanochat.rows import ContextOverflow, Update
from nanochat.sampling import SamplingParams
from nanochat.transcript import Piece

TOKENIZER = tiny_tokenizer()
VOCAB = TOKENIZER.get_vocab_size()
END, BOS = (TOKENIZER.encode_special(name) for name in (chat_format.ASSISTANT_END, chat_format.BOS))
PYTHON, PYTHON_END = (TOKENIZER.encode_special(n) for n in (chat_format.PYTHON_START, chat_format.PYTHON_END))
OUTPUT, OUTPUT_END = (TOKENIZER.encode_special(n) for n in (chat_format.OUTPUT_START, chat_format.OUTPUT_END))
UNSAYABLE = [OUTPUT, OUTPUT_END] + [
    TOKENIZER.encode_special(n) for n in (chat_format.USER_START, chat_format.USER_END, chat_format.ASSISTANT_START)
]
PROMPTS = [[BOS, 5, 6], [BOS, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49], [BOS], [BOS, 100, 101, 102, 103]]


@pytest.fixture(scope="module")
def model() -> GPT:
    return tiny_model(sequence_len=48)


@pytest.fixture(scope="module")
def engine(model: GPT) -> Engine:
    return Engine(model, TOKENIZER)


def reciting(*scripts: Sequence[int], sequence_len: int = 64, after: int = END) -> Engine:
    """Prompts [1], [1, 1], ... are answered by the first script, [2], ... by the second."""
    model = Reciter(dict(enumerate(scripts, start=1)), VOCAB, after, sequence_len)
    return Engine(model, TOKENIZER)  # type: ignore[arg-type]


def run(engine: Engine) -> list[Update]:
    """Everything that the engine has to tell."""
    updates = []
    while engine.busy:
        updates += engine.step()
    return updates


@torch.no_grad()
def naive(model: GPT, prompt: list[int], max_tokens: int) -> list[int]:
    """Greedy, the whole text read again for every id."""
    made: list[int] = []
    while len(made) < max_tokens and len(prompt) + len(made) < model.config.sequence_len:
        logits = model(torch.tensor([prompt + made]))[0, -1]
        logits[UNSAYABLE] = float("-inf")
        made.append(int(logits.argmax()))
        if made[-1] in (END, BOS):
            break
    return made


# --- the cache, rows, seeds -------------------------------------------------------------------------------------------


def test_a_batch_of_mixed_lengths_gives_the_greedy_ids_of_a_forward_pass_without_cache(
    model: GPT, engine: Engine
) -> None:
    results = engine.generate_batch(PROMPTS, max_tokens=100, temperature=0)
    assert [ids for ids, _ in results] == [naive(model, prompt, 100) for prompt in PROMPTS]
    assert len({len(ids) for ids, _ in results}) > 1  # rows ended at different times


def test_a_rows_greedy_answer_does_not_depend_on_its_neighbours(engine: Engine) -> None:
    together = engine.generate_batch(PROMPTS, num_samples=2, max_tokens=30, temperature=0)
    alone = [engine.generate_batch([prompt], max_tokens=30, temperature=0)[0] for prompt in PROMPTS]
    assert together == [answer for answer in alone for _ in range(2)]


def test_samples_of_one_prefill_differ_and_the_same_seed_gives_the_same(engine: Engine) -> None:
    first, again, other = (engine.generate_batch(PROMPTS[:1], 6, 12, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert len({tuple(ids) for ids, _ in first}) == 6


def test_a_prompt_is_read_once_for_all_its_samples() -> None:
    engine = reciting([10, 11, 12])
    engine.generate_batch([[1] * 20], num_samples=5, max_tokens=3)
    assert engine.model.fed == 20 + 2 * 5  # type: ignore[attr-defined]


def test_top_k_and_temperature_reach_the_draw(engine: Engine) -> None:
    greedy = engine.generate_batch(PROMPTS, max_tokens=10, temperature=0)
    assert engine.generate_batch(PROMPTS, max_tokens=10, temperature=1.0, top_k=1) == greedy
    assert engine.generate_batch(PROMPTS, max_tokens=10, temperature=1e-6) == greedy
    assert engine.generate_batch(PROMPTS, max_tokens=10, temperature=1.0) != greedy


def test_what_no_assistant_may_say_is_never_sampled(model: GPT) -> None:
    """With logits that are all equal each of the 300 ids comes up; those five do not."""
    even = tiny_model(sequence_len=48, n_layer=1)
    with torch.no_grad():
        even.lm_head.weight.zero_()
    answers = Engine(even, TOKENIZER).generate_batch([[BOS]], 300, 40)
    sampled = {token for ids, mask in answers for token, own in zip(ids, mask, strict=True) if own}
    assert not sampled & set(UNSAYABLE)
    assert sampled == set(range(VOCAB)) - set(UNSAYABLE)


def test_columns_of_generate_are_the_rows_of_generate_batch(engine: Engine) -> None:
    columns = list(engine.generate(PROMPTS[0], num_samples=12, max_tokens=40, seed=3))
    rows = engine.generate_batch(PROMPTS[:1], 12, 40, seed=3)
    assert len(columns) == max(len(ids) for ids, _ in rows)
    assert len({len(ids) for ids, _ in rows}) > 1  # some have ended before
    for number, (ids, mask) in enumerate(rows):
        missing = len(columns) - len(ids)
        assert [column[number] for column, _ in columns] == ids + ids[-1:] * missing
        assert [marks[number] for _, marks in columns] == mask + [0] * missing


# --- the end ----------------------------------------------------------------------------------------------------------


def test_a_row_ends_at_its_end_token_while_the_others_go_on() -> None:
    engine = reciting([10, END, 99], [20, 21, 22, 23, END], [30, BOS, 99])
    answers = engine.generate_batch([[1], [2, 2, 2], [3, 3]], max_tokens=50)
    assert [ids for ids, _ in answers] == [[10, END], [20, 21, 22, 23, END], [30, BOS]]


def test_rows_that_have_ended_are_not_computed_to_the_end_of_the_others() -> None:
    engine = reciting([END], range(10, 60))
    engine.generate_batch([[1], [2]], num_samples=4, max_tokens=40)
    assert engine.model.fed == 2 + 4 * 39  # type: ignore[attr-defined]


@pytest.mark.parametrize(("max_tokens", "expected"), [(3, 3), (1, 1), (0, 0)])
def test_max_tokens_ends_every_row(max_tokens: int, expected: int) -> None:
    results = reciting(range(10, 40), range(40, 80)).generate_batch([[1], [2, 2]], max_tokens=max_tokens)
    assert [len(ids) for ids, _ in results] == [expected, expected]


def test_no_row_passes_the_contexts_end_even_when_a_neighbour_stands_at_it() -> None:
    """The reciter, like the model, refuses to read behind its context; rows that are done take part to the end."""
    scripts = [range(10, 80)] * 5
    prompts = [[1] * 15, [2], [3] * 2, [4] * 2, [5] * 3]
    results = reciting(*scripts, sequence_len=16).generate_batch(prompts, max_tokens=100)
    assert [ids for ids, _ in results] == [list(range(10, 10 + 16 - len(prompt))) for prompt in prompts]


def test_a_real_model_fills_its_context_to_the_last_token(model: GPT) -> None:
    prompts = [[BOS, *range(46)], [BOS, 7], [BOS, 8], [BOS, 9], [BOS, 10]]
    even = tiny_model(sequence_len=48, n_layer=1)
    with torch.no_grad():
        even.lm_head.weight.zero_()  # the likeliest of equals is id 0, so that no row ends before
    results = Engine(even, TOKENIZER).generate_batch(prompts, max_tokens=100, temperature=0)
    assert [len(ids) for ids, _ in results] == [1, 46, 46, 46, 46]


def test_a_prompt_that_fills_the_context_is_refused_with_both_numbers(engine: Engine) -> None:
    with pytest.raises(ContextOverflow, match="the prompt has 48 tokens, the model's context is 48; shorten it"):
        engine.generate_batch([[BOS], [BOS] * 48])
    with pytest.raises(ContextOverflow):
        next(engine.stream([BOS] * 48))
    assert issubclass(ContextOverflow, UserError)


@pytest.mark.parametrize(("temperature", "top_k"), [(-0.5, None), (1.0, -3)])
def test_a_negative_temperature_or_top_k_is_refused(engine: Engine, temperature: float, top_k: int | None) -> None:
    with pytest.raises(UserError, match=r"(temperature|top_k) must be 0 or more, got -"):
        engine.generate_batch([[BOS]], temperature=temperature, top_k=top_k)


def test_an_empty_prompt_is_refused(engine: Engine) -> None:
    with pytest.raises(UserError, match="the prompt is empty: lead it with"):
        engine.generate_batch([[BOS], []])
    assert engine.generate_batch([]) == []


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


def test_a_stream_and_a_batch_say_the_same(engine: Engine) -> None:
    for seed in range(5):
        [(ids, _)] = engine.generate_batch([PROMPTS[0]], max_tokens=20, seed=seed)
        streamed = "".join(piece.text for piece in engine.stream(PROMPTS[0], max_tokens=20, seed=seed))
        parts = chat_format.parse_completion(ids, TOKENIZER)
        assert streamed == "".join(part.text for part in parts)
