"""Checkpoints come back bit by bit, survive a kill at every moment, and never pass for whole when they are not."""

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from tiny import CPU, TEXT, tiny_model, tiny_tokenizer

from nanochat import checkpoint_manager, paths
from nanochat.checkpoint_manager import (
    find_checkpoint,
    load_model,
    load_state,
    load_tensors,
    newest_stage,
    save_checkpoint,
    tokenizer_sha256,
    verify,
)
from nanochat.command import UserError
from nanochat.runtime import Runtime
from nanochat.tokenizer import RustBPETokenizer


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((3, 2), value), "steps": torch.tensor(int(value))}


@pytest.fixture
def folder(base_dir: Path) -> Path:
    """Of the tag d4 of stage base."""
    return paths.checkpoints_dir("base", "d4")


def save(folder: Path, step: int, value: float) -> Path:
    return save_checkpoint(folder, step, tensors(value), {"value": value}, tensors(-value), {"ranks": [step]})


def save_model(stage: str = "base", tag: str = "d1", step: int = 5, **meta: object) -> Path:
    tiny_tokenizer().save(paths.tokenizer_dir())
    model = tiny_model(n_layer=1)
    known = {"model": model.config.to_dict(), "tokenizer_sha256": tokenizer_sha256(), **meta}
    return save_checkpoint(paths.checkpoints_dir(stage, tag), step, model.state_dict(), known)


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


def strike_at(number: int, strike: Callable[[], object], patch: pytest.MonkeyPatch) -> None:
    """Let `strike` happen instead of call `number` of everything by which a save reaches the disk."""
    calls = 0

    def struck(real: Callable[..., object]) -> Callable[..., object]:
        def call(*values: object, **named: object) -> object:
            nonlocal calls
            calls += 1
            if calls == number:
                strike()
            return real(*values, **named)

        return call

    patch.setattr(checkpoint_manager, "save_file", struck(checkpoint_manager.save_file))
    for name in ("replace", "fsync"):
        patch.setattr(os, name, struck(getattr(os, name)))


def killed_at(number: int, folder: Path, step: int) -> bool:
    """Save in a process of its own that dies at the call; False when it came through."""
    child = os.fork()
    if child == 0:
        with pytest.MonkeyPatch.context() as patch:
            strike_at(number, lambda: os._exit(9), patch)
            save(folder, step, 8.0)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def failed_at(number: int, folder: Path, step: int) -> bool:
    """Save on a disk that is full at the call; False when it came through."""

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(OSError):
        strike_at(number, full, patch)
        save(folder, step, 8.0)
        return False
    return True


@pytest.mark.parametrize(
    "end", [pytest.param(killed_at, marks=pytest.mark.skipif(os.name == "nt", reason="forks")), failed_at]
)
@pytest.mark.parametrize("step", [1, 2])
def test_whatever_moment_a_save_ends_at_the_newest_whole_checkpoint_is_found(
    folder: Path, step: int, end: Callable[[int, Path, int], bool]
) -> None:
    """Step 1 is there; it is replaced, or followed by step 2. A kill while it was replaced used to lose both."""
    number, seen = 1, set()
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        save(folder, 1, 1.0)
        ended = end(number, folder, step)
        found = find_checkpoint("base", "d4")
        assert (verify(found.folder), found.skipped) == (None, ())
        assert (found.step, found.meta["value"]) in ((1, 1.0), (step, 8.0))
        assert load_tensors(found.folder / "model.safetensors", torch.device("cpu"))["w"][0, 0] == found.meta["value"]
        if end is failed_at and ended:
            assert not list(folder.glob("*.tmp-*"))
        seen.add(found.meta["value"])
        save(folder, 3, 5.0)  # the run goes on
        assert find_checkpoint("base").step == 3
        kept = find_checkpoint("base", step=found.step)
        assert (kept.meta, kept.folder.name) == (found.meta, f"step_{found.step:06d}")
        assert not list(folder.glob("*.tmp-*"))
        if not ended:
            break
        number += 1
    assert number > 10
    assert seen == {1.0, 8.0}


# --- damage -------------------------------------------------------------------------------------------------------

FILES = ["model.safetensors", "optim.safetensors", "state.json", "meta.json", "manifest.json"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, empty, flip, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_the_next_older_step_taken(
    folder: Path, name: str, damage: Callable[[Path], None]
) -> None:
    for step in (1, 2, 3):
        save(folder, step, step)
    damage(folder / "step_000003" / name)
    complaint = verify(folder / "step_000003")
    assert complaint is not None
    assert (
        "manifest.json" in complaint
        if name == "manifest.json" and damage is not flip
        else "has" in complaint or name in complaint
    )
    found = find_checkpoint("base")
    assert found.step == 2
    assert found.skipped == (f"{folder / 'step_000003'}: {complaint}",)
    with pytest.raises(UserError, match=r"no valid base checkpoint of d4 .*step_000003.*scripts\.base_train` again"):
        find_checkpoint("base", step=3)


def test_no_flipped_bit_of_a_manifest_ends_in_a_traceback(folder: Path) -> None:
    made = save(folder, 1, 1.0)
    manifest = made / "manifest.json"
    whole = manifest.read_bytes()
    for position in range(len(whole)):
        data = bytearray(whole)
        data[position] ^= 1 << position % 7
        manifest.write_bytes(data)
        complaint = verify(made)
        assert complaint is None or len(complaint) < 200
    for odd in (
        b"[]",
        b"{}",
        b'{"format_version": 1, "files": {}}',
        b'{"format_version": 1, "files": {"a": 1}}',
        b"\xff",
    ):
        manifest.write_bytes(odd)
        assert "manifest.json" in str(verify(made))


def test_a_file_of_another_format_says_so(folder: Path) -> None:
    made = save(folder, 1, 1.0)
    manifest = json.loads((made / "manifest.json").read_text(encoding="utf-8"))
    (made / "manifest.json").write_text(json.dumps({**manifest, "format_version": 2}), encoding="utf-8")
    assert verify(made) == "its format is 2, this code reads 1"


def test_when_no_step_is_whole_all_complaints_are_told(folder: Path) -> None:
    for step in (1, 2):
        (save(folder, step, step) / "meta.json").unlink()
    with pytest.raises(UserError, match=r"step_000002: meta.json is missing; .*step_000001: meta.json is missing"):
        find_checkpoint("base")


def test_a_safetensors_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for content in (None, b"", b"\x10" * 100):
        path = tmp_path / "model.safetensors"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
            load_tensors(path, torch.device("cpu"))


# --- which one ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "script"), [("base", "base_train"), ("mid", "mid_train"), ("sft", "chat_sft"), ("rl", "chat_rl")]
)
def test_a_missing_stage_names_the_command_that_makes_it(base_dir: Path, stage: str, script: str) -> None:
    with pytest.raises(UserError) as refused:
        find_checkpoint(stage)
    folder = paths.checkpoints_dir(stage)
    assert str(refused.value) == f"no {stage} checkpoint in {folder}; run `python -m scripts.{script}` first"


def test_an_unknown_stage_tag_or_step_lists_what_there_is(folder: Path) -> None:
    for step in (10, 20):
        save(folder, step, 1.0)
    save(paths.checkpoints_dir("base", "other"), 1, 1.0)
    with pytest.raises(UserError, match="no stage is called 'pre'; stages are base, mid, sft, rl"):
        find_checkpoint("pre")
    with pytest.raises(UserError, match="no base checkpoint with the tag 'd5'; there are d4, other"):
        find_checkpoint("base", "d5")
    with pytest.raises(UserError, match="no base checkpoint of d4 at step 15; there are 20, 10"):
        find_checkpoint("base", "d4", 15)
    assert find_checkpoint("base", "d4", 10).step == 10


def test_the_tag_written_last_and_its_newest_step_are_taken(base_dir: Path) -> None:
    made = {
        tag: save(paths.checkpoints_dir("base", tag), step, step) for tag, step in (("d2", 900), ("d4", 8), ("d6", 0))
    }
    for age, tag in enumerate(("d6", "d2", "d4")):
        os.utime(made[tag], (10**9 - age, 10**9 - age))
    assert (find_checkpoint("base").tag, find_checkpoint("base").step) == ("d6", 0)
    os.utime(made["d4"])
    save(paths.checkpoints_dir("base", "d4"), 1_000_000, 1.0)
    assert (find_checkpoint("base").tag, find_checkpoint("base").step) == ("d4", 1_000_000)


def test_the_newest_stage_is_the_first_of_the_order_that_is_there(base_dir: Path) -> None:
    assert newest_stage() is None
    for stage in ("base", "rl", "mid"):
        save(paths.checkpoints_dir(stage, "d4"), 1, 1.0)
    assert newest_stage() == "mid"
    assert newest_stage(("rl", "mid")) == "rl"


# --- the model ----------------------------------------------------------------------------------------------------


def test_a_model_comes_back_with_its_logits_tokenizer_and_facts(base_dir: Path) -> None:
    save_model(step=5, source="prose")
    model, tokenizer, meta = load_model("base", CPU)
    ids = torch.tensor([tokenizer.encode(TEXT)[:40]])
    with torch.no_grad():
        assert torch.equal(model(ids), tiny_model(n_layer=1)(ids))
    assert not model.training
    assert (meta["stage"], meta["tag"], meta["step"], meta["source"]) == ("base", "d1", 5, "prose")


def test_weights_are_held_in_the_runtimes_format_for_inference_and_in_float32_for_training(base_dir: Path) -> None:
    save_model()
    runtime = Runtime(torch.device("cpu"), torch.bfloat16)
    assert {p.dtype for p in load_model("base", runtime)[0].parameters()} == {torch.bfloat16}
    trained = load_model("base", runtime, for_training=True)[0]
    assert {p.dtype for p in trained.parameters()} == {torch.float32}
    assert trained.training
    assert all(torch.equal(p, q) for p, q in zip(trained.parameters(), tiny_model(n_layer=1).parameters(), strict=True))


def test_steps_that_had_to_be_passed_over_are_told_to_who_loads(
    base_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(step=5)
    truncate(save_model(step=6) / "model.safetensors")
    assert load_model("base", CPU)[2]["step"] == 5
    said = capsys.readouterr().out
    assert re.search(r"step_000006: model.safetensors has \d+ bytes instead of \d+; taking step 5\n", said)


def test_another_tokenizer_is_refused(base_dir: Path) -> None:
    save_model()
    RustBPETokenizer.train_from_iterator(["something else " * 9], 270).save(paths.tokenizer_dir())
    with pytest.raises(UserError, match=r"step_000005 was trained with another tokenizer than the one in .*base_train"):
        load_model("base", CPU)


def test_a_missing_tokenizer_names_its_command(base_dir: Path) -> None:
    save_model()
    shutil.rmtree(paths.tokenizer_dir())
    with pytest.raises(UserError, match=r"python -m scripts\.tok_train"):
        load_model("base", CPU)


def test_weights_that_do_not_fit_their_own_meta_are_named(base_dir: Path) -> None:
    model = tiny_model(n_layer=1)
    save_model()
    known = {"model": {**model.config.to_dict(), "n_layer": 2}, "tokenizer_sha256": tokenizer_sha256()}
    save_checkpoint(paths.checkpoints_dir("base", "d1"), 7, model.state_dict(), known)
    with pytest.raises(UserError, match=r"step_000007 does not fit its own meta.json: transformer.h.1.* differ"):
        load_model("base", CPU)


def test_a_full_disk_is_told_in_a_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint_manager, "save_file", full)
    with pytest.raises(UserError, match=r"cannot take the checkpoint.*No space left"):
        checkpoint_manager.save_checkpoint(tmp_path / "d2", 1, {"a": torch.zeros(2)}, {})
    assert list((tmp_path / "d2").iterdir()) == []
