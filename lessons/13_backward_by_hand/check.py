"""Checks of lesson 13, against autograd in float64, and the product's model."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from lessons import oracle
from lessons.compare import same
from lessons.learner import load
from nanochat import attention
from nanochat.gpt import GPT
from nanochat.gpt_config import GPTConfig

mine = load(13)
Tensor = torch.Tensor
B, T, C, H, V = 2, 5, 8, 2, 11
D = C // H


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_autograd(step: Callable[..., Tensor], *taken: Tensor) -> tuple[Tensor, list[Tensor]]:
    """A random dy, and what autograd makes of it by all that the step took."""
    leaves = [each.clone().requires_grad_() for each in taken]
    y = step(*leaves)
    dy = normal(*y.shape, seed=99)
    return dy, list(torch.autograd.grad(y, leaves, dy))


@torch.no_grad()
def test_linear() -> None:
    x, weight = normal(B, T, C), normal(3, C, seed=1)
    with torch.enable_grad():
        dy, (dx, dweight) = by_autograd(F.linear, x, weight)
    found = mine.linear_backward(x, weight, dy)
    same(found[0], dx, "dx of linear")
    same(found[1], dweight, "dweight of linear (it is summed over rows and tokens)")


@torch.no_grad()
def test_embed_adds_up_where_a_token_comes_twice() -> None:
    ids = torch.tensor([[3, 1, 3, 0, 3], [1, 2, 10, 2, 0]])
    with torch.enable_grad():
        dy, (dtable,) = by_autograd(lambda table: table[ids], normal(V, C))
    same(mine.embed_backward(ids, dy, V), dtable, "dtable of embed")


@torch.no_grad()
def test_rms_norm() -> None:
    x = normal(B, T, C) * 3
    with torch.enable_grad():
        dy, (dx,) = by_autograd(lambda x: F.rms_norm(x, (C,), eps=1e-6), x)
    same(mine.rms_norm_backward(x, dy), dx, "dx of rms_norm")


@torch.no_grad()
def test_relu_squared() -> None:
    x = normal(B, T, C)
    with torch.enable_grad():
        dy, (dx,) = by_autograd(lambda x: F.relu(x).square(), x)
    same(mine.relu_squared_backward(x, dy), dx, "dx of relu(x)^2")


@torch.no_grad()
def test_rotate() -> None:
    table = attention.rotary_table(T, D, 10_000.0, torch.device("cpu")).double()
    with torch.enable_grad():
        dy, (dx,) = by_autograd(lambda x: attention.rotate(x, table), normal(B, H, T, D))
    same(mine.rotate_backward(dy, table[0], table[1]), dx, "dx of rotate")


@torch.no_grad()
def test_softmax() -> None:
    scores = normal(3, T) * 2
    with torch.enable_grad():
        dy, (dscores,) = by_autograd(lambda scores: scores.softmax(-1), scores)
    same(mine.softmax_backward(scores.softmax(-1), dy), dscores, "dscores of softmax")


@torch.no_grad()
def test_attend() -> None:
    q, k, v = (normal(B, H, T, D, seed=seed) for seed in range(3))
    with torch.enable_grad():
        dy, expected = by_autograd(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), q, k, v)
    for found, wanted, name in zip(mine.attend_backward(q, k, v, dy), expected, ("dq", "dk", "dv"), strict=True):
        same(found, wanted, f"{name} of attention")


@torch.no_grad()
def test_logits() -> None:
    head, x = normal(V, C) * 5, normal(B, T, C, seed=1)
    with torch.enable_grad():
        dy, (dx, dhead) = by_autograd(lambda x, head: 15 * torch.tanh(F.linear(x, head) / 15), x, head)
    found = mine.logits_backward(head, x, dy)
    same(found[0], dx, "dx of logits")
    same(found[1], dhead, "dhead of logits")


@torch.no_grad()
def test_cross_entropy() -> None:
    predicted = normal(B, T, V) * 3
    targets = torch.randint(V, (B, T), generator=torch.Generator().manual_seed(1))
    targets[1, 2:] = -1
    leaf = predicted.clone().requires_grad_()
    with torch.enable_grad():
        F.cross_entropy(leaf.mT, targets, ignore_index=-1).backward()
    assert leaf.grad is not None
    same(mine.cross_entropy_backward(predicted, targets), leaf.grad, "dpredicted of cross_entropy")


def product() -> tuple[GPT, Tensor, Tensor]:
    """The product's model in float32, small and without a zero, and a batch."""
    model = GPT(GPTConfig(sequence_len=T, vocab_size=V, n_layer=2, n_head=H, n_kv_head=H, n_embd=C))
    model.init_weights(1)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.add_(normal(*parameter.shape, seed=number) * 0.2)
    rows = torch.randint(V, (B, T + 1), generator=torch.Generator().manual_seed(2))
    return model, rows[:, :-1], rows[:, 1:]


def test_the_two_parts_of_a_layer() -> None:
    model, _, _ = product()
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    x = normal(B, T, C, seed=7).float().requires_grad_()
    dy = normal(B, T, C, seed=8).float()
    for part, forward, found in (
        (
            "attn",
            lambda w: oracle.attention(w, 1, x, H),
            lambda: mine.attention_backward(weights, 1, x.detach(), H, dy),
        ),
        ("mlp", lambda w: oracle.mlp(w, 1, x), lambda: mine.mlp_backward(weights, 1, x.detach(), dy)),
    ):
        parameters = {
            n: w.clone().requires_grad_() for n, w in weights.items() if n.startswith(f"transformer.h.1.{part}")
        }
        result = forward(parameters)
        expected = torch.autograd.grad(result, [x, *parameters.values()], dy)
        with torch.no_grad():
            dx, gradients = found()
        same(dx, expected[0], f"dx of {part}", tolerance=1e-4)
        missing = sorted(set(parameters) - set(gradients))
        assert not missing, f"the backward of {part} gives no gradient for {missing}"
        for name, wanted in zip(parameters, expected[1:], strict=True):
            same(gradients[name], wanted, f"the gradient of {name}", tolerance=1e-4)


def test_the_whole_model() -> None:
    model, ids, targets = product()
    model(ids, targets).backward()
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    with torch.no_grad():
        found = mine.backward(weights, ids, H, targets)
    missing = sorted(set(weights) - set(found))
    assert not missing, f"no gradient for {missing}"
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        same(found[name], parameter.grad, f"the gradient of {name}", tolerance=1e-4)
