"""What the routes do: from a request's body to prompts, to the pool, to a response. Nothing here computes for long.

Lesson: lessons/24_serving
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from fastapi import Request, Response

from nanochat import chat_format
from nanochat.command import UserError
from nanochat.conversation import Conversation, Message, Part
from nanochat.serving.answers import Answer, Asked, ChatAnswer, CompletionAnswer
from nanochat.serving.errors import ApiError, busy
from nanochat.serving.guard import name_of_client
from nanochat.serving.journal import Journal
from nanochat.serving.messages import to_conversation
from nanochat.serving.metrics import Metrics
from nanochat.serving.pool import Job, Pool, PoolBusyError
from nanochat.serving.protocol import (
    ChatRequest,
    CompletionRequest,
    Defaults,
    DetokenizeRequest,
    GenerationRequest,
    Limits,
    TokenizeRequest,
    too_much,
)
from nanochat.serving.responses import JobResponse
from nanochat.serving.vocabulary import ServedTokenizer, Vocabulary
from nanochat.serving.wire import Sampling

ANY_MODEL = "nanochat"  # a name that every model here answers to

# How a conversation is laid out, as Hugging Face's templates say it. Here no text is ever made into control tokens:
# this is for clients that count tokens or lay out prompts by themselves.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for message in messages %}"
    "{% if message.role in ('system', 'developer') %}{% set ns.system = ns.system + message.content + '\\n\\n' %}"
    "{% elif message.role == 'user' %}<|user_start|>{{ ns.system }}{{ message.content }}<|user_end|>"
    "{% set ns.system = '' %}"
    "{% else %}<|assistant_start|>{{ message.content }}<|assistant_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant_start|>{% endif %}"
)

log = logging.getLogger(__name__)

Json = dict[str, object]


@dataclass(frozen=True)
class Service:
    """One model, its workers and how it is asked. `chats`: false for a base model, which only continues texts."""

    pool: Pool
    tokenizer: ServedTokenizer
    name: str
    chats: bool
    defaults: Defaults
    limits: Limits
    metrics: Metrics
    journal: Journal | None = None

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Single tokens."""
        return Vocabulary(self.tokenizer)

    def chat(self, body: ChatRequest, request: Request, stream: bool) -> Response:
        """The assistant's next turn. Raises ApiError."""
        self._check(body)
        if not self.chats:
            raise ApiError(400, "this base model continues texts and cannot chat: use /v1/completions")
        conversation, begun = to_conversation(body.messages, self.limits)
        sampling = body.sampling(self.defaults, self.limits, self.vocabulary.size)
        prompt = self._chat_prompt(conversation, begun)
        return self._answer(ChatAnswer, body, [prompt], sampling, request, stream, echo=False)

    def complete(self, body: CompletionRequest, request: Request) -> Response:
        """A text's continuation. Raises ApiError."""
        self._check(body)
        sampling = body.sampling(self.defaults, self.limits, self.vocabulary.size)
        prompts = self._text_prompts(body)
        room = self.pool.context_len - (1 if sampling["max_tokens"] else 0)
        for prompt in prompts:
            if len(prompt) > room:
                raise ApiError(
                    400,
                    f"the prompt has {len(prompt)} tokens and the model reads at most {room}: shorten it",
                    param="prompt",
                    code="context_length_exceeded",
                )
        return self._answer(CompletionAnswer, body, prompts, sampling, request, bool(body.stream), echo=bool(body.echo))

    def tokenize(self, body: TokenizeRequest) -> Json:
        """The ids of a text. One that is nothing but a control token's name stands for it: so clients learn its id."""
        if body.prompt in self.tokenizer.get_special_tokens():
            ids = [self.tokenizer.encode_special(body.prompt)]
        else:
            lead = [self.tokenizer.get_bos_token_id()] if body.add_special_tokens else []
            ids = [*lead, *self.tokenizer.encode(body.prompt)]
        return {"tokens": ids, "count": len(ids), "max_model_len": self.pool.context_len}

    def detokenize(self, body: DetokenizeRequest) -> Json:
        """The text of ids, control tokens by their names. Raises ApiError."""
        self._check_ids(body.tokens, "tokens")
        return {"prompt": self.tokenizer.decode(body.tokens)}

    def tokenizer_info(self) -> Json:
        """Control tokens and layout."""
        names = self.vocabulary.names
        bos = names[self.tokenizer.get_bos_token_id()]
        return {
            "tokenizer_class": "nanochat",
            "bos_token": bos,
            "eos_token": chat_format.ASSISTANT_END if self.chats else bos,
            "pad_token": bos,
            "special_tokens": {name: id for id, name in sorted(names.items())},
            "vocab_size": self.vocabulary.size,
            "max_model_len": self.pool.context_len,
            "chat_template": CHAT_TEMPLATE if self.chats else None,
        }

    def model(self, name: str | None = None) -> Json:
        """The model as a list of models shows it. Raises ApiError for another one's name."""
        self._check_model(name)
        sampling = self.defaults
        defaults = {
            "temperature": sampling.temperature,
            "top_k": sampling.top_k or 0,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
        }
        context_len = self.pool.context_len
        facts = {"max_model_len": context_len, "chats": self.chats, "defaults": defaults}
        return {"id": self.name, "object": "model", "created": 0, "owned_by": "nanochat", **facts}

    def health(self) -> Json:
        """Whether it runs, and how much it has to do."""
        ready = sum(worker.ready for worker in self.pool.workers)
        counts = {"workers": ready, "running": self.pool.running, "waiting": self.pool.waiting}
        return {"status": "ok", "model": self.name, **counts}

    def _check(self, body: GenerationRequest) -> None:
        self._check_model(body.model)
        body.check(self.limits)

    def _check_model(self, name: str | None) -> None:
        if name not in (None, self.name, ANY_MODEL):
            message = f"no model is called {name!r}; this server has {self.name!r}, also as {ANY_MODEL!r}"
            raise ApiError(404, message, param="model", code="model_not_found")

    def _check_ids(self, ids: Sequence[int], param: str) -> None:
        if wrong := [id for id in ids if id >= self.vocabulary.size]:
            raise ApiError(400, f"{param} has token {wrong[0]}; ids are below {self.vocabulary.size}", param=param)

    def _chat_prompt(self, conversation: Conversation, begun: list[Part]) -> list[int]:
        """The ids up to where the assistant goes on. Whole oldest turns are left out where the context is too short."""
        tail: list[int] = []
        if begun:  # the assistant's turn is open: what it holds stands between its own marks, the end left off
            nothing = Conversation([Message("user", "")])
            whole, _ = self.tokenizer.render_conversation(
                Conversation([*nothing.messages, Message("assistant", begun)]), self.pool.context_len + len(begun) * 8
            )
            tail = whole[len(self.tokenizer.render_for_completion(nothing)) : -1]
        try:
            fitted = chat_format.fit(conversation, self.tokenizer, self.pool.context_len - 1 - len(tail))
            return self.tokenizer.render_for_completion(fitted) + tail
        except UserError as mistake:
            raise ApiError(400, str(mistake), param="messages", code="context_length_exceeded") from mistake

    def _text_prompts(self, body: CompletionRequest) -> list[list[int]]:
        """Ids of each prompt; a text is led by the token that starts a document, ids are taken as they are."""
        given = body.prompt
        prompts: list[str | list[int]]
        if isinstance(given, str):
            prompts = [given]
        elif given and isinstance(given[0], int):
            prompts = [[id for id in given if isinstance(id, int)]]
        else:
            prompts = [prompt for prompt in given if not isinstance(prompt, int)]
        if not prompts:
            raise ApiError(400, "prompt is empty: it needs a text or token ids", param="prompt")
        if len(prompts) > self.limits.max_prompts:
            raise too_much("prompts", len(prompts), self.limits.max_prompts, "prompt")
        characters = sum(len(prompt) for prompt in prompts if isinstance(prompt, str))
        if characters > self.limits.max_characters:
            raise too_much("characters", characters, self.limits.max_characters, "prompt")
        bos = self.tokenizer.get_bos_token_id()
        ids = []
        for prompt in prompts:
            if isinstance(prompt, str):
                ids.append([bos, *self.tokenizer.encode(prompt)])
            else:
                self._check_ids(prompt, "prompt")
                ids.append(prompt)
        return ids

    def _answer(
        self,
        kind: type[ChatAnswer] | type[CompletionAnswer],
        body: ChatRequest | CompletionRequest,
        prompts: list[list[int]],
        sampling: Sampling,
        request: Request,
        stream: bool,
        echo: bool,
    ) -> Response:
        job = self._submitted(prompts, sampling, body.samples)
        wants_logprobs = sampling.get("logprobs") is not None
        answer = kind(
            Asked(
                self.name, prompts, body.samples, wants_logprobs, echo, body.wants_usage and stream,
                frozenset(sampling["stop_ids"]),
            ),
            self.vocabulary,
        )  # fmt: skip
        started = time.monotonic()

        def begun() -> None:
            self.metrics.first_token(time.monotonic() - started)

        async def ended() -> None:
            self.metrics.answered(answer)
            if self.journal is not None:
                await asyncio.to_thread(self.journal.write, _entry(body, request, answer))

        return JobResponse(job, answer, stream, self.limits.request_seconds, begun, ended)

    def _submitted(self, prompts: list[list[int]], sampling: Sampling, n: int) -> Job:
        try:
            return self.pool.submit(prompts, sampling, n)
        except PoolBusyError as refusal:
            if self.pool.draining:
                raise busy("the server is stopping and takes nothing new") from refusal
            under_way = f"answers under way: {self.pool.running}, waiting: {self.pool.waiting}"
            raise busy(f"the server is busy ({under_way}); try again soon") from refusal


def _entry(body: ChatRequest | CompletionRequest, request: Request, answer: Answer) -> Json:
    """A line of the journal."""
    asked = body.model_dump(exclude_none=True, mode="json")
    choices = [
        {"text": [[part.type, part.text] for part in choice.parts], "finish_reason": choice.finish_reason}
        for choice in answer.choices
    ]
    client = name_of_client(request.scope)
    return {"time": time.time(), "id": answer.id, "client": client, "request": asked, "choices": choices}
