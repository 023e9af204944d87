"""Where things live. Names paths; creates nothing.

Everything that nanochat writes lies under one base directory: `NANOCHAT_BASE_DIR`, by default `~/.cache/nanochat`.

Lesson: lessons/00_setting_up
"""

import os
from pathlib import Path


def base_dir() -> Path:
    """The directory under which everything is written."""
    given = os.environ.get("NANOCHAT_BASE_DIR")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "nanochat"


def data_dir(source: str | None = None) -> Path:
    """The folder of one source of pretraining text (`data/<source>/shard_*.parquet`), or of all of them."""
    return base_dir() / "data" / source if source else base_dir() / "data"


def tokenizer_dir() -> Path:
    """`tokenizer.json` and `meta.json`."""
    return base_dir() / "tokenizer"


def checkpoints_dir(stage: str, tag: str | None = None) -> Path:
    """`checkpoints/<stage>/<tag>/`, which holds `step_000000/` folders and `metrics.jsonl`."""
    folder = base_dir() / "checkpoints" / stage
    return folder / tag if tag else folder


def report_dir() -> Path:
    """Sections of the report as JSON, the plots, and `report.md`."""
    return base_dir() / "report"


def hub_dir() -> Path:
    """Local copies of hub data sets, `<owner>/<data set>/<file>`; `NANOCHAT_HUB_DIR` points elsewhere."""
    given = os.environ.get("NANOCHAT_HUB_DIR")
    return Path(given).expanduser() if given else base_dir() / "hub"


def core_dir() -> Path:
    """The CORE bundle: `core.yaml` and `eval_data/`; `NANOCHAT_CORE_DIR` points elsewhere."""
    given = os.environ.get("NANOCHAT_CORE_DIR")
    return Path(given).expanduser() if given else base_dir() / "core"
