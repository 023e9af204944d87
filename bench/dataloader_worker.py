"""One measurement of `bench/dataloader.py`, in a process of its own and by the Python of one environment.

It takes a `Job` as JSON and prints its result as JSON. Every loader gives int64 inputs and targets (B, T) as torch
tensors, of one epoch at most, so that no text is met twice: the encoders' caches are as cold as an unseen corpus leaves
them. The peers' environment has no nanochat.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Batches = Iterator[tuple[Any, Any]]


@dataclass(frozen=True)
class Job:
    """Which loader, over which shards, in which shape."""

    contender: str
    folder: str
    """A base directory: `data/text` and `tokenizer`."""
    rows: int = 16
    tokens: int = 512
    vocab_size: int = 8192
    most_tokens: int = 1_000_000_000_000
    """Where to stop before the epoch's end."""


# ours


def ours(job: Job) -> tuple[Callable[[], Any], Callable[[Any], dict[str, Any]]]:
    """Our loader, its thread on or off."""
    import torch

    from nanochat.dataloader import DocumentLoader
    from nanochat.runtime import Runtime
    from nanochat.tokenizer import get_tokenizer

    tokenizer, runtime = get_tokenizer(), Runtime(torch.device("cpu"), torch.float32)
    ahead = 0 if job.contender == "ours.no_thread" else 4

    def start() -> DocumentLoader:
        loader = DocumentLoader(tokenizer, job.rows, job.tokens, runtime, "train", "text", ahead=ahead)
        loader.epochs = 1
        return loader

    def tell(loader: DocumentLoader) -> dict[str, Any]:
        counts = loader.counts
        given = counts.tokens + counts.padding + counts.cropped
        return {
            "padding_share": counts.padding / given,
            "cropped_share": counts.cropped / given,
            "cut_rows_share": counts.cut / counts.rows,
        }

    return start, tell


def training(job: Job) -> dict[str, Any]:
    """What a model takes: forward and backward of depth 4, eager, in the runtime's best precision, no optimizer."""
    import torch

    from nanochat.checkpoint_manager import build_model
    from nanochat.gpt_config import config_for_depth
    from nanochat.runtime import Runtime

    with Runtime.start("cpu") as runtime:
        model = build_model(config_for_depth(4, job.vocab_size, job.tokens), runtime)
        model.init_weights(0)
        inputs = torch.randint(0, job.vocab_size, (job.rows, job.tokens))
        weights = torch.full(inputs.shape, 1 / inputs.numel())
        seconds = []
        for _ in range(4):
            started = time.perf_counter()
            model(inputs, inputs, weights).backward()
            seconds.append(time.perf_counter() - started)
        return {"tokens_per_second": inputs.numel() / sorted(seconds[1:])[1], "dtype": str(runtime.dtype)}


# peers


def shards_of(job: Job) -> list[str]:
    """The training shards: all but the last."""
    return sorted(map(str, (Path(job.folder) / "data" / "text").glob("*.parquet")))[:-1]


def encoder_of(job: Job) -> tuple[Callable[[list[str]], list[list[int]]], int]:
    """The ids of some texts by a library's best call, and the id of `<|bos|>`."""
    tokenizer_folder = Path(job.folder) / "tokenizer"
    library, how = job.contender.split(".")
    bos = job.vocab_size - 9
    if library == "tiktoken":
        import tiktoken

        given = json.loads((tokenizer_folder / "tiktoken.json").read_text(encoding="utf-8"))
        ranks = {bytes.fromhex(token): rank for rank, token in enumerate(given["ranks"])}
        encoding = tiktoken.Encoding("text", pat_str=given["pattern"], mergeable_ranks=ranks, special_tokens={})
        if how == "batch":
            return lambda texts: encoding.encode_ordinary_batch(texts, num_threads=2), bos
        return lambda texts: [encoding.encode_ordinary(text) for text in texts], bos
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    return lambda texts: [each.ids for each in tokenizer.encode_batch_fast(texts, add_special_tokens=False)], bos


def flat_batches(job: Job, shards: list[str]) -> Batches:
    """Documents one behind the other, cut into rows wherever they end: less work than packing, and nothing lost."""
    import pyarrow.parquet as pq
    import torch

    encode, bos = encoder_of(job)
    held: list[int] = []
    wanted = job.rows * job.tokens + 1
    for shard in shards:
        with pq.ParquetFile(shard) as file:
            for batch in file.iter_batches(batch_size=128, columns=["text"]):
                for ids in encode(batch.column(0).to_pylist()):
                    held.append(bos)
                    held.extend(ids)
                while len(held) >= wanted:
                    block = torch.tensor(held[:wanted])
                    del held[: wanted - 1]
                    yield block[:-1].view(job.rows, job.tokens), block[1:].view(job.rows, job.tokens)


def in_process(job: Job) -> Batches:
    """A plain loop."""
    return flat_batches(job, shards_of(job))


def in_workers(job: Job) -> Batches:
    """The same loop in two processes of torch's DataLoader, each with every second shard."""
    from torch.utils.data import DataLoader, IterableDataset, get_worker_info

    class Flat(IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Batches:
            info = get_worker_info()
            yield from flat_batches(job, shards_of(job)[info.id :: info.num_workers])

    return iter(DataLoader(Flat(), batch_size=None, num_workers=2, prefetch_factor=4))


# measuring


def measure(job: Job) -> dict[str, Any]:
    """Seconds to the first batch, and tokens a second from there to the end of the epoch."""
    if job.contender == "training":
        return training(job)
    tell: Callable[[Any], dict[str, Any]] = lambda loader: {}  # noqa: E731
    if job.contender.startswith("ours"):
        start, tell = ours(job)
        bos = None
    else:
        import torch  # noqa: F401  imports are outside of the clock

        encoder_of(job)[0](["warm"])
        way = in_workers if job.contender.endswith(".workers") else in_process
        start, bos = lambda: way(job), job.vocab_size - 9
    cpu = cpu_seconds()
    begun = time.perf_counter()
    loader = start()
    inputs, _ = next(loader)
    first = time.perf_counter()
    led = tokens = rows = 0
    bos = int(inputs[0, 0]) if bos is None else bos
    for inputs, targets in loader:
        tokens += int((targets != -1).sum())
        led += int((inputs[:, 0] == bos).sum())
        rows += len(inputs)
        if tokens >= job.most_tokens:
            break
    seconds = time.perf_counter() - first
    told = tell(loader)
    del loader
    return {
        "first_batch_seconds": first - begun,
        "tokens_per_second": tokens / seconds,
        "tokens": tokens,
        "cpu_seconds_per_million_tokens": (cpu_seconds() - cpu) / tokens * 1e6,
        "rows_led_by_bos_share": led / rows,
        **told,
    }


def cpu_seconds() -> float:
    """Of this process and the children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


if __name__ == "__main__":
    print(json.dumps(measure(Job(**json.loads(sys.argv[1])))))
