"""The U-net and the DenseNet on real images: no rescaling of their starts changes what G-SGD makes of them."""

from dataclasses import replace

import pytest
import torch

from tropigrad.perf_reports import data
from tropigrad.perf_reports.studies.gsgd.methods import Recipe, Training


@pytest.fixture(scope="module")
def images():
    folder = data.find_data_dir()
    if folder is None or not (folder / "cifar10").is_dir():
        pytest.skip("TROPIGRAD_DATA names no folder with CIFAR-10")
    found = data.load("cifar10", folder).subset(4, 2, 0)
    return replace(found, x_train=found.x_train.double(), x_test=found.x_test.double())


@pytest.mark.parametrize("network", ["unet", "densenet"])
def test_rescaled_starts_are_one_network_on_cifar10(network, images):
    """From torch's own initialisation, in float64."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        losses = {}
        for optimizer in ("gsgd", "sgd"):
            for spread in (0.0, 0.5):
                recipe = Recipe(network=network, optimizer=optimizer, unit=False, spread=spread, batch=20, lr=0.05)
                training = Training(recipe, images)
                losses[optimizer, spread] = torch.tensor(
                    [row["loss"] for _ in range(6) if (row := training.advance())], dtype=torch.float64
                )
    finally:
        torch.set_default_dtype(dtype)
    assert len(losses["gsgd", 0.0]) == 3
    torch.testing.assert_close(losses["gsgd", 0.5], losses["gsgd", 0.0], rtol=1e-9, atol=1e-9)
    assert (losses["sgd", 0.5] - losses["sgd", 0.0]).abs().max() > 1e-6
