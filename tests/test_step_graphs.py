"""Steps of fixed size, as CUDA graphs play them, against the steps that the engine reads else; computed on the CPU."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import random_model

from nanochat.decoder import Decoder
from nanochat.gpt_config import ARCHITECTURES, GPTConfig
from nanochat.kv_cache import Chunk, KVCache, Reading
from nanochat.step_graphs import Step, step_size

PLAIN = GPTConfig(sequence_len=64, vocab_size=97, n_layer=3, n_head=4, n_kv_head=2, n_embd=32)


@torch.inference_mode()
@pytest.mark.parametrize("fields", [{}, ARCHITECTURES["fast"], {"window_pattern": "SL", "smear": True}])
def test_a_step_of_fixed_size_computes_what_a_step_of_the_rows_own_lengths_does(fields: dict[str, Any]) -> None:
    config = replace(PLAIN, **fields)
    decoder = Decoder(random_model(config))
    caches = [KVCache(config, torch.device("cpu"), torch.float32, 4, 64) for _ in range(2)]
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(0, 97, (length,), generator=generator).tolist() for length in (20, 3, 31)]
    for cache in caches:
        for slot, row in enumerate(rows):
            reading = Reading(cache, (), [Chunk(slot, 0, len(row) - 1)], [-1, *row[:-2]])
            decoder.hidden(torch.tensor(row[:-1]), reading)
    step = Step(decoder, caches[0], rows=4, longest=64)  # recorded once, so the same tensors are used every time
    for new in (5, 50, 8):
        ids, lengths, previous = [row[-1] for row in rows], [len(row) - 1 for row in rows], [row[-2] for row in rows]
        step.set(ids, lengths, previous)
        expected = decoder.raw_logits(decoder.hidden(torch.tensor(ids), Reading(caches[1], lengths, (), previous)))
        torch.testing.assert_close(step.compute()[:3], expected, atol=1e-4, rtol=0)
        for row in rows:
            row.append(new)


def test_sizes_are_few_and_large_enough() -> None:
    for rows in range(1, 200):
        for longest in (1, 511, 512, 513, 2000, 2048):
            size = step_size(rows, longest, 2048)
            assert size[0] >= rows
            assert 2048 >= size[1] >= longest
    sizes = {step_size(rows, longest, 2048) for rows in range(1, 257) for longest in range(1, 2049, 7)}
    assert len(sizes) == 13 * 4
