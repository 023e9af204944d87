"""Checks of lesson 19, against the product's evaluation and interval, torch's cross entropy, and crashes on purpose."""

import json
import math
import os
from pathlib import Path

import numpy
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from lessons.compare import same
from lessons.learner import load
from lessons.oracle import model_of
from nanochat.gpt import GPT
from nanochat.gpt_config import GPTConfig
from nanochat.loss_eval import evaluate_loss
from nanochat.optim import MuonAdamW, Rates
from nanochat.report import wilson
from nanochat.runtime import Runtime

mine = load(19)
V, T = 17, 12
CPU = Runtime(torch.device("cpu"), torch.float32)
BYTES = torch.tensor([0, 0, *range(1, V - 1)])


def model(seed: int = 1) -> GPT:
    return model_of(GPTConfig(sequence_len=24, vocab_size=V, n_layer=1, n_head=2, n_kv_head=2, n_embd=16), seed)


def optimizer_of(of: GPT) -> MuonAdamW:
    return MuonAdamW(dict(of.named_parameters()), of.roles(), Rates(), CPU)


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Two, which count unequally many targets; control tokens and ignored targets among them."""
    ids = torch.randint(V, (4, T + 1), generator=torch.Generator().manual_seed(4))
    targets = ids[:, 1:].clone()
    targets[1, 3:] = -1
    targets[2:, ::5] = 0
    return [(ids[:3, :-1], targets[:3]), (ids[3:, :-1], targets[3:])]


# --- how well does it predict? ----------------------------------------------------------------------------------------


def test_loss_and_bits_per_byte_are_the_products() -> None:
    expected = evaluate_loss(model(), batches(), BYTES.numpy().astype(numpy.int64), CPU)
    loss, bpb = mine.evaluate(model(), batches(), BYTES)
    assert math.isclose(loss, expected.loss, rel_tol=1e-5), f"the loss is {loss:.5f}, the product's {expected.loss:.5f}"
    assert math.isclose(bpb, expected.bpb, rel_tol=1e-5), (
        f"bits per byte are {bpb:.5f}, the product's {expected.bpb:.5f}"
    )


def test_a_model_that_knows_nothing_has_ln_v() -> None:
    blank = model()
    with torch.no_grad():
        blank.lm_head.weight.zero_()
    loss, bpb = mine.evaluate(blank, [(inputs, targets.clamp_min(2)) for inputs, targets in batches()], BYTES * 0 + 4)
    assert math.isclose(loss, math.log(V), rel_tol=1e-5), f"the loss is {loss:.4f}, ln {V} is {math.log(V):.4f}"
    expected = math.log2(V) / 4
    assert math.isclose(bpb, expected, rel_tol=1e-5), (
        f"with 4 bytes a token it is {bpb:.4f}, log2({V}) / 4 = {expected:.4f}"
    )


CONTEXT = [0, 5, 9, 3]
OPTIONS = [[4, 7], [11], [2, 2, 8, 15, 6], [16, 3, 1]]


def test_losses_of_options_are_torchs_one_by_one() -> None:
    found = mine.option_losses(model(), CONTEXT, OPTIONS)
    assert len(found) == len(OPTIONS), f"{len(OPTIONS)} options gave {len(found)} losses"
    for option, loss in zip(OPTIONS, found, strict=True):
        logits = model()(torch.tensor([CONTEXT + option]))[0, len(CONTEXT) - 1 : -1]
        expected = F.cross_entropy(logits, torch.tensor(option)).item()
        assert math.isclose(loss, expected, rel_tol=1e-4), f"option {option}: {loss:.5f}, torch says {expected:.5f}"


def test_pick_takes_the_lowest_mean_and_not_the_lowest_sum() -> None:
    differ = 0
    for first in range(V):
        context = [0, first, 3]
        means = [
            F.cross_entropy(model()(torch.tensor([context + one]))[0, 2:-1], torch.tensor(one)).item()
            for one in OPTIONS
        ]
        sums = [mean * len(one) for mean, one in zip(means, OPTIONS, strict=True)]
        expected = means.index(min(means))
        differ += expected != sums.index(min(sums))
        found = mine.pick(model(), context, OPTIONS)
        assert found == expected, f"mean losses {[round(mean, 3) for mean in means]}: pick gave option {found}"
    assert differ, "the check is broken: mean and sum never differ"


def test_the_interval_is_the_products() -> None:
    for correct, count in ((0, 10), (7, 10), (10, 10), (1, 1), (230, 402)):
        found, expected = mine.interval(correct, count), wilson(correct, count)
        off = max(abs(one - other) for one, other in zip(found, expected, strict=True))
        assert off < 1e-9, f"{correct} of {count}: interval gave {found}, expected {expected}"


# --- what happened on the way? ----------------------------------------------------------------------------------------


def test_metrics_survive_a_resumed_run_and_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step, loss in ((0, 3.0), (1, 2.5), (2, 2.2), (1, 2.4), (2, 2.1), (3, 1.9)):
        mine.log_metrics(path, {"step": step, "loss": loss})
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 4, "lo')
    found = mine.read_metrics(path)
    expected = [{"step": step, "loss": loss} for step, loss in enumerate((3.0, 2.4, 2.1, 1.9))]
    assert found == expected, f"steps 0 1 2, then 1 2 3 after a resume, then half a line: {found}"
    lines = path.read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0])["step"] == 0, f"a line of the file is one record as JSON; the first is {lines[0]!r}"


# --- where were we? ---------------------------------------------------------------------------------------------------


def trained(of: GPT, optimizer: MuonAdamW, steps: range) -> None:
    for step in steps:
        of(*batches()[step % 2]).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_resumed_run_is_the_run_to_the_last_bit(tmp_path: Path) -> None:
    straight, one = model(), model()
    trained(straight, optimizer_of(straight), range(6))
    first = optimizer_of(one)
    trained(one, first, range(3))
    mine.save(tmp_path / "run", 3, one, first, {"tokens": 300, "val_bpb": 1.25})
    other = model(seed=7)
    second = optimizer_of(other)
    step, facts = mine.resume(tmp_path / "run", other, second)
    assert step == 3, f"step 3 was saved, resume gave {step}"
    assert facts == {"tokens": 300, "val_bpb": 1.25}, f"the facts came back as {facts}"
    trained(other, second, range(3, 6))
    for (name, expected), found in zip(straight.named_parameters(), other.parameters(), strict=True):
        same(found, expected, f"{name} after 3 + 3 steps, beside 6 in one go (is the optimizer's state kept too?)", 0.0)


def test_the_last_of_several_steps_is_resumed(tmp_path: Path) -> None:
    assert mine.saved_steps(tmp_path / "nothing") == [], "of a folder that is not there saved_steps should give []"
    one = model()
    optimizer = optimizer_of(one)
    for step in (2, 10, 9):
        mine.save(tmp_path, step, one, optimizer, {"loss": step / 10})
    assert mine.saved_steps(tmp_path) == [2, 9, 10], f"saved 2, 10, 9: saved_steps gives {mine.saved_steps(tmp_path)}"
    step, facts = mine.resume(tmp_path, one, optimizer)
    assert (step, facts["loss"]) == (10, 1.0), f"resume took step {step} with {facts}"


@pytest.mark.parametrize("moment", ["while tensors are written", "before it is renamed", "before facts are written"])
def test_a_crash_while_saving_leaves_the_step_before(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = model()
    optimizer = optimizer_of(one)
    mine.save(tmp_path, 1, one, optimizer, {})

    def half(tensors: object, path: str | os.PathLike[str], *_: object, **__: object) -> None:
        Path(path).write_bytes(b"half a file")
        raise KeyboardInterrupt

    def never(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if moment == "while tensors are written":
            patch.setattr(safetensors.torch, "save_file", half)
            if hasattr(mine, "save_file"):
                patch.setattr(mine, "save_file", half)
        elif moment == "before it is renamed":
            for owner, names in ((os, ("replace", "rename")), (Path, ("replace", "rename"))):
                for name in names:
                    patch.setattr(owner, name, never)
        else:
            patch.setattr(json, "dump", never)
            patch.setattr(json, "dumps", never)
        with pytest.raises(KeyboardInterrupt):
            mine.save(tmp_path, 2, one, optimizer, {})
    found = mine.saved_steps(tmp_path)
    assert found == [1], f"a crash {moment} of step 2: saved_steps says {found}, whole is only step 1"
    assert mine.resume(tmp_path, one, optimizer)[0] == 1
    mine.save(tmp_path, 2, one, optimizer, {})
    assert mine.saved_steps(tmp_path) == [1, 2], "after the crash step 2 could not be saved again"


def test_damage_is_told(tmp_path: Path) -> None:
    one = model()
    optimizer = optimizer_of(one)
    mine.save(tmp_path, 1, one, optimizer, {})
    [path] = tmp_path.rglob("*.safetensors")
    damaged = bytearray(path.read_bytes())
    damaged[-3] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="1"):
        mine.resume(tmp_path, one, optimizer)
