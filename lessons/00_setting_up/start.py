"""Lesson 0: is everything here? Three small functions, to see a check turn from red to green.

The check calls them by name: versions, to_numbers, to_text. A line `raise NotImplementedError(...)` marks what is yours
to write; delete it.
"""


def versions(names: list[str]) -> dict[str, str | None]:
    """The installed version of each package, None where it is not installed; the name "python" is Python itself.

    `versions(["python", "numpy", "nonsense"])` could be `{"python": "3.12.3", "numpy": "2.1.0", "nonsense": None}`.
    """
    raise NotImplementedError("lesson 0: versions is yours to write")


def to_numbers(text: str) -> list[int]:
    """The bytes of a text in UTF-8, each a number from 0 to 255: "né" is [110, 195, 169]."""
    raise NotImplementedError("lesson 0: to_numbers is yours to write")


def to_text(numbers: list[int]) -> str:
    """The text of some bytes. Raises ValueError naming the number, in your own words, for one below 0 or above 255."""
    raise NotImplementedError("lesson 0: to_text is yours to write")
