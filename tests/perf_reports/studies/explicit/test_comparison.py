"""The command: what it writes, its tables, and what it refuses."""

import json
from functools import partial

import pytest

from tropigrad.nn import ExplicitSoftmax
from tropigrad.perf_reports.studies.explicit import comparison, drawing, language, warm_starts
from tropigrad.perf_reports.studies.explicit.methods import Arm


def classified(seed, accuracy):
    return {
        "kind": "classification",
        "dataset": "blobs",
        "method": "explicit",
        "role": "ours",
        "seed": seed,
        "settings": {},
        "seconds": 0.002,
        "tuning_seconds": 0.5,
        "cross_entropy": 0.25,
        "accuracy": accuracy,
    }


def raced(axis, size, ratio):
    return {
        "kind": "race",
        "dataset": "topics",
        "N": 100,
        "D": 50,
        "C": 7,
        axis: size,
        "axis": axis,
        "explicit_seconds": 0.01,
        **{f"{part}_loss": 0.5 for part in ("train", "valid")},
        **{f"{part}_seconds": ratio and 0.01 * ratio for part in ("train", "valid")},
        **{f"{part}_steps": ratio and 30 for part in ("train", "valid")},
        **{f"{part}_ratio": ratio for part in ("train", "valid")},
    }


def spoken(method, role, context, loss):
    return {
        "kind": "language",
        "dataset": "text",
        "unit": "words",
        "vocabulary": 9,
        "tokens": 1000,
        "method": method,
        "role": role,
        "context": context,
        "counting_seconds": 0.01,
        "searching_seconds": 0.0,
        "cross_entropy": loss,
        "perplexity": 9.5,
    }


def test_a_table_has_mean_and_spread_of_the_seeds():
    text = comparison.table([classified(0, 0.8), classified(1, 0.9)])
    assert "| explicit | 2.00 ms | 500 ms | 0.850 ± 0.071 | 0.250 ± 0.000 | 2 |" in text.splitlines()


def test_a_race_that_adam_does_not_finish_says_so():
    lines = comparison.table([raced("C", 7, 3.0), raced("C", 70, None)]).splitlines()
    assert f"| topics | 100 | 50 | 7 | 10.0 ms{' | 0.500 | 30.0 ms, 30 steps | 3' * 2} |" in lines
    assert f"| topics | 100 | 50 | 70 | 10.0 ms{' | 0.500 | not reached | ' * 2} |" in lines


def test_pictures_are_drawn_of_what_there_is(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib draws it")
    records = [raced("C", 7, 3.0), raced("C", 70, 9.0), raced("N", 1000, None)]
    records += [spoken("cat, K = 1, the paper's form", "paper", 1, 6.0), spoken("Kneser–Ney, 2-gram", "peer", 1, 5.0)]
    drawn = drawing.draw(records, tmp_path)
    assert [path.name for path in drawn] == ["growth.png", "language.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_the_command_writes_records_table_and_pictures(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn", reason="scikit-learn carries the data")
    pytest.importorskip("matplotlib", reason="matplotlib draws it")
    monkeypatch.delenv("TROPIGRAD_DATA", raising=False)
    few = [Arm("explicit", "ours", ExplicitSoftmax, {"scale": (1.0, 32.0)})]
    monkeypatch.setattr(comparison, "arms", lambda *settings: few)
    assert comparison.main([str(tmp_path), "--quick", "--only", "classification"]) == 0
    head, record = (json.loads(line) for line in (tmp_path / "classification.jsonl").read_text().splitlines())
    assert (head["kind"], head["clock"]) == ("run", "processor time, one thread")
    assert record["settings"] == {"scale": "32.0"}
    assert record["accuracy"] > 0.8
    monkeypatch.setattr(comparison, "after_steps", partial(warm_starts.after_steps, rates=(0.03,)))
    monkeypatch.setattr(comparison, "optima", lambda *settings: [])
    assert comparison.main([str(tmp_path), "--quick", "--only", "warm"]) == 0
    assert (tmp_path / "starts.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "comparison.md").read_text()
    assert "| explicit | " in text
    assert "one layer: training CE / test CE / test accuracy" in text
    assert text in capsys.readouterr().out


def test_texts_and_plays_of_a_folder_are_read(tmp_path, play, monkeypatch):
    pytest.importorskip("sklearn", reason="scikit-learn carries the data")
    (tmp_path / "tinyshakespeare").mkdir()
    (tmp_path / "tinyshakespeare" / "input.txt").write_text(play)
    few = (language.Form("cat", 2), language.Form("suffix", 2, True))
    monkeypatch.setattr(language, "FORMS", {"characters": few})
    records = list(comparison.language(comparison.Inputs(tmp_path, quick=True)))
    assert {r["kind"] for r in records} == {"language", "warm_language"}
    assert {r["dataset"] for r in records} == {"tinyshakespeare"}
    assert comparison.Inputs(tmp_path, quick=True).speakers(0).classes == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["--only", "letters"], "invalid choice: 'letters'", id="unknown experiment"),
        pytest.param(["--data-dir", "/no/such/folder"], "/no/such/folder", id="missing folder"),
    ],
)
def test_the_command_refuses_in_one_line(tmp_path, capsys, monkeypatch, words, message):
    pytest.importorskip("sklearn", reason="scikit-learn carries the data")
    monkeypatch.setattr(comparison, "arms", lambda *settings: [])
    with pytest.raises(SystemExit) as refused:
        comparison.main([str(tmp_path / "out"), "--quick", *words])
    assert refused.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.jsonl"))
