"""Networks whose tensors several layers take: a U-net and a DenseNet, that tell classes of small square images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (16, 32, 64)  # channels of each level of the U-net
GROWTH, DEPTH = 16, 5  # of the DenseNet: channels that each of so many layers adds


class UNet(nn.Module):
    """Three levels of 3 × 3 convolutions; what goes down at each comes back beside what comes up from the one below.

    As many classes as channels at the end, whose means are the scores. No normalisation.
    """

    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__()
        self.images = nn.Unflatten(1, (channels, side, side))
        widths = (channels, *WIDTHS)
        self.down = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in zip(widths, WIDTHS, strict=False))
        pairs = [*zip(WIDTHS[1:], WIDTHS, strict=False)][::-1]
        self.up = nn.ModuleList(nn.ConvTranspose2d(below, its, 2, stride=2) for below, its in pairs)
        self.beside = nn.ModuleList(nn.Conv2d(2 * its, its, 3, padding=1) for _, its in pairs)
        self.head = nn.Conv2d(WIDTHS[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, levels = self.images(x), []
        for number, conv in enumerate(self.down):
            x = functional.relu(conv(functional.max_pool2d(x, 2) if number else x))
            levels.append(x)
        for up, conv, level in zip(self.up, self.beside, levels[-2::-1], strict=True):
            x = functional.relu(conv(torch.cat([functional.relu(up(x)), level], 1)))
        return self.head(x).mean((2, 3))


class DenseNet(nn.Module):
    """Layers of 3 × 3 convolutions, each of which takes the maps of all before it. No normalisation."""

    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__()
        self.images = nn.Unflatten(1, (channels, side, side))
        self.stem = nn.Conv2d(channels, GROWTH, 3, stride=2, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(GROWTH * n, GROWTH, 3, padding=1) for n in range(1, DEPTH + 1))
        self.head = nn.Linear(GROWTH * (DEPTH + 1), classes)

    def forward(self, x: Tensor) -> Tensor:
        maps = [functional.relu(self.stem(self.images(x)))]
        for layer in self.layers:
            maps.append(functional.relu(layer(torch.cat(maps, 1))))
        return self.head(torch.flatten(functional.adaptive_avg_pool2d(torch.cat(maps, 1), 1), 1))
