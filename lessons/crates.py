"""Building and running a lesson's Rust crate; all of them share one target folder, so that a library is built once.

The folder is `CARGO_TARGET_DIR`, by default `lessons-target` under the base directory.
"""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from filelock import FileLock

from nanochat import paths
from nanochat.command import UserError


@dataclass(frozen=True)
class Crate:
    """A folder with a Cargo.toml."""

    folder: Path

    def run(self, *arguments: str, stdin: str = "") -> str:
        """What the crate's program prints, given arguments and an input. Raises CrateError where it fails."""
        program = built(self, "bin")
        done = subprocess.run([program, *arguments], input=stdin, capture_output=True, encoding="utf-8", check=False)
        if done.returncode != 0:
            raise CrateError(f"{self.folder.name} {' '.join(arguments)} stopped: {done.stderr.strip()}")
        return done.stdout

    def test(self) -> str:
        """What `cargo test` prints. Raises CrateError where a test fails."""
        with _lock():
            done = _cargo(self, "test", "--quiet")
        if done.returncode != 0:
            raise CrateError(f"`cargo test` in {self.folder.name} fails:\n{done.stdout}{done.stderr}")
        return done.stdout


class CrateError(AssertionError):
    """The learner's crate does not compile, or its program stops: a check turns red by it."""


def target_dir() -> Path:
    """Where cargo puts what it builds, for all lessons."""
    given = os.environ.get("CARGO_TARGET_DIR")
    return Path(given) if given else paths.base_dir() / "lessons-target"


def module(crate: Crate) -> ModuleType:
    """The crate as a Python module: what `maturin develop` would install, imported from a file of its own."""
    path = built(crate, "cdylib")
    name = path.name.partition(".")[0]
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None, path
    assert specification.loader is not None, path
    found = importlib.util.module_from_spec(specification)
    sys.modules[name] = found
    specification.loader.exec_module(found)
    return found


def built(crate: Crate, kind: str) -> Path:
    """The crate's program (kind bin) or Python module (cdylib), newly built where the source has changed.

    It is a copy named by its content: another build in the shared folder leaves it alone, and Python, which never
    loads a file twice, loads a changed one. Raises CrateError with the compiler's words.
    """
    with _lock():
        done = _cargo(crate, "build", "--message-format=json-render-diagnostics")
        if done.returncode != 0:
            raise CrateError(f"{crate.folder.name} does not compile:\n{done.stderr.strip()}")
        for line in done.stdout.splitlines():
            message = json.loads(line)
            ours = Path(message.get("manifest_path", "")).resolve().parent == crate.folder.resolve()
            if message["reason"] == "compiler-artifact" and ours and kind in message["target"]["kind"]:
                return _kept(Path(message["executable"] or message["filenames"][0]), message["target"]["name"], kind)
    raise CrateError(f"{crate.folder / 'Cargo.toml'} makes no {kind}: `python -m lessons diff` shows the solution's")


def repoint(crate_folder: Path, neighbours: dict[str, Path]) -> None:
    """In a copied Cargo.toml, let paths to other lessons' solutions lead to these folders, by lesson name."""
    manifest = crate_folder / "Cargo.toml"
    text = manifest.read_text(encoding="utf-8")
    for name, folder in neighbours.items():
        text = re.sub(rf'"[^"]*{name}/solution"', f'"{folder.as_posix()}"', text)
    manifest.write_text(text, encoding="utf-8")


def _kept(artifact: Path, name: str, kind: str) -> Path:
    content = hashlib.sha256(artifact.read_bytes()).hexdigest()[:16]
    suffix = ".exe" if os.name == "nt" else ""
    if kind == "cdylib":
        suffix = ".pyd" if os.name == "nt" else ".abi3.so"
    kept = target_dir() / "kept" / content / f"{name}{suffix}"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(artifact, kept.with_name(kept.name + ".part"))
        kept.with_name(kept.name + ".part").rename(kept)
    return kept


def _cargo(crate: Crate, verb: str, *flags: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CARGO_TARGET_DIR": str(target_dir()), "PYO3_PYTHON": sys.executable}
    try:
        return subprocess.run(
            ["cargo", verb, *flags],
            cwd=crate.folder,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
    except FileNotFoundError as missing:
        raise UserError(
            "the Rust lessons need cargo, which is not on the PATH: `source ~/.cargo/env`, or install it from rustup.rs"
        ) from missing


def _lock() -> FileLock:
    target_dir().mkdir(parents=True, exist_ok=True)
    return FileLock(target_dir() / "lessons.lock")
