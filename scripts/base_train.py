"""Pretrain a model from nothing on documents.

python -m scripts.base_train --depth=4 --max_seq_len=512 --device_batch_size=1 --num_iterations=100
torchrun --standalone --nproc_per_node=8 -m scripts.base_train --depth=20

Lesson: lessons/16_train_depth_4
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from nanochat import command, dataset, report
from nanochat.checkpoint_manager import build_model
from nanochat.command import UserError
from nanochat.core_eval import core_metric, evaluate_core_task, read_bundle, read_rows
from nanochat.dataloader import DocumentLoader
from nanochat.engine import Engine
from nanochat.gpt_config import GPTConfig, config_for_depth
from nanochat.hub_shards import HUB_LAST_SHARD
from nanochat.log import print0, progress
from nanochat.muon import MuonOptions
from nanochat.optim import MuonAdamW, Rates
from nanochat.paths import checkpoints_dir, core_dir, data_dir
from nanochat.plan import TrainPlan, plan_training
from nanochat.rehearsal import auto_rows, foretell
from nanochat.runtime import Runtime
from nanochat.schedule import DecayShape, Shape, decay_multiplier, lr_multiplier, muon_momentum
from nanochat.tokenizer import get_tokenizer
from nanochat.training import CompileMode, Validation, accumulate, compiled, gradient_norm
from nanochat.training_run import Progress, Run, RunFlags, saved_rows

SAMPLE_PROMPTS = (
    "The capital of France is",
    "The opposite of hot is",
    "If yesterday was Friday, then tomorrow will be",
)


@dataclass(frozen=True)
class Config(RunFlags):
    """Flags of base_train."""

    depth: int = 20
    """Layers; the width is 64 x depth."""
    max_seq_len: int = 2048
    """Tokens per row, the model's context."""
    head_dim: int | None = None
    """Channels per head; unset: 128 where that leaves at least four heads, else 64."""
    arch: Literal["default", "portable", "fast"] = "default"
    """default: NanoChatForCausalLM's architecture. portable: SwiGLU without softcap, as Qwen3's code computes it.
    fast: the tricks of dev/ABLATIONS.md that pay, which no other engine computes."""
    device_batch_size: int | Literal["auto"] = 32
    """Rows per micro-batch and rank; auto: as many as fit into memory, the tokens per step stay the same."""
    activation_checkpointing: bool = False
    """Compute each layer a second time instead of keeping what it made: less memory, a third more time."""
    total_batch_size: int | None = None
    """Tokens per step over all ranks; unset: by the run's FLOPs, as written in nanochat/plan.py."""
    num_iterations: int | None = None
    """Steps; unset: from target_flops, else from target_param_data_ratio."""
    target_flops: float | None = None
    """FLOPs to spend."""
    target_param_data_ratio: float = 20.0
    """Tokens per parameter."""
    matrix_lr: float = 0.02
    """Muon's rate."""
    embedding_lr: float = 0.2
    """AdamW's rate for the embedding at width 768."""
    unembedding_lr: float = 0.004
    """AdamW's rate for the head at width 768."""
    weight_decay: float | Literal["auto"] = 0.0
    """Decay of the matrices per step and unit of rate; auto: by the run's length, as written in nanochat/plan.py."""
    warmup_iters: int = 0
    """Steps in which the rate rises."""
    warmdown_ratio: float = 0.4
    """Share of the steps in which the rate falls to zero."""
    schedule: Shape = "trapezoid"
    """Of the rates: trapezoid stays and then falls, cosine falls from the warm-up on."""
    decay_schedule: DecayShape = "constant"
    """Of weight decay over the run."""
    final_momentum: float | None = None
    """Muon's momentum at the end, to which it moves while the rate falls; unset: 0.95 from step 300 on."""
    average_ratio: float = 0.0
    """Share of the last steps whose weights' mean is what the run ends with; 0: the last weights."""
    muon: MuonOptions = field(default_factory=MuonOptions)
    """Muon's options."""
    eval_every: int = 250
    """Steps between measurements of validation bpb, besides before and after; 0: none."""
    eval_tokens: int | None = None
    """Tokens of such a measurement, at most; unset: a sixteenth of the run's, from 32,768 to 10,485,760."""
    core_every: int = 2000
    """Steps between CORE measurements where a bundle is there; 0: never."""
    core_max_rows: int = 500
    """Rows per CORE task in these."""
    sample_every: int = 2000
    """Steps between printed samples; 0: never."""
    model_tag: str | None = None
    """Name of the model's folder; unset: d<depth>."""
    data: str | None = None
    """Source of text under the base directory; unset: fineweb-edu, or the only one there."""
    device_type: str = ""
    """cuda, mps or cpu; empty: the best there is."""
    dtype: str = "auto"
    """Format of matrix products: auto, bfloat16 or float32."""
    compile: CompileMode = "auto"
    """torch.compile; auto: on a GPU, and on a CPU where training is long enough for it to pay."""
    seed: int = 42
    """Of weights and data order."""
    price_per_hour: float | None = None
    """US dollars of one device; unset: a rough figure for known GPUs."""
    dry_run: bool = False
    """Print the plan, with memory, time and cost by a rehearsal of seconds, and end."""


def plan_of(config: Config, model_config: GPTConfig, runtime: Runtime, folder: Path) -> TrainPlan:
    """The plan that the flags ask for; `auto` rows are those of the run to resume in `folder`, else as many as fit."""

    def plan(rows: int, total_batch_size: int | None) -> TrainPlan:
        return plan_training(
            model_config, device_batch_size=rows, world_size=runtime.world_size,
            total_batch_size=total_batch_size, num_iterations=config.num_iterations,
            target_param_data_ratio=config.target_param_data_ratio, matrix_lr=config.matrix_lr,
            embedding_lr=config.embedding_lr, unembedding_lr=config.unembedding_lr, weight_decay=config.weight_decay,
            warmup_iters=config.warmup_iters, warmdown_ratio=config.warmdown_ratio, target_flops=config.target_flops,
        )  # fmt: skip

    if config.device_batch_size != "auto":
        return plan(config.device_batch_size, config.total_batch_size)
    one_row = plan(1, config.total_batch_size)
    resumes = config.resume or config.resume_from_step is not None
    rows = saved_rows(folder, config.resume_from_step) if resumes else None
    if rows is None or one_row.grad_accum_steps % rows:
        rows = auto_rows(model_config, one_row.grad_accum_steps, runtime, config.activation_checkpointing)
    return plan(rows, one_row.total_batch_size)


def source_of(config: Config) -> str:
    """The text to train on; a plan is told before there is any."""
    planned = dataset.HUB_SOURCE if config.dry_run and not dataset.sources() else None
    return config.data or planned or dataset.default_source()


def momentum_of(config: Config, plan: TrainPlan, step: int) -> float:
    """Muon's momentum at a step."""
    if config.final_momentum is None:
        return muon_momentum(step)
    return muon_momentum(
        step, num_iterations=plan.num_iterations, warmdown_ratio=plan.warmdown_ratio,
        final_momentum=config.final_momentum,
    )  # fmt: skip


def main(config: Config) -> None:
    """Plan, build, loop, save."""
    with Runtime.start(config.device_type, config.dtype, config.seed) as runtime:
        tokenizer = get_tokenizer()
        source = source_of(config)
        tag = config.model_tag or f"d{config.depth}"
        model_config = config_for_depth(
            config.depth, tokenizer.get_vocab_size(), config.max_seq_len, config.head_dim, config.arch
        )
        if not 0 <= config.average_ratio <= 1:
            raise UserError(f"--average_ratio is a share of the steps in 0..1, got {config.average_ratio:g}")
        if config.final_momentum is not None and not 0 <= config.final_momentum < 1:
            raise UserError(f"--final_momentum is at least 0 and below 1, got {config.final_momentum:g}")
        plan = plan_of(config, model_config, runtime, checkpoints_dir("base", tag))
        print0(f"base_train {tag}: {config.depth} layers, width {model_config.n_embd}, {model_config.n_head} heads, "
               f"vocabulary {model_config.vocab_size:,}, text from {source!r}, "
               f"on {runtime.device_name} in {str(runtime.dtype).removeprefix('torch.')}\n{plan}")  # fmt: skip
        if source == dataset.HUB_SOURCE:
            here = len(list(data_dir(source).glob("*.parquet"))) - 1  # the last is for validation
            print0(plan.shards_line(max(here, 0), HUB_LAST_SHARD))
        if config.dry_run:
            print0(foretell(model_config, plan, runtime, config.activation_checkpointing, config.price_per_hour))
            return

        # model, optimizer, data
        model = build_model(model_config, runtime)
        model.init_weights(config.seed)
        model.activation_checkpointing = config.activation_checkpointing
        compiled(model, config.compile, plan, runtime)
        rates = Rates(plan.matrix_lr, plan.embedding_lr, plan.unembedding_lr, plan.weight_decay, muon=config.muon)
        optimizer = MuonAdamW(dict(model.named_parameters()), model.roles(), rates, runtime)
        loader = DocumentLoader(
            tokenizer, plan.device_batch_size, plan.sequence_len, runtime, "train", source, seed=config.seed
        )
        eval_tokens = config.eval_tokens or min(max(plan.total_tokens // 16, 32_768), 20 * 524_288)
        validation = Validation(eval_tokens, plan, tokenizer, source, runtime)
        run = Run("base", tag, plan, runtime, model, optimizer, loader, Progress.of(plan, runtime), source)
        run.notes["peak_flops"] = run.progress.peak_flops
        for line in run.take_up(config):
            print0(line)
        if run.over:
            return
        engine = Engine(model, tokenizer)

        with run.open(config) as metrics:
            while True:
                step = run.progress.step
                if run.stop_asked():
                    run.save({"config": asdict(config)}, measured=False)
                    break
                val_bpb: float | None = None
                if run.due(config.eval_every) or (step == 0 and config.eval_every > 0):
                    val_bpb = validation.measure(model).bpb
                    metrics.log({"step": step, "tokens": step * plan.total_batch_size, "val_bpb": val_bpb})
                    print0(f"step {step:05d} | validation {val_bpb:.4f} bits per byte")
                if run.due(config.core_every) and (core_dir() / "core.yaml").is_file():
                    results = [
                        evaluate_core_task(model, tokenizer, task, read_rows(task.path), runtime, config.core_max_rows)
                        for task in progress(read_bundle(core_dir()), label="CORE", unit="task")
                    ]
                    metrics.log({"step": step, "core": core_metric(results)})
                    print0(f"step {step:05d} | CORE {core_metric(results):.4f}")
                if run.due(config.sample_every) and runtime.is_main:
                    for prompt in SAMPLE_PROMPTS:
                        ids = [tokenizer.get_bos_token_id(), *tokenizer.encode(prompt)]
                        [(sampled, _)] = engine.generate_batch([ids], max_tokens=16, temperature=0)
                        print0(f"  {tokenizer.decode(ids[1:] + sampled)!r}")
                if run.due(config.save_every) or step == plan.num_iterations:
                    run.save({"config": asdict(config), "val_bpb": val_bpb})
                if step >= plan.num_iterations:
                    break

                run.progress.begin(runtime)
                loss = accumulate(model, loader, plan.grad_accum_steps, runtime)
                judgement = run.judge(loss, gradient_norm(model, runtime))
                multiplier = lr_multiplier(
                    step, plan.num_iterations, plan.warmup_iters, plan.warmdown_ratio, shape=config.schedule
                )
                if judgement.usable:
                    decay = decay_multiplier(step, plan.num_iterations, config.decay_schedule)
                    optimizer.step(multiplier, momentum_of(config, plan, step), decay)
                    if step >= plan.num_iterations * (1 - config.average_ratio):
                        optimizer.average.add()
                optimizer.zero_grad()
                record = run.progress.end(loss, multiplier, runtime)
                metrics.log({**record, **judgement.facts})
                print0(run.progress.line(record) + judgement.words)
                if judgement.roll_back:
                    print0(run.roll_back(metrics))
                if run.progress.step == plan.num_iterations:
                    optimizer.average.settle()

        if run.progress.step < plan.num_iterations:
            print0(f"stopped, saved {run.folder}/step_{run.progress.step:06d}; --resume goes on from there")
            return
        print0(f"packed {loader.counts}")
        if runtime.is_main:
            facts = {**plan.to_dict(), "depth": config.depth, "data": source, "device": runtime.device_name,
                     "final_loss": run.progress.smooth_loss, "val_bpb": val_bpb,
                     "train_seconds": run.progress.train_seconds,
                     "packing": str(loader.counts), "peak_memory_bytes": runtime.peak_memory_bytes()}  # fmt: skip
            report.add_section("base_train", facts, metrics=run.metrics_path)
        print0(f"saved {run.folder}/step_{run.progress.step:06d}; next: python -m scripts.base_loss, then mid_train")


if __name__ == "__main__":
    command.run(main, Config)
