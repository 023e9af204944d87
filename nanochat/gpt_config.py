"""The model on paper: sizes from one dial, counts of parameters, FLOPs and cache bytes. No torch.

The default architecture is what transformers' `NanoChatForCausalLM` computes; `mlp="swiglu"` with
`logit_softcap=None` is one that the Qwen3 code of other engines computes.
"""

from dataclasses import asdict, dataclass
from typing import Literal

from nanochat.command import UserError


@dataclass(frozen=True)
class GPTConfig:
    """Sizes and switches of a GPT. `n_kv_head` below `n_head` is grouped-query attention."""

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

    @property
    def head_dim(self) -> int:
        """Channels per head."""
        return self.n_embd // self.n_head

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
        """All parameters: embedding, layers, head."""
        return self.matrix_params + 2 * self.vocab_size * self.n_embd

    @property
    def flops_per_token(self) -> int:
        """Training FLOPs per token: 6 per matmul parameter, and 12 x layers x width x context for attention.

        The count of PaLM (arXiv:2204.02311, appendix B), causal attention not halved.
        """
        matmul = self.matrix_params + self.vocab_size * self.n_embd
        return 6 * matmul + 12 * self.n_layer * self.n_embd * self.sequence_len

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
    if arch not in ("default", "portable"):
        raise UserError(f"no architecture is called {arch!r}; there are default and portable")
    if depth < 1:
        raise UserError(f"--depth must be at least 1, got {depth}")
    width = 64 * depth
    if head_dim is None:
        head_dim = 128 if width % 128 == 0 and width // 128 >= 4 else 64
    if head_dim < 1 or width % head_dim:
        raise UserError(f"--head_dim={head_dim} does not divide the width {width} of depth {depth}")
    heads = width // head_dim
    portable = {"mlp": "swiglu", "logit_softcap": None} if arch == "portable" else {}
    return GPTConfig(
        sequence_len=sequence_len,
        vocab_size=vocab_size,
        n_layer=depth,
        n_head=heads,
        n_kv_head=heads,
        n_embd=width,
        **portable,  # type: ignore[arg-type]
    )
