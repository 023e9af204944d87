"""Lesson 14: SGD, Adam, AdamW, and the rate over the run.

Every step changes `weight` in place, given its gradient of the same shape. `state` is a dict that is empty before the
first step and is handed in again at each next one: whatever an optimizer remembers of a weight, it keeps there.

The check calls all functions of this file by name; behind the names any design of your own is welcome.
"""

import torch

State = dict[str, torch.Tensor | int]


def sgd_step(weight: torch.Tensor, gradient: torch.Tensor, state: State, rate: float, momentum: float = 0.0) -> None:
    """v = momentum x v + gradient, from v = 0; weight -= rate x v."""
    raise NotImplementedError("lesson 14: sgd_step is yours to write")


def adam_step(
    weight: torch.Tensor,
    gradient: torch.Tensor,
    state: State,
    rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> None:
    """weight -= rate x m / (sqrt(s) + eps) (arXiv:1412.6980).

    m and s are running means of the gradient and of its square, by beta1 and beta2, each divided by 1 - beta^t at step
    t = 1, 2, .. since they begin at zero.
    """
    raise NotImplementedError("lesson 14: adam_step is yours to write")


def adamw_step(
    weight: torch.Tensor,
    gradient: torch.Tensor,
    state: State,
    rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> None:
    """First the weight shrinks by rate x weight_decay of itself, then Adam's step (arXiv:1711.05101)."""
    raise NotImplementedError("lesson 14: adamw_step is yours to write")


def decays(name: str, weight: torch.Tensor) -> bool:
    """Whether a weight of lesson 10 or 12 gets weight decay: the layers' matrices alone, no table and no vector."""
    raise NotImplementedError("lesson 14: decays is yours to write")


def trapezoid(step: int, steps: int, warmup: int = 0, warmdown: float = 0.4) -> float:
    """The factor on the rate at step 0 .. steps - 1: up, level, down.

    It rises as (step + 1) / warmup over the first `warmup` steps. It falls as (steps - step) / falling over the last
    falling = round(warmdown x steps) steps. Where the two overlap the lower one counts; elsewhere it is 1.
    """
    raise NotImplementedError("lesson 14: trapezoid is yours to write")


def cosine(step: int, steps: int, warmup: int = 0) -> float:
    """The factor on the rate: trapezoid's rise, then half a wave from 1 at step `warmup` towards 0."""
    raise NotImplementedError("lesson 14: cosine is yours to write")
