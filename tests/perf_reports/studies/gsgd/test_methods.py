"""The networks and their starts; what each optimizer makes of them."""

import json
from dataclasses import replace

import pytest
import torch

from tropigrad.perf_reports import data
from tropigrad.perf_reports.studies.gsgd import methods
from tropigrad.perf_reports.studies.gsgd.methods import Recipe

from .conftest import blobs


def test_the_mlp_is_that_of_the_paper():
    dataset = blobs(784)
    sizes = [tuple(p.shape) for p in methods.network(Recipe(), dataset).parameters()]
    assert sizes == [(64, 784), (64, 64), (64, 64), (64, 64), (3, 64)]


@pytest.mark.parametrize("kind", methods.NETWORKS)
def test_starts_differ_in_the_skeleton_or_the_scale_alone(kind):
    dataset = blobs(3 * 8 * 8)
    recipe = Recipe(network=kind, seed=3)
    unit, torchs, rescaled = (
        methods.network(r, dataset) for r in (recipe, replace(recipe, unit=False), replace(recipe, spread=1.0))
    )
    same = [(p == q).double().mean() for p, q in zip(unit.parameters(), torchs.parameters(), strict=True)]
    assert all(0.3 < share <= 1 for share in same)
    assert sum(share < 1 for share in same) >= 5  # a DenseNet's nodes have no edges of the skeleton in some layers
    torch.testing.assert_close(rescaled(dataset.x_test), unit(dataset.x_test), rtol=1e-3, atol=1e-3)
    assert not torch.equal(next(rescaled.parameters()), next(unit.parameters()))


@pytest.mark.parametrize("optimizer", methods.OPTIMIZERS)
def test_every_optimizer_learns(optimizer):
    training = methods.Training(Recipe(optimizer=optimizer, lr=0.05, batch=16), blobs())
    found = [row for _ in range(120) if (row := training.advance())]
    assert [row["iteration"] for row in found] == list(range(1, 21))
    assert found[-1]["loss"] < 0.3 * found[0]["loss"]
    assert found[-1]["test_accuracy"] > 0.95


def test_only_g_sgd_goes_the_same_way_from_a_rescaled_start():
    def losses(optimizer, spread):
        training = methods.Training(Recipe(optimizer=optimizer, spread=spread), blobs())
        return torch.tensor([row["loss"] for _ in range(16) if (row := training.advance())])

    torch.testing.assert_close(losses("gsgd", 1.0), losses("gsgd", 0.0), rtol=1e-3, atol=1e-4)
    assert (losses("sgd", 1.0) - losses("sgd", 0.0)).abs().max() > 0.05


def test_a_training_that_leaves_the_finite_numbers_has_no_loss():
    training = methods.Training(Recipe(optimizer="sgd", lr=1e38), blobs())
    found = [row for _ in range(8) if (row := training.advance())]
    assert found[-1]["loss"] is None
    json.dumps(found, allow_nan=False)


def test_real_cifar10_is_read():
    folder = data.find_data_dir()
    if folder is None or not (folder / "cifar10").is_dir():
        pytest.skip("TROPIGRAD_DATA names no folder with CIFAR-10")
    found = data.load("cifar10", folder)
    assert found.classes == 10
    assert methods.image_shape(found) == (3, 32)
    assert 0.4 < found.x_train.mean() < 0.55
