"""Tiny parts for the tests of floors 2 to 4: a real tokenizer, models without a zero, a model that recites."""

from collections.abc import Mapping, Sequence
from functools import cache

import torch

from lessons.oracle import model_of
from nanochat.gpt import GPT
from nanochat.gpt_config import GPTConfig
from nanochat.kv_cache import Reading
from nanochat.plan import TrainPlan, plan_training
from nanochat.runtime import Runtime
from nanochat.tokenizer import RustBPETokenizer

CPU = Runtime(torch.device("cpu"), torch.float32)
TEXT = "The capital of France is Paris. The sky is blue. What is 137 * 46? The answer is 6302. Who are you?"


def rank(number: int, world_size: int) -> Runtime:
    """A rank that has no others to talk to: for what is shared out without a word."""
    return Runtime(torch.device("cpu"), torch.float32, number, world_size)


@cache
def tiny_tokenizer() -> RustBPETokenizer:
    """A few merges over the bytes, and the nine specials."""
    return RustBPETokenizer.train_from_iterator([TEXT], vocab_size=300)


def random_model(config: GPTConfig, seed: int = 0) -> GPT:
    """A model in which no matrix is zero, so that every part of it shows in the logits."""
    return model_of(config, seed, spread=0.1).eval()


def tiny_model(sequence_len: int = 64, seed: int = 0, **sizes: int) -> GPT:
    """A random model over the tiny tokenizer's vocabulary, its keys shared by two heads."""
    given = {"n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 32, **sizes}
    return random_model(GPTConfig(sequence_len, tiny_tokenizer().get_vocab_size(), **given), seed)


def plan_of(model: GPT, **given: int) -> TrainPlan:
    """A plan of ten steps."""
    flags = {"device_batch_size": 2, "world_size": 1, "total_batch_size": None, "num_iterations": 10, **given}
    rates = {"matrix_lr": 0.02, "embedding_lr": 0.2, "unembedding_lr": 0.004}
    return plan_training(model.config, target_param_data_ratio=1.0, **rates, **flags)  # type: ignore[arg-type]


class Reciter:
    """In a model's place: after a prompt of equal ids it likes best, id by id, what its script for that id says.

    Forced ids take their places in the script too; no script starts with its own id. Behind the script's end it likes
    `after`. What it has read lies in the cache alone, so that it recites what the cache holds of a row.
    """

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, scripts: Mapping[int, Sequence[int]], vocab_size: int, after: int, sequence_len: int = 64):
        self.scripts, self.after = scripts, after
        self.config = GPTConfig(sequence_len, vocab_size, n_layer=1, n_head=1, n_kv_head=1, n_embd=2)
        self.fed = 0  # tokens of all rows, for counting what is computed

    def parameters(self) -> list[torch.nn.Parameter]:
        """None."""
        return []

    def hidden(self, idx: torch.Tensor, cache: Reading) -> torch.Tensor:
        """(N, 2): each token's script, and how many ids have come behind the prompt."""
        self.fed += idx.numel()
        new = idx.view(-1, 1, 1).expand(-1, 1, 2).float()
        cache.attend(0, new, new, new)
        store = cache.cache.store[0, 0, :, 0, :, 0].long().tolist()  # (slots, S)
        owners = [*range(len(cache.lengths)), *(chunk.slot for chunk in cache.chunks for _ in range(chunk.tokens))]
        made = []
        for slot, position in zip(owners, cache.positions.tolist(), strict=True):
            seen = store[slot][: position + 1]
            prompt = next((n for n, token in enumerate(seen) if token != seen[0]), len(seen))
            made.append([float(seen[0]), float(len(seen) - prompt)])
        return torch.tensor(made)

    def raw_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., 2) to (..., V)."""
        logits = torch.full((*hidden.shape[:-1], self.config.vocab_size), -30.0)
        flat = logits.view(-1, self.config.vocab_size)
        for row, (key, number) in enumerate(hidden.reshape(-1, 2).long().tolist()):
            script = self.scripts[key]
            flat[row, script[number] if number < len(script) else self.after] = 30.0
        return logits
