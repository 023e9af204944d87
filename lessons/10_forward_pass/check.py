"""Checks of lesson 10, against torch's own functions and the product's model."""

import math

import pytest
import torch
import torch.nn.functional as F

from lessons import oracle
from lessons.compare import same
from lessons.learner import load
from nanochat import attention
from nanochat.chunked_loss import capped_logits
from nanochat.gpt import GPT
from nanochat.gpt_config import GPTConfig

mine = load(10)
B, T, C, H, V = 2, 5, 8, 2, 11
D = C // H


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def product() -> GPT:
    """The product's model, small, and without a zero, so that every part of it shows."""
    model = GPT(GPTConfig(sequence_len=T, vocab_size=V, n_layer=2, n_head=H, n_kv_head=H, n_embd=C))
    model.init_weights(1)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.add_(normal(*parameter.shape, seed=number) * 0.2)
    return model


def ids_and_targets() -> tuple[torch.Tensor, torch.Tensor]:
    row = torch.randint(V, (B, T + 1), generator=torch.Generator().manual_seed(2))
    return row[:, :-1], row[:, 1:]


def test_linear_is_a_matrix_without_bias() -> None:
    same(mine.linear(normal(B, T, C), normal(3, C)), F.linear(normal(B, T, C), normal(3, C)), "linear")


def test_embed_takes_rows_of_the_table() -> None:
    ids, _ = ids_and_targets()
    same(mine.embed(normal(V, C), ids), F.embedding(ids, normal(V, C)), "embed")


def test_rms_norm_agrees_with_torch() -> None:
    x = normal(B, T, C) * 7
    same(mine.rms_norm(x), F.rms_norm(x, (C,), eps=1e-6), "rms_norm")


def test_rms_norm_of_zeros_is_zero_and_not_nan() -> None:
    same(mine.rms_norm(torch.zeros(1, 2, C)), torch.zeros(1, 2, C), "rms_norm of zeros")


def test_heads_are_split_in_blocks_of_channels_and_merged_again() -> None:
    x = torch.arange(B * T * C, dtype=torch.float32).view(B, T, C)
    split = mine.split_heads(x, H)
    assert split.shape == (B, H, T, D), (
        f"split_heads gives {tuple(split.shape)}, expected (B, H, T, D) = {(B, H, T, D)}"
    )
    same(split[1, 1, 3], x[1, 3, D:], "split_heads: head 1 of token 3, which is the second half of its channels")
    same(mine.merge_heads(split), x, "merge_heads after split_heads")


def test_the_rotary_table_has_the_angles_of_nanochat() -> None:
    cosine, sine = mine.rotary_table(T, D)
    expected = attention.rotary_table(T, D, 10_000.0, torch.device("cpu"))
    same(cosine, expected[0], "the cosines of rotary_table")
    same(sine, expected[1], "the sines of rotary_table")


def test_rotate_turns_pairs_of_channels() -> None:
    x, table = normal(B, H, T, D), attention.rotary_table(T, D, 10_000.0, torch.device("cpu"))
    turned = mine.rotate(x, table[0], table[1])
    same(turned[:, :, 0], x[:, :, 0], "rotate at position 0, where nothing turns (pairs are channels i and i + D/2),")
    same(turned.norm(dim=-1), x.norm(dim=-1), "the length of what rotate gives, which turning does not change")
    same(turned, attention.rotate(x, table), "rotate (is the angle negative?)")


def test_softmax_agrees_with_torch_for_large_scores_too() -> None:
    scores = normal(3, T)
    same(mine.softmax(scores), scores.softmax(-1), "softmax")
    same(mine.softmax(scores * 1e4), (scores * 1e4).softmax(-1), "softmax of scores of ten thousand")
    scores[:, 2] = -math.inf
    same(mine.softmax(scores), scores.softmax(-1), "softmax where a score is -inf")


def test_attention_weights_look_back_only_and_sum_to_one() -> None:
    q, k = normal(B, H, T, D, seed=3), normal(B, H, T, D, seed=4)
    found = mine.attention_weights(q, k)
    assert found.shape == (B, H, T, T), f"attention_weights gives {tuple(found.shape)}, expected {(B, H, T, T)}"
    assert found.triu(1).abs().max() == 0, "attention_weights lets a token look at one that comes after it"
    same(found.sum(-1), torch.ones(B, H, T), "the sums of the rows of attention_weights")
    values = torch.eye(T).expand(B, H, T, T)  # with these as values, attention gives its weights
    same(found, F.scaled_dot_product_attention(q, k, values, is_causal=True), "attention_weights")


def test_attention_mlp_and_block_agree_with_torch() -> None:
    weights, x = dict(product().named_parameters()), normal(B, T, C, seed=5)
    for layer in range(2):
        same(mine.attention(weights, layer, x, H), oracle.attention(weights, layer, x, H), f"attention {layer}")
        same(mine.mlp(weights, layer, x), oracle.mlp(weights, layer, x), f"mlp {layer}")
        same(mine.block(weights, layer, x, H), oracle.block(weights, layer, x, H), f"block {layer}")


def test_logits_are_capped() -> None:
    head, x = normal(V, C) * 10, normal(B, T, C)
    same(mine.logits(head, x), capped_logits(x, head, 15.0), "logits")


def test_cross_entropy_agrees_with_torch_and_leaves_out_targets_of_minus_one() -> None:
    predicted, (_, targets) = normal(B, T, V) * 5, ids_and_targets()
    same(mine.cross_entropy(predicted, targets), F.cross_entropy(predicted.mT, targets), "cross_entropy")
    extreme = F.cross_entropy(50 * predicted.mT, targets)
    same(
        mine.cross_entropy(50 * predicted, targets), extreme, "cross_entropy of targets with a probability below 1e-45"
    )
    targets[0, 2:] = -1
    expected = F.cross_entropy(predicted.mT, targets, ignore_index=-1)
    same(mine.cross_entropy(predicted, targets), expected, "cross_entropy where some targets are -1")


def test_the_whole_agrees_with_the_model_of_nanochat() -> None:
    model, (ids, targets) = product(), ids_and_targets()
    weights = dict(model.named_parameters())
    same(
        mine.forward(weights, ids, H),
        model(ids),
        "forward (is the stream normed behind the embedding, and before the head?)",
    )
    same(mine.forward(weights, ids, H, targets), model(ids, targets), "the loss of forward")


def test_a_later_token_changes_nothing_before_it() -> None:
    weights, (ids, _) = dict(product().named_parameters()), ids_and_targets()
    changed = ids.clone()
    changed[:, 3] = (ids[:, 3] + 1) % V
    same(
        mine.forward(weights, changed, H)[:, :3], mine.forward(weights, ids, H)[:, :3], "logits before a changed token"
    )


def test_the_loss_at_the_start_is_ln_v() -> None:
    model, (ids, targets) = product(), ids_and_targets()
    model.init_weights(1)
    loss = mine.forward(dict(model.named_parameters()), ids, H, targets).item()
    assert loss == pytest.approx(math.log(V), abs=0.01), f"a fresh model's loss is {loss:.4f}, expected ln {V}"


def test_the_gradient_flows_to_every_weight() -> None:
    model, (ids, targets) = product(), ids_and_targets()
    model(ids, targets).backward()
    copies = {name: weight.detach().clone().requires_grad_() for name, weight in model.named_parameters()}
    mine.forward(copies, ids, H, targets).backward()
    for name, weight in model.named_parameters():
        assert copies[name].grad is not None, (
            f"no gradient reaches {name}: is there a detach() or no_grad() on the way?"
        )
        assert weight.grad is not None
        same(copies[name].grad, weight.grad, f"the gradient of {name}", tolerance=1e-4)
