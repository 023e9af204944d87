"""Muon's arithmetic: singular values come near one, rows even out and norms stay, decay is held back where it must."""

import pytest
import torch

from nanochat.muon import decay_, even_out_, orthogonalize, variance_shape

BOUNDS = {"newton_schulz": (0.45, 1.25), "polar_express": (0.84, 1.13)}
METHODS = tuple(BOUNDS)


@pytest.mark.parametrize("shape", [(64, 16), (16, 64), (32, 32), (5, 1), (3, 7, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_singular_values_come_near_one_and_directions_stay(
    shape: tuple[int, ...], dtype: torch.dtype, method: str
) -> None:
    """As steep as a gradient is: singular values over two orders of magnitude."""
    generator = torch.Generator().manual_seed(1)
    u, _, v = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
    spread = torch.logspace(0, -2, u.size(-1))
    steep = (u * spread) @ v
    made = orthogonalize(steep.unsqueeze(0) if steep.dim() == 2 else steep, dtype, method)
    assert made.dtype == torch.float32
    values = torch.linalg.svdvals(made)
    low, high = (0.6, 1.3) if dtype == torch.bfloat16 or method == "newton_schulz" else BOUNDS[method]
    assert low <= values.min() <= values.max() <= high
    along = (u.mT @ made @ v.mT).diagonal(dim1=-2, dim2=-1)  # made in the singular vectors of what went in
    assert (along > 0.5).all()


@pytest.mark.parametrize("method", METHODS)
def test_every_singular_value_from_a_thousandth_on_lands_within_the_methods_bounds(method: str) -> None:
    """Diagonal matrices with one large value, so that dividing by the norm leaves the others where they were put."""
    low, high = BOUNDS[method]
    values = torch.logspace(-3, 0, 500, dtype=torch.float64)
    matrices = torch.diag_embed(torch.stack((torch.ones_like(values), values * 0.99), dim=1))
    made = orthogonalize(matrices / 1.5, torch.float64, method).diagonal(dim1=-2, dim2=-1)
    assert low <= made.min() <= made.max() <= high
    assert made.dtype == torch.float64


@pytest.mark.parametrize("method", METHODS)
def test_a_zero_gradient_stays_zero_and_its_size_does_not_matter(method: str) -> None:
    assert torch.equal(orthogonalize(torch.zeros(2, 4, 3), torch.float32, method), torch.zeros(2, 4, 3))
    matrix = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(2))
    once, larger = (orthogonalize(factor * matrix, torch.float32, method) for factor in (1, 1000))
    torch.testing.assert_close(once, larger, atol=1e-4, rtol=0)


def test_a_stack_is_what_its_matrices_are_alone() -> None:
    stack = torch.randn(5, 7, 4, generator=torch.Generator().manual_seed(3))
    for method in METHODS:
        together = orthogonalize(stack, torch.float32, method)
        for matrix, made in zip(stack, together, strict=True):
            alone = orthogonalize(matrix.unsqueeze(0), torch.float32, method)[0]
            torch.testing.assert_close(made, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(3, 8, 5), (3, 5, 8), (2, 4, 4)])
def test_evening_out_gives_the_lines_of_the_longer_side_one_size_and_keeps_the_norm(shape: tuple[int, ...]) -> None:
    """The first time, when the running mean is of this update alone, all lines come out equally long."""
    updates = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    before = torch.linalg.matrix_norm(updates)
    squares = torch.zeros(shape[0], *variance_shape(*shape[1:]))
    made = even_out_(updates.clone(), squares, 0.95)
    torch.testing.assert_close(torch.linalg.matrix_norm(made), before)
    lines = made.norm(dim=-1 if shape[1] >= shape[2] else -2)
    torch.testing.assert_close(lines, lines[:, :1].expand_as(lines))
    assert squares.numel() == shape[0] * max(shape[1:])
    torch.testing.assert_close(squares.sum(), 0.05 * before.square().sum() / min(shape[1:]))


def test_a_zero_update_is_not_divided_by_zero() -> None:
    assert torch.equal(even_out_(torch.zeros(1, 3, 2), torch.zeros(1, 3, 1), 0.9), torch.zeros(1, 3, 2))


def test_cautious_decay_shrinks_only_weights_that_the_update_does_not_let_grow() -> None:
    weights = torch.tensor([2.0, -2.0, 2.0, -2.0, 2.0])
    updates = torch.tensor([1.0, -1.0, -1.0, 1.0, 0.0])  # subtracted: the first two shrink, the next two grow
    cautious, plain = weights.clone(), weights.clone()
    decay_(cautious, updates, 0.1, cautious=True)
    decay_(plain, updates, 0.1, cautious=False)
    torch.testing.assert_close(cautious, torch.tensor([1.8, -1.8, 2.0, -2.0, 1.8]))
    torch.testing.assert_close(plain, weights * 0.9)
    decay_(plain, updates, 0.0, cautious=True)
    torch.testing.assert_close(plain, weights * 0.9)
