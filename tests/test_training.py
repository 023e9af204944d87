"""What every loop shares: gradients of a step however it is cut, a stopped run that goes on bitwise, honest numbers."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny import CPU, plan_of, random_model, tiny_model, tiny_tokenizer
from two_ranks import averaged, batches, results

from nanochat import dataset, paths, training
from nanochat.chunked_loss import loss_block
from nanochat.engine import Engine
from nanochat.gpt import GPT
from nanochat.gpt_config import config_for_depth
from nanochat.optim import MuonAdamW, Rates
from nanochat.runtime import Runtime
from nanochat.tokenizer import RustBPETokenizer
from nanochat.training import Validation, accumulate, compiled, gradient_norm, start_finetuning

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


def test_the_gradients_length_is_torchs_and_a_fault_on_one_rank_is_seen_by_all() -> None:
    model = tiny_model(n_layer=1)
    accumulate(model, iter(batches(1)), 2, CPU)
    expected = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9).item()
    assert gradient_norm(model, CPU) == pytest.approx(expected)
    squares = [sum(float(g.double().square().sum()) for g in found["gradients"].values()) for found in results()]
    for found in results():
        assert found["norms"][0] == pytest.approx((sum(squares) / 2) ** 0.5)
        assert math.isnan(found["norms"][1])


def test_a_step_without_a_trained_token_is_zero_and_changes_nothing() -> None:
    model = tiny_model(n_layer=1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    empty = (torch.ones(2, 8, dtype=torch.long), torch.full((2, 8), -1))
    assert accumulate(model, iter([empty, empty]), 2, CPU) == 0.0
    optimizer = MuonAdamW(dict(model.named_parameters()), model.roles(), Rates(), CPU)
    optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    ("device", "mode", "minutes", "expected"),
    [
        ("cpu", "auto", 1, False), ("cpu", "auto", 4, False), ("cpu", "auto", 6, True), ("cuda", "auto", 1, True),
        ("mps", "auto", 9, False), ("cpu", "on", 1, True), ("cuda", "off", 9, False),
    ],
)  # fmt: skip
def test_compiling_is_decided_by_the_plan(
    device: str, mode: training.CompileMode, minutes: float, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda function, dynamic=None: asked.append(function) or function)
    model = tiny_model()
    made = plan_of(model)
    steps = round(minutes * 60 * 1.5e11 / (made.total_flops / made.num_iterations))
    compiled(model, mode, plan_of(model, num_iterations=steps), Runtime(torch.device(device), torch.float32))
    assert bool(asked) == expected
    assert (loss_block in asked) == (expected and device == "cuda")  # a CPU is faster in blocks that fit its cache


def test_only_batches_of_the_plans_shape_go_through_the_compiled_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each length of a sample and each width of a task's rows used to be compiled anew."""
    shapes: list[tuple[int, ...]] = []

    def watching(function: Callable[[torch.Tensor], torch.Tensor], dynamic: bool) -> Callable[..., torch.Tensor]:
        assert not dynamic
        return lambda idx: shapes.append(tuple(idx.shape)) or function(idx)

    monkeypatch.setattr(torch, "compile", watching)
    model, expected = tiny_model(n_layer=1), tiny_model(n_layer=1)
    compiled(model, "on", plan_of(model), CPU)
    idx = torch.ones(2, 64, dtype=torch.long)
    with torch.no_grad():
        assert torch.equal(model(idx), expected(idx))
        assert torch.equal(model(idx[:, :50]), expected(idx[:, :50]))
    Engine(model, tiny_tokenizer()).generate_batch([[1, 2, 3]] * 2, max_tokens=4)
    assert shapes == [(2, 64)]
    assert model.state_dict().keys() == expected.state_dict().keys()


# --- runs in a base directory --------------------------------------------------------------------------------------


def test_validation_measures_the_whole_of_a_small_split_and_no_more_than_asked_for(base: Path) -> None:
    """It used to end with the first batches of a small split, those of its longest documents."""
    tokenizer = RustBPETokenizer.from_directory(paths.tokenizer_dir())
    documents = tokenizer.encode(list(dataset.iterate_documents("val", "tinyworld")))
    model = random_model(config_for_depth(1, 400, 64))
    made = plan_of(model, device_batch_size=8)
    whole = Validation(10**9, made, tokenizer, "tinyworld", CPU).measure(model)
    text = sum(map(len, documents))
    assert text <= whole.tokens <= text * 1.1 + len(documents)  # pieces are led by <|bos|>, which is predicted too
    part = Validation(3 * 8 * 64, made, tokenizer, "tinyworld", CPU).measure(model)
    assert part.tokens == 3 * 8 * 64
    assert part == Validation(3 * 8 * 64, made, tokenizer, "tinyworld", CPU).measure(model)


def test_fine_tuning_without_a_number_of_steps_takes_those_that_its_tokens_fill() -> None:
    model = tiny_model()
    before = plan_of(model, total_batch_size=1024)
    loaded = (model, tiny_tokenizer(), {"plan": before.to_dict(), "tag": "d1", "stage": "mid", "step": 9})
    run = start_finetuning(
        "sft", loaded, training.DocumentLoader.__new__(training.DocumentLoader), CPU,
        device_batch_size=2, total_tokens=10_400.0, init_lr_frac=0.1, warmdown_ratio=1.0,
    )  # fmt: skip
    assert (run.plan.total_batch_size, run.plan.num_iterations) == (1024, 10)
    assert run.optimizer.rates.matrix_lr == pytest.approx(0.1 * before.matrix_lr)
    assert run.notes == {"pretraining": before.to_dict(), "from": "mid d1 step 9"}
