"""Small data sets that every method learns."""

import torch

from tropigrad.perf_reports.data import Dataset


def blobs(features=16, seed=0, name="three blobs"):
    """Three clouds, 30 + 15 samples of each."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(3, features, generator=generator)
    y = torch.arange(3).repeat(45)
    x = (centres[y] + 0.1 * torch.randn(135, features, generator=generator)).clamp(0, 1)
    return Dataset(x[:90], y[:90], x[90:], y[90:], name)


def pictures(samples=40, seed=0):
    """Images of CIFAR-10's size, of ten colours."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.rand(10, 3, 1, generator=generator)
    y = torch.arange(samples) % 10
    x = (colours[y] + 0.1 * torch.randn(samples, 3, 32 * 32, generator=generator)).clamp(0, 1).flatten(1)
    return Dataset(x, y, x[:20], y[:20], "cifar10, a few")
