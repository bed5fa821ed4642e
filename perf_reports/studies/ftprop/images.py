"""Mini-batches of a data set: their order, and what is done to CIFAR-10's images before a network sees them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from ...data import Dataset

# of CIFAR-10's three channels, as released with the paper
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
PAD = 4
_SIDE = 32


class Batches:
    """The samples of a data set on a device, a mini-batch at a time.

    CIFAR-10's images are cut anew each time from their copy in a frame of black pixels, 4 wide, are mirrored half of
    the time, and are scaled by MEAN and STD. Everything else is taken as it is.
    """

    def __init__(self, dataset: Dataset, seed: int, device: torch.device) -> None:
        self.dataset, self.seed, self.device = dataset, seed, device
        self.is_cifar = dataset.name.startswith("cifar10")
        self.x_train, self.y_train = dataset.x_train.to(device), dataset.y_train.to(device)
        self.features, self.classes = dataset.features, dataset.classes

    @property
    def image_shape(self) -> tuple[int, int]:
        """Channels and side of square images.

        Raises:
            ValueError: the features are no square image of one channel or three.
        """
        for channels in (1, 3):
            side = math.isqrt(self.features // channels)
            if channels * side * side == self.features:
                return channels, side
        raise ValueError(f"train: {self.dataset.name} has {self.features} features; expected those of a square image")

    def order(self, epoch: int) -> Tensor:
        """The order of the samples in an epoch, whatever came before it: a run that is resumed draws the same."""
        generator = torch.Generator().manual_seed((self.seed << 20) + epoch)
        return torch.randperm(len(self.dataset.y_train), generator=generator)

    def drawn(self, rows: Tensor, epoch: int, position: int) -> tuple[Tensor, Tensor]:
        """The samples of these rows as they are shown at this place of this epoch, and their labels."""
        rows = rows.to(self.device)
        x, y = self.x_train[rows], self.y_train[rows]
        if self.is_cifar:
            generator = torch.Generator().manual_seed((self.seed << 40) + (epoch << 24) + position)
            top, left = torch.randint(2 * PAD + 1, (2, len(x)), generator=generator).to(self.device)
            is_mirrored = torch.rand(len(x), generator=generator).to(self.device) < 0.5
            x = scaled(cut(x.view(-1, 3, _SIDE, _SIDE), top, left, is_mirrored)).flatten(1)
        return x, y

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The test samples and their labels, a thousand at a time."""
        for x, y in zip(self.dataset.x_test.split(1000), self.dataset.y_test.split(1000), strict=True):
            x = x.to(self.device)
            if self.is_cifar:
                x = scaled(x.view(-1, 3, _SIDE, _SIDE)).flatten(1)
            yield x, y.to(self.device)


def cut(x: Tensor, top: Tensor, left: Tensor, is_mirrored: Tensor) -> Tensor:
    """Each image [N, C, H, W] from row `top` and column `left` [N] of its copy in a frame, or the mirror image."""
    n, _, height, width = x.shape
    framed = functional.pad(x, (PAD,) * 4)
    rows = top[:, None] + torch.arange(height, device=x.device)
    across = torch.arange(width, device=x.device)
    columns = left[:, None] + torch.where(is_mirrored[:, None], across.flip(0), across)
    sample = torch.arange(n, device=x.device)[:, None, None]
    return framed.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def scaled(x: Tensor) -> Tensor:
    """(x − mean) / std of each channel of x [N, 3, H, W]."""
    mean, std = (torch.tensor(values, device=x.device).view(3, 1, 1) for values in (MEAN, STD))
    return (x - mean) / std
