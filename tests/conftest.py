"""Fixtures that several test files share."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def base_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh, empty base directory."""
    folder = tmp_path / "base"
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(folder))
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real texts, chats and benchmark sets that lie beside the repository on some machines."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the data sets in {folder.name}/ beside the repository")
    return folder


@pytest.fixture
def hub(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real data sets, and no way to anywhere else."""
    monkeypatch.setenv("NANOCHAT_HUB_DIR", str(shared_data / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return shared_data / "hub"


@pytest.fixture(scope="session")
def made_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base directory with text and a tokenizer."""
    from nanochat import dataset, paths, tinyworld
    from nanochat.tokenizer import RustBPETokenizer

    folder = tmp_path_factory.mktemp("made") / "base"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(folder))
        texts = list(tinyworld.documents(seed=1, megabytes=0.3))
        dataset.write_shards(texts, "tinyworld")
        RustBPETokenizer.train_from_iterator(texts[:100], vocab_size=400).save(paths.tokenizer_dir())
    return folder


@pytest.fixture
def base(made_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same; a test's checkpoints have tags of their own."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(made_base))
    return made_base
