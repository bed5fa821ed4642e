"""Magnitude pruning keeps the weights it says; optional packages, where absent, say so."""

import pytest
import torch
from torch import nn

from tropigrad.perf_reports.studies.l1path import rivals
from tropigrad.perf_reports.studies.l1path.methods import Recipe, Task, network

from .conftest import blobs


@pytest.fixture
def task():
    return Task.of(blobs(), Recipe(seed=0))


def test_pruning_leaves_the_largest_weights_and_all_biases(task):
    model = network(blobs(), 0)
    front = rivals.magnitude_pruning(model, task, points=4, first_steps=8, correctors=2, h=0.05, least=0.1)
    weights = sum(m.weight.numel() for m in model if isinstance(m, nn.Linear))
    biases = sum(m.bias.numel() for m in model if isinstance(m, nn.Linear))
    assert [p.nnz for p in front] == [round(weights * 0.1 ** (i / 3)) + biases for i in range(4)]
    assert [p.epochs for p in front] == [8, 10, 12, 14]
    assert (front[0].accuracy or 0) > 0.9
    small = front.compact(3)  # a network without masks, which can be copied
    x = task.x_test
    assert torch.allclose(small.model(x), front.load(3)(x), atol=1e-6)


def test_an_absent_package_is_named(task):
    with pytest.raises(rivals.Absent, match="no_such_package is not installed"):
        rivals.optional("no_such_package.part")


def test_nsga2_finds_points_by_real_numbers(task):
    pytest.importorskip("pymoo", reason="pymoo carries NSGA-II")
    models: list[nn.Module] = [network(blobs(), i) for i in range(3)]
    front = rivals.nsga2(models, task, evaluations=150)
    assert len(front.non_dominated()) == len(front)
    weights = torch.cat([p.detach().flatten() for p in front.load(0).parameters()])
    assert len(weights.unique()) > 2  # the release's were 0 and 1


def test_lassonet_drops_features_along_its_path(task):
    pytest.importorskip("lassonet", reason="it carries its path")
    rows = rivals.lassonet(task, seed=0, iterations=(20, 5))
    assert rows[0]["features"] == 16
    assert rows[-1]["features"] == 0
