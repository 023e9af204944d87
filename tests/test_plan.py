"""From flags to a plan: what is left open is filled in, what cannot be is refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.command import UserError
from nanochat.gpt_config import config_for_depth
from nanochat.plan import TrainPlan, batch_for_flops, plan_finetuning, plan_training, shards_needed


def plan(depth: int = 4, sequence_len: int = 512, **given_flags: Any) -> TrainPlan:
    flags = {
        "device_batch_size": 1, "world_size": 1, "total_batch_size": None, "num_iterations": None,
        "target_param_data_ratio": 20.0, "matrix_lr": 0.02, "embedding_lr": 0.2, "unembedding_lr": 0.004,
    }  # fmt: skip
    return plan_training(config_for_depth(depth, 4096, sequence_len), **{**flags, **given_flags})


def sized(depth: int, sequence_len: int = 2048, vocab_size: int = 65_536, **given: Any) -> TrainPlan:
    flags = {"num_iterations": None, **given}
    return plan_training(
        config_for_depth(depth, vocab_size, sequence_len), device_batch_size=1, world_size=1, total_batch_size=None,
        target_param_data_ratio=20.0, matrix_lr=0.02, embedding_lr=0.2, unembedding_lr=0.004, **flags,
    )  # fmt: skip


def test_the_batch_by_rule_is_what_runs_of_known_size_take() -> None:
    assert sized(20).total_batch_size == 524_288
    assert sized(26).total_batch_size == 1_048_576
    small = config_for_depth(4, 8192, 512)
    assert batch_for_flops(2e6 * small.flops_per_token) == 8192
    assert sized(4, 512, 8192, num_iterations=100).total_batch_size == 8192
    sizes = [sized(depth).total_batch_size for depth in range(1, 50, 4)]
    assert sizes == sorted(sizes)
    assert (batch_for_flops(1.0), batch_for_flops(1e30)) == (8192, 2**21)
    assert all(size & (size - 1) == 0 for size in sizes)


@given(st.integers(1, 40), st.integers(1, 1_000_000))
def test_the_batch_of_a_number_of_steps_is_the_batch_of_the_flops_that_come_of_it(depth: int, steps: int) -> None:
    made = sized(depth, num_iterations=steps)
    by_flops = batch_for_flops(made.total_flops * 1.000001)  # not below a power of two by a rounding error
    assert by_flops == made.total_batch_size


@given(st.integers(1, 24), st.integers(1, 2048), st.integers(1, 64), st.integers(1, 16))
def test_an_unset_batch_is_a_multiple_of_the_micro_batch_near_the_rule(
    depth: int, tokens: int, rows: int, ranks: int
) -> None:
    made = plan(depth, tokens, device_batch_size=rows, world_size=ranks)
    micro_batch = rows * tokens * ranks
    by_rule = batch_for_flops(20.0 * made.num_params * config_for_depth(depth, 4096, tokens).flops_per_token)
    assert made.total_batch_size == made.grad_accum_steps * micro_batch
    assert made.grad_accum_steps >= 1
    assert abs(made.total_batch_size - by_rule) <= max(micro_batch / 2, micro_batch - by_rule)


def test_unset_steps_follow_from_tokens_per_parameter() -> None:
    made = plan(target_param_data_ratio=20.0)
    assert made.total_tokens == pytest.approx(20 * made.num_params, rel=1e-3)
    assert made.total_flops == config_for_depth(4, 4096, 512).flops_per_token * made.total_tokens
    assert plan(target_param_data_ratio=1e-9).num_iterations == 1


def test_a_budget_of_flops_is_spent() -> None:
    made = plan(target_flops=3e15)
    assert made.total_flops == pytest.approx(3e15, rel=made.total_batch_size / made.total_tokens)
    assert plan(target_flops=1.0).num_iterations == 1


def test_the_rate_of_matrices_stays_up_to_depth_20_and_falls_beyond() -> None:
    assert sized(4).matrix_lr == sized(20).matrix_lr == 0.02
    assert sized(26).matrix_lr == pytest.approx(0.02 * (4e19 / sized(26).total_flops) ** 0.125)
    assert 0.01 < sized(32).matrix_lr < sized(26).matrix_lr < 0.02


def test_a_run_forgets_as_much_however_many_steps_it_is_cut_into() -> None:
    def forgotten(batch: int) -> float:
        made = plan(weight_decay="auto", total_batch_size=batch)
        return made.weight_decay * made.matrix_lr * made.num_iterations

    assert forgotten(8192) == pytest.approx(forgotten(65_536), rel=1e-3)
    assert forgotten(8192) == pytest.approx(20**0.527 / 1.084, rel=1e-3)
    assert (
        plan(weight_decay="auto", target_param_data_ratio=200.0).weight_decay < plan(weight_decay="auto").weight_decay
    )


@pytest.mark.parametrize(("tokens", "shards"), [(1, 1), (52_000_000, 1), (53_000_000, 2), (20 * 561e6, 216)])
def test_the_text_of_a_run_is_counted_in_shards(tokens: float, shards: int) -> None:
    assert shards_needed(tokens) == shards


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
        ({"target_flops": 0.0}, "--target_flops=0 is no number of FLOPs above 0"),
        ({"target_flops": float("inf")}, "--target_flops=inf is no number of FLOPs above 0"),
        ({"target_flops": 1e15, "num_iterations": 5}, "--num_iterations=5 and --target_flops=1e+15 both say how long"),
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


def test_the_plan_says_which_shards_are_needed_and_the_command_that_gets_them() -> None:
    made = sized(20)
    assert made.shards_line(300, there=1822) == "  text             216 shards, 300 here"
    assert made.shards_line(100, there=100) == "  text             216 shards, 100 here"  # there are no more
    assert made.shards_line(8, there=100).endswith("8 here: python -m nanochat.dataset -n 100")
    assert made.shards_line(8, there=1822) == "  text             216 shards, 8 here: python -m nanochat.dataset -n 216"
