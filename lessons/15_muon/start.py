"""Lesson 15: Muon by hand, and one optimizer for the whole model.

Shapes: R rows, C columns. `weights` maps names (lesson 10's) to parameters; their gradients are in `.grad`.

The check calls these by name: newton_schulz, muon_step, role, MuonAdamW. Any design of your own is welcome behind them.
"""

from collections.abc import Mapping

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic a x + b x^3 + c x^5: https://kellerjordan.github.io/posts/muon/"""

RATES = {"matrix": 0.02, "embedding": 0.3, "unembedding": 0.006}
"""By role. The tables' are Adam's at width 256 or so; nanochat's are in nanochat/plan.py."""

State = dict[str, torch.Tensor | int]


def newton_schulz(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Roughly the nearest matrix (R, C) whose singular values are all 1: they end up in about 0.7 .. 1.2.

    The matrix over its Frobenius norm (plus 1e-7), transposed where it is taller than wide; then `steps` times
    X <- a X + (b G + c G G) X with G = X Xᵀ; then transposed back.
    """
    raise NotImplementedError("lesson 15: newton_schulz is yours to write")


def muon_step(weight: torch.Tensor, gradient: torch.Tensor, state: State, rate: float, momentum: float = 0.95) -> None:
    """One update in place of a matrix (R, C); `state` is its own and empty before the first step.

    The buffer, which begins at zero, moves towards the gradient by 1 - momentum of the way. The update is
    newton_schulz of a point between the gradient and the buffer, by momentum of the way (Nesterov). The weight moves
    against it by rate x max(1, R / C)^0.5.
    """
    raise NotImplementedError("lesson 15: muon_step is yours to write")


def role(name: str, weight: torch.Tensor) -> str:
    """ "embedding" for the table at the start, "unembedding" for the head, "matrix" for what stands in a layer."""
    raise NotImplementedError("lesson 15: role is yours to write")


class MuonAdamW:
    """Muon for matrices, Adam (lesson 14's, betas 0.8 and 0.95, eps 1e-10) for the two tables."""

    def __init__(self, weights: Mapping[str, torch.Tensor], rates: Mapping[str, float] = RATES):
        raise NotImplementedError("lesson 15: MuonAdamW.__init__ is yours to write")

    @torch.no_grad()
    def step(self, lr_multiplier: float = 1.0, momentum: float = 0.95) -> None:
        """One update of all weights from their gradients; every rate is multiplied by `lr_multiplier`."""
        raise NotImplementedError("lesson 15: MuonAdamW.step is yours to write")

    def zero_grad(self) -> None:
        """Forget the gradients, or they would add up over the steps."""
        raise NotImplementedError("lesson 15: MuonAdamW.zero_grad is yours to write")
