"""The loaders give every token once, each where it belongs, to one rank; and go on exactly where they were stopped."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice, pairwise
from pathlib import Path

import numpy
import pyarrow
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CPU, rank, tiny_model, tiny_tokenizer

from nanochat import dataset
from nanochat.chat_format import render_conversation
from nanochat.command import UserError
from nanochat.conversation import Conversation, Message
from nanochat.dataloader import ConversationLoader, DocumentLoader, State, mean_tokens, one_epoch
from nanochat.tokenizer import SPECIAL_TOKENS

BOS, FIRST = 0, len(SPECIAL_TOKENS)
Groups = list[list[str]]


class Numbering:
    """A tokenizer whose ids tell where they come from: the text "3:5" has the ids 3000 to 3004 (and nine more)."""

    def encode(self, text: str | list[str]) -> list:  # type: ignore[type-arg]
        if not isinstance(text, str):
            return [self.encode(one) for one in text]
        number, _, length = text.partition(":")
        return [FIRST + 1000 * int(number) + i for i in range(int(length))]

    def encode_arrays(self, texts: pyarrow.Array) -> tuple[numpy.ndarray, numpy.ndarray]:
        rows = self.encode(texts.to_pylist())
        return numpy.array([i for row in rows for i in row], numpy.uint32), numpy.cumsum([0, *map(len, rows)])

    def encode_special(self, name: str) -> int:
        return SPECIAL_TOKENS.index(name)

    def get_bos_token_id(self) -> int:
        return BOS


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


def pairs(batches: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[tuple[list[int], list[int]]]:
    """Rows of inputs and targets."""
    for inputs, targets in batches:
        yield from zip(inputs.tolist(), targets.tolist(), strict=True)


def check_row(inputs: list[int], targets: list[int]) -> None:
    """Shifted by one, led by bos, and each id behind its own document's id before it."""
    counted = [target for target in targets if target != -1]
    assert targets[: len(counted)] == counted, "padding only at the end"
    assert inputs[1 : len(counted)] == counted[: len(counted) - 1]
    assert inputs[0] == BOS
    for before, after in zip(inputs, counted, strict=False):
        assert BOS in (before, after) or after == before + 1


def epochs_begun(states: Sequence[State], count: int) -> int:
    """By any rank of any run."""
    return 1 + max(n for state in states for n in [state["position"], *state["done"]]) // count  # type: ignore[misc, operator]


lengths_of_documents = st.lists(st.one_of(st.integers(0, 12), st.integers(0, 60)), min_size=1, max_size=30)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 16), st.integers(1, 9))  # rows, tokens, buffer


# --- documents --------------------------------------------------------------------------------------------------------


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


# --- conversations ----------------------------------------------------------------------------------------------------


def chats(lengths: Sequence[tuple[int, int]]) -> list[Conversation]:
    """Conversation n: a question of ids 2n thousand and more, an answer of ids 2n+1 thousand and more."""
    return [
        Conversation([Message("user", f"{2 * n}:{asked}"), Message("assistant", f"{2 * n + 1}:{said}")])
        for n, (asked, said) in enumerate(lengths)
    ]


def conversations(
    given_chats: Sequence[Conversation],
    rows: int = 2,
    tokens: int = 30,
    number: int = 0,
    ranks: int = 1,
    train_on_all: bool = False,
    buffer: int = 4,
    seed: int = 1,
) -> ConversationLoader:
    return ConversationLoader(
        given_chats, Numbering(), rows, tokens, rank(number, ranks), train_on_all, buffer, seed  # type: ignore[arg-type]
    )  # fmt: skip


def rendered(chat: Conversation, tokens: int) -> tuple[list[int], list[int]]:
    return render_conversation(chat, Numbering(), max_tokens=tokens + 1)


def split_row(inputs: list[int], targets: list[int]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The conversations of a row: their ids, and which of them were targets."""
    ids = inputs + [target for target in targets[-1:] if target != -1]
    mask = [0] + [int(target != -1) for target in targets]
    starts = [i for i, token in enumerate(ids) if token == BOS] + [len(ids)]
    for start, end in pairwise(starts):
        if end - start > 1:  # padding is a <|bos|> alone
            yield tuple(ids[start:end]), tuple(mask[start:end])


lengths_of_chats = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=2, max_size=30)


@given(lengths_of_chats, st.integers(1, 3), st.integers(8, 40), st.integers(1, 9))
@settings(deadline=None)
def test_an_epoch_has_every_conversation_once_cropped_to_a_row_and_trained_on_where_the_mask_says(
    lengths: list[tuple[int, int]], rows: int, tokens: int, buffer: int
) -> None:
    given_chats = chats(lengths)
    packed = pairs(one_epoch(conversations(given_chats, rows, tokens, buffer=buffer), 10**6))
    found = Counter(piece for inputs, targets in packed for piece in split_row(inputs, targets))
    expected: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()
    for chat in given_chats:
        ids, mask = rendered(chat, tokens)
        if len(ids) == tokens + 1 and not mask[-1]:  # the last id of a row is a target or nothing
            ids, mask = ids[:-1], mask[:-1]
        expected[tuple(ids), tuple(mask)] += 1
    assert found == expected


def test_targets_are_the_next_ids_and_minus_one_on_user_and_padding() -> None:
    [(inputs, targets)] = pairs(one_epoch(conversations(chats([(2, 3)]), rows=1, tokens=14), 1))
    user, user_end, assistant, end = 1, 2, 3, 4
    q, a = FIRST, FIRST + 1000
    assert inputs == [BOS, user, q, q + 1, user_end, assistant, a, a + 1, a + 2, end, BOS, BOS, BOS, BOS]
    assert targets == [-1, -1, -1, -1, -1, a, a + 1, a + 2, end, -1, -1, -1, -1, -1]
    [(inputs, targets)] = pairs(one_epoch(conversations(chats([(2, 3)]), 1, 14, train_on_all=True), 1))
    assert targets == [*inputs[1:10], -1, -1, -1, -1, -1]


def test_conversations_longer_than_a_row_are_cropped_and_never_stall() -> None:
    long = chats([(300, 200), (5, 495), (490, 10)] * 5)
    loader = conversations(long, rows=4, tokens=64, buffer=64)
    batches = list(islice(loader, 20))
    starts = {tuple(rendered(chat, 64)[0][:64]) for chat in long}
    assert {tuple(inputs) for inputs, _ in pairs(iter(batches))} == starts
    assert any((targets == -1).all() for _, targets in batches for targets in targets)  # a question that fills its row


@given(lengths_of_chats, st.integers(0, 12), st.integers(1, 9))
@settings(deadline=None)
def test_a_stored_position_gives_the_conversations_that_would_have_come(
    lengths: list[tuple[int, int]], before: int, buffer: int
) -> None:
    given_chats = chats(lengths)
    for number in range(2):
        loader = conversations(given_chats, number=number, ranks=2, buffer=buffer)
        list(islice(loader, before))
        state = json.loads(json.dumps(loader.state_dict()))
        expected = list(pairs(islice(loader, 6)))
        resumed = conversations(given_chats, number=number, ranks=2, buffer=buffer)
        resumed.load_state_dict(state)
        assert list(pairs(islice(resumed, 6))) == expected


@given(lengths_of_chats, st.integers(1, 9))
@settings(deadline=None)
def test_two_ranks_share_the_conversations(lengths: list[tuple[int, int]], buffer: int) -> None:
    given_chats = chats([(asked + 1, said) for asked, said in lengths])
    seen: list[int] = []
    counts = []
    for number in range(2):
        loader = conversations(given_chats, tokens=80, number=number, ranks=2, buffer=buffer)
        loader.epochs = 2
        rows = pairs(loader)
        mine = [token for inputs, _ in rows for token in inputs if token >= FIRST and (token - FIRST) % 2000 == 0]
        counts.append(len(mine))
        seen += [(token - FIRST) // 2000 for token in mine]
    assert sorted(seen) == sorted(2 * list(range(len(given_chats))))
    assert 0 <= counts[0] - counts[1] <= 2


def test_every_epoch_has_its_own_order() -> None:
    loader = conversations(chats([(1, 1)] * 20), rows=1, tokens=6, buffer=1)
    order = [(inputs[2] - FIRST) // 2000 for inputs, _ in pairs(islice(loader, 40))]
    assert sorted(order[:20]) == sorted(order[20:]) == list(range(20))
    assert order[:20] != order[20:]


def test_more_ranks_than_conversations_share_them_over_the_epochs() -> None:
    seen = Counter[int]()
    for number in range(3):
        loader = conversations(chats([(1, 1), (1, 1)]), 1, 6, number, 3, buffer=1)
        seen.update(inputs[2] for inputs, _ in pairs(islice(loader, 20)))
    assert seen == {FIRST: 30, FIRST + 2000: 30}
    with pytest.raises(UserError, match="no conversations to train on"):
        conversations([])


@given(lengths_of_chats, st.lists(st.tuples(st.integers(1, 4), st.integers(0, 5)), min_size=1, max_size=4))
@settings(deadline=None, max_examples=40)
def test_no_conversation_is_lost_or_repeated_when_the_number_of_ranks_changes(
    lengths: list[tuple[int, int]], runs: list[tuple[int, int]]
) -> None:
    given_chats = chats([(asked + 1, said) for asked, said in lengths])
    seen = Counter[int]()

    def give(loader: ConversationLoader, batches: int | None) -> None:
        rows = pairs(islice(loader, batches))
        seen.update((t - FIRST) // 2000 for ids, _ in rows for t in ids if t >= FIRST and (t - FIRST) % 2000 == 0)

    states: list[State] = []
    for ranks, batches in runs:
        after = []
        for number in range(ranks):
            loader = conversations(given_chats, tokens=80, number=number, ranks=ranks)
            if states:
                loader.load_state_dicts(states)
            give(loader, batches + number)
            after.append(loader.state_dict())
        states = after
    epochs = epochs_begun(states, len(lengths))
    for number in range(3):
        loader = conversations(given_chats, tokens=80, number=number, ranks=3)
        loader.load_state_dicts(states)
        loader.epochs = epochs
        give(loader, None)
    assert seen == dict.fromkeys(range(len(given_chats)), epochs)


def test_cropped_and_padded_tokens_of_conversations_are_counted() -> None:
    loader = conversations(chats([(5, 5), (100, 5)]), rows=1, tokens=40)
    list(one_epoch(loader, 10))
    assert loader.counts.rows == 2
    assert loader.counts.cropped == 110 - 41
    assert loader.counts.tokens == 14 + 40
    assert loader.counts.padding == 26


def test_rows_of_64_with_conversations_of_500_tokens_give_a_finite_loss_and_an_end() -> None:
    """A row that is one long question has no target; a batch of those has the loss 0 and no gradient that is NaN."""
    word = "word " * 150
    talk = Conversation([Message("user", word), Message("assistant", word)])
    loader = ConversationLoader([talk] * 9, tiny_tokenizer(), 2, 64, CPU)
    model = tiny_model()
    batches = list(one_epoch(loader, 100))
    assert len(batches) == 5
    for inputs, targets in batches:
        loss = model(inputs, targets, torch.ones(targets.shape))
        loss.backward()
        assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_the_longest_conversation_that_fits_fills_a_row() -> None:
    made = chats([(1, 1), (10, 10), (3, 4)])  # 7, 25 and 12 ids
    [(inputs, targets)] = pairs(one_epoch(conversations(made, rows=1, tokens=36), 1))
    assert [*inputs, 4] == rendered(made[1], 36)[0] + rendered(made[2], 36)[0]
    assert targets[-1] == 4


def test_the_mean_length_counts_cropped_conversations() -> None:
    made = chats([(5, 5), (100, 5)])
    assert mean_tokens(made, Numbering(), 40) == (15 + 41) / 2  # type: ignore[arg-type]
    assert mean_tokens(made * 500, Numbering(), 40, samples=10) == 15  # type: ignore[arg-type]
