"""Trainings that a file holds are not run again; a file of another setting, or a corrupt one, is refused."""

import json

import pytest
import torch
from torch import nn

from tropigrad.perf_reports.studies.gsgd import trials
from tropigrad.perf_reports.studies.runs import ResumeError

from .conftest import blobs

SETTING = {"epochs": 1}


def test_none_runs_twice(tmp_path):
    path, calls = tmp_path / "deep" / "some.jsonl", []

    def train():
        calls.append(None)
        return {"loss": [2.0, 1.0 / len(calls)]}

    for _ in range(2):
        some = trials.Trials(path, SETTING, say=lambda line: None)
        found = [some.get(train, method=name, lr=lr) for name in ("a", "b") for lr in (0.1, 0.2)]
        assert [trials.final_loss(record) for record in found] == [1.0, 1 / 2, 1 / 3, 1 / 4]
    assert len(calls) == 4
    head, *rows = map(json.loads, path.read_text().splitlines())
    assert head["setting"] == SETTING
    assert [(row["method"], row["lr"]) for row in rows] == [("a", 0.1), ("a", 0.2), ("b", 0.1), ("b", 0.2)]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, r"trainings of another setting \(epochs\)"),
        ("{", "no records of this study"),
        ("", "no records of this study"),
        ('{"kind": "other"}', "no records of this study"),
    ],
    ids=["setting", "corrupt", "empty", "other"],
)
def test_files_of_others_are_refused_and_left(tmp_path, text, match):
    path = tmp_path / "some.jsonl"
    if text is None:
        trials.Trials(path, SETTING, say=lambda line: None).get(lambda: {"loss": [1.0]}, method="a")
    else:
        path.write_text(text)
    before = path.read_text()
    with pytest.raises(ResumeError, match=match):
        trials.Trials(path, {"epochs": 2})
    assert path.read_text() == before


def test_training_learns_and_one_that_leaves_the_finite_numbers_says_so():
    task = trials.classifying(blobs())
    for lr, learns in ((0.5, True), (1e38, False)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
        record = trials.trained(model, torch.optim.SGD(model.parameters(), lr), task, epochs=8, batch=16, seed=0)
        json.dumps(record, allow_nan=False)
        assert len(record["loss"]) == len(record["test_accuracy"]) == 8
        if learns:
            assert record["loss"][-1] < 0.5 * record["loss"][0]
            assert record["test_accuracy"][-1] > 0.9
        else:
            assert record["loss"][-1] is None
            assert trials.final_loss(record) == float("inf")
            assert trials.means([record], "loss") == "not finite"
