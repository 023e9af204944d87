"""Checkpoints come back bit by bit, survive a fault at every moment of a save, and only those asked for stay."""

import contextlib
import errno
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from nanochat import checkpoint_files, paths
from nanochat.checkpoint_files import (
    CheckpointWriter,
    Keep,
    remove_others,
    safetensors_chunks,
    save_checkpoint,
    snapshot,
    steps_of,
    verify,
)
from nanochat.checkpoint_manager import find_checkpoint, load_state, load_tensors
from nanochat.command import UserError

posix = pytest.mark.skipif(os.name == "nt", reason="forks, or sets a limit of POSIX")


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((3, 2), value), "steps": torch.tensor(int(value))}


@pytest.fixture
def folder(base_dir: Path) -> Path:
    """Of the tag d4 of stage base."""
    return paths.checkpoints_dir("base", "d4")


def save(folder: Path, step: int, value: float, bpb: float | None = None) -> Path:
    meta = {"value": value, "val_bpb": bpb}
    return save_checkpoint(folder, step, tensors(value), meta, tensors(-value), {"ranks": [step]})


# --- what is written ----------------------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_bit_by_bit(folder: Path) -> None:
    weights = {"a": torch.randn(5, 3), "b.c": torch.tensor([float("nan"), float("inf"), -0.0]), "t": torch.eye(3).T}
    state = {"ranks": [{"waiting": [1, 2]}], "progress": {"smooth_loss": 0.1 + 0.2}}
    made = save_checkpoint(folder, 12, weights, {"plan": {"matrix_lr": 1 / 3}}, tensors(3), state)
    assert made == folder / "step_000012"
    found = find_checkpoint("base")
    assert (found.folder, found.step, found.tag, found.skipped) == (made, 12, "d4", ())
    assert found.meta == {"plan": {"matrix_lr": 1 / 3}}
    assert load_state(found) == state
    loaded = load_tensors(made / "model.safetensors", torch.device("cpu"))
    assert loaded.keys() == weights.keys()
    for name, value in weights.items():
        assert torch.equal(loaded[name].view(torch.int32), value.contiguous().view(torch.int32)), name
    assert load_tensors(made / "optim.safetensors", torch.device("cpu"))["steps"] == 3


def test_tensors_are_written_as_the_safetensors_library_writes_them() -> None:
    given = {
        "w": torch.randn(3, 5),
        "odd": torch.arange(3, dtype=torch.uint8),
        "half": torch.randn(7).bfloat16(),
        "scalar": torch.tensor(9),
        "turned": torch.randn(4, 2).T,
        "none": torch.zeros(0, 3),
        "größe": torch.tensor([True, False]),
    }
    whole = b"".join(bytes(chunk) for chunk in safetensors_chunks(given))
    back = safetensors.torch.load(whole)
    assert back.keys() == given.keys()
    for name, tensor in given.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)
    plain = {name: torch.randn(3, n) for n, name in enumerate(["b", "a", "c"], start=1)} | {"n": torch.tensor(1)}
    assert b"".join(bytes(chunk) for chunk in safetensors_chunks(plain)) == safetensors.torch.save(plain)


def test_its_folder_holds_what_the_manifest_names_and_nothing_else_is_left(folder: Path) -> None:
    for process in (999, os.getpid()):  # of runs that were killed; in a container ids come again
        (folder / f"step_000002.tmp-{process}").mkdir(parents=True)
    made = save(folder, 2, 1.0)
    names = {"model.safetensors", "optim.safetensors", "state.json", "meta.json"}
    assert {p.name for p in made.iterdir()} == {*names, "manifest.json"}
    manifest = json.loads((made / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["files"].keys() == names
    assert manifest["versions"]["torch"] == torch.__version__
    assert [p.name for p in folder.iterdir()] == ["step_000002"]


def test_a_step_is_replaced_as_a_whole(folder: Path) -> None:
    save(folder, 2, 1.0)
    save(folder, 2, 8.0)
    found = find_checkpoint("base")
    assert found.meta["value"] == 8.0
    assert verify(found.folder) is None
    assert [p.name for p in folder.iterdir()] == ["step_000002"]


# --- a kill, a full disk ------------------------------------------------------------------------------------------


def strike_at(number: int, strike: Callable[[], object], patch: pytest.MonkeyPatch) -> list[str]:
    """Let `strike` happen instead of call `number` of everything by which a save reaches the disk; the calls made.

    A write that is struck has written half of what it was given.
    """
    calls: list[str] = []

    def struck(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*values: object, **named: object) -> object:
            calls.append(name)
            if len(calls) == number:
                if name == "write":
                    handle, data = values
                    real(handle, data[: len(data) // 2])  # type: ignore[index, arg-type]
                strike()
            return real(*values, **named)

        return call

    patch.setattr(os, "fsync", struck("fsync", lambda handle: None))  # a killed process loses nothing by it
    for name in ("write", "replace", "mkdir", "rmdir", "unlink"):
        patch.setattr(os, name, struck(name, getattr(os, name)))
    return calls


def change(folder: Path, step: int) -> None:
    """A save as a run does it: of the steps before only the last one stays."""
    save(folder, step, 8.0)
    remove_others(folder, step, Keep(last=2))


def killed_at(number: int, folder: Path, step: int, how: int = 0) -> bool:
    """Save in a process of its own that dies at the call; False when it came through."""
    child = os.fork()
    if child == 0:
        with pytest.MonkeyPatch.context() as patch:
            strike_at(number, lambda: os.kill(os.getpid(), how) if how else os._exit(9), patch)
            change(folder, step)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in (9, -9)


def failed_at(number: int, folder: Path, step: int) -> bool:
    """Save on a disk that is full at the call; False when it came through."""

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(UserError, OSError):
        calls = strike_at(number, full, patch)
        change(folder, step)
        return len(calls) >= number  # what could not be removed stays, and does not end a run
    return True


def is_intact(folder: Path, step: int) -> float:
    """The newest whole checkpoint is found, is of before or after the save, and the run goes on; its value."""
    found = find_checkpoint("base", "d4")
    assert (verify(found.folder), found.skipped) == (None, ())
    assert (found.step, found.meta["value"]) in ((1, 1.0), (step, 8.0))
    assert load_tensors(found.folder / "model.safetensors", torch.device("cpu"))["w"][0, 0] == found.meta["value"]
    save(folder, 3, 5.0)
    assert find_checkpoint("base").step == 3
    kept = find_checkpoint("base", step=found.step)
    assert (kept.meta, kept.folder.name) == (found.meta, f"step_{found.step:06d}")
    assert not list(folder.glob("*.tmp-*"))
    value = found.meta["value"]
    assert isinstance(value, float)
    return value


@pytest.mark.parametrize("end", [pytest.param(killed_at, marks=posix), failed_at])
@pytest.mark.parametrize("step", [1, 2])
def test_whatever_write_sync_or_rename_a_save_ends_at_the_newest_whole_checkpoint_is_found(
    folder: Path, step: int, end: Callable[[int, Path, int], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 1 is there; it is replaced, or followed by step 2. A kill while it was replaced used to lose both."""
    before = folder.with_name("before")
    with pytest.MonkeyPatch.context() as patch:
        calls = strike_at(0, lambda: None, patch)
        save(folder, 0, 0.0)
        save(folder, 1, 1.0)
        shutil.copytree(folder, before)
        calls.clear()
        change(folder, step)
    assert {"write", "fsync", "replace", "mkdir"} <= set(calls)
    assert calls.count("write") == 2 * 3 + 3  # of tensors' files the header and each tensor; the three of JSON
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    number, seen = 1, set()
    while True:
        shutil.rmtree(folder)
        shutil.copytree(before, folder)
        ended = end(number, folder, step)
        seen.add(is_intact(folder, step))
        if not ended:
            break
        number += 1
    assert number == len(calls) + 1
    assert seen == {1.0, 8.0}


@posix
@pytest.mark.parametrize("number", [2, 8, 15])
def test_a_real_sigkill_in_a_save_leaves_a_whole_checkpoint(folder: Path, number: int) -> None:
    save(folder, 1, 1.0)
    assert killed_at(number, folder, 2, signal.SIGKILL)
    is_intact(folder, 2)


@posix
def test_a_file_that_the_system_refuses_to_let_grow_is_told_in_a_sentence_and_leaves_nothing(folder: Path) -> None:
    import resource

    def save_big(step: int) -> None:
        save_checkpoint(folder, step, {"w": torch.ones(50_000)}, {}, {"w": torch.ones(50_000)}, {"ranks": []})

    save_big(1)
    said = folder / "said"
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            save_big(2)
        except UserError as mistake:
            said.write_text(str(mistake), encoding="utf-8")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert said.read_text(encoding="utf-8") == (
        f"the checkpoint of step 2 could not be written to {folder} (File too large); older ones are as they were: "
        "make room, then go on with --resume"
    )
    assert {p.name for p in folder.iterdir()} == {"step_000001", "said"}
    assert verify(folder / "step_000001") is None


# --- damage -------------------------------------------------------------------------------------------------------


def test_every_file_cut_or_with_any_byte_changed_is_refused(folder: Path) -> None:
    made = save(folder, 1, 1.0)
    assert verify(made) is None
    for path in sorted(made.iterdir()):
        whole = path.read_bytes()
        for length in range(0, len(whole), 7):
            path.write_bytes(whole[:length])
            assert verify(made) is not None, (path.name, length)
        for position in range(0, len(whole), 3):
            data = bytearray(whole)
            data[position] ^= 1 << position % 8
            path.write_bytes(data)
            complaint = verify(made)
            assert complaint is not None, (path.name, position)
            assert len(complaint) < 200
        path.write_bytes(whole + b" ")
        assert verify(made) is not None, path.name
        path.write_bytes(whole)
    assert verify(made) is None


def test_odd_manifests_are_told(folder: Path) -> None:
    made = save(folder, 1, 1.0)
    content = json.loads((made / "manifest.json").read_bytes())
    odd = b"[]", b"{}", b'{"format_version": 2, "files": {}}', b'{"format_version": 2, "files": {"a": 1}}', b"\xff"
    for text in odd:
        (made / "manifest.json").write_bytes(text)
        assert "manifest.json" in str(verify(made))
    (made / "manifest.json").write_text(json.dumps({**content, "format_version": 3}), encoding="utf-8")
    assert verify(made) == "its format is 3, this code reads 2"


# --- which stay ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (Keep(), {10, 20, 30, 40, 50, 60}),
        (Keep(last=1), {30, 60}),
        (Keep(last=2), {30, 50, 60}),
        (Keep(last=1, every=20), {20, 30, 40, 60}),
        (Keep(every=20), {10, 20, 30, 40, 50, 60}),
        (Keep(last=9), {10, 20, 30, 40, 50, 60}),
    ],
)
def test_the_last_the_spaced_and_the_best_stay(folder: Path, keep: Keep, expected: set[int]) -> None:
    measured = {10: 2.5, 20: 2.0, 30: 1.25, 40: None, 50: 1.5, 60: 1.5}
    assert keep.stays(dict(reversed(measured.items()))) == expected  # the one written last first
    for step, bpb in measured.items():
        save(folder, step, 1.0, bpb)
        remove_others(folder, step, keep)
    assert steps_of(folder).keys() == expected
    assert {p.name for p in folder.iterdir()} == {f"step_{step:06d}" for step in expected}


def test_nothing_is_removed_before_the_new_one_reads_back(folder: Path) -> None:
    for step in (1, 2):
        save(folder, step, 1.0)
    (folder / "step_000002" / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"step_000002, just written, does not read back .*state\.json has 2 bytes"):
        remove_others(folder, 2, Keep(last=1))
    assert steps_of(folder).keys() == {1, 2}


def test_the_step_written_last_comes_first_though_a_higher_one_is_left_of_an_earlier_run(folder: Path) -> None:
    """A new run under an old tag used to go on from the old one's end."""
    for step in (5, 900, 10):
        save(folder, step, 1.0)
    assert list(steps_of(folder)) == [10, 900, 5]
    assert find_checkpoint("base", "d4").step == 10
    save(folder, 15, 1.0)
    remove_others(folder, 15, Keep(last=2))  # by number the 900 would stay and the 10 go
    assert list(steps_of(folder)) == [15, 10]


# --- off the training thread --------------------------------------------------------------------------------------


def test_a_checkpoint_is_written_while_the_caller_goes_on_and_holds_what_there_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, real = threading.Event(), os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, data) if go.wait(60) else 0)
    weights, writer = tensors(1.0), CheckpointWriter()
    writer.save(folder, 1, snapshot(weights), {"n": 1}, {}, {"ranks": []}, Keep())
    weights["w"].fill_(7.0)
    assert steps_of(folder) == {}
    go.set()
    writer.wait()
    found = find_checkpoint("base")
    assert torch.equal(load_tensors(found.folder / "model.safetensors", torch.device("cpu"))["w"], tensors(1.0)["w"])
    assert (found.step, found.meta, load_state(found)) == (1, {"n": 1}, {"ranks": []})


def test_what_goes_wrong_in_the_thread_is_raised_once_where_it_is_waited_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = CheckpointWriter()

    def refuse(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_files.os, "fsync", refuse)
        writer.save(folder, 4, tensors(1.0), {}, {}, {}, Keep())
        with pytest.raises(UserError, match=r"step 4 could not be written to .*d4 \(No space left on device\); older"):
            writer.wait()
    writer.wait()
    assert list(folder.iterdir()) == []
    writer.save(folder, 5, tensors(1.0), {}, {}, {}, Keep())
    writer.wait()
    assert steps_of(folder).keys() == {5}
