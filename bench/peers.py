"""Environments of peers, under the base directory: what a bench compares with never enters the project's own.

The `bench` group of pyproject.toml says which versions.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from nanochat import paths
from nanochat.command import UserError

ROOT = Path(__file__).resolve().parent.parent


def requirements(group: str = "bench") -> list[str]:
    """The requirements of a dependency group of pyproject.toml."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        return list(tomllib.load(file)["dependency-groups"][group])


def ours() -> Path:
    """The Python of an environment with numpy and the crate of this repository, built in release mode when it changed.

    Raises UserError when it does not build.
    """
    python = _environment("ours")
    crate = ROOT / "rustbpe"
    hashed = hashlib.sha256()
    for file in [
        crate / "Cargo.toml",
        crate / "Cargo.lock",
        crate / "pyproject.toml",
        *sorted(crate.rglob("src/**/*")),
    ]:
        if file.is_file():
            hashed.update(f"{file.relative_to(crate).as_posix()}\0".encode() + file.read_bytes())
    stamp = python.parent.parent / "crate.stamp"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != hashed.hexdigest():
        print("building rustbpe in release mode", flush=True)
        for arguments in (["numpy"], ["--reinstall" if _uv() else "--force-reinstall", "--no-deps", str(crate)]):
            refusal = _install(python, arguments)
            if refusal:
                raise UserError(f"rustbpe could not be built into {python.parent.parent}: {refusal}")
        stamp.write_text(hashed.hexdigest(), encoding="utf-8")
    return python


def crate_hash() -> str:
    """Which sources the environment of `ours` was built from."""
    return (paths.base_dir() / "peers" / "ours" / "crate.stamp").read_text(encoding="utf-8")


def install(name: str, wanted: Sequence[str]) -> tuple[Path, dict[str, str]]:
    """The Python of an environment with each of `wanted` that installs, and the refusals of those that do not."""
    python = _environment(name)
    stamp = python.parent.parent / "installed.json"
    installed = json.loads(stamp.read_text(encoding="utf-8")) if stamp.exists() else []
    refused = {}
    for requirement in wanted:
        if requirement in installed:
            continue
        print(f"installing {requirement}", flush=True)
        refusal = _install(python, [requirement])
        if refusal:
            refused[requirement] = refusal
        else:
            installed.append(requirement)
            stamp.write_text(json.dumps(installed), encoding="utf-8")
    return python, refused


def versions(python: Path, wanted: Sequence[str]) -> dict[str, str]:
    """Which versions of `wanted` an environment holds."""
    program = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)
    held = json.loads(done.stdout)
    names = [re.split(r"[^\w.-]", requirement)[0] for requirement in wanted]
    return {name: held[name] for name in names if name in held}


def _uv() -> str | None:
    beside = Path(sys.executable).parent / "uv"
    return shutil.which("uv") or (str(beside) if beside.exists() else None)


def _environment(name: str) -> Path:
    folder = paths.base_dir() / "peers" / name
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        uv = _uv()
        program = [uv, "venv", "--quiet", "--python", sys.executable] if uv else [sys.executable, "-m", "venv"]
        subprocess.run([*program, str(folder)], check=True)
    return python


def _install(python: Path, arguments: Sequence[str]) -> str | None:
    """None, or the last line of the refusal."""
    uv = _uv()
    program = [uv, "pip", "install", "--quiet", "--python"] if uv else []
    program = [*program, str(python)] if uv else [str(python), "-m", "pip", "install", "--quiet"]
    # cargo must be found by the build, also where rustup did not change PATH
    search = os.pathsep.join([os.environ.get("PATH", ""), str(Path.home() / ".cargo" / "bin")])
    environment = {**os.environ, "PATH": search}
    done = subprocess.run([*program, *arguments], capture_output=True, text=True, check=False, env=environment)
    if done.returncode == 0:
        return None
    return ([line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"])[-1].strip()
