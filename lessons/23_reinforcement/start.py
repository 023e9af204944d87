"""Lesson 23: learning from a reward: samples of the model's own, judged, and made likelier or less likely.

The check calls these by name: sample_answers, advantages, policy_loss, reinforce_step, pass_at_k.

Shapes: P prompts, S samples of each, N = P x S, T tokens, V vocabulary. `model(ids)` gives logits (N, T, V).
"""

from collections.abc import Callable
from typing import Protocol

import torch

from nanochat.gpt import GPT

Reward = Callable[[list[int], list[int]], float]


class Optimizer(Protocol):
    """Any: torch's, the product's, yours."""

    def step(self) -> object: ...
    def zero_grad(self) -> object: ...


def sample_answers(
    model: GPT, prompts: torch.Tensor, num_samples: int, tokens: int, temperature: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """`num_samples` answers of `tokens` ids to each of prompts (P, T): ids and mask (P x num_samples, T + tokens).

    The samples of one prompt follow each other. The mask is 1 on sampled ids, 0 on the prompt's.
    """
    raise NotImplementedError("lesson 23: sample_answers is yours to write")


def advantages(rewards: torch.Tensor) -> torch.Tensor:
    """How much better each sample was than the others of its prompt: rewards (P, S) less their mean over S."""
    raise NotImplementedError("lesson 23: advantages is yours to write")


def policy_loss(model: GPT, ids: torch.Tensor, mask: torch.Tensor, advantage: torch.Tensor) -> torch.Tensor:
    """REINFORCE's loss of samples: ids and mask (N, T), advantage (N,).

    Minus the sum over sampled ids of advantage times the log of the id's probability, over the number of sampled ids.
    """
    raise NotImplementedError("lesson 23: policy_loss is yours to write")


def reinforce_step(
    model: GPT,
    optimizer: Optimizer,
    prompts: torch.Tensor,
    reward: Reward,
    num_samples: int,
    tokens: int,
    temperature: float,
    generator: torch.Generator,
) -> float:
    """Sample, judge by `reward(prompt ids, answer ids)`, learn once; the mean reward of the samples."""
    raise NotImplementedError("lesson 23: reinforce_step is yours to write")


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """How likely one of k answers is right, when of `samples` answers `correct` were: without bias.

    The share of all ways to draw k of the samples in which at least one is right.
    """
    raise NotImplementedError("lesson 23: pass_at_k is yours to write")
