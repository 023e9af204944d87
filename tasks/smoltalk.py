"""SmolTalk: general chats made for small models (arXiv:2502.02737), `HuggingFaceTB/smol-smoltalk`, 460,000 of them.

Your own chats in the same layout, `data/train-*.parquet` with a column `messages`, take its place.

Lesson: lessons/21_conversations
"""

from pathlib import Path

from nanochat import paths
from nanochat.command import UserError
from nanochat.conversation import Conversation
from tasks.common import Task
from tasks.hub import HubRows, hub_file

DATASET = "HuggingFaceTB/smol-smoltalk"
FILES = {
    "train": [f"data/train-{index:05d}-of-00004.parquet" for index in range(4)],
    "test": ["data/test-00000-of-00001.parquet"],
}


class SmolTalk(Task):
    """Chats to train on; as a test they are scored by the loss, not by `evaluate`."""

    def __init__(self, split: str = "train", start: int = 0, stop: int | None = None, step: int = 1):
        super().__init__(start, stop, step)
        if split not in FILES:
            raise UserError(f"SmolTalk has no split {split!r}, allowed are {', '.join(FILES)}")
        self.split = split
        self.rows = HubRows(_files(split), ["messages"])

    def num_examples(self) -> int:
        """Chats in the split."""
        return len(self.rows)

    def get_example(self, index: int) -> Conversation:
        """The chat at `index`."""
        return Conversation.from_dict(self.rows[index]["messages"], f"SmolTalk {self.split}, row {index + 1}")


def _files(split: str) -> list[Path]:
    """The hub's files; or those that lie there under other names, as somebody's own data do.

    A part of the hub's own files is an interrupted download, which goes on.
    """
    there = sorted((paths.hub_dir() / DATASET / "data").glob(f"{split}-*.parquet"))
    if there and not {f"data/{path.name}" for path in there} & set(FILES[split]):
        return there
    return [hub_file(DATASET, file) for file in FILES[split]]
