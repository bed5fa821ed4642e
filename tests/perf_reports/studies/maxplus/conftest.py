"""Small data sets that are, and are not, told apart."""

import torch

from tropigrad.perf_reports.data import Dataset

HIDDEN = 12


def separable(name="three blobs"):
    """Three clusters that a few hidden units tell apart."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.2, 0.2, 0.5, 0.9], [0.8, 0.3, 0.1, 0.2], [0.4, 0.9, 0.8, 0.5]])
    y = torch.arange(90) % 3
    x = (centres[y] + 0.3 * torch.randn(90, 4, generator=generator)).clamp(0, 1)
    return Dataset(x[:60], y[:60], x[60:], y[60:], name)


def inseparable():
    """Equal samples with different labels: F cannot reach 0, nor come below the margin."""
    data = separable("contradictory blobs")
    y = data.y_train.clone()
    x = torch.cat([data.x_train, data.x_train[:10]])
    return Dataset(x, torch.cat([y, (y[:10] + 1) % 3]), data.x_test, data.y_test, data.name)
