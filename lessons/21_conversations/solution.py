"""Lesson 21: conversations as ids with a mask of what is trained on, and fine-tuning on them."""

from collections.abc import Sequence
from typing import Protocol

import torch

from nanochat.gpt import GPT
from nanochat.tokenizer import RustBPETokenizer

Message = dict[str, str | list[dict[str, str]]]
Row = tuple[list[int], list[int]]


class Optimizer(Protocol):
    """Any: torch's, the product's, yours."""

    def step(self) -> object: ...
    def zero_grad(self) -> object: ...


def check(messages: Sequence[Message]) -> None:
    """Raise ValueError unless user and assistant take turns, the user first."""
    if not messages:
        raise ValueError("a conversation needs at least one message")
    for place, message in enumerate(messages):
        expected = "user" if place % 2 == 0 else "assistant"
        if message["role"] != expected:
            raise ValueError(f"message {place + 1} has the role {message['role']!r}, expected {expected!r}")


def pieces(message: Message, tokenizer: RustBPETokenizer) -> list[tuple[list[int], int]]:
    """The ids of one message in pieces, each with its mask: 1 for what the assistant says itself."""
    special = tokenizer.encode_special
    content = message["content"]
    if message["role"] == "user":
        assert isinstance(content, str), "a user's content is a text"
        return [([special("<|user_start|>"), *tokenizer.encode(content), special("<|user_end|>")], 0)]
    found = [([special("<|assistant_start|>")], 0)]
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        ids = tokenizer.encode(part["text"])
        if part["type"] == "text":
            found.append((ids, 1))
        elif part["type"] == "python":
            found.append(([special("<|python_start|>"), *ids, special("<|python_end|>")], 1))
        else:
            found.append(([special("<|output_start|>"), *ids, special("<|output_end|>")], 0))
    return [*found, ([special("<|assistant_end|>")], 1)]


def render(messages: Sequence[Message], tokenizer: RustBPETokenizer, max_tokens: int = 2048) -> Row:
    """The ids of a whole conversation and, as long, the mask of those to train on; both cropped at `max_tokens`."""
    check(messages)
    ids, mask = [tokenizer.get_bos_token_id()], [0]
    for message in messages:
        for piece, said in pieces(message, tokenizer):
            ids += piece
            mask += [said] * len(piece)
    return ids[:max_tokens], mask[:max_tokens]


def prompt(messages: Sequence[Message], tokenizer: RustBPETokenizer) -> list[int]:
    """The ids of a conversation that the user spoke last in, up to where the assistant begins."""
    ids, _ = render(messages, tokenizer)
    return [*ids, tokenizer.encode_special("<|assistant_start|>")]


def to_batch(rows: Sequence[Row], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets (B, length); a target is -1 where its id is not to be trained on, or is padding."""
    inputs = torch.zeros(len(rows), length, dtype=torch.long)
    targets = torch.full((len(rows), length), -1)
    for row, (ids, mask) in enumerate(rows):
        whole = torch.tensor(ids[: length + 1])
        trained = torch.tensor(mask[: length + 1], dtype=torch.bool)
        inputs[row, : len(whole) - 1] = whole[:-1]
        targets[row, : len(whole) - 1] = whole[1:].masked_fill(~trained[1:], -1)
    return inputs, targets


def finetune(
    model: GPT, optimizer: Optimizer, rows: Sequence[Row], steps: int, batch_size: int, length: int, seed: int = 0
) -> list[float]:
    """Train on conversations drawn at random; the loss of every step."""
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        picked = torch.randint(len(rows), (batch_size,), generator=generator).tolist()
        loss = model(*to_batch([rows[number] for number in picked], length))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def answer(model: GPT, tokenizer: RustBPETokenizer, messages: Sequence[Message], max_tokens: int = 32) -> str:
    """What the model says to the last message: the likeliest ids, up to the end of its turn."""
    ids = prompt(messages, tokenizer)
    begin = len(ids)
    for _ in range(min(max_tokens, model.config.sequence_len - begin)):
        token = int(model(torch.tensor([ids]))[0, -1].argmax())
        if token == tokenizer.encode_special("<|assistant_end|>"):
            break
        ids.append(token)
    return tokenizer.decode(ids[begin:])
