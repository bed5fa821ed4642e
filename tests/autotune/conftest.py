"""Every test of the tuner has a cache of its own, and nothing remembered."""

import pytest

from tropigrad.autotune import reload


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TROPIGRAD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("TROPIGRAD_AUTOTUNE", raising=False)
    reload()
    yield
    monkeypatch.undo()
    reload()
