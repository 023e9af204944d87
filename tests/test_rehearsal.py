"""Rehearsals: bytes are counted as they are, depth is foretold from three layers, rows are found by trying."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from tiny import CPU

from nanochat import calibration, hardware, rehearsal
from nanochat.command import UserError
from nanochat.forecast import extend
from nanochat.gpt_config import GPTConfig
from nanochat.rehearsal import LiveBytes, Stage, auto_rows, probe_downwards, rehearse, state_bytes
from nanochat.runtime import Runtime

SMALL = GPTConfig(sequence_len=64, vocab_size=512, n_layer=6, n_head=2, n_kv_head=2, n_embd=64)


def test_tensors_are_counted_while_they_are_held_and_views_once() -> None:
    with LiveBytes() as counter:
        first = torch.zeros(1000)
        view = first[10:].view(-1, 9)
        second = first + 1
        assert counter.live == 8000
        del first, view
        assert counter.live == 4000
        second.mul_(2)
    assert (counter.live, counter.peak) == (4000, 8000)
    del second
    assert counter.live == 0


def test_what_backward_keeps_is_counted_until_it_is_used() -> None:
    weight = torch.ones(100, 100, requires_grad=True)
    with LiveBytes() as counter:
        loss = (weight.exp() ** 2).sum()
        assert counter.live == 40_000 + 4  # what exp keeps is what the square keeps; and the loss
        loss.backward()
        assert counter.peak >= 3 * 40_000
    del loss
    assert counter.live == 40_000  # the gradient


@pytest.mark.parametrize("again", [False, True])
def test_the_bytes_of_six_layers_and_eight_rows_are_foretold_from_three_and_four(again: bool) -> None:
    corners = rehearse(SMALL, 4, CPU, again, seconds=0.0)
    assert [(c.layers, c.rows) for c in corners] == [(1, 2), (1, 4), (3, 2), (3, 4)]
    real = rehearse(SMALL, 4, CPU, again, seconds=0.0)
    assert [c.micro_bytes for c in real] == [c.micro_bytes for c in corners]
    with rehearsal.Peak(CPU.device) as peak:
        stage = Stage(SMALL, 8, CPU, again)
        stage.micro_step(8)
        first = peak.take()
        stage.micro_step(8)
        second = peak.take()
        stage.update()
        update = peak.take()
    assert extend(corners, [c.micro_bytes for c in corners], 6, 8) == pytest.approx(first, rel=0.03)
    assert extend(corners, [c.again_bytes for c in corners], 6, 8) == pytest.approx(second, rel=0.03)
    assert extend(corners, [c.update_bytes for c in corners], 6, 4) == pytest.approx(update, rel=0.03)


def test_long_rows_are_rehearsed_one_and_two_at_a_time() -> None:
    """Two of 2,048 tokens were too many once: only one was measured, and 32 were foretold to take as long as it."""
    long = replace(SMALL, sequence_len=rehearsal.REHEARSED_TOKENS["cpu"], n_layer=1)
    assert [c.rows for c in rehearse(long, 32, CPU, seconds=0.0)] == [1, 2]
    assert [c.rows for c in rehearse(long, 1, CPU, seconds=0.0)] == [1]


def test_a_rehearsal_draws_no_random_number_of_the_runs() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    rehearse(SMALL, 1, CPU, seconds=0.0)
    calibration.matmul_flops(64, CPU, 0.0)
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_of_the_compiler_is_imported() -> None:
    program = (
        "import sys, torch\nfrom nanochat.gpt_config import config_for_depth\nfrom nanochat.rehearsal import rehearse\n"
        "from nanochat.runtime import Runtime\ncpu = Runtime(torch.device('cpu'), torch.float32)\n"
        "print(len(rehearse(config_for_depth(2, 300, 64), 2, cpu, seconds=0.0)), 'torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["4", "False"]


def test_gradients_are_as_large_as_in_training() -> None:
    """Squares of much smaller ones are denormal, with which a CPU's products in float32 take thirty times as long."""
    stage = Stage(SMALL, 2, CPU, False)
    stage.micro_step(2)
    matrices = {name: p.grad for name, p in stage.model.named_parameters() if p.ndim == 2 and p.grad is not None}
    assert len(matrices) == 2 + 6 * 6
    assert min(gradient.abs().max().item() for gradient in matrices.values()) > 1e-6


def test_the_state_is_what_the_optimizer_holds() -> None:
    optimizer = Stage(SMALL, 1, CPU, False).optimizer
    held = sum(tensor.nbytes for name, tensor in optimizer.state_dict().items() if name != "steps")
    assert held == pytest.approx(state_bytes(SMALL), rel=0.02)  # Muon's variances are a value per row or column more


def test_rows_are_tried_from_many_downwards_until_memory_is_enough() -> None:
    tried: list[int] = []

    def attempt(rows: int) -> None:
        tried.append(rows)
        if rows > 3:
            raise torch.OutOfMemoryError("too many")

    assert probe_downwards([12, 6, 3, 2, 1], attempt) == 3
    assert tried == [12, 6, 3]
    assert probe_downwards([12, 6], attempt) is None

    def broken(rows: int) -> None:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        probe_downwards([1], broken)


def test_auto_takes_fewer_rows_when_less_memory_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "available_memory_bytes", lambda: 10**11)
    assert auto_rows(SMALL, 24, CPU) == 24
    monkeypatch.setattr(hardware, "available_memory_bytes", lambda: 85 * 10**6)
    few = auto_rows(SMALL, 24, CPU)
    assert few < 24
    assert 24 % few == 0
    assert few < auto_rows(SMALL, 24, CPU, activation_checkpointing=True)
    monkeypatch.setattr(hardware, "available_memory_bytes", lambda: 10**6)
    with pytest.raises(UserError, match="not even one row of 64 tokens fits into the 0"):
        auto_rows(SMALL, 24, CPU)


def test_the_peak_of_a_known_gpu_is_its_makers_and_else_what_a_product_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert calibration.peak_flops(CPU, seconds=0.0) > 1e7
    assert calibration.copied_bytes_per_second(CPU, 0.0, megabytes=1) > 1e6
    monkeypatch.setattr(Runtime, "device_name", "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(calibration, "matmul_flops", lambda side, runtime, seconds: float(side))
    assert calibration.peak_flops(Runtime(CPU.device, torch.bfloat16)) == 989e12
    assert calibration.peak_flops(CPU) == 2048
