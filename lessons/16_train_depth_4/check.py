"""Checks of lesson 16, against the product's plan, schedules and measure, and on one batch that must be learned."""

import math
from collections.abc import Iterator
from itertools import repeat

import numpy
import pytest
import torch

from lessons.learner import load
from lessons.oracle import model_of
from nanochat import schedule
from nanochat.gpt import GPT
from nanochat.gpt_config import GPTConfig, config_for_depth
from nanochat.loss_eval import evaluate_loss
from nanochat.plan import plan_training
from nanochat.runtime import Runtime

mine = load(16)
V, T = 20, 16


def model(seed: int = 1) -> GPT:
    """The product's, small and with nothing at zero: its call is that of lesson 12's."""
    return model_of(GPTConfig(sequence_len=T, vocab_size=V, n_layer=2, n_head=2, n_kv_head=2, n_embd=16), seed)


def batches(count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    for _ in range(count):
        rows = torch.randint(V, (2, T + 1), generator=generator)
        yield rows[:, :-1], rows[:, 1:]


class Watched:
    """In the optimizer's place: writes down what it is told."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float]] = []
        self.calls: list[str] = []

    def step(self, lr_multiplier: float = 1.0, momentum: float = 0.95) -> None:
        self.steps.append((lr_multiplier, momentum))
        self.calls.append("step")

    def zero_grad(self) -> None:
        self.calls.append("zero_grad")


@pytest.mark.parametrize("depth", [1, 2, 4, 6])
def test_one_dial_makes_the_sizes(depth: int) -> None:
    config = config_for_depth(depth, 1000, 128, head_dim=64)
    assert mine.sizes(depth) == (config.n_embd, config.n_head), f"sizes({depth}) is {mine.sizes(depth)}"


@pytest.mark.parametrize("depth", [4, 12, 20])
def test_rates_are_those_of_nanochat(depth: int) -> None:
    plan = plan_training(
        config_for_depth(depth, 1000, 128), device_batch_size=1, world_size=1, total_batch_size=None,
        num_iterations=10, target_param_data_ratio=1.0, matrix_lr=0.03, embedding_lr=0.2, unembedding_lr=0.004,
    )  # fmt: skip
    expected = {"matrix": 0.03, "embedding": plan.embedding_lr, "unembedding": plan.unembedding_lr}
    found = mine.rates(64 * depth, 0.03)
    assert found == pytest.approx(expected), f"width {64 * depth}: {found}, expected {expected}"


def test_the_momentum_rises_as_that_of_nanochat() -> None:
    for step in (0, 1, 150, 299, 300, 1000):
        found, expected = mine.muon_momentum(step), schedule.muon_momentum(step)
        assert found == pytest.approx(expected), f"step {step}: {found}, expected {expected}"


def test_the_loop_hands_the_schedule_to_the_optimizer_and_clears_gradients() -> None:
    optimizer, seen, steps = Watched(), [], 10
    losses = mine.train(model(), batches(steps), optimizer, steps, lambda step, loss: seen.append((step, loss)))
    expected = [(schedule.lr_multiplier(s, steps, 0, 0.4), schedule.muon_momentum(s)) for s in range(steps)]
    assert len(optimizer.steps) == steps, f"{len(optimizer.steps)} steps were made and {steps} asked for"
    for number, (found, wanted) in enumerate(zip(optimizer.steps, expected, strict=True)):
        assert found == pytest.approx(wanted), f"step {number}: (multiplier, momentum) is {found}, expected {wanted}"
    assert optimizer.calls in (["step", "zero_grad"] * steps, ["zero_grad", "step"] * steps), (
        f"a step of the optimizer and one zero_grad by turns are expected, it was told {optimizer.calls[:6]} .."
    )
    assert seen == list(enumerate(losses)), "on_step must be called behind each step, with its number and its loss"
    assert all(isinstance(loss, float) for loss in losses), "losses are floats: a tensor would keep its whole graph"
    with torch.no_grad():
        wanted_losses = [model()(x, y).item() for x, y in batches(steps)]  # nothing was learned: Watched does nothing
    assert losses == pytest.approx(wanted_losses, rel=1e-4), "the losses are not those of the batches"


def test_gradients_are_those_of_one_batch() -> None:
    lengths = []

    class Gradients(Watched):
        def step(self, lr_multiplier: float = 1.0, momentum: float = 0.95) -> None:
            lengths.append(float(torch.nn.utils.get_total_norm([p.grad for p in fresh.parameters()])))

        def zero_grad(self) -> None:
            for parameter in fresh.parameters():
                parameter.grad = None

    fresh = model()
    mine.train(fresh, repeat(next(batches(1))), Gradients(), 3)
    assert lengths == pytest.approx([lengths[0]] * 3, rel=1e-4), f"gradients add up over steps: lengths {lengths}"


def test_one_batch_can_be_learned_by_heart() -> None:
    fresh = load(12).build(V, 32, 2, 2, seed=1)
    optimizer = load(15).MuonAdamW(dict(fresh.named_parameters()), mine.rates(32))
    losses = mine.train(fresh, repeat(next(batches(1))), optimizer, 60)
    assert losses[0] == pytest.approx(math.log(V), abs=0.02), f"the first loss is {losses[0]:.3f}, expected ln {V}"
    assert losses[-1] < 0.05, f"after 60 steps on one batch the loss is {losses[-1]:.3f}, it should be near 0"


def test_bits_per_byte_are_those_of_nanochat() -> None:
    measured, sizes = model(), numpy.array([0, *range(1, V)])  # id 0 stands for no text, as <|bos|>
    expected = evaluate_loss(measured, batches(3), sizes, Runtime(torch.device("cpu"), torch.float32)).bpb
    found = mine.bits_per_byte(measured, batches(3), torch.from_numpy(sizes))
    assert found == pytest.approx(expected, rel=1e-4), f"bits per byte are {found:.4f}, expected {expected:.4f}"


def greedy(measured: GPT, ids: list[int], count: int) -> list[int]:
    for _ in range(count):
        ids = [*ids, int(measured(torch.tensor([ids[-T:]]))[0, -1].argmax())]
    return ids[-count:]


def test_at_temperature_zero_the_likeliest_comes() -> None:
    measured, prompt = model(), [3, 1, 4]
    found = mine.sample(measured, prompt, 10, T, temperature=0)
    assert found == greedy(measured, prompt, 10), f"sampled {found}, the likeliest are {greedy(measured, prompt, 10)}"
    assert prompt == [3, 1, 4], "sample must leave the prompt as it was"


def test_the_model_sees_no_more_than_its_context() -> None:
    measured, prompt = model(), [n % V for n in range(40)]
    found = mine.sample(measured, prompt, 5, T, temperature=0)
    assert found == greedy(measured, prompt, 5), f"sampled {found}; the model may see the last {T} ids alone"


def test_sampling_ends_before_the_stop() -> None:
    likeliest = greedy(model(), [3, 1, 4], 10)
    stop = likeliest[3]
    found = mine.sample(model(), [3, 1, 4], 10, T, temperature=0, stop=stop)
    assert found == likeliest[: likeliest.index(stop)], f"{likeliest} with stop {stop} gives {found}"


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_ids_are_drawn_as_often_as_they_are_likely(temperature: float) -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])

    def constant(ids: torch.Tensor) -> torch.Tensor:
        return logits.expand(*ids.shape, 4)

    generator = torch.Generator().manual_seed(1)
    drawn = mine.sample(constant, [0], 4000, 8, temperature, generator)
    shares = torch.tensor(drawn).bincount(minlength=4) / 4000
    expected = (logits / temperature).softmax(-1)
    off = float((shares - expected).abs().max())
    assert off < 0.03, f"temperature {temperature}: drawn {shares.tolist()}, probabilities are {expected.tolist()}"
    again = mine.sample(constant, [0], 4000, 8, temperature, torch.Generator().manual_seed(1))
    assert drawn == again, "the same seed must give the same text: draw with the generator that is handed in"
