"""The tokenizer's bench: sets of text are disjoint, a wrong contender does not count, the last line has its keys."""

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import rustbpe
from nanochat.command import UserError

ROOT = Path(__file__).parent.parent
# The table of the last lines in DESIGN.md.
KEYS = {
    "train_100mb_vs_rustbpe",
    "train_10mb_vs_rustbpe",
    "train_memory_vs_rustbpe",
    "encode_vs_tiktoken",
    "encode_batch_vs_gigatoken",
    "encode_two_threads_vs_one",
    "decode_vs_tiktoken",
}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """`bench/tokenizer.py`, imported as it imports its neighbours."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    before = set(sys.modules)
    yield importlib.import_module("tokenizer")
    for name in set(sys.modules) - before:
        if name == "peers" or name.startswith("tokenizer"):
            del sys.modules[name]


def documents(count: int) -> list[str]:
    return [f"Document {n} tells of {n * n} grey mice, « {'étés ' * (n % 7)}».\n\n\tThe end" for n in range(count)]


@pytest.fixture
def folder(tmp_path: Path, bench: ModuleType) -> Path:
    """Small sets of text, cut by the bench itself."""
    (tmp_path / "prose").mkdir()
    for n, text in enumerate(documents(60)):
        (tmp_path / "prose" / f"{n:02}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "code").mkdir()
    for n in range(20):
        (tmp_path / "code" / f"{n:02}.py").write_text(f"def f{n}(x):\n    return x + {n}\n", encoding="utf-8")
    sizes = bench.tokenizer_texts.Sizes(mixed=2_000, books=1_000, held_out=500, growth=1_500)
    bench.tokenizer_texts.prepare(tmp_path, tmp_path / "prose", [tmp_path / "code"], sizes)
    return tmp_path


def test_no_unseen_text_is_in_another_set_and_none_is_repeated(bench: ModuleType, folder: Path) -> None:
    worker = importlib.import_module("tokenizer_worker")
    texts = {name: worker.read_texts(folder / f"{name}.bin") for name in ("unseen", "warming", "books", "mixed")}
    assert all(len(set(each)) == len(each) > 0 for each in texts.values())
    for name in ("warming", "books", "mixed"):
        assert not set(texts["unseen"]) & set(texts[name])
    assert not set(texts["warming"]) & set(texts["mixed"] + texts["books"])
    assert {text.startswith("def ") for text in texts["mixed"]} == {True, False}


def test_a_size_that_is_not_there_is_not_reached_by_repetition(bench: ModuleType, folder: Path) -> None:
    texts = bench.tokenizer_texts
    (folder / "prose" / "again.txt").write_text(documents(1)[0], encoding="utf-8")
    counted = texts.prepare(folder / "all", folder / "prose", [folder / "code"], texts.Sizes())
    code = sum(path.stat().st_size for path in (folder / "code").iterdir())
    prose = sum(len(text.encode()) for text in documents(60))
    assert counted["mixed"] == prose + code - counted["unseen"] - counted["warming"]
    assert 0 < counted["unseen"] < prose / 4


@pytest.mark.skipif(not hasattr(rustbpe.Tokenizer, "encode_to_numpy"), reason="needs the crate of this checkout")
def test_the_worker_measures_our_crate_and_every_call_gives_the_same_ids(bench: ModuleType, folder: Path) -> None:
    worker = importlib.import_module("tokenizer_worker")

    def result(name: str, **changes: Any) -> dict[str, Any]:
        job = bench.JOBS[name]
        pattern = bench.PATTERNS["nanochat"]
        return worker.measure(replace(job, pattern=pattern, folder=str(folder), vocab_size=300, **changes))

    assert result("train_mixed.ours", measure="vocabulary") == {"tokens": 300}
    trained = result("train_mixed.ours")
    assert trained["tokens"] == 300
    assert trained["bytes"] >= 2_000
    assert min(trained["seconds"], trained["cpu_seconds"]) > 0
    assert trained["digest"] == result("train_mixed.ours", threads=1)["digest"]
    names = ("encode.ours.arrays", "encode.ours.lists", "batch_1.ours", "batch_2.ours")
    assert len({(run["digest"], run["tokens"], run["bytes"]) for run in map(result, names)}) == 1
    assert result("decode.ours.str")["digest"] == result("decode.ours.bytes")["digest"]
    job = replace(bench.JOBS["encode.ours.lists"], pattern=bench.PATTERNS["nanochat"], folder=str(folder))
    alone = bench.run_worker(Path(sys.executable), job)
    assert alone["digest"] == result("encode.ours.lists")["digest"]


def test_the_digest_knows_where_a_text_ends(bench: ModuleType) -> None:
    digest = importlib.import_module("tokenizer_worker").digest
    assert digest([[1, 2], [3]]) == digest([np.array([1, 2], np.uint16), np.array([3], np.uint32)])
    assert digest([[1, 2], [3]])[0] != digest([[1], [2, 3]])[0]
    assert digest([[1, 2], [3]])[1] == 3


def fake_runs(bench: ModuleType, seconds: dict[str, float]) -> dict[str, dict[int, dict[str, Any]]]:
    run = {"cpu_seconds": 1.0, "bytes": 10, "cold_bytes": 10, "tokens": 3, "digest": "right"}
    return {
        name: {n: {**run, "seconds": seconds.get(name, 8.0), "cold_seconds": 8.0, "memory_bytes": 6} for n in range(3)}
        for name in bench.JOBS
    }


def test_a_ratio_is_the_peers_best_call_over_ours_and_a_wrong_or_missing_contender_has_none(bench: ModuleType) -> None:
    runs = fake_runs(bench, {"encode.ours.arrays": 1.0, "encode.tiktoken.arrays": 6.0})
    ratio = bench.RATIOS["encode_vs_tiktoken"]
    assert bench.ratio_of(ratio, runs) == 6.0
    runs["encode.tiktoken.arrays"][1]["digest"] = "wrong"
    assert bench.ratio_of(ratio, runs) == 8.0
    runs["encode.tiktoken.lists"] = {0: {"error": "no such package"}}
    assert bench.ratio_of(ratio, runs) is None  # the oracle is gone: ours stands for it, and both peers' calls are out
    assert bench.ratio_of(bench.RATIOS["decode_vs_tiktoken"], runs) == 1.0
    runs["decode.ours.str"][2]["digest"] = "wrong"
    assert bench.ratio_of(bench.RATIOS["decode_vs_tiktoken"], runs) is None


def test_the_last_line_is_json_with_every_ratio_and_target_and_a_second_run_resumes(
    bench: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = fake_runs(bench, {"train_mixed.ours": 1.0})
    ran = []

    def run_worker(_python: Path, job: Any) -> dict[str, Any]:
        ran.append(job)
        if job.contender == "gigatoken":
            return {"error": "ModuleNotFoundError: No module named 'gigatoken'"}
        alike = {name for name, other in bench.JOBS.items() if replace(job, pattern="", folder="") == other}
        return runs[alike.pop()][0] if alike else {"tokens": 300}

    python = Path(sys.executable)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(folder / "base"))
    monkeypatch.setattr(bench, "environments", lambda: ({"ours": python, "peers": python}, {"gigatoken": "refused"}))
    monkeypatch.setattr(bench, "code_folders", lambda _python: [folder / "code"])
    monkeypatch.setattr(bench.peers, "crate_hash", lambda: "0123456789abcdef")
    monkeypatch.setattr(bench, "run_worker", run_worker)
    bench.main(bench.Config(text=folder / "prose", rounds=2, quick=True))
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told.keys() == {"bench", "ratios", "figures", "machine"}
    assert told["bench"] == "tokenizer"
    assert told["ratios"].keys() >= KEYS
    assert told["ratios"]["train_100mb_vs_rustbpe"] == 8.0
    assert told["ratios"]["encode_batch_vs_gigatoken"] is None
    targets = told["figures"]["targets"]
    assert targets.keys() >= KEYS
    assert targets["train_100mb_vs_rustbpe"] == {"target": 4.0, "reached": True}
    assert not targets["encode_batch_vs_gigatoken"]["reached"]
    assert told["machine"]["cores"] >= 1

    first = len(ran)
    bench.main(bench.Config(text=folder / "prose", rounds=2, quick=True, resume=True))
    giga = sum(job.contender == "gigatoken" for job in bench.JOBS.values())
    assert len(ran) - first == 1 + 2 * giga  # the vocabulary, and what failed before


def test_a_folder_without_text_is_told_in_a_sentence(bench: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name one with prose by --text"):
        bench.main(bench.Config(text=tmp_path / "missing"))
    with pytest.raises(UserError, match="no parquet, jsonl or txt file"):
        bench.tokenizer_texts.prepare(tmp_path / "out", tmp_path, [], bench.tokenizer_texts.QUICK)


def test_the_peers_are_named_with_versions_in_their_group(bench: ModuleType) -> None:
    named = bench.peers.requirements()
    assert "rustbpe==0.1.0" in named
    assert all(any(sign in requirement for sign in ("==", ">=")) for requirement in named)
