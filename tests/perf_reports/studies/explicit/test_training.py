"""`train explicit` on samples: its files, Ctrl-C between stages, resumption to the bit; and the command."""

import json
import os
import signal

import pytest
import torch
from typer.testing import CliRunner

from tropigrad.cli import app
from tropigrad.perf_reports.data import DataError, Dataset
from tropigrad.perf_reports.studies import runs
from tropigrad.perf_reports.studies.explicit import training
from tropigrad.perf_reports.studies.explicit.training import Samples
from tropigrad.perf_reports.texts import read_speeches


def blobs():
    """Three clouds, 60 + 30 samples of each."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(3, 16, generator=generator)
    y = torch.arange(3).repeat(90)
    x = (centres[y] + 0.1 * torch.randn(270, 16, generator=generator)).clamp(0, 1)
    return Samples.of_dataset(Dataset(x[:180], y[:180], x[180:], y[180:], "three blobs"))


def rows(folder):
    logged = [json.loads(line) for line in (folder / runs.METRICS).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in logged]


def test_a_run_leaves_both_networks_and_their_steps(tmp_path):
    out = tmp_path / "deep" / "run"
    summary = training.train(blobs(), out, hidden=6, steps=3)
    assert not summary["interrupted"]
    assert sorted(path.name for path in out.iterdir()) == sorted(os.path.basename(path) for path in summary["files"])
    logged = rows(out)
    solved = [row for row in logged if row["rate"] is None]
    assert [row["network"] for row in solved] == ["one layer", "two layers"]
    assert min(row["test_accuracy"] for row in solved) > 0.9
    assert len(logged) == 2 + 2 * 2 * (3 + 1)
    saved = torch.load(out / runs.MODEL, weights_only=True)
    for network, sizes in (("one layer", (16, 3)), ("two layers", (16, 6, 3))):
        module = training._network(sizes)
        module.load_state_dict(saved["solved"][network])
        x = blobs().x_test + summary["offset"]
        logits = module(summary["scale"] * x / x.sum(1, keepdim=True))
        right = (logits.argmax(1) == blobs().y_test).double().mean().item()
        assert right == next(row["test_accuracy"] for row in solved if row["network"] == network)
    assert set(saved["trained"]) == {f"{n}, {s} start" for n in saved["solved"] for s in ("explicit", "random")}


def test_the_first_samples_may_be_empty(tmp_path):
    samples = blobs()
    samples.x_train[0] = 0
    assert training.train(samples, tmp_path, hidden=6, steps=0)["offset"] > 0


def test_the_explicit_start_is_the_solution(tmp_path):
    training.train(blobs(), tmp_path, hidden=6, steps=1)
    logged = rows(tmp_path)
    for network in ("one layer", "two layers"):
        ours = [row for row in logged if row["network"] == network and row["start"] == "explicit"]
        solved, begun = (next(row for row in ours if (row["rate"] is None) == is_solved) for is_solved in (True, False))
        assert begun["step"] == 0
        assert (begun["test_loss"], begun["test_accuracy"]) == (solved["test_loss"], solved["test_accuracy"])


def test_ctrl_c_and_a_resumption_change_no_bit(tmp_path):
    def interrupted(done, total, what):
        if done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    training.train(blobs(), whole, hidden=6, steps=2)
    summary = training.train(blobs(), parts, hidden=6, steps=2, progress=interrupted)
    assert summary["interrupted"]
    assert len(rows(parts)) == 2
    training.train(blobs(), parts, hidden=6, steps=2, resume=True)
    assert rows(parts) == rows(whole)
    ours, theirs = (torch.load(folder / runs.MODEL, weights_only=True) for folder in (parts, whole))
    for kind in ("solved", "trained"):
        for name, state in theirs[kind].items():
            assert all(torch.equal(ours[kind][name][key], state[key]) for key in state)
    with pytest.raises(runs.ResumeError, match="another setting: steps 2, asked for 3"):
        training.train(blobs(), parts, hidden=6, steps=3, resume=True)


def test_speeches_are_classified_as_sparse_rows(tmp_path, play):
    path = tmp_path / "input.txt"
    path.write_text(play, encoding="utf-8")
    samples = Samples.of_speeches(read_speeches(path), seed=0)
    assert torch.bincount(samples.y_test).tolist() == [12, 12, 12]
    summary = training.train(samples, tmp_path / "out", hidden=6, steps=0)
    assert summary["offset"] == 0
    assert [row["test_accuracy"] for row in summary["rows"]] == [1.0, 1.0]


def test_bad_settings_and_data_are_named(tmp_path):
    with pytest.raises(ValueError, match="steps is -1"):
        training.train(blobs(), tmp_path, steps=-1)
    with pytest.raises(ValueError, match="hidden is 2 and y has 3 classes"):
        training.train(blobs(), tmp_path, hidden=2)
    samples = blobs()
    with pytest.raises(DataError, match="a label below 9 has no training sample"):
        training.train(Samples(samples.x_train, samples.y_train * 4, samples.x_test, samples.y_test, "gaps"), tmp_path)


def test_the_command_tells_what_it_left(tmp_path):
    pytest.importorskip("sklearn", reason="digits comes with scikit-learn")
    done = CliRunner().invoke(app, ["train", "explicit", "--data", "digits", "--steps", "1", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.stderr
    assert "two layers of subclasses, 40 hidden units: 9" in done.stdout
    assert "1 Adam steps" in done.stdout
    assert str(tmp_path / runs.PLOT) in done.stdout


def test_a_language_model_needs_a_text():
    done = CliRunner().invoke(app, ["train", "explicit", "--task", "lm"])
    assert done.exit_code == 2
    assert "expected --data text:FILE" in done.stderr
