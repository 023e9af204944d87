"""Pretrainings of six small steps, interrupted ones too, and what must be the same at their ends."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nanochat import paths
from nanochat.log import read_metrics
from nanochat.training import accumulate
from scripts import base_train


def kill_in_step(number: int, script: object, patch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the script computes that step."""
    real, calls = accumulate, 0

    def interrupted(*values: object) -> float:
        nonlocal calls
        calls += 1
        if calls == number:
            raise KeyboardInterrupt
        return real(*values)  # type: ignore[arg-type]

    patch.setattr(script, "accumulate", interrupted)


def stopped_and_resumed(main: Callable[[int | None], None], script: object) -> None:
    """Six steps of which the fifth is interrupted, then on from step 3 with generators that stand elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        kill_in_step(5, script, patch)
        with pytest.raises(KeyboardInterrupt):
            main(None)
    random.seed(99)
    torch.manual_seed(99)
    main(3)


def same_run(stage: str, tag: str, other: str) -> None:
    """Weights, optimizer, data position, generators, averages and metrics of step 6 are the same to the last bit."""
    folders = [paths.checkpoints_dir(stage, name) / "step_000006" for name in (tag, other)]
    for name in ("model.safetensors", "optim.safetensors"):
        first, second = (load_file(folder / name) for folder in folders)
        assert first.keys() == second.keys()
        assert all(torch.equal(value, second[key]) for key, value in first.items()), name
    first_state, second_state = (json.loads((folder / "state.json").read_text()) for folder in folders)
    assert first_state["ranks"] == second_state["ranks"]
    assert first_state["progress"]["smooth_loss"] == second_state["progress"]["smooth_loss"]

    def measured(folder: Path) -> dict[tuple[object, str], object]:
        clocked = ("step_seconds", "tokens_per_second", "train_seconds")
        records = read_metrics(folder.parent / "metrics.jsonl")
        assert [record["step"] for record in records if "loss" in record] == [1, 2, 3, 4, 5, 6]
        return {(r["step"], key): value for r in records for key, value in r.items() if key not in clocked}

    assert measured(folders[0]) == measured(folders[1])


def pretrain(tag: str, resume_from_step: int | None = None, **flags: object) -> None:
    """Six small steps, saved after the third and the sixth."""
    given = {
        "depth": 1, "max_seq_len": 64, "device_batch_size": 2, "total_batch_size": 256, "num_iterations": 6,
        "eval_every": 2, "eval_tokens": 512, "core_every": 0, "sample_every": 0, "save_every": 3, "data": "tinyworld",
        "device_type": "cpu", "dtype": "float32", "compile": "off", "warmup_iters": 2, "weight_decay": 0.1, **flags,
    }  # fmt: skip
    base_train.main(base_train.Config(model_tag=tag, resume_from_step=resume_from_step, **given))  # type: ignore[arg-type]
