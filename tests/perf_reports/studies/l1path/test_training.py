"""`train l1path`: its files and lines, Ctrl-C, resumption to the bit; and the command."""

import json
import os
import signal
from typing import Any

import pytest
import torch

from tropigrad.optim import ParetoFront
from tropigrad.optim.l1_continuation import compaction
from tropigrad.perf_reports.studies import l1path, runs
from tropigrad.perf_reports.studies.l1path import methods, training
from tropigrad.perf_reports.studies.l1path.methods import Recipe

from .conftest import blobs

SHORT: dict[str, Any] = {"points": 4, "first_steps": 6, "correctors": 2}


@pytest.fixture(autouse=True)
def one_timing(monkeypatch):
    """One short timing of the compact network is enough: each takes a second."""
    monkeypatch.setattr(training, "_MULTIPLES", (4,))
    monkeypatch.setattr(compaction, "_BUDGET_S", 0.02)


def rows(folder):
    logged = [json.loads(line) for line in (folder / runs.METRICS).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in logged]


@pytest.mark.parametrize("method", methods.METHODS)
def test_a_walk_leaves_its_files_and_tells_its_points(tmp_path, method):
    out, lines = tmp_path / "deep" / "run", []
    summary = l1path.train(blobs(), out, Recipe(method, **SHORT), tell=lines.append)
    assert not summary["interrupted"]
    assert all(os.path.isfile(path) for path in summary["files"])
    logged = rows(out)
    assert len(logged) == len(lines) == summary["reached"]
    assert [line.split(":")[0] for line in lines] == [f"point {i + 1} of 4" for i in range(len(lines))]
    for line, row in zip(lines, logged, strict=True):
        assert f"loss {row['loss']:.4g}, {row['accuracy']:.1%} right" in line
        assert f"l1 {row['l1']:.4g}, {row['nnz']} nonzeros, lambda {row['lam']:.3g}" in line
    front = ParetoFront.open(out / training.FRONT, methods.network(blobs(), 0))
    model = front.load(summary["knee"]["point"])
    task = methods.Task.of(blobs(), Recipe())
    assert methods.accuracy(model, task) == summary["knee"]["test_accuracy"]
    assert summary["compact"]["largest_difference"] < 1e-6
    assert summary["compact"]["multiple_of"] == 4


def test_ctrl_c_keeps_the_points_and_a_resumption_changes_no_bit(tmp_path):
    told = []

    def interrupted(done, total, what):
        if done == 2 and not told:
            told.append(what)
            os.kill(os.getpid(), signal.SIGINT)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    l1path.train(blobs(), whole, Recipe(**SHORT))
    summary = l1path.train(blobs(), parts, Recipe(**SHORT), progress=interrupted)
    assert (summary["interrupted"], summary["reached"]) == (True, 2)
    assert "interrupted, --resume goes on" in l1path.summary_lines(summary)[0]
    assert rows(parts) == rows(whole)[:2]
    lines = []
    l1path.train(blobs(), parts, Recipe(**SHORT), resume=True, tell=lines.append)
    assert [line.split(":")[0] for line in lines] == ["point 3 of 4", "point 4 of 4"]
    assert rows(parts) == rows(whole)
    with pytest.raises(ValueError, match="of another run"):
        l1path.train(blobs(), parts, Recipe(**{**SHORT, "correctors": 3}), resume=True)


def test_the_speed_is_worded_as_it_was_measured(tmp_path):
    summary = l1path.train(blobs(), tmp_path, Recipe(**SHORT))

    def last_words(low, speedup, high):
        compact = {**summary["compact"], "speedup_low": low, "speedup": speedup, "speedup_high": high}
        return l1path.summary_lines({**summary, "compact": compact})[2]

    assert last_words(1.9, 2.0, 2.1).endswith("parameters, 2.00 × as fast")
    assert last_words(0.7, 0.8, 0.9).endswith("parameters, 0.80 × as fast")
    assert "as fast as before" in last_words(0.9, 1.05, 1.1)


@pytest.mark.parametrize(
    ("recipe", "match"),
    [
        pytest.param(Recipe("adam"), "method is 'adam'; expected one of held, mpg, sweep", id="method"),
        pytest.param(Recipe(points=1), "points is 1", id="points"),
        pytest.param(Recipe(batch=0), "batch is 0", id="batch"),
        pytest.param(Recipe(h=-1.0), "h is -1", id="h"),
    ],
)
def test_settings_that_do_not_fit_leave_nothing(tmp_path, recipe, match):
    with pytest.raises(ValueError, match=match):
        l1path.train(blobs(), tmp_path / "out", recipe)
    assert not (tmp_path / "out").exists()


def test_the_paper_starts_iris_at_a_tenth_of_the_identity():
    start = methods.paper_start(blobs(features=4)).state_dict()
    assert torch.equal(start["0.weight"], 0.1 * torch.eye(4))
    assert torch.equal(start["2.weight"], 0.1 * torch.eye(4))
    assert not start["4.weight"].any()


# ------------------------------------------------------------------------------------------------ the command


@pytest.fixture
def command():
    testing = pytest.importorskip("typer.testing", reason="typer makes the command")
    from tropigrad.cli import app

    return lambda *words: testing.CliRunner().invoke(app, ["train", "l1path", *map(str, words)])


def test_the_command_shows_points_where_stderr_is_no_terminal(command, tmp_path):
    pytest.importorskip("sklearn", reason="scikit-learn carries the data")
    words = ("--data", "iris", "--out", tmp_path, "--points", 3, "--first-steps", 3, "--correctors", 2)
    done = command(*words)
    assert done.exit_code == 0, done.output
    assert [line.split(":")[0] for line in done.stderr.splitlines() if line.startswith("point")] == [
        f"point {i} of 3" for i in (1, 2, 3)
    ]
    assert "of the weights; compact: " in done.stdout
    again = command(*words, "--resume", "--json")
    assert json.loads(again.stdout)["reached"] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(("--data", "cifar10:/no/such/folder"), "/no/such/folder: no such folder", id="missing folder"),
        pytest.param(("--data", "iris", "--h", "0"), "h is 0", id="h"),
        pytest.param(("--data", "iris", "--resume"), "no checkpoint to resume", id="nothing to resume"),
    ],
)
def test_command_refuses_in_one_line(command, tmp_path, words, message):
    pytest.importorskip("sklearn", reason="scikit-learn carries the data")
    result = command(*words, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()
