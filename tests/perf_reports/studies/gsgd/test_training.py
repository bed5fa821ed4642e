"""One run in a folder: its files, Ctrl-C in an epoch, resumption to the bit; and the command."""

import json
import os
import signal

import pytest
import torch

from tropigrad.perf_reports.studies import gsgd, runs
from tropigrad.perf_reports.studies.gsgd import methods
from tropigrad.perf_reports.studies.gsgd.methods import Recipe

from .conftest import blobs


def rows(folder):
    found = [json.loads(line) for line in (folder / runs.METRICS).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


def test_a_run_leaves_its_files(tmp_path):
    out = tmp_path / "deep" / "run"
    summary = gsgd.train(blobs(), out, Recipe(), epochs=3)
    assert not summary["interrupted"]
    assert sorted(path.name for path in out.iterdir()) == sorted(os.path.basename(path) for path in summary["files"])
    assert [row["iteration"] for row in rows(out)] == [1, 2, 3]
    saved = torch.load(out / runs.MODEL, weights_only=True)
    model = methods.network(Recipe(), blobs())
    model.load_state_dict(saved["state_dict"])
    right = (model(blobs().x_test).argmax(1) == blobs().y_test).double().mean().item()
    assert right == pytest.approx(summary["test_accuracy"])


@pytest.mark.parametrize("optimizer", methods.OPTIMIZERS)
def test_ctrl_c_in_an_epoch_and_a_resumption_change_no_bit(tmp_path, optimizer, monkeypatch):
    recipe = Recipe(optimizer=optimizer, batch=16, momentum=0.0 if optimizer == "path_sgd" else 0.9, lr=0.01)
    steps = []
    advance = methods.Training.advance

    def interrupted(training):
        steps.append(None)
        if len(steps) == 9:  # in the middle of the second epoch
            os.kill(os.getpid(), signal.SIGINT)
        return advance(training)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    gsgd.train(blobs(), whole, recipe, epochs=4)
    monkeypatch.setattr(methods.Training, "advance", interrupted)
    summary = gsgd.train(blobs(), parts, recipe, epochs=4)
    assert (summary["interrupted"], summary["epochs"], len(steps)) == (True, 1, 9)
    gsgd.train(blobs(), parts, recipe, epochs=4, resume=True)
    assert rows(parts) == rows(whole)
    ours, theirs = (torch.load(folder / runs.MODEL, weights_only=True)["state_dict"] for folder in (parts, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_killed_run_resumes_from_its_last_checkpoint(tmp_path, monkeypatch):
    def killed(done, total, what):
        if done == 2:
            raise MemoryError

    monkeypatch.setattr(runs, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(MemoryError):
        gsgd.train(blobs(), tmp_path / "parts", Recipe(), epochs=4, progress=killed)
    gsgd.train(blobs(), tmp_path / "parts", Recipe(), epochs=4, resume=True)
    gsgd.train(blobs(), tmp_path / "whole", Recipe(), epochs=4)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_another_recipe_is_not_resumed(tmp_path):
    gsgd.train(blobs(), tmp_path, Recipe(), epochs=1)
    with pytest.raises(runs.ResumeError, match=r"another setting: lr 0\.1, asked for 0\.2"):
        gsgd.train(blobs(), tmp_path, Recipe(lr=0.2), epochs=2, resume=True)


@pytest.mark.parametrize(
    ("recipe", "match"),
    [
        pytest.param(Recipe(network="rnn"), "network is 'rnn'; expected one of mlp, cnn", id="network"),
        pytest.param(Recipe(optimizer="adam"), "optimizer is 'adam'", id="optimizer"),
        pytest.param(Recipe(batch=0), "batch is 0", id="batch"),
        pytest.param(Recipe(lr=-1.0), "lr is -1", id="lr"),
        pytest.param(Recipe(spread=-1.0), "spread is -1", id="spread"),
        pytest.param(Recipe(optimizer="path_sgd", momentum=0.9), "neither momentum", id="path-sgd"),
        pytest.param(Recipe(network="cnn"), "three blobs has 17 features", id="no-image"),
    ],
)
def test_settings_that_do_not_fit_leave_nothing(tmp_path, recipe, match):
    with pytest.raises(ValueError, match=match):
        gsgd.train(blobs(17), tmp_path / "out", recipe)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------ the command


@pytest.fixture
def command():
    testing = pytest.importorskip("typer.testing", reason="typer makes the command")
    from tropigrad.cli import app

    return lambda *words: testing.CliRunner().invoke(app, ["train", "gsgd", *map(str, words)])


def test_command_trains_and_resumes(command, tmp_path):
    pytest.importorskip("sklearn", reason="scikit-learn carries the data")
    first = command("--data", "iris", "--out", tmp_path, "--epochs", 2, "--json")
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout)["epochs"] == 2
    second = command("--data", "iris", "--out", tmp_path, "--epochs", 3, "--resume")
    assert second.exit_code == 0, second.output
    assert "epochs         3 in" in second.stdout


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_the_command_with_130_and_it_resumes(command, tmp_path, monkeypatch, times):
    """Once, after the mini-batch under way; twice, at once, from the last checkpoint written before."""
    pytest.importorskip("sklearn", reason="scikit-learn carries the data")
    monkeypatch.setattr(runs, "CHECKPOINT_SECONDS", 0.0)
    advance, steps = methods.Training.advance, []

    def interrupted(training):
        steps.append(None)
        for _ in range(times if len(steps) == 3 else 0):
            os.kill(os.getpid(), signal.SIGINT)
        return advance(training)

    monkeypatch.setattr(methods.Training, "advance", interrupted)
    words = ("--data", "iris", "--out", tmp_path / "parts", "--epochs", 3)
    first = command(*words)
    assert first.exit_code == 130
    assert "--resume goes on" in (first.stdout if times == 1 else first.stderr)
    assert len(steps) == 3
    second = command(*words, "--resume")
    assert second.exit_code == 0, second.output
    command("--data", "iris", "--out", tmp_path / "whole", "--epochs", 3)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(("--data", "cifar10:/no/such/folder"), "/no/such/folder: no such folder", id="missing folder"),
        pytest.param(("--data", "iris", "--network", "cnn"), "iris has 4 features", id="no image"),
        pytest.param(("--data", "iris", "--epochs", "0"), "epochs is 0", id="epochs"),
        pytest.param(("--data", "iris", "--resume"), "no checkpoint to resume", id="nothing to resume"),
    ],
)
def test_command_refuses_in_one_line(command, tmp_path, words, message):
    pytest.importorskip("sklearn", reason="scikit-learn carries the data")
    result = command(*words, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()
