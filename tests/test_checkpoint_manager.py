"""Checkpoints are found: the right one, whole, with its model and its tokenizer, or a sentence why not."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import CPU, TEXT, tiny_model, tiny_tokenizer

from nanochat import paths
from nanochat.checkpoint_files import save_checkpoint, verify
from nanochat.checkpoint_manager import find_checkpoint, load_model, load_tensors, newest_stage, tokenizer_sha256
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
        torch.testing.assert_close(model(ids), tiny_model(n_layer=1)(ids), atol=1e-5, rtol=0)
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


def test_weights_are_held_as_asked_for(base_dir: Path) -> None:
    save_model()
    runtime = Runtime(torch.device("cpu"), torch.bfloat16)
    kinds = {}
    for weights in (None, "float32", "int8"):
        model, _, meta = load_model("base", runtime, weights=weights)  # type: ignore[arg-type]
        kinds[meta["weights"]] = (model.dtype, type(model.lm_head).__name__)
    assert kinds == {
        "bfloat16": (torch.bfloat16, "Dense"),
        "float32": (torch.float32, "Dense"),
        "int8": (torch.bfloat16, "Quantized"),
    }


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
