"""The shell recipes: every statement's flags are known to its script, a dry run runs nothing, refusals are one line."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import torch
import tyro

from nanochat.gpt_config import config_for_depth
from nanochat.plan import shards_needed
from nanochat.runtime import Runtime
from scripts import base_train, tok_train

ROOT = Path(__file__).parent.parent
RECIPES = ["quickstart.sh", "speedrun.sh", "runs/laptop.sh", "runs/d26.sh", "runs/d32.sh"]
PIPELINE = ["tok_train", "tok_eval", "base_train", "base_loss", "base_eval", "mid_train", "chat_sft", "chat_rl"]

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def dry_run(recipe: str, *flags: str, base_dir: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / recipe), *flags],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": str(base_dir / "home"), "NANOCHAT_BASE_DIR": str(base_dir)},
    )


def statements(recipe: str, base_dir: Path) -> list[tuple[str, list[str]]]:
    """(module, flags) of every Python statement that the recipe would run."""
    done = dry_run(recipe, "--dry-run", base_dir=base_dir)
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(line[2:]) for line in done.stdout.splitlines() if line.startswith("$ ")]
    return [(words[words.index("-m") + 1], words[words.index("-m") + 2 :]) for words in lines]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_flag_of_every_statement_is_one_that_its_script_takes(recipe: str, tmp_path: Path) -> None:
    for module, flags in statements(recipe, tmp_path):
        config_class = importlib.import_module(module).Config
        try:
            config = tyro.cli(config_class, args=[*flags, "--dry_run"])
        except SystemExit:
            pytest.fail(f"{recipe}: python -m {module} {shlex.join(flags)} --dry_run is refused")
        assert config.dry_run is True


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_task_named_in_a_recipe_is_registered(recipe: str, tmp_path: Path) -> None:
    from tasks import REGISTRY

    for module, flags in statements(recipe, tmp_path):
        config = tyro.cli(importlib.import_module(module).Config, args=flags)
        for field in ("tasks", "task", "task_names"):
            named = getattr(config, field, None)
            names: typing.Iterable[str] = [named] if isinstance(named, str) else named or []
            assert {name.partition(":")[0] for name in names} <= set(REGISTRY), f"{module} {flags}"


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_stage_runs_in_the_order_of_the_pipeline(recipe: str, tmp_path: Path) -> None:
    run = [module.removeprefix("scripts.") for module, _ in statements(recipe, tmp_path)]
    assert [name for name in run if name in PIPELINE] == PIPELINE
    assert run[0] == "nanochat.report"
    assert run[-1] == "nanochat.report"
    judged = [flags[1] for module, flags in statements(recipe, tmp_path) if module == "scripts.chat_eval"]
    assert [stage for stage in judged if stage != "base"] == ["mid", "sft", "rl"]


@pytest.mark.parametrize("recipe", ["speedrun.sh", "runs/d26.sh", "runs/d32.sh"])
def test_a_big_recipe_fetches_the_text_that_its_plan_needs_and_little_more(recipe: str, tmp_path: Path) -> None:
    ran = statements(recipe, tmp_path)
    fetched = max(int(flags[1]) for module, flags in ran if module == "nanochat.dataset")
    [vocab_size] = [
        tyro.cli(tok_train.Config, args=flags).vocab_size for name, flags in ran if name == "scripts.tok_train"
    ]
    [base] = [tyro.cli(base_train.Config, args=flags) for name, flags in ran if name == "scripts.base_train"]
    model = config_for_depth(base.depth, vocab_size, base.max_seq_len)
    eight = Runtime(torch.device("cpu"), torch.float32, 0, 8)
    plan = base_train.plan_of(base, model, eight, tmp_path)  # divides into rows x ranks, or it would be refused
    assert shards_needed(plan.total_tokens) <= fetched <= 1.15 * shards_needed(plan.total_tokens)
    assert plan.total_tokens == pytest.approx(20 * model.num_params, rel=0.001)


def test_the_quickstart_asks_five_questions_and_says_how_to_chat(tmp_path: Path) -> None:
    asked = [flags for module, flags in statements("quickstart.sh", tmp_path) if module == "scripts.chat_cli"]
    assert len(asked) == 5
    assert all(flags[0] == "-p" for flags in asked)
    lines = dry_run("quickstart.sh", "--dry-run", base_dir=tmp_path).stdout.splitlines()
    assert [line.strip() for line in lines[-4:]] == [
        "source .venv/bin/activate",
        f"export NANOCHAT_BASE_DIR={tmp_path}",
        "python -m scripts.chat_cli",
        "python -m scripts.chat_web",
    ]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_dry_run_writes_nothing(recipe: str, tmp_path: Path) -> None:
    base_dir = tmp_path / "base"
    assert dry_run(recipe, "--dry-run", base_dir=base_dir).returncode == 0
    assert not base_dir.exists()


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_are_plain_statements_under_strict_settings(recipe: str) -> None:
    lines = (ROOT / recipe).read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    stages = [line for line in lines if re.match(r"(python|torchrun) ", line)]
    assert len(stages) >= len(PIPELINE)
    assert not any(line.startswith((" ", "\t", "for ", "if ", "while ")) for line in lines)


def test_an_unknown_flag_is_told_the_known_ones(tmp_path: Path) -> None:
    done = dry_run("quickstart.sh", "--fresch", base_dir=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: unknown flag --fresch; allowed are --fresh, --dry-run and --base-dir DIR\n"


def test_fresh_refuses_a_folder_that_holds_what_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    done = dry_run("quickstart.sh", "--fresh", "--dry-run", base_dir=tmp_path)
    assert done.returncode == 2
    assert "holds 'thesis.txt', which nanochat did not write" in done.stderr
    assert (tmp_path / "thesis.txt").exists()


def test_fresh_removes_what_the_run_made_and_keeps_downloads(tmp_path: Path) -> None:
    for folder in ("tokenizer", "checkpoints/base/d4", "report", "data/tinyworld", "data/fineweb-edu", "hub"):
        (tmp_path / folder).mkdir(parents=True)
    script = "source dev/setup.sh; source dev/recipe.sh; nanochat_recipe_flags --fresh; nanochat_check_base_dir d4"
    environment = {**os.environ, "NANOCHAT_BASE_DIR": str(tmp_path)}
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=ROOT, env=environment, check=True, capture_output=True
    )
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.glob("*/*")) == ["data/fineweb-edu"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "hub"]


def test_a_recipe_does_not_replace_the_tokenizer_of_another_run(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "base" / "d20").mkdir(parents=True)
    done = dry_run("quickstart.sh", "--dry-run", base_dir=tmp_path)
    assert done.returncode == 2
    assert "holds models of another run (d20)" in done.stderr


def test_without_a_new_python_the_set_up_says_so_in_one_line(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    for name in ("cc", "python3"):
        program = tmp_path / name
        program.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" || exit 1\n', encoding="utf-8")
        program.chmod(0o755)
    done = subprocess.run(
        [bash, "-euo", "pipefail", "-c", f"source {shlex.quote(str(ROOT / 'dev/setup.sh'))}; nanochat_setup"],
        cwd=tmp_path,
        env={"PATH": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: nanochat needs Python 3.11 or newer and found Python 3.9.2: install it, or name it with "
        "PYTHON=/path/to/python\n"
    )
    (tmp_path / "cc").unlink()
    done = subprocess.run(
        [bash, "-euo", "pipefail", "-c", f"source {shlex.quote(str(ROOT / 'dev/setup.sh'))}; nanochat_setup"],
        cwd=tmp_path,
        env={"PATH": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: nanochat needs a C compiler")
    assert done.stderr.count("\n") == 1


def test_the_requirements_hold_hashes_and_no_address_nor_torch_nor_our_own(tmp_path: Path) -> None:
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    names = re.findall(r"^([a-z0-9-]+)==", text, re.MULTILINE)
    assert len(names) > 40
    assert not {"torch", "nanochat", "nanochat-rustbpe"} & set(names)
    assert "://" not in text
    assert text.count("--hash=sha256:") > len(names)
    wanted = {"tyro", "tqdm", "httpx", "pyarrow", "maturin", "hatchling", "editables", "pytest", "transformers"}
    assert wanted <= set(names)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such bit")
def test_the_builders_command_can_be_run_and_calls_the_readmes(tmp_path: Path) -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "bash test.sh" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "bash test.sh" in (ROOT / "README.md").read_text(encoding="utf-8")
