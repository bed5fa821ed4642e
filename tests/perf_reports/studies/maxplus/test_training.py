"""One run in a folder: its files, the iterate that is kept, exact resumption, Ctrl-C; and the command."""

import json
import math
import os
import signal

import pytest
import torch

from tropigrad.nn import LinearMinMax, WorstSampleLoss
from tropigrad.optim import WorstSampleSubgradient
from tropigrad.perf_reports.data import Dataset
from tropigrad.perf_reports.studies import maxplus, runs
from tropigrad.perf_reports.studies.maxplus import methods, training

from .conftest import HIDDEN, inseparable, separable


def rows(folder):
    return [json.loads(line) for line in (folder / runs.METRICS).read_text().splitlines()]


def without_seconds(found):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


def test_a_run_leaves_its_files(tmp_path):
    out = tmp_path / "deep" / "run"
    summary = maxplus.train(inseparable(), out, hidden=HIDDEN, iterations=30, validation=0)
    assert summary["iterations"] == 30
    assert not summary["interrupted"]
    assert sorted(path.name for path in out.iterdir()) == sorted(os.path.basename(path) for path in summary["files"])
    found = rows(out)
    assert [row["iteration"] for row in found] == list(range(31))
    saved = torch.load(out / runs.MODEL, weights_only=True)
    model = LinearMinMax(saved["config"]["in_features"], saved["config"]["hidden"], saved["config"]["classes"])
    model.load_state_dict(saved["state_dict"])
    data = inseparable()
    loss = WorstSampleLoss(methods.MARGIN)(model(data.x_train), data.y_train)
    assert loss.item() == summary["best_loss"] == min(row["loss"] for row in found)


def kept_model(folder):
    saved = torch.load(folder / runs.MODEL, weights_only=True)
    model = LinearMinMax(saved["config"]["in_features"], saved["config"]["hidden"], saved["config"]["classes"])
    model.load_state_dict(saved["state_dict"])
    return model


def accuracy(model, x, y):
    return (model(x).argmax(dim=1) == y).double().mean().item()


def confused():
    """Where the nearest medoid does well, and an outlier of each class with another's label leads training astray."""
    data = separable("wrong labels")
    y = data.y_train.clone()
    y[:12] = (y[:12] + 1) % 3
    return Dataset(data.x_train, y, data.x_test, data.y_test, data.name)


@pytest.mark.parametrize("keep", ["validation", "loss"])
def test_the_iterate_that_is_asked_for_is_kept(tmp_path, keep):
    data = confused()
    summary = maxplus.train(data, tmp_path, hidden=9, iterations=150, validation=0.3, keep=keep)
    found = rows(tmp_path)
    assert summary["kept"] == keep
    assert summary["validation_samples"] == 18
    assert summary["test_accuracy"] == accuracy(kept_model(tmp_path), data.x_test, data.y_test)
    by = "validation_accuracy" if keep == "validation" else "loss"
    best = max(row[by] for row in found) if keep == "validation" else min(row[by] for row in found)
    (at,) = (row for row in found if row["iteration"] == summary["kept_iteration"])  # of so few, each is logged
    assert at[by] == best
    assert at["test_accuracy"] == summary["test_accuracy"]
    assert summary["validation_accuracy"] == at["validation_accuracy"]


def test_a_run_that_helps_nobody_says_so_and_keeps_the_start(tmp_path):
    data = confused()
    summary = maxplus.train(data, tmp_path, hidden=9, iterations=100, validation=0.5, seed=3)
    assert summary["best_loss"] < summary["first_loss"]
    assert summary["kept_iteration"] == 0
    assert summary["test_accuracy"] == summary["first_test_accuracy"]
    start, _ = methods.start(training.hold_out(data, 0.5, 3)[0], 9, 3, methods.SCALE, methods.MARGIN)
    assert all(torch.equal(w, start.state_dict()[name]) for name, w in kept_model(tmp_path).state_dict().items())
    said = "\n".join(maxplus.summary_lines(summary))
    assert "no iterate is right more often on the validation samples than the start, and the start is kept" in said
    assert "leave --objective worst out" in said
    assert "as kept: iterate 0" in said


def test_of_equal_iterates_that_of_the_least_loss_is_kept(tmp_path):
    data = separable()
    x, x_test = data.y_train[:, None] + 0.3 * data.x_train, data.y_test[:, None] + 0.3 * data.x_test
    apart = Dataset(x, data.y_train, x_test, data.y_test, data.name)  # the start is right everywhere, if not by 60
    summary = maxplus.train(apart, tmp_path, hidden=HIDDEN, iterations=60, validation=0.3, margin=60.0)
    assert summary["validation_accuracy"] == summary["first_validation_accuracy"] == 1.0
    assert summary["best_loss"] < summary["first_loss"]
    assert summary["kept_iteration"] > 0
    assert summary["test_accuracy"] == summary["best_loss_test_accuracy"]
    assert summary["remarks"] == []


def test_a_run_that_helps_says_nothing(tmp_path):
    kept = {"kept": "validation", "validation_samples": 9, "kept_iteration": 3, "iterations": 7}
    assert training._remarks(kept | {"first_validation_accuracy": 0.5, "validation_accuracy": 0.6}) == []
    kept["kept"] = "loss"
    assert training._remarks(kept | {"first_validation_accuracy": 0.5, "validation_accuracy": 0.5}) == []
    at_once = kept | {"kept": "validation", "kept_iteration": 0, "iterations": 0}  # F was 0 at the start
    assert training._remarks(at_once | {"first_validation_accuracy": 0.5, "validation_accuracy": 0.5}) == []
    worse = training._remarks(kept | {"first_validation_accuracy": 0.6, "validation_accuracy": 0.5})
    assert "of the least loss, is worse on the validation samples than the start" in worse[0]


def test_no_sample_is_both_trained_on_and_held_out():
    data = separable()
    left, held, at = training.hold_out(data, 0.25, seed=3)
    assert held is not None
    assert [int((held.y == label).sum()) for label in range(3)] == [5, 5, 5]
    assert torch.equal(left.x_train, data.x_train[at])
    assert sorted(torch.cat([left.x_train, held.x]).tolist()) == sorted(data.x_train.tolist())
    assert torch.equal(left.x_test, data.x_test)


def test_a_class_of_one_sample_is_not_held_out(tmp_path):
    data = separable()
    alone = Dataset(data.x_train[:3], data.y_train[:3], data.x_test, data.y_test, data.name)
    summary = maxplus.train(alone, tmp_path, iterations=2, validation=0.9)
    assert (summary["kept"], summary["validation_samples"], summary["remarks"]) == ("loss", 0, [])
    assert "on 0 training samples held out: the iterate of the least loss is kept" in "\n".join(
        maxplus.summary_lines(summary)
    )


def test_the_worst_sample_is_numbered_as_in_the_data_set(tmp_path):
    data = separable()
    left, _, at = training.hold_out(data, 0.5, 1)
    model, _ = methods.start(left, HIDDEN, 1, methods.SCALE, methods.MARGIN)
    optimizer = WorstSampleSubgradient(model, left.x_train, left.y_train, margin=methods.MARGIN)
    optimizer.step(20)
    expected = int(at[optimizer.worst.sample])
    assert expected != optimizer.worst.sample
    found = maxplus.train(data, tmp_path, hidden=HIDDEN, iterations=20, validation=0.5, seed=1)
    assert found["worst_sample"]["sample"] == expected


def test_the_plot_is_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib draws it")
    maxplus.train(separable(), tmp_path, hidden=HIDDEN, iterations=5)
    assert (tmp_path / runs.PLOT).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("data", [separable, inseparable], ids=["separable", "inseparable"])
def test_a_resumed_run_goes_through_the_same_iterates(tmp_path, data):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    maxplus.train(data(), whole, hidden=HIDDEN, iterations=60)
    maxplus.train(data(), parts, hidden=HIDDEN, iterations=7)
    maxplus.train(data(), parts, hidden=HIDDEN, iterations=40, resume=True)
    maxplus.train(data(), parts, hidden=HIDDEN, iterations=60, resume=True)
    assert without_seconds(rows(parts)) == without_seconds(rows(whole))
    for name in (runs.MODEL, runs.CHECKPOINT):
        ours, theirs = (torch.load(folder / name, weights_only=True) for folder in (parts, whole))
        ours, theirs = (found.get("optimizer", found) for found in (ours, theirs))
        for part in ("state_dict",) if name == runs.MODEL else ("weights", "best"):
            assert all(torch.equal(ours[part][key], theirs[part][key]) for key in theirs[part])


def test_ctrl_c_ends_after_the_iteration_and_can_be_resumed(tmp_path):
    seen = []

    def interrupt(done, total, what):
        seen.append(done)
        if seen.count(12) == 1 and done == 12:
            os.kill(os.getpid(), signal.SIGINT)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    handler = signal.getsignal(signal.SIGINT)
    summary = maxplus.train(inseparable(), parts, hidden=HIDDEN, iterations=30, progress=interrupt)
    assert summary["interrupted"]
    assert summary["iterations"] == 12
    assert signal.getsignal(signal.SIGINT) is handler
    maxplus.train(inseparable(), parts, hidden=HIDDEN, iterations=30, resume=True)
    maxplus.train(inseparable(), whole, hidden=HIDDEN, iterations=30)
    assert without_seconds(rows(parts)) == without_seconds(rows(whole))


def test_a_second_ctrl_c_interrupts_at_once(tmp_path):
    def interrupt(done, total, what):
        if done == 3:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        maxplus.train(separable(), tmp_path, hidden=HIDDEN, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_resumes_from_its_last_checkpoint(tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    def kill(done, total, what):
        if done == 20:
            raise Killed

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    monkeypatch.setattr(runs, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(Killed):
        maxplus.train(inseparable(), parts, hidden=HIDDEN, iterations=30, progress=kill)
    maxplus.train(inseparable(), parts, hidden=HIDDEN, iterations=30, resume=True)
    maxplus.train(inseparable(), whole, hidden=HIDDEN, iterations=30)
    assert without_seconds(rows(parts)) == without_seconds(rows(whole))


@pytest.mark.parametrize(
    ("prepare", "change", "match"),
    [
        pytest.param(lambda path: path.unlink(), {}, "no checkpoint to resume", id="missing"),
        pytest.param(lambda path: path.write_bytes(b"x" * 100), {}, "not a checkpoint of this command", id="corrupt"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:300]), {}, "not a checkpoint", id="truncated"),
        pytest.param(lambda path: None, {"hidden": 9}, "another setting: hidden 12, asked for 9", id="another size"),
        pytest.param(lambda path: None, {"seed": 5}, "seed 0, asked for 5", id="another seed"),
    ],
)
def test_what_cannot_be_resumed_is_named(tmp_path, prepare, change, match):
    maxplus.train(separable(), tmp_path, hidden=HIDDEN, iterations=3)
    prepare(tmp_path / runs.CHECKPOINT)
    with pytest.raises(runs.ResumeError, match=match):
        maxplus.train(separable(), tmp_path, **{"hidden": HIDDEN, "iterations": 5, "resume": True, **change})


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        pytest.param({"hidden": 61}, "61 hidden units for 3 classes and 54 samples", id="too many units"),
        pytest.param({"iterations": 0}, "iterations is 0", id="no iteration"),
        pytest.param({"scale": math.nan}, "scale is nan", id="scale"),
        pytest.param({"validation": 1.0}, "validation is 1.0; expected a share", id="all held out"),
        pytest.param({"keep": "last"}, "keep is 'last'; expected 'validation' or 'loss'", id="keep"),
    ],
)
def test_settings_that_do_not_fit_leave_nothing(tmp_path, settings, match):
    with pytest.raises(ValueError, match=match):
        maxplus.train(separable(), tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------ the command


@pytest.fixture
def command():
    testing = pytest.importorskip("typer.testing", reason="typer makes the command")
    from tropigrad.cli import app

    return lambda *words: testing.CliRunner().invoke(app, ["train", "maxplus", *map(str, words)])


def test_command_trains_and_resumes(command, tmp_path):
    pytest.importorskip("sklearn", reason="scikit-learn carries the data")
    words = ("--data", "iris", "--objective", "worst", "--hidden", 12, "--out", tmp_path, "--json")
    first = command(*words, "--iterations", 5)
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout)["iterations"] == 5
    second = command(*words, "--iterations", 9, "--resume")
    assert second.exit_code == 0, second.output
    summary = json.loads(second.stdout)
    assert (summary["dataset"], summary["hidden"], summary["iterations"]) == ("iris", 12, 9)


def test_command_trains_on_features(command, tmp_path):
    pytest.importorskip("sklearn", reason="scikit-learn carries the data")
    words = (
        "--data",
        "digits",
        "--objective",
        "worst",
        "--features",
        "components",
        "--hidden",
        20,
        "--iterations",
        2,
        "--json",
    )
    result = command(*words, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert (summary["features"], summary["in_features"]) == ("components", 20)
    assert summary["first_test_accuracy"] > 0.8


def test_command_says_what_it_did(command, tmp_path):
    pytest.importorskip("sklearn", reason="scikit-learn carries the data")
    result = command("--data", "iris", "--objective", "worst", "--iterations", 3, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "test accuracy" in result.stdout
    assert "worst sample   " in result.stdout
    assert "of the iterates" in result.stdout
    assert str(tmp_path / runs.MODEL) in result.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(("--data", "letters"), "data set 'letters' is unknown", id="unknown data"),
        pytest.param(("--data", "mnist:/no/such/folder"), "/no/such/folder: no such folder", id="missing folder"),
        pytest.param(("--data-dir", "/no/such/folder"), "/no/such/folder: no such folder", id="missing data dir"),
        pytest.param(("--data", "iris", "--hidden", "2"), "2 hidden units for 3 classes", id="hidden"),
        pytest.param(("--data", "iris", "--features", "wavelets"), "features is 'wavelets'", id="features"),
        pytest.param(
            ("--data", "iris", "--features", "components"), "93 samples with 4 features", id="too few features"
        ),
        pytest.param(("--data", "iris", "--iterations", "0"), "iterations is 0", id="iterations"),
        pytest.param(("--data", "iris", "--resume"), "no checkpoint to resume", id="nothing to resume"),
    ],
)
def test_command_refuses_in_one_line(command, tmp_path, words, message):
    pytest.importorskip("sklearn", reason="scikit-learn carries the data")
    out = tmp_path / "out"
    result = command(*words, "--out", out)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len([line for line in result.stderr.splitlines() if "tropigrad:" in line]) == 1
    assert not out.exists()
