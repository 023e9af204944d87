"""The loader of documents gives every token once, where it belongs, to one rank; and goes on where it was stopped."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numbering import BOS, FIRST, Numbering, epochs_begun, pairs
from tiny import CPU, rank, tiny_tokenizer

from nanochat import dataset
from nanochat.command import UserError
from nanochat.dataloader import DocumentLoader, State, one_epoch

Groups = list[list[str]]


def numbered(lengths: Sequence[int], group_size: int = 3) -> Groups:
    """Documents of these lengths, in row groups."""
    texts = [f"{number}:{length}" for number, length in enumerate(lengths)]
    return [texts[start : start + group_size] for start in range(0, len(texts), group_size)]


def tokens_of(groups: Groups) -> Counter[int]:
    return Counter(token for group in groups for text in group for token in Numbering().encode(text))


@contextmanager
def shards(groups: Groups) -> Iterator[None]:
    """One training shard in memory instead of parquet files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "split_files", lambda split, source: [Path("shard")])
        patch.setattr(dataset, "row_group_counts", lambda path: [len(group) for group in groups])
        patch.setattr(dataset, "read_row_group_array", lambda path, index: pyarrow.array(groups[index]))
        yield


def documents(
    rows: int = 2, tokens: int = 8, number: int = 0, ranks: int = 1, buffer: int = 4, seed: int = 1, ahead: int = 1
) -> DocumentLoader:
    return DocumentLoader(
        Numbering(), rows, tokens, rank(number, ranks), buffer_size=buffer, seed=seed, ahead=ahead  # type: ignore[arg-type]
    )  # fmt: skip


def check_row(inputs: list[int], targets: list[int]) -> None:
    """Shifted by one, led by bos, and each id behind its own document's id before it."""
    counted = [target for target in targets if target != -1]
    assert targets[: len(counted)] == counted, "padding only at the end"
    assert inputs[1 : len(counted)] == counted[: len(counted) - 1]
    assert inputs[0] == BOS
    for before, after in zip(inputs, counted, strict=False):
        assert BOS in (before, after) or after == before + 1


lengths_of_documents = st.lists(st.one_of(st.integers(0, 12), st.integers(0, 60)), min_size=1, max_size=30)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 16), st.integers(1, 9))  # rows, tokens, buffer


@given(lengths_of_documents, shapes)
@settings(deadline=None)
def test_an_epoch_has_every_token_of_every_document_once_as_a_target(
    lengths: list[int], shape: tuple[int, int, int]
) -> None:
    groups = numbered(lengths)
    with shards(groups):
        rows = list(pairs(one_epoch(documents(shape[0], shape[1], buffer=shape[2]), 10**6)))
    for inputs, targets in rows:
        check_row(inputs, targets)
    found = Counter(target for _, targets in rows for target in targets if target not in (BOS, -1))
    assert found == tokens_of(groups)


@given(lengths_of_documents, shapes, st.integers(1, 12))
@settings(deadline=None)
def test_without_end_no_row_is_padded_and_no_token_comes_more_often_than_another(
    lengths: list[int], shape: tuple[int, int, int], batches: int
) -> None:
    """What has come and what waits for a row is so many whole epochs, and of the one begun whole documents."""
    groups = numbered(lengths)
    with shards(groups):
        loader = documents(shape[0], shape[1], buffer=shape[2])
        rows = list(pairs(islice(loader, batches)))
    for inputs, targets in rows:
        assert -1 not in targets
        check_row(inputs, targets)
    seen = Counter(target for _, targets in rows for target in targets if target != BOS)
    seen.update(loader.state_dict()["waiting_ids"])  # type: ignore[arg-type]
    for group in groups:
        for text in group:
            counts = {seen[token] for token in Numbering().encode(text)}
            assert counts <= {loader.epoch, loader.epoch + 1}
            assert len(counts) <= 1
    assert set(seen) <= set(tokens_of(groups))


@given(lengths_of_documents, shapes, st.integers(0, 10), st.integers(1, 2))
@settings(deadline=None)
def test_a_stored_position_gives_the_batches_that_would_have_come(
    lengths: list[int], shape: tuple[int, int, int], before: int, ranks: int
) -> None:
    if len(lengths) < ranks:
        return
    with shards(numbered(lengths)):
        for number in range(ranks):
            loader = documents(shape[0], shape[1], number, ranks, shape[2])
            list(islice(loader, before))
            state = json.loads(json.dumps(loader.state_dict()))
            expected = list(pairs(islice(loader, 6)))
            resumed = documents(shape[0], shape[1], number, ranks, shape[2])
            resumed.load_state_dict(state)
            assert list(pairs(islice(resumed, 6))) == expected


@given(st.lists(st.integers(0, 40), min_size=3, max_size=30), shapes)
@settings(deadline=None)
def test_ranks_share_an_epoch_without_overlap(lengths: list[int], shape: tuple[int, int, int]) -> None:
    groups = numbered(lengths, group_size=4)
    found: Counter[int] = Counter()
    with shards(groups):
        for number in range(3):
            rows = pairs(one_epoch(documents(shape[0], shape[1], number, 3, shape[2]), 10**6))
            mine = {target for _, targets in rows for target in targets} - {BOS, -1}
            assert {(token - FIRST) // 1000 % 3 for token in mine} <= {number}
            found.update(mine)
    assert found == tokens_of(groups)


@pytest.mark.parametrize("length", [0, 1, 5, 100])
def test_a_single_document_is_read_again_and_again(length: int) -> None:
    """The empty one is a <|bos|> and nothing else."""
    with shards(numbered([length])):
        rows = list(pairs(islice(documents(), 50)))
        measured = list(pairs(one_epoch(documents(), 50)))
    assert len(rows) == 100
    assert {target for _, targets in rows for target in targets} - {BOS} == set(tokens_of(numbered([length])))
    assert sum(target > BOS for _, targets in measured for target in targets) == length


def test_more_ranks_than_documents_share_them_over_the_epochs() -> None:
    """A rank without a document used to be an error, and upstream of it a wait without end."""
    with shards(numbered([9, 9], group_size=2)):
        seen = Counter[int]()
        for number in range(3):
            loader = documents(1, 9, number, 3, buffer=1)
            seen.update(targets[0] for _, targets in pairs(islice(loader, 20)))
            assert list(one_epoch(documents(1, 9, number, 3), 5)) == [] or number < 2
    assert seen == {FIRST: 30, FIRST + 1000: 30}


def test_one_row_group_is_shared_by_two_ranks_and_shuffled_in_each_epoch() -> None:
    orders = []
    with shards(numbered([7] * 40, group_size=40)):
        for number in range(2):
            loader = documents(1, 7, number, 2, buffer=1)
            orders.append([(targets[0] - FIRST) // 1000 for _, targets in pairs(islice(loader, 60))])
    for epoch in range(3):
        both = [order[20 * epoch : 20 * epoch + 20] for order in orders]
        assert sorted(both[0] + both[1]) == list(range(40))
        assert (both == [list(range(0, 40, 2)), list(range(1, 40, 2))]) == (epoch == 0)
    assert orders[0][20:40] != orders[0][40:]


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=40),
    shapes,
    st.lists(st.tuples(st.integers(1, 4), st.lists(st.integers(0, 6), min_size=4, max_size=4)), min_size=1, max_size=4),
)
@settings(deadline=None, max_examples=40)
def test_however_often_the_number_of_ranks_changes_no_document_is_lost_or_repeated(
    lengths: list[int], shape: tuple[int, int, int], runs: list[tuple[int, list[int]]]
) -> None:
    """What all ranks of all runs gave, with what the last epochs still hold, is so many epochs."""
    groups = numbered(lengths, group_size=5)
    seen = Counter[int]()

    def give(loader: DocumentLoader, batches: int | None) -> None:
        seen.update(t for _, targets in pairs(islice(loader, batches)) for t in targets if t not in (BOS, -1))

    with shards(groups):
        states: list[State] = []
        for ranks, batches in runs:
            after = []
            for number in range(ranks):
                loader = documents(shape[0], shape[1], number, ranks, shape[2])
                if states:
                    loader.load_state_dicts(json.loads(json.dumps(states)))
                give(loader, batches[number])
                after.append(loader.state_dict())
            states = after
        epochs = epochs_begun(states, len(lengths))
        for number in range(3):
            loader = documents(shape[0], shape[1], number, 3, shape[2])
            loader.load_state_dicts(states)
            loader.epochs = epochs
            give(loader, None)
    assert seen == Counter({token: epochs * count for token, count in tokens_of(groups).items()})


def test_a_checkpoint_of_other_text_is_refused_and_more_text_in_the_first_epoch_is_not() -> None:
    with shards(numbered([9] * 10)):
        loader = documents()
        next(loader)
        first = loader.state_dict()
        list(islice(loader, 20))
        later = loader.state_dict()
    with shards(numbered([9] * 12)):
        documents().load_state_dict(first)
        with pytest.raises(UserError, match="made with 10 documents and now there are 12"):
            documents().load_state_dict(later)
    with shards(numbered([9] * 8)), pytest.raises(UserError, match="made with 10 documents and now there are 8"):
        documents().load_state_dict(first)


def test_the_thread_changes_no_batch() -> None:
    with shards(numbered([n % 23 for n in range(400)], group_size=150)):
        rows = [list(pairs(islice(documents(ahead=ahead), 200))) for ahead in (0, 1, 7)]
    assert rows[0] == rows[1] == rows[2]


def test_what_was_packed_is_counted_and_the_counts_go_on() -> None:
    with shards(numbered([20, 5, 5, 3])):
        loader = documents(rows=2, tokens=8)
        list(one_epoch(loader, 2))
        resumed = documents(rows=2, tokens=8)
        resumed.load_state_dict(loader.state_dict())
        resumed.epochs = 1
        list(resumed)
    counts = resumed.counts
    assert counts.items == 4
    assert counts.rows == 6
    # 33 tokens of text; every row has a <|bos|> that is no target, and each further piece of a row has one that is
    assert counts.tokens + counts.padding == 6 * 8
    assert counts.tokens >= 33
    assert counts.cropped == 0
    assert "6 rows from 4 items" in str(counts)


def test_rows_of_real_prose_waste_under_three_percent(base_dir: Path, shared_data: Path) -> None:
    (base_dir / "data").mkdir(parents=True)
    (base_dir / "data" / "prose").symlink_to(shared_data / "prose")
    loader = DocumentLoader(tiny_tokenizer(), 16, 512, CPU, "train", "prose")
    for inputs, _ in islice(loader, 50):
        assert (inputs[:, 0] == tiny_tokenizer().get_bos_token_id()).all()
    loader.close()
    assert loader.counts.rows == 800
    assert loader.counts.wasted_share < 0.03


def test_the_longest_that_fits_is_taken_of_equals_the_oldest_and_the_rest_of_a_cut_one_waits() -> None:
    """Of equals the newest used to be taken: of many long documents the first ones then never came."""
    with shards(numbered([3, 7, 3, 5, 7], group_size=5)):
        loader = documents(rows=1, tokens=11, buffer=5)
        loader.epochs = 1
        rows = [inputs + targets[-1:] for inputs, targets in pairs(loader)]
    one, two, three, four, five = (Numbering().encode(f"{n}:{length}") for n, length in enumerate((3, 7, 3, 5, 7)))
    assert rows == [
        [BOS, *two, BOS, *one],  # 7 and 3 fill 12
        [BOS, *five, BOS, *three],
        [BOS, *four, BOS, BOS, BOS, BOS, BOS, -1],
    ]


def test_the_first_epoch_is_in_order_and_later_ones_are_shuffled_by_the_seed() -> None:
    groups = numbered([7] * 12, group_size=4)

    def order(seed: int) -> list[int]:
        with shards(groups):
            loader = documents(rows=1, tokens=7, buffer=1, seed=seed)
            return [(targets[0] - FIRST) // 1000 for _, targets in pairs(islice(loader, 36))]

    first, second, third = (order(1)[start : start + 12] for start in (0, 12, 24))
    assert first == list(range(12))
    assert sorted(second) == sorted(third) == first
    assert len({tuple(first), tuple(second), tuple(third)}) == 3
    assert order(1) == order(1) != order(2)


def test_real_shards_come_back_as_their_text(base_dir: Path) -> None:
    texts = [f"Document number {number} says {'so much ' * (number % 7)}" for number in range(60)]
    dataset.write_shards(texts, "prose", shard_chars=500, row_group_rows=5)
    tokenizer = tiny_tokenizer()
    found: list[str] = []
    splits: tuple[dataset.Split, ...] = ("train", "val")
    for split in splits:
        loader = DocumentLoader(tokenizer, 1, 9000, CPU, split, "prose")  # so long that no document is cut
        ids = [token for inputs, targets in pairs(one_epoch(loader, 999)) for token in [*inputs[:1], *targets]]
        whole = tokenizer.decode([token for token in ids if token != -1])
        found += [text for text in whole.split("<|bos|>") if text]
    assert sorted(found) == sorted(texts)


def test_measuring_takes_as_many_batches_as_asked_for_and_the_whole_of_a_small_split() -> None:
    """It used to stop when the last document had been read ahead into the buffer: after one batch of a small split."""
    with shards(numbered([7] * 100)):
        assert len(list(one_epoch(documents(2, 7, buffer=256), 3))) == 3
        assert len(list(one_epoch(documents(2, 7, buffer=256), 10**6))) == 50
