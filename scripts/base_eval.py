"""Score a base model: the CORE metric where a bundle is there, else tinyworld's rows of the same kinds; and samples.

python -m scripts.base_eval
torchrun --standalone --nproc_per_node=8 -m scripts.base_eval --max_rows 500

Lesson: lessons/19_validation
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_args

from tyro.conf import arg

from nanochat import command, report, tinyworld
from nanochat.checkpoint_manager import load_model
from nanochat.core_eval import CoreTask, Kind, core_metric, evaluate_core_task, read_bundle, read_rows
from nanochat.engine import Engine
from nanochat.gpt_config import Weights
from nanochat.log import print0, progress
from nanochat.paths import core_dir
from nanochat.report import Score, Stage
from nanochat.runtime import Runtime

WORLD_BASELINES = {"multiple_choice": 0.25, "schema": 0.5, "language_modeling": 0.0}


@dataclass(frozen=True)
class Config:
    """Flags of base_eval."""

    source: Annotated[Stage, arg(aliases=["-i"])] = "base"
    """Stage of the model."""
    model_tag: Annotated[str | None, arg(aliases=["-g"])] = None
    """Tag of the model; unset: the one trained last."""
    step: Annotated[int | None, arg(aliases=["-s"])] = None
    """Step of the model; unset: the newest."""
    max_rows: int | None = None
    """Rows per CORE task, at most; unset: all."""
    world_rows: int = 100
    """Rows per kind of tinyworld's own, without a bundle."""
    prompts: tuple[str, ...] = ("The capital of France is", "The opposite of hot is", "One day,")
    """Beginnings that the model goes on with."""
    sample_tokens: int = 32
    """Tokens of a sample."""
    device_type: str = ""
    """cuda, mps or cpu; empty: the best there is."""
    dtype: str = "auto"
    """Format of matrix products: auto, bfloat16 or float32."""
    weights: Weights | None = None
    """How the matrices are held; unset: in the format of --dtype."""
    dry_run: bool = False
    """Print what would be evaluated and end."""


def main(config: Config) -> None:
    """Load, evaluate, print samples."""
    with Runtime.start(config.device_type, config.dtype) as runtime:
        bundle = core_dir()
        tasks = read_bundle(bundle) if (bundle / "core.yaml").is_file() else []
        model, tokenizer, meta = load_model(
            config.source, runtime, config.model_tag, config.step, weights=config.weights
        )
        what = f"CORE from {bundle}" if tasks else f"tinyworld's rows (CORE is left out: no bundle in {bundle})"
        print0(f"base_eval of {config.source} {meta['tag']} step {meta['step']}: {what}")
        if config.dry_run:
            return
        scores, results = [], []
        for task, rows in [(t, read_rows(t.path)) for t in tasks] or world_tasks(config.world_rows):
            bar = progress(total=min(len(rows), config.max_rows or len(rows)), label=task.label, unit="row")
            result = evaluate_core_task(model, tokenizer, task, rows, runtime, config.max_rows, bar.update)
            bar.close()
            results.append(result)
            scores.append(Score(task.label, config.source, result.accuracy, result.count, result.low, result.high))
            print0(f"{task.label:<36} {result.accuracy:7.2%}  ({result.low:.1%} to {result.high:.1%}, "
                   f"{result.count:,} rows) centered {result.centered:.4f}")  # fmt: skip
        if tasks:
            scores.append(Score("CORE", config.source, core_metric(results), len(results)))
            print0(f"CORE {core_metric(results):.4f}")
        samples = {}
        engine = Engine(model, tokenizer)
        for prompt in config.prompts:
            ids = [tokenizer.get_bos_token_id(), *tokenizer.encode(prompt)]
            [(sampled, _)] = engine.generate_batch([ids], max_tokens=config.sample_tokens, temperature=0)
            samples[prompt] = tokenizer.decode([i for i in sampled if i != ids[0]])
            print0(f"sample: {prompt}|{samples[prompt]}")
        facts = {"model": f"{meta['tag']} step {meta['step']}", "weights": meta["weights"],
                 "evaluated": what, "samples": samples,
                 "device": runtime.device_name}  # fmt: skip
        report.add_section("base_eval", facts, scores)


def world_tasks(rows: int) -> list[tuple[CoreTask, list[tinyworld.CoreRow]]]:
    """tinyworld's own tasks, one of each kind, without few-shot examples."""
    return [
        (CoreTask(f"world {kind}", kind, Path(), 0, " ", WORLD_BASELINES[kind]), tinyworld.core_rows(kind, 42, rows))
        for kind in get_args(Kind)
    ]


if __name__ == "__main__":
    command.run(main, Config)
