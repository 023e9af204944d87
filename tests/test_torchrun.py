"""The loops under torchrun: two processes over gloo do what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat import dataset, tinyworld
from nanochat.tokenizer import get_tokenizer
from scripts import tok_train

ROOT = Path(__file__).parent.parent


def losses_of(base_dir: Path, tag: str) -> list[float]:
    metrics = base_dir / "checkpoints" / "base" / tag / "metrics.jsonl"
    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return [record["loss"] for record in records if "loss" in record]


def launch(base_dir: Path, ranks: int, *flags: str) -> None:
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    done = subprocess.run(
        [*program, "-m", "scripts.base_train", "--device_type=cpu", "--depth=2", "--max_seq_len=64",
         "--total_batch_size=512", "--num_iterations=10", "--eval_every=0", "--sample_every=0", "--dtype=float32",
         "--data=two", *flags],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "NANOCHAT_BASE_DIR": str(base_dir), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def documents_of(tokens: int, count: int) -> list[str]:
    """Different texts that are exactly `tokens` tokens long, so that each is one row behind its <|bos|>."""
    tokenizer, found = get_tokenizer(), []
    for text in dataset.iterate_documents("train", "tinyworld"):
        cut = tokenizer.decode(tokenizer.encode(text)[:tokens])
        if len(tokenizer.encode(cut)) == tokens:
            found.append(cut)
        if len(found) == count:
            return found
    raise AssertionError(f"only {len(found)} documents have {tokens} tokens")


@pytest.mark.slow
def test_two_processes_end_with_the_loss_of_one(base_dir: Path) -> None:
    """Two different documents in turn: one process reads both, of two processes each reads its own; a step is equal."""
    tinyworld.main(tinyworld.Config(megabytes=0.3))
    tok_train.main(tok_train.Config(vocab_size=500))
    dataset.write_shards(documents_of(64, 2) * 400, "two")
    launch(base_dir, 1, "--device_batch_size=4", "--model_tag=one")
    launch(base_dir, 2, "--device_batch_size=2", "--model_tag=two")
    one, two = losses_of(base_dir, "one"), losses_of(base_dir, "two")
    assert len(one) == 10
    assert one[-1] < one[0] - 1
    assert two == pytest.approx(one, abs=1e-4)
