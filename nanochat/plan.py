"""From what a person typed to what will happen: steps, batches, rates. Pure arithmetic, printed once and stored."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from nanochat.command import UserError
from nanochat.gpt_config import GPTConfig


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
            ("learning rates", f"matrices {self.matrix_lr:g}, embedding {self.embedding_lr:g}, "
             f"head {self.unembedding_lr:g}"),
        ]  # fmt: skip
        return "\n".join(f"  {name:<16} {value}" for name, value in rows)


def default_total_batch_size(depth: int) -> int:
    """Tokens per step by size: 8,192 at depth 4, twice that every 2.7 layers, 524,288 at depth 20 and beyond."""
    return 2 ** max(12, min(19, round(13 + 6 * (depth - 4) / 16)))


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
    weight_decay: float = 0.0,
    warmup_iters: int = 0,
    warmdown_ratio: float = 0.4,
) -> TrainPlan:
    """Fill in what was left open, or say in one sentence why it cannot be.

    `total_batch_size` None follows the depth; `num_iterations` None follows from `target_param_data_ratio` tokens per
    parameter (20: Chinchilla, arXiv:2203.15556). The rates of embedding and head scale with width^-1/2 from 768.
    """
    if device_batch_size < 1:
        raise UserError(f"--device_batch_size must be at least 1, got {device_batch_size}")
    micro_batch = device_batch_size * config.sequence_len * world_size
    if total_batch_size is None:
        total_batch_size = max(1, round(default_total_batch_size(config.n_layer) / micro_batch)) * micro_batch
    if total_batch_size < 1 or total_batch_size % micro_batch:
        nearest = max(1, round(total_batch_size / micro_batch)) * micro_batch
        raise UserError(
            f"--total_batch_size={total_batch_size} is no multiple of {device_batch_size} rows x {config.sequence_len} "
            f"tokens x {world_size} ranks = {micro_batch}; the nearest that is: {nearest}"
        )
    if num_iterations is None:
        if not target_param_data_ratio > 0:
            raise UserError(f"--target_param_data_ratio={target_param_data_ratio} is not above 0 tokens per parameter")
        num_iterations = max(1, round(target_param_data_ratio * config.num_params / total_batch_size))
    if num_iterations < 1:
        raise UserError(f"--num_iterations must be at least 1, got {num_iterations}")
    if warmup_iters < 0 or not 0 <= warmdown_ratio <= 1:
        raise UserError(
            f"warm-up takes 0 steps or more and warm-down a share in 0..1, got {warmup_iters}, {warmdown_ratio}"
        )
    if min(matrix_lr, embedding_lr, unembedding_lr, weight_decay) < 0:
        raise UserError(
            "learning rates and --weight_decay are 0 or more, got "
            f"{matrix_lr:g}, {embedding_lr:g}, {unembedding_lr:g} and {weight_decay:g}"
        )
    width_scale = (config.n_embd / 768) ** -0.5
    total_tokens = num_iterations * total_batch_size
    return TrainPlan(
        num_iterations=num_iterations,
        total_batch_size=total_batch_size,
        device_batch_size=device_batch_size,
        sequence_len=config.sequence_len,
        world_size=world_size,
        grad_accum_steps=total_batch_size // micro_batch,
        total_tokens=total_tokens,
        num_params=config.num_params,
        total_flops=float(config.flops_per_token) * total_tokens,
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
