"""The loader of conversations gives each once, cropped to a row and trained on where it should be, to one rank."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numbering import BOS, FIRST, Numbering, epochs_begun, pairs
from tiny import CPU, rank, tiny_model, tiny_tokenizer

from nanochat.chat_format import render_conversation
from nanochat.command import UserError
from nanochat.conversation import Conversation, Message
from nanochat.dataloader import ConversationLoader, State, mean_tokens, one_epoch


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
