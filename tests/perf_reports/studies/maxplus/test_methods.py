"""The methods: equal iterates of both backwards, and how far the step rule goes."""

import pytest
import torch

from tropigrad.perf_reports import data as datasets
from tropigrad.perf_reports.studies.maxplus import methods

from .conftest import HIDDEN, inseparable, separable


def pair(dataset, hidden=HIDDEN, train_a=False):
    model, _ = methods.start(dataset, hidden, 0, methods.SCALE, methods.MARGIN)
    model.A.requires_grad_(train_a)
    dense = methods.DenseLinearMinMax(model.in_features, model.hidden, model.classes, train_a=train_a)
    dense.load_state_dict(model.state_dict())
    return [methods.Subgradient("m", "r", net, dataset, methods.MARGIN) for net in (model, dense)]


def losses(method, iterations):
    found = []
    for _ in range(iterations):
        found.append(method.evaluate())
        if method.is_done:
            break
        method.advance()
    return found


@pytest.mark.parametrize("train_a", [False, True], ids=["A fixed", "A trained"])
@pytest.mark.parametrize("data", [separable, inseparable], ids=["separable", "inseparable"])
def test_sparse_and_dense_backward_give_the_same_iterates(data, train_a):
    ours, dense = pair(data(), train_a=train_a)
    assert losses(ours, 60) == losses(dense, 60)
    for name, value in ours.model.state_dict().items():
        assert torch.equal(value, dense.model.state_dict()[name])


def test_the_dense_network_gives_the_same_in_parts(monkeypatch):
    ours, dense = pair(separable())
    monkeypatch.setattr(methods.DenseLinearMinMax, "candidates", 500)
    assert losses(ours, 20) == losses(dense, 20)


@pytest.mark.parametrize("hidden", [20, 30])
def test_polyak_reaches_zero_where_the_network_can_interpolate(hidden):
    method, _ = pair(separable(), hidden)
    found = losses(method, 300)
    assert method.is_done
    assert found[0] > 1
    assert found[-1] < 1e-5  # float32 scores near 64: zero, to rounding
    assert method.record(0.0)["train_accuracy"] == 1.0


def test_it_does_not_diverge_where_it_cannot():
    method, _ = pair(inseparable())
    found = losses(method, 600)
    assert methods.MARGIN <= method.best_loss < found[0]
    assert max(found[-100:]) <= found[0]
    assert found[-1] < 1.5 * method.best_loss
    method.finish()
    assert method.evaluate() == method.best_loss


def test_digits_are_interpolated():
    pytest.importorskip("sklearn", reason="scikit-learn carries the data")
    dataset = datasets.load("digits")
    method = methods.Subgradient(
        "m", "r", methods.start(dataset, 300, 0, methods.SCALE, methods.MARGIN)[0], dataset, 4.0
    )
    before = method.test_accuracy()
    found = losses(method, 300)
    assert found[-1] == 0
    assert method.test_accuracy() > before > 0.9


def test_real_mnist_gives_the_same_iterates():
    folder = datasets.find_data_dir()
    if folder is None:
        pytest.skip("TROPIGRAD_DATA names no folder of real data")
    dataset = datasets.load("mnist", folder).subset(10, 10)
    ours, dense = pair(dataset, hidden=30)
    assert losses(ours, 8) == losses(dense, 8)
