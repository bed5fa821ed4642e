"""Every test of the tuner has a cache of its own, and nothing remembered."""

import pytest
import torch

from tropigrad.autotune import Space, Tuned, fingerprint, reload, store


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TROPIGRAD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("TROPIGRAD_AUTOTUNE", raising=False)
    reload()
    yield
    monkeypatch.undo()
    reload()


@pytest.fixture
def tuned(tmp_path) -> Tuned:
    """A kernel of three configs."""
    source = tmp_path / "kernel.py"
    source.write_text(tmp_path.name)
    space = Space({"BLOCK": (16, 32, 64)})
    return Tuned("op.test", space, default=lambda problem: {"BLOCK": 16}, source=source)


@pytest.fixture
def put():
    """`put(kernel, problem, config)`, into the user's cache."""

    def into_the_cache(kernel, problem, config):
        reload()
        store().put(fingerprint(torch.device("cpu")), kernel.key(problem), config)

    return into_the_cache
