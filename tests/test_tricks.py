"""Tricks of the architecture: nothing at their start, exact in the cache, counted, and each against a slow twin."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import CPU, random_model

from nanochat.attention import rotate, window_mask
from nanochat.gpt import GPT, rms_norm
from nanochat.gpt_config import ARCHITECTURES, GPTConfig
from nanochat.optim import MuonAdamW, Rates
from nanochat.tricks import bigram_rows

PLAIN = GPTConfig(sequence_len=64, vocab_size=97, n_layer=3, n_head=4, n_kv_head=2, n_embd=32)
TRICKS: dict[str, dict[str, Any]] = {
    "value_embeddings": {"value_embeddings": True},
    "residual_scalars": {"residual_scalars": True},
    "smear": {"smear": True},
    "backout": {"backout": True},
    "windows": {"window_pattern": "SL"},
    "bigram": {"bigram_rows": 50},
    "fast": ARCHITECTURES["fast"],
    "all": {
        "value_embeddings": True, "residual_scalars": True, "smear": True, "backout": True, "window_pattern": "SSL",
        "bigram_rows": 50,
    },
}  # fmt: skip


@pytest.fixture(params=TRICKS)
def config(request: pytest.FixtureRequest) -> GPTConfig:
    return replace(PLAIN, **TRICKS[request.param])


def ids(rows: int, tokens: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 97, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def test_every_parameter_is_initialised_and_the_first_loss_is_ln_v(config: GPTConfig) -> None:
    model = GPT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    model.init_weights()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    idx = ids(2, 33)
    assert model(idx[:, :-1], idx[:, 1:]).item() == pytest.approx(math.log(97), rel=0.01)


@pytest.mark.parametrize("name", ["default", "portable", "all"])
def test_every_gradient_is_that_of_finite_differences_in_float64(name: str) -> None:
    config = replace(PLAIN, **(TRICKS["all"] if name == "all" else ARCHITECTURES[name]))
    model = random_model(config).double()
    model.dtype = torch.float64
    generator = torch.Generator().manual_seed(8)
    idx = ids(2, 33)
    model(idx[:, :-1], idx[:, 1:]).backward()
    for parameter_name, parameter in model.named_parameters():
        way = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        way /= way.norm()
        losses = []
        with torch.no_grad():
            for step in (1e-4, -2e-4):
                parameter.add_(way, alpha=step)
                losses.append(model(idx[:, :-1], idx[:, 1:]).item())
            parameter.add_(way, alpha=1e-4)
        assert parameter.grad is not None
        along = (parameter.grad * way).sum().item()
        assert along != 0
        assert (losses[0] - losses[1]) / 2e-4 == pytest.approx(along, rel=1e-5, abs=1e-10), parameter_name


def test_at_their_start_they_do_nothing(config: GPTConfig) -> None:
    """The weights that both have are the same for the same seed, and a window is as wide as the tokens are many."""
    plain, tricky = random_model(PLAIN), GPT(config)
    tricky.init_weights()
    missing, unexpected = tricky.load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == []
    assert all(name.startswith("tricks.") for name in missing)
    fresh = GPT(PLAIN)
    fresh.init_weights(7)
    again = GPT(config)
    again.init_weights(7)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in fresh.state_dict().items())
    idx = ids(2, 16)
    with torch.no_grad():
        torch.testing.assert_close(tricky(idx), plain(idx), atol=1e-6, rtol=0)


def test_they_are_counted_have_a_role_and_learn(config: GPTConfig) -> None:
    model = random_model(config)
    assert sum(p.numel() for p in model.parameters()) == config.num_params
    idx = ids(4, 64)
    model(idx[:, :-1], idx[:, 1:]).backward()
    roles = model.roles()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
        assert (roles[name] == "matrix") == (parameter.dim() == 2 and "wte" not in name and "lm_head" not in name
                                             and "tricks" not in name)  # fmt: skip
    MuonAdamW(dict(model.named_parameters()), roles, Rates(), CPU).step()


def test_a_token_never_sees_the_future(config: GPTConfig) -> None:
    model, idx = random_model(config), ids(1, 32)
    changed = idx.clone()
    changed[0, 20:] = 0
    with torch.no_grad():
        assert torch.equal(model(idx)[:, :20], model(changed)[:, :20])


def test_computing_layers_twice_changes_no_gradient(config: GPTConfig) -> None:
    idx, found = ids(2, 33), []
    for again in (False, True):
        model = random_model(config)
        model.activation_checkpointing = again
        model(idx[:, :-1], idx[:, 1:]).backward()
        found.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def slow_logits(model: GPT, row: list[int]) -> torch.Tensor:
    """Of one row: every trick token by token, as its formula is written."""
    config, tricks = model.config, model.tricks

    def norm(x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=config.norm_eps)

    embedded = [norm(model.transformer.wte.weight[token]) for token in row]
    stream = []
    for t, token in enumerate(row):
        x = embedded[t]
        if config.smear and t > 0:
            gate = 1 / (1 + torch.exp(-(x[:24] * tricks.smear_gate).sum()))
            x = x + tricks.smear_scale * gate * embedded[t - 1]
        if config.bigram_rows:
            pair = ((row[t - 1] + 1 if t else 0) * 2_654_435_761) ^ (token * 2_246_822_519)
            x = x + tricks.bigram_scale * tricks.bigram.weight[(pair ^ (pair >> 16)) % config.bigram_rows]
        stream.append(x)
    x = start = torch.stack(stream)
    middle = x
    for layer, block in enumerate(model.transformer.h):
        if layer == config.n_layer // 2:
            middle = x
        if config.residual_scalars:
            x = tricks.stream_scale[layer] * x + tricks.start_scale[layer] * start
        attn, inside = block.attn, norm(x)
        values = inside @ attn.c_v.weight.T
        if config.value_embeddings and layer in (0, 2):
            values = values + tricks.value_tables[str(layer)].weight[torch.tensor(row)]
        size, made = config.head_dim, []
        for head in range(config.n_head):
            of_kv = slice(head // 2 * size, (head // 2 + 1) * size)
            q = (inside @ attn.c_q.weight[head * size : (head + 1) * size].T).view(1, 1, -1, size)
            k = (inside @ attn.c_k.weight[of_kv].T).view(1, 1, -1, size)
            q, k = (norm(rotate(part, model.rotary[:, : len(row)]))[0, 0] for part in (q, k))
            out = []
            for t in range(len(row)):
                window = config.windows[layer] or len(row)
                seen = slice(max(0, t - window + 1), t + 1)
                out.append((q[t] @ k[seen].T / size**0.5).softmax(-1) @ values[seen, of_kv])
            made.append(torch.stack(out))
        x = x + torch.cat(made, dim=1) @ attn.c_proj.weight.T
        x = x + F.relu(norm(x) @ block.mlp.c_fc.weight.T).square() @ block.mlp.c_proj.weight.T
    if config.backout:
        x = x - tricks.backout_scale * middle
    return 15 * torch.tanh(norm(x) @ model.lm_head.weight.T / 15)


def test_logits_are_those_of_the_formulas_written_out(config: GPTConfig) -> None:
    model, idx = random_model(config), ids(2, 40)
    with torch.no_grad():
        made = model(idx)
        for row in range(2):
            torch.testing.assert_close(made[row], slow_logits(model, idx[row].tolist()), atol=2e-4, rtol=0)


def test_each_trick_changes_the_logits_once_its_parameters_are_not_at_their_start(config: GPTConfig) -> None:
    tricky, plain = random_model(config), GPT(PLAIN)
    plain.load_state_dict({k: v for k, v in tricky.state_dict().items() if not k.startswith("tricks.")})
    idx = ids(1, 64)
    with torch.no_grad():
        assert (tricky(idx) - plain(idx)).abs().max() > 0.01


def test_a_window_is_itself_and_the_tokens_before_it() -> None:
    mask = window_mask(5, 2, torch.device("cpu"))
    assert mask.int().tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]]


def test_pairs_spread_over_the_rows_of_the_bigram_table() -> None:
    first, second = torch.meshgrid(torch.arange(-1, 300), torch.arange(300), indexing="ij")
    for rows in (4096, 5000):
        counts = bigram_rows(first.flatten(), second.flatten(), rows).bincount(minlength=rows)
        assert len(counts) == rows
        assert counts.min() > 0
        assert counts.max() < 3 * counts.float().mean()


def test_the_stream_keeps_its_format() -> None:
    model = GPT(replace(PLAIN, **TRICKS["all"]), torch.bfloat16)
    model.init_weights()
    assert model.hidden(ids(2, 40)).dtype == torch.bfloat16
    assert rms_norm(torch.ones(2, 4, dtype=torch.bfloat16), 1e-6).dtype == torch.bfloat16
    assert random_model(replace(PLAIN, **TRICKS["all"])).cast_(torch.bfloat16)(ids(1, 5)).isfinite().all()


@pytest.mark.parametrize("arch", ["default", "fast"])
def test_it_overfits_one_batch_with_its_own_optimizer(arch: str) -> None:
    model = GPT(replace(PLAIN, **ARCHITECTURES[arch]))
    model.init_weights()
    optimizer = MuonAdamW(dict(model.named_parameters()), model.roles(), Rates(unembedding_lr=0.02), CPU)
    idx = ids(2, 33, seed=6)
    for _ in range(150):
        loss = model(idx[:, :-1], idx[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.01
