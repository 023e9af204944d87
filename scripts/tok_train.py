"""Train the tokenizer on the training split of a source of text.

    python -m scripts.tok_train
    python -m scripts.tok_train --max_chars=2000000000 --vocab_size=65536

The first stage: everything after it speaks in its ids.

Lesson: lessons/08_real_text
"""

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Never

from nanochat import command, dataset, paths, report
from nanochat.command import UserError
from nanochat.log import print0, progress
from nanochat.tokenizer import SPECIAL_TOKENS, RustBPETokenizer, check_pattern

if TYPE_CHECKING:
    from tqdm import tqdm


@dataclass(frozen=True)
class Config:
    """What to train on, and how large the vocabulary becomes."""

    max_chars: int = 2_000_000_000
    """Characters to read at most."""
    doc_cap: int = 10_000
    """Characters of one document to read at most, so that a few huge ones do not decide."""
    vocab_size: int = 65_536
    """Tokens, the special ones included."""
    pattern: str = "nanochat"
    """How text is cut into words: nanochat, gpt2, gpt4, qwen2, or a regular expression of your own (slower)."""
    threads: int | None = None
    """Threads that count words; unset: one per core."""
    data: str | None = None
    """Source of text, a folder under data/ (default: fineweb-edu, or the only one that is there)."""
    dry_run: bool = False
    """Print the plan and exit."""


def main(config: Config) -> None:
    """Read, train, save, report."""
    smallest = 256 + len(SPECIAL_TOKENS)
    for name, least in (("max_chars", 1), ("doc_cap", 1), ("vocab_size", smallest)):
        if getattr(config, name) < least:
            raise UserError(f"--{name} must be at least {least}, got {getattr(config, name)}")
    if config.threads is not None and config.threads < 1:
        raise UserError(f"--threads must be at least 1, got {config.threads}")
    pattern = pattern_of(config.pattern)
    source = config.data or dataset.default_source()
    expected, share = expected_chars(config, source)
    print0(
        f"training {config.vocab_size:,} tokens on {expected:,} characters or so, {share:.0%} of {source}, "
        f"into {paths.tokenizer_dir()}"
    )
    if config.dry_run:
        return

    started = time.perf_counter()
    documents = chars = 0
    with ExitStack() as bars:
        reading = bars.enter_context(progress(total=expected, label="read", unit="chars"))
        merging: tqdm[Never] | None = None

        def texts() -> Iterator[str]:
            nonlocal documents, chars
            for text in capped_documents(config, source):
                documents, chars = documents + 1, chars + len(text)
                reading.update(len(text))
                yield text

        def on_merge(done: int, wanted: int) -> None:
            nonlocal merging
            if merging is None:
                reading.close()
                merging = bars.enter_context(progress(total=wanted, label="merge", unit="merge"))
            merging.update(done - merging.n)

        tokenizer = RustBPETokenizer.train_from_iterator(texts(), config.vocab_size, pattern, on_merge, config.threads)
    seconds = time.perf_counter() - started
    tokenizer.save(paths.tokenizer_dir())

    size = tokenizer.get_vocab_size()
    print0(f"trained {size:,} tokens on {chars:,} characters of {documents:,} documents in {seconds:.1f} s")
    if size < config.vocab_size:
        print0(f"the text has no more pairs to merge: {size:,} tokens instead of {config.vocab_size:,}")
    lengths = [length for length in tokenizer.token_bytes() if length > 0]
    report.add_section(
        "tok_train",
        {
            "source": source,
            "documents": documents,
            "characters": chars,
            "seconds": seconds,
            "pattern": config.pattern,
            "vocab_size": size,
            "vocab_size_asked_for": config.vocab_size,
            "special_tokens": len(tokenizer.get_special_tokens()),
            "bytes_of_a_token_mean": sum(lengths) / len(lengths),
            "bytes_of_a_token_max": max(lengths),
        },
    )


def pattern_of(given: str) -> str:
    """The split pattern by name, or the expression itself when it is one."""
    from rustbpe import PATTERNS

    if given in PATTERNS:
        return PATTERNS[given]
    if re.fullmatch(r"[A-Za-z0-9_-]+", given):
        names = ", ".join(sorted(PATTERNS))
        raise UserError(f"no split pattern is called {given!r}; there are {names}, or give a regular expression")
    check_pattern(given)
    return given


def expected_chars(config: Config, source: str) -> tuple[int, float]:
    """Characters that will be read, guessed from the first row group, and their share of the whole split."""
    files = dataset.split_files("train", source)
    rows = sum(sum(dataset.row_group_counts(path)) for path in files)
    sample = [min(len(text), config.doc_cap) for text in dataset.read_row_group(files[0], 0)]
    whole = max(1, round(sum(sample) / len(sample) * rows))
    return min(whole, config.max_chars), min(1.0, config.max_chars / whole)


def capped_documents(config: Config, source: str) -> Iterator[str]:
    """The documents, each cut at `doc_cap`, until `max_chars` are read."""
    room = config.max_chars
    for text in dataset.iterate_documents("train", source):
        text = text[: min(config.doc_cap, room)]
        room -= len(text)
        yield text
        if room <= 0:
            return


if __name__ == "__main__":
    command.run(main, Config)
