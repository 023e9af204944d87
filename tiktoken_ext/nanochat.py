"""A plugin of tiktoken: `tiktoken.get_encoding("nanochat")` is the tokenizer of the base directory.

tiktoken keeps what it got for the life of the process. This folder has no `__init__.py`, since tiktoken's own plugins
share its name.

Lesson: lessons/06_tiktoken_object
"""

from collections.abc import Callable

from nanochat.tokenizer import TiktokenParameters, get_tokenizer


def nanochat() -> TiktokenParameters:
    """What tiktoken builds the encoding from. Raises UserError when no tokenizer was trained."""
    return get_tokenizer().tiktoken_parameters("nanochat")


ENCODING_CONSTRUCTORS: dict[str, Callable[[], TiktokenParameters]] = {"nanochat": nanochat}
