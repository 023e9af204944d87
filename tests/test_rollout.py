"""Reinforcement: who gets which advantage, the gradient against plain autograd, pass@k, and a toy that learns."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from tiny import CPU, rank, tiny_model, tiny_tokenizer
from two_ranks import averaged, results, rollouts

from nanochat.chat_format import render_prompt
from nanochat.command import UserError
from nanochat.engine import Engine
from nanochat.gpt import GPT
from nanochat.optim import MuonAdamW, Rates
from nanochat.rollout import PromptOrder, Rollout, learn, pass_at_k, sample_rollouts, to_batch
from tasks.common import Conversation, Message

TOKENIZER = tiny_tokenizer()
END, PYTHON, PYTHON_END, OUTPUT, OUTPUT_END = (
    TOKENIZER.encode_special(f"<|{name}|>")
    for name in ("assistant_end", "python_start", "python_end", "output_start", "output_end")
)


class Echo:
    """Problems 0, 1, 2, ...; the reward is the number that the completion spells."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Conversation:
        return Conversation([Message("user", f"Say {index}"), Message("assistant", str(index))])

    def reward(self, problem: Conversation, completion: str) -> float:
        return float(completion)


class Saying:
    """In an engine's place: sample number s of a prompt says `said[s]`, behind a tool's answer that was forced."""

    tokenizer = TOKENIZER
    context_len = 1000

    def __init__(self, *said: str):
        self.said = said
        self.calls: list[tuple[int, ...]] = []

    def generate_batch(
        self, prompts: Sequence[list[int]], num_samples: int, max_tokens: int, temperature: float, top_k: int, seed: int
    ) -> list[tuple[list[int], list[int]]]:
        self.calls.append((len(prompts), num_samples, max_tokens, seed))
        made = []
        for number in range(len(prompts) * num_samples):
            spoken = TOKENIZER.encode(self.said[number % len(self.said)])
            tool = [PYTHON, *TOKENIZER.encode("1+1"), PYTHON_END], [OUTPUT, *TOKENIZER.encode("2"), OUTPUT_END]
            made.append(
                (
                    [*tool[0], *tool[1], *spoken, END],
                    [1] * len(tool[0]) + [0] * len(tool[1]) + [1] * (len(spoken) + 1),
                )
            )
        return made


# --- samples ------------------------------------------------------------------------------------------------------


def test_advantages_are_rewards_less_their_groups_mean_and_sum_to_zero() -> None:
    engine = Saying("0", "1", "0.5", "1", "0", "0")
    made = sample_rollouts(engine, Echo(), [3, 1], 3, 9, 1.0, None, seed=4)  # type: ignore[arg-type]
    assert [rollout.reward for rollout in made] == [0, 1, 0.5, 1, 0, 0]
    assert [rollout.advantage for rollout in made] == pytest.approx([-0.5, 0.5, 0, 2 / 3, -1 / 3, -1 / 3])
    assert sum(r.advantage for r in made[:3]) == pytest.approx(0) == sum(r.advantage for r in made[3:])
    assert engine.calls == [(2, 3, 9, 4)]


def test_prompts_and_what_the_tool_forced_carry_no_weight() -> None:
    first, second = sample_rollouts(Saying("0", "1"), Echo(), [2], 2, 9, 1.0, None, 1)  # type: ignore[arg-type]
    prompt = render_prompt(Echo()[2], TOKENIZER)
    assert first.ids[: len(prompt)] == prompt
    inputs, targets, weights = to_batch([first, second], torch.device("cpu"))
    assert inputs[0].tolist() == first.ids[:-1]
    assert targets[0].tolist() == first.ids[1:]
    weighty = [token for token, weight in zip(targets[0].tolist(), weights[0].tolist(), strict=True) if weight]
    assert weighty == [PYTHON, *TOKENIZER.encode("1+1"), PYTHON_END, *TOKENIZER.encode("0"), END]
    assert set(weights[0].tolist()) == {0.0, first.advantage}


def test_rows_of_different_lengths_are_padded_with_no_weight() -> None:
    inputs, targets, weights = to_batch(
        [Rollout([1, 2, 3, 4, 5], [0, 0, 1, 0, 1], 1.0, 0.5), Rollout([6, 7, 8], [0, 1, 1], 0.0, -0.5)],
        torch.device("cpu"),
    )
    assert inputs.tolist() == [[1, 2, 3, 4], [6, 7, 8, 0]]
    assert targets.tolist() == [[2, 3, 4, 5], [7, 8, 0, 0]]
    assert weights.tolist() == [[0, 0.5, 0, 0.5], [-0.5, -0.5, 0, 0]]


# --- the gradient -------------------------------------------------------------------------------------------------


def reinforce(model: GPT, given: Sequence[Rollout]) -> dict[str, torch.Tensor]:
    """Minus the mean over all sampled tokens of advantage times log-probability, one sample after another."""
    model.zero_grad()
    total = sum(sum(rollout.mask) for rollout in given)
    loss = torch.zeros(())
    for rollout in given:
        log_probabilities = model(torch.tensor([rollout.ids[:-1]]))[0].log_softmax(-1)
        for position, (token, sampled) in enumerate(zip(rollout.ids[1:], rollout.mask[1:], strict=True)):
            loss = loss - sampled * rollout.advantage * log_probabilities[position, token] / total
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("device_batch_size", [1, 2, 8])
def test_the_gradient_is_that_of_plain_reinforce_however_it_is_cut(device_batch_size: int) -> None:
    model = tiny_model(n_layer=1)
    given = rollouts(0) + rollouts(1)
    reward, sampled = learn(model, given, device_batch_size, CPU)
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert reward == pytest.approx(sum(r.reward for r in given) / 6)
    assert sampled == sum(sum(r.mask) for r in given)
    for name, gradient in reinforce(model, given).items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_two_ranks_have_the_gradient_of_all_their_samples() -> None:
    given = rollouts(0) + rollouts(1)
    for found in results():
        assert found["learned"] == (pytest.approx(sum(r.reward for r in given) / 6), sum(sum(r.mask) for r in given))
    for name, gradient in reinforce(tiny_model(n_layer=1), given).items():
        torch.testing.assert_close(averaged("reinforced")[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_when_all_samples_are_worth_the_same_the_gradient_is_zero_and_there() -> None:
    """There, since the optimizer of this rank waits for those of the others."""
    model = tiny_model(n_layer=1)
    same = [Rollout(r.ids, r.mask, 1.0, 0.0) for r in rollouts(0)]
    assert learn(model, same, 2, CPU)[0] == 1.0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


class StartsWithSmallId:
    """The one rule: an answer is good when its first id is one of 40 of the 300."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Conversation:
        return Conversation([Message("user", "abc"[index])])

    def reward(self, problem: Conversation, completion: str) -> float:
        return float("a" <= completion[:1] <= "z")


def test_the_mean_reward_of_a_one_rule_toy_rises() -> None:
    model = tiny_model(sequence_len=24, n_layer=1)
    optimizer = MuonAdamW(dict(model.named_parameters()), model.roles(), Rates(0.01, 0.02, 0.01), CPU)
    engine, rewards = Engine(model, TOKENIZER), []
    for number in range(30):
        given = sample_rollouts(engine, StartsWithSmallId(), [0, 1, 2], 12, 2, 1.0, None, seed=number)
        rewards.append(learn(model, given, 16, CPU)[0])
        optimizer.step(momentum=0.9)
        optimizer.zero_grad()
    assert sum(rewards[:5]) / 5 < 0.4
    assert sum(rewards[-5:]) / 5 > 0.9


# --- pass@k -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("right", range(7))
def test_pass_at_k_is_the_share_of_all_ways_to_draw_k_that_have_a_right_one(right: int) -> None:
    said = ["1"] * right + ["0.5"] * (6 - right)  # only full reward is right
    found = pass_at_k(Saying(*said), Echo(), CPU, 2, 6, 9, 1.0, None)  # type: ignore[arg-type]
    expected = {}
    for k in (1, 2, 4):
        draws = list(itertools.combinations(said, k))
        expected[k] = sum("1" in draw for draw in draws) / len(draws)
    assert found == pytest.approx(expected)


def test_pass_at_k_is_the_mean_over_the_problems_in_batches() -> None:
    engine, told = Saying("1", "0", "0", "0"), []
    found = pass_at_k(engine, Echo(), CPU, 99, 2, 9, 1.0, None, batch_size=2, on_progress=told.append)  # type: ignore[arg-type]
    # problems 0, 2 and 4 have one right answer of two, 1 and 3 none: batches of two begin anew
    assert found == pytest.approx({1: 0.3, 2: 0.6})
    assert told == [2, 2, 1]
    assert [call[3] for call in engine.calls] == [0, 2, 4]


@pytest.mark.parametrize(("problems", "samples"), [(0, 2), (3, 0)])
def test_pass_at_k_of_nothing_is_refused(problems: int, samples: int) -> None:
    message = f"pass@k needs a problem and an answer: {problems} of 5 problems, {samples} answers asked"
    with pytest.raises(UserError, match=message):
        pass_at_k(Saying("1"), Echo(), CPU, problems, samples, 9, 1.0, None)  # type: ignore[arg-type]


# --- the order ----------------------------------------------------------------------------------------------------


def test_every_epoch_practises_every_problem_once_shared_out_over_the_ranks() -> None:
    orders = [PromptOrder(12, 2, rank(number, 3), seed=5) for number in range(3)]
    steps = [[next(order) for order in orders] for _ in range(4)]
    epochs = [[i for step in steps[start : start + 2] for mine in step for i in mine] for start in (0, 2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(12))
    assert epochs[0] != epochs[1]
    assert next(PromptOrder(12, 6, CPU, seed=5)) != next(PromptOrder(12, 6, CPU, seed=6))


def test_a_step_may_reach_into_the_next_epoch() -> None:
    order = PromptOrder(5, 3, CPU, seed=1)
    drawn = [index for _ in range(5) for index in next(order)]
    assert [sorted(drawn[start : start + 5]) for start in (0, 5, 10)] == [list(range(5))] * 3


def test_a_stored_order_goes_on() -> None:
    order, resumed = PromptOrder(7, 2, rank(1, 2), 3), PromptOrder(7, 2, rank(1, 2), 3)
    for _ in range(3):
        next(order)
    resumed.load_state_dict(order.state_dict())
    assert [next(order) for _ in range(4)] == [next(resumed) for _ in range(4)]
