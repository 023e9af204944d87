"""Checkpoints: written whole or not at all, verified before use, never unpickled.

A step's folder is written beside its place, every file synced, the manifest (sizes and SHA-256) last, and then renamed;
one that it replaces steps aside until then. Valid means: the manifest verifies.
`checkpoints/<stage>/<tag>/step_000000/` holds

    model.safetensors   weights in float32, by parameter name
    optim.safetensors   the optimizer's state by parameter name, for resuming
    state.json          every rank's data position and random states, running averages
    meta.json           sizes of the model, the plan, the stage, hash of the tokenizer
    manifest.json
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nanochat import paths
from nanochat.command import UserError
from nanochat.gpt import GPT
from nanochat.gpt_config import GPTConfig
from nanochat.log import print0
from nanochat.runtime import Runtime
from nanochat.tokenizer import RustBPETokenizer, get_tokenizer

FORMAT_VERSION = 1
STAGE_COMMANDS = {"base": "base_train", "mid": "mid_train", "sft": "chat_sft", "rl": "chat_rl"}
REQUIRED_FILES = {"model.safetensors", "state.json", "meta.json"}
_ASIDE = ".tmp-old"
Meta = dict[str, object]


@dataclass(frozen=True)
class Checkpoint:
    """A step's folder, found and verified; `skipped` says which newer ones were not valid, and why."""

    folder: Path
    meta: Meta
    skipped: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        """The number of optimizer updates that it has behind it."""
        step = _step_of(self.folder)
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


def save_checkpoint(
    folder: Path,
    step: int,
    model_state: Mapping[str, torch.Tensor],
    meta: Meta,
    optimizer_state: Mapping[str, torch.Tensor] | None = None,
    state: Mapping[str, object] | None = None,
) -> Path:
    """Write `folder/step_<step>`; a folder of that name is replaced only when the new one is complete."""
    final = folder / f"step_{step:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    _clear_up(folder)
    part = folder / f"{final.name}.tmp-{os.getpid()}"
    part.mkdir()
    try:
        _save_tensors(part / "model.safetensors", model_state)
        if optimizer_state is not None:
            _save_tensors(part / "optim.safetensors", optimizer_state)
        _save_json(part / "state.json", state or {})
        _save_json(part / "meta.json", meta)
        _save_json(part / "manifest.json", _manifest(part))
        _sync(part)
        if final.exists():
            os.replace(final, folder / (final.name + _ASIDE))
        os.replace(part, final)
        _sync(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        _clear_up(folder)
    return final


def find_checkpoint(stage: str, tag: str | None = None, step: int | None = None) -> Checkpoint:
    """The checkpoint asked for; without `tag` the tag written last, without `step` the newest step that verifies.

    Raises UserError that says which command makes one, or what is wrong with the one that is there.
    """
    if stage not in STAGE_COMMANDS:
        raise UserError(f"no stage is called {stage!r}; stages are {', '.join(STAGE_COMMANDS)}")
    command = f"python -m scripts.{STAGE_COMMANDS[stage]}"
    root = paths.checkpoints_dir(stage)
    tags = {p.parent.name: p.parent for p in root.glob("*/step_*") if _step_of(p) is not None}
    if not tags:
        raise UserError(f"no {stage} checkpoint in {root}; run `{command}` first")
    if tag is None:
        tag = max(tags, key=lambda t: max(p.stat().st_mtime for p in _steps(tags[t]).values()))
    if tag not in tags:
        raise UserError(f"no {stage} checkpoint with the tag {tag!r}; there are {', '.join(sorted(tags))}")
    steps = _steps(tags[tag])
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


def verify(folder: Path) -> str | None:
    """What is wrong with a checkpoint's folder, in a few words; None when the manifest verifies."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        version = manifest["format_version"]
        files = {name: (facts["bytes"], facts["sha256"]) for name, facts in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "it has no readable manifest.json"
    if version != FORMAT_VERSION:
        return f"its format is {version}, this code reads {FORMAT_VERSION}"
    if missing := REQUIRED_FILES - files.keys():
        return f"its manifest.json does not name {', '.join(sorted(missing))}"
    for name, (size, sha256) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if _sha256(path) != sha256:
            return f"{name} has been changed or damaged"
    return None


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
    stage: str, runtime: Runtime, model_tag: str | None = None, step: int | None = None, for_training: bool = False
) -> tuple[GPT, RustBPETokenizer, Meta]:
    """A checkpoint's model on the device, its tokenizer, and what is known about it.

    For inference the weights are held in the runtime's format; `for_training` keeps them in float32. Says what was
    wrong with newer steps that had to be passed over. Raises UserError.
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
        model.cast_(runtime.dtype).eval()
    known: Meta = {"step": checkpoint.step, "tag": checkpoint.tag, "stage": stage}
    return model, tokenizer, {**checkpoint.meta, **known}


def build_model(config: GPTConfig, runtime: Runtime) -> GPT:
    """A model on the device whose weights are not yet filled in."""
    with torch.device(runtime.device):
        return GPT(config, runtime.dtype)


def newest_stage(order: Sequence[str] = ("sft", "mid", "base")) -> str | None:
    """The first stage of `order` that has a checkpoint."""
    for stage in order:
        if any(_step_of(path) is not None for path in paths.checkpoints_dir(stage).glob("*/step_*")):
            return stage
    return None


def tokenizer_sha256() -> str:
    """The hash of the tokenizer's file: a model belongs to one tokenizer."""
    return _sha256(paths.tokenizer_dir() / "tokenizer.json")


def _step_of(path: Path) -> int | None:
    match = re.fullmatch(rf"step_(\d+)({re.escape(_ASIDE)})?", path.name)
    return int(match[1]) if match else None


def _steps(folder: Path) -> dict[int, Path]:
    """A tag's steps, the newest first; one that stepped aside and was never replaced counts too."""
    found = [(step, path) for path in folder.iterdir() if (step := _step_of(path)) is not None]
    found.sort(key=lambda pair: (-pair[0], not pair[1].name.endswith(_ASIDE)))
    return dict(found)  # of two of one step the last, which stands in its place


def _clear_up(folder: Path) -> None:
    """Put back the steps that stepped aside for one that never came; remove all else that is half-written."""
    for aside in folder.glob(f"step_*{_ASIDE}"):
        place = aside.with_name(aside.name.removesuffix(_ASIDE))
        if not place.exists():
            os.replace(aside, place)
    for leftover in folder.glob("step_*.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _manifest(folder: Path) -> dict[str, object]:
    files = {p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in sorted(folder.iterdir())}
    versions = {"torch": torch.__version__, "safetensors": metadata.version("safetensors")}
    return {"format_version": FORMAT_VERSION, "versions": versions, "files": files}


def _save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:  # its own name for what the operating system refused, such as a full disk
        raise UserError(f"{path.parent.parent} cannot take the checkpoint: {error}") from error
    _sync(path)


def _save_json(path: Path, value: object) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value))  # json.dump streams through Python, ten times slower: a packing buffer is long
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    """Force a file or folder to the disk; Windows has no handle for a folder."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows syncs no file opened for reading
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
