"""The fronts of the report: their records, and what is said of a common range."""

import json

import pytest

from tropigrad.perf_reports import data
from tropigrad.perf_reports.studies import l1path
from tropigrad.perf_reports.studies.l1path import beside_sweep

from .conftest import blobs

TITLES = ["held λ", "sweep", "as released"]


@pytest.fixture
def compared(monkeypatch):
    setting = beside_sweep.Setting(dense=1, sparse=1, first_steps=4, correctors=2)
    monkeypatch.setattr(beside_sweep, "SETTINGS", {True: setting})
    monkeypatch.setattr(data, "load", lambda spec=None, data_dir=None, seed=0: blobs())
    seen = []
    return list(l1path.compare(None, True, 3, lambda *progress: seen.append(progress))), seen


def test_comparison_records(compared):
    records, seen = compared
    json.dumps(records, allow_nan=False)
    fronts, summaries = records[:3], records[3:]
    assert [(r["kind"], r["method"]) for r in records] == [
        *(("front", title) for title in TITLES),
        *(("training_summary", title) for title in TITLES),
    ]
    for front, summary in zip(fronts, summaries, strict=True):
        assert (front["study"], front["dataset"], front["seed"]) == ("l1path", "three blobs", 3)
        assert front["role"] == summary["role"]
        stay = sorted((p for p in front["points"] if not p["is_dominated"]), key=lambda p: p["l1"])
        losses = [p["loss"] for p in stay]
        assert losses == sorted(losses, reverse=True)
        assert summary["seconds"] == front["seconds"]
    assert [done for done, *_ in seen] == sorted(done for done, *_ in seen)
    assert seen[-1][0] == seen[-1][1] == 9


def test_the_sweep_has_the_epochs_of_held(compared):
    held, sweep, _ = compared[0][:3]
    assert sweep["epochs"] == pytest.approx(held["epochs"], abs=2)


def test_where_no_norm_is_common_nothing_is_said_of_one(monkeypatch):
    setting = beside_sweep.Setting(dense=1, sparse=1, first_steps=2, correctors=1)
    monkeypatch.setattr(beside_sweep, "SETTINGS", {True: setting})
    monkeypatch.setattr(data, "load", lambda spec=None, data_dir=None, seed=0: blobs())
    monkeypatch.setattr(beside_sweep, "common_range", lambda rows: (3.0, 2.0))
    summary = list(l1path.compare(None, True))[-1]
    assert (summary["common_range"], summary["hypervolume"]) == (None, None)
