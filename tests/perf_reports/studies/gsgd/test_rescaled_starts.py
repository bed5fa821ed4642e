"""Rescaled starts of networks that a user brings: the same functions, the same way by G-SGD, a table and a picture."""

import json

import pytest
import torch

from tropigrad.optim import BasisPaths
from tropigrad.perf_reports import data
from tropigrad.perf_reports.studies.gsgd import rescaled_starts, trials
from tropigrad.perf_reports.studies.gsgd.rescaled_starts import SUBJECTS

from .conftest import blobs

PIXELS = 3 * 32 * 32


def tasks():
    dataset = blobs(PIXELS).subset(8, 4)
    return {name: subject.task(dataset) for name, subject in SUBJECTS.items()}


@pytest.mark.parametrize("name", SUBJECTS)
def test_starts_compute_the_same_from_other_weights(name):
    task = tasks()[name]
    plain, rescaled = (rescaled_starts.start(SUBJECTS[name], task, spread, 4) for spread in (0.0, 1.0))
    torch.testing.assert_close(rescaled(task.x_train), plain(task.x_train), rtol=1e-3, atol=1e-3)
    pairs = zip(plain.parameters(), rescaled.parameters(), strict=True)
    assert sum(not torch.equal(p, q) for p, q in pairs) >= 2
    paths = BasisPaths(plain, task.x_train[:2])
    assert paths.hidden >= 168


@pytest.mark.parametrize("name", SUBJECTS)
def test_only_g_sgd_goes_the_same_way(name):
    """In float64, for a few steps."""
    task = tasks()[name]
    outputs = {}
    for method in ("gsgd", "sgd"):
        for spread in (0.0, 1.0):
            model = rescaled_starts.start(SUBJECTS[name], task, spread, 4).double()
            optimizer = rescaled_starts.optimizer(method, model, task, 0.01)
            for _ in range(5):
                optimizer.zero_grad()
                x, y = task.x_train.double(), task.y_train if task.is_classifying else task.y_train.double()
                task.loss(model(x), y).backward()
                optimizer.step()
            outputs[method, spread] = model(x).detach()
    ours, theirs = ((outputs[method, 0.0] - outputs[method, 1.0]).abs().max() for method in ("gsgd", "sgd"))
    assert ours < 1e-5  # the start was rescaled in float32
    assert theirs > 100 * ours


def test_the_command_writes_table_and_picture(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib draws it")
    monkeypatch.setattr(data, "load", lambda spec=None, data_dir=None, seed=0: blobs(PIXELS))
    monkeypatch.setattr(rescaled_starts, "SPREADS", (0.0, 1.0))
    calls = []

    def trained(model, optimizer, task, *, epochs, batch, seed):
        calls.append(None)
        of = 1.0 if optimizer.param_groups[0]["lr"] == 0.01 else 2.0
        field = "test_accuracy" if task.is_classifying else "test_loss"
        return {"loss": [3.0, of], field: [0.25, 0.5]}

    monkeypatch.setattr(rescaled_starts, "trained", trained)
    words = [str(tmp_path), "--seeds", "2", "--train-per-class", "3"]
    assert rescaled_starts.main(words) == 0
    assert (tmp_path / "rescaled-starts.png").read_bytes().startswith(b"\x89PNG")
    rows = [json.loads(line) for line in (tmp_path / "rescaled-starts.jsonl").read_text().splitlines()][1:]
    assert (
        len(rows)
        == len(calls)
        == len({tuple(row[k] for k in ("network", "optimizer", "lr", "spread", "seed")) for row in rows})
    )
    table = (tmp_path / "rescaled-starts.md").read_text()
    assert "| resnet20 | SGD, tuned for each start | 1 | 0.01 | 1.0000, 1.0000 | 50.0%, 50.0% |" in table
    assert "| unet | G-SGD | 0 | 0.01 | 1.0000, 1.0000 | 0.5000, 0.5000 |" in table
    count = len(calls)
    assert rescaled_starts.main(words) == 0
    assert len(calls) == count


@pytest.mark.parametrize("name", SUBJECTS)
def test_each_network_learns_by_g_sgd(name):
    task = tasks()[name]
    model = rescaled_starts.start(SUBJECTS[name], task, 0.5, 0)
    optimizer = rescaled_starts.optimizer("gsgd", model, task, 0.01)
    record = trials.trained(model, optimizer, task, epochs=3, batch=8, seed=0)
    assert record["loss"][-1] < record["loss"][0]
