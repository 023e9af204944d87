"""Many requests in one engine: whatever comes, leaves or shares a start, each gets the text that it would get alone."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import Reciter, tiny_model
from tiny_engine import BOS, END, PROMPTS, TOKENIZER, UNSAYABLE, VOCAB, reciting, run, texts

from nanochat.engine import Engine
from nanochat.gpt import GPT
from nanochat.gpt_config import ARCHITECTURES
from nanochat.rows import Update
from nanochat.sampling import SamplingParams

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


@pytest.fixture(scope="module")
def model() -> GPT:
    return tiny_model(sequence_len=48)


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
