"""Keys and values of the tokens already read, for rows of different lengths; grows as they do.

Shapes: B rows, H key-value heads, T new tokens, S capacity in tokens, D channels per head.
"""

import torch

from nanochat.gpt_config import GPTConfig


class KVCache:
    """One (2, B, H, S, D) tensor per layer. A row's length counts the tokens whose keys and values it holds."""

    def __init__(self, config: GPTConfig, rows: int, device: torch.device, dtype: torch.dtype, capacity: int = 128):
        shape = (2, rows, config.n_kv_head, capacity, config.head_dim)
        self.layers = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.ids = torch.full((rows, capacity), -1, device=device) if config.looks_back else None  # (B, S)
        self.lengths = [0] * rows

    @property
    def rows(self) -> int:
        """How many sequences it holds."""
        return len(self.lengths)

    @property
    def capacity(self) -> int:
        """How many tokens per row fit before it grows."""
        return self.layers[0].size(3)

    def positions(self, new_tokens: int) -> torch.Tensor:
        """The positions (B, T) that the next `new_tokens` of each row take."""
        starts = torch.tensor(self.lengths, device=self.layers[0].device)
        return starts.unsqueeze(1) + torch.arange(new_tokens, device=starts.device)

    def reserve(self, new_tokens: int) -> None:
        """Grow, at least by half, when the longest row has no room for `new_tokens` more."""
        needed = max(self.lengths) + new_tokens
        if needed <= self.capacity:
            return
        extra = max(needed - self.capacity, self.capacity // 2)
        self.layers = [torch.nn.functional.pad(layer, (0, 0, 0, extra)) for layer in self.layers]
        if self.ids is not None:
            self.ids = torch.nn.functional.pad(self.ids, (0, extra), value=-1)

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Put keys and values (B, H, T, D) behind what each row holds; returns all of them (B, H, longest + T, D).

        Rows of different lengths take one token at a time. Lengths change by `advance`, once per forward pass.
        """
        store, new_tokens, longest = self.layers[layer], keys.size(2), max(self.lengths)
        if min(self.lengths) == longest:
            store[0, :, :, longest : longest + new_tokens] = keys
            store[1, :, :, longest : longest + new_tokens] = values
        else:
            assert new_tokens == 1, f"rows of different lengths take one token at a time, got {new_tokens}"
            rows = torch.arange(self.rows, device=store.device)
            at = torch.tensor(self.lengths, device=store.device)
            store[0, rows, :, at] = keys[:, :, 0]
            store[1, rows, :, at] = values[:, :, 0]
        end = longest + new_tokens
        return store[0, :, :, :end], store[1, :, :, :end]

    def take_ids(self, idx: torch.Tensor) -> torch.Tensor:
        """Note the new ids (B, T); returns the id (B,) before them in each row, -1 where there is none."""
        assert self.ids is not None, "this model does not look at ids before"
        rows = torch.arange(self.rows, device=idx.device)
        at = self.positions(idx.size(1))
        last = self.ids[rows, (at[:, 0] - 1).clamp_min(0)].where(at[:, 0] > 0, -1)
        self.ids[rows.unsqueeze(1), at] = idx
        return last

    def mask(self, new_tokens: int, window: int | None = None) -> torch.Tensor | None:
        """Which of the keys each new token may see, (B, 1, T, longest + T); None when that is all of them.

        With a `window` it sees no more than so many, itself among them.
        """
        longest = max(self.lengths)
        if window is None or longest + new_tokens <= window:
            window = longest + new_tokens
            if new_tokens == 1 and min(self.lengths) == longest:
                return None
        seen = self.positions(new_tokens).unsqueeze(2)
        keys = torch.arange(longest + new_tokens, device=seen.device)
        return ((keys <= seen) & (keys > seen - window)).unsqueeze(1)

    def advance(self, new_tokens: int) -> None:
        """Count `new_tokens` as held, in every row."""
        self.lengths = [length + new_tokens for length in self.lengths]

    def truncate(self, lengths: list[int]) -> None:
        """Forget what lies behind `lengths`: the padding of a prefill of prompts of different lengths."""
        assert len(lengths) == self.rows, f"{len(lengths)} lengths for {self.rows} rows"
        assert all(a <= b for a, b in zip(lengths, self.lengths, strict=True)), "a row cannot grow by forgetting"
        self.lengths = list(lengths)

    def select(self, rows: list[int]) -> None:
        """Keep the rows named, in that order; naming a row twice copies it."""
        index = torch.tensor(rows, device=self.layers[0].device)
        self.layers = [layer.index_select(1, index) for layer in self.layers]
        if self.ids is not None:
            self.ids = self.ids.index_select(0, index)
        self.lengths = [self.lengths[row] for row in rows]
