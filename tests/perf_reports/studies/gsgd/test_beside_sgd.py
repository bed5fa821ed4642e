"""The comparison with SGD: its records, the overhead of a step, the picture of rescaled starts."""

import json

import pytest

from tropigrad.perf_reports import data
from tropigrad.perf_reports.studies import gsgd
from tropigrad.perf_reports.studies.gsgd import beside_sgd

from .conftest import blobs


def test_comparison_records(monkeypatch):
    setting = beside_sgd.Setting(epochs=2, seeds=2, tuning_epochs=3, train_per_class=5, rates=(1e-5, 0.02))
    monkeypatch.setattr(beside_sgd, "SETTINGS", {True: setting, False: setting})
    monkeypatch.setattr(data, "load", lambda spec=None, data_dir=None, seed=0: blobs())
    seen = []
    records = list(gsgd.compare(None, True, 3, lambda *progress: seen.append(progress)))
    json.dumps(records, allow_nan=False)
    summaries = [r for r in records if r["kind"] == "training_summary"]
    assert records[-5:] == summaries
    assert [r["role"] for r in summaries] == ["ours", "dense", "other", "other", "other"]
    assert [r["lr"] for r in summaries if "Path" not in r["method"]] == [0.02] * 4  # 1e-5 learns nothing
    assert all(len(r["test_accuracies"]) == 2 for r in summaries)
    for r in summaries:
        curve = [row for row in records if row["kind"] == "training" and row["method"] == r["method"]]
        assert [row["iteration"] for row in curve] == [1, 2]
        assert all((row["study"], row["seed"]) == ("gsgd", 3) for row in curve)
    assert seen[-1][0] == seen[-1][1] == 2


def test_the_overhead_is_that_of_whole_steps():
    found = gsgd.overhead(rounds=3)
    assert found["ratio"] == found["gsgd"] / found["sgd"] > 0


def test_the_picture_of_rescaled_starts_is_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib draws it")
    gsgd.draw_starts(blobs(), tmp_path / "starts.png", spreads=(0.0, 0.5), epochs=1)
    assert (tmp_path / "starts.png").read_bytes().startswith(b"\x89PNG")
