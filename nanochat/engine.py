"""Generation: many prompts at once, each answered as if it were alone, the tool called on the way.

Every step reads one id of each row that decodes and a chunk of the prompts that came, in one forward pass. What stands
between `<|python_start|>` and `<|python_end|>` is computed by the calculator, and its answer forced upon the row before
the model goes on. A row ends at `<|assistant_end|>`, at `<|bos|>` (a new document), at a stop text or id, after
`max_tokens`, or where the context ends.

A row's ids depend on its own prompt, parameters and random numbers alone, up to rounding: kernels add up in another
order for another number of rows. In float32 that is 1e-5 of a logit, in bfloat16 it may be the last of its eight bits,
so that there a near tie can go the other way in other company.

Lesson: lessons/20_sampling_and_cache
"""

import random
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from nanochat.command import UserError
from nanochat.decoder import Decoder
from nanochat.gpt import GPT, Linear
from nanochat.hardware import available_memory_bytes
from nanochat.kv_cache import Chunk, KVCache, Reading
from nanochat.quantize import prepare
from nanochat.rows import ContextOverflow, Row, Speech, TokenLogprob, Update
from nanochat.runtime import give_back_freed_memory
from nanochat.sampling import Sampler, SamplingParams, Seen, logprobs_of, needs_seen
from nanochat.scheduler import Scheduler
from nanochat.step_graphs import StepGraphs
from nanochat.tokenizer import RustBPETokenizer
from nanochat.tools import check_tools
from nanochat.transcript import Marks, Piece, Transcript

LOGPROB_TOKENS = 256
"""Tokens of a prompt whose logits are there at a time."""


@dataclass(frozen=True)
class EngineStats:
    """What an engine is doing and has done."""

    running: int
    """Samples that decode or whose prompt is being read."""
    waiting: int
    """Samples without a slot."""
    max_rows: int
    prompt_tokens: int
    """Of all prompts, since the start; `shared_tokens` of them were known from other texts."""
    shared_tokens: int
    generated_tokens: int
    cache_bytes: int
    kept_bytes: int
    """Beside the cache, of texts that have ended."""
    memory_bytes: int
    """What both may take."""


class Engine:
    """A model with its tokenizer, ready to generate. Not for two threads at once.

    `memory_bytes` bounds the cache and the texts that are kept for prompts which go on from them; None takes a third
    of what is free. `prefill_tokens` is how much of new prompts a step reads while others decode. `tools` are the names
    of those that a model may call beside the calculator.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: RustBPETokenizer,
        *,
        max_rows: int = 256,
        memory_bytes: int | None = None,
        prefill_tokens: int = 256,
        tools: Sequence[str] = (),
    ):
        check_tools(tools)
        self.model, self.tokenizer = model, tokenizer
        self._decoder = _decoder_of(model)
        self.context_len = model.config.sequence_len
        self._speech = Speech(tokenizer, Marks(tokenizer), tools)
        nameless = range(tokenizer.get_vocab_size(), model.config.vocab_size)
        self._forbidden = [*self._speech.marks.unsayable, *nameless]
        free = _free_bytes(model.device) // 3 if memory_bytes is None else memory_bytes
        cache = KVCache(model.config, model.device, model.dtype, limit_bytes=free)
        self._scheduler = Scheduler(cache, max_rows, free, prefill_tokens)
        self._graphs = self._graphs_of_steps()
        self._sampler: tuple[list[Row], Sampler] | None = None
        self._pending: list[Update] = []
        self._requests = self._prompt_tokens = self._generated_tokens = 0
        self._weights_version = self._version_of_weights()

    # --- requests -----------------------------------------------------------------------------------------------------

    def submit(self, prompt: Sequence[int], params: SamplingParams, n: int = 1) -> int:
        """Ask for n samples behind a prompt; the number that their updates bear.

        Raises ContextOverflow where the prompt leaves no room, UserError for what can never be answered.
        """
        return self._submit(list(prompt), params, n, keep=True, text=True)

    def step(self) -> list[Update]:
        """Compute one forward pass; what each sample gained. Nothing is under way when nothing is `busy`."""
        updates, self._pending = self._pending, []
        return updates + self._step()

    @torch.inference_mode()
    def cancel(self, request: int) -> None:
        """End what is left of a request; the next step says so. Nothing happens to one that has ended."""
        gone = [row for row in self._all_rows() if row.request == request]
        for row in gone:
            row.finish_reason = "cancelled"
            self._pending.append(Update(request, row.sample, finish_reason="cancelled"))
        self._scheduler.remove_cancelled()

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do or to tell."""
        scheduler = self._scheduler
        return bool(self._pending or scheduler.rows or scheduler.reading or scheduler.waiting)

    def stats(self) -> EngineStats:
        """What it is doing and has done."""
        scheduler = self._scheduler
        waiting = sum(len(group) for group in scheduler.waiting)
        return EngineStats(
            len(self._all_rows()) - waiting, waiting, scheduler.max_rows,
            self._prompt_tokens, scheduler.shared_tokens, self._generated_tokens,
            scheduler.cache.store.nbytes, scheduler.prefixes.bytes, scheduler.memory_bytes,
        )  # fmt: skip

    def tidy(self) -> None:
        """Give pages of memory that nothing is left in back to the system: texts of many lengths leave holes."""
        give_back_freed_memory()

    # --- whole answers ------------------------------------------------------------------------------------------------

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
        if num_samples < 1 or max_tokens < 1:
            return
        params = SamplingParams(max_tokens=max_tokens, temperature=temperature, top_k=top_k, seed=seed)
        rows: list[tuple[list[int], list[int]]] = [([], []) for _ in range(num_samples)]
        going, column = set(range(num_samples)), 0
        for updates in self._run([self._submit(prompt, params, num_samples, keep=False, text=False)]):
            for update in updates:
                rows[update.sample][0].extend(update.ids)
                rows[update.sample][1].extend(update.mask)
                if update.finish_reason is not None:
                    going.discard(update.sample)
            ready = min((len(rows[row][0]) for row in going), default=max(len(ids) for ids, _ in rows))
            for place in range(column, ready):
                there = [place < len(ids) for ids, _ in rows]
                yield (
                    [ids[place if has else -1] for (ids, _), has in zip(rows, there, strict=True)],
                    [mask[place] if has else 0 for (_, mask), has in zip(rows, there, strict=True)],
                )
            column = max(column, ready)

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
        params = [
            SamplingParams(max_tokens=max_tokens, temperature=temperature, top_k=top_k, seed=seed + 1_000_003 * number)
            for number in range(len(prompts))
        ]
        for prompt, one in zip(prompts, params, strict=True):
            self._check(prompt, one, num_samples)
        if max_tokens < 1:
            return results
        requests = [
            self._submit(prompt, one, num_samples, False, False) for prompt, one in zip(prompts, params, strict=True)
        ]
        first = {request: number * num_samples for number, request in enumerate(requests)}
        for updates in self._run(requests):
            for update in updates:
                ids, mask = results[first[update.request] + update.sample]
                ids.extend(update.ids)
                mask.extend(update.mask)
        if not self._all_rows():
            self._scheduler.cache.release()  # many rows at once are for the trainer, which needs the memory now
        return results

    def stream(
        self,
        prompt: Sequence[int],
        max_tokens: int | SamplingParams = 256,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int | None = 42,
    ) -> Iterator[Piece]:
        """One answer as pieces of whole characters; all parameters may be given at once in the second place."""
        if isinstance(max_tokens, SamplingParams):
            params = max_tokens
        else:
            params = SamplingParams(max_tokens=max_tokens, temperature=temperature, top_k=top_k, seed=seed)
        for updates in self._run([self.submit(prompt, params)]):
            for update in updates:
                yield from update.pieces

    # --- the work -----------------------------------------------------------------------------------------------------

    def _run(self, requests: Sequence[int]) -> Iterator[list[Update]]:
        """The updates of these requests, step by step; those of others wait for `step`."""
        mine, left = set(requests), len([row for row in self._all_rows() if row.request in requests])
        try:
            while left:
                updates = self.step()
                ours = [update for update in updates if update.request in mine]
                self._pending = [update for update in updates if update.request not in mine]
                left -= sum(update.finish_reason is not None for update in ours)
                yield ours
        finally:
            if left:
                for request in requests:
                    self.cancel(request)
                self._pending = [update for update in self._pending if update.request not in mine]

    def _check(self, prompt: Sequence[int], params: SamplingParams, n: int) -> None:
        if not prompt:
            raise UserError("the prompt is empty: lead it with <|bos|>")
        vocab_size = self.model.config.vocab_size
        for name, ids in (("the prompt", prompt), ("logit_bias", params.logit_bias)):
            if wrong := [token for token in ids if not 0 <= token < vocab_size]:
                raise UserError(f"{name} names the id {wrong[0]}, the vocabulary has {vocab_size} ids from 0 on")
        if n < 1:
            raise UserError(f"n must be 1 or more, got {n}")
        if len(prompt) + min(params.max_tokens, 1) > self.context_len:
            raise ContextOverflow(
                f"the prompt has {len(prompt)} tokens, the model's context is {self.context_len}; shorten it"
            )

    def _submit(self, prompt: list[int], params: SamplingParams, n: int, keep: bool, text: bool) -> int:
        self._check(prompt, params, n)
        if not self._all_rows() and (version := self._version_of_weights()) != self._weights_version:
            self._weights_version = version  # the model has learned since: what was made of it is out of date
            self._scheduler.prefixes.shrink(0)
            self._decoder = _decoder_of(self.model)
            self._graphs = self._graphs_of_steps()
        self._requests += 1
        self._prompt_tokens += len(prompt)
        seed = secrets.randbits(63) if params.seed is None else params.seed
        room = min(params.max_tokens, self.context_len - len(prompt))
        rows = []
        for sample in range(n):
            row = Row(
                self._requests,
                sample,
                params,
                self._speech,
                list(prompt),
                len(prompt),
                room,
                random.Random(f"{seed}/{sample}"),
                keep and sample == 0,
            )
            if needs_seen(params):
                row.seen = Seen(frozenset(prompt))
            if text or params.stop:
                row.transcript = Transcript(self.tokenizer, self._speech.marks, params.stop)
            rows.append(row)
        self._scheduler.waiting.append(rows)
        return self._requests

    def _all_rows(self) -> list[Row]:
        scheduler = self._scheduler
        read = (row for reader in scheduler.reading for row in reader.rows)
        return [*scheduler.rows, *read, *(row for group in scheduler.waiting for row in group)]

    def _graphs_of_steps(self) -> StepGraphs | None:
        on_cuda = self._decoder.device.type == "cuda"
        return StepGraphs(self._decoder, self._scheduler.cache) if on_cuda else None

    def _version_of_weights(self) -> int:
        return sum(parameter._version for parameter in self.model.parameters())

    @torch.inference_mode()
    def _step(self) -> list[Update]:
        """One forward pass, and one more id for every row whose prompt is read."""
        scheduler = self._scheduler
        chunks = scheduler.plan()
        decoding = len(scheduler.rows)
        if not decoding and not chunks:
            return []
        if self._graphs is not None and not chunks:
            raw = self._graphs.raw_logits(*self._next(scheduler.rows))
            if raw is not None:
                updates = self._extend(raw)
                scheduler.remove_finished()
                return updates
        hidden = self._read(scheduler.rows, [(reader.rows[0], chunk) for reader, chunk in chunks])
        picks, first = list(range(decoding)), decoding
        for reader, chunk in chunks:
            if reader.rows[0].scores_prompt:
                self._score_prompt(reader.rows[0], chunk, hidden[first : first + chunk.tokens])
            first += chunk.tokens
            if chunk.start + chunk.tokens == reader.rows[0].prompt_tokens:
                picks += [first - 1] * len(reader.rows)
        scheduler.have_read(chunks)
        updates = []
        if picks:
            whole = picks == list(range(hidden.size(0)))
            picked = hidden if whole else hidden[torch.tensor(picks, device=hidden.device)]
            updates = self._extend(self._decoder.raw_logits(picked))
        scheduler.remove_finished()
        return updates

    def _next(self, rows: Sequence[Row]) -> tuple[list[int], list[int], list[int] | None]:
        """What is read of rows that decode: their last ids, how many tokens lie before, and the ids before."""
        ids = [row.tokens[-1] for row in rows]
        lengths = [len(row.tokens) - 1 for row in rows]
        return ids, lengths, [row.tokens[-2] for row in rows] if self.model.config.looks_back else None

    def _read(self, rows: Sequence[Row], chunks: Sequence[tuple[Row, Chunk]]) -> torch.Tensor:
        """The model's output (N, C) for the last id of each row and the ids of each chunk."""
        ids, lengths, previous = self._next(rows)
        for row, chunk in chunks:
            ids += row.tokens[chunk.start : chunk.start + chunk.tokens]
            if previous is not None:
                before = row.tokens[chunk.start - 1] if chunk.start else -1
                previous += [before, *row.tokens[chunk.start : chunk.start + chunk.tokens - 1]]
        reading = Reading(self._scheduler.cache, lengths, [chunk for _, chunk in chunks], previous)
        return self._decoder.hidden(torch.tensor(ids, device=self.model.device), reading)

    def _extend(self, raw: torch.Tensor) -> list[Update]:
        """Give every row that decodes its next id, from raw logits (rows, V)."""
        rows, softcap = self._scheduler.rows, self.model.config.logit_softcap
        asked = [place for place, row in enumerate(rows) if row.params.logprobs is not None]
        if self._sampler is None or self._sampler[0] != rows:
            self._sampler = list(rows), Sampler([row.params for row in rows], self._forbidden, softcap)
        uniforms = [1.0 - row.random.random() for row in rows]
        sampled = self._sampler[1].draw(raw, uniforms, [row.seen for row in rows])
        tokens = [row.forced[0] if row.forced else token for row, token in zip(rows, sampled, strict=True)]
        logprobs: list[TokenLogprob | None] = [None] * len(rows)
        if asked:
            tops = [rows[place].params.logprobs or 0 for place in asked]
            found = logprobs_of(
                raw[torch.tensor(asked, device=raw.device)], [tokens[place] for place in asked], tops, softcap
            )
            for place, logprob in zip(asked, found, strict=True):
                logprobs[place] = TokenLogprob(tokens[place], *logprob)
        updates = [row.take(token, logprob) for row, token, logprob in zip(rows, tokens, logprobs, strict=True)]
        self._generated_tokens += sum(len(update.ids) for update in updates)
        return updates

    def _score_prompt(self, row: Row, chunk: Chunk, hidden: torch.Tensor) -> None:
        """Note the logprobs of the prompt's ids behind each of the chunk's, from the model's output (T, C)."""
        if row.prompt_logprobs is None:
            row.prompt_logprobs = [None]
        last = min(chunk.start + chunk.tokens, row.prompt_tokens - 1)
        for start in range(chunk.start, last, LOGPROB_TOKENS):
            end = min(start + LOGPROB_TOKENS, last)
            raw = self._decoder.raw_logits(hidden[start - chunk.start : end - chunk.start])
            ids = row.tokens[start + 1 : end + 1]
            tops = [row.params.prompt_logprobs or 0] * len(ids)
            found = logprobs_of(raw, ids, tops, self.model.config.logit_softcap)
            row.prompt_logprobs += [TokenLogprob(token, *logprob) for token, logprob in zip(ids, found, strict=True)]


def _decoder_of(model: GPT | Decoder) -> Decoder:
    """A decoder of the model as it is now: over copies of the weights where they would be cast at every step."""
    if not isinstance(model, GPT):
        return model
    as_trained = isinstance(model.lm_head, Linear)
    cast = as_trained and model.lm_head.weight.dtype != model.dtype
    laid_out = as_trained and model.device.type == "cpu" and model.dtype == torch.bfloat16
    if not cast and not laid_out:
        return Decoder(model)
    return Decoder(prepare(model, "bfloat16" if model.dtype == torch.bfloat16 else "float32"))


def _free_bytes(device: torch.device) -> int:
    """Memory of the device that nobody uses."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_memory_bytes()
