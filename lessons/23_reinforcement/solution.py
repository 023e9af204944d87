"""Lesson 23: learning from a reward: samples of the model's own, judged, and made likelier or less likely."""

import math
from collections.abc import Callable
from typing import Protocol

import torch

from nanochat.gpt import GPT

Reward = Callable[[list[int], list[int]], float]


class Optimizer(Protocol):
    """Any: torch's, the product's, yours."""

    def step(self) -> object: ...
    def zero_grad(self) -> object: ...


@torch.no_grad()
def sample_answers(
    model: GPT, prompts: torch.Tensor, num_samples: int, tokens: int, temperature: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """`num_samples` answers of `tokens` ids to each of prompts (P, T): ids and mask (P x num_samples, T + tokens)."""
    ids = prompts.repeat_interleave(num_samples, dim=0)
    for _ in range(tokens):
        chances = (model(ids)[:, -1] / temperature).softmax(-1)
        ids = torch.cat((ids, torch.multinomial(chances, 1, generator=generator)), dim=1)
    mask = torch.zeros_like(ids)
    mask[:, prompts.size(1) :] = 1
    return ids, mask


def advantages(rewards: torch.Tensor) -> torch.Tensor:
    """How much better each sample was than the others of its prompt: rewards (P, S) less their mean over S."""
    return rewards - rewards.mean(dim=1, keepdim=True)


def policy_loss(model: GPT, ids: torch.Tensor, mask: torch.Tensor, advantage: torch.Tensor) -> torch.Tensor:
    """REINFORCE's loss of samples: ids and mask (N, T), advantage (N,)."""
    chances = model(ids[:, :-1]).log_softmax(-1)  # (N, T - 1, V)
    said = chances.gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
    sampled = mask[:, 1:]
    return -(said * sampled * advantage.unsqueeze(1)).sum() / sampled.sum()


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
    """Sample, judge, learn once; the mean reward of the samples."""
    ids, mask = sample_answers(model, prompts, num_samples, tokens, temperature, generator)
    rows, place = ids.tolist(), prompts.size(1)
    rewards = torch.tensor([reward(row[:place], row[place:]) for row in rows])
    advantage = advantages(rewards.view(-1, num_samples)).flatten()
    policy_loss(model, ids, mask, advantage).backward()
    optimizer.step()
    optimizer.zero_grad()
    return rewards.mean().item()


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """How likely one of k answers is right, when of `samples` answers `correct` were: without bias."""
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)
