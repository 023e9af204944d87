"""The lessons' bench: its variations differ from the product where they say so and nowhere else; runs are resumed."""

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import stdev
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny import CPU, random_model

from nanochat.command import UserError
from nanochat.gpt_config import GPTConfig

ROOT = Path(__file__).parent.parent
SIZES = GPTConfig(sequence_len=12, vocab_size=30, n_layer=2, n_head=2, n_kv_head=2, n_embd=16)
IDS = torch.randint(30, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """`bench/lesson_ablations.py` with a base directory of its own."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    monkeypatch.setenv("NANOCHAT_LESSON_DIR", str(tmp_path / "nobody"))
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    yield importlib.import_module("lesson_ablations")
    for name in ("lesson_ablations", "lesson_variations"):
        del sys.modules[name]


@pytest.fixture
def variations(bench: ModuleType) -> ModuleType:
    return sys.modules["lesson_variations"]


def with_weights(variations: ModuleType, change: str) -> Any:
    """The varied model with the weights of a random product model, so that no zero hides a difference."""
    model = variations.VariedGPT(SIZES, variations.CHANGES[change])
    model.load_state_dict(random_model(SIZES).state_dict(), strict=False)
    return model


def test_the_baseline_computes_what_the_product_does(variations: ModuleType) -> None:
    torch.testing.assert_close(with_weights(variations, "baseline")(IDS), random_model(SIZES)(IDS))


def test_without_positions_only_the_set_of_tokens_before_counts(variations: ModuleType) -> None:
    swapped = IDS.clone()
    swapped[:, [2, 7]] = IDS[:, [7, 2]]
    blind_changes = {"none", "rotary_q"}  # a rotated query knows its own place, and nothing of its keys'
    for change in ("none", "rotary_q", "rotary_qkv", "rotary_first_layer", "baseline"):
        model = with_weights(variations, change)
        # one layer: in a deeper one even a blind model sees which tokens its predecessors saw
        model.transformer.h = model.transformer.h[:1]
        same = torch.allclose(model(IDS)[:, -1], model(swapped)[:, -1], atol=1e-5)
        assert same == (change in blind_changes), change


def test_positions_of_the_second_layer_are_those_that_the_change_names(variations: ModuleType) -> None:
    turned = {
        name: [block.attn.turned for block in variations.VariedGPT(SIZES, change).transformer.h]
        for name, change in variations.CHANGES.items()
        if change.kind in ("baseline", "positions")
    }
    assert turned == {
        "baseline": ["qk", "qk"], "none": ["", ""], "added_sines": ["", ""], "added_learned": ["", ""],
        "rotary_first_layer": ["qk", ""], "rotary_q": ["q", "q"], "rotary_qkv": ["qkv", "qkv"],
    }  # fmt: skip


def test_every_parameter_that_is_trained_has_one_optimizer(bench: ModuleType, variations: ModuleType) -> None:
    plan = bench.plan_training(
        SIZES, device_batch_size=2, world_size=1, total_batch_size=24, num_iterations=2, target_param_data_ratio=1.0,
        matrix_lr=0.02, embedding_lr=0.2, unembedding_lr=0.004,
    )  # fmt: skip
    for name, change in variations.CHANGES.items():
        model = variations.varied_model(SIZES, change, seed=1)
        before = {key: value.clone() for key, value in model.named_parameters()}
        optimizers = variations.optimizers_of(model, change, plan, CPU)
        for _ in range(3):  # behind zero projections the other matrices have no gradient at first
            model(IDS[:, :-1], IDS[:, 1:]).backward()
            optimizers.step(1.0, 0.9)
        assert all(parameter.grad is None for parameter in model.parameters() if parameter.requires_grad), name
        moved = {key for key, value in model.named_parameters() if not torch.equal(value, before[key])}
        still = {key for key in before if key not in moved}
        if name == "added_sines":
            assert still == {variations.PLACES}
        elif name == "all_zero":
            assert still == {key for key in before if ".h." in key}, "all zero: no matrix ever has a gradient"
        else:
            assert still == set(), name


def test_a_generation_with_the_cache_is_cheaper(bench: ModuleType) -> None:
    line = bench.cache_line(bench.Config(vocab_size=30, cache_rounds=1), depth=1, tokens=6)
    config = bench.config_for_depth(1, 30, 64)
    per_token = 2 * (config.matrix_params + config.vocab_size * config.n_embd)
    read_once, read_again = 16 + 5, sum(range(16, 16 + 6))
    assert 1 < line["flops_cached"] / (read_once * per_token) < 1.1  # the rest is attention
    assert 1 < line["flops_plain"] / (read_again * per_token) < 1.1


def test_runs_are_not_repeated_and_become_tables(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "documents", lambda text: (["The sky is blue. " * 40] * 4, ["The sky is grey. " * 40]))
    monkeypatch.setattr(bench, "LESSONS", tmp_path / "lessons")
    small = bench.Config(
        changes=("baseline", "none"), seeds=(1, 2), depth=1, vocab_size=270, max_seq_len=16, total_batch_size=32,
        tokens=128, eval_tokens=64, cache_rounds=0,
    )  # fmt: skip
    out = tmp_path / "base" / "bench" / "lesson_ablations.jsonl"
    bench.main(small)
    lines = bench.read_lines(out)
    assert [(line["change"], line["seed"]) for line in lines] == [
        ("baseline", 1), ("none", 1), ("baseline", 2), ("none", 2),
    ]  # fmt: skip
    bench.main(small)
    assert bench.read_lines(out) == lines
    bench.main(replace(small, write=True))
    table = json.loads((tmp_path / "lessons" / "11_positions" / "measured.json").read_text("utf-8"))
    assert [row["name"] for row in table["rows"]] == ["rotary_qk", "none"]
    gains = [lines[2 * i]["bpb"] - lines[2 * i + 1]["bpb"] for i in range(2)]
    assert table["rows"][0]["gain"] == 0
    assert table["rows"][1]["gain"] == pytest.approx(sum(gains) / 2, abs=1e-4)
    assert table["rows"][1]["half_width"] == pytest.approx(12.71 * stdev(gains) / 2**0.5, abs=1e-4)


def test_wrong_flags_are_refused_in_one_sentence(bench: ModuleType) -> None:
    with pytest.raises(UserError, match="no change is called 'nun'; there are baseline, none"):
        bench.main(bench.Config(changes=("nun",)))
    with pytest.raises(UserError, match="got 10 tokens in steps of 2048 and rows of 256"):
        bench.main(bench.Config(tokens=10))
