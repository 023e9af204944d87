"""The same stages on real prose, real chats and the real benchmark sets that lie beside the repository."""

import json
from pathlib import Path

import pytest

from nanochat import dataset
from scripts import base_eval, base_loss, base_train, chat_eval, chat_rl, chat_sft, mid_train, tok_train


@pytest.fixture(scope="module")
def real(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base directory in which a small model has read prose and chats."""
    base = tmp_path_factory.mktemp("real") / "base"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(base))
        patch.setenv("NANOCHAT_HUB_DIR", str(shared_data / "hub"))
        prose = tuple(shared_data / "prose" / f"shard_0000{number}.parquet" for number in (0, 7))
        dataset.main(dataset.Config(import_paths=prose, source="prose"))
        tok_train.main(tok_train.Config(vocab_size=2048))
        base_train.main(
            base_train.Config(depth=2, max_seq_len=256, device_batch_size=8, total_batch_size=4096, num_iterations=60,
                              eval_every=60, eval_tokens=32_768, sample_every=0, compile="off")
        )  # fmt: skip
        chats = [str(shared_data / "conversations" / f"{name}.jsonl.gz") for name in ("topical_chat", "roleplay")]
        bare_lists = str(shared_data / "conversations" / "identity_bare_lists.jsonl.gz")
        mid_train.main(
            mid_train.Config(tasks=("GSM8K:200", "MMLU:200"), data=tuple(chats), device_batch_size=8,
                             num_iterations=20, eval_every=20, eval_batches=4)
        )  # fmt: skip
        chat_sft.main(
            chat_sft.Config(tasks=("ARC-Easy:200",), data=(bare_lists,), device_batch_size=8, num_iterations=10,
                            init_lr_frac=0.5, eval_every=0)
        )  # fmt: skip
    return base


@pytest.fixture
def in_real(real: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(real))
    monkeypatch.setenv("NANOCHAT_HUB_DIR", str(shared_data / "hub"))
    monkeypatch.setenv("NANOCHAT_CORE_DIR", str(shared_data / "core"))
    return real


def metrics(base: Path, stage: str) -> list[dict[str, float]]:
    path = base / "checkpoints" / stage / "d2" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_bits_per_byte_of_unseen_prose_fall(in_real: Path) -> None:
    before, after = (record["val_bpb"] for record in metrics(in_real, "base") if "val_bpb" in record)
    assert before > 3.0
    assert after < 0.75 * before
    base_loss.main(base_loss.Config(device_batch_size=8, eval_tokens=16_384))


@pytest.mark.slow
def test_real_chats_are_learned_in_both_stages(in_real: Path) -> None:
    for stage in ("mid", "sft"):
        losses = [record["loss"] for record in metrics(in_real, stage) if "loss" in record]
        assert losses[-1] < losses[0] - 0.3, stage


@pytest.mark.slow
def test_the_benchmarks_give_scores_with_intervals(in_real: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat_eval.main(chat_eval.Config(tasks=("ARC-Easy", "MMLU", "GSM8K"), max_problems=6, max_tokens=8))
    base_eval.main(base_eval.Config(max_rows=2, prompts=(), device_type="cpu"))
    said = capsys.readouterr().out
    assert "ARC-Easy" in said
    assert "CORE " in said
    sections = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (in_real / "report").glob("*.json")}
    assert len(sections["base_eval"]["scores"]) == 22 + 1
    for score in sections["chat_eval_sft"]["scores"]:
        assert 0 <= score["low"] <= score["value"] <= score["high"] <= 1
        assert score["count"] == 6


@pytest.mark.slow
def test_reinforcement_takes_problems_of_gsm8k(in_real: Path) -> None:
    chat_rl.main(
        chat_rl.Config(examples_per_step=2, num_samples=2, num_iterations=1, max_tokens=8, eval_problems=2,
                       eval_samples=1)
    )  # fmt: skip
    assert {"reward", "sampled_tokens"} <= metrics(in_real, "rl")[-2].keys() | metrics(in_real, "rl")[-1].keys()
