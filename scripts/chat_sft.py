"""Fine-tune for chat: only what the assistant says is trained on, at a low rate, on a curated mixture.

python -m scripts.chat_sft
python -m scripts.chat_sft --tasks TinyChat TinyMath SpellingBee --data my_identity.jsonl

Lesson: lessons/21_conversations
"""

from dataclasses import asdict, dataclass
from typing import Annotated, Literal

from tyro.conf import arg

from nanochat import command, report
from nanochat.checkpoint_manager import load_model
from nanochat.dataloader import ConversationLoader, mean_tokens, one_epoch
from nanochat.log import print0
from nanochat.loss_eval import evaluate_loss
from nanochat.runtime import Runtime
from nanochat.schedule import lr_multiplier, muon_momentum
from nanochat.tokenizer import get_token_bytes
from nanochat.training import CompileMode, accumulate, compiled, gradient_norm, start_finetuning
from nanochat.training_run import RunFlags
from tasks import load_mixture


@dataclass(frozen=True)
class Config(RunFlags):
    """Flags of chat_sft."""

    tasks: tuple[str, ...] = ("ARC-Easy", "ARC-Challenge", "GSM8K", "SmolTalk:10000", "SpellingBee:2000")
    """Tasks whose training split is learned, each with an optional limit, such as SmolTalk:10000."""
    data: tuple[str, ...] = ()
    """Files of own conversations (jsonl) to mix in."""
    source: Annotated[Literal["mid", "base"], arg(aliases=["-i"])] = "mid"
    """Stage to start from."""
    model_tag: Annotated[str | None, arg(aliases=["-g"])] = None
    """Tag of the model; unset: the one trained last."""
    step: Annotated[int | None, arg(aliases=["-s"])] = None
    """Step of the model; unset: the newest."""
    device_batch_size: int = 32
    """Rows per micro-batch and rank."""
    total_batch_size: int | None = None
    """Tokens per step over all ranks; unset: as in pretraining."""
    num_iterations: int | None = None
    """Steps; unset: from num_epochs."""
    num_epochs: float = 1.0
    """Passes over the conversations."""
    init_lr_frac: float = 0.02
    """Learning rates at the start, as a share of pretraining's."""
    warmdown_ratio: float = 1.0
    """Share of the steps in which the rate falls to zero."""
    eval_every: int = 150
    """Steps between measurements of the validation loss; 0: never."""
    eval_batches: int = 20
    """Batches of such a measurement."""
    device_type: str = ""
    """cuda, mps or cpu; empty: the best there is."""
    dtype: str = "auto"
    """Format of matrix products: auto, bfloat16 or float32."""
    compile: CompileMode = "auto"
    """torch.compile; auto: on a GPU, and on a CPU where training is long enough for it to pay."""
    seed: int = 42
    """Of the mixture and the order of data."""
    dry_run: bool = False
    """Print the plan and end."""


def main(config: Config) -> None:
    """Load the model, mix the conversations, loop, save."""
    with Runtime.start(config.device_type, config.dtype, config.seed) as runtime:
        train = load_mixture(config.tasks, "train", config.data, config.seed)
        loaded = load_model(config.source, runtime, config.model_tag, config.step, for_training=True)
        model, tokenizer, _ = loaded
        length = model.config.sequence_len
        loader = ConversationLoader(
            train, tokenizer, config.device_batch_size, length, runtime, train_on_all=False, seed=config.seed
        )
        run = start_finetuning(
            "sft", loaded, loader, runtime, device_batch_size=config.device_batch_size,
            total_batch_size=config.total_batch_size, num_iterations=config.num_iterations,
            total_tokens=mean_tokens(train, tokenizer, length) * len(train) * config.num_epochs,
            init_lr_frac=config.init_lr_frac, warmdown_ratio=config.warmdown_ratio,
        )  # fmt: skip
        plan = run.plan
        print0(f"chat_sft {run.tag}: {len(train):,} conversations of {' '.join(config.tasks + config.data)}\n{plan}")
        if config.dry_run:
            return
        compiled(model, config.compile, plan, runtime)
        test = load_mixture(config.tasks, "test", (), config.seed) if config.tasks else train
        for line in run.take_up(config):
            print0(line)
        if run.over:
            return

        with run.open(config) as metrics:
            while True:
                step = run.progress.step
                if run.stop_asked():
                    run.save({"config": asdict(config)}, measured=False)
                    break
                val_loss: float | None = None
                val_bpb: float | None = None
                if run.due(config.eval_every):
                    validation = ConversationLoader(
                        test, tokenizer, plan.device_batch_size, plan.sequence_len, runtime, train_on_all=False
                    )
                    batches = one_epoch(validation, config.eval_batches)
                    result = evaluate_loss(model, batches, get_token_bytes(), runtime)
                    val_loss, val_bpb = result.loss, result.bpb
                    metrics.log({"step": step, "val_loss": val_loss, "val_bpb": val_bpb})
                    print0(f"step {step:05d} | validation loss {val_loss:.4f}, {val_bpb:.4f} bits per byte")
                if run.due(config.save_every) or step == plan.num_iterations:
                    run.save({"config": asdict(config), "val_loss": val_loss, "val_bpb": val_bpb})
                if step >= plan.num_iterations:
                    break

                run.progress.begin(runtime)
                loss = accumulate(model, loader, plan.grad_accum_steps, runtime)
                judgement = run.judge(loss, gradient_norm(model, runtime))
                multiplier = lr_multiplier(step, plan.num_iterations, 0, plan.warmdown_ratio)
                if judgement.usable:
                    run.optimizer.step(multiplier, muon_momentum(step))
                run.optimizer.zero_grad()
                record = run.progress.end(loss, multiplier, runtime)
                metrics.log({**record, **judgement.facts})
                print0(run.progress.line(record) + judgement.words)
                if judgement.roll_back:
                    print0(run.roll_back(metrics))

        if run.progress.step < plan.num_iterations:
            print0(f"stopped, saved {run.folder}/step_{run.progress.step:06d}; --resume goes on from there")
            return
        facts = {**plan.to_dict(), "tasks": list(config.tasks), "data": list(config.data), "conversations": len(train),
                 "packing": str(loader.counts),
                 "device": runtime.device_name, "final_loss": run.progress.smooth_loss, "val_loss": val_loss,
                 "val_bpb": val_bpb, "train_seconds": run.progress.train_seconds}  # fmt: skip
        report.add_section("chat_sft", facts, metrics=run.metrics_path)
        print0(f"saved {run.folder}/step_{run.progress.step:06d}; next: python -m scripts.chat_cli")


if __name__ == "__main__":
    command.run(main, Config)
