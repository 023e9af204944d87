"""Improve by reinforcement: sample answers, reward the right ones, make them likelier.

python -m scripts.chat_rl
torchrun --standalone --nproc_per_node=8 -m scripts.chat_rl --task GSM8K --num_samples 16

Lesson: lessons/23_reinforcement
"""

from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

from tyro.conf import arg

from nanochat import command, report
from nanochat.checkpoint_manager import load_model
from nanochat.command import UserError
from nanochat.engine import Engine
from nanochat.log import print0, progress
from nanochat.rollout import PromptOrder, learn, pass_at_k, sample_rollouts
from nanochat.runtime import Runtime
from nanochat.schedule import lr_multiplier
from nanochat.training import gradient_norm, start_finetuning
from nanochat.training_run import RunFlags, clock
from tasks import load_task


@dataclass(frozen=True)
class Config(RunFlags):
    """Flags of chat_rl."""

    task: str = "GSM8K"
    """Generative task whose training problems are practised; its test problems measure pass@k."""
    source: Annotated[Literal["sft", "mid"], arg(aliases=["-i"])] = "sft"
    """Stage to start from."""
    model_tag: Annotated[str | None, arg(aliases=["-g"])] = None
    """Tag of the model; unset: the one trained last."""
    step: Annotated[int | None, arg(aliases=["-s"])] = None
    """Step of the model; unset: the newest."""
    examples_per_step: int = 16
    """Problems per step over all ranks."""
    num_samples: int = 16
    """Answers sampled to each problem."""
    device_batch_size: int = 8
    """Answers per micro-batch and rank when learning."""
    max_tokens: int = 256
    """Most tokens of an answer."""
    temperature: float = 1.0
    """Of the samples learned from and of pass@k."""
    top_k: int | None = 50
    """Draw from this many likeliest ids."""
    num_iterations: int | None = None
    """Steps; unset: one pass over the training problems."""
    init_lr_frac: float = 0.05
    """Learning rates at the start, as a share of pretraining's; they fall to zero."""
    eval_every: int = 60
    """Steps between measurements of pass@k, besides before and after; 0: none."""
    eval_problems: int = 400
    """Test problems of such a measurement."""
    eval_samples: int = 8
    """Answers per problem, the largest k."""
    device_type: str = ""
    """cuda, mps or cpu; empty: the best there is."""
    dtype: str = "auto"
    """Format of matrix products: auto, bfloat16 or float32."""
    seed: int = 42
    """Of samples and order."""
    dry_run: bool = False
    """Print the plan and end."""


def main(config: Config) -> None:
    """Load the model, then sample, reward and learn, step by step."""
    with Runtime.start(config.device_type, config.dtype, config.seed) as runtime:
        train, test = load_task(config.task, "train"), load_task(config.task, "test")
        if train.eval_type != "generative":
            raise UserError(f"--task={config.task} is {train.eval_type}; only a generative task has answers to reward")
        if config.examples_per_step % runtime.world_size:
            raise UserError(
                f"--examples_per_step={config.examples_per_step} is no multiple of {runtime.world_size} ranks"
            )
        loaded = load_model(config.source, runtime, config.model_tag, config.step, for_training=True)
        model, tokenizer, _ = loaded
        order = PromptOrder(len(train), config.examples_per_step // runtime.world_size, runtime, config.seed)
        iterations = config.num_iterations or max(1, len(train) // config.examples_per_step)
        run = start_finetuning(
            "rl", loaded, order, runtime, device_batch_size=config.device_batch_size,
            num_iterations=iterations, init_lr_frac=config.init_lr_frac, warmdown_ratio=1.0,
        )  # fmt: skip
        print0(f"chat_rl {run.tag}: {iterations:,} steps of {config.examples_per_step} problems x {config.num_samples} "
               f"answers of {config.task} ({len(train):,} problems to practise, {len(test):,} to test)")  # fmt: skip
        if config.dry_run:
            return
        for line in run.take_up(config):
            print0(line)
        if run.over:
            return
        measured: dict[int, dict[int, float]] = {}

        with run.open(config) as metrics:
            while True:
                step = run.progress.step
                if run.stop_asked():
                    run.save({"config": asdict(config)}, measured=False)
                    break
                engine = Engine(deepcopy(model).cast_(runtime.dtype), tokenizer)  # samples with the newest weights
                if run.due(config.eval_every) or step in (0, iterations):
                    bar = progress(total=min(config.eval_problems, len(test)), label="pass@k", unit="problem")
                    measured[step] = pass_at_k(
                        engine, test, runtime, config.eval_problems, config.eval_samples, config.max_tokens,
                        config.temperature, config.top_k, on_progress=bar.update,
                    )  # fmt: skip
                    bar.close()
                    metrics.log({"step": step, **{f"pass@{k}": value for k, value in measured[step].items()}})
                    print0(f"step {step:05d} | " + ", ".join(f"pass@{k} {v:.1%}" for k, v in measured[step].items()))
                if run.due(config.save_every) or step == iterations:
                    run.save({"config": asdict(config)})
                if step >= iterations:
                    break

                run.progress.begin(runtime)
                rollouts = sample_rollouts(
                    engine, train, next(order), config.num_samples, config.max_tokens, config.temperature,
                    config.top_k, seed=config.seed + 1000 * step + runtime.rank,
                )  # fmt: skip
                reward, sampled = learn(model, rollouts, config.device_batch_size, runtime)
                judgement = run.judge(-reward, gradient_norm(model, runtime))
                multiplier = lr_multiplier(step, iterations, 0, run.plan.warmdown_ratio)
                if judgement.usable:
                    run.optimizer.step(multiplier)
                run.optimizer.zero_grad()
                seconds = run.progress.end(-reward, multiplier, runtime)["step_seconds"]
                metrics.log({"step": step + 1, "reward": reward, "sampled_tokens": sampled, "step_seconds": seconds,
                             **judgement.facts})  # fmt: skip
                print0(f"step {step + 1:05d}/{iterations:05d} | reward {reward:.3f} | lr x{multiplier:.2f} "
                       f"| {sampled:,} sampled tokens | {float(seconds) * 1000:.0f} ms "
                       f"| {clock(run.progress.remaining_seconds)} left{judgement.words}")  # fmt: skip
                if judgement.roll_back:
                    print0(run.roll_back(metrics))

        if run.progress.step < iterations:
            print0(f"stopped, saved {run.folder}/step_{run.progress.step:06d}; --resume goes on from there")
            return
        facts = {"task": config.task, "steps": iterations, "pass_at_k_before": measured.get(0),
                 "pass_at_k_after": measured[iterations], "device": runtime.device_name,
                 "train_seconds": run.progress.train_seconds}  # fmt: skip
        report.add_section("chat_rl", facts, metrics=run.metrics_path)
        print0(f"saved {run.folder}/step_{run.progress.step:06d}; next: python -m scripts.chat_eval -i rl")


if __name__ == "__main__":
    command.run(main, Config)
