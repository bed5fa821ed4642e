"""The store never crashes a call, and never answers another key's question."""

import dataclasses
import errno
import json
import os
import random
import shutil
import warnings
from pathlib import Path

import pytest

from tropigrad.autotune import Entry, Fingerprint, Store

HERE = Fingerprint("a GPU", "9.0", 132, "2.13", "3.7")
KEY = {"kernel": "op.triton", "source": "abc", "problem": {"M": 64}}
CONFIG = {"BLOCK": 64}


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path)


def test_what_was_put_is_got(store):
    assert store.get(HERE, KEY) is None
    assert store.put(HERE, KEY, CONFIG)
    assert store.get(HERE, KEY) == Entry(KEY, CONFIG, {})
    assert [path.suffix for path in store.path(HERE, KEY).parent.iterdir()] == [".json"]  # no temporary file stays


@pytest.mark.parametrize(
    "other",
    [KEY | {"source": "abd"}, KEY | {"problem": {"M": 128}}, KEY | {"kernel": "op.gluon"}],
    ids=["source", "problem", "kernel"],
)
def test_another_key_is_a_miss(store, other):
    store.put(HERE, KEY, CONFIG)
    assert store.get(HERE, other) is None


@pytest.mark.parametrize("field", list(HERE.__dataclass_fields__))
def test_another_environment_is_a_miss(store, field):
    store.put(HERE, KEY, CONFIG)
    elsewhere = dataclasses.replace(HERE, **{field: 7 if field == "units" else "other"})
    assert store.get(elsewhere, KEY) is None


def test_an_environment_says_what_it_is(store):
    store.put(HERE, KEY, CONFIG)
    assert store.manifest(HERE.hash) == {"schema": "v1", **dataclasses.asdict(HERE)}
    (store.environment_folder(HERE) / "manifest.json").write_text("[[[")
    assert store.manifest(HERE.hash) == {}
    assert store.get(HERE, KEY)


def test_an_entry_copied_from_another_environment_is_a_miss(store):
    elsewhere = dataclasses.replace(HERE, device="another GPU")
    store.put(elsewhere, KEY, CONFIG)
    shutil.copytree(store.environment_folder(elsewhere), store.environment_folder(HERE))
    with pytest.warns(RuntimeWarning, match="it is of another environment"):
        assert store.get(HERE, KEY) is None


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
        lambda text: text.replace(b'"BLOCK": 64', b'"BLOCK": 65'),
        lambda text: b"[" * 100_000,
        lambda text: b"1" * 10_000,
    ],
    ids=[
        "truncated",
        "empty",
        "not-text",
        "not-an-object",
        "no-config",
        "foreign",
        "key-flipped",
        "config-flipped",
        "deep",
        "number",
    ],
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


def test_no_flipped_bit_is_ever_taken_for_a_config(store):
    store.put(HERE, KEY, CONFIG)
    path = store.path(HERE, KEY)
    whole = path.read_bytes()
    for at in random.Random(0).sample(range(8 * len(whole)), 200):
        spoilt = bytearray(whole)
        spoilt[at // 8] ^= 1 << at % 8
        path.write_bytes(spoilt)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # a bit of the white space, or of a number's spelling, leaves the entry what it was
            assert store.get(HERE, KEY) in (None, Entry(KEY, CONFIG, {}))


@pytest.mark.parametrize("kind", ["folder", "pipe", "unreadable", "dangling"])
def test_what_is_no_file_is_a_miss_and_nobody_waits(store, kind):
    path = store.path(HERE, KEY)
    path.parent.mkdir(parents=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "dangling":
        path.symlink_to("nowhere")
    else:
        store.put(HERE, KEY, CONFIG)
        path.chmod(0)
        if os.access(path, os.R_OK):
            pytest.skip("this user may read everything")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert store.get(HERE, KEY) is None
    assert len(said) == (kind != "dangling")  # which is no file at all


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
@pytest.mark.parametrize("step", ["mkdir", "open", "replace"])
def test_a_full_or_read_only_disk_is_a_warning(store, monkeypatch, step, number):
    def full(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os if step == "replace" else Path, step, full)
    with pytest.warns(RuntimeWarning, match=f"was not stored in .*{os.strerror(number)}"):
        assert not store.put(HERE, KEY, CONFIG)
    monkeypatch.undo()
    assert store.left_over() == []
    assert store.put(HERE, KEY, CONFIG)


def test_a_read_only_folder_is_a_warning_and_what_it_holds_is_still_read(store):
    store.put(HERE, KEY, CONFIG)
    folder = store.path(HERE, KEY).parent
    folder.chmod(0o500)
    try:
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.warns(RuntimeWarning, match="was not stored"):
            assert not store.put(HERE, KEY, {"BLOCK": 32})
        assert store.get(HERE, KEY) == Entry(KEY, CONFIG, {})
    finally:
        folder.chmod(0o700)


def test_a_root_that_is_a_file_is_a_warning(tmp_path):
    root = tmp_path / "file"
    root.write_text("")
    with pytest.warns(RuntimeWarning, match="was not stored"):
        assert not Store(root).put(HERE, KEY, CONFIG)


# ------------------------------------------------------------------------------------------------ journal


def test_a_journal_keeps_what_was_added_and_drops_what_it_cannot_read(store):
    journal = store.journal(HERE, KEY)
    assert journal.read() == []
    journal.add({"n": 1}, {"n": 2})
    with journal.path.open("a") as file:
        file.write('{"of": "another key", "n": 3}\nnonsense\n[]\n' + "[" * 100_000 + '\n{"of": "cut o')
    journal.add({"n": 4})
    assert journal.read() == [{"n": 1}, {"n": 2}, {"n": 4}]
    journal.remove()
    journal.remove()
    assert journal.read() == []


def test_a_journal_that_cannot_be_written_costs_the_resumption_alone(tmp_path):
    (tmp_path / "file").write_text("")
    journal = Store(tmp_path / "file").journal(HERE, KEY)
    journal.add({"n": 1})
    assert journal.read() == []


def test_entries_are_listed_with_what_is_wrong_with_them(store):
    for number in range(3):
        store.put(HERE, KEY | {"source": str(number)}, CONFIG)
    damaged, foreign, _ = (path for path, _ in store.entries())
    damaged.write_text("{")
    shutil.copy(_, foreign)
    found = dict(store.entries(HERE))
    assert str(found[damaged]).startswith("it is damaged")
    assert found[foreign] == "it answers another key"
    assert isinstance(found[_], Entry)
    assert list(store.entries(dataclasses.replace(HERE, device="another GPU"))) == []


def test_clear_takes_one_environment_or_all(store):
    elsewhere = dataclasses.replace(HERE, device="another GPU")
    for environment in (HERE, elsewhere):
        store.put(environment, KEY, CONFIG)
    assert store.clear(HERE) == 1
    assert store.get(elsewhere, KEY)
    assert store.clear() == 1
    assert store.clear() == 0
