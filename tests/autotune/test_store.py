"""The store never crashes a call, and never answers another key's question."""

import errno
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from tropigrad.autotune import Fingerprint, Space, Store, Tuned, fingerprint, override, recorded
from tropigrad.autotune import store as user_store
from tropigrad.autotune import tuned as tuned_module
from tropigrad.autotune.tuned import bucket

store_module = sys.modules["tropigrad.autotune.store"]  # its name in the package is the function's

HERE = Fingerprint("a GPU", "9.0", 132, "2.13", "3.7")
KEY = {"kernel": "op.triton", "source": "abc", "problem": {"M": 64}}
CONFIG = {"BLOCK": 64}


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path)


def test_what_was_put_is_got(store):
    assert store.get(HERE, KEY) is None
    assert store.put(HERE, KEY, CONFIG)
    assert store.get(HERE, KEY) == CONFIG
    assert [path.suffix for path in store.path(HERE, KEY).parent.iterdir()] == [".json"]  # no temporary file stays


@pytest.mark.parametrize(
    "other",
    [KEY | {"source": "abd"}, KEY | {"problem": {"M": 128}}, KEY | {"kernel": "op.gluon"}],
    ids=["source", "problem", "kernel"],
)
def test_another_key_is_a_miss(store, other):
    store.put(HERE, KEY, CONFIG)
    assert store.get(HERE, other) is None


@pytest.mark.parametrize("field", ["device", "capability", "units", "torch", "triton"])
def test_another_environment_is_a_miss(store, field):
    store.put(HERE, KEY, CONFIG)
    elsewhere = {name: getattr(HERE, name) for name in HERE.__dataclass_fields__}
    elsewhere[field] = 7 if field == "units" else "other"
    assert store.get(Fingerprint(**elsewhere), KEY) is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[: len(text) // 2],
        lambda text: b"",
        lambda text: b"\xff\xfe\x00",
        lambda text: b"[]",
        lambda text: b'{"key": 1}',
        lambda text: json.dumps({"key": {"kernel": "other"}, "config": CONFIG}).encode(),
        lambda text: text.replace(b'"M": 64', b'"M": 65'),
    ],
    ids=["truncated", "empty", "not-text", "not-an-object", "no-config", "foreign", "flipped"],
)
def test_a_spoilt_entry_is_a_miss_and_one_warning(store, spoil):
    store.put(HERE, KEY, CONFIG)
    path = store.path(HERE, KEY)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.warns(RuntimeWarning, match="ignoring the tuned config in .* delete the file"):
        assert store.get(HERE, KEY) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.get(HERE, KEY) is None  # the second time in silence


def test_a_full_disk_is_a_warning(store, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(RuntimeWarning, match="was not stored in .*No space left"):
        assert not store.put(HERE, KEY, CONFIG)
    assert list(store.path(HERE, KEY).parent.iterdir()) == []


def test_a_root_that_is_a_file_is_a_warning(tmp_path):
    root = tmp_path / "file"
    root.write_text("")
    with pytest.warns(RuntimeWarning, match="was not stored"):
        assert not Store(root).put(HERE, KEY, CONFIG)


WRITER = """
import sys
from pathlib import Path
from tropigrad.autotune import Fingerprint, Store
environment = Fingerprint("a GPU", "9.0", 132, "2.13", "3.7")
key = {"kernel": "op.triton", "source": "abc", "problem": {"M": 64}}
for _ in range(200):
    assert Store(Path(sys.argv[1])).put(environment, key, {"BLOCK": int(sys.argv[2])})
"""


def test_eight_writers_leave_a_whole_entry(store):
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, store.root, str(number)]) for number in range(8)]
    written = [{"BLOCK": number} for number in range(8)]
    while any(writer.poll() is None for writer in writers):
        assert store.get(HERE, KEY) in (None, *written)
    assert all(writer.returncode == 0 for writer in writers)
    assert store.get(HERE, KEY) in written


# ------------------------------------------------------------------------------------------------ look-up order

CPU = torch.device("cpu")


@pytest.fixture
def tuned(tmp_path, monkeypatch) -> Tuned:
    monkeypatch.setenv("TROPIGRAD_CACHE_DIR", str(tmp_path / "cache"))
    source = tmp_path / "kernel.py"
    source.write_text(tmp_path.name)
    space = Space({"BLOCK": (16, 32, 64)})
    return Tuned("op.test", space, default=lambda problem: {"BLOCK": 16}, source=source)


def test_the_default_comes_last(tuned):
    assert (tuned.choice({"M": 5}, CPU).config, tuned.choice({"M": 5}, CPU).source) == ({"BLOCK": 16}, "default")


def _put(tuned, problem, config):
    user_store().put(fingerprint(CPU), tuned.key(problem), config)


def test_the_users_cache_comes_before_shipped_tables(tuned, monkeypatch):
    monkeypatch.setattr(tuned_module, "shipped", lambda *_: ({"BLOCK": 64}, "x"))
    assert tuned.choice({"M": 5}, CPU).source == "x"
    _put(tuned, {"M": 900}, {"BLOCK": 32})
    choice = tuned.choice({"M": 1000}, CPU)  # one bucket with 900
    assert (choice.config, choice.source) == ({"BLOCK": 32}, "user cache")


def test_an_override_comes_first_and_ends(tuned):
    with override("op.test", {"BLOCK": 64}):
        assert tuned.choice({"M": 5}, CPU).source == "override"
        assert tuned.config({"M": 5}, CPU) == {"BLOCK": 64}
    assert tuned.choice({"M": 5}, CPU).source == "default"


def test_choices_are_recorded_inside_the_block_alone(tuned):
    with recorded() as choices:
        tuned.config({"M": 5}, CPU)
    tuned.config({"M": 70}, CPU)
    assert {name: choice.source for name, choice in choices.items()} == {"op.test": "default"}


def test_a_config_outside_the_space_is_not_used(tuned):
    _put(tuned, {"M": 5}, {"BLOCK": 48})
    assert tuned.choice({"M": 5}, CPU).source == "default"


def test_a_changed_kernel_forgets_its_configs(tuned):
    before = tuned.key({"M": 5})
    other = Tuned("op.test", tuned.space, tuned.default, source=Path(__file__))
    assert other.key({"M": 5}) != before


def test_shipped_tables_prefer_this_gpu(monkeypatch):
    def table(device, capability, block):
        return {"device": device, "capability": capability, "entries": {store_module._canonical(KEY): {"BLOCK": block}}}

    tables = [table("another GPU", "9.0", 1), table("a GPU", "9.0", 2), table("an old GPU", "8.0", 3)]
    monkeypatch.setattr(store_module, "_tables", lambda: tables)
    assert store_module.shipped(HERE, KEY) == ({"BLOCK": 2}, "shipped table of a GPU")
    monkeypatch.setattr(store_module, "_tables", lambda: tables[::2])
    assert store_module.shipped(HERE, KEY) == ({"BLOCK": 1}, "shipped table of another GPU")
    monkeypatch.setattr(store_module, "_tables", lambda: tables[2:])
    assert store_module.shipped(HERE, KEY) is None


def test_buckets_round_sizes_up_and_leave_the_rest():
    assert bucket({"M": 1, "N": 65, "K": 0, "dtype": "fp32", "winners": True}) == {
        "M": 1,
        "N": 128,
        "K": 0,
        "dtype": "fp32",
        "winners": True,
    }


def test_a_space_is_the_product_of_its_choices():
    space = Space({"BLOCK": (16, 32), "num_warps": (4, 8)})
    assert len(list(space)) == 4
    assert {"BLOCK": 16, "num_warps": 8} in space
    for stranger in ({"BLOCK": 16}, {"BLOCK": 64, "num_warps": 4}, {"BLOCK": 16.0, "num_warps": 4}, "BLOCK"):
        assert stranger not in space
