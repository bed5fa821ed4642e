"""The comparison: its records, table and picture; what is trained already is not trained again."""

import json

import pytest

from tropigrad.perf_reports.studies.ftprop import METHODS, comparison, methods

from .conftest import blobs, pictures


@pytest.fixture
def small(monkeypatch):
    """Every data set is a small one, and no network convolves."""
    monkeypatch.delenv("TROPIGRAD_DATA", raising=False)
    sets = {"digits": blobs(name="digits"), "mnist": blobs(name="mnist"), "cifar10": pictures()}
    monkeypatch.setattr(comparison.data, "load", lambda name, folder: sets[name])


def records(out):
    return [json.loads(text) for text in (out / "comparison.jsonl").read_text().splitlines()]


def test_the_command_writes_records_table_and_picture(small, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib draws it")
    assert comparison.main([str(tmp_path), "--quick", "--seeds", "2"]) == 0
    run, head, *rows = records(tmp_path)
    assert (run["kind"], head["kind"], head["seeds"]) == ("run", "experiment", 2)
    assert len(rows) == 2 * 2 * len(METHODS)
    text = (tmp_path / "comparison.md").read_text()
    assert text in capsys.readouterr().out
    assert all(f"| {name} | " in text for name in METHODS)
    lasts = [r["test_accuracy"] for r in rows if r["rule"] == "sste" and r["iteration"] == 2]
    assert comparison.spread(lasts) in text
    assert "soft_hinge and sste are not ranked" in text or "is ahead of" in text
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_trained_is_not_trained_again(small, tmp_path, monkeypatch):
    assert comparison.main([str(tmp_path), "--quick", "--seeds", "1"]) == 0
    before = records(tmp_path)

    def forbidden(training):
        raise AssertionError("a step was taken")

    monkeypatch.setattr(methods.Training, "advance", forbidden)
    assert comparison.main([str(tmp_path), "--quick", "--seeds", "1"]) == 0
    assert records(tmp_path) == before


def test_an_interrupted_experiment_goes_on(small, tmp_path, monkeypatch):
    words = [str(tmp_path / "parts"), "--quick", "--seeds", "1"]
    train = comparison.train

    def cut(*arguments, **settings):
        return {**train(*arguments, **settings), "interrupted": True}

    monkeypatch.setattr(comparison, "train", cut)
    assert comparison.main(words) == 130
    assert not (tmp_path / "parts" / "comparison.jsonl").exists()
    monkeypatch.setattr(comparison, "train", train)
    assert comparison.main(words) == 0
    assert comparison.main([*words, "--only", "digits", "--epochs", "1"]) == 0  # another setting: anew
    assert {r["iteration"] for r in records(tmp_path / "parts") if r["kind"] == "training"} == {1}


def test_a_part_of_cifar10_and_a_short_schedule_are_named_as_such(small, tmp_path):
    experiment = comparison.Experiment("cifar10", "mlp", 1, per_class=2)
    dataset = comparison.loaded(experiment, tmp_path, quick=True)
    assert dataset.name == "cifar10, 20 of its images"
    rows = comparison.run(experiment, dataset, tmp_path / "few", seeds=1)
    assert "cifar10, 20 of its images" in comparison.table(rows)
    assert "a short schedule: the paper's is 300" in methods.Recipe("convnet8", epochs=2).schedule


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["--only", "rnn"], "invalid choice: 'rnn'", id="unknown experiment"),
        pytest.param(["--epochs", "3"], "expected --only NAME", id="epochs of all"),
        pytest.param(["--only", "mnist", "--data-dir", "/no/such/folder"], "/no/such/folder", id="missing folder"),
    ],
)
def test_the_command_refuses_in_one_line(tmp_path, capsys, words, message):
    with pytest.raises(SystemExit) as refused:
        comparison.main([str(tmp_path / "out"), "--quick", *words])
    assert refused.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.jsonl"))
