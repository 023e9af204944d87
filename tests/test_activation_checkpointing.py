"""Computing layers twice instead of keeping what they made: the same loss and gradients, less memory."""

from collections.abc import Callable

import pytest
import torch
from tiny import random_model

from nanochat.gpt import GPT
from nanochat.gpt_config import GPTConfig

IDS = torch.randint(0, 97, (2, 65), generator=torch.Generator().manual_seed(0))


def model_of(layers: int = 3, dtype: torch.dtype = torch.float32) -> GPT:
    model = random_model(GPTConfig(sequence_len=64, vocab_size=97, n_layer=layers, n_head=4, n_kv_head=2, n_embd=64))
    model.dtype = dtype
    return model


def gradients(model: GPT, loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
    model.zero_grad()
    loss = loss_of(IDS[:, :-1], IDS[:, 1:])
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradients_are_the_same_to_the_last_bit(dtype: torch.dtype) -> None:
    model = model_of(dtype=dtype)
    kept = gradients(model, model)
    model.activation_checkpointing = True
    again = gradients(model, model)
    assert len(kept) == len(again) == 1 + len(list(model.parameters()))
    assert all(torch.equal(first, second) for first, second in zip(kept, again, strict=True))


def kept_bytes(model: GPT) -> int:
    """Bytes that a forward pass keeps for backward, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    alive = []  # or an address would be used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.hidden(IDS[:, :-1])
    return sum(kept.values())


def test_a_layer_keeps_its_input_and_no_more() -> None:
    row_bytes = 2 * 64 * 64 * 4  # (B, T, C) in float32

    def of_a_layer(again: bool) -> float:
        few, many = model_of(2), model_of(6)
        few.activation_checkpointing = many.activation_checkpointing = again
        return (kept_bytes(many) - kept_bytes(few)) / 4 / row_bytes

    assert of_a_layer(again=False) > 8
    assert of_a_layer(again=True) == 1


def test_sampling_and_measuring_do_not_compute_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    model.activation_checkpointing = True
    monkeypatch.setattr("nanochat.gpt.checkpoint", None)  # calling it would fail
    with torch.no_grad():
        model(IDS[:, :-1])
