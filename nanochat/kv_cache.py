"""Keys and values of the tokens already read, a slot for each sequence, and what one forward pass adds and sees.

Sequences of any lengths are read together: the new tokens of all of them stand behind each other, N in all, one for
each of the first slots and then chunks of some others. Only attention knows which are whose.

Shapes: N new tokens, H heads (key-value heads where keys are meant), S capacity in tokens, D channels per head.

Lesson: lessons/20_sampling_and_cache
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from nanochat.attention import attend, window_mask
from nanochat.gpt_config import GPTConfig

# Rows of different lengths are attended to together as if all were as long as the longest, unless that means this many
# keys of padding for each: on a CPU one call more costs about as much as they do.
PADDING_KEYS = 256
# Chunks are attended to as if they and what they see were multiples of this many tokens: torch's attention on a CPU
# compiles bfloat16 kernels for every size, and every thread keeps them all (60 KB each, 2,200 after 1,800 requests).
CPU_BLOCK = 64


@dataclass(frozen=True)
class Chunk:
    """`tokens` new tokens of one slot, behind the `start` that it holds."""

    slot: int
    start: int
    tokens: int


class KVCache:
    """One tensor (layers, 2, slots, H, S, D), which grows. What a slot holds its owner knows."""

    def __init__(
        self,
        config: GPTConfig,
        device: torch.device,
        dtype: torch.dtype,
        slots: int = 1,
        capacity: int = 64,
        limit_bytes: int = 1 << 62,
    ):
        self.config, self.windows, self.limit_bytes = config, config.windows, limit_bytes
        shape = self._shape(slots, min(capacity, config.sequence_len))
        self.store = torch.zeros(shape, device=device, dtype=dtype)
        self._name_parts()

    @property
    def slots(self) -> int:
        """How many sequences fit."""
        return self.store.size(2)

    @property
    def capacity(self) -> int:
        """How many tokens of each fit."""
        return self.store.size(4)

    def reserve(self, slots: int, capacity: int) -> None:
        """Grow until so many sequences of so many tokens fit: by half, if that is within the limit."""
        if slots <= self.slots and capacity <= self.capacity:
            return
        slots, capacity = max(slots, self.slots), max(capacity, self.capacity)
        ample = (
            slots if slots == self.slots else max(slots, self.slots * 3 // 2),
            capacity
            if capacity == self.capacity
            else min(max(capacity, self.capacity * 3 // 2), self.config.sequence_len),
        )
        shape = self._shape(*ample)
        if math.prod(shape) * self.store.element_size() > self.limit_bytes:
            shape = self._shape(slots, capacity)
        grown = self.store.new_zeros(shape)
        grown[:, :, : self.slots, :, : self.capacity] = self.store
        self.store = grown
        self._name_parts()

    def can_reserve(self, slots: int, capacity: int) -> bool:
        """Whether so many sequences of so many tokens are within the limit."""
        shape = self._shape(max(slots, self.slots), max(capacity, self.capacity))
        return math.prod(shape) * self.store.element_size() <= max(self.limit_bytes, self.store.nbytes)

    def trim(self, slots: int, capacity: int) -> None:
        """Shrink to so many sequences of so many tokens; what lies behind is forgotten."""
        self.store = self.store[:, :, : max(slots, 1), :, :capacity].clone()
        self._name_parts()

    def release(self) -> None:
        """Give the memory back; nothing is held any more."""
        self.store = self.store.new_zeros(self._shape(1, min(64, self.config.sequence_len)))
        self._name_parts()

    def take(self, slot: int, tokens: int) -> torch.Tensor:
        """A copy of a slot's first tokens, (layers, 2, H, tokens, D)."""
        return self.store[:, :, slot, :, :tokens].clone()

    def put(self, slot: int, kept: torch.Tensor, tokens: int) -> None:
        """Make the first `tokens` of what was taken those of a slot."""
        self.store[:, :, slot, :, :tokens] = kept[..., :tokens, :]

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Give a slot the first tokens of another."""
        self.store[:, :, target, :, :tokens] = self.store[:, :, source, :, :tokens]

    def _shape(self, slots: int, capacity: int) -> tuple[int, ...]:
        return (self.config.n_layer, 2, slots, self.config.n_kv_head, capacity, self.config.head_dim)

    def _name_parts(self) -> None:
        """Views that every layer of every step needs: of each layer keys and values, and the same as lists of rows."""
        self.parts = [(layer[0], layer[1]) for layer in self.store]  # (slots, H, S, D)
        width = self.config.head_dim
        self.flat = [
            (keys.view(-1, width), values.view(-1, width)) for keys, values in self.parts
        ]  # (slots x H x S, D)
        heads = self.config.n_kv_head
        starts = torch.arange(self.slots * heads, device=self.store.device) * self.capacity
        self.starts = starts.view(self.slots, heads)  # where in `flat` each slot's heads begin


class Reading:
    """What one forward pass reads: a token for each of the first slots, `lengths` of which they hold, then `chunks`.

    `previous` are the ids before each of the N tokens, -1 where there is none, for models that look back.
    """

    def __init__(
        self,
        cache: KVCache,
        lengths: Sequence[int] = (),
        chunks: Sequence[Chunk] = (),
        previous: Sequence[int] | None = None,
    ):
        self.cache, self.lengths, self.chunks = cache, lengths, chunks
        ends = [*(length + 1 for length in lengths), *(chunk.start + chunk.tokens for chunk in chunks)]
        limit = cache.config.sequence_len
        assert max(ends) <= limit, f"{max(ends)} tokens do not fit the context of {limit}"
        cache.reserve(max(len(lengths), *(chunk.slot + 1 for chunk in chunks), 0), max(ends))
        device, rows = cache.store.device, len(lengths)
        positions, starts = list(lengths), cache.starts[:rows]
        if chunks:
            slots = list(range(rows))
            for chunk in chunks:
                positions += range(chunk.start, chunk.start + chunk.tokens)
                slots += [chunk.slot] * chunk.tokens
            starts = cache.starts[torch.tensor(slots, device=device)]
        self.positions = torch.tensor(positions, device=device)  # (N,)
        self.index = (starts + self.positions.unsqueeze(1)).view(-1)  # (N x H,) into `flat`
        self.previous = torch.tensor(previous, device=device) if previous is not None else None
        self._masks: dict[tuple[int, int | None], torch.Tensor | None] = {}
        longest = max(lengths, default=-1) + 1
        self._block = CPU_BLOCK if device.type == "cpu" else 1
        padding = rows * longest - sum(lengths)
        self._apart = device.type == "cpu" and padding > (PADDING_KEYS + 1) * rows
        self._held = [layer.unbind(0) for layer in cache.store[:, :, :rows, :, :longest].unbind(0)]

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Take up keys and values (N, H, D) of the new tokens; what their queries see, (N, H x D)."""
        all_keys, all_values = self.cache.flat[layer]
        all_keys.index_copy_(0, self.index, k.reshape(-1, all_keys.size(1)))
        all_values.index_copy_(0, self.index, v.reshape(-1, all_keys.size(1)))
        window, first = self.cache.windows[layer], len(self.lengths)
        if not self.chunks and not self._apart:
            keys, values = self._held[layer]
            return self._one_each(q, keys, values, self.lengths, window)
        seen = []
        if self._apart:
            for row in range(first):
                part = slice(row, row + 1)
                keys, values = (held[part, :, : self.lengths[row] + 1] for held in self._held[layer])
                seen.append(self._one_each(q[part], keys, values, self.lengths[part], window))
        elif first:
            keys, values = self._held[layer]
            seen.append(self._one_each(q[:first], keys, values, self.lengths, window))
        for number, chunk in enumerate(self.chunks):
            part = slice(first, first + chunk.tokens)
            fresh = (k[part], v[part]) if chunk.start == 0 else None
            seen.append(self._chunk(number, q[part], fresh, layer))
            first = part.stop
        return seen[0] if len(seen) == 1 else torch.cat(seen)

    def _one_each(
        self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, lengths: Sequence[int], window: int | None
    ) -> torch.Tensor:
        """One query (n, H, D) for each of n slots; heads that share keys are queries of one head."""
        rows, shortest, end = len(lengths), min(lengths), keys.size(2)
        start = 0 if window is None else max(0, shortest + 1 - window)
        if start:
            keys, values = keys[:, :, start:], values[:, :, start:]
        mask = None
        if shortest + 1 < end:
            mask = self._mask((-1, window), self.positions[:rows], start, end).view(rows, 1, 1, -1)
        grouped = q.view(rows, keys.size(1), -1, q.size(-1))
        return F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask).view(rows, -1)

    def _chunk(
        self, number: int, q: torch.Tensor, fresh: tuple[torch.Tensor, torch.Tensor] | None, layer: int
    ) -> torch.Tensor:
        """The queries (T, H, D) of one chunk; `fresh` are all the keys and values there are, (T, H, D)."""
        chunk, window = self.chunks[number], self.cache.windows[layer]
        q = self._in_blocks(q.transpose(0, 1)).unsqueeze(0)  # (1, H, T or more, D)
        if fresh is not None:
            k, v = (self._in_blocks(new.transpose(0, 1)).unsqueeze(0) for new in fresh)
            narrow = None if window is None or chunk.tokens <= window else window_mask(q.size(2), window, q.device)
            seen = attend(q, k, v, narrow, causal=narrow is None)
        else:
            start = 0 if window is None else max(0, chunk.start + 1 - window)
            start -= start % self._block
            end = chunk.start + chunk.tokens
            end = min(end + -end % self._block, self.cache.capacity)  # what lies behind the chunk is hidden
            held = slice(chunk.slot, chunk.slot + 1)
            k, v = (self._in_blocks(part[held, :, start:end]) for part in self.cache.parts[layer])
            positions = torch.arange(chunk.start, chunk.start + q.size(2), device=q.device)
            seen = attend(q, k, v, self._mask((number, window), positions, start, start + k.size(2)), causal=False)
        return seen[0, :, : chunk.tokens].transpose(0, 1).reshape(chunk.tokens, -1)

    def _in_blocks(self, vectors: torch.Tensor) -> torch.Tensor:
        """With zeros behind the last of (..., T, D), so that T is a multiple of the block."""
        missing = -vectors.size(-2) % self._block
        return F.pad(vectors, (0, 0, 0, missing)) if missing else vectors

    def _mask(self, name: tuple[int, int | None], positions: torch.Tensor, start: int, end: int) -> torch.Tensor:
        """What is added to the scores (T, end - start) of queries at `positions`; made once for all layers alike."""
        made = self._masks.get(name)
        if made is None:
            keys, at = torch.arange(start, end, device=positions.device), positions.unsqueeze(1)
            hidden = keys > at if name[1] is None else (keys > at) | (keys <= at - name[1])
            made = torch.zeros(hidden.shape, dtype=self.cache.store.dtype, device=hidden.device)
            made = self._masks[name] = made.masked_fill_(hidden, float("-inf"))
        return made
