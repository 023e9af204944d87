"""Lesson 21: conversations as ids with a mask of what is trained on, and fine-tuning on them.

The check calls these by name: render, prompt, to_batch, finetune, answer. A conversation is a list of messages as
OpenAI writes them, `{"role": "user", "content": "Hello"}`; an assistant's content may be a list of parts, each
`{"type": ..., "text": ...}` with the type text (said), python (a call of the tool) or python_output (its answer).

`tokenizer.encode(text)` gives ids of text and never those of control tokens, `tokenizer.encode_special(name)` gives the
id of one: <|user_start|> <|user_end|> <|assistant_start|> <|assistant_end|> <|python_start|> <|python_end|>
<|output_start|> <|output_end|>, and `tokenizer.get_bos_token_id()` the one that begins everything.
"""

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


def render(messages: Sequence[Message], tokenizer: RustBPETokenizer, max_tokens: int = 2048) -> Row:
    """The ids of a whole conversation and, as long, the mask of those to train on; both cropped at `max_tokens`.

    <|bos|>, then each message between its start and its end. The mask is 1 on what the assistant says itself: its text,
    its calls with their two marks, the end of its turn; 0 on all else, the tool's answers with their marks too. Raises
    ValueError unless user and assistant take turns, the user first.
    """
    raise NotImplementedError("lesson 21: render is yours to write")


def prompt(messages: Sequence[Message], tokenizer: RustBPETokenizer) -> list[int]:
    """The ids of a conversation that the user spoke last in, up to and with <|assistant_start|>."""
    raise NotImplementedError("lesson 21: prompt is yours to write")


def to_batch(rows: Sequence[Row], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets (B, length), int64, of rows of (ids, mask) of any lengths; longer ones are cropped.

    The target at place t is the id at t + 1, or -1 where the mask of *that id* is 0. Padding: any input, target -1.
    """
    raise NotImplementedError("lesson 21: to_batch is yours to write")


def finetune(
    model: GPT, optimizer: Optimizer, rows: Sequence[Row], steps: int, batch_size: int, length: int, seed: int = 0
) -> list[float]:
    """Train on conversations drawn at random by the seed; the loss of every step.

    `model(inputs, targets)` is the mean loss over targets that are not -1, and 0 where there is none.
    """
    raise NotImplementedError("lesson 21: finetune is yours to write")


def answer(model: GPT, tokenizer: RustBPETokenizer, messages: Sequence[Message], max_tokens: int = 32) -> str:
    """What the model says to the last message: the likeliest id each time, until it ends its turn.

    At most `max_tokens` ids, and no more than the model's context (`model.config.sequence_len`) has room for.
    """
    raise NotImplementedError("lesson 21: answer is yours to write")
