"""Checks of lesson 11, against the product's rotation and model and torch's attention."""

import math

import pytest
import torch
import torch.nn.functional as F

from lessons import oracle
from lessons.compare import same
from lessons.learner import load
from nanochat import attention
from nanochat.gpt import GPT
from nanochat.gpt_config import GPTConfig

mine = load(11)
B, T, C, H, V = 2, 6, 16, 2, 13
D = C // H


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def product(layers: int = 2) -> GPT:
    """The product's model, small, and without a zero."""
    model = GPT(GPTConfig(sequence_len=T, vocab_size=V, n_layer=layers, n_head=H, n_kv_head=H, n_embd=C))
    model.init_weights(1)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.add_(normal(*parameter.shape, seed=number) * 0.2)
    return model


def weights_of(model: GPT) -> dict[str, torch.Tensor]:
    return {name: weight.detach() for name, weight in model.named_parameters()} | {"positions": normal(500, C, seed=9)}


def some_ids() -> torch.Tensor:
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(2))


def test_sines_are_those_of_the_formula() -> None:
    positions = [0.0, 1.0, 7.0, 300.0]
    expected = torch.tensor(
        [
            [wave(p * 10_000 ** (-2 * i / 8)) for wave in (math.sin, math.cos) for i in range(4)]
            for p in positions
        ]
    )  # fmt: skip
    same(mine.sines(torch.tensor(positions), 8), expected, "sines", tolerance=1e-4)


def test_turn_is_the_rotation_of_nanochat_at_whole_positions() -> None:
    x, table = normal(B, H, T, D), attention.rotary_table(T, D, 10_000.0, torch.device("cpu"))
    same(mine.turn(x, torch.arange(T)), attention.rotate(x, table), "turn")


def test_two_turns_are_one_by_the_sum() -> None:
    x, here, more = normal(T, D), torch.arange(T) * 1.5, torch.full((T,), 2.25)
    same(mine.turn(mine.turn(x, here), more), mine.turn(x, here + more), "turned twice")
    same(mine.turn(mine.turn(x, here), -here), x, "turned there and back")


def test_a_score_depends_on_the_distance_alone() -> None:
    q, k = normal(D, seed=3), normal(D, seed=4)
    at_start = mine.score(q, k, 5.0, 2.0)
    same(at_start, (mine.turn(q.unsqueeze(0), torch.tensor([3.0])) @ k).squeeze(), "the score of positions 5 and 2")
    for offset in (1.0, 10.0, 100.0):
        same(mine.score(q, k, 5.0 + offset, 2.0 + offset), at_start, f"the score, both {offset:g} further on", 1e-4)
    other = mine.score(q, k, 5.0, 3.0)
    assert abs(float(other - at_start)) > 1e-3, "the score does not change with the distance: is anything turned?"


@pytest.mark.parametrize("turned", ["", "q", "qk", "qkv"])
def test_attention_turns_what_it_is_told_to(turned: str) -> None:
    weights, x = weights_of(product()), normal(B, T, C, seed=5)
    found = mine.attention(weights, 1, x, H, torch.arange(T), turned)
    same(found, oracle.attention(weights, 1, x, H, turned), f"attention with {turned or 'nothing'} turned")


def test_with_q_and_k_turned_it_is_the_model_of_nanochat() -> None:
    model = product()
    same(mine.forward(weights_of(model), some_ids(), H, "rotary_qk"), model(some_ids()), "forward with rotary_qk")


@pytest.mark.parametrize("kind", ["sines", "learned"])
def test_a_table_is_added_to_the_normed_embedding(kind: str) -> None:
    weights, ids = weights_of(product(1)), some_ids()
    table = mine.sines(torch.arange(T), C) if kind == "sines" else weights["positions"][:T]
    normed = F.rms_norm(weights["transformer.wte.weight"][ids], (C,), eps=1e-6)
    x = oracle.block(weights, 0, normed + table, H, turned="")
    expected = 15 * torch.tanh(F.rms_norm(x, (C,), eps=1e-6) @ weights["lm_head.weight"].mT / 15)
    same(mine.forward(weights, ids, H, kind), expected, f"forward with {kind}")


def test_one_layer_without_positions_does_not_see_the_order_nor_with_q_alone_turned() -> None:
    weights, ids = weights_of(product(1)), some_ids()
    shuffled = torch.cat((ids[:, [2, 0, 4, 1, 3]], ids[:, 5:]), dim=1)
    last = {kind: mine.forward(weights, ids, H, kind)[:, -1] for kind in mine.KINDS}
    of_shuffled = {kind: mine.forward(weights, shuffled, H, kind)[:, -1] for kind in mine.KINDS}
    same(of_shuffled["none"], last["none"], "the last logits after a shuffle, without positions")
    same(of_shuffled["rotary_q"], last["rotary_q"], "the last logits after a shuffle, with q alone turned")
    for kind in ("sines", "learned", "rotary_qk", "rotary_qkv"):
        assert (of_shuffled[kind] - last[kind]).abs().max() > 1e-3, f"{kind}: a shuffle changes nothing"


def test_only_q_and_k_turned_do_not_mind_where_the_text_stands() -> None:
    weights, ids = weights_of(product()), some_ids()
    moved = {
        k: (mine.forward(weights, ids, H, k, 40) - mine.forward(weights, ids, H, k)).abs().max() for k in mine.KINDS
    }
    assert moved["rotary_qk"] < 1e-3, f"with q and k turned, moving the text changes logits by {moved['rotary_qk']:.2g}"
    for kind in ("sines", "learned", "rotary_q", "rotary_qkv"):
        assert moved[kind] > 1e-2, f"{kind}: moving the text by 40 positions changes nothing: does `first` come in?"


def test_a_table_may_be_rounded_and_its_angles_may_not() -> None:
    exact = attention.rotary_table(2000, 32, 10_000.0, torch.device("cpu"))
    same(torch.stack(mine.rounded_table(2000, 32, torch.float32, torch.float32)), exact, "rounded_table in float32")
    late = torch.stack(mine.rounded_table(2000, 32, torch.float32, torch.bfloat16))
    assert 1e-4 < (late - exact).abs().max() < 2**-8, "a table in bfloat16 is off by up to half a 128th"
    early = torch.stack(mine.rounded_table(2000, 32, torch.bfloat16, torch.float32))
    assert (early - exact).abs().max() > 1, "angles in bfloat16 must be far off at position 2000: are they rounded?"
    expected = torch.tensor(1023.0).bfloat16().float()
    same(early[0, 1023, 0], expected.cos(), "the cosine of pair 0 at position 1023, its angle rounded to bfloat16")
