"""Checks of lesson 14, against torch.optim and the product's schedules."""

from collections.abc import Callable

import pytest
import torch

from lessons.compare import same
from lessons.learner import load
from nanochat.gpt import GPT
from nanochat.gpt_config import GPTConfig
from nanochat.schedule import lr_multiplier

mine = load(14)
STEPS = 12


def compare(
    step: Callable[..., None], torchs: Callable[[list[torch.Tensor]], torch.optim.Optimizer], what: str
) -> None:
    """Some steps with gradients of very different sizes and a rate that changes, side by side."""
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(4, 3, generator=generator)
    ours, theirs, state = start.clone(), start.clone().requires_grad_(), {}
    optimizer = torchs([theirs])
    [group] = optimizer.param_groups
    base = group["lr"]
    for number in range(STEPS):
        gradient = torch.randn(4, 3, generator=generator) * torch.tensor([1e-3, 1.0, 50.0])
        rate = base * (1 - number / STEPS)
        group["lr"], theirs.grad = rate, gradient.clone()
        optimizer.step()
        given = gradient.clone()
        assert step(ours, given, state, rate) is None, f"{what} changes the weight in place and gives nothing back"
        assert torch.equal(given, gradient), f"{what} must leave the gradient as it was"
        same(ours, theirs, f"the weight after step {number + 1} of {what}")


def test_sgd() -> None:
    compare(lambda *given: mine.sgd_step(*given), lambda p: torch.optim.SGD(p, lr=0.1), "SGD")


def test_sgd_with_momentum() -> None:
    compare(
        lambda *given: mine.sgd_step(*given, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        "SGD with momentum",
    )


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.8, 0.95)])
def test_adam(betas: tuple[float, float]) -> None:
    compare(
        lambda *given: mine.adam_step(*given, betas=betas),
        lambda p: torch.optim.Adam(p, lr=0.1, betas=betas),
        f"Adam with betas {betas}",
    )


def test_a_step_of_adam_does_not_depend_on_the_size_of_the_gradient() -> None:
    moved = []
    for scale in (1e-4, 1.0, 1e4):
        weight, state = torch.zeros(3), {}
        for direction in ([1.0, -2.0, 3.0], [2.0, -1.0, 1.0]):
            mine.adam_step(weight, torch.tensor(direction) * scale, state, 0.1, eps=0.0)
        moved.append(weight)
    same(moved[0], moved[1], "what two steps with a ten thousandth of the gradient change")
    same(moved[2], moved[1], "what two steps with ten thousand times the gradient change")


def test_adamw_decays_beside_the_gradient() -> None:
    compare(
        lambda *given: mine.adamw_step(*given, weight_decay=0.3),
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.3),
        "AdamW (the decay is not part of the gradient, or Adam would divide it away)",
    )


def test_each_weight_has_a_state_of_its_own() -> None:
    for step in (
        lambda w, g, s: mine.sgd_step(w, g, s, 0.1, momentum=0.9),
        lambda w, g, s: mine.adam_step(w, g, s, 0.1),
    ):
        first, second, state, other = torch.zeros(2), torch.zeros(2), {}, {}
        step(first, torch.ones(2), state)
        step(second, torch.ones(2), other)
        same(second, first, "the first step of a second weight, whose state is empty")
        assert state, "nothing is kept in `state`: where does the momentum live?"


def test_matrices_of_layers_decay_and_nothing_else_does() -> None:
    model = GPT(GPTConfig(sequence_len=4, vocab_size=8, n_layer=2, n_head=1, n_kv_head=1, n_embd=8, smear=True))
    for name, weight in model.named_parameters():
        expected = model.roles()[name] == "matrix"
        assert mine.decays(name, weight) is expected, f"{name} is {'' if expected else 'no '}matrix of a layer"
    bias = torch.zeros(8)
    assert mine.decays("transformer.h.0.attn.c_q.bias", bias) is False, "a vector is no matrix"


@pytest.mark.parametrize(("steps", "warmup", "warmdown"), [(10, 0, 0.4), (100, 7, 0.2), (10, 5, 0.9), (7, 0, 0.0)])
def test_the_trapezoid_is_that_of_nanochat(steps: int, warmup: int, warmdown: float) -> None:
    for step in range(steps):
        found, expected = mine.trapezoid(step, steps, warmup, warmdown), lr_multiplier(step, steps, warmup, warmdown)
        assert found == pytest.approx(expected), (
            f"step {step} of {steps}, warm-up {warmup}, warm-down {warmdown}: {found:.4f}, expected {expected:.4f}"
        )


@pytest.mark.parametrize(("steps", "warmup"), [(10, 0), (100, 7)])
def test_the_cosine_is_that_of_nanochat(steps: int, warmup: int) -> None:
    for step in range(steps):
        found, expected = mine.cosine(step, steps, warmup), lr_multiplier(step, steps, warmup, shape="cosine")
        assert found == pytest.approx(expected), (
            f"step {step} of {steps}, warm-up {warmup}: {found:.4f}, expected {expected:.4f}"
        )
