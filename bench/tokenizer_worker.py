"""One measurement of `bench/tokenizer.py`, in a process of its own and by the Python of one environment.

It takes a `Job` as JSON and prints its result as JSON. An environment holds numpy and the contender, not nanochat.
"""

import hashlib
import json
import sys
import time
from array import array
from base64 import b64encode
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizer_contenders import Job, byte_spellings, encoder_of, trainer_of

# texts


def write_texts(path: Path, texts: Iterable[str]) -> None:
    """One file of UTF-8, and the length of every text beside it."""
    lengths = array("Q")
    with path.open("wb") as file:
        for text in texts:
            lengths.append(file.write(text.encode()))
    np.save(path.with_suffix(".npy"), np.array(lengths, dtype=np.uint64))


def read_texts(path: Path, max_bytes: int | None = None) -> list[str]:
    """What `write_texts` wrote, up to the first text that would pass `max_bytes`."""
    texts = []
    left = max_bytes
    with path.open("rb") as file:
        for length in np.load(path.with_suffix(".npy")).tolist():
            if left is not None:
                left -= length
                if left < 0:
                    break
            texts.append(file.read(length).decode())
    return texts


def size_bytes(texts: Iterable[str]) -> int:
    """Length in UTF-8."""
    return sum(len(text.encode()) for text in texts)


# clocks and digests


def resident_bytes(field: str) -> int:
    """`VmRSS` (now) or `VmHWM` (the most since `forget_peak`) of this process; where there is no /proc, the peak."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))
    except (FileNotFoundError, StopIteration):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak() -> None:
    """Lower the recorded peak of resident memory to what is held now, on Linux."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return  # the peak of loading the texts then counts as held before: a lower bound


def digest(rows: Iterable[Any]) -> tuple[str, int]:
    """A hash over the ids of every text, and how many ids there are."""
    hashed = hashlib.sha256()
    count = 0
    for row in rows:
        ids = np.ascontiguousarray(row, dtype=np.uint32)
        count += len(ids)
        hashed.update(len(ids).to_bytes(8, "little"))
        hashed.update(ids.data)
    return hashed.hexdigest(), count


def seconds_of(work: Callable[[], object]) -> float:
    """How long `work` takes; its result is dropped after the clock."""
    started = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - started
    del result
    return seconds


# training


def train(job: Job) -> dict[str, Any]:
    """Train on the text, held as a list of str: seconds, CPU seconds, memory above that list, a hash of the tokens."""
    texts = read_texts(Path(job.folder) / f"{job.texts}.bin", job.max_bytes)
    text_bytes = size_bytes(texts)
    work = trainer_of(job)
    forget_peak()
    before = resident_bytes("VmRSS")
    started, cpu_started = time.perf_counter(), time.process_time()
    tokens = work(texts)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    memory_bytes = resident_bytes("VmHWM") - before
    merged = list(tokens())
    hashed = hashlib.sha256(b"".join(len(token).to_bytes(8, "little") + token for token in merged))
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "memory_bytes": memory_bytes,
        "digest": hashed.hexdigest(),
        "tokens": len(merged) + 256,
        "bytes": text_bytes,
    }


def vocabulary(job: Job) -> dict[str, Any]:
    """Train the vocabulary that every encoder uses and write it as tiktoken and as Hugging Face write theirs."""
    import rustbpe

    folder = Path(job.folder)
    tokenizer = rustbpe.Tokenizer()
    texts = read_texts(folder / f"{job.texts}.bin", job.max_bytes)
    tokenizer.train_from_iterator(iter(texts), job.vocab_size, pattern=job.pattern)
    ranks = tokenizer.get_mergeable_ranks()
    (folder / "vocabulary.tiktoken").write_bytes(b"".join(b64encode(t) + b" %d\n" % r for t, r in ranks))
    spelling = byte_spellings()
    spelled = {token: "".join(spelling[byte] for byte in token) for token, _ in ranks}
    split = {"type": "Split", "pattern": {"Regex": job.pattern}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model = {
        "type": "BPE",
        "vocab": {spelled[token]: rank for token, rank in ranks},
        "merges": [[spelled[left], spelled[right]] for left, right in tokenizer.get_merges()],
    }
    file = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "post_processor": None,
        "decoder": level,
        "model": model,
    }
    (folder / "tokenizer.json").write_text(json.dumps(file), encoding="utf-8")
    return {"tokens": len(ranks)}


# encoding and decoding


def warming_and_unseen(job: Job) -> tuple[list[str], list[str]]:
    """Two lists of texts without a document in common, and none of them in the training text."""
    folder = Path(job.folder)
    return read_texts(folder / "warming.bin"), read_texts(folder / "unseen.bin")


def rates(cold: tuple[int, float], unseen: tuple[int, float], hashed: tuple[str, int]) -> dict[str, Any]:
    """The result of an encoder or decoder: bytes and seconds of both passes."""
    return {
        "cold_seconds": cold[1],
        "cold_bytes": cold[0],
        "seconds": unseen[1],
        "bytes": unseen[0],
        "digest": hashed[0],
        "tokens": hashed[1],
    }


def encode(job: Job) -> dict[str, Any]:
    """One text at a time, ids dropped as a loader would: the first pass of the process is the cold one.

    The second goes over other, unseen texts; a third, outside of the clock, hashes their ids.
    """
    warming, unseen = warming_and_unseen(job)
    encoder = encoder_of(job)
    call = encoder.arrays if job.call == "arrays" else encoder.lists
    assert call is not None, job

    def each(texts: list[str]) -> None:
        for text in texts:
            call(text)

    cold_seconds = seconds_of(lambda: each(warming))
    seconds = seconds_of(lambda: each(unseen))
    hashed = digest(call(text) for text in unseen)
    return rates((size_bytes(warming), cold_seconds), (size_bytes(unseen), seconds), hashed)


def batch(job: Job) -> dict[str, Any]:
    """All texts in one call: the warming texts cold, then the unseen ones."""
    warming, unseen = warming_and_unseen(job)
    encoder = encoder_of(job)
    call = encoder.batch
    assert call is not None, job
    cold_seconds = seconds_of(lambda: call(warming))
    started = time.perf_counter()
    result = call(unseen)
    seconds = time.perf_counter() - started
    hashed = digest(encoder.rows(result))
    return rates((size_bytes(warming), cold_seconds), (size_bytes(unseen), seconds), hashed)


def decode(job: Job) -> dict[str, Any]:
    """Whole documents, one at a time, from ids that are ready in the form the contender reads best."""
    warming, unseen = warming_and_unseen(job)
    encoder = encoder_of(job)
    call, ids_of = encoder.decode, encoder.ids
    assert call is not None, job
    assert ids_of is not None, job

    def each(documents: list[Any]) -> None:
        for ids in documents:
            call(ids)

    first, second = [ids_of(text) for text in warming], [ids_of(text) for text in unseen]
    cold_seconds = seconds_of(lambda: each(first))
    seconds = seconds_of(lambda: each(second))
    hashed = hashlib.sha256()
    for ids in second:
        decoded = call(ids)
        hashed.update(decoded.encode() if isinstance(decoded, str) else decoded)
    count = sum(len(ids) for ids in second)
    return rates((size_bytes(warming), cold_seconds), (size_bytes(unseen), seconds), (hashed.hexdigest(), count))


def measure(job: Job) -> dict[str, Any]:
    """Do one job."""
    measures = {"vocabulary": vocabulary, "train": train, "encode": encode, "batch": batch, "decode": decode}
    return measures[job.measure](job)


if __name__ == "__main__":
    print(json.dumps(measure(Job(**json.loads(sys.argv[1])))))
