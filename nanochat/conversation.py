"""Conversations: the one shape that every chat data set, task, engine and server speaks, and its one validator.

A conversation is a list of messages that alternate user, assistant, user, ...; a system message may come first.
An assistant's content may be a list of parts: what it says, a call of the tool, and what the tool answered.

Lesson: lessons/21_conversations
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from nanochat.command import UserError

Role = Literal["system", "user", "assistant"]
PartType = Literal["text", "python", "python_output"]


@dataclass(frozen=True)
class Part:
    """A piece of an assistant's message: `text` it says, `python` it sends to the tool, `python_output` its answer."""

    type: PartType
    text: str


@dataclass
class Message:
    """One turn. `content` is a text, or for the assistant a list of parts."""

    role: Role
    content: str | list[Part]

    @property
    def parts(self) -> list[Part]:
        """The content as parts, a plain text as one."""
        return [Part("text", self.content)] if isinstance(self.content, str) else self.content

    @property
    def text(self) -> str:
        """What is said: the text parts joined, tool calls and their output left out."""
        return "".join(part.text for part in self.parts if part.type == "text")


@dataclass
class Conversation:
    """Messages, and for a multiple-choice problem the `choices`, one of which equals `answer`."""

    messages: list[Message]
    choices: list[str] = field(default_factory=list)

    @property
    def answer(self) -> str:
        """The text of the last assistant message; empty when there is none."""
        return next((m.text for m in reversed(self.messages) if m.role == "assistant"), "")

    def to_dict(self) -> dict[str, object]:
        """The plain form, `{"messages": [...]}`, that `from_dict` reads back."""
        messages = []
        for message in self.messages:
            content = message.content
            plain = content if isinstance(content, str) else [{"type": p.type, "text": p.text} for p in content]
            messages.append({"role": message.role, "content": plain})
        return {"messages": messages}

    @classmethod
    def from_dict(cls, plain: object, where: str = "conversation") -> "Conversation":
        """Read `{"messages": [...]}` or the bare list of messages, and validate it.

        `where` names the place in an error, for example `chats.jsonl line 7`. Raises UserError.
        """
        messages = plain.get("messages") if isinstance(plain, Mapping) else plain
        if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
            raise UserError(f'{where}: expected {{"messages": [...]}} or a list of messages, got {_shown(plain)}')
        conversation = cls([_message(m, f"{where}, message {i + 1}") for i, m in enumerate(messages)])
        validate(conversation, where)
        return conversation


def validate(conversation: Conversation, where: str = "conversation") -> None:
    """Raise UserError unless roles alternate from the user on (after at most one system message) and none is empty."""
    messages = conversation.messages
    if not messages:
        raise UserError(f"{where}: a conversation needs at least one message")
    turns = messages[1:] if messages[0].role == "system" else messages
    if not turns:
        raise UserError(f"{where}: a system message alone is no conversation; add a user message")
    for index, message in enumerate(turns):
        expected = "user" if index % 2 == 0 else "assistant"
        if message.role != expected:
            number = index + 1 + len(messages) - len(turns)
            raise UserError(f"{where}, message {number}: role is '{message.role}', expected '{expected}'")
    for index, message in enumerate(messages):
        if message.role != "assistant" and not isinstance(message.content, str):
            raise UserError(f"{where}, message {index + 1}: only the assistant's content may be a list of parts")


def _message(plain: object, where: str) -> Message:
    if not isinstance(plain, Mapping) or "role" not in plain or "content" not in plain:
        raise UserError(f'{where}: expected {{"role": ..., "content": ...}}, got {_shown(plain)}')
    role, content = plain["role"], plain["content"]
    if role not in get_args(Role):
        raise UserError(f"{where}: role is {_shown(role)}, allowed are {', '.join(get_args(Role))}")
    if isinstance(content, str):
        return Message(role, content)
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise UserError(f"{where}: content must be a text or a list of parts, got {_shown(content)}")
    return Message(role, [_part(part, where) for part in content])


def _part(plain: object, where: str) -> Part:
    if (
        not isinstance(plain, Mapping)
        or plain.get("type") not in get_args(PartType)
        or not isinstance(plain.get("text"), str)
    ):
        allowed = ", ".join(get_args(PartType))
        raise UserError(f'{where}: a part is {{"type": ..., "text": ...}} with type {allowed}, got {_shown(plain)}')
    return Part(plain["type"], plain["text"])


def _shown(value: object) -> str:
    """The value, cropped so that an error stays one sentence."""
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
