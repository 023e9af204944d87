"""The decoding bench: both contenders compute one model, no answer ends early, and the last line has its keys."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from nanochat.command import UserError
from nanochat.gpt_config import config_for_depth

ROOT = Path(__file__).parent.parent
SMALL = {"depth": 1, "vocab_size": 96, "sequence_len": 64, "shapes": ((1, 5, 3), (3, 8, 4)), "repeats": 1}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """`bench/decode.py`, imported as it imports its neighbours."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    before = set(sys.modules)
    yield importlib.import_module("decode")
    for name in set(sys.modules) - before:
        if name.startswith("decode"):
            del sys.modules[name]


@pytest.fixture
def worker(bench: ModuleType) -> ModuleType:
    return importlib.import_module("decode_worker")


@pytest.mark.parametrize("contender", ["ours.bfloat16", "ours.int8", "transformers.float32"])
def test_every_answer_has_the_length_that_is_timed(worker: ModuleType, contender: str) -> None:
    if contender.startswith("transformers"):
        pytest.importorskip("transformers")
    job = worker.Job(contender, **SMALL)
    who, form = contender.split(".")
    generate, told = getattr(worker, who)(job, form)
    found = worker.generations(job, generate)
    assert [(each["rows"], each["prompt_tokens"], each["new_tokens"]) for each in found] == [(1, 5, 3), (3, 8, 4)]
    assert all(each["tokens_per_second"] > 0 for each in found)
    if who == "transformers":
        assert told["logits_off"] < 1e-4
    if form == "int8":
        assert told["few_rows"].keys() == {"192x64", "64x64", "256x64", "64x256", "96x64"}


def test_weights_that_were_not_taken_over_are_found_out(worker: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.delitem(worker.NAMES, "mlp.c_fc")
    with pytest.raises(AssertionError, match="the weights were not taken over: logits differ by"):
        worker.transformers(worker.Job("transformers.float32", **SMALL), "float32")


def test_what_an_answer_could_end_with_is_never_among_the_likeliest(worker: ModuleType) -> None:
    model = worker.random_model(worker.Job("ours.float32", depth=1, vocab_size=4096, sequence_len=64))
    with torch.inference_mode():
        likeliest = model(torch.tensor(worker.some_prompts(8, 60, 4096, 0))).topk(worker.TOP_K).indices
    assert int(likeliest.max()) < worker.Ids(4096).encode_special("<|bos|>")


def test_the_parts_of_a_step_and_the_first_token_are_timed(worker: ModuleType) -> None:
    job = worker.Job("ours.float32", **{**SMALL, "sequence_len": 256}, first_token_prompt=20, step_rows=(2,))
    _, told = worker.ours(job, "float32")
    assert told["steps"]["2"].keys() == {"matrices_ms", "attention_ms", "head_ms", "hidden_ms"}
    assert told["first_token"]["prompt_tokens"] == 20
    assert told["first_token"]["ratio"] > 0
    assert worker.read_bandwidth(1, megabytes=1) > 0


def test_a_steps_bytes_are_those_of_its_matrices_its_head_and_its_context(bench: ModuleType) -> None:
    sizes = config_for_depth(12, 32_768, 2048)
    weights = 12 * 12 * 768 * 768 + 32_768 * 768
    assert bench.bytes_per_token(sizes, "bfloat16", 0) == 2 * weights == 220_200_960
    assert bench.bytes_per_token(sizes, "int8", 0) == weights
    assert bench.bytes_per_token(sizes, "bfloat16", 100) - 2 * weights == 100 * 12 * 2 * 768 * 2


@pytest.mark.slow
def test_a_worker_is_a_process_of_its_own_whose_failure_is_told(bench: ModuleType) -> None:
    assert bench.run_worker(bench.Job("ours.int8", **SMALL))["generations"][1]["rows"] == 3
    assert "KeyError" in bench.run_worker(bench.Job("theirs.int8", **SMALL))["error"]


def test_the_last_line_is_json_with_ratios_against_the_peers_better_format(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speeds = {"ours.bfloat16": 70.0, "ours.int8": 140.0, "transformers.bfloat16": 35.0, "transformers.float32": 20.0}
    asked = []

    def run_worker(job: Any) -> dict[str, Any]:
        asked.append(job.contender)
        if job.contender == "bandwidth":
            return {"bytes_per_second": 25e9}
        if job.contender == "transformers.bfloat16" and job.depth == 4:
            return {"error": "ModuleNotFoundError"}
        rows = [{"rows": shape[0], "tokens_per_second": shape[0] * speeds[job.contender]} for shape in job.shapes]
        return {"generations": rows}

    monkeypatch.setattr(bench, "run_worker", run_worker)
    bench.main(bench.Config(rounds=2, rows=(1, 8), ours=("bfloat16", "int8"), first_token_prompt=0))
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told.keys() == {"bench", "ratios", "figures", "machine"}
    share = told["ratios"].pop("share_of_bandwidth_d12")
    assert share == pytest.approx(70 * (220_200_960 + 128 * 36_864) / 25e9)
    assert told["ratios"] == {
        "d12_1row_vs_transformers": 2.0,
        "d12_1row_int8_vs_transformers": 4.0,
        "d12_8rows_vs_transformers": 2.0,
        "d12_16rows_vs_transformers": None,
        "d4_1row_vs_transformers": 3.5,
        "d4_16rows_vs_transformers": None,
    }
    assert told["figures"]["targets"]["ours.bfloat16.d12.rows8"] == {"target": 350, "measured": 560.0, "reached": True}
    assert not told["figures"]["targets"]["ours.int8.d4.rows1"]["reached"]
    assert asked[:5] == asked[9:14]  # contenders take turns, round by round


def test_medians_go_number_by_number(bench: ModuleType) -> None:
    runs = [{"a": [{"x": x, "name": "n"}], "b": 2 * x} for x in (1, 9, 2)]
    assert bench.medians(runs) == {"a": [{"x": 2, "name": "n"}], "b": 4}
    assert bench.medians([{"a": 1}, {"error": "no"}, {"a": 2}]) == {"error": "no"}


def test_the_growth_is_drawn(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_worker(job: Any) -> dict[str, Any]:
        keys = ("rows", "prompt_tokens", "new_tokens")
        return {
            "generations": [{**dict(zip(keys, shape, strict=True)), "decoded_per_second": 1.0} for shape in job.shapes]
        }

    monkeypatch.setattr(bench, "run_worker", run_worker)
    curves = bench.growth(bench.Config(), tmp_path)
    assert [point["prompt_tokens"] for point in curves["ours.int8"][:5]] == list(bench.CONTEXTS)
    assert (tmp_path / "decode_growth.png").stat().st_size > 1000


def test_flags_that_measure_nothing_are_refused(bench: ModuleType) -> None:
    with pytest.raises(UserError, match="--rounds and --repeats one of at least 1"):
        bench.main(bench.Config(rounds=0))
