"""Checkpoints: found, verified before use, never unpickled. How they are written is `checkpoint_files`' part.

`checkpoints/<stage>/<tag>/step_000000/` holds

    model.safetensors   weights in float32, by parameter name
    optim.safetensors   the optimizer's state by parameter name, for resuming
    state.json          every rank's data position and random states, running averages
    meta.json           sizes of the model, the plan, the stage, hash of the tokenizer
    manifest.json

Lesson: lessons/19_validation
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from nanochat import paths
from nanochat.checkpoint_files import Meta, sha256_of, step_of, steps_of, verify
from nanochat.command import UserError
from nanochat.gpt import GPT
from nanochat.gpt_config import GPTConfig, Weights
from nanochat.log import print0
from nanochat.quantize import prepare
from nanochat.runtime import Runtime
from nanochat.tokenizer import RustBPETokenizer, get_tokenizer

STAGE_COMMANDS = {"base": "base_train", "mid": "mid_train", "sft": "chat_sft", "rl": "chat_rl"}


@dataclass(frozen=True)
class Checkpoint:
    """A step's folder, found and verified; `skipped` says which newer ones were not valid, and why."""

    folder: Path
    meta: Meta
    skipped: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        """The number of optimizer updates that it has behind it."""
        step = step_of(self.folder)
        assert step is not None, f"{self.folder} is no step's folder"
        return step

    @property
    def tag(self) -> str:
        """The model's tag, such as "d4"."""
        return self.folder.parent.name

    def config(self) -> GPTConfig:
        """The sizes of the model."""
        fields = self.meta["model"]
        assert isinstance(fields, dict), f"meta.json holds no model but {fields!r}"
        return GPTConfig(**fields)


def find_checkpoint(stage: str, tag: str | None = None, step: int | None = None) -> Checkpoint:
    """The checkpoint asked for; without `tag` the tag written last, without `step` its last written step that
    verifies.

    Raises UserError that says which command makes one, or what is wrong with the one that is there.
    """
    if stage not in STAGE_COMMANDS:
        raise UserError(f"no stage is called {stage!r}; stages are {', '.join(STAGE_COMMANDS)}")
    command = f"python -m scripts.{STAGE_COMMANDS[stage]}"
    root = paths.checkpoints_dir(stage)
    tags = {p.parent.name: p.parent for p in root.glob("*/step_*") if step_of(p) is not None}
    if not tags:
        raise UserError(f"no {stage} checkpoint in {root}; run `{command}` first")
    if tag is None:
        tag = max(tags, key=lambda t: max(p.stat().st_mtime for p in steps_of(tags[t]).values()))
    if tag not in tags:
        raise UserError(f"no {stage} checkpoint with the tag {tag!r}; there are {', '.join(sorted(tags))}")
    steps = steps_of(tags[tag])
    if step is not None:
        if step not in steps:
            raise UserError(f"no {stage} checkpoint of {tag} at step {step}; there are {', '.join(map(str, steps))}")
        steps = {step: steps[step]}
    complaints: list[str] = []
    for folder in steps.values():
        complaint = verify(folder)
        if complaint is None:
            meta: Meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            return Checkpoint(folder, meta, tuple(complaints))
        complaints.append(f"{folder}: {complaint}")
    raise UserError(f"no valid {stage} checkpoint of {tag} ({'; '.join(complaints)}); run `{command}` again")


def load_tensors(path: Path, device: torch.device) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file. Raises UserError for one that cannot be read."""
    try:
        return load_file(path, device=str(device))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def load_state(checkpoint: Checkpoint) -> dict[str, object]:
    """What `state` was when the checkpoint was saved."""
    state: dict[str, object] = json.loads((checkpoint.folder / "state.json").read_text(encoding="utf-8"))
    return state


def load_model(
    stage: str,
    runtime: Runtime,
    model_tag: str | None = None,
    step: int | None = None,
    for_training: bool = False,
    weights: Weights | None = None,
) -> tuple[GPT, RustBPETokenizer, Meta]:
    """A checkpoint's model on the device, its tokenizer, and what is known about it.

    For inference the weights are held as `weights` says, without it in the runtime's format; `for_training` keeps them
    in float32. Says what was wrong with newer steps that had to be passed over. Raises UserError.
    """
    checkpoint = find_checkpoint(stage, model_tag, step)
    for complaint in checkpoint.skipped:
        print0(f"passed over {complaint}; taking step {checkpoint.step}")
    tokenizer = get_tokenizer()
    made_with = checkpoint.meta.get("tokenizer_sha256")
    if made_with != tokenizer_sha256():
        raise UserError(
            f"{checkpoint.folder} was trained with another tokenizer than the one in {paths.tokenizer_dir()}; "
            "put that one back or train again from `python -m scripts.base_train` on"
        )
    model = build_model(checkpoint.config(), runtime)
    state = load_tensors(checkpoint.folder / "model.safetensors", runtime.device)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if expected != found:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise UserError(f"{checkpoint.folder} does not fit its own meta.json: {', '.join(wrong[:3])} differ")
    model.load_state_dict(state)
    if not for_training:
        model = prepare(model, weights)
        model.cast_(model.dtype)
    held = weights or str(model.dtype).removeprefix("torch.")
    known: Meta = {"step": checkpoint.step, "tag": checkpoint.tag, "stage": stage, "weights": held}
    return model, tokenizer, {**checkpoint.meta, **known}


def build_model(config: GPTConfig, runtime: Runtime) -> GPT:
    """A model on the device whose weights are not yet filled in."""
    with torch.device(runtime.device):
        return GPT(config, runtime.dtype)


def newest_stage(order: Sequence[str] = ("sft", "mid", "base")) -> str | None:
    """The first stage of `order` that has a checkpoint."""
    for stage in order:
        if any(step_of(path) is not None for path in paths.checkpoints_dir(stage).glob("*/step_*")):
            return stage
    return None


def tokenizer_sha256() -> str:
    """The hash of the tokenizer's file: a model belongs to one tokenizer."""
    return sha256_of(paths.tokenizer_dir() / "tokenizer.json")
