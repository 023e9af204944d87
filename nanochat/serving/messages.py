"""From the messages of a request to a conversation: OpenAI's roles on our side, ours alternate user and assistant.

A developer's message is a system message; several at the front are one. An assistant's call of the tool, the tool's
message and what the assistant says next are parts of one turn.

Lesson: lessons/24_serving
"""

import itertools
import json
from collections.abc import Sequence

from nanochat.conversation import Conversation, Message, Part
from nanochat.serving.errors import ApiError
from nanochat.serving.protocol import Limits, RequestMessage, ToolCall, too_much

TOOL_NAMES = ("python", "calculator")


def to_conversation(messages: Sequence[RequestMessage], limits: Limits) -> tuple[Conversation, list[Part]]:
    """The conversation, and what the assistant has already done of its turn when the last message is a tool's.

    Raises ApiError that names the message.
    """
    if not messages:
        raise ApiError(400, "messages is empty: a conversation needs at least one message", param="messages")
    if len(messages) > limits.max_messages:
        raise too_much("messages", len(messages), limits.max_messages, "messages")
    characters = sum(len(part.text) for message in messages for part in _parts(message))
    if characters > limits.max_characters:
        raise too_much("characters", characters, limits.max_characters, "messages")
    opening = _leading_system(messages)
    turns: list[Message] = []
    for index in range(len(opening), len(messages)):
        _add(turns, messages[index], index)
    if not turns:
        raise _wrong(0, "a system message alone is no conversation; add a user message")
    begun: list[Part] = []
    if messages[-1].role == "tool":
        begun = _parts_of(turns.pop())
    elif turns[-1].role == "assistant":
        raise _wrong(len(messages) - 1, "the last message must be the user's, or a tool's")
    if opening:
        turns.insert(0, Message("system", "\n\n".join(_text(message) for message in opening)))
    return Conversation(turns), begun


def _leading_system(messages: Sequence[RequestMessage]) -> list[RequestMessage]:
    return list(itertools.takewhile(lambda message: message.role in ("system", "developer"), messages))


def _add(turns: list[Message], message: RequestMessage, index: int) -> None:
    """Let the turns grow by a message. Raises ApiError where its role has no place."""
    role, parts = message.role, _parts(message)
    if message.content is None and not message.tool_calls:
        raise _wrong(index, "content is missing")
    if role != "assistant" and any(part.type != "text" for part in parts):
        raise _wrong(index, "only the assistant's content may have parts of a tool")
    speaks = bool(turns) and turns[-1].role == "assistant"
    said = _parts_of(turns[-1]) if speaks else []
    last = said[-1].type if said else None
    if role in ("system", "developer"):
        raise _wrong(index, f"role is '{role}', which is allowed at the front only")
    expected = "tool" if last == "python" else "user" if not turns or speaks else "assistant"
    goes_on = role == "assistant" and last == "python_output"
    if role != expected and not goes_on:
        raise _wrong(index, f"role is '{role}', expected '{expected}'")
    if role == "tool":
        said.append(Part("python_output", _text(message)))
    elif goes_on:
        said.extend(parts)
    else:
        turns.append(Message("user", _text(message)) if role == "user" else Message("assistant", parts))


def _text(message: RequestMessage) -> str:
    return "".join(part.text for part in _parts(message))


def _parts_of(message: Message) -> list[Part]:
    assert isinstance(message.content, list), f"an assistant's parts, got {message.content!r}"
    return message.content


def _parts(message: RequestMessage) -> list[Part]:
    content = message.content
    if isinstance(content, str):
        parts = [Part("text", content)]
    else:
        parts = [Part(part.type, part.text) for part in content or []]
    return parts + [Part("python", _expression(call)) for call in message.tool_calls or []]


def _expression(call: ToolCall) -> str:
    """What a call in OpenAI's form hands to the calculator: the one text among its arguments."""
    if call.function.name not in TOOL_NAMES:
        message = f"the tool {call.function.name!r} is not known here; there is only {TOOL_NAMES[0]!r}"
        raise ApiError(400, message, param="messages")
    try:
        arguments = json.loads(call.function.arguments)
    except ValueError:
        return call.function.arguments
    texts = [value for value in arguments.values() if isinstance(value, str)] if isinstance(arguments, dict) else []
    return texts[0] if len(texts) == 1 else call.function.arguments


def _wrong(index: int, what: str) -> ApiError:
    return ApiError(400, f"messages.{index}: {what}", param=f"messages.{index}")
