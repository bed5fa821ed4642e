"""The comparison with Adam: its records, and a solution that Adam never comes to."""

import json

import pytest
import torch

from tropigrad.perf_reports import data
from tropigrad.perf_reports.data import Dataset
from tropigrad.perf_reports.studies import explicit
from tropigrad.perf_reports.studies.explicit import beside_adam


@pytest.fixture
def small(monkeypatch, bags):
    x, y = (torch.from_numpy(part) for part in bags())
    x = x.float() / 16
    dataset = Dataset(x[:180], y[:180].long(), x[180:], y[180:].long(), "bags")
    monkeypatch.setattr(data, "load", lambda spec=None, data_dir=None, seed=0: dataset)
    setting = beside_adam.Setting(seconds=0.02, seeds=2, train_per_class=20, batches=(64,))
    monkeypatch.setattr(beside_adam, "SETTINGS", {True: setting, False: setting})


def test_comparison_records(small):
    threads, seen = torch.get_num_threads(), []
    records = list(explicit.compare(None, True, 3, lambda *progress: seen.append(progress)))
    json.dumps(records, allow_nan=False)
    *curves, ours, dense = records
    assert [(r["role"], r["iteration"]) for r in (ours, dense)] == [("ours", "solution"), ("dense", "step")]
    assert all((r["study"], r["dataset"]) == ("explicit", "bags") for r in records)
    (solved,) = [r for r in curves if r["method"] == ours["method"]]
    assert (solved["iteration"], solved["loss"], solved["seed"]) == (1, ours["final_loss"], 3)
    assert ours["seconds_per_iteration"] == solved["seconds"] > 0
    for seed in (3, 4):
        line = [r for r in curves if r["method"] == dense["method"] and r["seed"] == seed]
        assert [r["iteration"] for r in line][:3] == [1, 2, 3]
        assert [r["seconds"] for r in line] == sorted(r["seconds"] for r in line)
        assert line[-1]["loss"] < line[0]["loss"]
    assert dense["final_loss"] == line[-1]["loss"]
    assert seen[-1][0] == seen[-1][1] == 2
    assert torch.get_num_threads() == threads


def test_where_adam_never_comes_to_the_loss_it_takes_a_usual_rate(small, monkeypatch):
    chosen = {"explicit_seconds": 0.001, "train_loss": 0.0, "train_seconds": None}
    monkeypatch.setattr(beside_adam, "race", lambda *arguments, **settings: chosen)
    summary = list(explicit.compare(None, True))[-1]
    assert summary["stopped"] == "0.02 s of training done, rate 0.1, batches of 128"
