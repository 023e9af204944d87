"""Generation: prompts are read once into a cache, then every row goes on one id at a time, the tool called on the way.

Prompts of different lengths run together. What stands between `<|python_start|>` and `<|python_end|>` is computed by
the calculator, and its answer forced upon the row before the model goes on. A row ends at `<|assistant_end|>`, at
`<|bos|>` (a new document), after `max_tokens`, or where the context ends.
"""

import codecs
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from nanochat import chat_format
from nanochat.calculator import use_calculator
from nanochat.command import UserError
from nanochat.conversation import PartType
from nanochat.gpt import GPT
from nanochat.kv_cache import KVCache
from nanochat.sampling import sample
from nanochat.scheduler import ContextOverflow, Piece
from nanochat.tokenizer import RustBPETokenizer


@dataclass
class _Row:
    """What one row is doing."""

    index: int
    room: int
    ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    forced: deque[int] = field(default_factory=deque)
    call: list[int] | None = None
    done: bool = False


class Engine:
    """A model with its tokenizer, ready to generate. Not for two threads at once."""

    def __init__(self, model: GPT, tokenizer: RustBPETokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.context_len = model.config.sequence_len
        special = tokenizer.encode_special
        self.ends = {special(chat_format.ASSISTANT_END), special(chat_format.BOS)}
        self.python_start, self.python_end = special(chat_format.PYTHON_START), special(chat_format.PYTHON_END)
        self.output_start, self.output_end = special(chat_format.OUTPUT_START), special(chat_format.OUTPUT_END)
        unsayable = (chat_format.USER_START, chat_format.USER_END, chat_format.ASSISTANT_START)
        self.forbidden = [special(name) for name in unsayable] + [self.output_start, self.output_end]

    def generate(
        self,
        prompt: list[int],
        num_samples: int = 1,
        max_tokens: int = 256,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 42,
    ) -> Iterator[tuple[list[int], list[int]]]:
        """Columns of `num_samples` ids and their mask: 1 where sampled, 0 where forced by the tool.

        A row that has ended repeats its last id with mask 0.
        """
        last = [0] * num_samples
        for rows in self._run([prompt], num_samples, max_tokens, temperature, top_k, seed):
            mask = [0] * num_samples
            for row in rows:
                last[row.index], mask[row.index] = row.ids[-1], row.mask[-1]
            yield list(last), mask

    def generate_batch(
        self,
        prompts: Sequence[list[int]],
        num_samples: int = 1,
        max_tokens: int = 256,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 42,
    ) -> list[tuple[list[int], list[int]]]:
        """Ids (the end id with them) and mask of every sample: those of the first prompt, of the second, ..."""
        results: list[tuple[list[int], list[int]]] = [([], []) for _ in range(len(prompts) * num_samples)]
        for rows in self._run(prompts, num_samples, max_tokens, temperature, top_k, seed):
            for row in rows:
                results[row.index] = row.ids, row.mask
        return results

    def stream(
        self,
        prompt: list[int],
        max_tokens: int = 256,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 42,
    ) -> Iterator[Piece]:
        """One answer as pieces of whole characters: a character whose bytes are not all there yet waits."""
        opens: dict[int, PartType] = {self.python_start: "python", self.output_start: "python_output"}
        kind: PartType = "text"
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for (row,) in self._run([prompt], 1, max_tokens, temperature, top_k, seed):
            token = row.ids[-1]
            switch = token in opens or token in (self.python_end, self.output_end) or token in self.ends
            text = decoder.decode(b"" if switch else self.tokenizer.decode_bytes([token]), final=switch)
            if text:
                yield Piece(kind, text)
            if switch:
                kind = opens.get(token, "text")
        if rest := decoder.decode(b"", final=True):
            yield Piece(kind, rest)

    def _run(
        self,
        prompts: Sequence[list[int]],
        num_samples: int,
        max_tokens: int,
        temperature: float,
        top_k: int | None,
        seed: int,
    ) -> Iterator[list[_Row]]:
        """After every step, the rows that took an id in it."""
        if temperature < 0 or (top_k or 0) < 0:
            raise UserError(f"temperature and top_k are 0 or more, got {temperature} and {top_k}")
        for prompt in prompts:
            assert prompt, "an empty prompt has no last id to go on from: lead it with <|bos|>"
            if len(prompt) >= self.context_len:
                raise ContextOverflow(
                    f"the prompt has {len(prompt)} tokens, the model's context is {self.context_len}; shorten it"
                )
        if max_tokens < 1 or not prompts:
            return
        generator = torch.Generator(self.model.device).manual_seed(seed)
        logits, cache = self._prefill(prompts, num_samples)
        rows = [
            _Row(index, min(max_tokens, self.context_len - len(prompts[index // num_samples])))
            for index in range(len(prompts) * num_samples)
        ]
        while True:
            ids = self._pick(logits, temperature, top_k, generator)
            active = [row for row in rows if not row.done]
            for row, sampled in zip(rows, ids, strict=True):
                if not row.done:
                    self._take(row, sampled)
            yield active
            if all(row.done for row in rows):
                return
            kept = [position for position, row in enumerate(rows) if not row.done]
            if len(kept) <= 0.75 * len(rows):  # fewer rows are faster, but leaving one out copies the cache
                cache.select(kept)
                rows = [rows[position] for position in kept]
            logits = self._decode([row.ids[-1] for row in rows], cache)

    @torch.no_grad()
    def _prefill(self, prompts: Sequence[list[int]], num_samples: int) -> tuple[torch.Tensor, KVCache]:
        """Read every prompt once, padded on the right where nothing looks; logits (rows, V) at each end."""
        lengths = [len(prompt) for prompt in prompts]
        longest = max(lengths)
        device = self.model.device
        padded = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts], device=device)
        cache = KVCache(self.model.config, len(prompts), device, self.model.dtype, capacity=longest + 64)
        hidden = self.model.hidden(padded, cache)
        cache.truncate(lengths)
        ends = hidden[torch.arange(len(prompts), device=device), torch.tensor(lengths, device=device) - 1]
        logits = self.model.logits(ends)
        if num_samples > 1:
            copies = [row for row in range(len(prompts)) for _ in range(num_samples)]
            cache.select(copies)
            logits = logits[torch.tensor(copies, device=device)]
        return logits, cache

    @torch.no_grad()
    def _decode(self, ids: list[int], cache: KVCache) -> torch.Tensor:
        """Logits (rows, V) after one more id per row. A row that is done takes along whatever it has room for."""
        limit = self.context_len - 1
        cache.truncate([min(length, limit) for length in cache.lengths])
        hidden = self.model.hidden(torch.tensor(ids, device=self.model.device).unsqueeze(1), cache)
        return self.model.logits(hidden[:, -1])

    def _pick(
        self, logits: torch.Tensor, temperature: float, top_k: int | None, generator: torch.Generator
    ) -> list[int]:
        logits[:, self.forbidden] = float("-inf")
        picked: list[int] = sample(logits, temperature, top_k, generator).tolist()
        return picked

    def _take(self, row: _Row, sampled: int) -> None:
        """Give the row its next id: a forced one if there is any, else the sampled one."""
        was_forced = bool(row.forced)
        token = row.forced.popleft() if was_forced else sampled
        row.ids.append(token)
        row.mask.append(0 if was_forced else 1)
        if not was_forced:
            self._watch_the_tool(row, token)
        row.done = len(row.ids) >= row.room or (not was_forced and token in self.ends)

    def _watch_the_tool(self, row: _Row, token: int) -> None:
        if token == self.python_start:
            row.call = []
        elif token == self.python_end and row.call is not None:
            answer = use_calculator(self.tokenizer.decode(row.call))
            if answer is not None:
                row.forced.extend([self.output_start, *self.tokenizer.encode(answer), self.output_end])
            row.call = None
        elif row.call is not None:
            row.call.append(token)
