"""How the checks compare: in words, so that a failure tells what to look at."""

import torch


def same(mine: object, oracle: torch.Tensor, what: str, tolerance: float = 1e-5) -> None:
    """Assert that `mine` is a tensor of the oracle's shape and values; `what` names it in the failure."""
    assert isinstance(mine, torch.Tensor), f"{what}: a tensor is expected, and this is {type(mine).__name__}"
    shapes = f"has the shape {tuple(mine.shape)}, expected is {tuple(oracle.shape)}"
    assert mine.shape == oracle.shape, f"{what} {shapes}"
    assert not mine.isnan().any(), f"{what} has values that are no numbers (NaN)"
    mine, oracle = mine.detach(), oracle.detach()
    off = (mine.double() - oracle.double()).abs()
    if off.numel() and off.max() > tolerance * max(1.0, float(oracle.double().abs().max())):
        place = tuple(int(i) for i in torch.unravel_index(off.argmax(), off.shape))
        raise AssertionError(
            f"{what} is off by up to {off.max():.2g}: at {place} it is {mine[place]:.6g}, expected {oracle[place]:.6g}"
        )
