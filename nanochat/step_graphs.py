"""Steps that read one token for each row, recorded once for a size and played again: CUDA graphs.

A step of a small model is some hundred kernels of a few microseconds each, which Python cannot launch fast enough; a
graph is launched as one. It is made for a number of rows and a length, so that rows are filled up with others whose
slots nobody uses, and the keys behind each row's end are masked.

Lesson: lessons/17_one_gpu
"""

import logging
from collections.abc import Sequence

import torch

from nanochat.decoder import Decoder
from nanochat.kv_cache import KVCache, Reading

log = logging.getLogger(__name__)

LENGTHS = 512
"""Tokens of the cache that a graph looks at are a multiple of this."""
WARM_UPS = 2
"""Runs before the recording: libraries set themselves up in the first ones."""


class _FixedReading(Reading):
    """A token for each of the first slots, at `positions` (R,) below `longest` that may change between two plays."""

    def __init__(self, cache: KVCache, positions: torch.Tensor, longest: int, previous: torch.Tensor | None):
        rows = len(positions)
        self.cache, self.lengths, self.chunks = cache, [0] * rows, ()
        self.positions, self.previous = positions, previous
        self.index = (cache.starts[:rows] + positions.unsqueeze(1)).view(-1)
        self._masks, self._apart = {}, False
        self._held = [layer.unbind(0) for layer in cache.store[:, :, :rows, :, :longest].unbind(0)]


class Step:
    """One step of fixed size: its inputs, and how to compute it."""

    def __init__(self, decoder: Decoder, cache: KVCache, rows: int, longest: int):
        self.decoder, self.cache, self.rows, self.longest = decoder, cache, rows, longest
        self.inputs = torch.zeros(3, rows, dtype=torch.long, device=decoder.device)  # ids, positions, ids before
        self.recorded: tuple[torch.cuda.CUDAGraph, torch.Tensor] | None = None  # and where it puts the logits

    def set(self, ids: Sequence[int], lengths: Sequence[int], previous: Sequence[int] | None) -> None:
        """What the first rows read next; the others read id 0 at their slots' beginning."""
        spare = [0] * (self.rows - len(ids))
        given = [[*ids, *spare], [*lengths, *spare], [*(previous or ids), *spare]]
        self.inputs.copy_(torch.tensor(given))

    def compute(self) -> torch.Tensor:
        """Raw logits (rows, V)."""
        ids, positions, before = self.inputs
        previous = before if self.decoder.config.looks_back else None
        reading = _FixedReading(self.cache, positions, self.longest, previous)
        return self.decoder.raw_logits(self.decoder.hidden(ids, reading))

    def record(self, pool: tuple[int, int]) -> None:
        """Record the computation for `play`; the inputs must be those of a real step, since it is computed too."""
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                self.compute()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):  # type: ignore[arg-type]
            logits = self.compute()
        self.recorded = graph, logits

    def play(self) -> torch.Tensor:
        """Raw logits (rows, V), which the next play overwrites."""
        assert self.recorded is not None, "a step is recorded before it is played"
        graph, logits = self.recorded
        graph.replay()
        return logits


class StepGraphs:
    """The steps of one decoder over one cache, by size."""

    def __init__(self, decoder: Decoder, cache: KVCache):
        self.decoder, self.cache, self.store = decoder, cache, cache.store
        self.steps: dict[tuple[int, int], Step] = {}
        self.pool = torch.cuda.graph_pool_handle()
        self.works = True

    def raw_logits(
        self, ids: Sequence[int], lengths: Sequence[int], previous: Sequence[int] | None
    ) -> torch.Tensor | None:
        """Raw logits (rows, V) of the next ids of the first slots; None where graphs do not work here."""
        size = step_size(len(ids), max(lengths) + 1, self.cache.config.sequence_len)
        if not self.works or not self.cache.can_reserve(*size):
            return None
        self.cache.reserve(*size)
        if self.cache.store is not self.store:  # what was recorded reads and writes the old one
            self.store = self.cache.store
            self.steps.clear()
        step = self.steps.get(size)
        if step is None:
            step = Step(self.decoder, self.cache, *size)
            step.set(ids, lengths, previous)
            try:
                step.record(self.pool)
            except RuntimeError as failure:
                self.works = False
                log.warning("CUDA graphs do not work here, so that small models decode slower: %s", failure)
                return None
            self.steps[size] = step
        step.set(ids, lengths, previous)
        return step.play()[: len(ids)]


def step_size(rows: int, longest: int, sequence_len: int) -> tuple[int, int]:
    """The size of a recorded step that this many rows of at most this many tokens fit into."""
    fitting = 1 << (rows - 1).bit_length() if rows <= 32 else -(-rows // 32) * 32
    return fitting, min(-(-longest // LENGTHS) * LENGTHS, sequence_len)
