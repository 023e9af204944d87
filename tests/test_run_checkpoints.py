"""Which checkpoint a run goes on from, which ones stay, and what a full disk leaves."""

import errno
import os
from pathlib import Path

import pytest
from small_runs import kill_in_step, pretrain, same_run

from nanochat import paths
from nanochat.checkpoint_files import CheckpointWriter, steps_of
from nanochat.checkpoint_manager import find_checkpoint
from nanochat.command import UserError
from nanochat.log import read_metrics
from nanochat.training_run import saved_rows
from scripts import base_train


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
