"""Lesson 0: is everything here?"""

import platform
from importlib import metadata


def versions(names: list[str]) -> dict[str, str | None]:
    """The installed version of each package, None where it is not installed; the name "python" is Python itself."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = platform.python_version() if name == "python" else metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def to_numbers(text: str) -> list[int]:
    """The bytes of a text in UTF-8, each a number from 0 to 255."""
    return list(text.encode("utf-8"))


def to_text(numbers: list[int]) -> str:
    """The text of some bytes."""
    for number in numbers:
        if not 0 <= number <= 255:
            raise ValueError(f"{number} is no byte: bytes go from 0 to 255")
    return bytes(numbers).decode("utf-8")
