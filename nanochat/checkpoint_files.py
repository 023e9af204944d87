"""How a checkpoint reaches the disk, off the training thread, and which ones stay there.

A step's folder is written beside its place, every file synced, the manifest (sizes and SHA-256) last, and then renamed;
one that it replaces steps aside until then. Valid means: the manifest verifies. What the files mean is not here.

Lesson: lessons/19_validation
"""

import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from nanochat.command import UserError

FORMAT_VERSION = 2
REQUIRED_FILES = {"model.safetensors", "state.json", "meta.json"}
_ASIDE, _GONE = ".tmp-old", ".tmp-gone"
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
Meta = dict[str, object]
Facts = dict[str, int | str]
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Keep:
    """Which steps stay besides the best by validation bpb: the `last` that were written last (0: all of them), and all
    multiples of `every` (0: none)."""

    last: int = 0
    every: int = 0

    def stays(self, bpb_by_step: Mapping[int, float | None]) -> set[int]:
        """The steps to keep, of those that are there with what each measured, the one written last first."""
        if self.last <= 0:
            return set(bpb_by_step)
        measured = {step: bpb for step, bpb in bpb_by_step.items() if bpb is not None}
        best = {min(measured, key=lambda step: (measured[step], -step))} if measured else set()
        spaced = {step for step in bpb_by_step if self.every > 0 and step % self.every == 0}
        return best | spaced | set(list(bpb_by_step)[: self.last])


class CheckpointWriter:
    """Writes one checkpoint at a time in a thread; what goes wrong there is raised by the next `wait`."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(
        self, folder: Path, step: int, model: Tensors, meta: Meta, optimizer: Tensors, state: Meta, keep: Keep
    ) -> None:
        """Start to write; the caller changes nothing of what it gave. Waits for the one before."""
        self.wait()

        def work() -> None:
            try:
                save_checkpoint(folder, step, model, meta, optimizer, state)
                remove_others(folder, step, keep)
            except BaseException as error:  # raised again where the loop waits
                self._error = error

        self._thread = threading.Thread(target=work, name=f"checkpoint of step {step}")
        self._thread.start()

    def wait(self) -> None:
        """Return when everything is on the disk. Raises what went wrong."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error


def snapshot(tensors: Tensors) -> dict[str, torch.Tensor]:
    """Copies on the CPU that later steps do not change."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def save_checkpoint(
    folder: Path,
    step: int,
    model_state: Tensors,
    meta: Meta,
    optimizer_state: Tensors | None = None,
    state: Mapping[str, object] | None = None,
) -> Path:
    """Write `folder/step_<step>`; a folder of that name is replaced only when the new one is complete.

    Raises UserError where the disk takes no more; what was there before is there still.
    """
    final = folder / f"step_{step:06d}"
    part = folder / f"{final.name}.tmp-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear_up(folder)
        part.mkdir()
        files = {"model.safetensors": _write(part / "model.safetensors", safetensors_chunks(model_state))}
        if optimizer_state is not None:
            files["optim.safetensors"] = _write(part / "optim.safetensors", safetensors_chunks(optimizer_state))
        files["state.json"] = _write(part / "state.json", [_json(state or {})])
        files["meta.json"] = _write(part / "meta.json", [_json(meta)])
        versions = {"torch": torch.__version__, "safetensors": metadata.version("safetensors")}
        manifest = {"format_version": FORMAT_VERSION, "saved_at": time.time(), "versions": versions, "files": files}
        _write(part / "manifest.json", [_signed(manifest)])
        _sync_folder(part)
        if final.exists():
            os.replace(final, folder / (final.name + _ASIDE))
        os.replace(part, final)
        _sync_folder(folder)
    except OSError as error:
        raise UserError(
            f"the checkpoint of step {step} could not be written to {folder} ({error.strerror or error}); older ones "
            "are as they were: make room, then go on with --resume"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        _clear_up(folder)
    return final


def remove_others(folder: Path, step: int, keep: Keep) -> None:
    """Remove the steps that need not stay, once the one just written verifies. Raises UserError where it does not."""
    steps = steps_of(folder)
    unwanted = steps.keys() - keep.stays({number: _bpb(path) for number, path in steps.items()}) - {step}
    if not unwanted:
        return
    if complaint := verify(steps[step]):
        raise UserError(f"{steps[step]}, just written, does not read back as it should ({complaint}); check the disk")
    for number in unwanted:
        gone = folder / f"step_{number:06d}{_GONE}"
        os.replace(steps[number], gone)  # first out of sight: a kill leaves no half of a step
        shutil.rmtree(gone)


def verify(folder: Path) -> str | None:
    """What is wrong with a checkpoint's folder, in a few words; None when the manifest verifies."""
    try:
        content = (folder / "manifest.json").read_bytes()
        manifest = json.loads(content)
        version = manifest["format_version"]
        files = {name: (facts["bytes"], facts["sha256"]) for name, facts in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "it has no readable manifest.json"
    if version != FORMAT_VERSION:
        return f"its format is {version!r}, this code reads {FORMAT_VERSION}"
    manifest.pop("sha256", None)
    if content != _signed(manifest):
        return "manifest.json has been changed or damaged"
    if missing := REQUIRED_FILES - files.keys():
        return f"its manifest.json does not name {', '.join(sorted(missing))}"
    for name, (size, sha256) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if sha256_of(path) != sha256:
            return f"{name} has been changed or damaged"
    return None


def step_of(path: Path) -> int | None:
    """The number in a step's folder's name; None for any other path."""
    match = re.fullmatch(rf"step_(\d+)({re.escape(_ASIDE)})?", path.name)
    return int(match[1]) if match else None


def steps_of(folder: Path) -> dict[int, Path]:
    """A tag's steps, the one written last first; one that stepped aside and was never replaced counts too.

    The last written is not the highest when a run went on from an earlier step, or began anew under an old tag.
    """
    if not folder.is_dir():
        return {}
    found = [(step, path) for path in folder.iterdir() if (step := step_of(path)) is not None]
    found.sort(key=lambda pair: pair[1].name.endswith(_ASIDE), reverse=True)
    by_step = dict(found)  # of two of one step the last, which stands in its place
    return {step: by_step[step] for step in sorted(by_step, key=lambda s: (_saved_at(by_step[s]), s), reverse=True)}


def sha256_of(path: Path) -> str:
    """The hash of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def safetensors_chunks(tensors: Tensors) -> Iterator[bytes | memoryview]:
    """A file of the safetensors format, piece by piece: length of the header, header (JSON), data of each tensor.

    The library's own writer holds the interpreter's lock, so that training would stand still, and hides the system's
    errors. Wide formats come first, which keeps every tensor aligned. https://github.com/huggingface/safetensors
    """
    header: dict[str, dict[str, object]] = {}
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    start = 0
    for name in names:
        tensor = tensors[name]
        end = start + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        flat = tensors[name].detach().cpu().contiguous().view(-1)
        yield flat.view(torch.uint8).numpy().data


def _write(path: Path, chunks: Iterable[bytes | memoryview]) -> Facts:
    """Write and sync a file; its size, and the hash of what it should hold."""
    digest, size = hashlib.sha256(), 0
    with path.open("wb", buffering=0) as file:
        for chunk in chunks:
            digest.update(chunk)
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(file.fileno(), rest) :]  # the system may take less than all of it
            size += len(chunk)
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def _signed(manifest: Meta) -> bytes:
    """The manifest's file: with the hash of its own text at the end."""
    return _json({**manifest, "sha256": hashlib.sha256(_json(manifest)).hexdigest()})


def _json(value: object) -> bytes:
    return json.dumps(value).encode()  # json.dump streams through Python, ten times slower: a packing buffer is long


def _sync_folder(path: Path) -> None:
    """Force a folder's names to the disk; Windows has no handle for a folder."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _clear_up(folder: Path) -> None:
    """Put back the steps that stepped aside for one that never came; remove all else that is half-written."""
    for aside in folder.glob(f"step_*{_ASIDE}"):
        place = aside.with_name(aside.name.removesuffix(_ASIDE))
        if not place.exists():
            os.replace(aside, place)
    for leftover in folder.glob("step_*.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _saved_at(folder: Path) -> float:
    """When it was written, in seconds: as its manifest says, which copying does not change, or else its folder."""
    try:
        return float(json.loads((folder / "manifest.json").read_bytes())["saved_at"])
    except (OSError, ValueError, TypeError, KeyError):
        return folder.stat().st_mtime if folder.exists() else 0.0


def _bpb(folder: Path) -> float | None:
    """The validation bpb measured at that step; None for none, or none that can be read."""
    try:
        value = json.loads((folder / "meta.json").read_text(encoding="utf-8")).get("val_bpb")
    except (OSError, ValueError, AttributeError):
        return None
    return value if isinstance(value, float) else None
