"""Score a chat model on tasks: generated answers judged, choices picked by likelihood.

python -m scripts.chat_eval -i sft
torchrun --standalone --nproc_per_node=8 -m scripts.chat_eval -i sft -a GSM8K MMLU

Lesson: lessons/19_validation
"""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from nanochat import command, report
from nanochat.checkpoint_manager import load_model
from nanochat.command import UserError
from nanochat.engine import Engine
from nanochat.gpt_config import Weights
from nanochat.log import print0, progress
from nanochat.report import Stage
from nanochat.runtime import Runtime
from nanochat.task_eval import evaluate_task
from tasks import load_task


@dataclass(frozen=True)
class Config:
    """Flags of chat_eval."""

    tasks: Annotated[tuple[str, ...], arg(aliases=["-a", "--task-name"])] = (
        "ARC-Easy", "ARC-Challenge", "MMLU", "GSM8K", "SpellingBee",
    )  # fmt: skip
    """Tasks by name; HumanEval runs what the model writes and wants unsafe_exec."""
    source: Annotated[Stage, arg(aliases=["-i"])] = "sft"
    """Stage of the model."""
    model_tag: Annotated[str | None, arg(aliases=["-g"])] = None
    """Tag of the model; unset: the one trained last."""
    step: Annotated[int | None, arg(aliases=["-s"])] = None
    """Step of the model; unset: the newest."""
    max_problems: Annotated[int | None, arg(aliases=["-x"])] = None
    """Problems per task, at most; unset: all."""
    batch_size: int = 32
    """Problems at a time."""
    num_samples: int = 1
    """Answers per generative problem; the score is their mean."""
    max_tokens: int = 512
    """Most tokens of an answer."""
    temperature: float = 0.0
    """0: always the likeliest id."""
    top_k: int | None = 50
    """Draw from this many likeliest ids."""
    unsafe_exec: bool = False
    """Run programs that the model wrote (HumanEval), in a process with limits but no full sandbox."""
    device_type: str = ""
    """cuda, mps or cpu; empty: the best there is."""
    dtype: str = "auto"
    """Format of matrix products: auto, bfloat16 or float32."""
    weights: Weights | None = None
    """How the matrices are held; unset: in the format of --dtype."""
    seed: int = 42
    """Of the samples."""
    dry_run: bool = False
    """Print what would be evaluated and end."""


def main(config: Config) -> None:
    """Load, evaluate task by task, print scores with their intervals."""
    if not config.tasks:
        raise UserError("-a needs at least one task, such as `-a GSM8K MMLU`")
    with Runtime.start(config.device_type, config.dtype, config.seed) as runtime:
        tasks = {name: load_task(name, "test", unsafe_exec=config.unsafe_exec) for name in config.tasks}
        model, tokenizer, meta = load_model(
            config.source, runtime, config.model_tag, config.step, weights=config.weights
        )
        print0(f"chat_eval of {config.source} {meta['tag']} step {meta['step']}")
        for name, task in tasks.items():
            print0(f"  {name}: {len(task):,} problems, {task.eval_type}")
        if config.dry_run:
            return
        engine = Engine(model, tokenizer)
        scores = []
        for name, task in tasks.items():
            bar = progress(total=min(len(task), config.max_problems or len(task)), label=name, unit="problem")
            score = evaluate_task(
                task, name, config.source, engine, runtime, max_problems=config.max_problems,
                batch_size=config.batch_size, num_samples=config.num_samples, max_tokens=config.max_tokens,
                temperature=config.temperature, top_k=config.top_k, seed=config.seed,
                on_progress=bar.update,
            )  # fmt: skip
            bar.close()
            print0(f"{name:<16} {score.value:7.2%}  ({score.low:.1%} to {score.high:.1%}, {score.count:,} problems)")
            scores.append(score)
        facts = {"model": f"{meta['tag']} step {meta['step']}", "weights": meta["weights"],
                 "temperature": config.temperature,
                 "device": runtime.device_name, "unsafe_exec": config.unsafe_exec}  # fmt: skip
        report.add_section(f"chat_eval_{config.source}", facts, scores)


if __name__ == "__main__":
    command.run(main, Config)
