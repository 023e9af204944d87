"""The bench of pretraining: the peer is the same model, both are measured alike, no measurement is made twice."""

import importlib
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from tiny import CPU, TEXT, random_model, tiny_tokenizer

from nanochat import paths
from nanochat.command import UserError
from nanochat.gpt_config import config_for_depth

ROOT = Path(__file__).parent.parent
transformers = pytest.importorskip("transformers")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """`bench/pretrain.py` with a base directory of its own."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    yield importlib.import_module("pretrain")
    for name in [name for name in sys.modules if name.startswith("pretrain")]:
        del sys.modules[name]


@pytest.fixture
def worker(bench: ModuleType) -> ModuleType:
    return sys.modules["pretrain_worker"]


@pytest.fixture
def lines(bench: ModuleType, tmp_path: Path) -> Any:
    return bench.Lines(tmp_path / "lines.jsonl")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Two little shards."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(2):
        documents = pyarrow.table({"text": [f"{TEXT} {shard} {n}" for n in range(20)]})
        pyarrow.parquet.write_table(documents, folder / f"shard_{shard:05}.parquet")
    return folder


def speed_of(tokens_per_second: float, **more: float) -> dict[str, float]:
    found = {"tokens_per_second": tokens_per_second, "step_seconds": 8192 / tokens_per_second, "first_seconds": 60.0,
             "memory_bytes": 5e8, "flops_per_token": 2e6, "peak_flops": 1e10, "cpu_share": 1.0,
             "attention": "sdpa"}  # fmt: skip
    return {**found, **more}


# the peer


def test_the_peer_is_our_model_and_both_have_the_same_bits_per_byte(worker: ModuleType, base_dir: Path) -> None:
    from nanochat import dataset

    dataset.write_shards([f"{TEXT} {n}" for n in range(200)], worker.SOURCE)
    tiny_tokenizer().save(paths.tokenizer_dir())
    sizes = config_for_depth(2, tiny_tokenizer().get_vocab_size(), 32)
    ours, theirs = random_model(sizes), worker.peer_model(sizes)
    assert sum(parameter.numel() for parameter in theirs.parameters()) == sizes.num_params
    assert theirs.model.embed_tokens.padding_idx is None
    names = {
        "transformer.wte": "model.embed_tokens", "transformer.h": "model.layers",
        ".attn.c_proj": ".self_attn.o_proj", ".attn.c_": ".self_attn.",
        ".mlp.c_fc": ".mlp.fc1", ".mlp.c_proj": ".mlp.fc2",
    }  # fmt: skip
    state = {}
    for name, value in ours.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        for letter in "qkv":
            name = name.replace(f".self_attn.{letter}.", f".self_attn.{letter}_proj.")
        state[name] = value
    theirs.load_state_dict(state)
    found = [worker.validation_bpb(model, 32, 256, CPU) for model in (ours, worker.PeerInOurPlace(theirs))]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0] > 1


def test_a_target_that_is_not_trained_on_costs_the_peer_nothing(worker: ModuleType) -> None:
    model = worker.peer_model(config_for_depth(1, 64, 8))
    inputs = torch.randint(64, (2, 8))
    targets = inputs.clone()
    targets[1] = -1
    losses = worker.peer_losses(model, inputs, targets, torch.float32).view(2, 8)
    assert losses[1].tolist() == [0.0] * 8
    assert losses[0].mean().item() == pytest.approx(math.log(64), rel=0.1)


def test_the_peer_learns_by_its_schedule(worker: ModuleType, base_dir: Path) -> None:
    from nanochat import dataset

    dataset.write_shards([f"{TEXT} {n}" for n in range(200)], worker.SOURCE)
    tiny_tokenizer().save(paths.tokenizer_dir())
    job = worker.PeerRun(1, tiny_tokenizer().get_vocab_size(), 2048, 64, 4e-3, "linear", 1, "float32", 1, 256, 32)
    still = worker.peer_run(replace(job, rate=0.0))
    found = {shape: worker.peer_run(replace(job, shape=shape))["bpb"] for shape in ("linear", "cosine", "trapezoid")}
    assert still["tokens"] == 2048
    assert max(found.values()) < 0.8 * still["bpb"]
    assert len(set(found.values())) == 3


# speed


@pytest.mark.parametrize("contender", ["ours", "transformers"])
def test_a_step_is_measured(worker: ModuleType, contender: str) -> None:
    job = worker.Speed(contender, 1, 300, 4, 2, "float32", seconds=0.0, sequence_len=32)
    found = sys.modules["pretrain_lines"].run_worker(job)  # in a process that has held no memory before
    assert found["steps"] == 3
    assert found["tokens_per_second"] == pytest.approx(4 * 32 / found["step_seconds"])
    assert found["memory_bytes"] > 0
    assert found["flops_per_token"] == config_for_depth(1, 300, 32).flops_per_token
    assert found["peak_flops"] > 1e9
    assert "attention" in found["attention"]


def test_contenders_take_turns_with_the_smallest_micro_batch_that_is_fast(
    bench: ModuleType, lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    speed = bench.speed
    calls: list[Any] = []

    def run_worker(job: Any, **environment: str) -> dict[str, float]:
        calls.append(job)
        rate = {1: 500.0, 2: 990.0, 4: 1000.0}[job.micro] * (2 if job.compiled else 1)
        peak = 5e9 if job.compiled else 1e10  # measured in a busy moment
        return speed_of(rate * (1.0 if job.contender == "ours" else 0.25), peak_flops=peak)

    monkeypatch.setattr(speed, "run_worker", run_worker)
    rows = {"d4": speed.Row(4, 8192, 16, (1, 2, 4), ("bfloat16",))}
    found = speed.measured(lines, rows, 2, 10.0)
    assert {each["micro"] for each in found["d4"].values()} == {2}
    rounds = [job for job in calls if job.seconds == 10.0]
    assert rounds[:4] == rounds[4:]
    assert len({(job.contender, job.compiled, job.keeps_memory) for job in rounds[:4]}) == 4
    trials = found["d4"]["ours.bfloat16.eager"]["trials"]
    assert {size: trial["tokens_per_second"] for size, trial in trials.items()} == {1: 500.0, 2: 990.0, 4: 1000.0}
    assert speed.ratio(found, "ours.", "transformers.bfloat16.") == 8.0
    assert speed.ratio(found, "ours.", "transformers.float32.") is None
    assert found["d4"]["ours.bfloat16.compiled"]["mfu"] == pytest.approx(2e6 * 1980 / 1e10)
    told = speed.targets(found)
    assert told["vs_transformers_bfloat16"] == {"target": 1.8, "measured": 8.0, "reached": True}
    assert told["d4_compiled"]["reached"] is False
    assert told["d4_memory_bytes"]["reached"] is True
    assert "d6_compiled" not in told

    count = len(calls)
    assert speed.measured(bench.Lines(lines.path), rows, 2, 10.0) == found
    assert len(calls) == count


def test_rows_are_those_of_the_machine_and_a_gpu_takes_as_many_as_it_has_memory_for(
    bench: ModuleType, lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nanochat.hardware.gpu_names", list)
    assert bench.rows_of(bench.Config()) == ("d4", "d4_one_row", "d4_accumulated", "d6", "d8")
    monkeypatch.setattr("nanochat.hardware.gpu_names", lambda: ["NVIDIA H200"])
    assert bench.rows_of(bench.Config()) == ("cuda_d12", "cuda_d20")
    speed, calls = bench.speed, list[Any]()

    def run_worker(job: Any, **environment: str) -> dict[str, Any]:
        calls.append(job)
        most = 16 if job.contender == "ours" else 8
        return speed_of(1000.0 * job.micro) if job.micro <= most else {"out_of_memory": True}

    monkeypatch.setattr(speed, "run_worker", run_worker)
    found = speed.measured(lines, {"cuda_d12": speed.ROWS["cuda_d12"]}, 1, 10.0)["cuda_d12"]
    assert {who: each["micro"] for who, each in found.items()} == {
        "ours.bfloat16.compiled": 16, "ours.bfloat16.eager": 16, "transformers.bfloat16.compiled": 8,
    }  # fmt: skip
    assert {(job.device, job.sequence_len, job.vocab_size, job.rows) for job in calls} == {("cuda", 2048, 65_536, 256)}
    assert max(job.micro for job in calls if job.contender == "ours") == 32
    monkeypatch.setattr(speed, "run_worker", lambda job, **_: {"out_of_memory": True})
    with pytest.raises(UserError, match="runs out of memory with 4 rows of depth 20: leave that row out"):
        speed.measured(lines, {"cuda_d20": speed.ROWS["cuda_d20"]}, 1, 10.0)


def test_compilation_pays_when_a_compiled_run_has_made_as_many_steps(bench: ModuleType) -> None:
    seconds = bench.speed.pays_after(60.0, 0.5, 0.8)
    assert 1 + (seconds - 60.0) / 0.5 == pytest.approx(seconds / 0.8)
    assert bench.speed.pays_after(60.0, 0.8, 0.8) is None
    assert bench.speed.pays_after(0.1, 0.5, 0.8) == 0.0


# quality


def fake_peer(calls: list[Any], batch_tokens: int = 8192) -> Any:
    """A peer that likes a rate of 0.012 best, a cosine better and these tokens per step."""

    def run_worker(job: Any, **environment: str) -> dict[str, Any]:
        calls.append(job)
        bpb = 1.5 + abs(math.log(job.rate / 0.012)) + {"linear": 0.2, "cosine": 0.1, "trapezoid": 0.3}[job.shape]
        bpb += 0.1 * abs(math.log2(job.batch_tokens / batch_tokens))
        return {"bpb": bpb + 0.01 * job.seed, "tokens": job.tokens}

    return run_worker


def test_the_peer_is_tuned_beyond_the_edge_of_its_grid(
    bench: ModuleType, lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(bench.quality, "run_worker", fake_peer(calls))
    found = bench.quality.tuned(lines, bench.quality.Size(), 3_000_000, 1, (2e-3, 4e-3, 8e-3))
    assert (found.rate, found.shape, found.batch_tokens) == (16e-3, "cosine", 8192)
    assert [job.rate for job in calls] == [2e-3, 4e-3, 8e-3, 16e-3, 32e-3, 16e-3, 16e-3, 16e-3, 8e-3, 32e-3]
    assert len(bench.quality.trials(lines, found)) == len(calls)


@pytest.mark.parametrize(("likes", "tried"), [(8192, [4096]), (4096, [4096, 2048]), (1024, [4096, 2048])])
def test_the_peers_batch_is_halved_while_it_gains(
    bench: ModuleType, lines: Any, monkeypatch: pytest.MonkeyPatch, likes: int, tried: list[int]
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(bench.quality, "run_worker", fake_peer(calls, likes))
    found = bench.quality.tuned(lines, bench.quality.Size(), 3_000_000, 1)
    assert found.batch_tokens == max(2048, likes)  # a micro-batch at least
    assert [job.batch_tokens for job in calls if job.batch_tokens < 8192 and job.rate == found.rate] == tried


def test_ours_is_compared_by_seeds_with_a_peer_that_has_half_as_many_tokens_more(
    bench: ModuleType, lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(bench.quality, "run_worker", fake_peer(calls))
    monkeypatch.setattr(
        bench.quality, "our_run",
        lambda size, arch, tokens, seed: {"bpb": 1.4 + 0.02 * seed - 0.1 * (arch == "fast"), "tokens": tokens - 100},
    )  # fmt: skip
    size = bench.quality.Size()
    found = bench.quality.compared(lines, size, {"short": 2_100, "long": 10_100}, {"short": (1, 2, 3), "long": (1,)})
    assert (found["short"]["their_tokens"], found["long"]["their_tokens"]) == (3_000, 15_000)
    assert {job.tokens for job in calls} == {3_000, 15_000}
    theirs = [1.6 + abs(math.log(0.016 / 0.012)) + 0.01 * seed for seed in (1, 2, 3)]
    gains = [their - 1.4 - 0.02 * seed for seed, their in enumerate(theirs, start=1)]
    assert found["short"]["default"]["gain"] == pytest.approx(sum(gains) / 3)
    assert found["short"]["default"]["half_width"] == pytest.approx(4.30 * 0.01 / math.sqrt(3))
    assert found["short"]["default"]["ratio"] == pytest.approx(sum(theirs) / 3 / 1.44)
    assert found["short"]["fast"]["gain"] == pytest.approx(sum(gains) / 3 + 0.1)
    assert found["long"]["fast"]["half_width"] is None
    assert found["their_setting"] == {"rate": 16e-3, "shape": "cosine", "batch_tokens": 8192}


def test_the_first_point_that_is_good_enough_tells_the_time(bench: ModuleType) -> None:
    curve = [{"seconds": 10.0, "bpb": 2.0}, {"seconds": 20.0, "bpb": 1.4}, {"seconds": 30.0, "bpb": 1.3}]
    assert bench.quality.seconds_to(curve, 1.4) == 20.0
    assert bench.quality.seconds_to(curve, 1.2) is None


@pytest.mark.slow
def test_base_train_is_what_is_measured(bench: ModuleType, text: Path, base_dir: Path) -> None:
    """Trained, measured and removed; the curve has the compiler's seconds, were there any, and no validation."""
    bench.prepared(text, 280)
    size = bench.quality.Size(1, 280, 32, 2, "float32", 512, "off")
    tokens = 100 * 64 * 32
    found = bench.quality.our_run(size, "fast", tokens, 1)
    assert found["tokens"] == pytest.approx(tokens, rel=0.1)
    assert 0 < found["bpb"] < 3
    assert not paths.checkpoints_dir("base", f"d1-fast-{tokens}-1").exists()

    flags = "--depth=1 --max_seq_len=32 --device_batch_size=2 --total_batch_size=128 --num_iterations=10 --compile=off"
    timed = bench.quality.timed_run(flags, 4, 512)
    assert [point["step"] for point in timed["curve"]] == [4, 8, 10]
    assert [point["tokens"] for point in timed["curve"]] == [512, 1024, 1280]
    assert timed["curve"][0]["bpb"] > timed["curve"][-1]["bpb"] > 0
    assert 0 < timed["curve"][0]["seconds"] < timed["curve"][-1]["seconds"] < timed["process_seconds"]
    with pytest.raises(UserError, match=r"ended with 2: see .*said.txt"):
        bench.quality.base_train("wrong", ["--depth=0"])


# lines and the last line


def test_no_measurement_is_made_twice_and_a_torn_line_counts_for_nothing(bench: ModuleType, lines: Any) -> None:
    asked = {"depth": 4, "rows": (1, 2)}
    assert lines.get("speed", asked, lambda: {"found": 1}) == {"found": 1}
    assert lines.get("speed", asked, lambda: {"found": 2}) == {"found": 1}
    assert lines.get("cold", asked, lambda: {"found": 3}) == {"found": 3}
    with lines.path.open("a", encoding="utf-8") as file:
        file.write('{"kind": "speed", "ask')
    again = bench.Lines(lines.path)
    assert again.get("speed", asked, lambda: {"found": 4}) == {"found": 1}
    assert again.get("speed", {}, lambda: {"found": 5}) == {"found": 5}
    last = bench.Lines(lines.path, measures=False)
    assert last.get("speed", {}, dict) == {"found": 5}
    with pytest.raises(bench.MissingError):
        last.get("speed", {"depth": 5}, dict)


def test_the_last_line_has_its_keys_and_tells_what_was_measured_earlier(
    bench: ModuleType, text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rates = {("ours", "bfloat16"): 500.0, ("ours", "float32"): 300.0, ("transformers", "bfloat16"): 250.0}
    monkeypatch.setattr(
        bench.speed, "run_worker", lambda job, **_: speed_of(rates.get((job.contender, job.dtype), 200.0))
    )
    config = bench.Config(only="speed", quick=True, text=text, out=tmp_path / "out")
    bench.main(config)
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told.keys() == {"bench", "ratios", "figures", "machine"}
    assert told["ratios"] == {
        "tokens_vs_transformers_float32": 2.5, "tokens_vs_transformers_bfloat16": 2.0,
        "float32_tokens_vs_transformers_float32": 1.5,
        "bpb_at_two_thirds_of_the_tokens_short_default": None, "bpb_at_two_thirds_of_the_tokens_short_fast": None,
        "bpb_at_two_thirds_of_the_tokens_long_default": None, "bpb_at_two_thirds_of_the_tokens_long_fast": None,
    }  # fmt: skip
    assert told["figures"]["quality"] == told["figures"]["time"] == {}

    curve = [{"step": n, "tokens": 100 * n, "seconds": 200.0 * n, "bpb": 1.5 - 0.03 * n} for n in (1, 2, 3)]
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    runs: list[str] = []
    monkeypatch.setattr(bench.quality, "timed_run", lambda flags, every, tokens: runs.append(flags) or {"curve": curve})
    bench.main(replace(config, only="time", vocab_size=280, plot=True))
    later = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert later["ratios"] == told["ratios"]
    assert (later["figures"]["time"]["seconds_to_target"], later["figures"]["time"]["reached"]) == (600.0, True)
    bench.main(replace(config, only="time", vocab_size=280))
    assert len(runs) == 1
    bench.main(replace(config, only="time", vocab_size=280, fresh=True))
    assert len(runs) == 2
    assert (tmp_path / "out" / "speed.jsonl").exists()
    assert (tmp_path / "out" / "pretrain.png").stat().st_size > 10_000
    drawn = (tmp_path / "out" / "pretrain_time.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in drawn] == curve


def test_wrong_flags_are_refused_in_one_sentence(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nanochat.hardware.gpu_names", list)
    with pytest.raises(UserError, match="no row is called 'd5'; there are d4, d4_one_row"):
        bench.main(bench.Config(rows=("d5",)))
    with pytest.raises(UserError, match="row 'cuda_d20' is measured on an NVIDIA GPU, and nvidia-smi shows none here"):
        bench.main(bench.Config(rows=("d4", "cuda_d20")))
    with pytest.raises(UserError, match="one round and one seed at least, got 0 and 3"):
        bench.main(bench.Config(rounds=0))
    with pytest.raises(UserError, match="holds 0 parquet shards, two are needed: name a folder by --text"):
        bench.main(bench.Config(only="quality", text=tmp_path))


def test_a_job_goes_out_as_json_and_comes_back(worker: ModuleType) -> None:
    for job in (worker.Speed("ours", 1, 2, 3, 1, "float32"), worker.PeerRun(1, 2, 3, 4, 0.1, "cosine", 1)):
        fields = json.loads(worker.as_line(job))
        kind, _ = worker.JOBS[fields.pop("job")]
        assert kind(**fields) == job
        assert asdict(job) == fields
