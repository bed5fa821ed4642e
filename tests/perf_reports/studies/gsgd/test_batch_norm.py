"""The study of the released BatchNorm rule: equal starts, folding, and its command, which goes on where it stopped."""

import copy
import json

import pytest
import torch
from torch import nn

from tropigrad.perf_reports import data
from tropigrad.perf_reports.studies.gsgd import batch_norm

from .conftest import blobs

PIXELS = 3 * 32 * 32


def test_every_method_starts_from_the_same_function():
    x = blobs(PIXELS).x_train
    start = batch_norm.network(5, 3).model
    wanted = start(x).detach()
    for name, make in batch_norm.METHODS.items():
        model, optimizer = make(batch_norm.network(5, 3), x, 0.1)
        close = 0.2 if "folded" in name else 0.0
        torch.testing.assert_close(model(x).detach(), wanted, rtol=close, atol=close)
        of = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert of == {id(p) for p in model.parameters()}


def test_folding_takes_the_statistics_and_leaves_the_model():
    plain = batch_norm.network(2, 3, widths=(4,), depth=2)
    before = copy.deepcopy(plain.model.state_dict())
    x = blobs(PIXELS).x_train[:40]
    same = torch.cat([x[:10]] * 4)  # the batches have the same statistics
    folded = batch_norm.folded(plain.model, same)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, before[name])
    # running variances are unbiased, those of a batch are not
    torch.testing.assert_close(folded(same), plain.model(same), rtol=0.05, atol=0.05)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(data, "load", lambda spec=None, data_dir=None, seed=0: blobs(PIXELS))
    monkeypatch.setattr(batch_norm, "RATES", (1e-6, 0.05))
    monkeypatch.setattr(batch_norm, "METHODS", dict(list(batch_norm.METHODS.items())[1:5]))


def test_the_command_writes_its_table_and_runs_nothing_twice(tmp_path, small, capsys, monkeypatch):
    words = [str(tmp_path), "--epochs", "2", "--seeds", "2", "--train-per-class", "9"]
    get, calls = batch_norm.Trials.get, []

    def interrupted(trials, train, **key):
        calls.append(key)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return get(trials, train, **key)

    monkeypatch.setattr(batch_norm.Trials, "get", interrupted)
    assert batch_norm.main(words) == 130
    assert "interrupted: 2 trainings stand in" in capsys.readouterr().out
    assert not (tmp_path / "batch-norm.md").exists()
    assert batch_norm.main(words) == 0
    head, *rows = map(json.loads, (tmp_path / "batch-norm.jsonl").read_text().splitlines())
    assert head["setting"]["epochs"] == 2
    assert len(rows) == 4 * (2 + 1)
    assert len({(row["method"], row["lr"], row["seed"]) for row in rows}) == len(rows)
    table = (tmp_path / "batch-norm.md").read_text()
    for name in batch_norm.METHODS:
        line = next(line for line in table.splitlines() if line.startswith(f"| {name} |"))
        assert line.split(" | ")[1] == "0.05"
    capsys.readouterr()
    before = (tmp_path / "batch-norm.jsonl").read_text()
    assert batch_norm.main(words) == 0
    assert (tmp_path / "batch-norm.jsonl").read_text() == before
    assert "loss" not in capsys.readouterr().out.split("|")[0]


@pytest.mark.parametrize("words", [["--epochs", "0"], ["--data", "cifar10:/no/such/folder"]], ids=["epochs", "folder"])
def test_the_command_refuses_in_one_line(tmp_path, words, capsys):
    with pytest.raises(SystemExit) as refused:
        batch_norm.main([str(tmp_path / "out"), *words])
    assert refused.value.code == 2
    assert "expected" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
