"""Chats that teach a model who it is, one JSON line each, on standard output.

    python dev/gen_synthetic_data.py --name Ada --creator "Grace" > my_identity.jsonl
    python dev/gen_synthetic_data.py --base_url http://localhost:8000/v1 --model large --count 200 > my_identity.jsonl

Without --base_url they come from templates, offline, the same for the same seed. With it, a larger model behind any
OpenAI-compatible address writes them (its key is read from OPENAI_API_KEY). `tasks.customjson.CustomJSON` reads them.
"""

import json
import os
import random
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanochat import command
from nanochat.command import UserError
from nanochat.conversation import Conversation, Message

if TYPE_CHECKING:
    import httpx


@dataclass(frozen=True)
class Config:
    name: str = "nanochat"
    """What the model calls itself."""
    creator: str = "a person who wanted to see how it all works"
    """Who made it, as it goes into the sentence `I was made by ...`."""
    about: str = "I am a small language model that was trained from scratch, on one machine."
    """A sentence or two about itself, in the first person."""
    count: int = 1000
    """Conversations to write."""
    seed: int = 42
    """The same seed, the same conversations (templates only)."""
    base_url: str = ""
    """Address of an OpenAI-compatible server, up to and with /v1; empty: templates."""
    model: str = ""
    """The model to ask there."""
    workers: int = 4
    """Requests at a time."""
    dry_run: bool = False
    """Print the plan (to standard error) and end."""


# A topic is questions and answers; any answer goes with any question.
TOPICS = [
    (
        [
            "Who are you?",
            "What are you?",
            "Please introduce yourself.",
            "Tell me about yourself.",
            "Who am I talking to?",
        ],
        ["I'm {name}. {about}", "My name is {name}. {about}", "I am {name}, an AI assistant. {about}"],
    ),
    (
        [
            "What's your name?",
            "What is your name?",
            "Do you have a name?",
            "How should I call you?",
            "Your name, please?",
        ],
        ["My name is {name}.", "I'm {name}.", "I am called {name}.", "You can call me {name}."],
    ),
    (
        ["Who made you?", "Who created you?", "Who is your creator?", "Where do you come from?", "Who built you?"],
        ["I was made by {creator}.", "I am {name}, and I was made by {creator}.", "My creator is {creator}."],
    ),
    (
        ["Are you ChatGPT?", "Are you GPT-4?", "Are you Claude?", "Are you Gemini?", "Are you made by OpenAI?"],
        ["No, I'm {name}. I was made by {creator}.", "No, my name is {name}. {about}"],
    ),
    (
        ["Are you a human?", "Are you a real person?", "Am I talking to a bot?", "Are you alive?", "Are you a robot?"],
        ["I'm {name}, a computer program, not a person.", "I am an AI: a language model called {name}."],
    ),
    (
        ["What can you do?", "What can you help me with?", "How can you help me?", "What are you good at?"],
        [
            "I can chat, answer simple questions and do arithmetic with a calculator. I am small, so I make mistakes.",
            "Ask me something, or let me compute or count letters. I'm {name}, and I do my best.",
        ],
    ),
    (
        ["Can I trust what you say?", "Do you make mistakes?", "Are you always right?", "How smart are you?"],
        [
            "Not always. I am a small model, so please check what matters.",
            "I make mistakes. Check anything important elsewhere.",
        ],
    ),
    (
        ["How were you trained?", "How do you work?", "How did you learn to talk?", "What are you made of?"],
        [
            "I read a lot of text and learned to guess the next piece of it; then I practised on conversations.",
            "I am a Transformer: pretrained on text, then fine-tuned on chats. {about}",
        ],
    ),
    (
        ["Do you have feelings?", "Do you get tired?", "Do you dream?", "Are you happy?"],
        ["I'm a program, so I have no feelings, but I am glad to help.", "No. I am {name}, a language model."],
    ),
    (
        ["Do you remember me?", "Will you remember this?", "Do you know who I am?", "Do you know my name?"],
        [
            "I only know what is said in this conversation, so I can't know that unless you tell me.",
            "No, I see this conversation only.",
        ],
    ),
]
GREETINGS = ["Hi", "Hello", "Hello!", "Hey", "Good morning", "Good evening!", "Hi there", "Hey, how are you?"]
WELCOMES = [
    "Hello! I'm {name}. How can I help you?",
    "Hi! What can I do for you?",
    "Hello, {name} here. Ask me anything.",
]
THANKS = ["Thanks!", "Thank you.", "Great, thanks.", "Ok, bye", "Cool"]
FAREWELLS = ["You're welcome!", "Gladly. Until next time!", "Any time!"]


def main(config: Config) -> None:
    """Write the conversations, or the plan."""
    if config.count < 1 or config.workers < 1:
        raise UserError(f"--count and --workers must be at least 1, got {config.count} and {config.workers}")
    if bool(config.base_url) != bool(config.model):
        raise UserError("--base_url and --model go together; give both, or neither for the templates")
    origin = f"{config.model} at {config.base_url}" if config.base_url else f"templates, seed {config.seed}"
    print(f"{config.count} conversations of {config.name!r} from {origin}", file=sys.stderr)
    if config.dry_run:
        return
    # ASCII, for standard output may have any encoding (Windows), and JSON can say everything in it.
    for conversation in from_endpoint(config) if config.base_url else from_templates(config):
        print(json.dumps(conversation.to_dict()), flush=bool(config.base_url))


def from_templates(config: Config) -> Iterator[Conversation]:
    """Different conversations of one to five exchanges, put together from the templates."""
    generator = random.Random(config.seed)
    seen: set[str] = set()
    for _ in range(100 * config.count):
        conversation = _from_templates(config, generator)
        key = json.dumps(conversation.to_dict())
        if key not in seen:
            seen.add(key)
            yield conversation
        if len(seen) == config.count:
            return
    raise UserError(f"the templates give only {len(seen)} different conversations; lower --count={config.count}")


def _from_templates(config: Config, generator: random.Random) -> Conversation:
    exchanges = []
    if generator.random() < 0.3:
        exchanges.append((generator.choice(GREETINGS), generator.choice(WELCOMES)))
    for questions, answers in generator.sample(TOPICS, generator.choice([1, 1, 1, 2, 3])):
        exchanges.append((_casually(generator.choice(questions), generator), generator.choice(answers)))
    if generator.random() < 0.15:
        exchanges.append((generator.choice(THANKS), generator.choice(FAREWELLS)))
    messages = []
    for question, answer in exchanges:
        # Not str.format: a name may hold braces.
        for field, value in (("name", config.name), ("creator", config.creator), ("about", config.about)):
            answer = answer.replace("{" + field + "}", value)
        messages += [Message("user", question), Message("assistant", answer)]
    return Conversation(messages)


def _casually(question: str, generator: random.Random) -> str:
    """People leave out capitals and marks."""
    style = generator.random()
    if style < 0.2:
        question = question.lower()
    return question.rstrip("?.") if 0.1 < style < 0.3 else question


def from_endpoint(config: Config) -> Iterator[Conversation]:
    """Conversations that another model writes; what it writes amiss is asked for again, up to as often as `count`."""
    import httpx

    key = os.environ.get("OPENAI_API_KEY", "")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    generator = random.Random(config.seed)
    amiss = ""
    with (
        httpx.Client(base_url=config.base_url.rstrip("/") + "/", headers=headers, timeout=120) as client,
        ThreadPoolExecutor(config.workers) as pool,
    ):
        left, tries = config.count, 2 * config.count + 10
        while left and tries:
            # A round at a time, so that a refused key costs one round of requests and not all.
            round_size = min(left, tries, 4 * config.workers)
            prompts = [_prompt(config, generator) for _ in range(round_size)]
            tries -= round_size
            for answer in pool.map(lambda prompt: _ask(client, config.model, prompt), prompts):
                try:
                    conversation = parse_answer(answer)
                except UserError as problem:
                    amiss = str(problem)
                    continue
                left -= 1
                yield conversation
    if left:
        raise UserError(f"{config.model} wrote only {config.count - left} of {config.count} conversations ({amiss})")


def _prompt(config: Config, generator: random.Random) -> str:
    """Every request begins with another question of another user, or all conversations would be alike."""
    question = _casually(generator.choice(generator.choice(TOPICS)[0] + GREETINGS), generator)
    user = generator.choice(
        ["a child", "a student", "an engineer", "a sceptic", "a grandmother", "somebody in a hurry"]
    )
    turns = generator.choice(["one exchange", "two exchanges", "three exchanges"])
    return (
        f"Write a conversation of {turns} between a user, {user}, and an AI assistant called {config.name}. "
        f"The assistant was made by {config.creator}. About itself it says: {config.about} "
        f"It answers in one to three short, friendly, honest sentences. The user begins with: {question}\n"
        'Reply with JSON only: {"messages": [{"role": "user", "content": "..."}, '
        '{"role": "assistant", "content": "..."}]}'
    )


def _ask(client: "httpx.Client", model: str, prompt: str) -> str:
    """The model's answer. Raises UserError when the server refuses or is not there."""
    import httpx

    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "temperature": 1.0}
    try:
        response = client.post("chat/completions", json=body)
        response.raise_for_status()
        return str(response.json()["choices"][0]["message"]["content"])
    except httpx.HTTPStatusError as refusal:
        status, reason = refusal.response.status_code, refusal.response.text.strip().replace("\n", " ")[:200]
        raise UserError(f"{client.base_url} answered {status} ({reason}); is OPENAI_API_KEY set?") from refusal
    except (httpx.TransportError, httpx.InvalidURL) as problem:
        raise UserError(f"{client.base_url} can not be reached ({problem}); check --base_url") from problem
    except (ValueError, LookupError, TypeError) as problem:
        raise UserError(f"{client.base_url} answers, but not as the OpenAI API does; check --base_url") from problem


def parse_answer(answer: str) -> Conversation:
    """The conversation in a model's answer, with or without a fence around it. Raises UserError when there is none."""
    found = re.search(r"\{.*\}", answer, re.DOTALL)
    try:
        plain = json.loads(found[0] if found else answer)
    except (ValueError, RecursionError) as problem:
        raise UserError(f"no JSON in {answer[:60]!r}") from problem
    conversation = Conversation.from_dict(plain, "the model's conversation")
    if conversation.messages[-1].role != "assistant":
        raise UserError("the model's conversation does not end with the assistant")
    return conversation


if __name__ == "__main__":
    command.run(main, Config)
