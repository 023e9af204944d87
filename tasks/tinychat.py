"""TinyChat: everything else that one says to an assistant of the small world.

Greetings, who it is, several questions in a row, words to put in quotes, stories with a question, and what it cannot
know. Mainly for training; the test compares the reply with the one canonical reply.

Lesson: lessons/21_conversations
"""

from tasks.tinyworld import WorldTask


class TinyChat(WorldTask):
    """Talk with one canonical reply each."""

    # the kinds take turns: how often one stands here is its share
    kinds = ("talk", "multi", "quote", "story", "quote", "talk", "unknown", "quote", "talk", "multi", "quote")
