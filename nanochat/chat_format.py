"""Conversations as ids: which control token stands where, and which ids the assistant itself says.

    <|bos|> <|user_start|> text <|user_end|> <|assistant_start|> text <|python_start|> 6*7 <|python_end|>
    <|output_start|> 42 <|output_end|> text <|assistant_end|> <|user_start|> ...

The one place for this, used by training, reinforcement learning, engine and server. Control tokens exist only as ids:
every text goes through the ordinary encoder, whatever it spells. No vocabulary lives here; an `Encoder` is handed in.

Lesson: lessons/21_conversations
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Protocol

from nanochat.command import UserError
from nanochat.conversation import Conversation, Message, Part, PartType, validate

BOS = "<|bos|>"
USER_START, USER_END = "<|user_start|>", "<|user_end|>"
ASSISTANT_START, ASSISTANT_END = "<|assistant_start|>", "<|assistant_end|>"
PYTHON_START, PYTHON_END = "<|python_start|>", "<|python_end|>"
OUTPUT_START, OUTPUT_END = "<|output_start|>", "<|output_end|>"


class Encoder(Protocol):
    """What this room needs of a tokenizer. `encode` must never give the id of a control token, whatever the text."""

    def encode(self, text: str, /) -> list[int]:
        """Ids of an ordinary text."""
        ...

    def encode_special(self, name: str, /) -> int:
        """Id of a control token."""
        ...

    def decode(self, ids: list[int], /) -> str:
        """Text of ordinary ids."""
        ...


def render_conversation(
    conversation: Conversation, encoder: Encoder, max_tokens: int = 2048, mask_all: bool = False
) -> tuple[list[int], list[int]]:
    """Ids of the whole conversation and, as long, the mask of ids to train on, both cropped at `max_tokens`.

    The mask is 1 on what the assistant says: its text, its tool calls with their marks, and the end of its turn. It is
    0 on everything else, the tool's answers included, since at inference those are forced. With `mask_all` it is 1
    everywhere. A system message is merged into the first user turn. Raises UserError on a malformed conversation.
    """
    validate(conversation)
    ids, mask = [encoder.encode_special(BOS)], [0]
    for message in _merge_system(conversation.messages):
        if len(ids) >= max_tokens:
            break
        for piece, said in _render_message(message, encoder):
            ids += piece
            mask += [said] * len(piece)
    ids, mask = ids[:max_tokens], mask[:max_tokens]
    return ids, [1] * len(ids) if mask_all else mask


def render_prompt(conversation: Conversation, encoder: Encoder) -> list[int]:
    """Ids up to and with `<|assistant_start|>`, from where the assistant goes on; its own last message is dropped.

    Never cropped: what does not fit is for the caller to see. Raises UserError on a malformed conversation.
    """
    validate(conversation)
    messages = conversation.messages
    if messages[-1].role == "assistant":
        messages = messages[:-1]
    ids = [encoder.encode_special(BOS)]
    for message in _merge_system(messages):
        for piece, _ in _render_message(message, encoder):
            ids += piece
    return [*ids, encoder.encode_special(ASSISTANT_START)]


def fit(conversation: Conversation, encoder: Encoder, max_tokens: int) -> Conversation:
    """The conversation without its oldest turns, so that its prompt has at most `max_tokens` ids.

    A turn is a question with its answer. The system text, the first turn and the last question stay; where these do not
    fit together, the first turn goes too. Raises UserError when system text and last question alone are too long.
    """
    validate(conversation)
    messages = list(conversation.messages)
    if messages[-1].role == "assistant":
        messages.pop()
    opening = messages[:1] if messages[0].role == "system" else []
    turns, question = messages[len(opening) : -1], messages[-1:]
    pairs = [turns[start : start + 2] for start in range(0, len(turns), 2)]

    def size(kept: Sequence[Sequence[Message]]) -> int:
        return len(render_prompt(Conversation([*opening, *itertools.chain(*kept), *question]), encoder))

    sizes = [sum(len(ids) for message in pair for ids, _ in _render_message(message, encoder)) for pair in pairs]
    for first in (pairs[:1], []):
        kept, room = list(first), max_tokens - size(first)
        if room < 0:
            continue
        newest = len(pairs)
        while newest > len(first) and (room := room - sizes[newest - 1]) >= 0:
            newest -= 1
        kept += pairs[newest:]
        while (
            len(kept) > len(first) and size(kept) > max_tokens
        ):  # the system text may take more before another question
            del kept[len(first)]
        return Conversation([*opening, *itertools.chain(*kept), *question], conversation.choices)
    raise UserError(
        f"the last message has {size([])} tokens, what stands around it included, and at most {max_tokens} fit before"
        " the answer: shorten it"
    )


def parse_completion(ids: Iterable[int], encoder: Encoder) -> list[Part]:
    """Sampled ids, from behind `<|assistant_start|>` to `<|assistant_end|>` or to where they stop, as parts again.

    Neighbouring texts come back as one and empty ones not at all. A tool call that the token limit cut off is a part
    too. Control tokens out of place are dropped: a model may sample them, but no text can spell them.
    """
    opening: dict[int, PartType] = {
        encoder.encode_special(PYTHON_START): "python",
        encoder.encode_special(OUTPUT_START): "python_output",
    }
    closing = {encoder.encode_special(PYTHON_END), encoder.encode_special(OUTPUT_END)}
    ends = {encoder.encode_special(ASSISTANT_END), encoder.encode_special(BOS)}
    misplaced = {encoder.encode_special(name) for name in (USER_START, USER_END, ASSISTANT_START)}

    spans: list[tuple[PartType, list[int]]] = [("text", [])]
    for token in ids:
        if token in ends:
            break
        if token in opening:
            spans.append((opening[token], []))
        elif token in closing:
            if spans[-1][0] != "text":
                spans.append(("text", []))
        elif token not in misplaced:
            spans[-1][1].append(token)
    return [Part(kind, encoder.decode(span)) for kind, span in spans if span or kind != "text"]


def _merge_system(messages: Sequence[Message]) -> list[Message]:
    """The messages, a leading system message put in front of the first user text; the given ones stay as they are."""
    if messages[0].role != "system":
        return list(messages)
    system, user = messages[0], messages[1]
    return [Message("user", f"{system.text}\n\n{user.text}"), *messages[2:]]


def _render_message(message: Message, encoder: Encoder) -> list[tuple[list[int], int]]:
    """Pieces of ids, each with its mask value."""
    special = encoder.encode_special
    if message.role == "user":
        return [([special(USER_START), *encoder.encode(message.text), special(USER_END)], 0)]
    pieces: list[tuple[list[int], int]] = [([special(ASSISTANT_START)], 0)]
    for part in message.parts:
        ids = encoder.encode(part.text)
        if part.type == "text":
            pieces.append((ids, 1))
        elif part.type == "python":
            pieces.append(([special(PYTHON_START), *ids, special(PYTHON_END)], 1))
        else:
            pieces.append(([special(OUTPUT_START), *ids, special(OUTPUT_END)], 0))
    pieces.append(([special(ASSISTANT_END)], 1))
    return pieces
