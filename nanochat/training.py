"""The parts that every loop shares, each with one right answer: accumulation, honest timing, the step line, when to
do what, saving and resuming. The loops themselves stand in the scripts.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import torch

from nanochat import dataset, hardware, paths
from nanochat.checkpoint_manager import (
    Checkpoint,
    Meta,
    load_state,
    load_tensors,
    save_checkpoint,
    tokenizer_sha256,
)
from nanochat.command import UserError
from nanochat.dataloader import DocumentLoader, one_epoch
from nanochat.gpt import GPT, IGNORED_TARGET
from nanochat.kv_cache import KVCache
from nanochat.log import MetricLog, progress
from nanochat.loss_eval import LossResult, evaluate_loss
from nanochat.optim import MuonAdamW, Rates
from nanochat.plan import TrainPlan, plan_finetuning
from nanochat.runtime import Runtime, random_states, restore_random_states
from nanochat.tokenizer import RustBPETokenizer, get_token_bytes

Batch = tuple[torch.Tensor, torch.Tensor]
CompileMode = Literal["auto", "on", "off"]


class Stateful(Protocol):
    """Data whose position can be kept and taken up again."""

    def state_dict(self) -> dict[str, int | list[int]]: ...
    def load_state_dict(self, state: dict[str, int | list[int]]) -> None: ...


def compiled(model: GPT, mode: CompileMode, plan: TrainPlan, runtime: Runtime) -> GPT:
    """The model as it is, or through torch.compile: `auto` compiles on cuda, and on CPU where it pays for itself.

    Decided from the plan and not by a clock, so that a resumed run computes the same bits. Only batches of the plan's
    shape take that way: samples and tasks come in any shape, and each new one would be compiled for minutes.
    """
    rate = 4e11 if runtime.dtype == torch.bfloat16 else 1.5e11  # FLOP/s, what two cores were measured to do
    on_cpu_worth_it = runtime.device.type == "cpu" and plan.total_flops / plan.world_size / rate > 120
    if mode == "on" or (mode == "auto" and (runtime.device.type == "cuda" or on_cpu_worth_it)):
        plain, fast = model.hidden, torch.compile(model.hidden, dynamic=False)
        shape = (plan.device_batch_size, plan.sequence_len)

        def hidden(idx: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
            return fast(idx) if cache is None and idx.shape == shape else plain(idx, cache)

        model.hidden = hidden  # type: ignore[method-assign]
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


@dataclass
class Progress:
    """Where a run stands: what its step line shows and its checkpoint keeps."""

    plan: TrainPlan
    flops_per_token: float
    peak_flops: float | None
    step: int = 0
    train_seconds: float = 0.0
    smooth_loss: float = 0.0
    started: float = 0.0

    @classmethod
    def of(cls, plan: TrainPlan, runtime: Runtime) -> "Progress":
        """The start of a run."""
        peak = hardware.peak_flops(runtime.device_name)
        return cls(plan, plan.total_flops / plan.total_tokens, peak * runtime.world_size if peak else None)

    def begin(self, runtime: Runtime) -> None:
        """A step starts now."""
        runtime.synchronize()
        self.started = time.perf_counter()

    def end(self, loss: float, lr_multiplier: float, runtime: Runtime) -> dict[str, float | int | str]:
        """A step has ended: its record for the metrics."""
        runtime.synchronize()
        seconds = time.perf_counter() - self.started
        self.step += 1
        self.train_seconds += seconds
        self.smooth_loss += (loss - self.smooth_loss) * max(0.05, 1 / self.step)
        record: dict[str, float | int | str] = {
            "step": self.step,
            "tokens": self.step * self.plan.total_batch_size,
            "loss": loss,
            "smooth_loss": self.smooth_loss,
            "lr_multiplier": lr_multiplier,
            "step_seconds": seconds,
            "tokens_per_second": self.plan.total_batch_size / seconds,
            "train_seconds": self.train_seconds,
        }
        if self.peak_flops:
            record["mfu"] = self.flops_per_token * self.plan.total_batch_size / seconds / self.peak_flops
        return record

    @property
    def remaining_seconds(self) -> float:
        """Training time still to come, if steps go on as they went."""
        return self.train_seconds / max(self.step, 1) * (self.plan.num_iterations - self.step)

    def line(self, record: dict[str, float | int | str]) -> str:
        """The step line that a person reads."""
        mfu = f" | mfu {record['mfu']:.1%}" if "mfu" in record else ""
        return (
            f"step {self.step:05d}/{self.plan.num_iterations:05d} | loss {self.smooth_loss:.4f} "
            f"| lr x{record['lr_multiplier']:.2f} | {float(record['step_seconds']) * 1000:.0f} ms "
            f"| {float(record['tokens_per_second']):,.0f} tokens/s{mfu} "
            f"| {clock(self.train_seconds)} done, {clock(self.remaining_seconds)} left"
        )


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


def clock(seconds: float) -> str:
    """Minutes and seconds, or hours and minutes."""
    whole = round(seconds)
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m" if whole >= 3600 else f"{whole // 60}:{whole % 60:02d}"


@dataclass
class Run:
    """What one training run writes to and resumes from: a folder of checkpoints and its metrics."""

    stage: str
    tag: str
    plan: TrainPlan
    runtime: Runtime
    model: GPT
    optimizer: MuonAdamW
    loader: Stateful
    progress: Progress
    source: str | None = None
    started_at: int = 0
    notes: dict[str, object] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """`checkpoints/<stage>/<tag>`."""
        return paths.checkpoints_dir(self.stage, self.tag)

    @property
    def metrics_path(self) -> Path:
        """The run's metrics.jsonl."""
        return self.folder / "metrics.jsonl"

    def due(self, every: int) -> bool:
        """Whether something done every `every` steps is due now: never for 0 or less, always at the end.

        What was due at the step that the run starts or resumes from has been done by the run that saved it.
        """
        step = self.progress.step
        return every > 0 and (step == self.plan.num_iterations or (step > self.started_at and step % every == 0))

    def save(self, extra: dict[str, object] | None = None) -> None:
        """Write a checkpoint of this step. Every rank must call it."""
        optimizer_state = self.optimizer.state_dict()
        ranks = self.runtime.gather_objects({"loader": self.loader.state_dict(), "random": random_states(self.runtime)})
        if self.runtime.is_main:
            meta: Meta = {
                "stage": self.stage,
                "model": self.model.config.to_dict(),
                "plan": self.plan.to_dict(),
                "tokenizer_sha256": tokenizer_sha256(),
                "source": self.source,
                "train_seconds": self.progress.train_seconds,
                **self.notes,
                **(extra or {}),
            }
            averages = {"train_seconds": self.progress.train_seconds, "smooth_loss": self.progress.smooth_loss}
            state = {"ranks": ranks, "progress": averages}
            weights = self.model.state_dict()
            save_checkpoint(self.folder, self.progress.step, weights, meta, optimizer_state, state)
        self.runtime.barrier()

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint as if the run had never stopped. Raises UserError where that cannot be."""
        if checkpoint.step >= self.plan.num_iterations:
            raise UserError(
                f"step {checkpoint.step} is not before this run's last, {self.plan.num_iterations}: nothing is left to "
                "do; --num_iterations gives it more"
            )
        state = load_state(checkpoint)
        ranks, averages = state["ranks"], state["progress"]
        assert isinstance(ranks, list), "state.json holds no ranks"
        assert isinstance(averages, dict), "state.json holds no progress"
        if len(ranks) != self.runtime.world_size:
            raise UserError(
                f"{checkpoint.folder} was saved by {len(ranks)} ranks and data goes on with as many; "
                f"this run has {self.runtime.world_size}"
            )
        theirs, ours = checkpoint.config().to_dict(), self.model.config.to_dict()
        differing = [f"{name} {theirs[name]} instead of {ours[name]}" for name in ours if theirs[name] != ours[name]]
        if differing:
            raise UserError(
                f"{checkpoint.folder} holds another model than this run's ({', '.join(differing)}); "
                "give the flags that it was started with, or another --model_tag"
            )
        if checkpoint.meta["tokenizer_sha256"] != tokenizer_sha256():
            raise UserError(
                f"{checkpoint.folder} was trained with another tokenizer than the one in {paths.tokenizer_dir()}; "
                "put that one back or start again without --resume_from_step"
            )
        self.model.load_state_dict(load_tensors(checkpoint.folder / "model.safetensors", self.runtime.device))
        self.optimizer.load_state_dict(load_tensors(checkpoint.folder / "optim.safetensors", torch.device("cpu")))
        self.loader.load_state_dict(ranks[self.runtime.rank]["loader"])
        restore_random_states(ranks[self.runtime.rank]["random"], self.runtime)
        self.progress.step = self.started_at = checkpoint.step
        self.progress.train_seconds = averages["train_seconds"]
        self.progress.smooth_loss = averages["smooth_loss"]

    def open_metrics(self, run_name: str = "dummy") -> MetricLog:
        """The metrics of this run, without what was logged behind the step that it starts from."""
        metrics = MetricLog(self.metrics_path, run_name)
        metrics.truncate_after(self.progress.step)
        return metrics


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
