"""The parts that every loop shares: compiling, the gradients of a step, validation, the start of a fine-tuning.

The loops themselves stand in the scripts; saving, resuming and stopping are `training_run`'s part.

Lessons: lessons/16_train_depth_4, lessons/17_one_gpu
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from nanochat import dataset
from nanochat.checkpoint_files import Meta
from nanochat.chunked_loss import loss_block
from nanochat.dataloader import DocumentLoader, one_epoch
from nanochat.gpt import GPT, IGNORED_TARGET
from nanochat.log import progress
from nanochat.loss_eval import LossResult, evaluate_loss
from nanochat.optim import MuonAdamW, Rates
from nanochat.plan import TrainPlan, plan_finetuning
from nanochat.runtime import Runtime
from nanochat.tokenizer import RustBPETokenizer, get_token_bytes
from nanochat.training_run import Progress, Run, Stateful

Batch = tuple[torch.Tensor, torch.Tensor]
CompileMode = Literal["auto", "on", "off"]


def compiled(model: GPT, mode: CompileMode, plan: TrainPlan, runtime: Runtime) -> GPT:
    """The model as it is, or through torch.compile: `auto` compiles on cuda, and on CPU where it pays for itself.

    Decided from the plan and not by a clock, so that a resumed run computes the same bits. Only batches of the plan's
    shape take that way: samples and tasks come in any shape, and each new one would be compiled for minutes.
    """
    # FLOP/s of two cores, and seconds after which a compiled run was ahead there, measured with and without AMX
    rate, pays_after = (4e11, 120) if runtime.dtype == torch.bfloat16 else (1.5e11, 300)
    on_cpu_worth_it = runtime.device.type == "cpu" and plan.total_flops / plan.world_size / rate > pays_after
    if mode == "on" or (mode == "auto" and (runtime.device.type == "cuda" or on_cpu_worth_it)):
        plain, fast = model.hidden, torch.compile(model.hidden, dynamic=False)
        shape = (plan.device_batch_size, plan.sequence_len)

        def hidden(idx: torch.Tensor) -> torch.Tensor:
            return fast(idx) if idx.shape == shape else plain(idx)

        model.hidden = hidden  # type: ignore[method-assign]
        if runtime.device.type == "cuda":  # by their bytes, eager passes over 65,536 logits cost as much as depth 12
            model.loss_block = torch.compile(loss_block)
    return model


def accumulate(model: GPT, loader: Iterator[Batch], micro_steps: int, runtime: Runtime) -> float:
    """Gradients of one step: the mean loss over all trained tokens of all micro-steps and ranks, which is returned.

    Every trained token counts the same, wherever it stands; a step without one gives 0.
    """
    batches = [next(loader) for _ in range(micro_steps)]
    [counted] = runtime.sum_over_ranks(sum(float((targets != IGNORED_TARGET).sum()) for _, targets in batches))
    weight = runtime.world_size / max(counted, 1.0)  # the optimizer takes the mean over ranks
    total = torch.zeros((), device=runtime.device)
    for inputs, targets in batches:
        loss = model(inputs, targets, torch.full(targets.shape, weight, device=targets.device))
        loss.backward()
        total += loss.detach()
    [total_of_ranks] = runtime.sum_over_ranks(total.item())
    return total_of_ranks / runtime.world_size


def gradient_norm(model: GPT, runtime: Runtime) -> float:
    """The length of the gradient of all parameters; of several ranks' the root of the mean square.

    Not finite on any rank, not finite on all.
    """
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(gradients))
    [squares] = runtime.sum_over_ranks(norm * norm)
    return (squares / runtime.world_size) ** 0.5


@dataclass(frozen=True)
class Validation:
    """Bits per byte of the validation split: always the same first `tokens` tokens of it."""

    tokens: int
    plan: TrainPlan
    tokenizer: RustBPETokenizer
    source: str
    runtime: Runtime
    split: Literal["train", "val"] = "val"

    def measure(self, model: GPT) -> LossResult:
        """Loss and bits per byte, over at most one epoch of the split."""
        rows, length = self.plan.device_batch_size, self.plan.sequence_len
        tokens_per_batch = rows * length * self.runtime.world_size
        batches = max(1, self.tokens // tokens_per_batch)
        loader = DocumentLoader(self.tokenizer, rows, length, self.runtime, self.split, self.source)
        roughly = dataset.text_bytes(self.split, self.source) // 3 // tokens_per_batch + 1  # three bytes to a token
        bar = progress(total=min(batches, roughly), label=f"bits per byte, {self.split}", unit="batch")
        result = evaluate_loss(
            model, one_epoch(loader, batches), get_token_bytes(), self.runtime, on_progress=bar.update
        )
        bar.close()
        return result


def start_finetuning(
    stage: str,
    loaded: tuple[GPT, RustBPETokenizer, Meta],
    loader: Stateful,
    runtime: Runtime,
    *,
    device_batch_size: int,
    total_batch_size: int | None = None,
    num_iterations: int | None = None,
    total_tokens: float = 0.0,
    init_lr_frac: float,
    warmdown_ratio: float,
) -> Run:
    """A run that goes on from a loaded model; `num_iterations` None makes it `total_tokens` long."""
    model, _, meta = loaded
    pretraining = meta.get("pretraining", meta["plan"])
    assert isinstance(pretraining, dict), f"meta.json holds no plan but {pretraining!r}"

    def plan_of(steps: int) -> TrainPlan:
        return plan_finetuning(
            model.config, pretraining, device_batch_size=device_batch_size, world_size=runtime.world_size,
            total_batch_size=total_batch_size, num_iterations=steps, init_lr_frac=init_lr_frac,
            warmdown_ratio=warmdown_ratio,
        )  # fmt: skip

    steps = max(1, round(total_tokens / plan_of(1).total_batch_size)) if num_iterations is None else num_iterations
    plan = plan_of(steps)
    rates = Rates(plan.matrix_lr, plan.embedding_lr, plan.unembedding_lr, plan.weight_decay)
    optimizer = MuonAdamW(dict(model.named_parameters()), model.roles(), rates, runtime)
    run = Run(stage, str(meta["tag"]), plan, runtime, model, optimizer, loader, Progress.of(plan, runtime))
    run.notes = {"pretraining": pretraining, "from": f"{meta['stage']} {meta['tag']} step {meta['step']}"}
    return run
