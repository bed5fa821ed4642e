"""The studies of objectives and networks, and of the front: their records, tables and pictures, and going on."""

import json
import time

import pytest

from tropigrad.perf_reports.data import DataError
from tropigrad.perf_reports.studies.maxplus import accuracy, clock, front

from .conftest import HIDDEN, inseparable, separable

SHORT = accuracy.Experiment(hidden=HIDDEN, epochs=2)


@pytest.mark.parametrize("network", accuracy.NETWORKS)
@pytest.mark.parametrize("objective", ["mean", "CVaR 10%", "worst"])
def test_each_network_is_trained_by_each_objective(network, objective):
    *rows, summary = accuracy.run("blobs", inseparable(), network, objective, SHORT, seed=0)
    json.dumps([*rows, summary], allow_nan=False)
    assert (rows[0]["iteration"], rows[0]["seconds"]) == (0, 0.0)
    assert rows[-1]["iteration"] == summary["epochs"]
    by_all = network == accuracy.FIXED and objective == "worst"
    assert summary["epochs"] > 100 if by_all else summary["epochs"] == 2
    kept = next(row for row in rows if row["iteration"] == summary["kept_iteration"])
    assert kept["validation_accuracy"] == summary["validation_accuracy"] == max(r["validation_accuracy"] for r in rows)
    assert kept["test_accuracy"] == summary["test_accuracy"]
    assert summary["train_worst_loss"] >= summary["train_mean_loss"]


def test_fashion_is_a_folder_of_its_own(tmp_path, write_mnist):
    write_mnist(tmp_path / "fashion-mnist")
    assert accuracy.loaded("fashion-mnist", SHORT, tmp_path, 0).features == 12
    with pytest.raises(DataError, match="fashion-mnist needs a folder"):
        accuracy.loaded("fashion-mnist", SHORT, None, 0)


def test_the_accuracy_command_writes_and_goes_on(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn", reason="scikit-learn carries the data")
    pytest.importorskip("matplotlib", reason="matplotlib draws it")
    monkeypatch.setattr(clock, "_clock", time.perf_counter)  # put back at the end
    words = [str(tmp_path), "--only", "digits", "--quick", "--seeds", "1", "--processor-time"]
    names = [accuracy.MLP, "linear softmax"]
    assert accuracy.main([*words, "--networks", *names]) == 0
    assert clock._clock is time.process_time
    first = (tmp_path / "accuracy.jsonl").read_text()
    records = [json.loads(line) for line in first.splitlines()]
    assert len([r for r in records if r["kind"] == "training_summary"]) == 5
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "accuracy.md").read_text()
    assert "180 training samples, 1 seed." in text
    assert text in capsys.readouterr().out
    assert accuracy.main([*words, "--networks", *names]) == 0  # nothing is run again
    assert (tmp_path / "accuracy.jsonl").read_text() == first


@pytest.fixture(scope="module")
def points():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(front, "SHARES", (1.0, 0.1))
        return list(front.run(separable(), HIDDEN, 3, 120, seed=0))


def test_the_front_goes_from_the_mean_to_the_worst_sample(points):
    assert [(p["way"], p["alpha"], p["iteration"]) for p in points[:3]] == [
        ("start", None, 0),
        (front.BY_BATCHES, 1.0, 3),
        (front.BY_BATCHES, 0.1, 3),
    ]
    for way in front.ONWARDS:
        own = [p for p in points if p["way"] == way.name]
        assert {p["alpha"] for p in own} == {way.settings.get("alpha")}
        assert [p["iteration"] for p in own] == front.moments(round(120 * way.part)), "looked at to its end"
        losses = [p["loss"] for p in own]
        assert losses == sorted(losses, reverse=True)
    text = front.table(points)
    assert "| mean |" in text
    assert "| CVaR 10% |" in text
    assert "| mean, then 12 iterations on the CVaR 1% of all, A fixed |" in text
    assert "| mean, then 120 iterations on the worst of all, A fixed |" in text


@pytest.mark.parametrize(
    ("way", "field"), [(front.WORST, "worst_loss"), (front.HINGE, "worst_hinge")], ids=["cross-entropy", "hinge"]
)
def test_the_worst_loss_of_a_point_is_that_of_its_network(points, way, field):
    own = [p for p in points if p["way"] == way.name]
    assert [p[field] for p in own] == pytest.approx([p["loss"] for p in own], rel=1e-4)
    assert own[-1][field] < points[1][field], "less than at the mean's solution"


def test_who_meets_the_hope():
    def point(way, alpha, hinge, accuracy):
        return {"kind": "point", "seed": 0, "way": way, "alpha": alpha, "worst_hinge": hinge, "test_accuracy": accuracy}

    mean = point(front.BY_BATCHES, 1.0, 1.2, 0.95)
    half, wrong, slow = (
        point("hinge", None, 0.6, 0.92),
        point("hinge", None, 0.6, 0.91),
        point("hinge", None, 0.61, 0.95),
    )
    assert front.met([mean, half, wrong, slow]) == [half]


def test_the_front_command_writes_and_goes_on(tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="scikit-learn carries the data")
    pytest.importorskip("matplotlib", reason="matplotlib draws it")
    monkeypatch.setattr(front, "SHARES", (1.0,))
    words = [str(tmp_path), "--data", "iris", "--hidden", "9", "--epochs", "2", "--iterations", "20", "--seeds", "2"]
    assert front.main(words) == 0
    first = (tmp_path / "front.jsonl").read_text()
    assert {json.loads(line)["kind"] for line in first.splitlines()} == {"run", "point"}
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    assert "iris, q = 9, A trained, 2 seeds." in (tmp_path / "front.md").read_text()
    assert front.main(words) == 0
    assert (tmp_path / "front.jsonl").read_text() == first


@pytest.mark.parametrize(
    ("module", "words", "message"),
    [
        pytest.param(accuracy, ["--seeds", "0"], "at least 1 seed", id="no seed"),
        pytest.param(accuracy, ["--only", "mnist", "--data-dir", "/no/such"], "/no/such: no such folder", id="folder"),
        pytest.param(front, ["--epochs", "0"], "at least 1 hidden unit, epoch", id="no epoch"),
        pytest.param(front, ["--data", "letters"], "'letters' is unknown", id="unknown data"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, capsys, module, words, message):
    with pytest.raises(SystemExit) as refused:
        module.main([str(tmp_path / "out"), *words])
    assert refused.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
