"""Linear-min-max network:  z = A x,   u_j = min_i (z_i + W1_ji),   f_k = max_j (u_j + W2_kj).

A universal approximator in which one path decides each output. With A = λ[I; −I] and W1_j = λ[−m_j; m_j] the hidden
units are scaled distances, u_j = −λ ‖x − m_j‖∞, so the network can start as the nearest-medoid classifier exactly.
Source of the network and of its start as k-medoids: Enaieh & Fercoq, "Exploiting Subgradient Sparsity in Max-Plus
Neural Networks", arXiv 2603.04133.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ..kernels import tropical_matmul
from .arguments import check_positive, check_size
from .kmedoids import KMedoids, kmedoids
from .sparse_gradients import linear_min_max
from .units import units_by_class


@dataclass(frozen=True)
class KMedoidsInit:
    """The samples that became the hidden units, and the work that finding them took."""

    medoids: Tensor  # [q] int64: rows of x, grouped by class
    classes: Tensor  # [q] int64: the class of each hidden unit
    by_class: tuple[KMedoids, ...]

    @property
    def loss(self) -> float:
        """Σ_n ‖x_n − nearest medoid of its class‖∞, before the scale λ."""
        return sum(result.loss for result in self.by_class)

    @property
    def swaps(self) -> int:
        return sum(result.swaps for result in self.by_class)

    @property
    def seconds(self) -> float:
        return sum(result.seconds for result in self.by_class)


@fx.wrap  # becomes one node of a traced graph: shapes are known only when the graph runs
def _linear(x: Tensor, A: Tensor) -> Tensor:
    _check_features(x, A)
    return x @ A.T


@fx.wrap
def _scores_with_sparse_gradients(x: Tensor, A: Tensor, W1: Tensor, W2: Tensor) -> Tensor:
    _check_features(x, A)
    return _rows_of(x, linear_min_max(x.reshape(-1, A.shape[1]), A, W1, W2))


def _check_features(x: Tensor, A: Tensor) -> None:
    if x.dim() == 0 or x.shape[-1] != A.shape[1]:
        raise ValueError(f"LinearMinMax: x has shape {tuple(x.shape)}; expected [..., {A.shape[1]}] (in_features)")


@fx.wrap
def _rows_of(x: Tensor, f: Tensor) -> Tensor:
    return f.reshape(*x.shape[:-1], f.shape[-1])


class LinearMinMax(nn.Module):
    """z = A x, u = min_i (z_i + W1_ji), f = max_j (u_j + W2_kj), by the tropical kernels: no [N, q, 2d] tensor is made.

    The gradient follows the winners (lowest index at ties): an entry of f moves one entry of W2 and one of W1.

    Args:
        in_features: d.  hidden: q.  classes: K.
        train_a: whether A gets gradients; it is a Parameter either way.
        sparse: whether the gradients of W1, W2 and A are sparse tensors, as of nn.Embedding: of W2 and W1 an entry for
            each entry of f's gradient that is not 0, uncoalesced; of A the rows that won, summed up.
            `optim.SparseMaxPlus` and torch.optim.SparseAdam take them. All else as in MaxPlusLinear.
        device, dtype: of the parameters A [2d, d], W1 [q, 2d] and W2 [K, q]; a floating point dtype.

    Shapes:
        x [..., d], in the dtype of the parameters → f [..., K].

    Raises:
        TypeError: a size that is no integer.  ValueError: a size below 1; the last dimension of x is not d.
    """

    def __init__(
        self,
        in_features: int,
        hidden: int,
        classes: int,
        *,
        train_a: bool = False,
        sparse: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("in_features", in_features), ("hidden", hidden), ("classes", classes)):
            check_size("LinearMinMax", name, size)
        self.in_features = in_features
        self.hidden = hidden
        self.classes = classes
        self.sparse = sparse

        def parameter(*shape: int, requires_grad: bool = True) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype), requires_grad=requires_grad)

        self.A = parameter(2 * in_features, in_features, requires_grad=train_a)
        self.W1 = parameter(hidden, 2 * in_features)
        self.W2 = parameter(classes, hidden)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A = [I; −I]; W1, W2 ~ U(−1, 1), as in MaxPlusLinear. A start from data is `init_kmedoids`."""
        self._set_scale(1.0)
        nn.init.uniform_(self.W1, -1.0, 1.0)
        nn.init.uniform_(self.W2, -1.0, 1.0)

    @torch.no_grad()
    def _set_scale(self, scale: float) -> None:
        identity = torch.eye(self.in_features, dtype=self.A.dtype, device=self.A.device)
        self.A.copy_(scale * torch.cat([identity, -identity]))

    def linear(self, x: Tensor) -> Tensor:
        """z = A x: [..., d] → [..., 2d]."""
        return _linear(x, self.A)

    def min_units(self, z: Tensor) -> Tensor:
        """u_j = min_i (z_i + W1_ji): [N, 2d] → [N, q]."""
        return tropical_matmul(z, self.W1.T, semiring="min_plus")

    def max_units(self, u: Tensor) -> Tensor:
        """f_k = max_j (u_j + W2_kj): [N, q] → [N, K]."""
        return tropical_matmul(u, self.W2.T)

    def forward(self, x: Tensor) -> Tensor:
        if self.sparse:
            return _scores_with_sparse_gradients(x, self.A, self.W1, self.W2)
        z = self.linear(x).reshape(-1, self.A.shape[0])  # 2d, or fewer where prune_units has been
        return _rows_of(x, self.max_units(self.min_units(z)))

    @torch.no_grad()
    def init_kmedoids(
        self,
        x: Tensor,
        y: Tensor,
        scale: float = 1.0,
        *,
        margin: float = 1.0,
        max_samples: int = 2048,
        generator: torch.Generator | None = None,
    ) -> KMedoidsInit:
        """Become the nearest-medoid classifier: k-medoids per class under the ∞-norm, then

            A = λ[I; −I],   W1_j = λ[−m_j; m_j],   W2_kj = 0 where m_j is of class k, else −BIG,

        so that u_nj = −λ ‖x_n − m_j‖∞ and the largest score is that of the nearest medoid's class. BIG = 2 (max|u| + Δ)
        keeps a unit out of other classes' scores; a larger one would absorb small steps in float32. The hidden units
        are split over the classes by their frequency, at least one each.

        Args:
            x: [N, d], the dtype and device of the parameters, finite.  y: [N], integer labels in [0, K), all present.
            scale: λ > 0. A power of two makes u exact: −λ times the rounded distance.
            margin: Δ > 0 of the loss that will be trained.
            max_samples: beyond so many samples in a class its medoids are sought in random samples (see kmedoids.py).
            generator: draws those samples; a CPU generator.
        Returns:
            The medoids, and what finding them cost.
        Raises:
            TypeError: dtypes; what is no tensor, and no number.
            ValueError: sizes or devices that do not fit; non-finite features; labels out of range, a class without
                samples, fewer than two classes; fewer hidden units than classes, or more than samples; weights beyond
                the dtype, of which none is written; a network that was pruned.
        """
        classes = self._check_samples(x, y, scale, margin)
        counts = torch.bincount(classes, minlength=self.classes)
        results, medoids = [], []
        for label, units in enumerate(units_by_class(counts.cpu(), self.hidden)):
            rows = (classes == label).nonzero().squeeze(1)
            result = kmedoids(x[rows], units, max_samples=max_samples, generator=generator)
            results.append(result)
            medoids.append(rows[result.indices])
        chosen = torch.cat(medoids)
        z, m = scale * x, scale * x[chosen]
        w1 = torch.cat([-m, m], dim=1)
        u = tropical_matmul(torch.cat([z, -z], dim=1), w1.T, semiring="min_plus")
        big = 2 * (u.abs().max() + margin)
        if not (big.isfinite() and w1.isfinite().all()):
            raise ValueError(
                f"LinearMinMax.init_kmedoids: scale {scale:g} times x spans [{z.min():.3g}, {z.max():.3g}], and the "
                f"weights would be more than {x.dtype} holds; expected a smaller scale or margin, or rescaled x"
            )
        self._set_scale(scale)
        self.W1.copy_(w1)
        is_own = classes[chosen] == torch.arange(self.classes, device=x.device).unsqueeze(1)
        self.W2.copy_(torch.where(is_own, torch.zeros_like(big), -big))
        return KMedoidsInit(chosen, classes[chosen], tuple(results))

    def _check_samples(self, x: Tensor, y: Tensor, scale: float, margin: float) -> Tensor:
        """The labels as int64, or an error that names what does not fit."""
        where = "LinearMinMax.init_kmedoids"
        if self.A.shape[0] != 2 * self.in_features:
            raise ValueError(
                f"{where}: A has {self.A.shape[0]} rows, as prune_units has left it; expected {2 * self.in_features}: "
                "make a new network"
            )
        for name, value in (("x", x), ("y", y)):
            if not isinstance(value, Tensor):
                raise TypeError(f"{where}: {name} is a {type(value).__name__}; expected a torch.Tensor")
        if x.dim() != 2 or x.shape[1] != self.in_features or len(x) == 0:
            raise ValueError(f"{where}: x has shape {tuple(x.shape)}; expected [N, {self.in_features}] with N ≥ 1")
        if x.dtype != self.A.dtype:
            raise TypeError(f"{where}: x is {x.dtype}; expected {self.A.dtype}, the dtype of the parameters")
        if x.is_meta or x.device != self.A.device or y.is_meta:
            raise ValueError(
                f"{where}: x is on {x.device}, y on {y.device} and the parameters on {self.A.device}; expected x and "
                "the parameters on one device, and values, which meta holds none of"
            )
        if y.shape != x.shape[:1]:
            raise ValueError(f"{where}: y has shape {tuple(y.shape)}; expected [{len(x)}], one label for each row of x")
        if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
            raise TypeError(f"{where}: y is {y.dtype}; expected integer class labels")
        for name, value in (("scale", scale), ("margin", margin)):
            check_positive(where, name, value)
        if not x.isfinite().all():
            raise ValueError(f"{where}: x holds NaN or infinite values; expected finite features")
        if self.classes < 2:
            raise ValueError(f"{where}: the network has a single class; a classifier needs at least two")
        if y.min() < 0 or y.max() >= self.classes:
            raise ValueError(f"{where}: y spans [{y.min()}, {y.max()}]; expected labels in [0, {self.classes - 1}]")
        labels = y.to(x.device, torch.int64)
        empty = (torch.bincount(labels, minlength=self.classes) == 0).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"{where}: no sample of class {', '.join(map(str, empty))}; every class needs a medoid")
        if not self.classes <= self.hidden <= len(x):
            raise ValueError(
                f"{where}: {self.hidden} hidden units for {self.classes} classes and {len(x)} samples; "
                "expected at least one a class and at most one a sample"
            )
        return labels

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, hidden={self.hidden}, classes={self.classes}, "
            f"train_a={self.A.requires_grad}{', sparse=True' if self.sparse else ''}"
        )
