"""The forward pass at inference against the model's own: whatever is read together, in chunks and with every trick."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import random_model

from nanochat.decoder import Decoder
from nanochat.gpt import GPT
from nanochat.gpt_config import ARCHITECTURES, GPTConfig
from nanochat.kv_cache import Chunk, KVCache, Reading

PLAIN = GPTConfig(sequence_len=64, vocab_size=97, n_layer=3, n_head=4, n_kv_head=2, n_embd=32)
KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "all heads": {"n_kv_head": 4},
    "portable": ARCHITECTURES["portable"],
    "value_embeddings": {"value_embeddings": True},
    "residual_scalars": {"residual_scalars": True},
    "smear": {"smear": True},
    "backout": {"backout": True},
    "windows": {"window_pattern": "SL"},
    "bigram": {"bigram_rows": 50},
    "fast": ARCHITECTURES["fast"],
    "all": {
        "value_embeddings": True, "residual_scalars": True, "smear": True, "backout": True, "window_pattern": "SSL",
        "bigram_rows": 50,
    },
}  # fmt: skip


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> GPT:
    return random_model(replace(PLAIN, **KINDS[request.param]))


def ids(rows: int, tokens: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 97, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def previous_of(row: torch.Tensor, start: int, tokens: int) -> list[int]:
    """The ids before each of some tokens of a row."""
    return [int(row[at - 1]) if at else -1 for at in range(start, start + tokens)]


@torch.inference_mode()
def test_reading_in_chunks_gives_what_reading_at_once_gives(model: GPT) -> None:
    row, decoder = ids(1, 60)[0], Decoder(model)
    cache, made, start = KVCache(model.config, torch.device("cpu"), torch.float32), [], 0
    for part in row.split([7, 1, 12, 1, 1, 30, 8]):
        reading = Reading(cache, (), [Chunk(0, start, len(part))], previous_of(row, start, len(part)))
        made.append(decoder.hidden(part, reading))
        start += len(part)
    torch.testing.assert_close(torch.cat(made), model.hidden(row[None])[0], atol=1e-5, rtol=0)
    logits = decoder.raw_logits(made[-1])
    squeezed = logits if model.config.logit_softcap is None else 15 * torch.tanh(logits / 15)
    torch.testing.assert_close(squeezed, model(row[None])[0, -8:], atol=1e-4, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("padding_keys", [0, 256])
def test_rows_of_different_lengths_decode_while_another_prompt_is_read(
    model: GPT, padding_keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nanochat.kv_cache.PADDING_KEYS", padding_keys)  # attended to one by one, and together
    idx, lengths, decoder = ids(4, 60), [3, 21, 1], Decoder(model)
    cache = KVCache(model.config, torch.device("cpu"), torch.float32)
    chunks = [Chunk(slot, 0, length) for slot, length in enumerate(lengths)]
    before = [previous for slot, length in enumerate(lengths) for previous in previous_of(idx[slot], 0, length)]
    prompts = torch.cat([idx[slot, :length] for slot, length in enumerate(lengths)])
    decoder.hidden(prompts, Reading(cache, (), chunks, before))
    for new in range(15):
        at = [length + new for length in lengths]
        chunk = idx[3, 3 * new : 3 * new + 3]
        before = [int(idx[row, place - 1]) for row, place in enumerate(at)] + previous_of(idx[3], 3 * new, 3)
        reading = Reading(cache, at, [Chunk(3, 3 * new, 3)], before)
        made = decoder.hidden(torch.cat([idx[range(3), at], chunk]), reading)
        for row, place in enumerate(at):
            expected = model.hidden(idx[row : row + 1, : place + 1])[0, -1]
            torch.testing.assert_close(made[row], expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(made[3:], model.hidden(idx[3:, : 3 * new + 3])[0, -3:], atol=1e-5, rtol=0)


@torch.inference_mode()
def test_in_bfloat16_it_is_as_near_to_float32_as_the_model_itself(model: GPT) -> None:
    row = ids(1, 40)[0]
    exact = model.hidden(row[None])[0]
    rounded = random_model(model.config).cast_(torch.bfloat16)
    of_model = rounded.hidden(row[None])[0].float()
    cache = KVCache(model.config, torch.device("cpu"), torch.bfloat16)
    reading = Reading(cache, (), [Chunk(0, 0, 40)], previous_of(row, 0, 40))
    made = Decoder(rounded).hidden(row, reading)
    assert made.dtype == torch.bfloat16
    assert (made.float() - exact).norm() < 1.2 * (of_model - exact).norm()


@torch.inference_mode()
def test_an_embedding_of_zeros_stays_a_number_and_small_queries_keep_their_epsilon() -> None:
    model = random_model(PLAIN)
    for block in model.transformer.h:
        block.attn.c_q.weight.mul_(1e-3)
        block.attn.c_k.weight.mul_(1e-4)
    row = ids(1, 20)[0]
    cache = KVCache(PLAIN, torch.device("cpu"), torch.float32)
    made = Decoder(model).hidden(row, Reading(cache, (), [Chunk(0, 0, 20)]))
    torch.testing.assert_close(made, model.hidden(row[None])[0], atol=1e-5, rtol=0)
    model.transformer.wte.weight[5] = 0
    made = Decoder(model).hidden(torch.tensor([5]), Reading(cache, (), [Chunk(0, 0, 1)]))
    assert torch.equal(made, model.hidden(torch.tensor([[5]]))[0])
