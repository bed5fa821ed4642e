"""The tables that come with the library: which of them serves, and what a spoilt one costs."""

import json
from dataclasses import replace

import pytest
import torch

from tropigrad.autotune import Choice, Entry, Fingerprint, export, fingerprint, reload, shipped

CPU = torch.device("cpu")


def test_shipped_tables_prefer_this_gpu(tuned, tmp_path, monkeypatch):
    here, key = fingerprint(CPU), tuned.key({"M": 5})
    monkeypatch.setattr(shipped, "TABLES", tmp_path)

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
    monkeypatch.setattr(shipped, "TABLES", tmp_path)
    export(here, [Entry(tuned.key({"M": 5}), {"BLOCK": 32})], tmp_path)
    (tmp_path / "a.json").write_text(text)
    reload()
    with pytest.warns(RuntimeWarning, match="ignoring the shipped table .*a.json"):
        assert tuned.config({"M": 5}, CPU) == {"BLOCK": 32}


def test_the_shipped_tables_are_read_without_a_warning():
    assert len(shipped.tables()) == len(list(shipped.TABLES.glob("*.json")))


def test_an_exported_table_keeps_what_it_had_of_other_problems(tmp_path):
    here = Fingerprint("a GPU", "9.0", 132, "2.13", "3.7")
    key = {"kernel": "op.triton", "source": "abc", "problem": {"M": 64}}
    other = key | {"problem": {"M": 128}}
    newer = key | {"source": "newer"}
    export(here, [Entry(key, {"BLOCK": 64}), Entry(other, {"BLOCK": 64})], tmp_path)
    path = export(here, [Entry(newer, {"BLOCK": 32}, {"gain": {"value": 1.5}})], tmp_path)
    table = json.loads(path.read_text())
    assert (path.name, table["device"], table["capability"]) == ("a-gpu.json", "a GPU", "9.0")
    assert [(entry["key"], entry["config"]["BLOCK"]) for entry in table["entries"]] == [(other, 64), (newer, 32)]
