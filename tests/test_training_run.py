"""A run: honest numbers, and one that was stopped, killed or rolled back goes on bitwise as if it had not been."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import pretrain, same_run, stopped_and_resumed
from tiny import CPU, plan_of, random_model, rank, tiny_model

from nanochat import calibration, hardware, paths, training, training_run
from nanochat.checkpoint_files import save_checkpoint, steps_of
from nanochat.checkpoint_manager import find_checkpoint, load_model
from nanochat.command import UserError
from nanochat.gpt_config import config_for_depth
from nanochat.log import read_metrics
from nanochat.optim import MuonAdamW, Rates
from nanochat.rollout import PromptOrder
from nanochat.schedule import muon_momentum
from nanochat.training import accumulate
from nanochat.training_run import Progress, Run, clock
from scripts import base_train, chat_sft

# --- when ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "steps", "expected"),
    [(3, 10, [3, 6, 9, 10]), (5, 10, [5, 10]), (99, 10, [10]), (0, 10, []), (-1, 10, [])],
)
def test_something_is_due_every_so_often_and_at_the_end(every: int, steps: int, expected: list[int]) -> None:
    model = tiny_model()
    made = plan_of(model, num_iterations=steps)
    optimizer = MuonAdamW(dict(model.named_parameters()), model.roles(), Rates(), CPU)

    def due_at(started_at: int) -> list[int]:
        run = Run("base", "d", made, CPU, model, optimizer, PromptOrder(1, 1, CPU, 0), Progress.of(made, CPU))
        run.started_at = started_at
        due = []
        for run.progress.step in range(started_at, steps + 1):
            if run.due(every):
                due.append(run.progress.step)
        return due

    assert due_at(0) == expected
    assert due_at(5) == [step for step in expected if step > 5]  # the run that saved step 5 has done it


# --- numbers ------------------------------------------------------------------------------------------------------


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clock says next."""
    moments: list[float] = []
    monkeypatch.setattr(training_run.time, "perf_counter", lambda: moments.pop(0))
    return moments


def test_the_records_of_two_steps(seconds: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan_of(random_model(config_for_depth(1, 300, 64)), num_iterations=4)
    monkeypatch.setattr(hardware, "peak_flops", lambda name: 1e9)
    progress = Progress.of(made, rank(0, 2))
    seconds += [10.0, 12.0, 20.0, 24.0]
    progress.begin(CPU)
    first = progress.end(5.0, 1.0, CPU)
    progress.begin(CPU)
    second = progress.end(3.0, 0.5, CPU)
    tokens = made.total_batch_size
    assert first == pytest.approx(
        {
            "step": 1, "tokens": tokens, "loss": 5.0, "smooth_loss": 5.0, "lr_multiplier": 1.0, "step_seconds": 2.0,
            "tokens_per_second": tokens / 2, "train_seconds": 2.0, "mfu": made.total_flops / 4 / 2 / 2e9,
        }
    )  # fmt: skip
    assert (second["tokens"], second["smooth_loss"], second["train_seconds"]) == (2 * tokens, 4.0, 6.0)
    line = progress.line(second)
    assert line.startswith("step 00002/00004 | loss 4.0000 | lr x0.50 | 4000 ms | ")
    assert f"{tokens / 4:,.0f} tokens/s | mfu {float(second['mfu']):.1%} | 0:06 done, 0:06 left" in line


def test_a_peak_that_a_step_exceeds_is_measured_again(seconds: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan_of(random_model(config_for_depth(1, 300, 64)), num_iterations=4)
    flops = made.total_flops / 4
    monkeypatch.setattr(calibration, "peak_flops", lambda runtime: measured.pop(0))
    progress = Progress(made, made.total_flops / made.total_tokens, flops / 10)
    measured = [2 * flops, flops]
    shares = []
    for step_seconds in (20.0, 1.0, 0.8, 0.25):
        seconds += [0.0, step_seconds]
        progress.begin(CPU)
        shares.append(progress.end(5.0, 1.0, CPU)["mfu"])
    assert shares == pytest.approx([0.5, 0.5, 0.625, 1.0])
    assert measured == []


def test_the_smooth_loss_follows_the_last_twenty_steps_or_so(seconds: list[float]) -> None:
    progress = Progress.of(plan_of(tiny_model()), CPU)
    seconds += [float(n) for n in range(2 * 140)]
    for loss in [9.0] * 40 + [1.0] * 100:
        progress.begin(CPU)
        record = progress.end(loss, 1.0, CPU)
    assert record["smooth_loss"] == pytest.approx(1 + 8 * 0.95**100)
    assert "mfu" not in record


@pytest.mark.parametrize(
    ("length", "shown"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1h00m"), (360_125, "100h02m")]
)
def test_a_length_of_time_is_shown_in_minutes_or_hours(length: float, shown: str) -> None:
    assert clock(length) == shown


def test_a_loss_that_is_not_finite_leaves_the_average_as_it_was(seconds: list[float]) -> None:
    progress = Progress.of(plan_of(tiny_model()), CPU)
    seconds += [0.0, 1.0, 2.0, 3.0]
    for loss in (5.0, float("nan")):
        progress.begin(CPU)
        record = progress.end(loss, 1.0, CPU)
    assert (record["smooth_loss"], record["step"]) == (5.0, 2)


# --- runs in a base directory --------------------------------------------------------------------------------------


def test_a_stopped_pretraining_goes_on_bitwise_as_if_it_had_not(base: Path) -> None:
    pretrain("whole")
    stopped_and_resumed(lambda step: pretrain("stopped", step), base_train)
    same_run("base", "whole", "stopped")
    last = find_checkpoint("base", "whole", 6)
    assert last.meta["source"] == "tinyworld"
    first_loss, *_, last_loss = (r["loss"] for r in read_metrics(last.folder.parent / "metrics.jsonl") if "loss" in r)
    assert isinstance(first_loss, float)
    assert isinstance(last_loss, float)
    assert last_loss < first_loss


def test_a_run_stopped_within_its_average_goes_on_bitwise_and_ends_with_the_mean(base: Path) -> None:
    pretrain("plain")
    pretrain("mean", average_ratio=0.5, final_momentum=0.85)
    stopped_and_resumed(lambda step: pretrain("mean-stopped", step, average_ratio=0.5, final_momentum=0.85), base_train)
    same_run("base", "mean", "mean-stopped")
    pretrain("steps", average_ratio=0.5, save_every=1, eval_every=0)
    weights = [
        load_file(paths.checkpoints_dir("base", "steps") / f"step_{step:06d}" / "model.safetensors")
        for step in (4, 5, 6)
    ]
    plain, last = (find_checkpoint("base", tag).folder / "model.safetensors" for tag in ("plain", "steps"))
    final = load_file(plain)  # the run without an average ends with the step's own weights
    for name, mean in load_file(last).items():
        torch.testing.assert_close(mean, (weights[0][name] + weights[1][name] + final[name]) / 3, rtol=1e-5, atol=1e-6)


def test_the_momentum_falls_to_its_end_where_that_is_given(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[float] = []
    real = MuonAdamW.step
    monkeypatch.setattr(
        MuonAdamW,
        "step",
        lambda self, rate, momentum, decay: (taken.append(momentum), real(self, rate, momentum, decay)),
    )
    pretrain("usual", num_iterations=4)
    pretrain("falling", num_iterations=4, final_momentum=0.5, warmdown_ratio=0.5)
    assert taken[:4] == [muon_momentum(step) for step in range(4)]
    assert taken[4:7] == taken[:3]
    assert taken[7] == pytest.approx((taken[3] + 0.5) / 2)
    with pytest.raises(UserError, match="--final_momentum is at least 0 and below 1, got 1"):
        pretrain("refused", final_momentum=1.0)


def test_a_plan_is_told_before_there_is_any_text(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(base / "tokenizer", tmp_path / "tokenizer")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    flags = {"depth": 1, "max_seq_len": 64, "device_batch_size": 1, "num_iterations": 2_000_000, "device_type": "cpu"}
    flags |= {"total_batch_size": 1024, "dtype": "float32", "compile": "off"}
    base_train.main(base_train.Config(dry_run=True, **flags))  # type: ignore[arg-type]
    told = capsys.readouterr().out
    assert "text from 'fineweb-edu'" in told
    assert re.search(r"text +40 shards, 0 here: python -m nanochat\.dataset -n 40\n", told)
    with pytest.raises(UserError, match="no text in"):
        base_train.main(base_train.Config(**flags))  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_sigterm_ends_the_command_with_0(base: Path) -> None:
    command = [sys.executable, "-m", "scripts.base_train", "--depth=1", "--max_seq_len=64", "--device_batch_size=2"]
    command += ["--total_batch_size=256", "--num_iterations=100000", "--eval_every=0", "--core_every=0"]
    command += ["--sample_every=0", "--compile=off", "--device_type=cpu", "--data=tinyworld", "--model_tag=termed"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 00003"):
            process.terminate()
            break
    rest = process.communicate(timeout=120)[0]
    assert "--resume goes on from there" in rest
    assert process.returncode == 0


def test_a_stopped_fine_tuning_goes_on_bitwise_as_if_it_had_not(base: Path, tmp_path: Path) -> None:
    for tag in ("sft-whole", "sft-stopped"):
        pretrain(tag, num_iterations=1)
    chats = tmp_path / "chats.jsonl"
    lines = [
        json.dumps(
            [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": "a number " * (n % 9)}]
        )
        for n in range(1, 60)
    ]
    chats.write_text("\n".join(lines), encoding="utf-8")

    def finetune(tag: str, resume_from_step: int | None) -> None:
        config = chat_sft.Config(
            tasks=(), data=(str(chats),), source="base", model_tag=tag, device_batch_size=1, total_batch_size=128,
            num_iterations=6, init_lr_frac=0.5, eval_every=2, eval_batches=1, save_every=3,
            resume_from_step=resume_from_step, device_type="cpu", dtype="float32", compile="off",
        )  # fmt: skip
        chat_sft.main(config)

    finetune("sft-whole", None)
    stopped_and_resumed(lambda step: finetune("sft-stopped", step), chat_sft)
    same_run("sft", "sft-whole", "sft-stopped")
    meta = find_checkpoint("sft", "sft-whole").meta
    assert meta["from"] == "base sft-whole step 1"
    assert meta["pretraining"] == find_checkpoint("base", "sft-whole").meta["plan"]


def test_a_run_cannot_resume_another_model_or_tokenizer(base: Path) -> None:
    pretrain("refused", num_iterations=1)
    with pytest.raises(
        UserError, match=r"another model than this run's \(sequence_len 64 instead of 32\); give the flags"
    ):
        pretrain("refused", 1, num_iterations=2, max_seq_len=32)
    with pytest.raises(UserError, match=r"step 1 is not before this run's last, 1: nothing is left to do; --num_it"):
        pretrain("refused", 1, num_iterations=1)
    with pytest.raises(UserError, match="no base checkpoint of refused at step 7; there are 1"):
        pretrain("refused", 7)
    found = find_checkpoint("base", "refused")
    model = load_model("base", CPU, "refused")[0]
    altered = {**found.meta, "tokenizer_sha256": "of another"}
    state = json.loads((found.folder / "state.json").read_text())
    save_checkpoint(paths.checkpoints_dir("base", "refused"), 1, model.state_dict(), altered, {}, state)
    with pytest.raises(UserError, match="was trained with another tokenizer than the one in"):
        pretrain("refused", 1, num_iterations=2)


def test_ranks_of_another_number_take_up_the_states_of_all(base: Path) -> None:
    """Each of two goes on with documents that the one before has not given; the exact dealing is the loaders' test."""
    pretrain("one-rank", num_iterations=3)
    found = find_checkpoint("base", "one-rank")
    firsts = []
    for number in range(2):
        model, tokenizer, _ = load_model("base", CPU, "one-rank", for_training=True)
        made, runtime = plan_of(model), rank(number, 2)
        loader = training.DocumentLoader(tokenizer, 2, 64, runtime, "train", "tinyworld")
        optimizer = MuonAdamW(dict(model.named_parameters()), model.roles(), Rates(), runtime)
        run = Run("base", "one-rank", made, runtime, model, optimizer, loader, Progress.of(made, runtime))
        run.resume(found)
        assert (run.progress.step, run.started_at) == (3, 3)
        firsts.append(next(loader)[0])
    assert not torch.equal(*firsts)


# --- asked to stop ------------------------------------------------------------------------------------------------


def stop_in_step(number: int, which: signal.Signals, patch: pytest.MonkeyPatch) -> None:
    """Send the signal while base_train computes that step, and let it be heard."""
    heard, calls = threading.Event(), 0
    patch.setattr(training_run, "_say_stopping", heard.set)

    def signalled(*values: object) -> float:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), which)
            assert heard.wait(60)
        return accumulate(*values)  # type: ignore[arg-type]

    patch.setattr(base_train, "accumulate", signalled)


@pytest.mark.skipif(os.name == "nt", reason="a process cannot send itself these signals")
@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_at_the_next_step_and_ends_well_and_the_run_goes_on_bitwise(
    base: Path, which: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    """Step 4 is due to be measured: who resumes does it, since who stopped had no time for it."""
    before = signal.getsignal(which)
    pretrain("unasked")
    with pytest.MonkeyPatch.context() as patch:
        stop_in_step(4, which, patch)
        pretrain(f"asked-{which}")
    folder = paths.checkpoints_dir("base", f"asked-{which}")
    assert f"stopped, saved {folder}/step_000004; --resume goes on from there" in capsys.readouterr().out
    assert steps_of(folder).keys() == {3, 4}
    assert signal.getsignal(which) == before
    pretrain(f"asked-{which}", resume=True)
    same_run("base", "unasked", f"asked-{which}")


def test_deterministic_algorithms_are_asked_of_torch_for_the_run(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def watched(*values: object) -> float:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return accumulate(*values)  # type: ignore[arg-type]

    monkeypatch.setattr(base_train, "accumulate", watched)
    pretrain("random", num_iterations=1)
    pretrain("fixed", num_iterations=1, deterministic=True)
    assert seen == [False, True]
    assert not torch.are_deterministic_algorithms_enabled()


def test_metrics_are_mirrored_to_tensorboard_when_asked(base: Path) -> None:
    pretrain("board", num_iterations=1, tensorboard=True)
    [events] = (paths.checkpoints_dir("base", "board") / "tensorboard").iterdir()
    assert b"gradient_norm" in events.read_bytes()
