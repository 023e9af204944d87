"""Generation: the cache changes nothing, rows do not disturb each other, logprobs are the model's, everything ends."""

import pytest
import torch
from tiny import tiny_model
from tiny_engine import BOS, END, PROMPTS, TOKENIZER, UNSAYABLE, VOCAB, reciting, run

from nanochat import chat_format
from nanochat.command import UserError
from nanochat.engine import Engine
from nanochat.gpt import GPT
from nanochat.rows import ContextOverflow
from nanochat.sampling import SamplingParams


@pytest.fixture(scope="module")
def model() -> GPT:
    return tiny_model(sequence_len=48)


@pytest.fixture(scope="module")
def engine(model: GPT) -> Engine:
    return Engine(model, TOKENIZER)


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


def test_a_stream_and_a_batch_say_the_same(engine: Engine) -> None:
    for seed in range(5):
        [(ids, _)] = engine.generate_batch([PROMPTS[0]], max_tokens=20, seed=seed)
        streamed = "".join(piece.text for piece in engine.stream(PROMPTS[0], max_tokens=20, seed=seed))
        parts = chat_format.parse_completion(ids, TOKENIZER)
        assert streamed == "".join(part.text for part in parts)


# --- logprobs ---------------------------------------------------------------------------------------------------------


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


# --- refusals ---------------------------------------------------------------------------------------------------------


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
