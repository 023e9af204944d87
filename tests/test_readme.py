"""What the documents promise: every command has flags that its module takes, every link leads somewhere."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import tyro

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "rustbpe" / "README.md",
    ROOT / "lessons" / "README.md",
]


def commands() -> list[tuple[str, list[str]]]:
    """(module, flags) of every `python -m` and `torchrun ... -m` in the documents and the modules' docstrings."""
    texts = [path.read_text(encoding="utf-8") for path in DOCUMENTS]
    texts += [
        importlib.import_module(f"scripts.{path.stem}").__doc__ or "" for path in (ROOT / "scripts").glob("[a-z]*.py")
    ]
    found = []
    for line in re.findall(r"(?:python|torchrun)[^\n`|]*? -m ((?:scripts|nanochat)\.[^\n`|]*)", "\n".join(texts)):
        module, *flags = shlex.split(line.partition("  #")[0])
        if "..." not in line and "PATH" not in line:
            found.append((module.rstrip(".,"), flags))
    return found


def test_there_are_commands_in_the_documents() -> None:
    assert {module for module, _ in commands()} > {"scripts.base_train", "scripts.chat_web", "nanochat.dataset"}


@pytest.mark.parametrize(("module", "flags"), commands(), ids=lambda part: " ".join(part) if part else "plain")
def test_every_command_is_one_that_its_module_takes(module: str, flags: list[str]) -> None:
    if module == "nanochat.report":
        assert flags in (["generate"], ["reset"])
        return
    config_class = importlib.import_module(module).Config
    tyro.cli(config_class, args=flags)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.parent.name + "/" + path.name)
def test_every_link_into_the_repository_leads_to_a_file(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target


def test_every_recipe_that_the_readme_names_exists() -> None:
    for name in re.findall(r"bash ([\w/]+\.sh)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert (ROOT / name).is_file(), name
