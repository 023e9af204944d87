"""The shapes of answers: OpenAI's chat completions and completions, whole and as server-sent events.

A chat's tool pieces stand beside its content, as `{"tool": {"type": "python" | "python_output", "text": ...}}`. An
answer collects its choices as they grow; what has come together goes out together.

Lesson: lessons/24_serving
"""

import codecs
import json
import math
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from nanochat.conversation import Part, PartType
from nanochat.serving.vocabulary import Vocabulary
from nanochat.serving.wire import FinishReason, Gain, Logprob

LEAST_LOGPROB = -9999.0  # in place of minus infinity, which JSON cannot spell

Json = dict[str, object]


@dataclass
class Choice:
    """One sample so far."""

    index: int
    parts: list[Part] = field(default_factory=list)
    tokens: int = 0
    prompt_logprobs: tuple[Logprob | None, ...] | None = None
    logprobs: list[Logprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    begun: bool = False

    def text_of(self, *types: PartType) -> str:
        """The parts of these types, joined."""
        return "".join(part.text for part in self.parts if part.type in types)

    def add(self, news: "News") -> None:
        """Let it grow."""
        for part in news.parts:
            before = self.parts.pop().text if self.parts and self.parts[-1].type == part.type else ""
            self.parts.append(Part(part.type, before + part.text))
        self.tokens += news.tokens
        self.logprobs += news.logprobs
        self.prompt_logprobs = self.prompt_logprobs or news.prompt_logprobs
        self.finish_reason = news.finish_reason


@dataclass
class News:
    """What one choice gained since the last write; pieces of one type run together."""

    parts: list[Part] = field(default_factory=list)
    tokens: int = 0
    logprobs: list[Logprob] = field(default_factory=list)
    prompt_logprobs: tuple[Logprob | None, ...] | None = None
    finish_reason: FinishReason | None = None

    def add(self, gain: Gain) -> None:
        """Join what came in one more step."""
        for kind, text in gain.pieces:
            if self.parts and self.parts[-1].type == kind:
                text = self.parts.pop().text + text
            self.parts.append(Part(kind, text))
        self.tokens += gain.tokens
        self.logprobs += gain.logprobs
        self.prompt_logprobs = self.prompt_logprobs or gain.prompt_logprobs
        self.finish_reason = gain.finish_reason


@dataclass(frozen=True)
class Asked:
    """What an answer must know of its request. `prompts` are ids; each has `samples` choices."""

    model: str
    prompts: Sequence[Sequence[int]]
    samples: int = 1
    logprobs: bool = False
    echo: bool = False
    usage_in_stream: bool = False
    stop_ids: frozenset[int] = frozenset()


class Answer(ABC):
    """One answer as it grows. Its responses share an id, a time and a model."""

    prefix: str
    kind: str
    chunk_kind: str

    def __init__(self, asked: Asked, vocabulary: Vocabulary):
        self.id = f"{self.prefix}-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self.asked = asked
        self.vocabulary = vocabulary
        self.choices = [Choice(index) for index in range(len(asked.prompts) * asked.samples)]
        head = json.dumps(self._head(self.chunk_kind), ensure_ascii=False, separators=(",", ":"))
        self._before = f'data: {head[:-1]},"choices":['
        self._after = '],"usage":null}\n\n' if asked.usage_in_stream else "]}\n\n"

    def grow(self, gains: Iterable[tuple[int, Gain]]) -> dict[int, News]:
        """Take what a job gave; what each choice gained by it."""
        news: dict[int, News] = {}
        for index, gain in gains:
            news.setdefault(index, News()).add(gain)
        for index, one in news.items():
            self._without_the_end(one)
            self.choices[index].add(one)
        return news

    def events(self, gains: Iterable[tuple[int, Gain]]) -> str:
        """The same, as the events of a stream."""
        news = self.grow(gains)
        return "".join(event for index, one in news.items() for event in self._events(self.choices[index], one))

    def end(self) -> str:
        """The events that end the stream."""
        if not self.asked.usage_in_stream:
            return DONE
        return event(self._head(self.chunk_kind) | {"choices": [], "usage": self.usage}) + DONE

    def whole(self) -> Json:
        """The response of a request that does not stream."""
        choices = [self._choice(choice) for choice in self.choices]
        return self._head(self.kind) | {"choices": choices, "usage": self.usage}

    @property
    def usage(self) -> dict[str, int]:
        """Tokens read and written so far."""
        read, written = sum(map(len, self.asked.prompts)), sum(choice.tokens for choice in self.choices)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    @abstractmethod
    def _events(self, choice: Choice, news: News) -> Iterable[str]:
        """The events that tell a choice's news."""

    @abstractmethod
    def _choice(self, choice: Choice) -> Json:
        """A choice of the whole response."""

    @abstractmethod
    def _without_the_end(self, news: News) -> None:
        """Take out what is no part of this kind of answer, before a choice takes the news."""

    def _head(self, kind: str) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.asked.model}

    def _chunk(self, choice: Json) -> str:
        return self._before + json.dumps(choice, ensure_ascii=False, separators=(",", ":")) + self._after


class ChatAnswer(Answer):
    """The assistant's turn."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def _without_the_end(self, news: News) -> None:
        """The id that ends a turn is none of its tokens."""
        ends = self.vocabulary.control | self.asked.stop_ids
        if news.finish_reason == "stop" and news.logprobs and news.logprobs[-1].id in ends:
            news.logprobs.pop()

    def _events(self, choice: Choice, news: News) -> Iterable[str]:
        if not choice.begun:
            choice.begun = True
            yield self._delta(choice, {"role": "assistant", "content": ""})
        logprobs = self._logprobs(news.logprobs)
        parts = news.parts or ([Part("text", "")] if logprobs else [])
        for part in parts:
            text = part.type == "text"
            delta: Json = {"content": part.text} if text else {"tool": {"type": part.type, "text": part.text}}
            yield self._delta(choice, delta, logprobs)
            logprobs = None
        if news.finish_reason is not None:
            yield self._delta(choice, {}, reason=news.finish_reason)

    def _delta(
        self, choice: Choice, delta: Json, logprobs: Json | None = None, reason: FinishReason | None = None
    ) -> str:
        return self._chunk({"index": choice.index, "delta": delta, "logprobs": logprobs, "finish_reason": reason})

    def _choice(self, choice: Choice) -> Json:
        message: Json = {"role": "assistant", "content": choice.text_of("text")}
        if tool := [{"type": part.type, "text": part.text} for part in choice.parts if part.type != "text"]:
            message["tool"] = tool
        logprobs = self._logprobs(choice.logprobs)
        if self.asked.logprobs and logprobs is None:
            logprobs = {"content": []}
        return {
            "index": choice.index, "message": message, "logprobs": logprobs, "finish_reason": choice.finish_reason
        }  # fmt: skip

    def _logprobs(self, entries: Sequence[Logprob]) -> Json | None:
        if not entries:
            return None
        content = [
            {**self._token(entry.id, entry.logprob), "top_logprobs": [self._token(*one) for one in entry.top]}
            for entry in entries
        ]
        return {"content": content}

    def _token(self, id: int, logprob: float) -> Json:
        raw = self.vocabulary.raw(id)
        return {"token": self.vocabulary.shown(id), "logprob": _finite(logprob), "bytes": list(raw) if raw else None}


class CompletionAnswer(Answer):
    """A text that goes on; with `echo` the prompt stands before it."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, asked: Asked, vocabulary: Vocabulary):
        super().__init__(asked, vocabulary)
        self._offsets = [_Offsets(vocabulary) for _ in self.choices]

    def _without_the_end(self, news: News) -> None:
        """The id that ends a text is one of its tokens, as those who score texts expect."""

    def _events(self, choice: Choice, news: News) -> Iterable[str]:
        text = "".join(part.text for part in news.parts)
        if self.asked.echo and not choice.begun:
            text = self._prompt_text(choice) + text
        logprobs = self._logprobs(choice, news.logprobs, first=not choice.begun) if self.asked.logprobs else None
        choice.begun = True
        if text or logprobs or news.finish_reason:
            yield self._chunk(
                {"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": news.finish_reason}
            )

    def _choice(self, choice: Choice) -> Json:
        text = choice.text_of("text", "python", "python_output")
        if self.asked.echo:
            text = self._prompt_text(choice) + text
        logprobs = self._logprobs(choice, choice.logprobs, first=True) if self.asked.logprobs else None
        return {"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": choice.finish_reason}

    def _prompt(self, choice: Choice) -> Sequence[int]:
        return self.asked.prompts[choice.index // self.asked.samples]

    def _prompt_text(self, choice: Choice) -> str:
        return self.vocabulary.text(self._prompt(choice))

    def _logprobs(self, choice: Choice, entries: Sequence[Logprob], first: bool) -> Json:
        """OpenAI's four lists; every token's own logprob is among its top ones."""
        rows: list[tuple[int, Logprob | None]] = [(entry.id, entry) for entry in entries]
        if first and self.asked.echo:
            # the prompt is read once: its logprobs came with the first of its samples
            read = self.choices[choice.index - choice.index % self.asked.samples].prompt_logprobs
            prompt = self._prompt(choice)
            assert read is not None, "the engine gave no logprobs of the prompt"
            rows = [*zip(prompt, read, strict=True), *rows]
        shown = self.vocabulary.shown
        return {
            "tokens": [shown(id) for id, _ in rows],
            "token_logprobs": [entry and _finite(entry.logprob) for _, entry in rows],
            "top_logprobs": [
                entry and {shown(id): _finite(value) for id, value in ((entry.id, entry.logprob), *entry.top)}
                for _, entry in rows
            ],
            "text_offset": [self._offsets[choice.index].of(id) for id, _ in rows],
        }


class _Offsets:
    """Where each token begins in the text, in characters."""

    def __init__(self, vocabulary: Vocabulary):
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._characters = 0

    def of(self, id: int) -> int:
        """The place of the next token."""
        begin = self._characters
        self._characters += len(self._decoder.decode(self._vocabulary.raw(id)))
        return begin


def event(body: Mapping[str, object]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LEAST_LOGPROB


DONE = "data: [DONE]\n\n"
