"""What `bench/tokenizer.py` compares: the calls of each contender, every one by its own best.

Each library is imported where it is used: an environment holds ours or the peers, and numpy.
"""

import json
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

# What fastokens has a hand-written scanner for: cl100k's pattern as Llama 3 spells it. It cuts alike.
CL100K_AS_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Job:
    """What is measured: one call of one contender."""

    measure: str
    """vocabulary | train | encode | batch | decode"""
    contender: str
    call: str = ""
    """Which of the contender's calls: arrays | lists; str | bytes; imported"""
    threads: int = 1
    texts: str = ""
    """Name of the training text."""
    max_bytes: int | None = None
    """Reads this much of the training text."""
    vocab_size: int = 0
    pattern_name: str = "nanochat"
    """nanochat | cl100k"""
    pattern: str = ""
    folder: str = ""
    """Where the texts and the vocabulary lie."""


@dataclass(frozen=True)
class Encoder:
    """The calls of one contender with the vocabulary loaded; those that it lacks are None."""

    arrays: Callable[[str], Any] | None = None
    lists: Callable[[str], list[int]] | None = None
    batch: Callable[[list[str]], Any] | None = None
    rows: Callable[[Any], Iterable[Any]] = iter
    """A batch's result as ids for each text."""
    decode: Callable[[Any], str | bytes] | None = None
    ids: Callable[[str], Any] | None = None
    """The ids of a text, as `decode` likes them best."""


def as_json(job: Job) -> str:
    """What the command line takes."""
    return json.dumps(asdict(job))


# training

# Each gives: train on texts, and return what lists the merged tokens in order.
Trainer = Callable[[list[str]], Callable[[], Iterator[bytes]]]


def trainer_of(job: Job) -> Trainer:
    """The contender's training."""
    return {"ours": train_ours, "rustbpe": train_rustbpe, "tokenizers": train_tokenizers}[job.contender](job)


def train_ours(job: Job) -> Trainer:
    """The crate of this repository."""
    import rustbpe

    def work(texts: list[str]) -> Callable[[], Iterator[bytes]]:
        tokenizer = rustbpe.Tokenizer()
        tokenizer.train_from_iterator(iter(texts), job.vocab_size, pattern=job.pattern, num_threads=job.threads)
        return lambda: (token for token, rank in tokenizer.get_mergeable_ranks() if rank >= 256)

    return work


def train_rustbpe(job: Job) -> Trainer:
    """The package of that name; its threads are rayon's."""
    import rustbpe

    def work(texts: list[str]) -> Callable[[], Iterator[bytes]]:
        tokenizer = rustbpe.Tokenizer()
        tokenizer.train_from_iterator(iter(texts), job.vocab_size, pattern=job.pattern)
        by_rank = lambda: sorted(tokenizer.get_mergeable_ranks(), key=lambda pair: pair[1])  # noqa: E731
        return lambda: (bytes(token) for token, rank in by_rank() if rank >= 256)

    return work


def train_tokenizers(job: Job) -> Trainer:
    """Hugging Face's; its threads are rayon's."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    split = pre_tokenizers.Split(Regex(job.pattern), behavior="isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=job.vocab_size, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )

    def work(texts: list[str]) -> Callable[[], Iterator[bytes]]:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
        tokenizer.train_from_iterator(iter(texts), trainer=trainer, length=len(texts))
        back = {spelled: byte for byte, spelled in byte_spellings().items()}
        by_id = lambda: sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])  # noqa: E731
        return lambda: (bytes(back[c] for c in token) for token, rank in by_id() if rank >= 256)

    return work


# the vocabulary


def byte_spellings() -> dict[int, str]:
    """How byte-level Hugging Face files write each byte (GPT-2's table)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}


def read_ranks(job: Job) -> dict[bytes, int]:
    """The tokens of the vocabulary."""
    lines = (Path(job.folder) / "vocabulary.tiktoken").read_bytes().splitlines()
    return {b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}


# encoders


def slices(ids: Any, offsets: Any) -> Iterator[Any]:
    """The ids of each text of a batch."""
    return (ids[start:end] for start, end in pairwise(offsets.tolist()))


def encoder_of(job: Job) -> Encoder:
    """The contender's calls."""
    known = {"ours": ours, "tiktoken": tiktoken, "fastokens": fastokens, "gigatoken": gigatoken}
    return {**known, "tokenizers": tokenizers}[job.contender](job)


def ours(job: Job) -> Encoder:
    """The crate of this repository."""
    import rustbpe

    tokenizer = rustbpe.Tokenizer.from_ranks(read_ranks(job), job.pattern)

    return Encoder(
        arrays=tokenizer.encode_to_numpy,
        lists=tokenizer.encode,
        batch=lambda texts: tokenizer.batch_encode_to_numpy(texts, num_threads=job.threads),
        rows=lambda result: slices(*result),
        decode=tokenizer.decode_bytes if job.call == "bytes" else tokenizer.decode,
        ids=tokenizer.encode_to_numpy,
    )


def tiktoken(job: Job) -> Encoder:
    """Its loop is its best call on one thread; for decoding it gets lists, which it reads faster than arrays."""
    import tiktoken

    encoding = tiktoken.Encoding("bench", pat_str=job.pattern, mergeable_ranks=read_ranks(job), special_tokens={})
    loop: Callable[[list[str]], Any] = lambda texts: [encoding.encode_ordinary(text) for text in texts]  # noqa: E731
    return Encoder(
        arrays=encoding.encode_to_numpy,
        lists=encoding.encode_ordinary,
        batch=loop
        if job.threads == 1
        else lambda texts: encoding.encode_ordinary_batch(texts, num_threads=job.threads),
        decode=encoding.decode,
        ids=encoding.encode_ordinary,
    )


def fastokens(job: Job) -> Encoder:
    """`encode_batch_flat` makes no Python object per token; threads are FASTOKENS_BPE_THREADS and rayon's."""
    from fastokens import Tokenizer

    pattern = CL100K_AS_LLAMA3 if job.pattern_name == "cl100k" else job.pattern
    tokenizer = Tokenizer.from_tiktoken(str(Path(job.folder) / "vocabulary.tiktoken"), pattern=pattern)

    return Encoder(
        arrays=lambda text: np.frombuffer(tokenizer.encode_batch_flat([text])[0], np.uint32),
        lists=lambda text: tokenizer.encode(text).ids,
        batch=tokenizer.encode_batch_flat,
        rows=lambda result: slices(np.frombuffer(result[0], np.uint32), np.frombuffer(result[1], np.uint64)),
    )


def tokenizers(job: Job) -> Encoder:
    """Hugging Face's."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(job.folder) / "tokenizer.json"))
    return Encoder(lists=lambda text: tokenizer.encode(text, add_special_tokens=False).ids)


def gigatoken(job: Job) -> Encoder:
    """Its batches are awkward arrays; it imports that package in its first call, unless it is `imported` before."""
    from gigatoken import Tokenizer

    if job.call == "imported":
        import awkward  # noqa: F401

    path = str(Path(job.folder) / "vocabulary.tiktoken")
    tokenizer = Tokenizer.from_tiktoken(path, pretokenizer="cl100k")
    return Encoder(
        arrays=tokenizer.encode,
        batch=lambda texts: tokenizer.encode_batch(texts, parallel=job.threads > 1),
        rows=lambda result: (np.asarray(row) for row in result),
        decode=tokenizer.decode,
        ids=tokenizer.encode,
    )
