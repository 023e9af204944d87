"""From flags to a plan: what is left open is filled in, what cannot be is refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.command import UserError
from nanochat.gpt_config import config_for_depth
from nanochat.plan import TrainPlan, default_total_batch_size, plan_finetuning, plan_training


def plan(depth: int = 4, sequence_len: int = 512, **given_flags: Any) -> TrainPlan:
    flags = {
        "device_batch_size": 1, "world_size": 1, "total_batch_size": None, "num_iterations": None,
        "target_param_data_ratio": 20.0, "matrix_lr": 0.02, "embedding_lr": 0.2, "unembedding_lr": 0.004,
    }  # fmt: skip
    return plan_training(config_for_depth(depth, 4096, sequence_len), **{**flags, **given_flags})


def test_the_default_batch_is_8k_tokens_at_depth_4_and_half_a_million_at_depth_20() -> None:
    assert default_total_batch_size(4) == 8192
    assert default_total_batch_size(10) == 32_768
    assert default_total_batch_size(20) == default_total_batch_size(32) == 524_288
    sizes = [default_total_batch_size(depth) for depth in range(1, 40)]
    assert sizes == sorted(sizes)
    assert all(size & (size - 1) == 0 for size in sizes)


@given(st.integers(1, 24), st.integers(1, 2048), st.integers(1, 64), st.integers(1, 16))
def test_an_unset_batch_is_a_multiple_of_the_micro_batch_near_the_default(
    depth: int, tokens: int, rows: int, ranks: int
) -> None:
    made = plan(depth, tokens, device_batch_size=rows, world_size=ranks)
    micro_batch = rows * tokens * ranks
    assert made.total_batch_size == made.grad_accum_steps * micro_batch
    assert made.grad_accum_steps >= 1
    assert abs(made.total_batch_size - default_total_batch_size(depth)) <= max(
        micro_batch / 2, micro_batch - default_total_batch_size(depth)
    )


def test_unset_steps_follow_from_tokens_per_parameter() -> None:
    made = plan(target_param_data_ratio=20.0)
    assert made.total_tokens == pytest.approx(20 * made.num_params, rel=1e-3)
    assert made.total_flops == config_for_depth(4, 4096, 512).flops_per_token * made.total_tokens
    assert plan(target_param_data_ratio=1e-9).num_iterations == 1


def test_rates_of_embedding_and_head_scale_with_the_root_of_the_width() -> None:
    made = plan(depth=3)  # width 192, a quarter of 768
    assert (made.matrix_lr, made.embedding_lr, made.unembedding_lr) == pytest.approx((0.02, 0.4, 0.008))


def test_the_plan_is_printed_with_its_product_and_survives_json() -> None:
    made = plan(num_iterations=100, device_batch_size=2, world_size=4)
    assert "8,192 = 2 rows x 512 tokens x 4 ranks x 2 micro-steps" in str(made)
    assert TrainPlan(**json.loads(json.dumps(made.to_dict()))) == made


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"device_batch_size": 0}, "--device_batch_size must be at least 1, got 0"),
        (
            {"total_batch_size": 1000, "device_batch_size": 1, "world_size": 2},
            "--total_batch_size=1000 is no multiple of 1 rows x 512 tokens x 2 ranks = 1024; the nearest that is: 1024",
        ),
        ({"total_batch_size": -512}, "the nearest that is: 512"),
        ({"num_iterations": 0}, "--num_iterations must be at least 1, got 0"),
        ({"warmup_iters": -1}, "warm-up takes 0 steps or more and warm-down a share in 0..1, got -1, 0.4"),
        ({"warmdown_ratio": 1.5}, "got 0, 1.5"),
        ({"target_param_data_ratio": 0.0}, "--target_param_data_ratio=0.0 is not above 0 tokens per parameter"),
        ({"target_param_data_ratio": float("nan")}, "is not above 0 tokens per parameter"),
        ({"matrix_lr": -0.1}, "learning rates and --weight_decay are 0 or more, got -0.1, 0.2, 0.004 and 0"),
    ],
)
def test_impossible_flags_are_refused_in_one_sentence(flags: dict[str, float], message: str) -> None:
    with pytest.raises(UserError) as refused:
        plan(**flags)
    assert message in str(refused.value)


def finetuning(**given_flags: Any) -> TrainPlan:
    flags = {
        "device_batch_size": 4, "world_size": 2, "total_batch_size": None, "num_iterations": 10,
        "init_lr_frac": 0.02, "warmdown_ratio": 1.0,
    }  # fmt: skip
    before = plan(depth=4, num_iterations=100, weight_decay=0.1, total_batch_size=16_384).to_dict()
    return plan_finetuning(config_for_depth(4, 4096, 512), before, **{**flags, **given_flags})


def test_finetuning_takes_rates_decay_and_batch_from_pretraining() -> None:
    before, made = plan(depth=4, num_iterations=1), finetuning()
    assert made.matrix_lr == pytest.approx(0.02 * before.matrix_lr)
    assert made.embedding_lr == pytest.approx(0.02 * before.embedding_lr)  # scaled by the width once, not twice
    assert made.unembedding_lr == pytest.approx(0.02 * before.unembedding_lr)
    assert (made.weight_decay, made.total_batch_size, made.grad_accum_steps) == (0.1, 16_384, 4)
    assert (made.num_iterations, made.warmdown_ratio) == (10, 1.0)


def test_finetuning_with_a_batch_that_does_not_divide_takes_the_nearest() -> None:
    assert finetuning(device_batch_size=3).total_batch_size == 5 * 3 * 512 * 2


@pytest.mark.parametrize("factor", [0.0, -1.0, 11.0, float("nan")])
def test_a_senseless_factor_on_the_rates_is_refused(factor: float) -> None:
    with pytest.raises(UserError, match="--init_lr_frac is a factor above 0 and at most 10"):
        finetuning(init_lr_frac=factor)
