"""Sizes: the depth's rule, counts against a written-out sum, and what is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.command import UserError
from nanochat.gpt_config import GPTConfig, config_for_depth


@given(st.integers(1, 64))
def test_depth_gives_layers_width_and_heads_by_the_rule(depth: int) -> None:
    """Head size 128 where it divides the width and leaves at least four heads, else 64."""
    config = config_for_depth(depth, vocab_size=65_536, sequence_len=2048)
    assert (config.n_layer, config.n_embd, config.n_kv_head) == (depth, 64 * depth, config.n_head)
    assert config.head_dim == (128 if depth % 2 == 0 and depth >= 8 else 64)


@pytest.mark.parametrize(("depth", "heads", "size"), [(1, 1, 64), (4, 4, 64), (8, 4, 128), (9, 9, 64), (20, 10, 128)])
def test_well_known_depths(depth: int, heads: int, size: int) -> None:
    config = config_for_depth(depth, 65_536, 2048)
    assert (config.n_head, config.head_dim) == (heads, size)


def test_the_head_size_can_be_chosen() -> None:
    assert config_for_depth(4, 1000, 128, head_dim=32).n_head == 8


def test_arch_portable_is_the_switches_of_qwen3() -> None:
    default, portable = (config_for_depth(4, 1000, 128, arch=arch) for arch in ("default", "portable"))
    assert (default.mlp, default.logit_softcap) == ("relu2", 15.0)
    assert (portable.mlp, portable.logit_softcap) == ("swiglu", None)
    assert portable.num_params == pytest.approx(default.num_params, rel=0.02)


def test_the_default_architecture_has_no_trick_and_fast_has_some() -> None:
    assert config_for_depth(4, 1000, 128).trick_params == 0
    fast = config_for_depth(4, 1000, 128, arch="fast")
    assert fast.trick_params == 2 * 1000 * 256 + 25 + 32_768 * 256 + 1
    assert (fast.mlp, fast.logit_softcap) == ("relu2", 15.0)


def test_windows_follow_the_pattern_and_the_last_layer_sees_all() -> None:
    config = GPTConfig(30, 100, 7, 2, 2, 8, window_pattern="SSL")
    assert config.windows == [8, 8, None, 8, 8, None, None]
    assert GPTConfig(30, 100, 3, 2, 2, 8).windows == [None] * 3
    full = GPTConfig(30, 100, 7, 2, 2, 8)
    assert full.flops_per_token - config.flops_per_token == 12 * 8 * 4 * (30 - 8)


def test_depth_20_has_the_parameters_flops_and_cache_that_are_counted_by_hand() -> None:
    config = config_for_depth(20, vocab_size=65_536, sequence_len=2048)
    matrices = 20 * (4 * 1280**2 + 2 * 4 * 1280**2)
    assert config.num_params == matrices + 2 * 65_536 * 1280 == 560_988_160
    assert config.flops_per_token == 6 * (matrices + 65_536 * 1280) + 12 * 20 * 1280 * 2048
    assert config.kv_cache_bytes(rows=3, tokens=100) == 3 * 100 * 20 * 2 * 1280 * 2


def test_grouped_queries_shrink_keys_values_and_cache() -> None:
    config = GPTConfig(128, 1000, 2, n_head=8, n_kv_head=2, n_embd=64)
    assert config.matrix_params == 2 * (2 * 64 * 64 + 2 * 64 * 16 + 2 * 64 * 256)
    assert config.kv_cache_bytes(1, 1) == 2 * 2 * 2 * 8 * 2


@given(st.integers(1, 4096))
def test_the_gated_mlp_has_about_the_parameters_of_the_plain_one(width: int) -> None:
    hidden = GPTConfig(1, 1, 1, 1, 1, 2 * width, mlp="swiglu").mlp_dim
    assert hidden % 64 == 0
    assert 0 <= hidden - 8 * 2 * width / 3 < 64


def test_a_config_survives_json() -> None:
    config = config_for_depth(3, 1000, 128, arch="portable")
    assert GPTConfig(**json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"n_layer": 0}, "n_layer must be at least 1, got 0"),
        ({"vocab_size": -5}, "vocab_size must be at least 1, got -5"),
        ({"n_embd": 770}, "the width 770 does not divide into 6 heads"),
        ({"n_embd": 18}, "rotary embeddings need an even head size, got 3"),
        ({"n_kv_head": 4}, "6 heads do not share 4 key-value heads evenly"),
        ({"bigram_rows": -1}, "bigram_rows must be 0 or more, got -1"),
        ({"window_pattern": "SXL"}, "window_pattern is made of the letters S and L, got 'SXL'"),
        ({"window_pattern": ""}, "window_pattern is made of the letters S and L, got ''"),
    ],
)
def test_impossible_sizes_are_refused_in_one_sentence(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError) as refused:
        GPTConfig(**sizes)  # type: ignore[arg-type]
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("depth", "head_dim", "message"),
    [
        (0, None, "--depth must be at least 1, got 0"),
        (4, 96, "--head_dim=96 does not divide the width 256 of depth 4"),
        (4, 0, "--head_dim=0 does not divide the width 256 of depth 4"),
        (1, 1, "rotary embeddings need an even head size, got 1"),
    ],
)
def test_impossible_depths_are_refused_in_one_sentence(depth: int, head_dim: int | None, message: str) -> None:
    with pytest.raises(UserError) as refused:
        config_for_depth(depth, 1000, 128, head_dim)
    assert str(refused.value) == message


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(UserError, match="no architecture is called 'portabel'; there are default, portable, fast"):
        config_for_depth(4, 1000, 128, arch="portabel")
