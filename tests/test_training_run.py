"""A run: honest numbers, and one that was stopped, killed or rolled back goes on bitwise as if it had not been."""

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import CPU, plan_of, random_model, rank, tiny_model

from nanochat import hardware, paths, training, training_run
from nanochat.checkpoint_files import CheckpointWriter, save_checkpoint, steps_of
from nanochat.checkpoint_manager import find_checkpoint, load_model
from nanochat.command import UserError
from nanochat.gpt_config import config_for_depth
from nanochat.log import read_metrics
from nanochat.optim import MuonAdamW, Rates
from nanochat.rollout import PromptOrder
from nanochat.schedule import muon_momentum
from nanochat.training import accumulate
from nanochat.training_run import Progress, Run, clock, saved_rows
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


# --- --resume and which checkpoints stay --------------------------------------------------------------------------


def test_resume_takes_the_newest_whole_checkpoint_and_names_the_one_passed_over(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain("peace")
    with pytest.MonkeyPatch.context() as patch:
        kill_in_step(6, base_train, patch)
        with pytest.raises(KeyboardInterrupt):
            pretrain("torn", save_every=2)
    folder = paths.checkpoints_dir("base", "torn")
    assert steps_of(folder).keys() == {2, 4}
    (folder / "step_000004" / "optim.safetensors").write_bytes(b"torn")
    capsys.readouterr()
    pretrain("torn", resume=True)
    said = capsys.readouterr().out
    assert f"passed over {folder / 'step_000004'}: optim.safetensors has 4 bytes instead of" in said
    assert f"going on from {folder / 'step_000002'}" in said
    same_run("base", "peace", "torn")


def test_resume_begins_anew_where_nothing_was_saved_and_does_not_take_two_steps_at_once(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that one command line serves the first start and every restart."""
    pretrain("anew", num_iterations=1, resume=True)
    assert f"no checkpoint in {paths.checkpoints_dir('base', 'anew')} yet: beginning anew" in capsys.readouterr().out
    with pytest.raises(UserError, match="--resume takes the last checkpoint and --resume_from_step=1 that one: give"):
        pretrain("anew", 1, resume=True)


def test_a_new_run_under_an_old_tag_is_gone_on_with_and_not_the_old_one(base: Path) -> None:
    pretrain("again", num_iterations=6)
    with pytest.MonkeyPatch.context() as patch:
        kill_in_step(5, base_train, patch)
        with pytest.raises(KeyboardInterrupt):
            pretrain("again", seed=7)
    pretrain("again", resume=True, seed=7)
    pretrain("once", seed=7)
    same_run("base", "once", "again")


def test_the_last_the_spaced_and_the_best_checkpoint_of_a_run_stay(base: Path) -> None:
    pretrain("kept", save_every=1, keep_last=2, keep_every=3, eval_every=2)
    bpbs = {r["step"]: r["val_bpb"] for r in read_metrics(paths.checkpoints_dir("base", "kept") / "metrics.jsonl")
            if "val_bpb" in r}  # fmt: skip
    assert bpbs.keys() == {0, 2, 4, 6}
    best = min((step for step in (2, 4, 6)), key=lambda step: bpbs[step])
    assert steps_of(paths.checkpoints_dir("base", "kept")).keys() == {3, 5, 6, best}
    assert find_checkpoint("base", "kept", 5).meta["val_bpb"] is None  # not what step 4 measured


def test_what_the_thread_writes_is_what_there_was_at_its_step(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrain("behind")
    real = CheckpointWriter.save

    def at_once(self: CheckpointWriter, *given: object) -> None:
        real(self, *given)  # type: ignore[arg-type]
        self.wait()

    monkeypatch.setattr(CheckpointWriter, "save", at_once)
    pretrain("at-once")
    for step in (3, 6):
        one, two = (paths.checkpoints_dir("base", tag) / f"step_{step:06d}" for tag in ("behind", "at-once"))
        for name in ("model.safetensors", "optim.safetensors"):
            assert (one / name).read_bytes() == (two / name).read_bytes()


def test_a_full_disk_ends_the_run_in_a_sentence_and_the_checkpoint_before_is_whole(base: Path) -> None:
    real, calls = os.fsync, 0

    def fills_up(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 9:  # each save syncs five files and two folders
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fills_up)
        with pytest.raises(UserError, match=r"step 4 could not be written .*No space left on device\); older ones are"):
            pretrain("full", save_every=2)
    folder = paths.checkpoints_dir("base", "full")
    assert [path.name for path in folder.glob("step_*")] == ["step_000002"]
    losses = [record["step"] for record in read_metrics(folder / "metrics.jsonl") if "loss" in record]
    assert losses == [1, 2, 3, 4]  # the update behind the failed save was never made
    pretrain("peace-too")
    pretrain("full", resume=True)
    same_run("base", "peace-too", "full")


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


# --- steps that cannot be used ------------------------------------------------------------------------------------


def lose(steps: set[int], patch: pytest.MonkeyPatch, what: str = "loss", once: bool = True) -> list[int]:
    """Let the loss or a gradient of these steps be no number; the steps that were computed."""
    computed: list[int] = []

    def poisoned(model: torch.nn.Module, loader: object, micro_steps: int, runtime: object) -> float:
        loss = accumulate(model, loader, micro_steps, runtime)  # type: ignore[arg-type]
        computed.append(run_of[-1].progress.step)
        if computed[-1] in steps and (not once or computed.count(computed[-1]) == 1):
            if what == "loss":
                return float("nan")
            next(parameter for parameter in model.parameters()).grad[0, 0] = float("inf")  # type: ignore[index]
        return loss

    run_of: list[Run] = []
    real = Run.take_up
    patch.setattr(Run, "take_up", lambda run, flags: (run_of.append(run), real(run, flags))[1])
    patch.setattr(base_train, "accumulate", poisoned)
    return computed


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_skipped_and_counted(
    base: Path, what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lose({2}, monkeypatch, what)
    pretrain(f"lost-{what}", save_every=1)
    folder = paths.checkpoints_dir("base", f"lost-{what}")
    assert f"| {what} not finite: step skipped, 1 in a row, 1 in all" in capsys.readouterr().out
    records = [record for record in read_metrics(folder / "metrics.jsonl") if "loss" in record]
    assert [record["skipped_steps"] for record in records] == [0, 0, 1, 1, 1, 1]
    assert (records[2]["loss"] is None) == (what == "loss")
    assert (records[2]["gradient_norm"] is None) == (what == "gradient")
    assert all(isinstance(record["gradient_norm"], float) for n, record in enumerate(records) if n != 2)
    assert steps_of(folder).keys() == {1, 2, 4, 5, 6}  # weights of which none knows are no place to go back to
    two, four = (load_file(folder / f"step_{step:06d}" / "optim.safetensors") for step in (2, 4))
    assert (two["steps"], four["steps"]) == (2, 3)


def test_five_lost_steps_in_a_row_go_back_and_a_passing_fault_leaves_no_trace(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain("sound", num_iterations=10, save_every=2)
    computed = lose({3, 4, 5, 6, 7}, monkeypatch)
    pretrain("shaken", num_iterations=10, save_every=2)
    assert computed == [0, 1, 2, 3, 4, 5, 6, 7, 2, 3, 4, 5, 6, 7, 8, 9]
    folder = paths.checkpoints_dir("base", "shaken")
    said = capsys.readouterr().out
    assert f"the 5 steps up to 8 gave a loss or gradient that is not finite: back to {folder / 'step_000002'}" in said
    one, two = (paths.checkpoints_dir("base", tag) / "step_000010" for tag in ("sound", "shaken"))
    for name in ("model.safetensors", "optim.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    clocked = ("step_seconds", "tokens_per_second", "train_seconds")
    kept = [[{key: value for key, value in record.items() if key not in clocked}
             for record in read_metrics(at.parent / "metrics.jsonl")] for at in (one, two)]  # fmt: skip
    assert kept[0] == kept[1]


def test_a_fault_that_comes_again_after_going_back_ends_the_run(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lose({3, 4, 5, 6, 7}, monkeypatch, once=False)
    with pytest.raises(UserError, match=r"the 5 steps up to 8 .* not finite, again after going back to step 2: lower"):
        pretrain("broken", num_iterations=10, save_every=2)
    with pytest.raises(
        UserError, match=r"the 5 steps up to 8 .* there is no checkpoint to go back to: lower .* --save"
    ):
        pretrain("unsaved", num_iterations=10, save_every=0)


def test_a_run_begun_anew_never_goes_back_to_a_former_ones_checkpoint(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It used to go on from the step that the former run under its tag had saved last."""
    pretrain("again", num_iterations=8, save_every=4)
    with monkeypatch.context() as patch:
        lose({1, 2, 3, 4, 5}, patch)
        with pytest.raises(UserError, match=r"the 5 steps up to 6 .* there is no checkpoint to go back to"):
            pretrain("again", num_iterations=10, save_every=9, seed=7)
    pretrain("again", num_iterations=8, save_every=4, keep_last=1, seed=7)
    zeros = [r for r in read_metrics(paths.checkpoints_dir("base", "again") / "metrics.jsonl") if r["step"] == 0]
    assert len(zeros) == 1  # the former run's measurement before its first step stayed
    lose({5, 6, 7, 8, 9}, monkeypatch)
    pretrain("again", num_iterations=11, save_every=4, seed=7)
    assert "not finite: back to " in (said := capsys.readouterr().out)
    assert "again/step_000004" in said  # its own, of course


def test_to_resume_a_run_that_has_ended_is_no_mistake(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A recipe whose second stage failed is repeated whole, and a supervisor starts what has ended again."""
    pretrain("ended")
    last = paths.checkpoints_dir("base", "ended") / "step_000006"
    files = [*last.iterdir(), last.parent / "metrics.jsonl"]
    before = [path.read_bytes() for path in files]
    capsys.readouterr()
    pretrain("ended", resume=True)
    assert f"{last} is this run's end: nothing is left to do" in capsys.readouterr().out
    assert [path.read_bytes() for path in files] == before
    with pytest.raises(UserError, match="another model than this run's"):
        pretrain("ended", resume=True, max_seq_len=32)
    with pytest.raises(UserError, match="step 6 is not before this run's last, 4"):
        pretrain("ended", resume=True, num_iterations=4)


def test_rows_of_a_resumed_run_are_those_of_what_can_be_read(base: Path) -> None:
    """A torn meta.json of the highest step used to end a run that asks for --device_batch_size=auto."""
    pretrain("rows", device_batch_size=1, num_iterations=2)
    folder = paths.checkpoints_dir("base", "rows")
    assert saved_rows(folder) == saved_rows(folder, 2) == 1
    assert saved_rows(folder, 1) is saved_rows(folder.with_name("nothing")) is None
    pretrain("rows", num_iterations=6)
    assert (saved_rows(folder), saved_rows(folder, 2)) == (2, 1)
    (folder / "step_000006" / "meta.json").write_text('{"plan": {"dev')
    assert saved_rows(folder) == 2  # step 3's
    pretrain("rows", resume=True, device_batch_size="auto", num_iterations=7)
    assert find_checkpoint("base", "rows", 7).meta["plan"]["device_batch_size"] == 2  # type: ignore[index, call-overload]


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
