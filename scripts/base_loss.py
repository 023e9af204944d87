"""Measure a base model's bits per byte on the training and the validation text.

python -m scripts.base_loss
torchrun --standalone --nproc_per_node=8 -m scripts.base_loss -g d20

Lesson: lessons/19_validation
"""

from dataclasses import dataclass
from typing import Annotated, get_args

from tyro.conf import arg

from nanochat import command, dataset, report
from nanochat.checkpoint_manager import load_model
from nanochat.gpt_config import Weights
from nanochat.log import print0
from nanochat.plan import plan_training
from nanochat.report import Score, Stage
from nanochat.runtime import Runtime
from nanochat.training import Validation


@dataclass(frozen=True)
class Config:
    """Flags of base_loss."""

    source: Annotated[Stage, arg(aliases=["-i"])] = "base"
    """Stage of the model."""
    model_tag: Annotated[str | None, arg(aliases=["-g"])] = None
    """Tag of the model; unset: the one trained last."""
    step: Annotated[int | None, arg(aliases=["-s"])] = None
    """Step of the model; unset: the newest."""
    data: str | None = None
    """Source of text; unset: the one that the model was trained on."""
    device_batch_size: int = 32
    """Rows per batch and rank."""
    eval_tokens: int = 20 * 524_288
    """Tokens to measure on per split, at most."""
    device_type: str = ""
    """cuda, mps or cpu; empty: the best there is."""
    dtype: str = "auto"
    """Format of matrix products: auto, bfloat16 or float32."""
    weights: tuple[Weights, ...] = ()
    """How the matrices are held, one after the other; unset: in the format of --dtype."""
    dry_run: bool = False
    """Print what would be measured and end."""


def main(config: Config) -> None:
    """Load, measure both splits, print."""
    with Runtime.start(config.device_type, config.dtype) as runtime:
        scores = []
        for weights in config.weights or (None,):
            model, tokenizer, meta = load_model(config.source, runtime, config.model_tag, config.step, weights=weights)
            source = config.data or str(meta.get("source") or dataset.default_source())
            held = meta["weights"]
            print0(f"base_loss of {config.source} {meta['tag']} step {meta['step']} in {held} on {source!r}")
            if config.dry_run:
                continue
            plan = plan_training(
                model.config, device_batch_size=config.device_batch_size, world_size=runtime.world_size,
                total_batch_size=None, num_iterations=1, target_param_data_ratio=0.0, matrix_lr=0.0, embedding_lr=0.0,
                unembedding_lr=0.0,
            )  # fmt: skip
            for split in get_args(dataset.Split):
                result = Validation(config.eval_tokens, plan, tokenizer, source, runtime, split).measure(model)
                print0(
                    f"{split:<6} {result.bpb:.4f} bits per byte, loss {result.loss:.4f} over {result.tokens:,} tokens"
                )
                label = f"{split} bpb" if len(config.weights) < 2 else f"{split} bpb in {held}"
                scores.append(Score(label, config.source, result.bpb, result.tokens))
        if config.dry_run:
            return
        facts = {"model": f"{meta['tag']} step {meta['step']}", "data": source, "device": runtime.device_name,
                 "weights": ", ".join(config.weights) or held}  # fmt: skip
        report.add_section("base_loss", facts, scores)


if __name__ == "__main__":
    command.run(main, Config)
