"""Starts and their descents: the same rows, clock and steps; the race to a loss; the one optimum; data that grows."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tropigrad.nn import ExplicitSoftmax
from tropigrad.perf_reports.studies.explicit import warm_starts
from tropigrad.perf_reports.studies.explicit.methods import judged
from tropigrad.perf_reports.studies.explicit.warm_starts import Descent

SETTINGS: dict[str, Any] = {"scale": 8.0}


def test_a_start_is_the_model_itself(split):
    starts, rows = warm_starts.layer_starts(split, SETTINGS)
    model = ExplicitSoftmax(**SETTINGS).fit(*split.train)
    descent = Descent(starts["explicit, the paper's form"](0), rows.train, 0.1, 32, 0)
    assert descent.judged(rows.test) == pytest.approx(judged(model, split.test), rel=1e-5)


def test_a_descent_leaves_its_start_alone_and_repeats_itself(split):
    starts, rows = warm_starts.layer_starts(split, SETTINGS)
    start = starts["zero"](0)
    ends = []
    for _ in range(2):
        descent = Descent(start, rows.train, 0.1, 32, seed=3)
        descent.advance(7)
        assert descent.steps == 7
        assert descent.seconds > 0
        ends.append(descent.judged(rows.train)[0])
    assert ends[0] == ends[1] < np.log(3)
    assert all((parameter == 0).all() for parameter in start.parameters())


def test_losses_are_told_at_every_horizon_and_seed(split):
    starts, rows = warm_starts.layer_starts(split, SETTINGS)
    records = list(
        warm_starts.after_steps(
            starts, rows, name="bags", network="one layer", horizons=(3, 9), rates=(1e-6, 0.03), seeds=2
        )
    )
    after = [r for r in records if r["kind"] == "after"]
    assert {(r["start"], r["steps"], r["seed"]) for r in after} == {
        (start, steps, seed) for start in starts for steps in (0, 3, 9) for seed in (0, 1)
    }
    at = {(r["start"], r["steps"]): r for r in after if r["seed"] == 0}
    assert at["zero", 0]["test_loss"] == pytest.approx(np.log(3))
    assert at["zero", 9]["rate"] == 0.03
    assert at["zero", 9]["train_loss"] < at["zero", 3]["train_loss"] < at["zero", 0]["train_loss"]
    curve = [r for r in records if r["kind"] == "curve" and r["start"] == "zero"]
    assert curve[0]["train_loss"] == at["zero", 0]["train_loss"]
    assert curve[-1]["train_loss"] == at["zero", 9]["train_loss"]


def test_networks_have_the_starts_that_they_say(split):
    starts, rows = warm_starts.network_starts(split, 6, SETTINGS)
    shapes = {name: [tuple(p.shape) for p in make(0).parameters()] for name, make in starts.items()}
    assert len(starts) == 4
    assert len({tuple(shape) for shape in shapes.values()}) == 1
    assert any(isinstance(layer, nn.ReLU) for layer in starts["ReLU, Xavier"](0))
    first, again, other = (next(starts["Xavier"](seed).parameters()) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert rows.train[0].sum(1).numpy() == pytest.approx(8, rel=1e-5)


def test_the_race_ends_where_the_loss_is_reached(split):
    record = warm_starts.race(
        split, {**SETTINGS, "temperature": "search"}, rates=(0.1,), batches=(64,), seeds=1, most_seconds=5.0
    )
    model = ExplicitSoftmax(**SETTINGS, temperature="search").fit(*split.train)
    assert record["train_loss"] == pytest.approx(judged(model, split.train)[0], rel=1e-5)
    assert (record["N"], record["D"], record["C"]) == (140, 12, 3)
    assert record["train_steps"] > 1
    assert record["train_ratio"] == record["train_seconds"] / record["explicit_seconds"]


def test_a_loss_that_is_not_reached_has_no_time(split):
    record = warm_starts.race(split, SETTINGS, rates=(1e-9,), batches=(64,), seeds=1, most_seconds=0.01)
    assert record["train_seconds"] is record["train_ratio"] is record["valid_seconds"] is None


def test_all_starts_have_one_optimum(split):
    records = list(warm_starts.optima(split, SETTINGS, penalty=1e-2))
    assert [r["start"] for r in records] == ["explicit", "Xavier", "zero"]
    values = [r["objective"] for r in records]
    assert max(values) - min(values) < 1e-8
    assert min(r["objective_at_start"] for r in records) > max(values)


def test_images_are_pooled_by_means():
    image = np.arange(16, dtype=np.uint8).reshape(1, 16)
    part = image, np.zeros(1, np.int64)
    pooled = warm_starts.pooled(warm_starts.Split(part, part, part, "one"), 4, 2)
    assert pooled.train[0].tolist() == [[2, 4, 10, 12]]  # 2.5, 4.5, 10.5 and 12.5, halves to even


def test_topics_are_what_naive_bayes_assumes():
    pytest.importorskip("scipy", reason="bags of words are CSR")
    drawn = warm_starts.topics(features=30, classes=4, seed=0, rows=2000, words=15)
    assert drawn.train[0].shape == (1600, 30)
    assert set(drawn.train[0].sum(1).tolist()) == {15}
    counts = np.bincount(drawn.train[1])
    assert counts[0] > 2.5 * counts[3]
    model = ExplicitSoftmax(normalize=False, prior="count", smoothing=0.1, temperature="search").fit(*drawn.train)
    assert model.temperature_ == pytest.approx(1, abs=0.15)  # the truth needs none
