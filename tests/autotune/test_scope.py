"""What a block changes for the launches inside it: the mode, the config, who is told."""

import pytest
import torch

from tropigrad.autotune import Choice, mode, override, recorded, reload

CPU = torch.device("cpu")


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


def test_off_is_the_default_whatever_was_tuned(tuned, put, monkeypatch):
    put(tuned, {"M": 5}, {"BLOCK": 32})
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
