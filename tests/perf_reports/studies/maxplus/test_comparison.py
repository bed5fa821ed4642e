"""The comparison of methods over seeds: its targets, its table, its features for images, the command."""

import json
import time

import pytest

from tropigrad.perf_reports.studies.maxplus import comparison


def row(method, iteration, seconds, loss, accuracy):
    return {
        "kind": "training",
        "method": method,
        "dataset": "blobs",
        "seed": 0,
        "iteration": iteration,
        "seconds": seconds,
        "loss": loss,
        "test_accuracy": accuracy,
    }


def summary(method, role, pace, best_loss, accuracy):
    return {
        "kind": "training_summary",
        "method": method,
        "role": role,
        "dataset": "blobs",
        "seed": 0,
        "train_samples": 60,
        "features": 4,
        "hidden": 12,
        "seconds_per_iteration": pace,
        "iterations": 3,
        "best_loss": best_loss,
        "test_accuracy": accuracy,
    }


RECORDS = [
    row("sparse", 0, 0.1, 8.0, 0.80),
    row("sparse", 1, 0.2, 3.0, 0.70),
    row("sparse", 2, 0.3, 2.0, 0.90),
    row("sparse", 3, 0.4, 5.0, 0.85),
    row("dense autograd", 0, 6.0, 8.0, 0.80),
    row("fused dense", 0, 1.0, 8.0, 0.80),
    row("fused dense", 1, 2.0, 3.0, 0.70),
    row("fused dense", 2, 3.0, 2.0, 0.90),
    row("mini-batch Adam", 0, 0.0, 8.0, 0.80),
    row("mini-batch Adam", 3, 1.5, 2.5, 0.95),
    row("MLP, Adam", 0, 0.0, 1.0, 0.10),
    row("MLP, Adam", 3, 1.0, 0.0, 0.89),
    summary("sparse", "ours", 0.1, 2.0, 0.90),
    summary("dense autograd", "dense", 6.0, 8.0, 0.80),
    summary("fused dense", "other", 1.0, 2.0, 0.90),
    summary("mini-batch Adam", "other", 0.5, 2.5, 0.95),
    summary("MLP, Adam", "other", 0.3, 0.0, 0.89),
]


def moments():
    return {r["method"]: r for r in comparison.with_moments(RECORDS) if r["kind"] == "training_summary"}


@pytest.mark.parametrize(
    ("method", "to_loss", "to_accuracy"),
    [
        pytest.param("sparse", 0.3, 0.3, id="ours"),
        pytest.param("fused dense", 3.0, 3.0, id="reached"),
        pytest.param("dense autograd", 12.0, 12.0, id="stopped before: two iterations at its pace"),
        pytest.param("mini-batch Adam", None, 1.5, id="never as low, sooner as right"),
        pytest.param("MLP, Adam", None, None, id="another network's loss does not count"),
    ],
)
def test_when_a_method_equals_the_sparse_one(method, to_loss, to_accuracy):
    found = moments()[method]
    assert (found["target_loss"], found["target_accuracy"]) == (2.0, 0.90)
    assert (found["seconds_to_loss"], found["seconds_to_accuracy"]) == (to_loss, to_accuracy)
    assert found["loss_is_computed"] == (method == "dense autograd")


def test_the_curves_pass_unchanged():
    assert [r for r in comparison.with_moments(RECORDS) if r["kind"] == "training"] == RECORDS[:12]


def test_the_table_has_mean_and_spread_of_the_seeds():
    records = list(comparison.with_moments(RECORDS))
    slower = [
        r | {"seed": 1, "seconds_to_loss": r["seconds_to_loss"] and 2 * r["seconds_to_loss"]} for r in records[12:]
    ]
    text = comparison.table(records + slower)
    lines = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in text.splitlines()}
    assert "blobs, N = 60, p = 8, q = 12, 2 seeds." in text
    assert lines["sparse"][4] == "450 ms ± 212 ms"
    assert lines["dense autograd"][4] == "≈ 18.0 s ± 8.49 s"
    assert lines["mini-batch Adam"][4] == "not reached"
    assert lines["sparse"][1] == "100 ms"
    for figure in ("5.6 s, 0.12 s", "≈ 92 %, ≈ 69 %", "≈ 1.64"):
        assert figure in text
    assert "no data set named" in text
    assert "MNIST test accuracy" not in text


def test_a_target_that_some_seeds_miss_is_counted():
    rows = [
        summary("m", "other", 1.0, 1.0, 1.0) | {"seconds_to_loss": s, "loss_is_computed": False} for s in (2.0, None)
    ]
    assert comparison._moment(rows, "loss") == "2.00 s (1 of 2 seeds)"


def test_long_times_are_in_hours():
    rows = [summary("m", "dense", 1.0, 1.0, 1.0) | {"seconds_to_loss": 9000.0, "loss_is_computed": True}]
    assert comparison._moment(rows, "loss") == "≈ 2.5 h"


# ------------------------------------------------------------------------------------------------ the command


def test_command_writes_curves_table_and_picture(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn", reason="scikit-learn carries the data")
    pytest.importorskip("matplotlib", reason="matplotlib draws it")
    short = comparison.Setting(iterations=6, dense_seconds=60.0, adam_seconds=60.0, hidden=9)
    monkeypatch.setattr(comparison, "SETTINGS", {"iris": short, "digits": short})
    monkeypatch.setattr(comparison.clock, "_clock", time.perf_counter)  # put back at the end
    assert comparison.main(["iris", "--seeds", "1", "--processor-time", "--out", str(tmp_path)]) == 0
    records = [json.loads(line) for line in (tmp_path / "iris.jsonl").read_text().splitlines()]
    assert (records[0]["kind"], records[0]["clock"]) == ("run", "processor time")
    assert comparison.clock._clock is time.process_time
    assert len([r for r in records if r["kind"] == "training_summary"]) == 5
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "comparison.md").read_text()
    assert "iris, N = 105, p = 8, q = 9, 1 seed." in text
    assert text in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["letters"], "got 'letters'", id="unknown data"),
        pytest.param(["iris", "--seeds", "0"], "0 seeds", id="no seed"),
        pytest.param(["mnist:/no/such/folder"], "/no/such/folder: no such folder", id="missing folder"),
    ],
)
def test_command_refuses_before_it_writes(tmp_path, capsys, words, message):
    with pytest.raises(SystemExit) as refused:
        comparison.main([*words, "--out", str(tmp_path / "out")])
    assert refused.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
