"""The shapes of requests: OpenAI's chat completions and completions, and the tokenizer's own. Pure data.

A request's mistake is an `ApiError` that names the field. Unknown fields are ignored, except those in `NOT_HONOURED`,
which would change the answer.

Lesson: lessons/24_serving
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    StrictBool,
    StrictInt,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from nanochat.conversation import PartType
from nanochat.serving.errors import ApiError
from nanochat.serving.wire import Sampling

MOST_STOPS, MOST_STOP_CHARACTERS, MOST_BIASES = 16, 256, 1024
COMPLETION_TOKENS = 16  # of a completion that does not say, as with OpenAI

# Fields that would change the answer and that this server does not honour, with the values that ask for nothing.
NOT_HONOURED: Mapping[str, tuple[object, ...]] = {
    "tools": (None, []),
    "functions": (None, []),
    "tool_choice": (None, "none", "auto"),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "suffix": (None, ""),
}


@dataclass(frozen=True)
class Limits:
    """What one request and one client may ask for."""

    max_body_bytes: int = 4 << 20
    """Bytes of a request's body; holds before anything is parsed."""
    max_messages: int = 500
    """Messages of a conversation."""
    max_characters: int = 64_000
    """Characters of a conversation, or of all prompts together."""
    max_tokens: int = 4096
    """Tokens of an answer."""
    max_n: int = 16
    """Answers to one prompt."""
    max_prompts: int = 128
    """Prompts of one request."""
    request_seconds: float = 600.0
    """From a request's first byte to the last of its answer, waiting included."""
    body_seconds: float = 30.0
    """In which a request's head and its body must have arrived."""
    requests_per_minute: int = 6000
    """Of one client, on average; 0: any number."""
    requests_at_once: int = 256
    """Of one client; 0: any number."""
    max_requests: int = 1024
    """Requests under way, of all clients."""


@dataclass(frozen=True)
class Defaults:
    """Sampling where a request does not say."""

    temperature: float = 0.6
    top_k: int | None = 50
    top_p: float = 1.0
    max_tokens: int = 512


def _encodable(text: str) -> str:
    """JSON can spell half of a surrogate pair, which is no character and which no encoding takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as mistake:
        raise ValueError(f"half a surrogate pair at character {mistake.start}") from mistake
    return text


def _few_and_full(stop: str | list[str] | None) -> list[str]:
    stops = [stop] if isinstance(stop, str) and stop else list(stop or [])
    if len(stops) > MOST_STOPS or not all(0 < len(one) <= MOST_STOP_CHARACTERS for one in stops):
        raise ValueError(f"at most {MOST_STOPS} texts, none empty, each of at most {MOST_STOP_CHARACTERS} characters")
    return stops


def _told(sentence: str) -> WrapValidator:
    """One sentence in place of what pydantic says of every branch of a union."""

    def check(value: object, handler: ValidatorFunctionWrapHandler) -> object:
        try:
            return handler(value)
        except ValidationError as mistake:
            ours = [error["msg"] for error in mistake.errors() if error["type"] == "value_error"]
            raise ValueError(ours[0].removeprefix("Value error, ") if ours else sentence) from mistake

    return WrapValidator(check)


Text = Annotated[str, AfterValidator(_encodable)]
Count = Annotated[StrictInt, Field(ge=1)]
Id = Annotated[StrictInt, Field(ge=0, lt=1 << 31)]
Seed = Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)]
Stop = Annotated[Text | list[Text] | None, AfterValidator(_few_and_full), _told("must be a text or a list of texts")]
Prompt = Annotated[
    Text | list[Text] | list[Id] | list[Annotated[list[Id], Field(min_length=1)]],
    _told("must be a text, a list of texts, a list of token ids or a list of such lists, none empty"),
]
Temperature = Annotated[float, Field(strict=True, ge=0, le=2, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
AboveZero = Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False)]
Repetition = Annotated[float, Field(strict=True, gt=0, le=10, allow_inf_nan=False)]
Penalty = Annotated[float, Field(strict=True, ge=-2, le=2, allow_inf_nan=False)]
Bias = Annotated[float, Field(strict=True, ge=-100, le=100, allow_inf_nan=False)]
IdInText = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]


class RequestPart(BaseModel):
    """A part of a message: text, or in the assistant's messages a tool call and its output."""

    type: PartType
    text: Text


class CalledFunction(BaseModel):
    """OpenAI's form of a call."""

    name: str
    arguments: Text


class ToolCall(BaseModel):
    """OpenAI's form of a tool call in an assistant's message."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class RequestMessage(BaseModel):
    """One message, its content a text or a list of parts; null where an assistant only calls."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[Text | list[RequestPart] | None, _told("must be a text or a list of text parts")] = None
    tool_calls: list[ToolCall] | None = None


class StreamOptions(BaseModel):
    """What a stream has besides the answer."""

    include_usage: StrictBool | None = None


class GenerationRequest(BaseModel, extra="allow"):
    """What both kinds of request may say of the answer."""

    model: Text | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    n: Count | None = None
    max_tokens: Annotated[StrictInt, Field(ge=0)] | None = None
    temperature: Temperature | None = None
    top_p: AboveZero | None = None
    top_k: Annotated[StrictInt, Field(ge=0, description="0 takes all tokens")] | None = None
    min_p: Share | None = None
    repetition_penalty: Repetition | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[IdInText, Bias], Field(max_length=MOST_BIASES)] | None = None
    seed: Seed | None = None
    stop: Stop = None
    stop_token_ids: Annotated[list[Id], Field(max_length=MOST_BIASES)] | None = None

    @property
    def samples(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def check(self, limits: Limits) -> None:
        """Raises ApiError for what this server does not do and for too many answers."""
        for name, harmless in NOT_HONOURED.items():
            if (self.model_extra or {}).get(name) not in harmless:
                raise ApiError(400, f"{name} is not supported by this server", param=name, code="unsupported_parameter")
        if self.samples > limits.max_n:
            raise ApiError(400, f"n is {self.samples}, at most {limits.max_n} are allowed", param="n")

    def common(self, defaults: Defaults, limits: Limits, vocab_size: int) -> Sampling:
        """How to sample, but for lengths and logprobs. Raises ApiError."""
        bias = {int(name): value for name, value in (self.logit_bias or {}).items()}
        for param, ids in (("logit_bias", bias), ("stop_token_ids", self.stop_token_ids or [])):
            if wrong := [one for one in ids if one >= vocab_size]:
                raise ApiError(400, f"{param} names token {wrong[0]}; ids are below {vocab_size}", param=param)
        given: Sampling = {
            "temperature": defaults.temperature if self.temperature is None else self.temperature,
            "top_k": (defaults.top_k if self.top_k is None else self.top_k) or None,
            "top_p": self.top_p or defaults.top_p,
            "min_p": self.min_p or 0.0,
            "repetition_penalty": self.repetition_penalty or 1.0,
            "presence_penalty": self.presence_penalty or 0.0,
            "frequency_penalty": self.frequency_penalty or 0.0,
            "logit_bias": bias,
            "seed": self.seed,
            "stop": tuple(self.stop or ()),
            "stop_ids": tuple(self.stop_token_ids or ()),
        }
        return given


class ChatRequest(GenerationRequest):
    """The body of a chat completion request."""

    messages: list[RequestMessage]
    max_completion_tokens: Count | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None

    def sampling(self, defaults: Defaults, limits: Limits, vocab_size: int) -> Sampling:
        """How to sample. Raises ApiError."""
        name = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        asked = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        tokens = min(defaults.max_tokens, limits.max_tokens) if asked is None else asked
        if not 1 <= tokens <= limits.max_tokens:
            raise ApiError(400, f"{name} is {tokens}, allowed are 1 to {limits.max_tokens}", param=name)
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
        wanted = (self.top_logprobs or 0) if self.logprobs else None
        return {**self.common(defaults, limits, vocab_size), "max_tokens": tokens, "logprobs": wanted}


class CompletionRequest(GenerationRequest):
    """The body of a completion request."""

    prompt: Prompt
    echo: StrictBool | None = None
    logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    best_of: Count | None = None

    def sampling(self, defaults: Defaults, limits: Limits, vocab_size: int) -> Sampling:
        """How to sample. Raises ApiError."""
        if self.best_of not in (None, self.samples):
            raise ApiError(400, "best_of is not supported but as n", param="best_of", code="unsupported_parameter")
        tokens = COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens
        least = 0 if self.echo else 1
        if not least <= tokens <= limits.max_tokens:
            allowed = f"{least} to {limits.max_tokens}" + ("" if self.echo else " (0 with echo)")
            raise ApiError(400, f"max_tokens is {tokens}, allowed are {allowed}", param="max_tokens")
        scored = self.logprobs if self.echo else None
        return {
            **self.common(defaults, limits, vocab_size),
            "max_tokens": tokens,
            "logprobs": self.logprobs,
            "prompt_logprobs": 0 if scored is None and not tokens else scored,  # without either nothing is to do
            "tools": False,
        }


class TokenizeRequest(BaseModel):
    """The body of a request for the ids of a text."""

    prompt: Text
    add_special_tokens: StrictBool = True


class DetokenizeRequest(BaseModel):
    """The body of a request for the text of ids."""

    tokens: list[Id]


def too_much(what: str, given: int, allowed: int, param: str) -> ApiError:
    """A request beyond a limit."""
    return ApiError(400, f"{given} {what} in the request, at most {allowed} are allowed", param=param)
