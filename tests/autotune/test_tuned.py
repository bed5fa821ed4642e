"""Which config a launch gets: the order of look-up, the modes, the keys, and what is passed over with a reason."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tropigrad.autotune import (
    Choice,
    Entry,
    Needs,
    Space,
    Tuned,
    export,
    fingerprint,
    mode,
    override,
    recorded,
    reload,
    source_hash,
)
from tropigrad.autotune import store as user_store
from tropigrad.autotune import tuned as tuned_module
from tropigrad.autotune.space import Limits
from tropigrad.autotune.tuned import bucket

store_module = sys.modules["tropigrad.autotune.store"]  # its name in the package is the function's


CPU = torch.device("cpu")


@pytest.fixture
def tuned(tmp_path) -> Tuned:
    source = tmp_path / "kernel.py"
    source.write_text(tmp_path.name)
    space = Space({"BLOCK": (16, 32, 64)})
    return Tuned("op.test", space, default=lambda problem: {"BLOCK": 16}, source=source)


def test_the_default_comes_last(tuned):
    assert (tuned.choice({"M": 5}, CPU).config, tuned.choice({"M": 5}, CPU).source) == ({"BLOCK": 16}, "default")


def _put(tuned, problem, config):
    reload()
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
    with pytest.warns(RuntimeWarning, match="user cache: {'BLOCK': 48} is not in the kernel's space"):
        assert tuned.config({"M": 5}, CPU) == {"BLOCK": 16}
    assert tuned.choice({"M": 5}, CPU).source == "default"


def test_a_changed_kernel_forgets_its_configs(tuned):
    before = tuned.key({"M": 5})
    other = Tuned("op.test", tuned.space, tuned.default, source=Path(__file__))
    assert other.key({"M": 5}) != before


def test_shipped_tables_prefer_this_gpu(tuned, tmp_path, monkeypatch):
    here, key = fingerprint(CPU), tuned.key({"M": 5})
    monkeypatch.setattr(store_module, "TABLES", tmp_path)

    def ship(device, capability, block):
        export(replace(here, device=device, capability=capability), [Entry(key, {"BLOCK": block})], tmp_path)
        reload()
        return tuned.choice({"M": 5}, CPU)

    assert ship("an old one", "other", 32).source == "default"
    assert ship("a cousin", here.capability, 32) == Choice({"BLOCK": 32}, "shipped table of a cousin")
    assert ship(here.device, here.capability, 64) == Choice({"BLOCK": 64}, f"shipped table of {here.device}")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"device": "a"}', '{"device":1,"capability":2,"entries":[1]}'])
def test_a_spoilt_table_is_a_warning_and_the_others_serve(tuned, tmp_path, monkeypatch, text):
    here = fingerprint(CPU)
    monkeypatch.setattr(store_module, "TABLES", tmp_path)
    export(here, [Entry(tuned.key({"M": 5}), {"BLOCK": 32})], tmp_path)
    (tmp_path / "a.json").write_text(text)
    reload()
    with pytest.warns(RuntimeWarning, match="ignoring the shipped table .*a.json"):
        assert tuned.config({"M": 5}, CPU) == {"BLOCK": 32}


def test_the_shipped_tables_are_read_without_a_warning():
    assert len(store_module.tables()) == len(list(store_module.TABLES.glob("*.json")))


def test_off_is_the_default_whatever_was_tuned(tuned, monkeypatch):
    _put(tuned, {"M": 5}, {"BLOCK": 32})
    with mode("off"):
        assert tuned.choice({"M": 5}, CPU) == Choice({"BLOCK": 16}, "default")
    assert tuned.config({"M": 5}, CPU) == {"BLOCK": 32}
    monkeypatch.setenv("TROPIGRAD_AUTOTUNE", "off")
    reload()
    assert tuned.config({"M": 5}, CPU) == {"BLOCK": 16}
    with mode("replay"):
        assert tuned.config({"M": 5}, CPU) == {"BLOCK": 32}


def test_a_mode_that_is_none_is_named(tuned, monkeypatch):
    with pytest.raises(ValueError, match="mode is 'always'; expected one of off, replay, tune"), mode("always"):
        pass
    monkeypatch.setenv("TROPIGRAD_AUTOTUNE", "on")
    with pytest.raises(ValueError, match="TROPIGRAD_AUTOTUNE is 'on'; expected one of off, replay, tune"):
        tuned.config({"M": 5}, CPU)


def test_an_answer_is_remembered_until_reload(tuned):
    assert tuned.config({"M": 5}, CPU) == {"BLOCK": 16}
    user_store().put(fingerprint(CPU), tuned.key({"M": 5}), {"BLOCK": 32})
    assert tuned.config({"M": 5}, CPU) == {"BLOCK": 16}
    reload()
    assert tuned.config({"M": 5}, CPU) == {"BLOCK": 32}


def test_another_number_of_threads_is_another_environment(tuned):
    _put(tuned, {"M": 5}, {"BLOCK": 32})
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        assert tuned.choice({"M": 5}, CPU).source == "default"
    finally:
        torch.set_num_threads(before)
    assert tuned.choice({"M": 5}, CPU).source == "user cache"


def test_a_stale_config_is_passed_over_with_its_reason(tuned, monkeypatch, tmp_path):
    """Shared memory and threads are asked of the device that is there, at each look-up."""
    needy = Tuned(tuned.name, tuned.space, tuned.default, tuned.source, lambda _, c: Needs(shared=c["BLOCK"] << 10))
    monkeypatch.setattr(tuned_module, "limits", lambda device: Limits(threads=1024, warp=32, shared=48 << 10))
    _put(needy, {"M": 5}, {"BLOCK": 64})
    with pytest.warns(RuntimeWarning, match="op.test does not use the config of the user cache: 65536 bytes of shared"):
        choice = needy.choice({"M": 5}, CPU)
    assert choice == Choice(
        {"BLOCK": 16}, "default", "user cache: 65536 bytes of shared memory a block, the device has 49152"
    )
    monkeypatch.setattr(store_module, "TABLES", tmp_path)
    export(fingerprint(CPU), [Entry(needy.key({"M": 5}), {"BLOCK": 32})], tmp_path)
    reload()
    assert needy.choice({"M": 5}, CPU).config == {"BLOCK": 32}  # the shipped one fits


@pytest.mark.parametrize(
    ("config", "needs", "reason"),
    [
        ({"num_warps": 4}, Needs(registers=255, shared=100), ""),
        ({"num_warps": 33}, Needs(), "1056 threads a block, the device has 1024"),
        ({}, Needs(shared=101), "101 bytes of shared memory a block, the device has 100"),
        ({}, Needs(registers=256), "256 registers a thread, an instruction can name 255"),
    ],
    ids=["fits", "threads", "shared", "registers"],
)
def test_limits_say_what_is_too_much(config, needs, reason):
    assert Limits(threads=1024, warp=32, shared=100).why_not(config, needs) == reason


def test_a_source_is_hashed_with_what_it_includes(tmp_path):
    (tmp_path / "kernel.cpp").write_text('#include <vector>\n  #  include "part.hpp"\nint x;\n')
    (tmp_path / "part.hpp").write_text("int y;\n")
    before = source_hash(tmp_path / "kernel.cpp")
    (tmp_path / "part.hpp").write_text("int z;\n")
    reload()
    assert source_hash(tmp_path / "kernel.cpp") != before


def test_a_launch_reads_no_file_the_second_time(tuned, monkeypatch):
    tuned.config({"M": 5}, CPU)
    monkeypatch.setattr(os, "open", lambda *args: pytest.fail("the disk is read"))
    monkeypatch.setattr(Path, "read_text", lambda *args: pytest.fail("the disk is read"))
    assert tuned.config({"M": 5}, CPU) == {"BLOCK": 16}


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


def test_while_another_thread_tunes_a_call_gets_the_default_and_does_not_wait(tuned, monkeypatch):
    found = Choice({"BLOCK": 64}, "user cache")
    monkeypatch.setattr(sys.modules["tropigrad.autotune.tunable"], "tune_problem", lambda *what: found)
    with mode("tune"):
        with tuned_module._tuning:
            assert tuned.choice({"M": 5}, CPU).source == "default"
        assert tuned.choice({"M": 5}, CPU) == found
        assert tuned.choice({"M": 5}, CPU) == found


def test_no_more_is_remembered_than_is_worth_it(tuned, monkeypatch):
    monkeypatch.setattr(tuned_module, "MOST_REMEMBERED", 10)
    for size in range(1, 100):
        assert tuned.config({"M": size}, CPU) == {"BLOCK": 16}
    assert len(tuned_module._remembered) <= 10
