"""The comparison with the eager port: its records, and that both are one network."""

import json

import pytest
import torch

from tropigrad.perf_reports import data
from tropigrad.perf_reports.studies import ftprop
from tropigrad.perf_reports.studies.ftprop import beside_eager

from .conftest import blobs


@pytest.fixture
def records(monkeypatch):
    setting = beside_eager.Setting(epochs=2, train_per_class=5)
    monkeypatch.setattr(beside_eager, "SETTINGS", {True: setting})
    monkeypatch.setattr(data, "load", lambda spec=None, data_dir=None, seed=0: blobs())
    return list(ftprop.compare(None, True, 3))


def test_comparison_records(records):
    json.dumps(records, allow_nan=False)
    assert [(r["method"], r["role"]) for r in records[-3:]] == list(beside_eager.METHODS.items())
    for summary in records[-3:]:
        line = [r for r in records[:-3] if r["method"] == summary["method"]]
        assert [(r["study"], r["seed"], r["iteration"]) for r in line] == [("ftprop", 3, 1), ("ftprop", 3, 2)]
        assert 0 < line[0]["seconds"] < line[1]["seconds"]
        assert summary["final_loss"] == line[-1]["loss"]
        assert summary["seconds_per_iteration"] > 0


def test_the_eager_port_goes_the_same_way_and_keeps_more(records):
    ours, eager, _ = records[-3:]
    assert eager["final_loss"] == pytest.approx(ours["final_loss"], rel=1e-3)
    assert eager["saved_bytes"] > 1.5 * ours["saved_bytes"]


def test_an_end_between_two_iterations_gives_the_threads_back(monkeypatch):
    monkeypatch.setattr(data, "load", lambda spec=None, data_dir=None, seed=0: blobs())
    before = torch.get_num_threads()

    def stop(done, total, what):
        assert torch.get_num_threads() == 1
        raise TimeoutError

    torch.set_num_threads(2)
    try:
        with pytest.raises(TimeoutError):
            list(ftprop.compare(None, True, 0, stop))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
