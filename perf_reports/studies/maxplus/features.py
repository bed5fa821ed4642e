"""The features of an image that a max-plus network is shown: its pixels, or B x with a B that suits the ∞-norm.

The ∞-norm is the largest difference in a single feature, and between two images some pixel is nearly always black here
and white there. A is free, so it becomes λ[B; −B], with B the first principal components P of the training images, or
these seen along random unit directions:

    B = R P,    max_i |r_i · P(x − m)| ≈ const · ‖P(x − m)‖₂   for many r_i,

a Euclidean distance by means of the ∞-norm. B x is rounded once, before training: what all methods are given.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...data import Dataset

FEATURES = ("pixels", "components", "directions")
COMPONENTS, DIRECTIONS = 20, 100


class View(NamedTuple):
    """Features (B x − low) / width, in [0, 1] on the training samples: by one scale, so distances keep their ratios."""

    b: Tensor  # [features, d]
    low: Tensor  # [features]
    width: Tensor  # []

    def of(self, x: Tensor) -> Tensor:
        """[N, d] -> [N, features]."""
        return (x @ self.b.T - self.low) / self.width

    def on(self, dataset: Dataset) -> Dataset:
        """The data set with these features, under its own name."""
        return Dataset(self.of(dataset.x_train), dataset.y_train, self.of(dataset.x_test), dataset.y_test, dataset.name)


def view(features: str, x: Tensor, seed: int) -> View | None:
    """The view that makes the named features of samples x [N, d]; None for the pixels, or whatever else x holds.

    Raises:
        ValueError: features is none of FEATURES, or x has fewer features, or samples, than components are asked for.
    """
    if features not in FEATURES:
        raise ValueError(f"train: features is {features!r}; expected one of {', '.join(FEATURES)}")
    if features == "pixels":
        return None
    if min(x.shape) < COMPONENTS:
        raise ValueError(
            f"train: features is {features!r}, {COMPONENTS} principal components, of {x.shape[0]} samples with "
            f"{x.shape[1]} features; expected {COMPONENTS} of both at least: take pixels"
        )
    return scaled(principal_directions(x, COMPONENTS, DIRECTIONS if features == "directions" else None, seed), x)


def scaled(b: Tensor, x: Tensor) -> View:
    """B with the shift and the scale that take B x into [0, 1]."""
    seen = x @ b.T
    low = seen.min(dim=0).values
    return View(b, low, (seen.max(dim=0).values - low).max())


def principal_directions(x: Tensor, components: int, directions: int | None, seed: int) -> Tensor:
    """B = R P: `components` principal components P [k, d] of x [N, d], seen along `directions` random unit vectors R.

    Returns:
        [directions, d]; where directions is None, P itself.
    """
    centred = (x - x.mean(dim=0)).double()
    vectors = torch.linalg.eigh(centred.T @ centred).eigenvectors  # by rising eigenvalue
    P = vectors[:, -components:].T
    if directions is None:
        return P.to(x.dtype)
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(directions, components, generator=generator, dtype=torch.float64, device="cpu")
    return (random / random.norm(dim=1, keepdim=True) @ P).to(x.dtype)
