"""What a worker process loads: a checkpoint's model on its device, in an engine. torch enters here, in the worker.

Lesson: lessons/24_serving
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

from nanochat.command import UserError
from nanochat.gpt_config import Weights
from nanochat.serving.wire import Facts
from nanochat.serving.worker import StepEngine

CHATTING_STAGES = ("sft", "mid", "base")  # what is served where nothing is asked for, the best first


@dataclass(frozen=True)
class Load:
    """Which model, where and how. One of `workers`, which share the machine's `gpus`, or its cores."""

    stage: str | None
    tag: str | None
    step: int | None
    device_type: str
    dtype: str
    weights: Weights | None
    max_rows: int
    cache_bytes: int | None = None
    """Of keys and values, and of texts kept for those that go on from them; None: a third of what is free."""
    tools: tuple[str, ...] = ()
    gpus: int = 1
    workers: int = 1
    index: int = 0

    def of(self, index: int, pinned: Facts | None) -> "Load":
        """The same for another worker, the checkpoint fixed to the one that the first has found."""
        if pinned is None:
            return replace(self, index=index)
        stage, tag, step = pinned["stage"], pinned["tag"], pinned["step"]
        assert isinstance(stage, str), f"no stage in {pinned}"
        assert isinstance(tag, str), f"no tag in {pinned}"
        assert isinstance(step, int), f"no step in {pinned}"
        return replace(self, index=index, stage=stage, tag=tag, step=step)

    @contextlib.contextmanager
    def __call__(self) -> Iterator[tuple[StepEngine, Facts]]:
        """Load it. Raises UserError for what is not there."""
        import torch

        from nanochat import hardware
        from nanochat.checkpoint_manager import load_model
        from nanochat.engine import Engine
        from nanochat.runtime import Runtime, autodetect_device_type

        stage = self.stage or choose_stage()
        kind = self.device_type or autodetect_device_type()
        present = torch.cuda.device_count() if kind == "cuda" else 1
        if self.gpus > present:
            raise UserError(
                f"--num-gpus={self.gpus}, but there is {present} {kind} device here; at most {present}"
                + ("" if kind == "cuda" else ", and --num-workers shares it")
            )
        os.environ["LOCAL_RANK"] = str(self.index % self.gpus)
        threads = max(1, hardware.available_cores() // self.workers) if self.workers > 1 else None
        with Runtime.start(kind, self.dtype, threads=threads, keeps_memory=False) as runtime:
            model, tokenizer, meta = load_model(stage, runtime, self.tag, self.step, weights=self.weights)
            facts: Facts = {
                "stage": stage,
                "tag": str(meta["tag"]),
                "step": int(str(meta["step"])),
                "chats": stage != "base",
                "device": runtime.device_name,
                "weights": str(meta["weights"]),
            }
            sharing = self.workers // self.gpus
            memory = self.cache_bytes
            if memory is None and sharing > 1:  # an engine by itself would take its third beside the others'
                free = torch.cuda.mem_get_info()[0] if kind == "cuda" else hardware.available_memory_bytes()
                memory = free // (3 * sharing)
            yield Engine(model, tokenizer, max_rows=self.max_rows, memory_bytes=memory, tools=self.tools), facts


def choose_stage() -> str:
    """The best stage that knows how to chat. Raises UserError when there is none."""
    from nanochat.checkpoint_manager import newest_stage

    stage = newest_stage(CHATTING_STAGES)
    if stage == "base":
        raise UserError(
            "there is only a base checkpoint, which continues text and cannot chat: run `python -m scripts.mid_train`"
            " first, or serve its completions by `python -m scripts.chat_web -i base`"
        )
    return stage or "base"  # when there is nothing, load_model names the first command
