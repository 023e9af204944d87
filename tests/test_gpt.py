"""The model against transformers' own code on the same weights, and the properties that its design promises."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from lessons.oracle import model_of
from nanochat import chunked_loss
from nanochat.gpt import GPT
from nanochat.gpt_config import GPTConfig

SMALL = GPTConfig(sequence_len=64, vocab_size=97, n_layer=3, n_head=4, n_kv_head=2, n_embd=64)


def random_model(config: GPTConfig = SMALL, seed: int = 0) -> GPT:
    """A model in which no matrix is zero, so that every part of it shows in the logits."""
    return model_of(config, seed, spread=0.1)


def transformers_names(name: str) -> str:
    """Our parameter's name in transformers."""
    table = {
        "transformer.wte": "model.embed_tokens",
        "transformer.h": "model.layers",
        "attn.c_q": "self_attn.q_proj",
        "attn.c_k": "self_attn.k_proj",
        "attn.c_v": "self_attn.v_proj",
        "attn.c_proj": "self_attn.o_proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    for ours, theirs in table.items():
        name = name.replace(ours, theirs)
    return name


def test_logits_equal_transformers_nanochat() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.NanoChatConfig(
        vocab_size=SMALL.vocab_size, hidden_size=64, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, final_logit_softcapping=15.0,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0}, attn_implementation="eager",
    )  # fmt: skip
    theirs = transformers.NanoChatForCausalLM(config).eval()
    ours = random_model()
    state = {transformers_names(name): value for name, value in ours.state_dict().items()}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert (missing, unexpected) == ([], [])
    idx = torch.randint(0, SMALL.vocab_size, (2, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(idx), theirs(idx).logits, atol=1e-4, rtol=0)


def test_the_portable_switches_give_the_logits_of_qwen3() -> None:
    """Norm weights of one, the embedding norm folded into the table, halves of each head's W_q and W_k rows swapped."""
    transformers = pytest.importorskip("transformers")
    ours = random_model(GPTConfig(64, 97, 2, 4, 2, 64, mlp="swiglu", logit_softcap=None))
    c = ours.config
    theirs = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            vocab_size=97, hidden_size=64, intermediate_size=c.mlp_dim, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=c.head_dim, max_position_embeddings=64, rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0}, tie_word_embeddings=False,
        )
    ).eval()  # fmt: skip
    state = theirs.state_dict()
    for name, value in ours.state_dict().items():
        target = transformers_names(name).replace("mlp.fc1", "mlp.up_proj").replace("mlp.fc2", "mlp.down_proj")
        target = target.replace("mlp.c_gate", "mlp.gate_proj")
        if "wte" in name:
            value = F.rms_norm(value, (64,), eps=1e-6)
        if "c_q" in name or "c_k" in name:
            value = value.view(-1, 2, c.head_dim // 2, 64).flip(1).reshape(value.shape)
        state[target] = value
    theirs.load_state_dict(state)
    idx = torch.randint(0, 97, (2, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(idx), theirs(idx).logits, atol=1e-4, rtol=1e-4)


def test_the_chunked_loss_and_its_gradients_equal_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanochat.chunked_loss.LEAST_TOKENS", 1)
    monkeypatch.setitem(chunked_loss.CHUNK_VALUES, "cpu", 97 * 20)  # several chunks, the last one smaller
    monkeypatch.setitem(chunked_loss.BLOCK_VALUES, "cpu", 97 * 7)  # several blocks in each, the last one smaller
    idx = torch.randint(0, 97, (2, 33), generator=torch.Generator().manual_seed(2))
    x, y = idx[:, :-1], idx[:, 1:].clone()
    y[0, :10] = -1
    ours, plain = random_model(), random_model()
    ours(x, y).backward()
    loss = F.cross_entropy(plain(x).flatten(0, 1), y.flatten(), ignore_index=-1)
    loss.backward()
    torch.testing.assert_close(ours(x, y).detach(), loss.detach(), atol=1e-6, rtol=1e-6)
    for (name, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("softcap", [None, 15.0])
def test_the_compiled_loss_and_its_gradients_are_those_of_the_plain_one(
    monkeypatch: pytest.MonkeyPatch, softcap: float | None
) -> None:
    """As a GPU takes it, chunks of two sizes; losses without a gradient too."""
    monkeypatch.setattr("nanochat.chunked_loss.LEAST_TOKENS", 1)
    for sizes in (chunked_loss.CHUNK_VALUES, chunked_loss.BLOCK_VALUES):
        monkeypatch.setitem(sizes, "cpu", 97 * 20)
    idx = torch.randint(0, 97, (2, 33), generator=torch.Generator().manual_seed(2))
    x, y = idx[:, :-1], idx[:, 1:].clone()
    y[0, :10] = -1
    plain, ours = (random_model(replace(SMALL, logit_softcap=softcap)) for _ in range(2))
    ours.loss_block = torch.compile(chunked_loss.loss_block)
    torch.testing.assert_close(ours.token_losses(x, y), plain.token_losses(x, y), atol=1e-6, rtol=1e-6)
    for model in (plain, ours):
        model(x, y).backward()
    for (name, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-7, rtol=1e-5, msg=name)


def test_weights_scale_each_tokens_gradient() -> None:
    idx = torch.randint(0, 97, (1, 17), generator=torch.Generator().manual_seed(3))
    weights = torch.linspace(-1.0, 1.0, 16).unsqueeze(0)
    ours, plain = random_model(), random_model()
    ours(idx[:, :-1], idx[:, 1:], weights).backward()
    losses = F.cross_entropy(plain(idx[:, :-1]).flatten(0, 1), idx[:, 1:].flatten(), reduction="none")
    (losses * weights.flatten()).sum().backward()
    torch.testing.assert_close(
        ours.transformer.wte.weight.grad, plain.transformer.wte.weight.grad, atol=1e-6, rtol=1e-4
    )


def test_a_batch_without_a_target_has_loss_zero_and_no_nan() -> None:
    model = random_model()
    loss = model(torch.zeros(1, 8, dtype=torch.long), torch.full((1, 8), -1))
    loss.backward()
    assert loss.item() == 0.0
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_every_parameter_is_initialised_blocks_start_as_identity_and_the_loss_is_ln_v() -> None:
    model = GPT(SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    model.init_weights()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    idx = torch.randint(0, 97, (2, 33), generator=torch.Generator().manual_seed(4))
    assert model(idx[:, :-1], idx[:, 1:]).item() == pytest.approx(math.log(97), rel=0.01)
    stream = torch.randn(1, 5, 64)
    assert torch.equal(model.transformer.h[0](stream, model.rotary[:, :5], 0), stream)


def test_a_token_never_sees_the_future() -> None:
    model = random_model()
    idx = torch.randint(0, 97, (1, 32), generator=torch.Generator().manual_seed(5))
    changed = idx.clone()
    changed[0, 20:] = 0
    assert torch.equal(model(idx)[:, :20], model(changed)[:, :20])


def test_the_counted_parameters_are_the_models_parameters() -> None:
    for config in (SMALL, GPTConfig(64, 97, 2, 4, 4, 64, mlp="swiglu", logit_softcap=None)):
        assert sum(p.numel() for p in GPT(config).parameters()) == config.num_params


def test_it_overfits_one_batch() -> None:
    model = GPT(SMALL)
    model.init_weights()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    idx = torch.randint(0, 97, (2, 33), generator=torch.Generator().manual_seed(6))
    for _ in range(200):
        optimizer.zero_grad()
        loss = model(idx[:, :-1], idx[:, 1:])
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01
