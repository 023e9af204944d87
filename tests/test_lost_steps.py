"""Steps whose loss or gradient is no number: skipped, counted, and after five in a row undone."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import pretrain

from nanochat import paths
from nanochat.checkpoint_files import steps_of
from nanochat.command import UserError
from nanochat.log import read_metrics
from nanochat.training import accumulate
from nanochat.training_run import Run
from scripts import base_train


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
