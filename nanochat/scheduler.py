"""Which samples are under way: rows and their slots in the cache, what waits, what is read next, what is shared.

Slots 0, 1, ... belong to the rows that decode, in their order, so that a step attends to one block of the cache. Behind
them stand the rows of prompts that are being read. A row that has ended leaves at once, and the last one moves into
its slot; rows that wait join as soon as there is a slot, memory for their longest answer, and room in the step.

Lesson: lessons/20_sampling_and_cache
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from nanochat.kv_cache import Chunk, KVCache
from nanochat.prefixes import LEAST_SHARED, Kept, Prefixes, common_length
from nanochat.rows import Row


@dataclass(eq=False)
class Reader:
    """Rows of one prompt that is being read: for the first of them, the others get copies. `start` tokens are read."""

    rows: list[Row]
    start: int


class Scheduler:
    """Rows, the queue and the cache. `memory_bytes` bounds the cache and the texts that are kept beside it."""

    def __init__(self, cache: KVCache, max_rows: int, memory_bytes: int, prefill_tokens: int):
        self.cache, self.max_rows, self.memory_bytes = cache, max_rows, memory_bytes
        self.prefill_tokens = prefill_tokens
        self.bytes_per_token = cache.config.kv_cache_bytes(1, 1, cache.store.element_size())
        self.prefixes = Prefixes()
        self.waiting: deque[list[Row]] = deque()
        self.rows: list[Row] = []
        self.reading: deque[Reader] = deque()
        self.shared_tokens = 0  # of prompts, that did not have to be read

    def plan(self) -> list[tuple[Reader, Chunk]]:
        """The chunks to read in this step, beside one token of each of `rows`; lets in what there is room for.

        While rows decode, a step reads no more than `prefill_tokens`, so that they do not wait for long.
        """
        left = self.prefill_tokens if self.rows else max(self.prefill_tokens, self.cache.config.sequence_len)
        chunks, slot = [], len(self.rows)
        for reader in self.reading:
            chunks.append(self._chunk(reader, slot, left))
            slot += len(reader.rows)
            left -= chunks[-1][1].tokens
        while left > 0 and self.waiting and not self._will_share() and (admitted := self._admit(slot)):
            self.reading.append(admitted)
            chunks.append(self._chunk(admitted, slot, left))
            slot += len(admitted.rows)
            left -= chunks[-1][1].tokens
        ends = [*(len(row.tokens) for row in self.rows), *(chunk.start + chunk.tokens for _, chunk in chunks)]
        longest = max(ends, default=0)
        if not self.cache.can_reserve(slot, longest):  # more rows were here before
            self.cache.trim(slot, self.cache.capacity)
        self.cache.reserve(slot, longest)
        self.prefixes.shrink(self.memory_bytes - self.cache.store.nbytes)
        return chunks

    def _chunk(self, reader: Reader, slot: int, left: int) -> tuple[Reader, Chunk]:
        return reader, Chunk(slot, reader.start, min(left, reader.rows[0].prompt_tokens - reader.start))

    def _will_share(self) -> bool:
        """Whether half of the prompt that waits longest is being read just now for another row, and not known yet."""
        row = self.waiting[0][0]
        if row.scores_prompt:
            return False
        shared = max((common_length(reader.rows[0].tokens, row.tokens) for reader in self.reading), default=0)
        return shared >= max(LEAST_SHARED, row.prompt_tokens // 2) and shared > 2 * self._known(row)[0]

    def _admit(self, slot: int) -> Reader | None:
        """As many of the rows that wait longest as there is room for, from this slot on; None where there is none."""
        group = self.waiting[0]
        under_way = [*self.rows, *(row for reader in self.reading for row in reader.rows)]
        longest = max(row.most_tokens for row in [*under_way, group[0]])
        fitting = min(self.max_rows, self.memory_bytes // (self.bytes_per_token * longest)) - slot
        if not under_way:
            fitting = max(fitting, 1)
        if fitting < 1:
            return None
        soon = min(fitting, sum(map(len, self.waiting)))
        reader = Reader(group[:fitting], 0)
        del group[:fitting]
        if not group:
            self.waiting.popleft()
        tokens = reader.rows[0].prompt_tokens
        if not self.cache.can_reserve(slot + soon, tokens):  # a longer row was here before
            self.cache.trim(slot, longest)
        self.cache.reserve(slot + soon, tokens)
        reader.start = self._share(reader.rows[0], slot)
        self.shared_tokens += reader.start
        return reader

    def _known(self, row: Row) -> tuple[int, Kept | int]:
        """How much of the start of the row's prompt was read before, and what holds it: a kept text or a slot.

        The prompt's last token is always read: the logits behind it are needed. For logprobs all are.
        """
        if row.scores_prompt:
            return 0, 0
        start = row.tokens[:-1]
        kept, length = self.prefixes.find(start)
        lengths = [min(common_length(other.tokens, start), len(other.tokens) - 1) for other in self.rows]
        if lengths and max(lengths) >= max(length, LEAST_SHARED):
            return max(lengths), lengths.index(max(lengths))
        return (0, 0) if kept is None or length < LEAST_SHARED else (length, kept)

    def _share(self, row: Row, slot: int) -> int:
        """Fill the slot with what is known of the row's prompt; how many tokens that is."""
        length, holder = self._known(row)
        if isinstance(holder, Kept):
            self.prefixes.use(holder)
            self.cache.put(slot, holder.data, length)
        elif length:
            self.cache.copy(holder, slot, length)
        return length

    def have_read(self, chunks: Sequence[tuple[Reader, Chunk]]) -> None:
        """Note that the chunks lie in the cache. Rows whose prompt is read decode from now on."""
        for reader, chunk in chunks:
            reader.start += chunk.tokens
            if reader.start == reader.rows[0].prompt_tokens:
                for other in range(1, len(reader.rows)):
                    self.cache.copy(chunk.slot, chunk.slot + other, reader.start)
                self.reading.remove(reader)
                self.rows += reader.rows

    def remove_finished(self) -> None:
        """Let rows that have ended go; those that are left stand in the first slots again."""
        if all(row.finish_reason is None for row in self.rows):
            return
        before = len(self.rows)
        for slot, row in enumerate(self.rows):
            if row.finish_reason is not None and row.keep:
                self._keep(slot, row)
        slot = 0
        while slot < len(self.rows):
            if self.rows[slot].finish_reason is None:
                slot += 1
                continue
            last = self.rows.pop()
            if slot < len(self.rows):
                if last.finish_reason is None:
                    self.cache.copy(len(self.rows), slot, len(last.tokens) - 1)
                self.rows[slot] = last
        target = len(self.rows)
        for reader in self.reading:
            self.cache.copy(target + before - len(self.rows), target, reader.start)
            target += len(reader.rows)

    def remove_cancelled(self) -> None:
        """The same between steps, for rows that wait or are being read too."""
        going: list[list[Row]] = [[row for row in group if row.finish_reason is None] for group in self.waiting]
        self.waiting = deque(group for group in going if group)
        self.reading = deque(reader for reader in self.reading if reader.rows[0].finish_reason is None)
        self.remove_finished()

    def _keep(self, slot: int, row: Row) -> None:
        """Keep what was read of a row for prompts that go on from it."""
        ids, room = row.tokens[:-1], self.memory_bytes - self.cache.store.nbytes
        if len(ids) < LEAST_SHARED or len(ids) * self.bytes_per_token > room or self.prefixes.holds(ids):
            return
        self.prefixes.shrink(room - len(ids) * self.bytes_per_token)
        self.prefixes.add(ids, self.cache.take(slot, len(ids)))
