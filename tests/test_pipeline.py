"""The whole way at depth 2, every stage by its own `main`; then the mistakes that people make on it."""

import json
import math
import shutil
from pathlib import Path

import pytest

from nanochat import command, report, tinyworld
from nanochat.checkpoint_manager import find_checkpoint
from scripts import (
    base_eval,
    base_loss,
    base_train,
    chat_cli,
    chat_eval,
    chat_rl,
    chat_sft,
    chat_web,
    mid_train,
    tok_eval,
    tok_train,
)

WORLD = ("TinyChat", "TinyMath", "SpellingBee")
FORMATS = ("float32", "bfloat16", "int8", "int4")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base directory in which every stage has run."""
    folder = tmp_path_factory.mktemp("pipeline")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(folder / "base"))
        patch.chdir(folder)
        report.reset()
        tinyworld.main(tinyworld.Config(megabytes=0.5))
        tok_train.main(tok_train.Config(vocab_size=600))
        tok_eval.main(tok_eval.Config())
        base_train.main(
            base_train.Config(depth=2, max_seq_len=128, device_batch_size=4, total_batch_size=1024, num_iterations=30,
                              eval_every=15, eval_tokens=4096, sample_every=30, compile="off")
        )  # fmt: skip
        base_loss.main(base_loss.Config(device_batch_size=4, eval_tokens=4096, weights=FORMATS))
        base_eval.main(base_eval.Config(world_rows=8, sample_tokens=4))
        mid_train.main(mid_train.Config(tasks=WORLD, device_batch_size=4, num_iterations=6, eval_every=3))
        chat_sft.main(chat_sft.Config(tasks=WORLD, device_batch_size=4, num_iterations=4, eval_every=2))
        rl = chat_rl.Config(task="TinyMath", examples_per_step=2, num_samples=4, num_iterations=2, max_tokens=8,
                            eval_problems=4, eval_samples=2)  # fmt: skip
        chat_rl.main(rl)
        for stage in ("mid", "sft", "rl"):
            chat_eval.main(
                chat_eval.Config(source=stage, tasks=("TinyFacts", "TinyMath"), max_problems=8, max_tokens=8)
            )
        report.generate()
    return folder


@pytest.fixture
def in_trained(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(trained / "base"))
    monkeypatch.chdir(trained)
    return trained


@pytest.mark.slow
def test_every_stage_leaves_a_valid_checkpoint_and_its_metrics(in_trained: Path) -> None:
    for stage, steps in (("base", 30), ("mid", 6), ("sft", 4), ("rl", 2)):
        checkpoint = find_checkpoint(stage)
        assert (checkpoint.tag, checkpoint.step) == ("d2", steps)
        lines = (checkpoint.folder.parent / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        logged = [json.loads(line) for line in lines]
        assert {record["step"] for record in logged} >= set(range(1, steps + 1))
    base = [
        json.loads(line) for line in (in_trained / "base/checkpoints/base/d2/metrics.jsonl").read_text().splitlines()
    ]
    losses = [record["loss"] for record in base if "loss" in record]
    assert losses[0] == pytest.approx(math.log(600), rel=0.01)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.slow
def test_the_report_has_a_section_for_every_stage_the_scores_and_the_curves(in_trained: Path) -> None:
    text = (in_trained / "report.md").read_text(encoding="utf-8")
    for stage in ("tok_train", "tok_eval", "base_train", "base_loss", "base_eval", "mid_train", "chat_sft", "chat_rl"):
        assert stage in text
    table = report.score_table()
    assert all(column in table for column in ("BASE", "MID", "SFT", "RL"))
    assert "TinyFacts" in table
    assert list((in_trained / "base" / "report").glob("*.png"))


@pytest.mark.slow
def test_the_report_tells_what_each_format_of_the_weights_costs(in_trained: Path) -> None:
    [section] = [section for section in report.sections() if section.name == "base_loss"]
    bpb = {score.task.removeprefix("val bpb in "): score.value for score in section.scores if "val" in score.task}
    assert bpb.keys() == set(FORMATS)
    assert bpb["bfloat16"] == pytest.approx(bpb["float32"], rel=0.002)
    assert bpb["int8"] == pytest.approx(bpb["bfloat16"], rel=0.002)
    assert bpb["int4"] == pytest.approx(bpb["bfloat16"], rel=0.05)


@pytest.mark.slow
def test_the_terminal_answers_one_question_and_says_where_from(
    in_trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat_cli.main(chat_cli.Config(prompt="What is the capital of France?", max_tokens=8))
    said = capsys.readouterr()
    assert "sft" in said.err
    assert "sft" not in said.out
    chat_web.main(chat_web.Config(dry_run=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "flags"),
    [
        (base_train, ["--depth=2"]), (base_loss, []), (base_eval, []), (mid_train, ["--tasks", *WORLD]),
        (chat_sft, ["--tasks", *WORLD]), (chat_rl, ["--task=TinyMath"]), (chat_eval, ["-i", "mid", "-a", "TinyMath"]),
        (tok_train, []), (tok_eval, []),
    ],
    ids=lambda value: value.__name__.removeprefix("scripts.") if hasattr(value, "__name__") else None,
)  # fmt: skip
def test_a_dry_run_prints_a_plan_and_writes_nothing(
    script: object, flags: list[str], in_trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in in_trained.rglob("*")}
    command.run(script.main, script.Config, [*flags, "--dry_run"])  # type: ignore[attr-defined]
    assert capsys.readouterr().out.strip()
    assert {path: path.stat().st_mtime_ns for path in in_trained.rglob("*")} == before


def refusal(script: object, flags: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a script says to flags that it refuses: one sentence on standard error, exit code 2."""
    with pytest.raises(SystemExit) as ended:
        command.run(script.main, script.Config, flags)  # type: ignore[attr-defined]
    said = capsys.readouterr()
    assert ended.value.code == 2, said
    assert "Traceback" not in said.err
    return said.err.strip().splitlines()[-1] if said.err.startswith("error:") else said.err + said.out


@pytest.mark.slow
def test_impossible_sizes_are_refused_in_one_sentence(in_trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "multiple" in refusal(base_train, ["--depth=2", "--total_batch_size=1000"], capsys)
    assert "depth" in refusal(base_train, ["--depth=0"], capsys)
    assert "head_dim" in refusal(base_train, ["--depth=2", "--head_dim=100"], capsys)
    assert "num_iterations" in refusal(base_train, ["--depth=2", "--num_iterations=0"], capsys)
    assert "device_type" in refusal(base_train, ["--device_type=tpu"], capsys)
    assert "dtype" in refusal(base_train, ["--dtype=int3"], capsys)
    assert "no task is called" in refusal(chat_eval, ["-a", "Nonsense"], capsys)
    assert "generative" in refusal(chat_rl, ["--task=TinyFacts"], capsys)
    assert "step 77" in refusal(chat_eval, ["-i", "mid", "-s", "77", "-a", "TinyMath"], capsys)
    assert "tag 'd9'" in refusal(chat_eval, ["-i", "mid", "-g", "d9", "-a", "TinyMath"], capsys)
    assert "nowhere" in refusal(base_train, ["--depth=2", "--data=nowhere"], capsys)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_not_loaded(
    in_trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(in_trained / "base", tmp_path / "base")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    weights = find_checkpoint("sft").folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "model.safetensors" in refusal(chat_eval, ["-a", "TinyMath"], capsys)


def test_a_missing_stage_says_which_command_to_run_first(base_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "scripts.tok_train" in refusal(base_train, ["--depth=2"], capsys)
    assert "nanochat.tinyworld" in refusal(tok_train, [], capsys)
    assert "scripts.base_train" in refusal(mid_train, ["--tasks", "TinyChat"], capsys)
    assert "scripts.mid_train" in refusal(chat_sft, ["--tasks", "TinyChat"], capsys)
    assert "scripts.chat_sft" in refusal(chat_rl, ["--task", "TinyMath"], capsys)
    assert "scripts.chat_sft" in refusal(chat_eval, ["-a", "TinyMath"], capsys)
    assert "scripts.base_train" in refusal(base_loss, [], capsys)
    assert not base_dir.exists()


def test_an_unknown_flag_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--dept" in refusal(base_train, ["--dept=4"], capsys)
