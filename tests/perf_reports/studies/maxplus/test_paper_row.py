"""The reported row: the samples that it takes, its records, its table and picture, the command."""

import json

import pytest
import torch

from tropigrad.nn import WorstSampleLoss
from tropigrad.perf_reports.studies.maxplus import paper_row
from tropigrad.perf_reports.studies.maxplus.methods import start

from .conftest import HIDDEN, separable

SETTING = paper_row.Setting(HIDDEN, 8.0)


def test_the_first_samples_are_taken_and_the_test_part_is_whole():
    data = separable()
    few = paper_row.first(data, 20)
    assert torch.equal(few.x_train, data.x_train[:20])
    assert torch.equal(few.y_train, data.y_train[:20])
    assert len(few.y_test) == len(data.y_test)
    assert few.name == "three blobs, its first 20 samples"


@pytest.mark.parametrize("iterations", [1, 2, 7, 150_000])
def test_what_is_logged_begins_with_the_start_and_ends_with_the_last(iterations):
    logged = paper_row.moments(iterations)
    assert (logged[0], logged[-1]) == (0, iterations)
    assert logged == sorted(set(logged))
    assert len(logged) < 80


def test_records_tell_the_start_the_iterates_and_the_least_loss():
    data = separable()
    *rows, summary = paper_row.run(data, SETTING, 50, seed=0)
    model, _ = start(data, HIDDEN, 0, 8.0, 1.0)
    loss = WorstSampleLoss(kind="cross_entropy")(model(data.x_train), data.y_train).item()
    assert rows[0]["loss"] == summary["first_loss"] == pytest.approx(loss, rel=1e-5)
    assert [row["iteration"] for row in rows] == paper_row.moments(50)
    assert summary["best_loss"] < loss
    assert summary["best_loss"] <= min(row["loss"] for row in rows)
    assert summary["iterations"] == 50
    json.dumps([*rows, summary], allow_nan=False)


def test_command_writes_records_table_and_picture(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn", reason="scikit-learn carries the data")
    pytest.importorskip("matplotlib", reason="matplotlib draws it")
    monkeypatch.setattr(paper_row, "SETTINGS", (SETTING, paper_row.Setting(10, 32.0)))
    words = [str(tmp_path), "--data", "digits", "--samples", "60", "--iterations", "20", "--processor-time"]
    assert paper_row.main(words) == 0
    records = [json.loads(line) for line in (tmp_path / "paper-row.jsonl").read_text().splitlines()]
    assert (records[0]["kind"], records[0]["clock"]) == ("run", "processor time")
    assert len([r for r in records if r["kind"] == "training_summary"]) == 2
    assert (tmp_path / "paper-row.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "paper-row.md").read_text()
    assert "digits, its first 60 samples: worst-sample cross-entropy" in text
    assert "Where its accuracy was taken is not said." in text
    assert "| q = 12, λ = 8 | 20 |" in text
    assert text in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["--data", "letters"], "'letters' is unknown", id="unknown data"),
        pytest.param(["--iterations", "0"], "0 iterations", id="no iteration"),
        pytest.param(["--data", "mnist:/no/such/folder"], "/no/such/folder: no such folder", id="missing folder"),
    ],
)
def test_command_refuses_before_it_writes(tmp_path, capsys, words, message):
    with pytest.raises(SystemExit) as refused:
        paper_row.main([str(tmp_path / "out"), *words])
    assert refused.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
