"""Which config a launch gets: the order of look-up, what is remembered, and what is passed over with a reason."""

import os
from pathlib import Path

import pytest
import torch

from tropigrad.autotune import (
    Choice,
    Entry,
    Needs,
    Tuned,
    export,
    fingerprint,
    mode,
    reload,
    shipped,
    tuning,
)
from tropigrad.autotune import store as user_store
from tropigrad.autotune import tuned as tuned_module
from tropigrad.autotune.space import Limits

CPU = torch.device("cpu")


def test_the_default_comes_last(tuned):
    assert (tuned.choice({"M": 5}, CPU).config, tuned.choice({"M": 5}, CPU).source) == ({"BLOCK": 16}, "default")


def test_the_users_cache_comes_before_shipped_tables(tuned, put, monkeypatch):
    monkeypatch.setattr(tuned_module, "shipped", lambda *_: ({"BLOCK": 64}, "x"))
    assert tuned.choice({"M": 5}, CPU).source == "x"
    put(tuned, {"M": 900}, {"BLOCK": 32})
    choice = tuned.choice({"M": 1000}, CPU)  # one bucket with 900
    assert (choice.config, choice.source) == ({"BLOCK": 32}, "user cache")


def test_a_config_outside_the_space_is_not_used(tuned, put):
    put(tuned, {"M": 5}, {"BLOCK": 48})
    with pytest.warns(RuntimeWarning, match="user cache: {'BLOCK': 48} is not in the kernel's space"):
        assert tuned.config({"M": 5}, CPU) == {"BLOCK": 16}
    assert tuned.choice({"M": 5}, CPU).source == "default"


def test_an_answer_is_remembered_until_reload(tuned):
    assert tuned.config({"M": 5}, CPU) == {"BLOCK": 16}
    user_store().put(fingerprint(CPU), tuned.key({"M": 5}), {"BLOCK": 32})
    assert tuned.config({"M": 5}, CPU) == {"BLOCK": 16}
    reload()
    assert tuned.config({"M": 5}, CPU) == {"BLOCK": 32}


def test_another_number_of_threads_is_another_environment(tuned, put):
    put(tuned, {"M": 5}, {"BLOCK": 32})
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        assert tuned.choice({"M": 5}, CPU).source == "default"
    finally:
        torch.set_num_threads(before)
    assert tuned.choice({"M": 5}, CPU).source == "user cache"


def test_a_stale_config_is_passed_over_with_its_reason(tuned, put, monkeypatch, tmp_path):
    """Shared memory and threads are asked of the device that is there, at each look-up."""
    needy = Tuned(tuned.name, tuned.space, tuned.default, tuned.source, lambda _, c: Needs(shared=c["BLOCK"] << 10))
    monkeypatch.setattr(tuned_module, "limits", lambda device: Limits(threads=1024, warp=32, shared=48 << 10))
    put(needy, {"M": 5}, {"BLOCK": 64})
    with pytest.warns(RuntimeWarning, match="op.test does not use the config of the user cache: 65536 bytes of shared"):
        choice = needy.choice({"M": 5}, CPU)
    assert choice == Choice(
        {"BLOCK": 16}, "default", "user cache: 65536 bytes of shared memory a block, the device has 49152"
    )
    monkeypatch.setattr(shipped, "TABLES", tmp_path)
    export(fingerprint(CPU), [Entry(needy.key({"M": 5}), {"BLOCK": 32})], tmp_path)
    reload()
    assert needy.choice({"M": 5}, CPU).config == {"BLOCK": 32}  # the shipped one fits


def test_a_launch_reads_no_file_the_second_time(tuned, monkeypatch):
    tuned.config({"M": 5}, CPU)
    monkeypatch.setattr(os, "open", lambda *args: pytest.fail("the disk is read"))
    monkeypatch.setattr(Path, "read_text", lambda *args: pytest.fail("the disk is read"))
    assert tuned.config({"M": 5}, CPU) == {"BLOCK": 16}


def test_while_another_thread_tunes_a_call_gets_the_default_and_does_not_wait(tuned, monkeypatch):
    found = Choice({"BLOCK": 64}, "user cache")
    monkeypatch.setattr(tuned_module, "_tuner", lambda *what: found)
    with mode("tune"):
        with tuned_module._tuning:
            assert tuned.choice({"M": 5}, CPU).source == "default"
        assert tuned.choice({"M": 5}, CPU) == found
        assert tuned.choice({"M": 5}, CPU) == found


def test_without_a_tuner_the_mode_tune_warns_and_the_default_serves(tuned, monkeypatch):
    assert tuned_module._tuner is tuning.tune_problem
    monkeypatch.setattr(tuned_module, "_tuner", tuned_module._no_tuner)
    with (
        mode("tune"),
        pytest.warns(RuntimeWarning, match="for tuning it failed: no tuner is there; expected tropigrad"),
    ):
        assert tuned.choice({"M": 5}, CPU) == Choice({"BLOCK": 16}, "default")


def test_no_more_is_remembered_than_is_worth_it(tuned, monkeypatch):
    monkeypatch.setattr(tuned_module, "MOST_REMEMBERED", 10)
    for size in range(1, 100):
        assert tuned.config({"M": size}, CPU) == {"BLOCK": 16}
    assert len(tuned_module._remembered) <= 10
