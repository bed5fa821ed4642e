"""A small data set that every walk learns."""

import torch

from tropigrad.perf_reports.data import Dataset


def blobs(features=16, seed=0):
    """Three clouds, 30 + 15 samples of each."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(3, features, generator=generator)
    y = torch.arange(3).repeat(45)
    x = (centres[y] + 0.1 * torch.randn(135, features, generator=generator)).clamp(0, 1)
    return Dataset(x[:90], y[:90], x[90:], y[90:], "three blobs")
