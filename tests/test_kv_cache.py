"""The cache against a forward pass without one: slots of different lengths, growing, copies, what is kept aside."""

from typing import Any

import pytest
import torch
from tiny import random_model

from nanochat import kv_cache
from nanochat.decoder import Decoder
from nanochat.gpt import GPT
from nanochat.gpt_config import GPTConfig
from nanochat.kv_cache import Chunk, KVCache, Reading

CONFIG = GPTConfig(sequence_len=64, vocab_size=97, n_layer=2, n_head=4, n_kv_head=2, n_embd=32)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> GPT:
    return random_model(CONFIG)


def ids(rows: int, tokens: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 97, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def cache_of(slots: int = 1, capacity: int = 8, **given: int) -> KVCache:
    return KVCache(CONFIG, CPU, torch.float32, slots, capacity, **given)


@torch.no_grad()
def read(model: GPT, cache: KVCache, slot: int, text: torch.Tensor, start: int = 0) -> torch.Tensor:
    """The output (T, C) for text[start:], whose beginning the slot holds."""
    chunk = Chunk(slot, start, len(text) - start)
    return Decoder(model).hidden(text[start:], Reading(cache, (), [chunk]))


@torch.no_grad()
def close(model: GPT, made: torch.Tensor, text: torch.Tensor) -> bool:
    """Whether (T, C) is what the model gives for the last T of the text's ids."""
    return torch.allclose(made, model.hidden(text[None])[0, -len(made) :], atol=1e-5, rtol=0)


@torch.no_grad()
def test_several_prompts_are_read_in_one_pass_while_rows_decode(model: GPT) -> None:
    idx, cache = ids(5, 40), cache_of()
    for slot, length in enumerate([9, 2]):
        read(model, cache, slot, idx[slot, :length])
    chunks = [Chunk(2, 0, 7), Chunk(3, 0, 1), Chunk(4, 0, 12)]
    parts = [idx[0, 9:10], idx[1, 2:3], idx[2, :7], idx[3, :1], idx[4, :12]]
    made = Decoder(model).hidden(torch.cat(parts), Reading(cache, [9, 2], chunks))
    ends = [10, 3, 7, 1, 12]
    for row, part in enumerate(made.split([len(part) for part in parts])):
        assert close(model, part, idx[row, : ends[row]])


def test_it_grows_by_half_and_keeps_what_it_holds(model: GPT) -> None:
    text, cache = ids(1, 40)[0], cache_of(2, 20)
    read(model, cache, 0, text[:20])
    held = cache.store.clone()
    assert close(model, read(model, cache, 0, text[:21], 20), text[:21])
    assert (cache.slots, cache.capacity) == (2, 30)
    assert torch.equal(cache.store[..., :20, :], held)
    cache.reserve(3, 46)
    assert (cache.slots, cache.capacity) == (3, 46)
    cache.reserve(7, 47)
    assert (cache.slots, cache.capacity) == (7, 64)  # never longer than the context
    assert close(model, read(model, cache, 0, text[:30], 21), text[:30])
    cache.reserve(1, 1)
    assert (cache.slots, cache.capacity) == (7, 64)


def test_near_its_limit_it_grows_no_more_than_it_must() -> None:
    token = CONFIG.kv_cache_bytes(1, 1, bytes_per_value=4)
    cache = cache_of(2, 20, limit_bytes=85 * token)
    cache.reserve(2, 21)
    assert (cache.slots, cache.capacity) == (2, 30)
    cache.reserve(2, 41)
    assert (cache.slots, cache.capacity) == (2, 41)


def test_trimming_keeps_the_first_slots_and_tokens(model: GPT) -> None:
    text, cache = ids(1, 30)[0], cache_of(4, 64)
    read(model, cache, 0, text[:12])
    assert cache.can_reserve(8, 64)
    cache.trim(1, 12)
    assert (cache.slots, cache.capacity) == (1, 12)
    assert close(model, read(model, cache, 0, text, 12), text)
    cache.limit_bytes = cache.store.nbytes
    assert cache.can_reserve(1, 10)
    assert not cache.can_reserve(2, 10)


def test_its_size_is_what_the_config_counts() -> None:
    assert cache_of(3, 10).store.nbytes == CONFIG.kv_cache_bytes(3, 10, bytes_per_value=4)


def test_a_copied_slot_goes_on_as_the_first_would_have(model: GPT) -> None:
    idx, cache = ids(2, 20), cache_of(3, 32)
    read(model, cache, 0, idx[0, :9])
    cache.copy(0, 2, 6)
    other = torch.cat((idx[0, :6], idx[1, :5]))
    assert close(model, read(model, cache, 2, other, 6), other)
    assert close(model, read(model, cache, 0, idx[0], 9), idx[0])  # the copy has not touched it


def test_what_was_taken_can_be_put_into_any_slot_in_part(model: GPT) -> None:
    idx, cache = ids(2, 20), cache_of(2, 32)
    read(model, cache, 0, idx[0, :12])
    kept = cache.take(0, 10)
    read(model, cache, 0, idx[1])
    cache.put(1, kept, 7)
    text = torch.cat((idx[0, :7], idx[1, :4]))
    assert close(model, read(model, cache, 1, text, 7), text)


def test_what_lies_behind_a_slots_tokens_leaves_no_trace(model: GPT) -> None:
    idx, cache = ids(2, 20), cache_of()
    read(model, cache, 0, idx[0])
    text = torch.cat((idx[0, :5], idx[1, :8]))
    assert close(model, read(model, cache, 0, text, 5), text)


def test_nothing_is_read_behind_the_context() -> None:
    with pytest.raises(AssertionError, match="65 tokens do not fit the context of 64"):
        Reading(cache_of(), [64])
    with pytest.raises(AssertionError, match="66 tokens do not fit the context of 64"):
        Reading(cache_of(), [3], [Chunk(1, 60, 6)])


@pytest.mark.parametrize("window_pattern", ["L", "SL"])
def test_prompts_of_many_lengths_are_attended_to_in_few_sizes(
    window_pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU's kernels for each size would stay in memory."""
    sizes, attend = set(), kv_cache.attend

    def noted(q: torch.Tensor, k: torch.Tensor, *more: Any, **given: Any) -> torch.Tensor:
        sizes.add((q.size(2), k.size(2)))
        return attend(q, k, *more, **given)

    monkeypatch.setattr(kv_cache, "attend", noted)
    model = random_model(GPTConfig(200, 97, 2, 4, 2, 32, window_pattern=window_pattern))
    for length in range(3, 200, 7):
        text, first = ids(1, length, seed=length)[0], length * 2 // 3
        cache = KVCache(model.config, CPU, torch.float32)
        assert close(model, read(model, cache, 0, text[:first]), text[:first])
        assert close(model, read(model, cache, 0, text, first), text)
    assert all(size % 64 == 0 for pair in sizes for size in pair)
    assert max(max(pair) for pair in sizes) == 256
