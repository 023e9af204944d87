"""Checks of lesson 23, against the product's rollouts, the exact gradient of the reward, and plain counting."""

import itertools
import math

import pytest
import torch

from lessons.compare import same
from lessons.learner import load
from lessons.oracle import model_of
from nanochat.gpt import GPT
from nanochat.gpt_config import GPTConfig
from nanochat.optim import MuonAdamW, Rates
from nanochat.rollout import Rollout, learn
from nanochat.runtime import Runtime

mine = load(23)
V = 7
CPU = Runtime(torch.device("cpu"), torch.float32)
PROMPTS = torch.tensor([[1, 2, 3], [4, 5, 6]])


def model() -> GPT:
    return model_of(GPTConfig(sequence_len=8, vocab_size=V, n_layer=1, n_head=2, n_kv_head=2, n_embd=16))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_samples_follow_their_prompts_and_the_mask_tells_them_apart() -> None:
    ids, mask = mine.sample_answers(model(), PROMPTS, 3, 2, 1.0, seeded())
    assert ids.shape == mask.shape == (6, 5), f"ids {tuple(ids.shape)} and mask {tuple(mask.shape)}, expected (6, 5)"
    same(ids[:, :3], PROMPTS.repeat_interleave(3, 0), "the prompts before the answers (samples of one prompt together)")
    same(mask.long(), torch.tensor([[0, 0, 0, 1, 1]] * 6), "the mask")


def test_samples_are_drawn_as_the_model_says() -> None:
    count = 4000
    for temperature in (1.0, 0.5):
        ids, _ = mine.sample_answers(model(), PROMPTS[:1], count, 1, temperature, seeded())
        shares = torch.bincount(ids[:, -1], minlength=V) / count
        expected = (model()(PROMPTS[:1])[0, -1] / temperature).softmax(-1).detach()
        off = (shares - expected).abs().max().item()
        assert off < 0.04, f"temperature {temperature}: shares {shares.tolist()}, chances {expected.tolist()}"


def test_advantages_are_relative_to_the_samples_of_the_same_prompt() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    same(mine.advantages(rewards), rewards - rewards.mean(1, keepdim=True), "advantages")


def test_the_gradient_is_the_products() -> None:
    generator = seeded(2)
    ids = torch.randint(V, (3, 6), generator=generator)
    mask = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 0, 1, 0, 0, 1], [0, 0, 0, 1, 1, 1]])
    advantage = torch.tensor([0.5, -1.0, 0.5])
    one, other = model(), model()
    mine.policy_loss(one, ids, mask, advantage).backward()
    rows = zip(ids.tolist(), mask.tolist(), advantage.tolist(), strict=True)
    learn(other, [Rollout(row, of_row, 0.0, its) for row, of_row, its in rows], 3, CPU)
    for (name, expected), found in zip(other.named_parameters(), one.parameters(), strict=True):
        assert expected.grad is not None
        same(found.grad, expected.grad, f"the gradient of {name}")


@pytest.mark.parametrize("baseline", [0.0, 0.4])
def test_on_average_it_is_the_gradient_of_the_expected_reward(baseline: float) -> None:
    rewards = torch.arange(V) % 3 * 0.5
    exact, by_samples = model(), model()
    chances = exact(PROMPTS[:1])[0, -1].softmax(-1)
    (chances * rewards).sum().backward()
    for answer in range(V):
        ids = torch.cat((PROMPTS[0], torch.tensor([answer]))).unsqueeze(0)
        advantage = (rewards[answer] - baseline).view(1)
        loss = mine.policy_loss(by_samples, ids, torch.tensor([[0, 0, 0, 1]]), advantage)
        (loss * chances[answer].detach()).backward()
    for (name, parameter), found in zip(exact.named_parameters(), by_samples.parameters(), strict=True):
        assert parameter.grad is not None
        same(found.grad, -parameter.grad, f"baseline {baseline}: minus the gradient of {name}", 1e-4)


class Watched:
    """In the optimizer's place: keeps the gradients that each step would have used, and forgets them when told to."""

    def __init__(self, watched: GPT) -> None:
        self.model, self.seen = watched, []

    def step(self) -> None:
        self.seen.append([parameter.grad.clone() for parameter in self.model.parameters()])

    def zero_grad(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = None


def test_a_step_learns_from_its_own_samples_alone() -> None:
    def reward(prompt: list[int], answer: list[int]) -> float:
        return float(answer[0] > 2) if prompt[0] == 1 else float(answer[1])

    found, expected = model(), model()
    optimizer, generator = Watched(found), seeded(4)
    means = [mine.reinforce_step(found, optimizer, PROMPTS, reward, 5, 2, 0.8, generator) for _ in range(2)]
    assert len(optimizer.seen) == 2, f"two calls of reinforce_step made {len(optimizer.seen)} steps of the optimizer"
    generator = seeded(4)
    for mean, gradients in zip(means, optimizer.seen, strict=True):
        ids, mask = mine.sample_answers(expected, PROMPTS, 5, 2, 0.8, generator)
        rewards = torch.tensor([reward(row[:3], row[3:]) for row in ids.tolist()]).view(2, 5)
        assert math.isclose(mean, rewards.mean().item(), rel_tol=1e-5), (
            f"the mean reward is {mean}, expected {rewards.mean().item()}: are temperature and generator handed on?"
        )
        expected.zero_grad()
        mine.policy_loss(expected, ids, mask, mine.advantages(rewards).flatten()).backward()
        for (name, parameter), gradient in zip(expected.named_parameters(), gradients, strict=True):
            assert parameter.grad is not None
            what = f"the gradient of {name} (are the groups those of the prompts, old gradients forgotten?)"
            same(gradient, parameter.grad, what)


def test_what_is_rewarded_becomes_likelier() -> None:
    one = model()
    optimizer = MuonAdamW(dict(one.named_parameters()), one.roles(), Rates(), CPU)
    seen: set[tuple[int, ...]] = set()

    def reward(prompt: list[int], answer: list[int]) -> float:
        seen.add(tuple(prompt))
        return float(answer[0] == prompt[0])

    generator = seeded(3)
    means = [mine.reinforce_step(one, optimizer, PROMPTS, reward, 16, 1, 1.0, generator) for _ in range(40)]
    assert seen == {(1, 2, 3), (4, 5, 6)}, f"reward was asked about the prompts {seen}"
    assert means[0] < 0.6, f"the first mean reward is {means[0]}: it should be that of an untrained model"
    assert sum(means[-5:]) / 5 > 0.9, (
        f"after 40 steps the mean reward is {sum(means[-5:]) / 5:.2f}; it should be above 0.9"
    )


def test_pass_at_k_counts_all_ways_to_draw() -> None:
    for samples, correct, k in ((4, 1, 1), (4, 1, 2), (6, 2, 3), (5, 0, 2), (5, 5, 2), (3, 2, 2)):
        marks = [True] * correct + [False] * (samples - correct)
        ways = list(itertools.combinations(marks, k))
        expected = sum(any(way) for way in ways) / len(ways)
        found = mine.pass_at_k(samples, correct, k)
        assert math.isclose(found, expected, abs_tol=1e-12), (
            f"pass@{k} of {correct} in {samples}: {found}, expected {expected}"
        )
