"""The oracle: Python itself, and what the packages say of themselves."""

import sys

import numpy
import pytest
import tiktoken

from lessons.learner import load

mine = load(0)


def test_versions_knows_python_and_the_packages() -> None:
    found = mine.versions(["python", "numpy", "tiktoken"])
    expected = {
        "python": ".".join(map(str, sys.version_info[:3])),
        "numpy": numpy.__version__,
        "tiktoken": tiktoken.__version__,
    }
    for name, version in expected.items():
        assert name in found, f"versions(['python', 'numpy', 'tiktoken']) says nothing of {name}: {found}"
        assert str(found[name]).startswith(version), f"{name} is {version} here, versions says {found[name]}"


def test_versions_says_none_of_what_is_not_there() -> None:
    found = mine.versions(["numpy", "there-is-no-such-package"])
    assert found["there-is-no-such-package"] is None, f"a package that is not installed is None, not {found}"
    assert list(found) == ["numpy", "there-is-no-such-package"], f"one entry a name, in their order; you have {found}"


@pytest.mark.parametrize("text", ["né", "hello", "", "한국어 🙂", "a\n\tb\x00"])
def test_a_text_becomes_bytes_and_a_text_again(text: str) -> None:
    found, expected = mine.to_numbers(text), list(text.encode())
    assert found == expected, f"to_numbers({text!r}) gave {found}, UTF-8 has {expected}"
    assert mine.to_text(expected) == text, f"to_text({expected}) gave {mine.to_text(expected)!r} instead of {text!r}"


@pytest.mark.parametrize("wrong", [256, -1, 70_000])
def test_to_text_refuses_what_is_no_byte(wrong: int) -> None:
    with pytest.raises(ValueError, match=str(wrong)) as told:
        mine.to_text([104, wrong])
    assert "range(0, 256)" not in str(told.value), f"of {wrong} this is Python's own complaint: write one of yours"
