"""The model on paper: sizes from one dial, counts of parameters, FLOPs and cache bytes. No torch.

The default architecture is what transformers' `NanoChatForCausalLM` computes; `mlp="swiglu"` with
`logit_softcap=None` is one that the Qwen3 code of other engines computes.

Lesson: lessons/16_train_depth_4
"""

from dataclasses import asdict, dataclass
from typing import Literal

from nanochat.command import UserError

SMEAR_CHANNELS = 24
"""Channels of a token's embedding that decide how much of the previous one it takes."""

Weights = Literal["float32", "bfloat16", "int8", "int4"]
"""How the matrices of a model may be held for inference; see `quantize`."""

ARCHITECTURES: dict[str, dict[str, object]] = {
    "default": {},
    "portable": {"mlp": "swiglu", "logit_softcap": None},
    "fast": {"value_embeddings": True, "smear": True, "bigram_rows": 32_768},  # what pays: see dev/ABLATIONS.md
}
"""By the name that `--arch` gives them: the fields of GPTConfig in which they differ from its defaults."""


@dataclass(frozen=True)
class GPTConfig:
    """Sizes and switches of a GPT. `n_kv_head` below `n_head` is grouped-query attention.

    Those from `value_embeddings` on are tricks that other engines do not know; see `tricks`.
    """

    sequence_len: int = 1024
    vocab_size: int = 50304
    n_layer: int = 12
    n_head: int = 6
    n_kv_head: int = 6
    n_embd: int = 768
    mlp: Literal["relu2", "swiglu"] = "relu2"
    logit_softcap: float | None = 15.0
    rope_base: float = 10_000.0
    norm_eps: float = 1e-6
    value_embeddings: bool = False
    """A table of values by token, added in every other layer, the last among them."""
    residual_scalars: bool = False
    """Two learned numbers a layer: its input is so much of the stream and so much of the stream's start."""
    smear: bool = False
    """A gated share of the previous token's embedding."""
    backout: bool = False
    """A learned share of the middle of the stream is taken away at its end."""
    window_pattern: str = "L"
    """A letter a layer, from the first on and repeated: L sees all, S a quarter of the context; the last sees all."""
    bigram_rows: int = 0
    """Rows of a table of embeddings by pairs of neighbours, hashed; 0: none."""

    def __post_init__(self) -> None:
        for name in ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.n_embd % self.n_head:
            raise UserError(f"the width {self.n_embd} does not divide into {self.n_head} heads")
        if self.head_dim % 2:
            raise UserError(f"rotary embeddings need an even head size, got {self.head_dim}")
        if self.n_head % self.n_kv_head:
            raise UserError(f"{self.n_head} heads do not share {self.n_kv_head} key-value heads evenly")
        if self.bigram_rows < 0:
            raise UserError(f"bigram_rows must be 0 or more, got {self.bigram_rows}")
        if not self.window_pattern or set(self.window_pattern) - set("SL"):
            raise UserError(f"window_pattern is made of the letters S and L, got {self.window_pattern!r}")

    @property
    def head_dim(self) -> int:
        """Channels per head."""
        return self.n_embd // self.n_head

    @property
    def kv_dim(self) -> int:
        """Channels of all key-value heads."""
        return self.n_kv_head * self.head_dim

    @property
    def looks_back(self) -> bool:
        """Whether the embedding needs the token before."""
        return self.smear or self.bigram_rows > 0

    @property
    def value_layers(self) -> list[int]:
        """The layers with value embeddings."""
        return [layer for layer in range(self.n_layer) if self.value_embeddings and (self.n_layer - layer) % 2]

    @property
    def windows(self) -> list[int | None]:
        """How many tokens each layer's attention sees, a token itself among them; None: all of the context."""
        letters = [self.window_pattern[layer % len(self.window_pattern)] for layer in range(self.n_layer - 1)]
        short = -(-self.sequence_len // 4)
        return [short if letter == "S" else None for letter in letters] + [None]

    @property
    def mlp_dim(self) -> int:
        """Hidden channels of the MLP: 4 x width, or with a gate 8/3 x width rounded up to 64 (the same parameters)."""
        return 4 * self.n_embd if self.mlp == "relu2" else -(-8 * self.n_embd // (3 * 64)) * 64

    @property
    def matrix_params(self) -> int:
        """Parameters of the layers' matrices."""
        attention = self.n_embd * self.head_dim * (2 * self.n_head + 2 * self.n_kv_head)
        mlp = self.n_embd * self.mlp_dim * (2 if self.mlp == "relu2" else 3)
        return self.n_layer * (attention + mlp)

    @property
    def num_params(self) -> int:
        """All parameters: embedding, layers, head, and those of the tricks."""
        return self.matrix_params + 2 * self.vocab_size * self.n_embd + self.trick_params

    @property
    def trick_params(self) -> int:
        """Parameters that the default architecture does not have."""
        tables = len(self.value_layers) * self.vocab_size * self.kv_dim + self.bigram_rows * self.n_embd
        scalars = (
            2 * self.n_layer * self.residual_scalars
            + (self._gate + 1) * self.smear
            + self.backout
            + (self.bigram_rows > 0)
        )
        return tables + scalars

    @property
    def _gate(self) -> int:
        return min(SMEAR_CHANNELS, self.n_embd)

    @property
    def flops_per_token(self) -> int:
        """Training FLOPs per token: 6 per matmul parameter, and 12 x width x what it sees for each layer's attention.

        The count of PaLM (arXiv:2204.02311, appendix B), causal attention not halved; tables cost none.
        """
        matmul = self.matrix_params + self.vocab_size * self.n_embd + self._gate * self.smear
        seen = sum(window or self.sequence_len for window in self.windows)
        return 6 * matmul + 12 * self.n_embd * seen

    def kv_cache_bytes(self, rows: int, tokens: int, bytes_per_value: int = 2) -> int:
        """Bytes that the keys and values of `rows` sequences of `tokens` take."""
        return 2 * self.n_layer * rows * tokens * self.n_kv_head * self.head_dim * bytes_per_value

    def to_dict(self) -> dict[str, object]:
        """The fields, as stored in a checkpoint."""
        return asdict(self)


def config_for_depth(
    depth: int, vocab_size: int, sequence_len: int, head_dim: int | None = None, arch: str = "default"
) -> GPTConfig:
    """The one dial: `depth` layers of width 64 x depth.

    Heads are of 128 channels where that divides the width and leaves at least four heads, else of 64.
    """
    if arch not in ARCHITECTURES:
        raise UserError(f"no architecture is called {arch!r}; there are {', '.join(ARCHITECTURES)}")
    if depth < 1:
        raise UserError(f"--depth must be at least 1, got {depth}")
    width = 64 * depth
    if head_dim is None:
        head_dim = 128 if width % 128 == 0 and width // 128 >= 4 else 64
    if head_dim < 1 or width % head_dim:
        raise UserError(f"--head_dim={head_dim} does not divide the width {width} of depth {depth}")
    heads = width // head_dim
    return GPTConfig(
        sequence_len=sequence_len,
        vocab_size=vocab_size,
        n_layer=depth,
        n_head=heads,
        n_kv_head=heads,
        n_embd=width,
        **ARCHITECTURES[arch],  # type: ignore[arg-type]
    )
