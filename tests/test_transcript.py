"""Ids to text while they come: whole characters, parts, and texts that stop the answer, however ids cut them."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat import chat_format
from nanochat.transcript import Marks, Piece, Transcript

NAMES = [
    chat_format.BOS, chat_format.USER_START, chat_format.USER_END, chat_format.ASSISTANT_START,
    chat_format.ASSISTANT_END, chat_format.PYTHON_START, chat_format.PYTHON_END, chat_format.OUTPUT_START,
    chat_format.OUTPUT_END,
]  # fmt: skip


class Bytes:
    """An id for each byte, the marks behind them."""

    def encode_special(self, name: str) -> int:
        return 256 + NAMES.index(name)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return bytes(ids)


BYTES = Bytes()
MARKS = Marks(BYTES)
CALL, CALL_END, OUTPUT, OUTPUT_END = MARKS.python_start, MARKS.python_end, MARKS.output_start, MARKS.output_end


def transcript(*stop: str) -> Transcript:
    return Transcript(BYTES, MARKS, stop)


def taken(ids: Sequence[int], *stop: str) -> tuple[list[tuple[str, str]], bool]:
    """The parts that were said, neighbours of one kind together, and whether a stop text came."""
    made = transcript(*stop)
    pieces: list[Piece] = []
    for token in ids:
        made.take(token)
        pieces += made.drain()
        if made.stopped:
            break
    made.end()
    pieces += made.drain()
    parts: list[tuple[str, str]] = []
    for piece in pieces:
        before = parts.pop()[1] if parts and parts[-1][0] == piece.type else ""
        parts.append((piece.type, before + piece.text))
    return parts, made.stopped


def test_the_marks_are_what_an_assistant_may_not_say() -> None:
    assert sorted(MARKS.unsayable) == [257, 258, 259, 263, 264]
    assert {256, 260} == MARKS.ends


def test_a_character_comes_when_its_last_byte_has_come() -> None:
    made, came = transcript(), []
    for token in "né🦜".encode():
        made.take(token)
        came.append("".join(piece.text for piece in made.drain()))
    assert came == ["n", "", "é", "", "", "", "🦜"]


def test_parts_are_told_apart_and_half_a_character_does_not_reach_into_the_next() -> None:
    half = "🦜".encode()[:2]
    ids = [*b"a", *half, CALL, *b"1+1", CALL_END, OUTPUT, *b"2", OUTPUT_END, *b"b"]
    assert taken(ids) == ([("text", "a\ufffd"), ("python", "1+1"), ("python_output", "2"), ("text", "b")], False)


@pytest.mark.parametrize(
    ("text", "stop", "said"),
    [
        ("one. two", ".", "one"),
        ("one two", "two", "one "),
        ("stop", "stop", ""),
        ("aab", "ab", "a"),
        ("aaab", "aab", "a"),
        ("abab!", "abac", None),
        ("x\n\ny", "\n\n", "x"),
        ("x\ny\n", "\n\n", None),
        ("naïve 🦜 parrot", "🦜", "naïve "),
    ],
)
def test_what_is_said_ends_before_a_stop_text(text: str, stop: str, said: str | None) -> None:
    expected = text if said is None else said
    assert taken(list(text.encode()), stop) == ([("text", expected)] if expected else [], said is not None)


def test_what_may_become_a_stop_text_waits() -> None:
    made, came = transcript("###", "\nUser:"), []
    for token in b"a#b\nUse!":
        made.take(token)
        came.append("".join(piece.text for piece in made.drain()))
    assert came == ["a", "", "#b", "", "", "", "", "\nUse!"]


def test_the_first_of_several_stop_texts_counts() -> None:
    assert taken(list(b"say b then a"), "a", "b")[0] == [("text", "s")]
    assert taken(list(b"xyz"), "yz", "xyz") == ([], True)


def test_a_stop_text_is_looked_for_in_what_is_said_alone() -> None:
    ids = [*b"a;", CALL, *b"1+1", CALL_END, OUTPUT, *b"1+1", OUTPUT_END, *b"-1+1"]
    assert taken(ids, "1+1")[0] == [("text", "a;"), ("python", "1+1"), ("python_output", "1+1"), ("text", "-")]
    assert taken([*b"ab", CALL, CALL_END, *b"c"], "abc") == ([("text", "abc")], False)


@given(
    st.text(st.sampled_from("abñ🦜"), max_size=20), st.lists(st.text(st.sampled_from("abñ🦜"), min_size=1, max_size=4))
)
def test_it_says_what_stands_before_the_stop_text_that_is_complete_first(text: str, stop: list[str]) -> None:
    ends = [(text.find(one) + len(one), text.find(one)) for one in stop if one in text]
    parts, stopped = taken(list(text.encode()), *stop)
    assert stopped == bool(ends)
    assert "".join(part for _, part in parts) == (
        text[: min(start for end, start in ends if end == min(ends)[0])] if ends else text
    )
