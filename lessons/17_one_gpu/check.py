"""Checks of lesson 17, against torch's attention and autocast, and the product's choice of device and format."""

import time
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lessons.compare import same
from lessons.learner import load
from nanochat import runtime
from nanochat.gpt import GPT
from nanochat.gpt_config import GPTConfig

mine = load(17)
CPU = torch.device("cpu")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_device_is_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    found, expected = mine.autodetect_device_type(), runtime.autodetect_device_type()
    assert found == expected, f"autodetect_device_type() says {found!r}, the product {expected!r}"
    for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=cuda: there)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda there=mps: there)
        found = mine.autodetect_device_type()
        assert found == expected, f"on a machine with cuda={cuda} and mps={mps} it says {found!r}"


def test_the_format_is_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    found, expected = mine.pick_dtype(CPU), runtime.pick_dtype("auto", CPU)
    assert found == expected, f"pick_dtype of this CPU gives {found}, the product takes {expected}"
    for capability, expected in (((7, 5), torch.float32), ((8, 0), torch.bfloat16), ((10, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_, has=capability: has)
        found = mine.pick_dtype(torch.device("cuda", 0))
        assert found == expected, f"a GPU of compute capability {capability} gave {found}, expected {expected}"
    assert mine.pick_dtype(torch.device("mps")) == torch.float32, "mps takes float32 here"


def test_seconds_of_waits_before_either_look_at_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    readings = iter([0, 5, 10, 11, 20, 29, 30, 32, 40, 43])

    def clock() -> float:
        events.append("clock")
        return next(readings)

    with monkeypatch.context() as patch:
        patch.setattr(time, "perf_counter", clock)
        if hasattr(mine, "perf_counter"):
            patch.setattr(mine, "perf_counter", clock)
        patch.setattr(mine, "synchronize", lambda device: events.append("wait"))
        found = mine.seconds_of(lambda: events.append("work"), CPU, rounds=5)
    assert events.count("work") == 6, (
        f"work was called {events.count('work')} times, expected 1 uncounted and 5 counted"
    )
    assert events.index("work") < events.index("clock"), "the first call, which warms up, is not to be timed"
    assert events.count("clock") == 10, f"the clock was read {events.count('clock')} times, expected twice a round"
    for place, event in enumerate(events):
        if event == "clock":
            before = events[place - 1]
            assert before == "wait", f"right before look number {events[: place + 1].count('clock')} came {before!r}"
    assert found == 3, f"of the rounds 5, 1, 9, 2 and 3 seconds it gave {found}; the median is 3"


def test_synchronize_of_a_cpu_has_nothing_to_wait_for() -> None:
    mine.synchronize(CPU)


def test_mixed_linear_computes_as_autocast_does() -> None:
    x, weight = normal(3, 8), normal(5, 8, seed=1).requires_grad_()
    found = mine.mixed_linear(x.bfloat16(), weight)
    assert found.dtype == torch.bfloat16, f"of a bfloat16 x it gave {found.dtype}"
    with torch.autocast("cpu", torch.bfloat16):
        expected = F.linear(x, weight)
    same(found.float(), expected.float(), "mixed_linear of a bfloat16 x")
    found.sum().backward()
    assert weight.grad is not None, "no gradient arrived at the weight"
    assert weight.grad.dtype == torch.float32, f"the weight's gradient is {weight.grad.dtype}, and should be float32"
    same(mine.mixed_linear(x, weight), F.linear(x, weight), "mixed_linear of a float32 x")


@pytest.mark.parametrize("block", [1, 4, 5, 12, 64])
def test_flash_attention_is_torchs(block: int) -> None:
    q, k, v = (normal(2, 3, 12, 8, seed=seed) * 4 for seed in range(3))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    same(mine.flash_attention(q, k, v, block), expected, f"flash_attention of 12 tokens in blocks of {block}")


def test_flash_attention_bears_large_scores() -> None:
    q, k, v = normal(1, 1, 8, 4) * 300, normal(1, 1, 8, 4, seed=1) * 300, normal(1, 1, 8, 4, seed=2)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    same(mine.flash_attention(q, k, v, 3), expected, "flash_attention of scores of a hundred thousand")


class Largest(TorchDispatchMode):
    """The most elements that a tensor had which was made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self, func: Callable[..., object], types: Sequence[type], args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:  # fmt: skip
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.elements = max(self.elements, made.numel())
        return made


def test_flash_attention_never_holds_all_scores() -> None:
    tokens, block = 256, 16
    q, k, v = (normal(1, 1, tokens, 8, seed=seed) for seed in range(3))
    with Largest() as largest:
        mine.flash_attention(q, k, v, block)
    assert largest.elements < tokens * tokens / 4, (
        f"a tensor of {largest.elements:,} elements was made; all scores are {tokens * tokens:,}, "
        f"a block of them {tokens * block:,}"
    )


def test_nice_sizes() -> None:
    for number, multiple, expected in ((50257, 128, 50304), (128, 128, 128), (1, 64, 64), (129, 128, 256)):
        found = mine.nice(number, multiple)
        assert found == expected, f"nice({number}, {multiple}) gave {found}, expected {expected}"


def model() -> GPT:
    made = GPT(GPTConfig(sequence_len=8, vocab_size=11, n_layer=1, n_head=2, n_kv_head=2, n_embd=16))
    made.init_weights(1)
    with torch.no_grad():
        for number, parameter in enumerate(made.parameters()):
            parameter.add_(normal(*parameter.shape, seed=number) * 0.2)
    return made


@pytest.mark.parametrize("ignored", [0, 7, 8], ids=["equal counts", "unequal counts", "a batch without a target"])
def test_accumulated_gradients_are_those_of_one_large_batch(ignored: int) -> None:
    ids = torch.randint(11, (4, 9), generator=torch.Generator().manual_seed(3))
    inputs, targets = ids[:, :-1], ids[:, 1:].clone()
    targets[2:, :ignored] = -1
    whole, parts = model(), model()
    loss = whole(inputs, targets)
    loss.backward()
    found = mine.accumulate(parts, [(inputs[:2], targets[:2]), (inputs[2:], targets[2:])])
    assert abs(found - loss.item()) < 1e-5, f"the loss is {found:.6f}, of one large batch it is {loss.item():.6f}"
    for (name, one), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
        assert one.grad is not None
        same(other.grad, one.grad, f"the gradient of {name}")
