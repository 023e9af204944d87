"""From what a person typed to what will happen: steps, batches, rates. Pure arithmetic, printed once and stored.

What was left open follows these rules. C is the run's FLOPs, D its tokens, N the parameters, S the steps.

horizon    D = 20 N (Hoffmann et al., arXiv:2203.15556), unless steps or FLOPs are given.
batch      0.2920 C^0.3271 tokens (DeepSeek LLM, arXiv:2401.02954, fitted to AdamW), rounded down to a power of two:
           8,192 at depth 4 and 2 million tokens, 524,288 at depth 20, 1,048,576 at depth 26, both at 20 tokens per
           parameter. Rounded down, since too small a batch costs a little time and too large a one costs quality.
matrices   Muon's update has a size that does not depend on the width, so its rate does neither (Moonlight,
           arXiv:2502.16982). Beyond the compute of depth 20 it falls with C^-0.125 (DeepSeek LLM's fit for AdamW; that
           it holds for Muon is an assumption); below that it stays, since short runs gain nothing from a higher one.
embedding  and head: width^-1/2, as given at width 768 (between no change and the 1/width of arXiv:2203.03466).
decay      `auto`: rate x decay x S = 1 / tau with tau = 1.084 (D/N)^-0.527 (Power Lines, arXiv:2505.13738, fitted to
           AdamW): what a weight forgets over a run depends on tokens per parameter and not on how many steps it has.

Lesson: lessons/16_train_depth_4
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal

from nanochat.command import UserError
from nanochat.gpt_config import GPTConfig

LEAST_BATCH_TOKENS, MOST_BATCH_TOKENS = 2**13, 2**21
REFERENCE_FLOPS = 4e19  # depth 20 at 20 tokens per parameter, for which the default rates were chosen
CHARS_PER_TOKEN = 4.8  # English text, a vocabulary of 65,536
CHARS_PER_SHARD = 250e6


@dataclass(frozen=True)
class TrainPlan:
    """What a training run will do."""

    num_iterations: int
    total_batch_size: int
    device_batch_size: int
    sequence_len: int
    world_size: int
    grad_accum_steps: int
    total_tokens: int
    num_params: int
    total_flops: float
    matrix_lr: float
    embedding_lr: float
    unembedding_lr: float
    weight_decay: float
    warmup_iters: int
    warmdown_ratio: float

    def to_dict(self) -> dict[str, int | float]:
        """The fields, for checkpoint and report."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [
            ("parameters", f"{self.num_params:,}"),
            ("steps", f"{self.num_iterations:,}"),
            ("tokens per step", f"{self.total_batch_size:,} = {self.device_batch_size} rows x {self.sequence_len} "
             f"tokens x {self.world_size} ranks x {self.grad_accum_steps} micro-steps"),
            ("tokens in all", f"{self.total_tokens:,} ({self.total_tokens / self.num_params:.1f} per parameter)"),
            ("training FLOPs", f"{self.total_flops:.2e}"),
            ("learning rates", f"matrices {self.matrix_lr:.3g}, embedding {self.embedding_lr:.3g}, "
             f"head {self.unembedding_lr:.3g}; weight decay {self.weight_decay:.3g}"),
        ]  # fmt: skip
        return "\n".join(f"  {name:<16} {value}" for name, value in rows)

    def shards_line(self, here: int, there: int) -> str:
        """How many of the public corpus's shards the run reads, and how to get them when not so many are `here`; those
        that are `there` are all: a longer run reads them again."""
        needed = shards_needed(self.total_tokens)
        line = f"  {'text':<16} {needed:,} shards, {here:,} here"
        return line if here >= min(needed, there) else f"{line}: python -m nanochat.dataset -n {min(needed, there)}"


def batch_for_flops(flops: float) -> int:
    """Tokens per step for a run of so many FLOPs; the rule and its source stand above."""
    return _power_of_two(0.2920 * flops**0.3271)


def batch_for_steps(flops_per_token: float, num_iterations: int) -> int:
    """Tokens per step where the number of steps is given and C follows from the batch: the same rule, solved for it."""
    return _power_of_two((0.2920 * (flops_per_token * num_iterations) ** 0.3271) ** (1 / (1 - 0.3271)))


def _power_of_two(tokens: float) -> int:
    return min(max(2 ** math.floor(math.log2(max(tokens, 1.0))), LEAST_BATCH_TOKENS), MOST_BATCH_TOKENS)


def auto_weight_decay(matrix_lr: float, num_iterations: int, tokens_per_param: float) -> float:
    """Decay per step and unit of rate, such that a run forgets as much as the rule above says."""
    timescale = 1.084 * tokens_per_param**-0.527  # of the run's length
    return 1 / (matrix_lr * num_iterations * timescale) if matrix_lr > 0 else 0.0


def shards_needed(total_tokens: float) -> int:
    """Shards of the public corpus that hold so many tokens once."""
    return max(1, math.ceil(total_tokens * CHARS_PER_TOKEN / CHARS_PER_SHARD))


def _horizon_flops(config: GPTConfig, target_flops: float | None, target_param_data_ratio: float) -> float:
    """FLOPs of the run when its steps were not given."""
    if target_flops is not None:
        if not 0 < target_flops < math.inf:
            raise UserError(f"--target_flops={target_flops:g} is no number of FLOPs above 0; 4e19 is depth 20's")
        return target_flops
    if not 0 < target_param_data_ratio < math.inf:
        raise UserError(f"--target_param_data_ratio={target_param_data_ratio} is not above 0 tokens per parameter")
    return target_param_data_ratio * config.num_params * config.flops_per_token


def plan_training(
    config: GPTConfig,
    *,
    device_batch_size: int,
    world_size: int,
    total_batch_size: int | None,
    num_iterations: int | None,
    target_param_data_ratio: float,
    matrix_lr: float,
    embedding_lr: float,
    unembedding_lr: float,
    weight_decay: float | Literal["auto"] = 0.0,
    warmup_iters: int = 0,
    warmdown_ratio: float = 0.4,
    target_flops: float | None = None,
) -> TrainPlan:
    """Fill in what was left open by the rules above, or say in one sentence why it cannot be.

    The length is `num_iterations`, else follows from `target_flops`, else from `target_param_data_ratio`.
    """
    if device_batch_size < 1:
        raise UserError(f"--device_batch_size must be at least 1, got {device_batch_size}")
    if num_iterations is not None and target_flops is not None:
        raise UserError(
            f"--num_iterations={num_iterations} and --target_flops={target_flops:g} both say how long to train: "
            "give one of them"
        )
    if num_iterations is not None and num_iterations < 1:
        raise UserError(f"--num_iterations must be at least 1, got {num_iterations}")
    micro_batch = device_batch_size * config.sequence_len * world_size
    flops = 0.0 if num_iterations is not None else _horizon_flops(config, target_flops, target_param_data_ratio)
    if total_batch_size is None:
        by_rule = batch_for_flops(flops) if num_iterations is None else batch_for_steps(
            config.flops_per_token, num_iterations
        )  # fmt: skip
        total_batch_size = max(1, round(by_rule / micro_batch)) * micro_batch
    if total_batch_size < 1 or total_batch_size % micro_batch:
        nearest = max(1, round(total_batch_size / micro_batch)) * micro_batch
        raise UserError(
            f"--total_batch_size={total_batch_size} is no multiple of {device_batch_size} rows x {config.sequence_len} "
            f"tokens x {world_size} ranks = {micro_batch}; the nearest that is: {nearest}"
        )
    if num_iterations is None:
        num_iterations = max(1, round(flops / config.flops_per_token / total_batch_size))
    if warmup_iters < 0 or not 0 <= warmdown_ratio <= 1:
        raise UserError(
            f"warm-up takes 0 steps or more and warm-down a share in 0..1, got {warmup_iters}, {warmdown_ratio}"
        )
    if min(matrix_lr, embedding_lr, unembedding_lr, 0.0 if weight_decay == "auto" else weight_decay) < 0:
        raise UserError(
            "learning rates and --weight_decay are 0 or more, got "
            f"{matrix_lr:g}, {embedding_lr:g}, {unembedding_lr:g} and {weight_decay}"
        )
    total_tokens = num_iterations * total_batch_size
    total_flops = float(config.flops_per_token) * total_tokens
    matrix_lr *= min(1.0, (REFERENCE_FLOPS / total_flops) ** 0.125)
    if weight_decay == "auto":
        weight_decay = auto_weight_decay(matrix_lr, num_iterations, total_tokens / config.num_params)
    width_scale = (config.n_embd / 768) ** -0.5
    return TrainPlan(
        num_iterations=num_iterations,
        total_batch_size=total_batch_size,
        device_batch_size=device_batch_size,
        sequence_len=config.sequence_len,
        world_size=world_size,
        grad_accum_steps=total_batch_size // micro_batch,
        total_tokens=total_tokens,
        num_params=config.num_params,
        total_flops=total_flops,
        matrix_lr=matrix_lr,
        embedding_lr=embedding_lr * width_scale,
        unembedding_lr=unembedding_lr * width_scale,
        weight_decay=weight_decay,
        warmup_iters=warmup_iters,
        warmdown_ratio=warmdown_ratio,
    )


def plan_finetuning(
    config: GPTConfig,
    pretraining: Mapping[str, int | float],
    *,
    device_batch_size: int,
    world_size: int,
    total_batch_size: int | None,
    num_iterations: int,
    init_lr_frac: float,
    warmdown_ratio: float,
) -> TrainPlan:
    """The plan of a later stage: rates are `init_lr_frac` of those in the pretraining's plan, and so is the batch."""
    if not 0 < init_lr_frac <= 10:
        raise UserError(f"--init_lr_frac is a factor above 0 and at most 10 on pretraining's rates, got {init_lr_frac}")
    micro_batch = device_batch_size * config.sequence_len * world_size
    if total_batch_size is None:
        total_batch_size = max(1, round(pretraining["total_batch_size"] / micro_batch)) * micro_batch
    plan = plan_training(
        config, device_batch_size=device_batch_size, world_size=world_size, total_batch_size=total_batch_size,
        num_iterations=num_iterations, target_param_data_ratio=0.0, matrix_lr=0.0, embedding_lr=0.0,
        unembedding_lr=0.0, weight_decay=pretraining["weight_decay"], warmdown_ratio=warmdown_ratio,
    )  # fmt: skip
    return replace(
        plan,
        matrix_lr=pretraining["matrix_lr"] * init_lr_frac,
        embedding_lr=pretraining["embedding_lr"] * init_lr_frac,
        unembedding_lr=pretraining["unembedding_lr"] * init_lr_frac,
    )
