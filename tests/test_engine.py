"""Generation: the cache changes nothing, rows do not disturb each other, the tool answers, everything ends in time."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import Reciter, tiny_model, tiny_tokenizer

from nanochat import chat_format
from nanochat.command import UserError
from nanochat.engine import Engine
from nanochat.gpt import GPT
from nanochat.gpt_config import ARCHITECTURES
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


# --- many requests ----------------------------------------------------------------------------------------------------


KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "fast": ARCHITECTURES["fast"],
    "windows and all": {"window_pattern": "SL", "smear": True, "bigram_rows": 50, "backout": True, "n_layer": 3},
    "portable": ARCHITECTURES["portable"],
}
MODELS = {name: tiny_model(sequence_len=48, **fields) for name, fields in KINDS.items()}

requests = st.tuples(
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=44),  # the prompt
    st.integers(1, 12),  # max_tokens
    st.integers(1, 3),  # n
    st.integers(0, 10),  # the step before which it comes
    st.none() | st.integers(0, 8),  # how many steps later it is cancelled
)


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(sorted(MODELS)),
    asked=st.lists(requests, min_size=1, max_size=6),
    max_rows=st.integers(1, 6),
    prefill_tokens=st.integers(1, 30),
    memory_rows=st.floats(1, 6),
    same_start=st.integers(0, 30),
)
@example(  # one that outgrows the slots of those before it
    kind="default", asked=[([0], 1, 1, 0, None)] * 4 + [([0, 0], 9, 1, 0, None)],
    max_rows=5, prefill_tokens=1, memory_rows=1, same_start=0,
)  # fmt: skip
def test_greedy_ids_are_those_of_a_forward_pass_without_cache_for_every_mix(
    kind: str,
    asked: list[tuple[list[int], int, int, int, int | None]],
    max_rows: int,
    prefill_tokens: int,
    memory_rows: float,
    same_start: int,
) -> None:
    """Whatever comes when, how many rows there are, how prompts are cut, what they share, and who leaves early."""
    model = MODELS[kind]
    memory_bytes = int(memory_rows * model.config.kv_cache_bytes(1, 48, bytes_per_value=4))  # of whole contexts
    engine = Engine(model, TOKENIZER, max_rows=max_rows, prefill_tokens=prefill_tokens, memory_bytes=memory_bytes)
    prompts = [asked[0][0][:same_start] + prompt[same_start:] or [BOS] for prompt, *_ in asked]
    updates: list[Update] = []
    names: dict[int, int] = {}
    cancels: dict[int, list[int]] = {}
    for step in itertools.count():
        for number, (_, max_tokens, n, comes, cancelled_after) in enumerate(asked):
            if comes == step:
                name = engine.submit(
                    prompts[number], SamplingParams(max_tokens=max_tokens, temperature=0, tools=False), n
                )
                names[name] = number
                if cancelled_after is not None:
                    cancels.setdefault(step + cancelled_after, []).append(name)
        for name in cancels.pop(step, []):
            engine.cancel(name)
        updates += engine.step()
        if step >= 10 and not cancels and not engine.busy:
            break
        assert engine.stats().cache_bytes + engine.stats().kept_bytes <= memory_bytes
    answers: dict[tuple[int, int], list[int]] = {}
    reasons: dict[tuple[int, int], str | None] = {}
    for update in updates:
        sample = names[update.request], update.sample
        assert reasons.get(sample) is None
        answers.setdefault(sample, []).extend(update.ids)
        reasons[sample] = update.finish_reason
    assert len(reasons) == sum(n for _, _, n, _, _ in asked)
    for (number, place), ids in answers.items():
        if ids:
            is_greedy(model, prompts[number], ids)
        room = min(asked[number][1], model.config.sequence_len - len(prompts[number]))
        expected = "stop" if ids and ids[-1] in (END, BOS) else "length" if len(ids) == room else "cancelled"
        assert reasons[number, place] == expected


@torch.no_grad()
def is_greedy(model: GPT, prompt: list[int], ids: list[int]) -> None:
    """Each id is the likeliest of those allowed behind what stands before it, or within 1e-4 of it."""
    logits = model(torch.tensor([prompt + ids[:-1]]))[0, len(prompt) - 1 :]
    logits[:, UNSAYABLE] = float("-inf")
    behind = logits.amax(1) - logits.gather(1, torch.tensor(ids).unsqueeze(1)).squeeze(1)
    assert behind.max() <= 1e-4


def texts(engine: Engine, *asked: tuple[list[int], SamplingParams, int]) -> list[list[list[int]]]:
    """Ids of each request's samples, all submitted at once."""
    names = [engine.submit(prompt, params, n) for prompt, params, n in asked]
    found: dict[int, list[list[int]]] = {
        name: [[] for _ in range(one[2])] for name, one in zip(names, asked, strict=True)
    }
    for update in run(engine):
        found[update.request][update.sample].extend(update.ids)
    return list(found.values())


def test_the_same_seed_gives_the_same_text_whatever_else_runs(model: GPT) -> None:
    params = SamplingParams(max_tokens=30, seed=11, temperature=1.2)
    [alone] = texts(Engine(model, TOKENIZER), (PROMPTS[0], params, 3))
    assert len({tuple(ids) for ids in alone}) == 3
    others = [(prompt, SamplingParams(max_tokens=20, top_k=5, top_p=0.9, min_p=0.01), 2) for prompt in PROMPTS[1:]]
    first, *_ = texts(Engine(model, TOKENIZER), (PROMPTS[0], params, 3), *others)
    *_, last = texts(Engine(model, TOKENIZER, max_rows=2, prefill_tokens=3), *others, (PROMPTS[0], params, 3))
    assert first == last == alone
    [unseeded] = texts(Engine(model, TOKENIZER), (PROMPTS[0], replace(params, seed=None), 3))
    [again] = texts(Engine(model, TOKENIZER), (PROMPTS[0], replace(params, seed=None), 3))
    assert unseeded != again


def test_rows_join_and_leave_while_others_go_on() -> None:
    engine = reciting(range(10, 40), [50, END], range(60, 64))
    first = engine.submit([1], SamplingParams(max_tokens=30))
    for _ in range(3):
        engine.step()
    second, third = engine.submit([2, 2], SamplingParams()), engine.submit([3] * 5, SamplingParams(max_tokens=4))
    told = [(update.request, update.ids[0]) for update in run(engine)]
    assert [token for name, token in told if name == first] == list(range(13, 40))
    assert [token for name, token in told if name == second] == [50, END]
    assert [token for name, token in told if name == third] == [60, 61, 62, 63]
    assert told[:3] == [(first, 13), (second, 50), (third, 60)]  # prompts are read beside a row that decodes


def test_a_long_prompt_is_read_in_chunks_while_others_decode() -> None:
    model = Reciter({1: range(10, 40), 2: [50, END]}, VOCAB, END, 64)
    engine = Engine(model, TOKENIZER, prefill_tokens=8)  # type: ignore[arg-type]
    engine.submit([1], SamplingParams(max_tokens=30))
    engine.step()
    engine.submit([2] * 20, SamplingParams())
    fed = []
    for _ in range(4):
        before = model.fed
        engine.step()
        fed.append(model.fed - before)
    assert fed == [9, 9, 5, 2]


def test_more_samples_than_rows_are_all_answered() -> None:
    model = Reciter({1: [10, 11, END], 2: [20, END]}, VOCAB, END, 64)
    engine = Engine(model, TOKENIZER, max_rows=3)  # type: ignore[arg-type]
    answers = texts(engine, ([1] * 4, SamplingParams(), 8), ([2], SamplingParams(), 2))
    assert answers == [[[10, 11, END]] * 8, [[20, END]] * 2]


def test_memory_bounds_the_rows_that_run(model: GPT) -> None:
    one = model.config.kv_cache_bytes(1, 48, bytes_per_value=4)
    engine = Engine(model, TOKENIZER, memory_bytes=2 * one)
    for prompt in PROMPTS * 2:
        engine.submit(prompt, SamplingParams(max_tokens=48, temperature=0))
    most = 0
    while engine.busy:
        engine.step()
        most = max(most, engine.stats().running)
        assert engine.stats().cache_bytes + engine.stats().kept_bytes <= 2 * one
    assert most == 2


def test_a_cancelled_request_leaves_at_once_and_its_place_is_taken() -> None:
    model = Reciter({1: range(10, 60), 2: range(100, 160), 3: [70, END]}, VOCAB, END, 64)
    engine = Engine(model, TOKENIZER, max_rows=2)  # type: ignore[arg-type]
    first, second, third = (engine.submit([name], SamplingParams(max_tokens=50)) for name in (1, 2, 3))
    engine.step()
    assert (engine.stats().running, engine.stats().waiting) == (2, 1)
    engine.cancel(first)
    engine.cancel(first)
    updates = engine.step()
    assert [(u.request, u.ids, u.finish_reason) for u in updates] == [
        (first, (), "cancelled"), (second, (101,), None), (third, (70,), None),
    ]  # fmt: skip
    engine.cancel(second)
    engine.cancel(third)
    engine.cancel(99)
    assert [update.finish_reason for update in run(engine)] == ["cancelled", "cancelled"]
    assert not engine.busy
    assert engine.step() == []


def test_a_request_that_waits_or_is_being_read_can_be_cancelled() -> None:
    model = Reciter({1: range(10, 60), 2: [20, END], 3: [30, END]}, VOCAB, END, 64)
    engine = Engine(model, TOKENIZER, prefill_tokens=2, max_rows=4)  # type: ignore[arg-type]
    engine.submit([1], SamplingParams(max_tokens=20))
    engine.step()
    read, waits = engine.submit([2] * 9, SamplingParams(), 2), engine.submit([3] * 3, SamplingParams(), 2)
    engine.step()
    engine.cancel(read)
    told = run(engine)
    assert [u.finish_reason for u in told if u.request == read] == ["cancelled", "cancelled"]
    assert [u.ids for u in told if u.request == waits and u.sample == 0] == [(30,), (END,)]


def test_answers_that_are_asked_for_whole_leave_those_of_others_to_step() -> None:
    engine = reciting(range(10, 30), [50, END])
    name = engine.submit([1], SamplingParams(max_tokens=5))
    assert engine.generate_batch([[2]]) == [([50, END], [1, 1])]
    assert [update.ids for update in run(engine) if update.request == name] == [(10,), (11,), (12,), (13,), (14,)]


def test_what_can_never_be_answered_is_refused_at_once(engine: Engine) -> None:
    for prompt, params, n, message in [
        ([], SamplingParams(), 1, "the prompt is empty"),
        ([VOCAB], SamplingParams(), 1, f"the prompt names the id {VOCAB}, the vocabulary has {VOCAB} ids"),
        ([-1], SamplingParams(), 1, "the prompt names the id -1"),
        ([5], SamplingParams(logit_bias={VOCAB: 1.0}), 1, f"logit_bias names the id {VOCAB}"),
        ([5], SamplingParams(), 0, "n must be 1 or more, got 0"),
        ([5] * 48, SamplingParams(), 1, "the prompt has 48 tokens, the model's context is 48"),
        ([5] * 49, SamplingParams(max_tokens=0), 1, "the prompt has 49 tokens"),
    ]:
        with pytest.raises(UserError, match=message):
            engine.submit(prompt, params, n)
    assert not engine.busy


def test_logits_that_are_no_numbers_end_their_row_alone() -> None:
    broken = tiny_model(sequence_len=48)
    with torch.no_grad():
        broken.transformer.wte.weight[7] = float("nan")
    engine = Engine(broken, TOKENIZER)
    bad, good = (
        engine.submit([BOS, 7], SamplingParams()),
        engine.submit([BOS, 8], SamplingParams(max_tokens=3, stop_ids=(7,))),
    )
    updates = run(engine)
    assert [(u.finish_reason, u.error) for u in updates if u.request == bad] == [
        ("error", "the model's logits are no numbers")
    ]
    assert all(u.error is None for u in updates if u.request == good)


# --- what was read before ---------------------------------------------------------------------------------------------


def test_a_chats_next_turn_costs_its_new_tokens_alone(model: GPT) -> None:
    engine, fresh = Engine(model, TOKENIZER), Engine(model, TOKENIZER)
    params = SamplingParams(max_tokens=6, temperature=0)
    prompt = [BOS, *range(20, 36)]
    [[answer]] = texts(engine, (prompt, params, 1))
    turn = [*prompt, *answer, 60, 61]
    [[found]] = texts(engine, (turn, params, 1))
    assert engine.stats().shared_tokens == len(prompt) + len(answer) - 1  # nobody has read the last id
    assert texts(fresh, (turn, params, 1)) == [[found]]
    [[other]] = texts(engine, ([*prompt[:-1], 99, 98], params, 1))  # parts from it before its end
    assert texts(fresh, ([*prompt[:-1], 99, 98], params, 1)) == [[other]]
    assert engine.stats().shared_tokens == 2 * len(prompt) + len(answer) - 2


def test_rows_under_way_share_their_start_with_those_that_come() -> None:
    model = Reciter({1: range(10, 60)}, VOCAB, END, 64)
    engine = Engine(model, TOKENIZER)  # type: ignore[arg-type]
    engine.submit([1] * 20, SamplingParams(max_tokens=10))
    engine.step()
    for _ in range(3):
        engine.submit([1] * 20, SamplingParams(max_tokens=10))
    before = model.fed
    updates = engine.step()
    assert model.fed - before == 1 + 3  # the last token of each prompt
    assert [update.ids[0] for update in updates] == [11, 10, 10, 10]


def test_prompts_with_one_start_that_come_together_read_it_once() -> None:
    model = Reciter({1: range(10, 60)}, VOCAB, END, 64)
    engine = Engine(model, TOKENIZER)  # type: ignore[arg-type]
    for _ in range(4):
        engine.submit([1] * 30, SamplingParams(max_tokens=2))
    run(engine)
    assert model.fed <= 30 + 3 + 4


def test_texts_are_forgotten_when_the_model_learns_and_memory_for_those_used_longest_ago() -> None:
    model = tiny_model(sequence_len=48)
    engine = Engine(model, TOKENIZER, memory_bytes=3 * model.config.kv_cache_bytes(1, 48, bytes_per_value=4))
    params = SamplingParams(max_tokens=4, temperature=0)
    prompts = [[BOS, *range(start, start + 30)] for start in (0, 50, 100, 150, 200)]
    for prompt in prompts:
        texts(engine, (prompt, params, 1))
    assert engine.stats().shared_tokens == 0
    texts(engine, (prompts[-1], params, 1))
    assert engine.stats().shared_tokens == 30
    texts(engine, (prompts[0], params, 1))
    assert engine.stats().shared_tokens == 30
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-0.5)
    [[learned]] = texts(engine, (prompts[0], params, 1))
    assert engine.stats().shared_tokens == 30
    is_greedy(model, prompts[0], learned)


def test_a_model_in_bfloat16_over_float32_weights_is_cast_once_for_all_steps() -> None:
    """Reinforcement learning samples from the model it trains: casting at every step took longest."""
    model = tiny_model(sequence_len=48)
    model.dtype = torch.bfloat16
    engine = Engine(model, TOKENIZER)
    [[before]] = texts(engine, ([BOS, 5], SamplingParams(max_tokens=12, temperature=0), 1))
    assert engine._decoder.model is not model
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    with torch.no_grad():
        model.lm_head.weight.copy_(model.lm_head.weight.flip(0))
    [[after]] = texts(engine, ([BOS, 5], SamplingParams(max_tokens=12, temperature=0), 1))
    assert before != after


# --- logprobs, stops --------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_logprobs_are_the_models_own_before_temperature_and_cuts(model: GPT, engine: Engine) -> None:
    prompt = PROMPTS[1]
    params = SamplingParams(max_tokens=10, temperature=0.3, top_k=2, seed=3, logprobs=4, prompt_logprobs=2)
    engine.submit(prompt, SamplingParams(max_tokens=20))  # in company
    name = engine.submit(prompt, params, n=2)
    updates = [update for update in run(engine) if update.request == name]
    for sample in range(2):
        ids = [token for update in updates if update.sample == sample for token in update.ids]
        expected = model(torch.tensor([prompt + ids]))[0].log_softmax(-1)
        found = [logprob for update in updates if update.sample == sample for logprob in update.logprobs]
        assert [logprob.id for logprob in found] == ids
        for place, logprob in enumerate(found, start=len(prompt) - 1):
            assert logprob.logprob == pytest.approx(float(expected[place, logprob.id]), abs=1e-4)
            best = expected[place].topk(4)
            assert [token for token, _ in logprob.top] == best.indices.tolist()
            assert [value for _, value in logprob.top] == pytest.approx(best.values.tolist(), abs=1e-4)
    [told] = [update.prompt_logprobs for update in updates if update.prompt_logprobs is not None]
    assert told[0] is None
    assert len(told) == len(prompt)
    for place, logprob in enumerate(told[1:], start=1):
        assert logprob is not None
        assert (logprob.id, len(logprob.top)) == (prompt[place], 2)
        assert logprob.logprob == pytest.approx(float(expected[place - 1, prompt[place]]), abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("prefill_tokens", [3, 100])
def test_a_prompt_can_be_scored_alone_up_to_the_contexts_last_token(model: GPT, prefill_tokens: int) -> None:
    prompt = [BOS, *range(100, 147)]
    engine = Engine(model, TOKENIZER, prefill_tokens=prefill_tokens)
    engine.submit([BOS], SamplingParams(max_tokens=20))
    engine.step()
    for _ in range(2):  # the second time nothing is taken from what was read: all logits are needed
        name = engine.submit(prompt, SamplingParams(max_tokens=0, prompt_logprobs=0))
        [update] = [update for update in run(engine) if update.request == name]
        assert (update.ids, update.finish_reason) == ((), "length")
        assert update.prompt_logprobs is not None
        expected = model(torch.tensor([prompt]))[0].log_softmax(-1)
        found = [logprob.logprob for logprob in update.prompt_logprobs[1:] if logprob is not None]
        assert found == pytest.approx([float(expected[i, token]) for i, token in enumerate(prompt[1:])], abs=1e-4)


def test_a_prompts_logprobs_are_told_once_however_few_rows_there_are(model: GPT) -> None:
    engine = Engine(model, TOKENIZER, max_rows=2)
    params = SamplingParams(max_tokens=2, prompt_logprobs=0)
    engine.submit([BOS, *range(100, 120)], params, n=5)
    told = [(update.sample, update.prompt_logprobs) for update in run(engine) if update.prompt_logprobs is not None]
    assert [(sample, len(found)) for sample, found in told] == [(0, 21)]
    assert engine.stats().shared_tokens >= 20  # the third sample starts from what was read for the first


def test_a_long_row_of_before_takes_no_memory_from_short_ones(model: GPT) -> None:
    one = model.config.kv_cache_bytes(1, 48, bytes_per_value=4)
    engine = Engine(model, TOKENIZER, memory_bytes=2 * one)
    texts(engine, ([BOS] * 40, SamplingParams(max_tokens=8), 2))
    for first in range(10):
        engine.submit([BOS, first], SamplingParams(max_tokens=4))
    before = engine.stats().generated_tokens
    engine.step()
    assert engine.stats().generated_tokens == before + 10  # of all ten, even where that was the last one
    assert engine.stats().cache_bytes + engine.stats().kept_bytes <= 2 * one


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


def test_a_stream_and_a_batch_say_the_same(engine: Engine) -> None:
    for seed in range(5):
        [(ids, _)] = engine.generate_batch([PROMPTS[0]], max_tokens=20, seed=seed)
        streamed = "".join(piece.text for piece in engine.stream(PROMPTS[0], max_tokens=20, seed=seed))
        parts = chat_format.parse_completion(ids, TOKENIZER)
        assert streamed == "".join(part.text for part in parts)
