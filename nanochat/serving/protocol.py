"""The shapes of requests and responses: OpenAI's chat completions, with a `tool` beside `content` for tool pieces.

Pure data: no server, no engine. A request's mistake is an `ApiError`, told in OpenAI's error object.
"""

import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field, StrictBool, StrictInt

from nanochat.command import UserError
from nanochat.conversation import Conversation, Message, Part, PartType, Role
from nanochat.serving.pool import Job, Piece, Sampling

FinishReason = Literal["stop", "length"]

# Fields that would change the answer and that this server does not honour, with the values that ask for nothing.
NOT_HONOURED: Mapping[str, tuple[object, ...]] = {
    "n": (None, 1),
    "top_p": (None, 1),
    "min_p": (None, 0),
    "stop": (None, "", []),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "tools": (None, []),
    "response_format": (None, {"type": "text"}),
}


@dataclass(frozen=True)
class Limits:
    """What one request may ask for; `max_tokens` bounds the answer, `max_body_bytes` holds before parsing."""

    max_messages: int = 500
    max_characters: int = 64_000
    max_tokens: int = 4096
    max_body_bytes: int = 1 << 20


@dataclass(frozen=True)
class Defaults:
    """Sampling where a request does not say."""

    temperature: float = 0.6
    top_k: int | None = 50
    max_tokens: int = 512


@dataclass(eq=False)  # not frozen: Python sets an exception's traceback
class ApiError(Exception):
    """A refusal as the client sees it."""

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, object]:
        """OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def _encodable(text: str) -> str:
    """JSON can spell half of a surrogate pair, which is no character and which no encoding takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as mistake:
        raise ValueError(f"half a surrogate pair at character {mistake.start}") from mistake
    return text


Text = Annotated[str, AfterValidator(_encodable)]


class RequestPart(BaseModel):
    """A part of a message: text, or in the assistant's messages a tool call and its output."""

    type: PartType
    text: Text


class RequestMessage(BaseModel):
    """One message, its content a text or a list of parts."""

    role: Role
    content: Text | list[RequestPart]

    def plain(self) -> dict[str, object]:
        """The form that `Conversation.from_dict` reads; text parts of a user or system message are joined."""
        if isinstance(self.content, str):
            return {"role": self.role, "content": self.content}
        if self.role != "assistant" and all(part.type == "text" for part in self.content):
            return {"role": self.role, "content": "".join(part.text for part in self.content)}
        return {"role": self.role, "content": [part.model_dump() for part in self.content]}

    @property
    def characters(self) -> int:
        """The length of everything in it."""
        return len(self.content) if isinstance(self.content, str) else sum(len(part.text) for part in self.content)


class ChatRequest(BaseModel, extra="allow"):
    """The body of a chat completion request. Unknown fields are ignored, except those in `NOT_HONOURED`."""

    messages: list[RequestMessage]
    model: str | None = None
    stream: StrictBool | None = None
    temperature: Annotated[float, Field(strict=True, ge=0, le=2, allow_inf_nan=False)] | None = None
    top_k: Annotated[StrictInt, Field(ge=0, description="0 takes all tokens")] | None = None
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | None = None

    def conversation(self, limits: Limits) -> Conversation:
        """The messages, checked. Raises ApiError."""
        for name, harmless in NOT_HONOURED.items():
            asked = (self.model_extra or {}).get(name)
            if asked not in harmless:
                raise ApiError(400, f"{name} is not supported by this server", param=name, code="unsupported_parameter")
        if len(self.messages) > limits.max_messages:
            raise _too_much("messages", len(self.messages), limits.max_messages)
        characters = sum(message.characters for message in self.messages)
        if characters > limits.max_characters:
            raise _too_much("characters", characters, limits.max_characters)
        try:
            conversation = Conversation.from_dict([message.plain() for message in self.messages], "messages")
        except UserError as mistake:
            raise ApiError(400, str(mistake), param="messages") from mistake
        if conversation.messages[-1].role != "user":
            raise ApiError(400, "messages: the last message must be the user's", param="messages")
        return conversation

    def sampling(self, defaults: Defaults, limits: Limits) -> Sampling:
        """How to sample; a seed of its own where none is given. Raises ApiError."""
        name = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        max_tokens = self.max_completion_tokens or self.max_tokens or min(defaults.max_tokens, limits.max_tokens)
        if max_tokens > limits.max_tokens:
            message = f"{name} is {max_tokens}, at most {limits.max_tokens} are allowed"
            raise ApiError(400, message, param=name)
        return Sampling(
            max_tokens=max_tokens,
            temperature=defaults.temperature if self.temperature is None else self.temperature,
            top_k=(defaults.top_k if self.top_k is None else self.top_k) or None,
            seed=secrets.randbits(31) if self.seed is None else self.seed & (2**63 - 1),
        )


def _too_much(what: str, given: int, allowed: int) -> ApiError:
    return ApiError(400, f"{given} {what} in the request, at most {allowed} are allowed", param="messages")


class Answer:
    """One answer as it grows, and the shapes of its responses, which share a name, a time and a model.

    `max_tokens` is the room that the answer has.
    """

    def __init__(self, model: str, job: Job, context_len: int, encode: Callable[[str], list[int]]):
        self.id = f"chatcmpl-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self.model = model
        self.prompt_tokens = len(job.prompt)
        self.max_tokens = min(job.sampling.max_tokens, context_len - len(job.prompt))
        self.parts: list[Part] = []
        self._encode = encode

    def first(self) -> str:
        """The event that opens the stream: who speaks."""
        return self._chunk({"role": "assistant", "content": ""}, None)

    def add(self, piece: Piece) -> None:
        """Let the answer grow; pieces of one kind run together."""
        before = self.parts.pop().text if self.parts and self.parts[-1].type == piece.type else ""
        self.parts.append(Part(piece.type, before + piece.text))

    def piece(self, piece: Piece) -> str:
        """Let the answer grow, and the event that says so: text, or what concerns the tool."""
        self.add(piece)
        if piece.type == "text":
            return self._chunk({"content": piece.text}, None)
        return self._chunk({"tool": {"type": piece.type, "text": piece.text}}, None)

    def last(self) -> str:
        """The events that end the stream."""
        return self._chunk({}, self.finish_reason) + "data: [DONE]\n\n"

    def whole(self) -> dict[str, object]:
        """The response of a request that does not stream."""
        message: dict[str, object] = {"role": "assistant", "content": Message("assistant", self.parts).text}
        if tool := [{"type": part.type, "text": part.text} for part in self.parts if part.type != "text"]:
            message["tool"] = tool
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.finish_reason}
        prompt, completion = self.prompt_tokens, self.completion_tokens
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        return self._head("chat.completion") | {"choices": [choice], "usage": usage}

    @property
    def completion_tokens(self) -> int:
        """Tokens of the answer so far, two marks around each tool call and each output among them.

        Encoded anew from the text: the model may have spelled it with a few more.
        """
        return sum(len(self._encode(part.text)) + 2 * (part.type != "text") for part in self.parts)

    @property
    def finish_reason(self) -> FinishReason:
        """Whether the answer filled its room, or ended by itself."""
        return "length" if self.completion_tokens >= self.max_tokens else "stop"

    def _head(self, kind: Literal["chat.completion", "chat.completion.chunk"]) -> dict[str, object]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, delta: dict[str, object], reason: FinishReason | None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return event(self._head("chat.completion.chunk") | {"choices": [choice]})


def event(body: Mapping[str, object]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"
