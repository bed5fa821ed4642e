"""k-medoids under the ∞-norm:  choose k of the n points, the medoids m, to minimise  Σ_n min_m ‖x_n − m‖∞.

BUILD chooses greedily, SWAP exchanges a medoid for another point while that lowers the sum (PAM: Kaufman & Rousseeuw,
1990). All k exchanges of a candidate c are priced in one pass over the points o, and the best is made at once when it
pays (FasterPAM: Schubert & Rousseeuw, "Fast and eager k-medoids clustering", 2021). With the distances d_n, d_s of o to
its nearest and second nearest medoid, exchanging medoid i for c changes the sum by

    Σ_o min(d_oc − d_n, 0)  +  Σ_{o: nearest is i} clamp(d_oc, d_n, d_s) − d_n

Beyond `max_samples` points the distances of all pairs are too many: PAM then runs on several random samples, each
holding the best medoids so far, and the set that serves all points best is kept (CLARA: Kaufman & Rousseeuw, 1990).
"""

from __future__ import annotations

import operator
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..kernels import tropical_matmul


@dataclass(frozen=True)
class KMedoids:
    """A clustering, and the work that finding it took."""

    indices: Tensor  # [k] int64: the rows of x that are medoids
    loss: float  # Σ_n min_m ‖x_n − m‖∞ over all points
    swaps: int  # exchanges made, over all samples
    passes: float  # candidates priced, in units of "every point once"
    samples: int  # PAM runs: 1, or more where CLARA sampled
    seconds: float


def chebyshev_distances(x: Tensor, m: Tensor) -> Tensor:
    """‖x_n − m_j‖∞ for all pairs, as one max-plus product: max_i of x_i − m_i and m_i − x_i.

    Args:
        x: [N, d].  m: [J, d], same dtype and device.
    Returns:
        [N, J]
    """
    return tropical_matmul(torch.cat([x, -x], dim=1), torch.cat([-m, m], dim=1).T)


# BUILD and SWAP are long chains of short steps, for which NumPy's calls cost less than torch's and wait for no thread.


def _build(distances: np.ndarray, k: int) -> np.ndarray:
    """PAM's BUILD: the best single medoid, then whichever point lowers the sum most."""
    chosen = np.empty(k, dtype=np.int64)
    chosen[0] = distances.sum(axis=1).argmin()
    nearest = distances[chosen[0]]
    for i in range(1, k):
        gains = np.maximum(nearest - distances, 0).sum(axis=1)
        gains[chosen[:i]] = -1.0  # never twice, though with fewer than k distinct points all gains are 0
        chosen[i] = gains.argmax()
        nearest = np.minimum(nearest, distances[chosen[i]])
    return chosen


def _two_nearest(distances: np.ndarray, medoids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each point: the distances to its nearest and second nearest medoid, and the index of the nearest."""
    to_medoids = distances[medoids]
    d_n, d_s = np.partition(to_medoids, 1, axis=0)[:2]
    return d_n, d_s, to_medoids.argmin(axis=0)


def _swap(distances: np.ndarray, medoids: np.ndarray) -> tuple[np.ndarray, int, float]:
    """FasterPAM's SWAP: to the first clustering that no single exchange improves. Also counts swaps and passes."""
    n, k = len(distances), len(medoids)
    if k == 1 or k == n:  # BUILD's single medoid is the optimum already; n of n leave nothing to exchange
        return medoids, 0, 0.0
    medoids = medoids.copy()
    d_n, d_s, owner = _two_nearest(distances, medoids)
    swaps = priced = unchanged = candidate = 0
    while unchanged < n:
        unchanged += 1
        if candidate not in medoids:
            priced += 1
            d_c = distances[candidate]
            changes = np.bincount(owner, weights=np.minimum(np.maximum(d_c, d_n), d_s) - d_n, minlength=k)
            i = changes.argmin()
            change = changes[i] + np.minimum(d_c - d_n, 0).sum()
            if change < -1e-9 * d_n.sum():  # rounding alone must not keep it exchanging for ever
                medoids[i] = candidate
                d_n, d_s, owner = _two_nearest(distances, medoids)
                swaps += 1
                unchanged = 0
        candidate = (candidate + 1) % n
    return medoids, swaps, priced / n


def kmedoids(
    x: Tensor,
    k: int,
    *,
    max_samples: int = 2048,
    samples: int = 5,
    generator: torch.Generator | None = None,
) -> KMedoids:
    """k medoids of the rows of x under the ∞-norm.

    Args:
        x: [n, d], floating point, finite, n ≥ k, d ≥ 1. Distances are found on its device, exchanges are priced on the
            CPU.
        k: the number of medoids.
        max_samples: the largest n whose n² distances are held at once, ≥ 1: 32 MiB in float64 at the default.
        samples: how many samples of max(max_samples, 2 k) points are tried beyond that, ≥ 1.
        generator: draws the samples (a CPU generator; None is torch's global one). Below max_samples nothing is random.

    Raises:
        TypeError: x is no floating point tensor; k, max_samples or samples is no integer.
        ValueError: x has the wrong rank or no features, is not finite, or spans more than its dtype holds; k is not in
            [1, n], or max_samples or samples is less than 1.
    """
    started = time.perf_counter()
    k, max_samples, samples = (
        _count(name, value) for name, value in (("k", k), ("max_samples", max_samples), ("samples", samples))
    )
    _check_points(x, k)
    x = x.detach()
    size = max(max_samples, 2 * k)
    runs = 1 if len(x) <= size else samples
    cpu = torch.device("cpu")
    best_loss, best = float("inf"), torch.empty(0, dtype=torch.int64, device=cpu)
    swaps, passes = 0, 0.0
    for _ in range(runs):
        if runs == 1:
            rows = torch.arange(len(x), device=cpu)
        else:
            drawn = torch.randperm(len(x), generator=generator, device=cpu)
            rows = torch.cat([best, drawn[: size - len(best)]]).unique()
        sample = x[rows.to(x.device)]
        distances = chebyshev_distances(sample, sample).double().cpu().numpy()
        local, run_swaps, run_passes = _swap(distances, _build(distances, k))
        swaps, passes = swaps + run_swaps, passes + run_passes
        medoids = rows[torch.from_numpy(local)]
        loss = chebyshev_distances(x, x[medoids.to(x.device)]).amin(dim=1).double().sum().item()
        if loss < best_loss:
            best_loss, best = loss, medoids
    return KMedoids(best.to(x.device), best_loss, swaps, passes, runs, time.perf_counter() - started)


def _count(name: str, value: int) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        count = None
    if count is None or isinstance(value, bool):
        raise TypeError(f"kmedoids: {name} is {value!r}; expected an integer")
    if count < 1 and name != "k":
        raise ValueError(f"kmedoids: {name} is {value}; expected at least 1")
    return count


def _check_points(x: Tensor, k: int) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        what = x.dtype if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise TypeError(f"kmedoids: x is {what}; expected a floating point torch.Tensor")
    if x.dim() != 2 or not 1 <= k <= len(x):
        raise ValueError(f"kmedoids: k is {k} and x has shape {tuple(x.shape)}; expected x [n, d] and 1 ≤ k ≤ n")
    if x.shape[1] == 0:
        raise ValueError(f"kmedoids: x has shape {tuple(x.shape)}; expected [n, d] with d ≥ 1")
    if x.is_meta:
        raise ValueError("kmedoids: x is on meta, which holds no values; expected points on a device")
    if not x.isfinite().all():
        raise ValueError("kmedoids: x holds NaN or infinite values; expected finite features")
    if not (x.amax(dim=0) - x.amin(dim=0)).isfinite().all():
        raise ValueError(f"kmedoids: x spans more than {x.dtype} holds, and distances would be infinite; rescale x")
