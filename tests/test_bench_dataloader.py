"""The loader's bench: every contender gives the same text, and the last line has its keys."""

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nanochat.command import UserError

ROOT = Path(__file__).parent.parent
TEXTS = [f"Document {n} tells of {n * n} grey mice, {'late ' * (n % 40)}and ends." for n in range(400)]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """`bench/dataloader.py`, imported as it imports its neighbours."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    before = set(sys.modules)
    yield importlib.import_module("dataloader")
    for name in set(sys.modules) - before:
        if name == "peers" or name.startswith("dataloader"):
            del sys.modules[name]


@pytest.fixture
def folder(base_dir: Path, tmp_path: Path, bench: ModuleType) -> Path:
    """Shards and a vocabulary, made by the bench itself."""
    (tmp_path / "texts").mkdir()
    for n, text in enumerate(TEXTS):
        (tmp_path / "texts" / f"{n:03}.txt").write_text(text, encoding="utf-8")
    return bench.prepared(tmp_path / "texts", 300)


def test_every_contender_gives_an_epoch_of_the_same_text(bench: ModuleType, folder: Path) -> None:
    worker = importlib.import_module("dataloader_worker")

    def result(contender: str) -> dict[str, Any]:
        return dict(worker.measure(bench.Job(contender, str(folder), 4, 64, 300)))

    ours = result("ours")
    assert ours["tokens_per_second"] > 0
    assert ours["cropped_share"] == 0
    assert 0 <= ours["padding_share"] < 0.05
    assert ours["rows_led_by_bos_share"] == 1
    assert result("ours.no_thread")["tokens"] == ours["tokens"]
    batch = 4 * 64
    for peer in ("tiktoken.loop", "tiktoken.batch", "tokenizers.batch"):
        found = result(peer)
        assert abs(found["tokens"] - ours["tokens"]) < 3 * batch + ours["tokens"] * 0.02, peer
        assert found["rows_led_by_bos_share"] < 0.5


@pytest.mark.slow
def test_a_worker_is_a_process_of_its_own_whose_failure_is_told(bench: ModuleType, folder: Path) -> None:
    alone = bench.run_worker(Path(sys.executable), bench.Job("ours", str(folder), 4, 64, 300))
    assert alone["tokens"] > 0
    failed = bench.run_worker(Path(sys.executable), bench.Job("tiktoken.loop", str(folder / "missing")))
    assert "FileNotFoundError" in failed["error"]


def test_the_last_line_is_json_with_ratios_against_a_peers_best_call(
    bench: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = {"ours": 20.0, "ours.no_thread": 10.0, "training": 0.01, "tiktoken.loop": 2.0, "tiktoken.workers": 4.0}
    shares = {"padding_share": 0.001, "cropped_share": 0.0, "first_batch_seconds": 0.1}

    def run_worker(_python: Path, job: Any) -> dict[str, Any]:
        assert asdict(job)["rows"] == 16
        if job.contender.startswith("tokenizers"):
            return {"error": "ModuleNotFoundError"}
        return {"tokens_per_second": 1e6 * rates.get(job.contender, 1.0), **shares}

    monkeypatch.setattr(bench, "prepared", lambda text, size: folder)
    monkeypatch.setattr(bench, "run_worker", run_worker)
    monkeypatch.setattr(bench.peers, "install", lambda name, wanted: (Path(sys.executable), {}))
    bench.main(bench.Config(text=folder, rounds=2))
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told.keys() == {"bench", "ratios", "figures", "machine"}
    assert told["ratios"] == {
        "loader_vs_training": 2000.0, "loader_vs_tiktoken": 5.0, "loader_vs_tokenizers": None, "thread_vs_none": 2.0
    }  # fmt: skip
    assert told["figures"]["tokens_per_second"] == 20e6
    assert told["figures"]["first_batch_seconds"] == 0.1
    assert all(target["reached"] for target in told["figures"]["targets"].values())


def test_a_folder_without_text_is_told_in_a_sentence(bench: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name one with text by --text"):
        bench.main(bench.Config(text=tmp_path / "missing"))
    with pytest.raises(UserError, match="--rounds is 0"):
        bench.main(bench.Config(text=tmp_path, rounds=0))
    assert {"tiktoken", "tokenizers"} <= {each.split("==")[0] for each in bench.peers.requirements("bench-dataloader")}
