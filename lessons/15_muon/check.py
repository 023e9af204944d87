"""Checks of lesson 15, against the singular value decomposition and the product's optimizer."""

import pytest
import torch

from lessons.compare import same
from lessons.learner import load
from nanochat import muon
from nanochat.gpt import GPT
from nanochat.gpt_config import GPTConfig
from nanochat.muon import MuonOptions
from nanochat.optim import MuonAdamW, Rates
from nanochat.runtime import Runtime

mine = load(15)
CPU = Runtime(torch.device("cpu"), torch.float32)
SHAPES = [(16, 16), (8, 40), (40, 8)]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_newton_schulz_is_that_of_nanochat(shape: tuple[int, int]) -> None:
    matrix = normal(*shape) * 3
    given = matrix.clone()
    found = mine.newton_schulz(matrix)
    same(found, muon.orthogonalize(matrix.unsqueeze(0), torch.float32)[0], f"newton_schulz of {shape}", 1e-4)
    assert torch.equal(matrix, given), "newton_schulz must leave what it is given as it was"


@pytest.mark.parametrize("shape", SHAPES)
def test_its_singular_values_are_near_one(shape: tuple[int, int]) -> None:
    values = torch.linalg.svdvals(mine.newton_schulz(normal(*shape) * 1e-3))
    lowest, highest = float(values.min()), float(values.max())
    assert lowest > 0.5, f"{shape}: the smallest singular value is {lowest:.3f}"
    assert highest < 1.3, f"{shape}: the largest singular value is {highest:.3f}"


def test_its_directions_are_those_of_the_decomposition() -> None:
    matrix = normal(12, 30)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    found = left.mT @ mine.newton_schulz(matrix) @ right.mT  # diagonal, if the directions are the matrix's own
    off = (found - torch.diag(found.diagonal())).abs().max()
    assert off < 1e-4, f"newton_schulz turns the singular directions: {off:.2g} beside the diagonal"


def test_a_matrix_of_zeros_gives_zeros_and_not_nan() -> None:
    same(mine.newton_schulz(torch.zeros(4, 6)), torch.zeros(4, 6), "newton_schulz of zeros")


@pytest.mark.parametrize("shape", SHAPES)
def test_muon_steps_are_those_of_nanochat(shape: tuple[int, int]) -> None:
    weight, theirs, state = normal(*shape, seed=1), torch.nn.Parameter(normal(*shape, seed=1)), {}
    rates = Rates(matrix_lr=0.05, muon=MuonOptions(variance_beta2=None))
    product = MuonAdamW({"w": theirs}, {"w": "matrix"}, rates, CPU)
    for step in range(6):
        gradient, momentum = normal(*shape, seed=10 + step), 0.85 + 0.02 * step
        given, theirs.grad = gradient.clone(), gradient.clone()
        product.step(1.0, momentum)
        mine.muon_step(weight, given, state, 0.05, momentum)
        assert torch.equal(given, gradient), "muon_step must leave the gradient as it was"
        same(weight, theirs, f"a weight of {shape} after step {step + 1}", 1e-4)


def model(seed: int) -> GPT:
    model = GPT(GPTConfig(sequence_len=8, vocab_size=20, n_layer=2, n_head=2, n_kv_head=2, n_embd=16))
    model.init_weights(seed)
    return model


def test_roles_are_those_of_nanochat() -> None:
    for name, weight in model(1).named_parameters():
        expected = model(1).roles()[name]
        assert mine.role(name, weight) == expected, f"{name} is {mine.role(name, weight)!r}, expected {expected!r}"


def test_training_with_it_is_training_with_the_optimizer_of_nanochat() -> None:
    ours, theirs = model(1), model(1)
    given = {"matrix": 0.02, "embedding": 0.3, "unembedding": 0.006}
    rates = Rates(0.02, 0.3, 0.006, muon=MuonOptions(variance_beta2=None))
    optimizer = mine.MuonAdamW(dict(ours.named_parameters()), given)
    product = MuonAdamW(dict(theirs.named_parameters()), theirs.roles(), rates, CPU)
    rows = torch.randint(20, (4, 9), generator=torch.Generator().manual_seed(1))
    for step in range(5):
        for each in (ours, theirs):
            each(rows[:, :-1], rows[:, 1:]).backward()
        optimizer.step(1 - step / 10, 0.9)
        product.step(1 - step / 10, 0.9)
        optimizer.zero_grad()
        product.zero_grad()
        left = [name for name, weight in ours.named_parameters() if weight.grad is not None and weight.grad.any()]
        assert not left, f"zero_grad leaves the gradients of {left[:3]}"
        for (name, found), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            same(found, expected, f"{name} after step {step + 1}", 2e-3)
