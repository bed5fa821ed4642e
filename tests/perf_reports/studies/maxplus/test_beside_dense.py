"""The comparison with dense backprop: its records, and when a method stops."""

import json

import pytest

from tropigrad.perf_reports import data
from tropigrad.perf_reports.studies.maxplus import beside_dense

from .conftest import HIDDEN, separable


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(data, "load", lambda spec=None, data_dir=None, seed=0: separable())
    setting = beside_dense.Setting(
        iterations=25, dense_seconds=60.0, adam_seconds=60.0, train_per_class=5, test_per_class=4, hidden=HIDDEN
    )
    monkeypatch.setattr(beside_dense, "SETTINGS", {True: setting, False: setting})
    return setting


def test_comparison_records(small):
    seen = []
    records = list(beside_dense.compare(None, True, 3, lambda *progress: seen.append(progress)))
    json.dumps(records, allow_nan=False)
    curves = {}
    for r in records:
        assert (r["study"], r["seed"], r["dataset"]) == ("maxplus", 3, "three blobs")
        if r["kind"] == "training":
            curves.setdefault(r["method"], []).append(r)
    summaries = [r for r in records if r["kind"] == "training_summary"]
    assert records[-6:] == summaries
    by_batches = ["mean, mini-batches", "CVaR 10%, mini-batches"]
    names = ["worst sample, sparse", "dense autograd", "fused dense", *by_batches, "MLP, Adam"]
    assert [r["method"] for r in summaries] == list(curves) == names
    ours = curves["worst sample, sparse"]
    for rival in ("dense autograd", "fused dense"):
        for field in ("iteration", "loss", "train_accuracy", "test_accuracy"):
            assert [r[field] for r in ours] == [r[field] for r in curves[rival]]
    for summary, curve in zip(summaries, curves.values(), strict=True):
        assert [r["seconds"] for r in curve] == sorted(r["seconds"] for r in curve)
        assert summary["final_loss"] == curve[-1]["loss"]
        assert summary["iterations"] == curve[-1]["iteration"]
        assert summary["best_loss"] <= summary["final_loss"]
        assert summary["hidden"] == HIDDEN
        assert summary["seconds_per_iteration"] > 0
    assert seen[-1][0] == seen[-1][1] == small.iterations


def test_a_method_stops_when_its_time_is_up(small, monkeypatch):
    short = beside_dense.Setting(**{**vars(small), "dense_seconds": 0.0})
    monkeypatch.setattr(beside_dense, "SETTINGS", {True: short})
    summaries = {r["method"]: r for r in beside_dense.compare(None, True) if r["kind"] == "training_summary"}
    assert summaries["dense autograd"]["iterations"] == 0
    assert summaries["dense autograd"]["stopped"] == "0 s of training done"
    assert summaries["worst sample, sparse"]["iterations"] > 0


def test_when_the_studys_time_is_up_the_sparse_iterations_alone_go_on(small, monkeypatch):
    short = beside_dense.Setting(**{**vars(small), "study_seconds": 0.0})
    monkeypatch.setattr(beside_dense, "SETTINGS", {True: short})
    ours, *others = (r for r in beside_dense.compare(None, True) if r["kind"] == "training_summary")
    assert ours["iterations"] > 0
    assert {(r["iterations"], r["stopped"]) for r in others} == {(0, "0 s of all methods done")}


def test_the_objectives_begin_at_the_same_start_in_the_same_units(small):
    rows = [r for r in beside_dense.compare(None, True) if r["kind"] == "training" and r["iteration"] == 0]
    first = {r["method"]: (r["loss"], r["train_accuracy"], r["test_accuracy"]) for r in rows}
    assert first["mean, mini-batches"] == pytest.approx(first["worst sample, sparse"], rel=1e-5)
    assert first["CVaR 10%, mini-batches"] == first["mean, mini-batches"]


def test_a_folder_of_data_is_sampled(small, tmp_path):
    records = list(beside_dense.compare(tmp_path, True))
    assert records[-1]["dataset"] == "three blobs, 5 + 4 a class"
    assert (records[-1]["train_samples"], records[-1]["test_samples"]) == (15, 12)
