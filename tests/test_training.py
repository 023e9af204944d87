"""What every loop shares: gradients of a step however it is cut, a stopped run that goes on bitwise, honest numbers."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tiny import CPU, random_model, rank, tiny_model, tiny_tokenizer
from two_ranks import averaged, batches, results

from nanochat import dataset, hardware, paths, tinyworld, training, training_run
from nanochat.checkpoint_files import save_checkpoint
from nanochat.checkpoint_manager import find_checkpoint, load_model
from nanochat.command import UserError
from nanochat.engine import Engine
from nanochat.gpt import GPT
from nanochat.gpt_config import config_for_depth
from nanochat.kv_cache import KVCache
from nanochat.log import read_metrics
from nanochat.optim import MuonAdamW, Rates
from nanochat.plan import TrainPlan, plan_training
from nanochat.rollout import PromptOrder
from nanochat.runtime import Runtime
from nanochat.tokenizer import RustBPETokenizer
from nanochat.training import Validation, accumulate, compiled, start_finetuning
from nanochat.training_run import Progress, Run, clock
from scripts import base_train, chat_sft


def plan(model: GPT, **given: int) -> TrainPlan:
    flags = {"device_batch_size": 2, "world_size": 1, "total_batch_size": None, "num_iterations": 10, **given}
    rates = {"matrix_lr": 0.02, "embedding_lr": 0.2, "unembedding_lr": 0.004}
    return plan_training(model.config, target_param_data_ratio=1.0, **rates, **flags)  # type: ignore[arg-type]


# --- when ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "steps", "expected"),
    [(3, 10, [3, 6, 9, 10]), (5, 10, [5, 10]), (99, 10, [10]), (0, 10, []), (-1, 10, [])],
)
def test_something_is_due_every_so_often_and_at_the_end(every: int, steps: int, expected: list[int]) -> None:
    model = tiny_model()
    made = plan(model, num_iterations=steps)
    optimizer = MuonAdamW(dict(model.named_parameters()), model.roles(), Rates(), CPU)

    def due_at(started_at: int) -> list[int]:
        run = Run("base", "d", made, CPU, model, optimizer, PromptOrder(1, 1, CPU, 0), Progress.of(made, CPU))
        run.started_at = started_at
        due = []
        for run.progress.step in range(started_at, steps + 1):
            if run.due(every):
                due.append(run.progress.step)
        return due

    assert due_at(0) == expected
    assert due_at(5) == [step for step in expected if step > 5]  # the run that saved step 5 has done it


# --- gradients ----------------------------------------------------------------------------------------------------


def gradients(model: GPT) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def big_batch(ranks: int) -> tuple[torch.Tensor, torch.Tensor]:
    every = [batch for number in range(ranks) for batch in batches(number)]
    return torch.cat([inputs for inputs, _ in every]), torch.cat([targets for _, targets in every])


def plain_loss(model: GPT, ranks: int) -> torch.Tensor:
    inputs, targets = big_batch(ranks)
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=-1)


def test_micro_steps_have_the_gradient_of_one_big_batch() -> None:
    """Though one of them has fewer trained tokens: every token counts the same, wherever it stands."""
    model = tiny_model(n_layer=1)
    loss = accumulate(model, iter(batches(1)), 2, CPU)
    ours = gradients(model)
    inputs = [inputs for inputs, _ in batches(1)]
    targets = [targets for _, targets in batches(1)]
    expected = F.cross_entropy(model(torch.cat(inputs)).flatten(0, 1), torch.cat(targets).flatten(), ignore_index=-1)
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-6)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-6, rtol=1e-4)


def test_two_ranks_have_the_loss_and_gradient_of_one_big_batch() -> None:
    model = tiny_model(n_layer=1)
    expected = plain_loss(model, ranks=2)
    expected.backward()
    assert [found["loss"] for found in results()] == pytest.approx([expected.item()] * 2, abs=1e-6)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(averaged("gradients")[name], gradient, atol=1e-6, rtol=1e-4)


def test_a_step_without_a_trained_token_is_zero_and_changes_nothing() -> None:
    model = tiny_model(n_layer=1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    empty = (torch.ones(2, 8, dtype=torch.long), torch.full((2, 8), -1))
    assert accumulate(model, iter([empty, empty]), 2, CPU) == 0.0
    optimizer = MuonAdamW(dict(model.named_parameters()), model.roles(), Rates(), CPU)
    optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


# --- numbers ------------------------------------------------------------------------------------------------------


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clock says next."""
    moments: list[float] = []
    monkeypatch.setattr(training_run.time, "perf_counter", lambda: moments.pop(0))
    return moments


def test_the_records_of_two_steps(seconds: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(random_model(config_for_depth(1, 300, 64)), num_iterations=4)
    monkeypatch.setattr(hardware, "peak_flops", lambda name: 1e9)
    progress = Progress.of(made, rank(0, 2))
    seconds += [10.0, 12.0, 20.0, 24.0]
    progress.begin(CPU)
    first = progress.end(5.0, 1.0, CPU)
    progress.begin(CPU)
    second = progress.end(3.0, 0.5, CPU)
    tokens = made.total_batch_size
    assert first == pytest.approx(
        {
            "step": 1, "tokens": tokens, "loss": 5.0, "smooth_loss": 5.0, "lr_multiplier": 1.0, "step_seconds": 2.0,
            "tokens_per_second": tokens / 2, "train_seconds": 2.0, "mfu": made.total_flops / 4 / 2 / 2e9,
        }
    )  # fmt: skip
    assert (second["tokens"], second["smooth_loss"], second["train_seconds"]) == (2 * tokens, 4.0, 6.0)
    line = progress.line(second)
    assert line.startswith("step 00002/00004 | loss 4.0000 | lr x0.50 | 4000 ms | ")
    assert f"{tokens / 4:,.0f} tokens/s | mfu {float(second['mfu']):.1%} | 0:06 done, 0:06 left" in line


def test_the_smooth_loss_follows_the_last_twenty_steps_or_so(seconds: list[float]) -> None:
    progress = Progress.of(plan(tiny_model()), CPU)
    seconds += [float(n) for n in range(2 * 140)]
    for loss in [9.0] * 40 + [1.0] * 100:
        progress.begin(CPU)
        record = progress.end(loss, 1.0, CPU)
    assert record["smooth_loss"] == pytest.approx(1 + 8 * 0.95**100)
    assert "mfu" not in record


@pytest.mark.parametrize(
    ("length", "shown"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1h00m"), (360_125, "100h02m")]
)
def test_a_length_of_time_is_shown_in_minutes_or_hours(length: float, shown: str) -> None:
    assert clock(length) == shown


@pytest.mark.parametrize(
    ("device", "mode", "minutes", "expected"),
    [
        ("cpu", "auto", 1, False), ("cpu", "auto", 3, True), ("cuda", "auto", 1, True), ("mps", "auto", 9, False),
        ("cpu", "on", 1, True), ("cuda", "off", 9, False),
    ],
)  # fmt: skip
def test_compiling_is_decided_by_the_plan(
    device: str, mode: training.CompileMode, minutes: float, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: asked.append(function) or function)
    model = tiny_model()
    made = plan(model)
    steps = round(minutes * 60 * 1.5e11 / (made.total_flops / made.num_iterations))
    compiled(model, mode, plan(model, num_iterations=steps), Runtime(torch.device(device), torch.float32))
    assert bool(asked) == expected


def test_only_batches_of_the_plans_shape_go_through_the_compiled_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each length of a sample and each width of a task's rows used to be compiled anew."""
    shapes: list[tuple[int, ...]] = []

    def watching(function: Callable[[torch.Tensor], torch.Tensor], dynamic: bool) -> Callable[..., torch.Tensor]:
        assert not dynamic
        return lambda idx: shapes.append(tuple(idx.shape)) or function(idx)

    monkeypatch.setattr(torch, "compile", watching)
    model, expected = tiny_model(n_layer=1), tiny_model(n_layer=1)
    compiled(model, "on", plan(model), CPU)
    idx = torch.ones(2, 64, dtype=torch.long)
    with torch.no_grad():
        assert torch.equal(model(idx), expected(idx))
        assert torch.equal(model(idx[:, :50]), expected(idx[:, :50]))
    Engine(model, tiny_tokenizer()).generate_batch([[1, 2, 3]] * 2, max_tokens=4)
    with torch.no_grad():
        model.hidden(idx, KVCache(model.config, 2, CPU.device, CPU.dtype))
    assert shapes == [(2, 64)]
    assert model.state_dict().keys() == expected.state_dict().keys()


# --- runs in a base directory --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base directory with text and a tokenizer."""
    folder = tmp_path_factory.mktemp("made") / "base"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(folder))
        texts = list(tinyworld.documents(seed=1, megabytes=0.3))
        dataset.write_shards(texts, "tinyworld")
        RustBPETokenizer.train_from_iterator(texts[:100], vocab_size=400).save(paths.tokenizer_dir())
    return folder


@pytest.fixture
def base(made_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same; a test's checkpoints have tags of their own."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(made_base))
    return made_base


def test_validation_measures_the_whole_of_a_small_split_and_no_more_than_asked_for(base: Path) -> None:
    """It used to end with the first batches of a small split, those of its longest documents."""
    tokenizer = RustBPETokenizer.from_directory(paths.tokenizer_dir())
    documents = tokenizer.encode(list(dataset.iterate_documents("val", "tinyworld")))
    model = random_model(config_for_depth(1, 400, 64))
    made = plan(model, device_batch_size=8)
    whole = Validation(10**9, made, tokenizer, "tinyworld", CPU).measure(model)
    text = sum(map(len, documents))
    assert text <= whole.tokens <= text * 1.1 + len(documents)  # pieces are led by <|bos|>, which is predicted too
    part = Validation(3 * 8 * 64, made, tokenizer, "tinyworld", CPU).measure(model)
    assert part.tokens == 3 * 8 * 64
    assert part == Validation(3 * 8 * 64, made, tokenizer, "tinyworld", CPU).measure(model)


def kill_in_step(number: int, script: object, patch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the script computes that step."""
    real, calls = accumulate, 0

    def interrupted(*values: object) -> float:
        nonlocal calls
        calls += 1
        if calls == number:
            raise KeyboardInterrupt
        return real(*values)  # type: ignore[arg-type]

    patch.setattr(script, "accumulate", interrupted)


def stopped_and_resumed(main: Callable[[int | None], None], script: object) -> None:
    """Six steps of which the fifth is interrupted, then on from step 3 with generators that stand elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        kill_in_step(5, script, patch)
        with pytest.raises(KeyboardInterrupt):
            main(None)
    random.seed(99)
    torch.manual_seed(99)
    main(3)


def same_run(stage: str, tag: str, other: str) -> None:
    """Weights, optimizer, data position, generators, averages and metrics of step 6 are the same to the last bit."""
    folders = [paths.checkpoints_dir(stage, name) / "step_000006" for name in (tag, other)]
    for name in ("model.safetensors", "optim.safetensors"):
        first, second = (load_file(folder / name) for folder in folders)
        assert first.keys() == second.keys()
        assert all(torch.equal(value, second[key]) for key, value in first.items()), name
    first_state, second_state = (json.loads((folder / "state.json").read_text()) for folder in folders)
    assert first_state["ranks"] == second_state["ranks"]
    assert first_state["progress"]["smooth_loss"] == second_state["progress"]["smooth_loss"]

    def measured(folder: Path) -> dict[tuple[object, str], object]:
        clocked = ("step_seconds", "tokens_per_second", "train_seconds")
        records = read_metrics(folder.parent / "metrics.jsonl")
        assert [record["step"] for record in records if "loss" in record] == [1, 2, 3, 4, 5, 6]
        return {(r["step"], key): value for r in records for key, value in r.items() if key not in clocked}

    assert measured(folders[0]) == measured(folders[1])


def pretrain(tag: str, resume_from_step: int | None = None, **flags: object) -> None:
    given = {
        "depth": 1, "max_seq_len": 64, "device_batch_size": 2, "total_batch_size": 256, "num_iterations": 6,
        "eval_every": 2, "eval_tokens": 512, "core_every": 0, "sample_every": 0, "save_every": 3, "data": "tinyworld",
        "device_type": "cpu", "dtype": "float32", "compile": "off", "warmup_iters": 2, "weight_decay": 0.1, **flags,
    }  # fmt: skip
    base_train.main(base_train.Config(model_tag=tag, resume_from_step=resume_from_step, **given))  # type: ignore[arg-type]


def test_a_stopped_pretraining_goes_on_bitwise_as_if_it_had_not(base: Path) -> None:
    pretrain("whole")
    stopped_and_resumed(lambda step: pretrain("stopped", step), base_train)
    same_run("base", "whole", "stopped")
    last = find_checkpoint("base", "whole", 6)
    assert last.meta["source"] == "tinyworld"
    first_loss, *_, last_loss = (r["loss"] for r in read_metrics(last.folder.parent / "metrics.jsonl") if "loss" in r)
    assert isinstance(first_loss, float)
    assert isinstance(last_loss, float)
    assert last_loss < first_loss


def test_a_stopped_fine_tuning_goes_on_bitwise_as_if_it_had_not(base: Path, tmp_path: Path) -> None:
    for tag in ("sft-whole", "sft-stopped"):
        pretrain(tag, num_iterations=1)
    chats = tmp_path / "chats.jsonl"
    lines = [
        json.dumps(
            [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": "a number " * (n % 9)}]
        )
        for n in range(1, 60)
    ]
    chats.write_text("\n".join(lines), encoding="utf-8")

    def finetune(tag: str, resume_from_step: int | None) -> None:
        config = chat_sft.Config(
            tasks=(), data=(str(chats),), source="base", model_tag=tag, device_batch_size=1, total_batch_size=128,
            num_iterations=6, init_lr_frac=0.5, eval_every=2, eval_batches=1, save_every=3,
            resume_from_step=resume_from_step, device_type="cpu", dtype="float32", compile="off",
        )  # fmt: skip
        chat_sft.main(config)

    finetune("sft-whole", None)
    stopped_and_resumed(lambda step: finetune("sft-stopped", step), chat_sft)
    same_run("sft", "sft-whole", "sft-stopped")
    meta = find_checkpoint("sft", "sft-whole").meta
    assert meta["from"] == "base sft-whole step 1"
    assert meta["pretraining"] == find_checkpoint("base", "sft-whole").meta["plan"]


def test_a_run_cannot_resume_another_model_tokenizer_or_number_of_ranks(base: Path) -> None:
    pretrain("refused", num_iterations=1)
    with pytest.raises(
        UserError, match=r"another model than this run's \(sequence_len 64 instead of 32\); give the flags"
    ):
        pretrain("refused", 1, num_iterations=2, max_seq_len=32)
    with pytest.raises(UserError, match=r"step 1 is not before this run's last, 1: nothing is left to do; --num_it"):
        pretrain("refused", 1, num_iterations=1)
    with pytest.raises(UserError, match="no base checkpoint of refused at step 7; there are 1"):
        pretrain("refused", 7)
    found = find_checkpoint("base", "refused")
    model, tokenizer, _ = load_model("base", CPU, "refused")
    made = plan(model)
    runtime = rank(1, 2)
    loader = training.DocumentLoader(tokenizer, 2, 64, runtime, "train", "tinyworld")
    optimizer = MuonAdamW(dict(model.named_parameters()), model.roles(), Rates(), CPU)
    with pytest.raises(UserError, match=r"was saved by 1 ranks and data goes on with as many; this run has 2"):
        Run("base", "refused", made, runtime, model, optimizer, loader, Progress.of(made, CPU)).resume(found)
    altered = {**found.meta, "tokenizer_sha256": "of another"}
    state = json.loads((found.folder / "state.json").read_text())
    save_checkpoint(paths.checkpoints_dir("base", "refused"), 1, model.state_dict(), altered, {}, state)
    with pytest.raises(UserError, match="was trained with another tokenizer than the one in"):
        pretrain("refused", 1, num_iterations=2)


def test_fine_tuning_without_a_number_of_steps_takes_those_that_its_tokens_fill() -> None:
    model = tiny_model()
    before = plan(model, total_batch_size=1024)
    loaded = (model, tiny_tokenizer(), {"plan": before.to_dict(), "tag": "d1", "stage": "mid", "step": 9})
    run = start_finetuning(
        "sft", loaded, training.DocumentLoader.__new__(training.DocumentLoader), CPU,
        device_batch_size=2, total_tokens=10_400.0, init_lr_frac=0.1, warmdown_ratio=1.0,
    )  # fmt: skip
    assert (run.plan.total_batch_size, run.plan.num_iterations) == (1024, 10)
    assert run.optimizer.rates.matrix_lr == pytest.approx(0.1 * before.matrix_lr)
    assert run.notes == {"pretraining": before.to_dict(), "from": "mid d1 step 9"}
