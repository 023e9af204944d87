"""Building and running a lesson's Rust crate; all of them share one target folder, so that a library is built once.

The folder is `CARGO_TARGET_DIR`, by default `lessons-target` under the base directory. A crate is copied into it before
it is built: cargo tells a package apart from others by its place below where it is called, and from its older self by
the times of its files, so that in a shared folder a learner's crate and the solution would be taken for one.
"""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType

from filelock import FileLock

from nanochat import paths
from nanochat.command import UserError


@dataclass(frozen=True)
class Crate:
    """A folder with a Cargo.toml, and the name of its lesson."""

    folder: Path
    lesson: str

    @cached_property
    def program(self) -> Path:
        """Its program, built once for this object. Raises CrateError with the compiler's words."""
        return built(self, "bin")

    def run(self, *arguments: str, stdin: str = "") -> str:
        """What the crate's program prints, given arguments and an input.

        Raises NotImplementedError at a `todo!`, CrateError where the program fails otherwise, or is not compiled.
        """
        environment = {**os.environ, "RUST_BACKTRACE": "0"}
        done = subprocess.run(
            [self.program, *arguments], input=stdin, env=environment, capture_output=True, encoding="utf-8", check=False
        )
        if unwritten := re.search(r"not yet implemented: (.*)", done.stderr):
            raise NotImplementedError(f"{self.lesson}: {unwritten[1]} is yours to write")
        if done.returncode != 0:
            told = done.stderr.replace(
                "note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace", ""
            )
            raise CrateError(f"the program stopped, called with {' '.join(arguments)!r:.200}: {told.strip()}")
        return done.stdout

    def test(self) -> str:
        """What `cargo test` prints. Raises CrateError where a test fails."""
        with _lock():
            done = _cargo(_mirrored(self), "test", "--quiet", "--lib")
        if done.returncode != 0:
            raise CrateError(f"`cargo test` fails:\n{done.stdout}{done.stderr}")
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
    loads a file twice, loads a changed one. Raises CrateError with the compiler's first error.
    """
    with _lock():
        folder = _mirrored(crate)
        done = _cargo(folder, "build", "--message-format=json")
        messages = [json.loads(line) for line in done.stdout.splitlines()]
        if done.returncode != 0:
            told = [one["message"] for one in messages if one["reason"] == "compiler-message"]
            errors = [one["rendered"] for one in told if one["level"] == "error" and one["spans"]]
            raise CrateError(f"it does not compile:\n{(errors[0] if errors else done.stderr).strip()}")
        for message in messages:
            if message["reason"] == "compiler-artifact" and Path(message["manifest_path"]) == folder / "Cargo.toml":
                target = message["target"]
                if kind in target["kind"]:
                    return _kept(Path(message["executable"] or message["filenames"][0]), target["name"], kind)
    raise CrateError(f"Cargo.toml makes no {kind}: copy it from lessons/{crate.lesson}/start")


def snippet(source: str) -> str:
    """What a small Rust program prints, or what the compiler says against it: for a notebook's cells."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "main.rs").write_text(source, encoding="utf-8")
        compiled = _run(["rustc", "--edition=2024", "-Cdebuginfo=0", "main.rs"], Path(folder))
        if compiled.returncode != 0:
            return compiled.stderr.strip()
        done = _run([str(Path(folder) / "main")], Path(folder))
        return (done.stdout + done.stderr).strip()


def repoint(manifest: Path, paths_of: dict[str, Path]) -> None:
    """In a copied Cargo.toml, let paths to other lessons' solutions lead to these folders, by lesson name."""
    text = manifest.read_text(encoding="utf-8")
    for name, folder in paths_of.items():
        text = re.sub(rf'"[^"]*{name}/solution"', f'"{folder.resolve().as_posix()}"', text)
    manifest.write_text(text, encoding="utf-8")


def _mirrored(crate: Crate) -> Path:
    """The lesson's folder below the target folder, made equal to the crate; equal files are left untouched."""
    mirror = target_dir().resolve() / "crates" / crate.lesson
    files = {path.relative_to(crate.folder): path for path in crate.folder.rglob("*") if path.is_file()}
    wanted = {inside: path.read_bytes() for inside, path in files.items() if inside.parts[0] != "target"}
    manifest = wanted[Path("Cargo.toml")].decode()
    absolute = re.sub(
        r'(path = )"(\.\.?/[^"]*)"',
        lambda found: f'{found[1]}"{(crate.folder / found[2]).resolve().as_posix()}"',
        manifest,
    )
    wanted[Path("Cargo.toml")] = absolute.encode()
    for path in mirror.rglob("*"):
        if path.is_file() and path.relative_to(mirror) not in wanted:
            path.unlink()
    for inside, content in wanted.items():
        path = mirror / inside
        if not path.exists() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return mirror


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


def _cargo(folder: Path, verb: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return _run(["cargo", verb, *flags], folder)


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    settings = {"CARGO_TARGET_DIR": str(target_dir().resolve()), "PYO3_PYTHON": sys.executable, "RUST_BACKTRACE": "0"}
    environment = {**os.environ, **settings}
    try:
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=False)
    except FileNotFoundError as missing:
        raise UserError(
            f"the Rust lessons need {command[0]}, which is not on the PATH: `source ~/.cargo/env`, or install it from "
            "rustup.rs"
        ) from missing


def _lock() -> FileLock:
    target_dir().mkdir(parents=True, exist_ok=True)
    return FileLock(target_dir() / "lessons.lock")
