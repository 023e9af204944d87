"""How well the tokenizer packs: bytes per token on kinds of text, next to GPT-2's and GPT-4's.

    python -m scripts.tok_eval
    python -m scripts.tok_eval --sample_chars=10000000 --peers gpt2
    python -m scripts.tok_eval --show "Where are the borders?"

More bytes per token means fewer tokens for the same text. The larger a vocabulary, the easier that is, so its size
stands beside the name.

Lesson: lessons/08_real_text
"""

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tiktoken

from nanochat import command, dataset, paths, report
from nanochat.command import UserError
from nanochat.log import print0
from nanochat.tokenizer import RustBPETokenizer, get_tokenizer

BLOBS = "https://openaipublic.blob.core.windows.net/"
# The files that tiktoken fetches for an encoding.
PEER_FILES = {
    "gpt2": ("gpt-2/encodings/main/vocab.bpe", "gpt-2/encodings/main/encoder.json"),
    "cl100k_base": ("encodings/cl100k_base.tiktoken",),
}
PEER_NAMES = {"gpt2": "GPT-2", "cl100k_base": "GPT-4"}
PROBE_SECONDS = 3.0

# Articles of the Universal Declaration of Human Rights where a language is meant, our own lines elsewhere.
SAMPLES = {
    "English": "All human beings are born free and equal in dignity and rights. They are endowed with reason and "
    "conscience and should act towards one another in a spirit of brotherhood.",
    "story": '"Where have you been?" asked Mia. The old dog didn\'t answer, of course; he shook the rain from his '
    "coat, lay down by the fire and, before she'd closed the door, was asleep.",
    "German": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen "
    "begabt und sollen einander im Geist der Brüderlichkeit begegnen.",
    "Korean": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. 인간은 천부적으로 이성과 양심을 "
    "부여받았으며 서로 형제애의 정신으로 행동하여야 한다.",
    "Chinese": "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心,并应以兄弟关系的精神相对待。",
    "code": "def fibonacci(n: int) -> list[int]:\n    numbers = [0, 1]\n    while len(numbers) < n:\n"
    "        numbers.append(numbers[-1] + numbers[-2])\n    return numbers[:n]\n\n\nprint(fibonacci(10))\n",
    "JSON": '{"id": 20731, "name": "Ada", "tags": ["first", "programmer"], "born": "1815-12-10", "score": 0.985}\n',
    "maths": "For all $n \\geq 1$ we have $\\sum_{k=1}^{n} k^2 = \\frac{n(n+1)(2n+1)}{6}$, so 1 + 4 + 9 + 16 = 30 and "
    "the sum up to n = 1000 is 333833500.\n",
    "science": "Photosynthesis converts carbon dioxide and water into glucose and oxygen: 6 CO2 + 6 H2O -> C6H12O6 + "
    "6 O2, driven by light absorbed by chlorophyll a at 430 nm and 662 nm.",
}


@dataclass(frozen=True)
class Config:
    """What to measure on, and against whom."""

    data: str | None = None
    """Source of text, a folder under data/ (default: fineweb-edu, or the only one that is there)."""
    sample_chars: int = 1_000_000
    """Characters of each split to measure on."""
    peers: tuple[str, ...] = tuple(PEER_FILES)
    """Encodings of tiktoken to compare with; those whose files cannot be reached are left out."""
    show: str | None = None
    """Print this text token by token, and end."""
    dry_run: bool = False
    """Print the plan and exit."""


def main(config: Config) -> None:
    """Count tokens, print the table, report."""
    if config.sample_chars < 1:
        raise UserError(f"--sample_chars must be at least 1, got {config.sample_chars}")
    if config.show is not None:
        print0(shown(get_tokenizer(), config.show, sys.stdout.isatty() and "NO_COLOR" not in os.environ))
        return
    unknown = [name for name in config.peers if name not in PEER_FILES]
    if unknown:
        raise UserError(f"--peers knows {' and '.join(PEER_FILES)}, got {unknown[0]!r}")
    source = config.data or dataset.default_source()
    if config.dry_run:
        kinds = f"{len(SAMPLES)} small texts and {config.sample_chars:,} characters of each split of {source}"
        peers = ", ".join(config.peers) or "no other"
        print0(f"would measure the tokenizer in {paths.tokenizer_dir()} on {kinds}, next to {peers}")
        return

    tokenizer = get_tokenizer()
    contenders = {"nanochat": tokenizer.to_tiktoken()}
    found, left_out = load_peers(config.peers)
    contenders |= found
    texts = {
        **{kind: [text] for kind, text in SAMPLES.items()},
        "train": list(first_chars(dataset.iterate_documents("train", source), config.sample_chars)),
        "val": list(first_chars(dataset.iterate_documents("val", source), config.sample_chars)),
    }
    sizes = {kind: sum(len(text.encode()) for text in some) for kind, some in texts.items()}
    counts: dict[str, dict[str, int]] = {}
    for kind, some in texts.items():
        rows = tokenizer.encode(some)
        if [tokenizer.decode(row) for row in rows] != some:
            raise AssertionError(f"decoding the ids of the {kind} text does not give it back")
        counts[kind] = {"nanochat": sum(map(len, rows))}
        for name, peer in found.items():
            counts[kind][name] = sum(len(ids) for ids in peer.encode_ordinary_batch(some))

    print0(table(contenders, sizes, counts))
    if left_out:
        print0(f"left out, their files are neither here nor reachable: {', '.join(left_out)}")
    facts: dict[str, object] = {"source": source, "vocab_size": tokenizer.get_vocab_size()}
    for name in contenders:
        facts[f"bytes per token, {name}"] = {kind: sizes[kind] / counts[kind][name] for kind in sizes}
    report.add_section("tok_eval", facts | {"left_out": ", ".join(left_out) or "none"})


def shown(tokenizer: RustBPETokenizer, text: str, coloured: bool) -> str:
    """The tokens of a text on two backgrounds in turn, or between bars; then their ids and bytes per token."""
    ids = tokenizer.encode(text)
    # a part of a character shows as its bytes
    pieces = [tokenizer.decode_bytes([i]).decode("utf-8", errors="backslashreplace") for i in ids]
    colours = ("97;44", "30;47")
    line = "".join(f"\033[{colours[n % 2]}m{piece}\033[0m" for n, piece in enumerate(pieces))
    size = len(text.encode())
    return "\n".join(
        [
            line if coloured else "|".join(pieces),
            " ".join(map(str, ids)),
            f"{len(ids)} tokens of {size} bytes, {size / max(len(ids), 1):.2f} bytes per token",
        ]
    )


def first_chars(documents: Iterator[str], chars: int) -> Iterator[str]:
    """Documents from the start, the last one cut, until there are `chars` characters; empty ones left out."""
    for text in documents:
        if text:
            yield text[:chars]
        chars -= len(text)
        if chars <= 0:
            return


def table(contenders: dict[str, tiktoken.Encoding], sizes: dict[str, int], counts: dict[str, dict[str, int]]) -> str:
    """A row per kind of text, per contender its bytes per token, and what we save against each peer."""
    ours, *peers = contenders
    head = ["text", "bytes", *(f"{name} ({encoding.n_vocab:,})" for name, encoding in contenders.items())]
    rows = [[*head, *(f"tokens vs {name}" for name in peers)]]
    for kind, size in sizes.items():
        tokens = counts[kind]
        cells = [f"{size / tokens[name]:.2f}" for name in contenders]
        against = [f"{tokens[ours] / tokens[name] - 1:+.1%}" for name in peers]
        rows.append([kind, f"{size:,}", *cells, *against])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        aligned = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *aligned]))
    return "\n".join(["bytes per token", *lines])


def load_peers(names: tuple[str, ...]) -> tuple[dict[str, tiktoken.Encoding], list[str]]:
    """The encodings whose files tiktoken has kept or can fetch, by their known names, and the names left out."""
    here = [name for name in names if is_cached(name)]
    if len(here) < len(names) and is_reachable():
        here = list(names)
    found = {PEER_NAMES[name]: tiktoken.get_encoding(name) for name in here}
    return found, [PEER_NAMES[name] for name in names if name not in here]


def is_cached(name: str) -> bool:
    """Whether tiktoken keeps all files of an encoding: named by the SHA-1 of their address, in its cache folder."""
    kept = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    folder = Path(kept) if kept else Path(tempfile.gettempdir()) / "data-gym-cache"
    return all((folder / hashlib.sha1((BLOBS + file).encode()).hexdigest()).is_file() for file in PEER_FILES[name])


def is_reachable() -> bool:
    """Whether the files' server answers soon; tiktoken itself would wait for minutes."""
    import httpx

    try:
        return httpx.head(BLOBS + PEER_FILES["cl100k_base"][0], timeout=PROBE_SECONDS).is_success
    except httpx.HTTPError:
        return False


if __name__ == "__main__":
    command.run(main, Config)
