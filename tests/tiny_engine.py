"""Engines in tests: the tiny tokenizer's ids, an engine over a model that recites, and all that an engine tells."""

from collections.abc import Sequence

from tiny import Reciter, tiny_tokenizer

from nanochat import chat_format
from nanochat.engine import Engine
from nanochat.rows import Update
from nanochat.sampling import SamplingParams

TOKENIZER = tiny_tokenizer()
VOCAB = TOKENIZER.get_vocab_size()
END, BOS = (TOKENIZER.encode_special(name) for name in (chat_format.ASSISTANT_END, chat_format.BOS))
OUTPUT, OUTPUT_END = (TOKENIZER.encode_special(n) for n in (chat_format.OUTPUT_START, chat_format.OUTPUT_END))
UNSAYABLE = [OUTPUT, OUTPUT_END] + [
    TOKENIZER.encode_special(n) for n in (chat_format.USER_START, chat_format.USER_END, chat_format.ASSISTANT_START)
]
PROMPTS = [[BOS, 5, 6], [BOS, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49], [BOS], [BOS, 100, 101, 102, 103]]


def reciting(*scripts: Sequence[int], sequence_len: int = 64, after: int = END) -> Engine:
    """Prompts [1], [1, 1], ... are answered by the first script, [2], ... by the second."""
    model = Reciter(dict(enumerate(scripts, start=1)), VOCAB, after, sequence_len)
    return Engine(model, TOKENIZER)  # type: ignore[arg-type]


def run(engine: Engine) -> list[Update]:
    """Everything that the engine has to tell."""
    updates = []
    while engine.busy:
        updates += engine.step()
    return updates


def texts(engine: Engine, *asked: tuple[list[int], SamplingParams, int]) -> list[list[list[int]]]:
    """Ids of each request's samples, all submitted at once."""
    names = [engine.submit(prompt, params, n) for prompt, params, n in asked]
    found: dict[int, list[list[int]]] = {
        name: [[] for _ in range(one[2])] for name, one in zip(names, asked, strict=True)
    }
    for update in run(engine):
        found[update.request][update.sample].extend(update.ids)
    return list(found.values())
