"""A run in a folder: one network or several side by side, Ctrl-C, resumption to the bit; and the command."""

import json
import os
import signal

import pytest
import torch

from tropigrad.perf_reports.studies import ftprop, runs
from tropigrad.perf_reports.studies.ftprop import methods
from tropigrad.perf_reports.studies.ftprop.methods import Recipe

from .conftest import blobs

SHORT = Recipe(epochs=3, batch=16)


def rows(folder):
    records = [json.loads(line) for line in (folder / runs.METRICS).read_text().splitlines()]
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in records]


def test_one_network_is_trained_and_left(tmp_path):
    out = tmp_path / "deep" / "run"
    summary = ftprop.train(blobs(), out, SHORT)
    assert not summary["interrupted"]
    assert sorted(path.name for path in out.iterdir()) == sorted(os.path.basename(path) for path in summary["files"])
    assert [row["iteration"] for row in rows(out)] == [1, 2, 3]
    saved = torch.load(out / runs.MODEL, weights_only=True)
    training = methods.Training(SHORT, blobs())
    training.model.load_state_dict(saved["state_dicts"]["soft_hinge"])
    assert training.test_accuracy() == rows(out)[-1]["test_accuracy"]
    assert "test accuracy" in "\n".join(ftprop.summary_lines(summary))


def test_methods_side_by_side_are_what_each_is_alone(tmp_path):
    pair = ("soft_hinge", "relu")
    summary = ftprop.train(blobs(), tmp_path / "pair", SHORT, methods=pair, seeds=2)
    assert [(row["rule"], row["seed"]) for row in rows(tmp_path / "pair")] == [
        (name, seed) for seed in (0, 1) for _ in range(3) for name in pair
    ]
    ftprop.train(blobs(), tmp_path / "alone", SHORT)
    first = [row for row in rows(tmp_path / "pair") if (row["rule"], row["seed"]) == ("soft_hinge", 0)]
    assert first == rows(tmp_path / "alone")
    lines = ftprop.summary_lines(summary)
    assert any(line.startswith("soft_hinge ") and " ± " in line and "MB" in line for line in lines)


@pytest.mark.parametrize("at", [9, 25], ids=["first-seed", "second-seed"])
def test_ctrl_c_in_an_epoch_and_a_resumption_change_no_bit(tmp_path, at, monkeypatch):
    settings = {"methods": ("hinge", "saturated_relu"), "seeds": 2}
    steps = []
    advance = methods.Training.advance

    def interrupted(training):
        steps.append(None)
        if len(steps) == 2 * at:
            os.kill(os.getpid(), signal.SIGINT)
        return advance(training)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    ftprop.train(blobs(), whole, SHORT, **settings)
    monkeypatch.setattr(methods.Training, "advance", interrupted)
    summary = ftprop.train(blobs(), parts, SHORT, **settings)
    assert (summary["interrupted"], len(steps)) == (True, 2 * at)
    assert ftprop.summary_lines(summary)
    ftprop.train(blobs(), parts, SHORT, **settings, resume=True)
    assert rows(parts) == rows(whole)
    ours, theirs = (torch.load(folder / runs.MODEL, weights_only=True)["state_dicts"] for folder in (parts, whole))
    assert all(torch.equal(ours[m][name], theirs[m][name]) for m in theirs for name in theirs[m])


def test_another_recipe_is_not_resumed(tmp_path):
    ftprop.train(blobs(), tmp_path, SHORT)
    with pytest.raises(runs.ResumeError, match=r"another setting: epochs 3, asked for 4"):
        ftprop.train(blobs(), tmp_path, Recipe(epochs=4, batch=16), resume=True)


def test_a_table_names_each_method_and_says_whether_two_may_be_ranked(tmp_path):
    summary = ftprop.train(blobs(), tmp_path, SHORT, methods=ftprop.METHODS, seeds=2)
    text = "\n".join(ftprop.summary_lines(summary))
    assert all(f"\n{name} " in text for name in ftprop.METHODS)
    assert "2 seeds, mean ± standard deviation" in text
    assert "not ranked" in text or "ahead of" in text


@pytest.mark.parametrize(
    ("recipe", "match"),
    [
        pytest.param(Recipe(network="rnn"), "net is 'rnn'; expected one of mlp, convnet4", id="net"),
        pytest.param(
            Recipe(rule="softly"), "rule is 'softly'; expected one of .*; or relu or saturated_relu", id="rule"
        ),
        pytest.param(
            Recipe(rule="hinge", activation="quantized_relu"), "for kind 'staircase'", id="rule-of-a-staircase"
        ),
        pytest.param(Recipe(activation="tanh"), "activation is 'tanh'", id="activation"),
        pytest.param(Recipe(epochs=0), "epochs is 0", id="epochs"),
        pytest.param(Recipe(batch=0), "batch is 0", id="batch"),
    ],
)
def test_settings_that_do_not_fit_leave_nothing(tmp_path, recipe, match):
    with pytest.raises(ValueError, match=match):
        ftprop.train(blobs(17), tmp_path / "out", recipe)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------ the command


@pytest.fixture
def command():
    testing = pytest.importorskip("typer.testing", reason="typer makes the command")
    pytest.importorskip("sklearn", reason="scikit-learn carries the data")
    from tropigrad.cli import app

    return lambda *words: testing.CliRunner().invoke(app, ["train", "ftprop", *map(str, words)])


def test_command_sets_the_rules_side_by_side(command, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib draws it")
    done = command("--data", "iris", "--epochs", 2, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert all(f"\n{name} " in done.stdout for name in ftprop.METHODS)
    assert "3 seeds" in done.stdout
    assert (tmp_path / runs.PLOT).read_bytes().startswith(b"\x89PNG")


def test_command_trains_one_and_resumes(command, tmp_path, monkeypatch):
    words = ("--data", "iris", "--rule", "sste", "--epochs", 2, "--out", tmp_path, "--json")
    first = command(*words)
    assert first.exit_code == 0, first.output
    summary = json.loads(first.stdout)
    assert (summary["methods"], summary["seeds"], len(summary["rows"])) == (["sste"], 1, 2)
    second = command(*words, "--resume")
    assert json.loads(second.stdout)["rows"] == summary["rows"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(("--data", "cifar10:/no/such/folder"), "/no/such/folder: no such folder", id="missing folder"),
        pytest.param(("--data", "iris", "--rule", "softly"), "rule is 'softly'", id="rule"),
        pytest.param(("--data", "iris", "--epochs", "0"), "epochs is 0", id="epochs"),
        pytest.param(("--data", "iris", "--seeds", "0"), "seeds is 0", id="seeds"),
        pytest.param(("--data", "iris", "--resume"), "no checkpoint to resume", id="nothing to resume"),
    ],
)
def test_command_refuses_in_one_line(command, tmp_path, words, message):
    done = command(*words, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert message in done.stderr
    assert not (tmp_path / "out").exists()
