"""Reinforcement learning's data: samples of the model itself, their rewards, and what each of their tokens weighs.

REINFORCE with the group's mean as the baseline: the advantage of a sample is its reward minus the mean reward of all
samples of the same prompt. Every sampled token carries its sample's advantage; prompts and what the tool forced carry
nothing. (The group baseline is GRPO's, arXiv:2402.03300, without its division by the deviation, its ratio clipping
and its KL term: samples are used once, by the model that made them.)

Lesson: lessons/23_reinforcement
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from nanochat.command import UserError
from nanochat.conversation import Conversation
from nanochat.engine import Engine
from nanochat.gpt import GPT
from nanochat.runtime import Runtime
from nanochat.task_eval import fitting_prompt, said


class RewardedProblems(Protocol):
    """What is needed of a task here."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Conversation: ...
    def reward(self, problem: Conversation, completion: str) -> float: ...


@dataclass(frozen=True)
class Rollout:
    """One sample: the prompt's and the completion's ids, the mask of what was sampled, reward and advantage."""

    ids: list[int]
    mask: list[int]
    reward: float
    advantage: float


def sample_rollouts(
    engine: Engine,
    task: RewardedProblems,
    indices: Sequence[int],
    num_samples: int,
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
) -> list[Rollout]:
    """`num_samples` rollouts for each of the problems named."""
    problems = [task[index] for index in indices]
    prompts = [fitting_prompt(problem, engine, max_tokens) for problem in problems]
    samples = engine.generate_batch(prompts, num_samples, max_tokens, temperature, top_k, seed)
    rollouts = []
    for number, (problem, prompt) in enumerate(zip(problems, prompts, strict=True)):
        group = samples[number * num_samples : (number + 1) * num_samples]
        rewards = [task.reward(problem, said(ids, engine.tokenizer)) for ids, _ in group]
        baseline = sum(rewards) / len(rewards)
        for (ids, mask), reward in zip(group, rewards, strict=True):
            rollouts.append(Rollout(prompt + ids, [0] * len(prompt) + mask, reward, reward - baseline))
    return rollouts


def to_batch(rollouts: Sequence[Rollout], device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs, targets (B, T) int64 and weights (B, T): advantage where the target was sampled, else 0.

    The weighted sum of the losses (-log p) has the gradient of REINFORCE; divide it by the sampled tokens of the step.
    """
    width = max(len(rollout.ids) for rollout in rollouts)
    ids = torch.zeros(len(rollouts), width, dtype=torch.long)
    weights = torch.zeros(len(rollouts), width)
    for row, rollout in enumerate(rollouts):
        length = len(rollout.ids)
        ids[row, :length] = torch.tensor(rollout.ids)
        weights[row, :length] = torch.tensor(rollout.mask) * rollout.advantage
    return ids[:, :-1].to(device), ids[:, 1:].to(device), weights[:, 1:].to(device)


def learn(model: GPT, rollouts: Sequence[Rollout], device_batch_size: int, runtime: Runtime) -> tuple[float, int]:
    """Gradients of one step of REINFORCE over all ranks' rollouts; the mean reward and the count of sampled tokens."""
    mine = float(sum(sum(r.mask) for r in rollouts)), sum(r.reward for r in rollouts), float(len(rollouts))
    sampled, reward, count = runtime.sum_over_ranks(*mine)
    weight = runtime.world_size / max(sampled, 1.0)  # the optimizer takes the mean over ranks
    telling = [r for r in rollouts if r.advantage != 0] or list(rollouts[:1])  # the others have no gradient
    for start in range(0, len(telling), device_batch_size):
        inputs, targets, weights = to_batch(telling[start : start + device_batch_size], model.device)
        model(inputs, targets, weights * weight).backward()
    return reward / count, int(sampled)


def pass_at_k(
    engine: Engine,
    task: RewardedProblems,
    runtime: Runtime,
    max_problems: int,
    num_samples: int,
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    batch_size: int = 16,
    on_progress: Callable[[int], object] = lambda count: None,
) -> dict[int, float]:
    """For k = 1, 2, 4, ... up to `num_samples`: how likely one of k answers earns full reward.

    The unbiased estimate 1 - C(n - c, k) / C(n, k) of c right ones among n samples (Codex, arXiv:2107.03374).
    Raises UserError where there is no problem or no answer to count.
    """
    if min(max_problems, len(task), num_samples) < 1:
        raise UserError(
            f"pass@k needs a problem and an answer: {max_problems} of {len(task)} problems, {num_samples} answers asked"
        )
    mine = range(runtime.rank, min(max_problems, len(task)), runtime.world_size)
    ks = [2**i for i in range(num_samples.bit_length()) if 2**i <= num_samples]
    totals = dict.fromkeys(ks, 0.0)
    for start in range(0, len(mine), batch_size):
        indices = mine[start : start + batch_size]
        rollouts = sample_rollouts(engine, task, indices, num_samples, max_tokens, temperature, top_k, seed=start)
        for number in range(len(indices)):
            group = rollouts[number * num_samples : (number + 1) * num_samples]
            wrong = sum(rollout.reward < 1 for rollout in group)
            for k in ks:
                totals[k] += 1 - math.comb(wrong, k) / math.comb(num_samples, k)
        on_progress(len(indices) * runtime.world_size)
    *sums, count = runtime.sum_over_ranks(*totals.values(), float(len(mine)))
    return {k: total / count for k, total in zip(ks, sums, strict=True)}


class PromptOrder:
    """Which problems each step practises: a new shuffled order every epoch, shared out over the ranks."""

    def __init__(self, num_problems: int, per_step: int, runtime: Runtime, seed: int):
        self.num_problems, self.per_step, self.runtime, self.seed = num_problems, per_step, runtime, seed
        self.drawn = 0  # by all ranks
        self._order_of: tuple[int, list[int]] = (-1, [])

    def __next__(self) -> list[int]:
        """The indices of this rank's problems in the next step."""
        first = self.drawn + self.runtime.rank * self.per_step
        self.drawn += self.per_step * self.runtime.world_size
        return [self._index(number) for number in range(first, first + self.per_step)]

    def state_dict(self) -> dict[str, int | list[int]]:
        """How many problems have been drawn."""
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, int | list[int]]) -> None:
        """Go on where `state_dict` was taken."""
        drawn = state["drawn"]
        assert isinstance(drawn, int), f"expected a number, got {drawn!r}"
        self.drawn = drawn

    def load_state_dicts(self, states: Sequence[dict[str, int | list[int]]]) -> None:
        """The same from the states of all ranks, which are equal: what was drawn was drawn by all of any number."""
        self.load_state_dict(states[0])

    def _index(self, number: int) -> int:
        epoch, position = divmod(number, self.num_problems)
        if self._order_of[0] != epoch:
            order = list(range(self.num_problems))
            random.Random(f"{self.seed}-{epoch}").shuffle(order)
            self._order_of = (epoch, order)
        return self._order_of[1][position]
