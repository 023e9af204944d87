"""One training run: where it stands, what it writes to and resumes from, when it skips, rolls back or stops.

The loops stand in the scripts; what they compute in a step is `training`'s part.

Lesson: lessons/19_validation
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from nanochat import calibration, hardware, paths
from nanochat.checkpoint_files import CheckpointWriter, Keep, Meta, snapshot, steps_of
from nanochat.checkpoint_manager import (
    Checkpoint,
    find_checkpoint,
    load_state,
    load_tensors,
    tokenizer_sha256,
)
from nanochat.command import UserError
from nanochat.gpt import GPT
from nanochat.guards import Judgement, StepGuard
from nanochat.log import MetricLog, print0
from nanochat.optim import MuonAdamW
from nanochat.plan import TrainPlan
from nanochat.runtime import Runtime, random_states, restore_random_states
from nanochat.signals import StopRequest


@dataclass(frozen=True)
class RunFlags:
    """Flags that every training script has."""

    save_every: int = 0
    """Steps between checkpoints; 0: only at the end. A kill repeats at most so many steps."""
    keep_last: int = 0
    """Checkpoints that stay, besides the best by validation bpb; 0: all."""
    keep_every: int = 0
    """With keep_last: checkpoints of multiples of this step stay too; 0: none."""
    resume: bool = False
    """Go on from the last checkpoint that is whole; without any begin anew."""
    resume_from_step: int | None = None
    """Go on from this step's checkpoint."""
    run: str = "dummy"
    """Name of the wandb run; dummy: no wandb."""
    tensorboard: bool = False
    """Write metrics for TensorBoard too, beside metrics.jsonl."""
    deterministic: bool = False
    """The same bits in every run on a GPU too, where it can be slower; an operation that cannot do it says so."""


class Stateful(Protocol):
    """Data whose position can be kept, and taken up again from the states of all ranks of any number."""

    def state_dict(self) -> dict[str, int | list[int]]: ...
    def load_state_dicts(self, states: Sequence[dict[str, int | list[int]]]) -> None: ...


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
        """The start of a run. What its speed is compared with is measured, on a CPU, where the run is long enough."""
        peak = hardware.peak_flops(runtime.device_name)
        if peak is None and runtime.device.type == "cpu" and plan.total_flops / plan.world_size > 1e13:
            peak = calibration.peak_flops(runtime)
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
        if math.isfinite(loss):
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
            reached = self.flops_per_token * self.plan.total_batch_size / seconds
            if reached > self.peak_flops and hardware.peak_flops(runtime.device_name) is None:
                # Other programs held the cores when it was measured.
                self.peak_flops = max(reached, calibration.peak_flops(runtime) * runtime.world_size)
            record["mfu"] = reached / self.peak_flops
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


def saved_rows(folder: Path, step: int | None = None) -> int | None:
    """Rows per micro-batch of the run that saved `step`, or the last one that can be read, into `folder`.

    A run that goes on takes as many, for the same bits.
    """
    for number, path in steps_of(folder).items():
        if step in (None, number):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                return int(json.loads((path / "meta.json").read_text(encoding="utf-8"))["plan"]["device_batch_size"])
    return None


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
    keep: Keep = field(default_factory=Keep)
    guard: StepGuard = field(default_factory=StepGuard)
    writer: CheckpointWriter = field(default_factory=CheckpointWriter)
    stop: StopRequest | None = None
    rolled_back_to: int | None = None
    own: set[int] | None = field(default_factory=set)
    """Steps that a run that began anew has saved; None: it goes on from a former one, and all in the folder are its."""

    @property
    def over(self) -> bool:
        """Whether no step is left."""
        return self.progress.step >= self.plan.num_iterations

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

    @contextlib.contextmanager
    def open(self, flags: RunFlags) -> Iterator[MetricLog]:
        """The metrics of this run, without what was logged behind the step that it starts from.

        Inside, SIGTERM and Ctrl-C are requests to stop; it is left when the last checkpoint is on the disk.
        """
        metrics = MetricLog(self.metrics_path, flags.run, flags.tensorboard)
        metrics.truncate_after(-1 if self.own is not None else self.progress.step)
        # a rank that waits for a dead one never comes to its next step, and torchrun takes so long to kill it
        patience = int(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "30"))
        deadline = max(1, patience - 5) if self.runtime.world_size > 1 else None
        with _deterministic(flags.deterministic), StopRequest(_say_stopping, deadline) as self.stop, metrics:
            try:
                yield metrics
            finally:
                self.writer.wait()

    def take_up(self, flags: RunFlags) -> list[str]:
        """Go on from the checkpoint that the flags ask for; what there is to say about it. Every rank must call it.

        With `resume` a run that has come to its end is `over` and no mistake: a command may be repeated.
        """
        self.keep = Keep(flags.keep_last, flags.keep_every)
        if flags.resume and flags.resume_from_step is not None:
            raise UserError(
                f"--resume takes the last checkpoint and --resume_from_step={flags.resume_from_step} that one: "
                "give one of the two"
            )
        if not flags.resume and flags.resume_from_step is None:
            return []
        found = self._find(flags.resume_from_step)
        if found is None:
            return [f"no checkpoint in {self.folder} yet: beginning anew"]
        skipped = [f"passed over {complaint}" for complaint in found.skipped]
        self.own = None
        if flags.resume and found.step == self.plan.num_iterations:
            self._refuse_another(found)
            self.progress.step = found.step
            return [*skipped, f"{found.folder} is this run's end: nothing is left to do"]
        self.resume(found)
        return [*skipped, f"going on from {found.folder}"]

    def stop_asked(self) -> bool:
        """Whether any rank was asked to stop before the last step. Every rank must call it."""
        if self.over:
            return False
        [asked] = self.runtime.sum_over_ranks(float(self.stop is not None and self.stop.asked))
        return asked > 0

    def judge(self, loss: float, gradient_norm: float) -> Judgement:
        """Whether the optimizer may use the step's gradients.

        Returns when the checkpoint of the step before, which is written while a step is computed, is on the disk: so a
        kill never repeats more than `save_every` steps. Raises what went wrong with it.
        """
        self.writer.wait()
        return self.guard.judge(loss, gradient_norm)

    def roll_back(self, metrics: MetricLog) -> str:
        """Back to the run's last checkpoint, and what to say about it. Every rank must call it.

        Raises UserError where there is none, or where the run has been before.
        """
        step, found = self.progress.step, self._find(None)
        what = f"the {self.guard.in_a_row} steps up to {step} gave a loss or gradient that is not finite"
        advice = "lower the learning rates, or try --dtype=float32"
        if found is None or (self.own is not None and found.step not in self.own):  # of a former run under this tag
            raise UserError(f"{what}, and there is no checkpoint to go back to: {advice}, with --save_every")
        if found.step == self.rolled_back_to:
            raise UserError(f"{what}, again after going back to step {found.step}: {advice}")
        self.resume(found)
        self.rolled_back_to = found.step
        metrics.truncate_after(found.step)
        return f"{what}: back to {found.folder}"

    def save(self, extra: dict[str, object] | None = None, measured: bool = True) -> None:
        """Begin to write a checkpoint of this step; `judge` and the end wait for it. Every rank must call it.

        `measured` False: what is due at this step has not been done, and a resumed run does it first. While steps are
        being skipped none is written: weights that give no finite loss are no place to go back to.
        """
        if self.guard.in_a_row and measured and self.progress.step < self.plan.num_iterations:
            return
        optimizer_state = self.optimizer.state_dict()
        if self.own is not None:
            self.own.add(self.progress.step)
        ranks = self.runtime.gather_objects({"loader": self.loader.state_dict(), "random": random_states(self.runtime)})
        if not self.runtime.is_main:
            return
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
        averages = {
            "train_seconds": self.progress.train_seconds,
            "smooth_loss": self.progress.smooth_loss,
            "measured": measured,
        }
        state: Meta = {"ranks": ranks, "progress": averages, "guard": self.guard.state()}
        weights = snapshot(self.model.state_dict())
        self.writer.save(self.folder, self.progress.step, weights, meta, optimizer_state, state, self.keep)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint as if the run had never stopped; with another number of ranks the rest of the data is
        dealt out anew, so that batches differ from then on. Raises UserError where it cannot be."""
        if checkpoint.step >= self.plan.num_iterations:
            raise UserError(
                f"step {checkpoint.step} is not before this run's last, {self.plan.num_iterations}: nothing is left to "
                "do; --num_iterations gives it more"
            )
        self._refuse_another(checkpoint)
        state = load_state(checkpoint)
        ranks, averages, guard = state["ranks"], state["progress"], state["guard"]
        assert isinstance(ranks, list), "state.json holds no ranks"
        assert isinstance(averages, dict), "state.json holds no progress"
        assert isinstance(guard, dict), "state.json holds no guard"
        self.model.load_state_dict(load_tensors(checkpoint.folder / "model.safetensors", self.runtime.device))
        self.optimizer.load_state_dict(load_tensors(checkpoint.folder / "optim.safetensors", torch.device("cpu")))
        self.loader.load_state_dicts([rank["loader"] for rank in ranks])
        restore_random_states(ranks[self.runtime.rank % len(ranks)]["random"], self.runtime)
        self.guard.restore(guard)
        self.progress.step = checkpoint.step
        self.started_at = checkpoint.step if averages["measured"] else checkpoint.step - 1
        self.progress.train_seconds = averages["train_seconds"]
        self.progress.smooth_loss = averages["smooth_loss"]

    def _refuse_another(self, checkpoint: Checkpoint) -> None:
        """Raise UserError where a checkpoint is of another model than this run's, or made with another tokenizer."""
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
                "put that one back or start again without --resume"
            )

    def _find(self, step: int | None) -> Checkpoint | None:
        """What the first rank finds, so that all go on from the same; None where nothing was ever saved."""
        found: Checkpoint | UserError | None = None
        if self.runtime.is_main:
            try:
                self.writer.wait()
                if step is not None or steps_of(self.folder):
                    found = find_checkpoint(self.stage, self.tag, step)
            except UserError as mistake:
                found = mistake
        [agreed, *_] = self.runtime.gather_objects(found)
        if isinstance(agreed, UserError):
            raise agreed
        assert agreed is None or isinstance(agreed, Checkpoint), f"found {agreed!r}"
        return agreed


def _say_stopping() -> None:
    print0("\nstopping: the next step saves a checkpoint and ends the run (once more ends it at once)")


@contextlib.contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """Let torch take deterministic algorithms only, and raise RuntimeError where an operation has none."""
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when it first multiplies
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
