"""The objective that wins on held-out samples: what competes, who is left out, the files, exact resumption, Ctrl-C."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from tropigrad.nn import LinearMinMax, MaxPlusMLP
from tropigrad.perf_reports.data import load
from tropigrad.perf_reports.studies import maxplus, runs
from tropigrad.perf_reports.studies.maxplus import networks, objectives, training
from tropigrad.perf_reports.studies.maxplus.methods import quick_start, start
from tropigrad.perf_reports.studies.maxplus.minibatch import MiniBatchTraining

from .conftest import HIDDEN, inseparable, separable

SHORT = {"hidden": HIDDEN, "epochs": 6, "iterations": 30, "validation": 0.25}
GIVEN = {**SHORT, "epochs": 40, "temperature": 0.5, "rate": 0.01}  # which is not sought


def rows(folder):
    return [json.loads(line) for line in (folder / runs.METRICS).read_text().splitlines()]


def without_seconds(records):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in records]


def kept_model(folder):
    saved = torch.load(folder / runs.MODEL, weights_only=True)
    model = LinearMinMax(saved["config"]["in_features"], saved["config"]["hidden"], saved["config"]["classes"])
    model.load_state_dict(saved["state_dict"])
    return model


def accuracy(model, x, y):
    return (model(x).argmax(dim=1) == y).double().mean().item()


def test_the_one_that_is_right_most_often_on_held_out_samples_wins(tmp_path):
    data = inseparable()
    summary = maxplus.train_objective(data, tmp_path, **SHORT)
    told = {of["objective"]: of for of in summary["objectives"]}
    assert list(told) == ["worst", "mean", "cvar"]
    assert summary["validation_accuracy"] == max(of["validation_accuracy"] for of in told.values())
    assert told[summary["objective"]]["validation_accuracy"] == summary["validation_accuracy"]
    _, held_out, _ = training.hold_out(data, 0.25, 0)
    assert held_out is not None
    assert summary["validation_accuracy"] == accuracy(kept_model(tmp_path), *held_out)
    assert summary["test_accuracy"] == accuracy(kept_model(tmp_path), data.x_test, data.y_test)
    logged = rows(tmp_path)
    assert {row["objective"] for row in logged} == {"worst", "mean", "cvar"}
    of_winner = [row for row in logged if row["objective"] == summary["objective"]]
    assert max(row["validation_accuracy"] for row in of_winner) == summary["validation_accuracy"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(os.path.basename(p) for p in summary["files"])
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize("objective", ["mean", "cvar"])
def test_one_that_is_asked_for_has_no_rival(tmp_path, objective):
    summary = maxplus.train_objective(separable(), tmp_path, objective=objective, **SHORT)
    assert [of["objective"] for of in summary["objectives"]] == [summary["objective"]] == [objective]
    assert summary["objectives"][0]["iterations"] == 6
    text = "\n".join(maxplus.objective_lines(summary))
    assert ("the mean of a batch" if objective == "mean" else "the worst 10% of a batch") in text
    assert "right most often on" not in text


def test_without_held_out_samples_the_mean_is_taken_and_said(tmp_path):
    summary = maxplus.train_objective(separable(), tmp_path, **{**SHORT, "validation": 0.0})
    assert summary["objective"] == "mean"
    assert (summary["temperature"], summary["rate"]) == (objectives.TEMPERATURE, objectives.RATE)
    assert "mean, the mean of a batch: no sample is held out to choose by" in "\n".join(
        maxplus.objective_lines(summary)
    )


def test_what_is_given_is_not_sought(tmp_path):
    summary = maxplus.train_objective(
        separable(), tmp_path, objective="mean", temperature=0.3, rate=0.02, train_a=False, **SHORT
    )
    assert (summary["temperature"], summary["rate"]) == (0.3, 0.02)
    begun, _ = quick_start(training.hold_out(separable(), 0.25, 0)[0], HIDDEN, 0, 1.0, 1.0)
    assert torch.equal(kept_model(tmp_path).A, begun.A)


def test_a_start_at_another_scale_is_the_start_of_that_scale():
    data = separable()
    at_one, _ = start(data, HIDDEN, 0, 1.0, 1.0)
    at_64, _ = start(data, HIDDEN, 0, 64.0, 4.0)
    moved = objectives.rescaled(at_one, 64.0, 4.0, 1.0)
    for name in ("A", "W1"):
        assert torch.equal(moved.state_dict()[name], at_64.state_dict()[name])
    torch.testing.assert_close(moved.W2, at_64.W2)
    assert at_one.A[0, 0] == 1


@pytest.mark.parametrize(
    ("accuracy", "leader", "samples", "expected"),
    [
        pytest.param(0.90, 0.95, 6000, True, id="many samples: ten standard errors"),
        pytest.param(0.94, 0.95, 126, False, id="few samples: half a standard error"),
        pytest.param(0.992, 1.0, 126, False, id="one of 126 wrong beside none"),
        pytest.param(0.95, 0.95, 6000, False, id="equal"),
        pytest.param(0.5, 1.0, 126, True, id="half beside all"),
    ],
)
def test_who_is_behind(accuracy, leader, samples, expected):
    assert objectives.is_behind(accuracy, leader, samples) is expected


def test_one_that_is_far_behind_is_left_out_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr(objectives, "is_behind", lambda accuracy, leader, samples: accuracy < leader)
    data, settings = inseparable(), {**SHORT, "epochs": 40}
    summary = maxplus.train_objective(data, tmp_path, alpha=0.02, **settings)
    ended = {of["objective"]: of["left_out"] for of in summary["objectives"]}
    assert ended["worst"] is False
    assert list(ended.values()).count(True) <= 1
    for of in summary["objectives"]:
        if of["left_out"]:
            assert 10 <= of["iterations"] < 40
            assert "left out as too far behind" in "\n".join(maxplus.objective_lines(summary))


@pytest.mark.parametrize(("samples", "epochs"), [(60_000, 10), (1131, 166), (93, 300)])
def test_few_samples_are_seen_more_often(samples, epochs):
    assert objectives.epochs_for(samples) == epochs


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(SHORT, id="all objectives"),
        pytest.param({"sparse": True, "objective": "mean"}, id="sparse"),
        pytest.param({"sparse": True, "objective": "mean", "rule": "sgd", "momentum": 0.5}, id="sparse, momentum"),
        pytest.param({"network": "max-plus-mlp", "sparse": True, "rule": "adagrad"}, id="max-plus MLP"),
        pytest.param({"network": "residual"}, id="residual"),
    ],
)
def test_ctrl_c_and_resumption_go_through_the_same_iterates(tmp_path, settings):
    settings = {**GIVEN, **settings}
    told = []

    def interrupt(done, total, what):
        told.append(done)
        if len(told) == 12:
            os.kill(os.getpid(), signal.SIGINT)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    first = maxplus.train_objective(inseparable(), parts, progress=interrupt, **settings)
    assert first["interrupted"]
    assert "--resume goes on" in "\n".join(maxplus.objective_lines(first))
    second = maxplus.train_objective(inseparable(), parts, resume=True, **settings)
    once = maxplus.train_objective(inseparable(), whole, **settings)
    assert not second["interrupted"]
    assert without_seconds(rows(parts)) == without_seconds(rows(whole))
    assert (second["objective"], second["test_accuracy"]) == (once["objective"], once["test_accuracy"])
    ours, theirs = (torch.load(folder / runs.MODEL, weights_only=True)["state_dict"] for folder in (parts, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


KILLED = """
import sys
from pathlib import Path
from tropigrad.perf_reports.data import load
from tropigrad.perf_reports.studies import maxplus, runs
runs.CHECKPOINT_SECONDS = 0.0
maxplus.train_objective(
    load("iris"), Path(sys.argv[1]), hidden=12, epochs=2000, iterations=50, temperature=0.125, rate=0.003
)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_killed_run_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="scikit-learn carries the data")
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < until:
        if (tmp_path / runs.METRICS).is_file() and len(rows(tmp_path)) > 100:
            break
        time.sleep(0.02)
    assert process.poll() is None, "it ended before it could be killed"
    process.kill()
    process.wait()
    before = rows(tmp_path)
    stop = []

    def interrupt(done, total, what):
        stop.append(done)
        if len(stop) == 20:
            os.kill(os.getpid(), signal.SIGINT)

    settings = {"hidden": 12, "epochs": 2000, "iterations": 50, "temperature": 0.125, "rate": 0.003}
    maxplus.train_objective(load("iris"), tmp_path, resume=True, progress=interrupt, **settings)
    after = rows(tmp_path)
    assert without_seconds(after[:100]) == without_seconds(before[:100])
    assert len(after) > 100


def test_another_setting_is_not_resumed(tmp_path):
    maxplus.train_objective(separable(), tmp_path, objective="mean", **SHORT)
    with pytest.raises(runs.ResumeError, match=r"alpha 0\.1, asked for 0\.2"):
        maxplus.train_objective(separable(), tmp_path, objective="mean", alpha=0.2, resume=True, **SHORT)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        pytest.param({"hidden": 61}, "61 hidden units for 3 classes", id="too many units"),
        pytest.param({"epochs": 0}, "epochs is 0", id="no epoch"),
        pytest.param({"iterations": 0}, "iterations is 0", id="no iteration"),
        pytest.param({"alpha": 0.0}, r"alpha is 0\.0; expected a share in \(0, 1\]", id="no share"),
        pytest.param({"alpha": math.nan}, "alpha is nan", id="share"),
        pytest.param({"temperature": -1.0, "rate": 0.1}, "temperature", id="temperature"),
        pytest.param({"rate": -1.0, "temperature": 0.1}, "rate", id="rate"),
        pytest.param({"rule": "newton"}, "newton", id="rule"),
        pytest.param({"validation": 1.0}, "expected a share", id="all held out"),
        pytest.param({"objective": "median"}, "objective is 'median'", id="objective"),
        pytest.param(
            {"momentum": 0.9}, "momentum is 0.9 with rule 'adam'; steps take one with sgd or rmsprop", id="no momentum"
        ),
        pytest.param(
            {"momentum": 0.9, "rule": "rmsprop", "sparse": True}, "sparse steps take one with sgd", id="sparse momentum"
        ),
        pytest.param(
            {"momentum": 1.0, "rule": "sgd"}, r"momentum is 1.0; expected a number in \[0, 1\)", id="momentum"
        ),
        pytest.param({"shifts": 1}, "has 4 features; expected square images of more than 2 pixels", id="shifts"),
        pytest.param({"shifts": 1, "features": "components"}, "expected 'pixels', which can be moved", id="not pixels"),
        pytest.param(
            {"network": "transformer"}, "network is 'transformer'; expected one of linear-min-max", id="network"
        ),
        pytest.param({"network": "residual", "scale": 2.0}, "scale is 2.0 with network 'residual'", id="scale"),
        pytest.param({"network": "max-plus-mlp", "train_a": True}, "train_a is True", id="A of none"),
    ],
)
def test_settings_that_do_not_fit_leave_nothing(tmp_path, settings, match):
    with pytest.raises(ValueError, match=match):
        maxplus.train_objective(separable(), tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("network", networks.NETWORKS)
def test_a_network_is_made_again_from_the_model_that_it_left(tmp_path, network, sparse):
    data = separable()
    summary = maxplus.train_objective(data, tmp_path, network=network, sparse=sparse, **GIVEN)
    asked = ["mean", "cvar"] if network != "linear-min-max" else ["worst", "mean", "cvar"]
    assert [of["objective"] for of in summary["objectives"]] == asked
    model = maxplus.load_model(tmp_path / runs.MODEL)
    assert accuracy(model, data.x_test, data.y_test) == summary["test_accuracy"] > 0.5
    assert any(getattr(module, "sparse", False) for module in model.modules()) is sparse
    text = "\n".join(maxplus.objective_lines(summary))
    units = {
        "linear-min-max": "12 hidden units",
        "max-plus-mlp": "max-plus-mlp of 12, 6, 3",
        "residual": "residual of 12, 3",
    }
    assert units[network] in text


def test_a_max_plus_mlp_is_one_of_the_library(tmp_path):
    maxplus.train_objective(separable(), tmp_path, objective="mean", network="max-plus-mlp", **GIVEN)
    saved = torch.load(tmp_path / runs.MODEL, weights_only=True)
    config = saved["config"]
    model = MaxPlusMLP(config["in_features"], config["sizes"], config["classes"])
    model.load_state_dict(saved["state_dict"])
    x = separable().x_test
    assert torch.equal(model(x), maxplus.load_model(tmp_path / runs.MODEL)(x))


def test_a_file_that_is_no_model_is_named(tmp_path):
    torch.save({"config": {"hidden": 3}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="a model without in_features, classes; expected"):
        maxplus.load_model(tmp_path / "other.pt")


@pytest.fixture
def command():
    testing = pytest.importorskip("typer.testing", reason="typer makes the command")
    pytest.importorskip("sklearn", reason="scikit-learn carries the data")
    from tropigrad.cli import app

    return lambda *words: testing.CliRunner().invoke(app, ["train", "maxplus", *map(str, words)])


def test_command_picks_an_objective_by_default_and_says_so(command, tmp_path):
    words = ("--data", "iris", "--hidden", 12, "--epochs", 3, "--iterations", 9, "--out", tmp_path)
    result = command(*words)
    assert result.exit_code == 0, result.output
    assert "right most often on 12 training samples held out" in result.stdout
    summary = json.loads(command(*words, "--json").stdout)
    assert summary["objective"] in ("mean", "cvar", "worst")
    assert summary["asked"] == "auto"


def test_command_takes_every_option(command, tmp_path):
    words = ("--objective", "cvar", "--alpha", 0.3, "--temperature", 0.2, "--rate", 0.01, "--rule", "rmsprop")
    result = command("--data", "iris", *words, "--epochs", 2, "--fix-a", "--out", tmp_path, "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    taken = [summary[name] for name in ("objective", "alpha", "temperature", "rate", "rule", "epochs", "train_a")]
    assert taken == ["cvar", 0.3, 0.2, 0.01, "rmsprop", 2, False]


def test_command_reaches_the_settings_of_the_class(command, tmp_path):
    words = ("--data", "digits", "--objective", "mean", "--hidden", 20, "--temperature", 0.125, "--rate", 0.003)
    result = command(*words, "--epochs", 2, "--shifts", 1, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    data, held_out, _ = training.hold_out(load("digits"), 0.1, 0)
    assert held_out is not None
    model, _ = quick_start(data, 20, 0, 1.0, 1.0)
    model.A.requires_grad_(True)
    settings = {"temperature": 1 / 8, "rate": 3e-3, "rate_of_a": 1e-3, "epochs": 2, "average": 0.998, "shifts": 1}
    MiniBatchTraining(model, data, validation=(held_out.x, held_out.y), **settings).run()
    for name, value in maxplus.load_model(tmp_path / runs.MODEL).state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--network", "residual"),
            "--objective worst with --network residual; expected --objective mean, cvar or auto",
        ),
        (("--shifts", 1, "--sparse"), "--objective worst with --shifts and --sparse, which mini-batches alone take"),
        (("--momentum", 0.5), "--objective worst with --momentum, which mini-batches alone take"),
    ],
    ids=["network", "shifts and sparse", "momentum"],
)
def test_the_worst_sample_takes_no_setting_of_others(command, tmp_path, words, message):
    result = command("--data", "iris", "--objective", "worst", *words, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_worst_sample_is_one_flag(command, tmp_path):
    words = ("--data", "iris", "--objective", "worst", "--hidden", 12, "--iterations", 9, "--json")
    summary = json.loads(command(*words, "--out", tmp_path / "command").stdout)
    direct = maxplus.train(load("iris"), tmp_path / "direct", hidden=12, iterations=9)
    for name in ("scale", "margin", "train_a", "best_loss", "test_accuracy", "worst_sample"):
        assert summary[name] == direct[name]
