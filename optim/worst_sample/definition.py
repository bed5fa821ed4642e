"""Subgradient steps on the worst sample of a linear-min-max network: the definition, which keeps no activations.

    z_n = A x_n,    u_nj = min_i (z_ni + W1_ji),    f_nk = max_j (u_nj + W2_kj),    F = max_n ℓ_n
    I_nj, J_nk, n*: where these are attained, the lowest index at ties

    ℓ_n = max(0, max_{k≠y} (Δ + f_nk) − f_ny)        c_k* = 1, c_y = −1, k* the best rival        hinge
    ℓ_n = log Σ_k exp f_nk − f_ny                    c_k = softmax(f_n)_k − [k = y]               cross-entropy

    g_W2[k, J_k] = c_k,    g_W1[J_k, I_Jk] += c_k,    g_A[I_Jk, :] += c_k x_n*,    W ← W − γ g

at n = n*: at most four entries with the hinge and A fixed. Duplicates add up, and may cancel. z is summed in the order
of the features, each product and sum rounded, and a step is rounded before it is added: so every path to the same
weights gives the same activations, bit for bit.

With a level α, F is not the largest ℓ but the mean of the worst share α of the samples (Rockafellar & Uryasev):

    F = (1/M) Σ ω_n ℓ_n,    M = max(1, α N),    ω_n = 1 for the ⌈M⌉ − 1 largest ℓ_n, M − ⌈M⌉ + 1 for the next, else 0

At ties the lower n is the larger. g is the same sum of the samples' subgradients: for each entry, ω_n c_k in the order
of n, then of k, in float64, and the sum divided by M. A sample whose hinge is 0 has the subgradient 0. M = 1 is the
worst sample, in its very bits. Subgradients of many samples may cancel to 0: the run has ended, and is stationary.

A step that would leave a weight that is not finite is not taken: nothing is written, and the run has diverged.

Steps: "polyak", γ = (F − L) / ‖g‖², with a level L that starts at the target and is raised by path-based level control
where the iterates travel without getting there; "sqrt", γ = c / (‖g‖ √(t+1)); "power", γ = c / (‖g‖ (t+1)^0.6), for
which Σγ = ∞ and Σγ² < ∞. F is piecewise linear with the hinge and not convex: limit points are stationary at best.

Network and sparse subgradient: Enaieh & Fercoq, arXiv 2603.04133; steps: Nesterov, "Subgradient methods for huge-scale
optimization problems", 2012; level control: Brännlund, 1993, and Nedić & Bertsekas, 2001; the mean of the worst share:
Rockafellar & Uryasev, "Optimization of conditional value-at-risk", 2000. The full text of the first was not available
to us; losses, steps and settings are our own.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Literal, NamedTuple

import torch
from torch import Tensor

LOSSES = ("hinge", "cross_entropy")
STEPS = ("polyak", "sqrt", "power")
PATIENCE = 20.0  # first steps that the iterates may travel without descent before the level is raised
IDLE = 100  # iterations within the rounding of the target, and no better, that end a run

GOING, MET, ROUNDED, DIVERGED, STATIONARY = range(5)  # Progress.status


class Weights(NamedTuple):
    a: Tensor  # [p, d]
    w1: Tensor  # [q, p]
    w2: Tensor  # [K, q]


@dataclass(frozen=True)
class Settings:
    loss: Literal["hinge", "cross_entropy"] = "hinge"
    margin: float = 1.0  # Δ, in the units of the scores
    step: Literal["polyak", "sqrt", "power"] = "polyak"
    target: float = 0.0  # the level that F is hoped to reach; reaching it ends the run
    length: float = 0.0  # c, of "sqrt" and "power"; 0: the length of Polyak's first step
    train_a: bool = False
    alpha: float | None = None  # the share of the samples whose mean is F; None: the worst sample


class Progress(ctypes.Structure):
    """All that the next iterate depends on beside the weights: a C structure, which the loops in C++ write as well."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("iteration", "status", "worst", "idle", "raises")),
        *((name, ctypes.c_int64) for name in ("best_iteration", "right", "best_right", "best_right_iteration")),
        *((name, ctypes.c_double) for name in ("loss", "best_loss", "best_right_loss")),
        *((name, ctypes.c_double) for name in ("record", "gap", "path", "longest_path", "length")),
    )

    iteration: int
    status: int
    worst: int  # n*
    idle: int  # iterations in a row that found F within its rounding of the target, and no better than before
    raises: int  # how often the level was raised
    best_iteration: int
    right: int  # validation samples classified rightly; −1 without any
    best_right: int
    best_right_iteration: int
    loss: float
    best_loss: float
    best_right_loss: float
    record: float
    gap: float
    path: float
    longest_path: float
    length: float

    def as_dict(self) -> dict[str, int | float]:
        return {field[0]: getattr(self, field[0]) for field in self._fields_}


def beginning(settings: Settings) -> Progress:
    infinite = dict.fromkeys(("loss", "best_loss", "record", "gap"), math.inf)
    return Progress(length=settings.length, right=-1, best_right=-1, **infinite)


# ------------------------------------------------------------------------------------------------ one iteration


def linear(x: Tensor, a: Tensor) -> Tensor:
    """z = A x, in the order of the features: x [N, d], A [p, d] → [N, p]."""
    z = x.new_zeros(len(x), len(a))
    for feature in range(a.shape[1]):
        weighted = a[:, feature].nonzero().squeeze(1)  # the others would add 0
        z[:, weighted] += x[:, feature : feature + 1] * a[weighted, feature]
    return z


class Activations(NamedTuple):
    u: Tensor  # [N, q]
    i: Tensor  # [N, q] int64
    f: Tensor  # [N, K]
    j: Tensor  # [N, K] int64


def activate_ref(z: Tensor, weights: Weights) -> Activations:
    u = (z[:, None, :] + weights.w1).min(dim=2)
    f = (u.values[:, None, :] + weights.w2).max(dim=2)
    return Activations(u.values, u.indices, f.values, f.indices)


def sample_losses(f: Tensor, y: Tensor, settings: Settings) -> Tensor:
    """ℓ [N], in the dtype of f."""
    labels = y.long().unsqueeze(1)
    if settings.loss == "hinge":
        rivals = (f + settings.margin).scatter(1, labels, -math.inf).max(dim=1).values
        return (rivals - f.gather(1, labels).squeeze(1)).clamp_min(0)
    return f.new_tensor(
        [_log_sum_exp(scores)[0] - scores[label] for scores, label in zip(f.tolist(), y.tolist(), strict=True)]
    )


def _log_sum_exp(scores: list[float]) -> tuple[float, list[float]]:
    """log Σ exp f_k and the terms of softmax, by the C library's functions: torch's differ in the last place."""
    top = max(scores)
    terms = [math.exp(score - top) for score in scores]
    total = reduce(add, terms)
    return top + math.log(total), [term / total for term in terms]


def loss_gradients(f: Tensor, y: Tensor, settings: Settings) -> list[list[tuple[int, float]]]:
    """(k, c_k) of each sample's scores, f [n, K], those that are not 0, by ascending k; of a hinge of 0, none."""
    if settings.loss == "hinge":
        labels = y.long().unsqueeze(1)
        rivals = (f + settings.margin).scatter(1, labels, -math.inf).max(dim=1)
        has_loss = (rivals.values - f.gather(1, labels).squeeze(1) > 0).tolist()
        pairs = zip(rivals.indices.tolist(), y.tolist(), has_loss, strict=True)
        return [sorted([(rival, 1.0), (own, -1.0)]) if lossy else [] for rival, own, lossy in pairs]
    samples = zip(f.tolist(), y.tolist(), strict=True)
    return [
        [(k, c) for k, p in enumerate(_log_sum_exp(scores)[1]) if (c := p - (k == own)) != 0] for scores, own in samples
    ]


def step_length(settings: Settings, progress: Progress, loss: float, squared_norm: float) -> float | None:
    """γ, of F above the target and ‖g‖²; None where the iterates must go back to the best ones.

    "polyak": the level is max(target, best − gap), and the gap starts as F − target. Each time F has come down by half
    a gap, that is a new record. When the iterates have travelled too far since the last one, the level was out of
    reach: the gap is halved and the iterates go back to the best. Too far is PATIENCE times the length of the very
    first step, and √½ of that after each halving: a fixed length would give ever more steps to each level, one that
    shrinks with the gap too few.
    """
    norm = math.sqrt(squared_norm)
    first = math.isinf(progress.record)
    if first:
        progress.record, progress.gap = loss, loss - settings.target
        progress.longest_path = PATIENCE * (loss - settings.target) / norm
        if progress.length == 0:
            progress.length = (loss - settings.target) / norm
    t = progress.iteration + 1
    if settings.step == "sqrt":
        return progress.length / (norm * math.sqrt(t))
    if settings.step == "power":
        return progress.length / (norm * math.pow(t, 0.6))
    if loss <= progress.record - progress.gap / 2:
        progress.record, progress.path = loss, 0.0
    elif progress.path > progress.longest_path:
        progress.gap = min(progress.gap, progress.best_loss - settings.target) / 2
        progress.longest_path *= math.sqrt(0.5)
        progress.record, progress.path = progress.best_loss, 0.0
        progress.raises += 1
        return None
    level = max(settings.target, progress.best_loss - progress.gap)
    progress.path += (loss - level) / norm
    return (loss - level) / squared_norm


# ------------------------------------------------------------------------------------------------ the iterations


@dataclass
class Samples:
    """Training samples, then validation samples, which are watched and have no part in F."""

    x: Tensor  # [N, d]
    y: Tensor  # [N] int32
    training: int


@dataclass
class State:
    """A run: weights that change in place, and all that the next iterate and the record of the run need."""

    settings: Settings
    samples: Samples
    weights: Weights
    best: Weights  # of the least F
    best_right: Weights | None  # of the most validation samples classified rightly; None without any
    progress: Progress
    times_worst: Tensor  # [training] int64; of all ranks where several share the samples out

    @property
    def mass(self) -> float:
        """M, the number of samples whose mean is F."""
        return mass_of(self.settings, len(self.times_worst))


def mass_of(settings: Settings, samples: int) -> float:
    """M; a whole number where α N is one but for rounding."""
    if settings.alpha is None:
        return 1.0
    mass = settings.alpha * samples
    whole = round(mass)
    return max(1.0, whole if math.isclose(mass, whole, rel_tol=1e-12) else mass)


class Moves(NamedTuple):
    """Weights that moved."""

    leaves: list[tuple[int, int]]  # of W1
    readouts: list[tuple[int, int]]  # of W2
    rows: list[int]  # of A


def moves_between(one: Weights, other: Weights) -> Moves:
    rows, leaves, readouts = ((x != y).nonzero().tolist() for x, y in zip(one, other, strict=True))
    return Moves([(j, i) for j, i in leaves], [(k, j) for k, j in readouts], sorted({i for i, _ in rows}))


class Seen(NamedTuple):
    """A sample of the tail."""

    loss: float  # ℓ_n
    n: int
    largest: float  # max |f_nk|, whose rounding is that of ℓ_n
    routes: list[tuple[int, int, int, float]]  # (k, J_k, I_Jk, c_k)
    x: Tensor | None  # where A is trained


class Observation(NamedTuple):
    """All that an iteration needs of the samples."""

    tail: list[Seen]  # n* first
    right: int  # validation samples classified rightly; −1 without any


def worst_of(samples: Iterable[Seen], mass: float) -> list[Seen]:
    """The ⌈mass⌉ worst, the worst first; of equal ones the first, and NaN before all."""
    return sorted(samples, key=lambda seen: (not math.isnan(seen.loss), -seen.loss, seen.n))[: math.ceil(mass)]


def weighted(tail: list[Seen], mass: float) -> list[tuple[Seen, float]]:
    """The samples of the tail and their weights ω, by ascending n."""
    weights = [1.0] * (len(tail) - 1) + [mass - (len(tail) - 1)]
    return sorted(zip(tail, weights, strict=True), key=lambda pair: pair[0].n)


def observe(state: State, losses: Tensor, activations: Activations) -> Observation:
    """losses: ℓ of the training samples, whose tail is the Observation's; at ties, the first."""
    samples, settings = state.samples, state.settings
    count = min(math.ceil(state.mass), len(losses))
    order = losses.max(dim=0).indices[None] if count == 1 else losses.sort(descending=True, stable=True).indices
    tail = order[:count]
    f, y = activations.f[tail], samples.y[tail]
    j = activations.j[tail].long()
    i = activations.i[tail].long().gather(1, j).tolist()
    gradients = loss_gradients(f, y, settings)
    routes = [
        [(k, units[k], leaves[k], c) for k, c in gradient]
        for units, leaves, gradient in zip(j.tolist(), i, gradients, strict=True)
    ]
    xs = samples.x[tail] if settings.train_a else [None] * count
    largest = f.double().abs().amax(dim=1).tolist()
    seen = map(Seen, losses[tail].tolist(), tail.tolist(), largest, routes, xs)
    right = -1
    if state.best_right is not None:
        predicted = activations.f[samples.training :].max(dim=1).indices
        right = int((predicted == samples.y[samples.training :]).sum())
    return Observation([*seen], right)


class Dense:
    """Iterations that compute every activation each time: the definition, and the path without a C++ compiler.

    activate: the activations of z and the weights; `activate_ref` materialises all candidates.
    """

    def __init__(self, state: State, activate: Callable[[Tensor, Weights], Activations] = activate_ref) -> None:
        self.state = state
        self._activate = activate
        self.z = linear(state.samples.x, state.weights.a)
        self._evaluate()

    def _evaluate(self) -> None:
        samples = self.state.samples
        self.activations = self._activate(self.z, self.state.weights)
        self.losses = sample_losses(
            self.activations.f[: samples.training], samples.y[: samples.training], self.state.settings
        )
        self.seen = observe(self.state, self.losses, self.activations)

    def follow(self, moves: Moves) -> None:
        """The weights have moved: observe the new iterate."""
        if moves.rows:
            self.z = linear(self.state.samples.x, self.state.weights.a)
        self._evaluate()

    def run(self, iterations: int, trace: Tensor) -> int:
        """At most so many iterations; F after each goes to `trace` [iterations] float64. Returns how many were done."""
        progress = self.state.progress
        if math.isinf(progress.loss):
            self._observe()
        done = 0
        while done < iterations and progress.status == GOING and self._advance():
            self._observe()
            trace[done] = progress.loss
            done += 1
        return done

    def _observe(self) -> None:
        """The present iterate: F, whether it is the best, whether it is the last."""
        state, progress, seen = self.state, self.state.progress, self.seen
        losses = [weight * sample.loss for sample, weight in weighted(seen.tail, state.mass)]
        progress.loss, progress.worst = reduce(add, losses) / state.mass, seen.tail[0].n
        state.times_worst[progress.worst] += 1
        previous = progress.best_loss
        if progress.loss < previous:
            progress.best_loss, progress.best_iteration = progress.loss, progress.iteration
            _copy(state.best, state.weights)
        if state.best_right is not None:
            progress.right = seen.right
            if progress.right > progress.best_right:
                progress.best_right, progress.best_right_iteration = progress.right, progress.iteration
                progress.best_right_loss = progress.loss
                _copy(state.best_right, state.weights)
        rounding = torch.finfo(state.weights.w2.dtype).eps * max(sample.largest for sample in seen.tail)
        near = previous <= progress.loss <= state.settings.target + rounding
        progress.idle = progress.idle + 1 if near else 0
        if not math.isfinite(progress.loss):
            progress.status = DIVERGED
        elif progress.loss <= state.settings.target:
            progress.status = MET
        elif progress.idle >= IDLE:
            progress.status = ROUNDED

    def _advance(self) -> bool:
        """To the next iterate, or nowhere: with the status DIVERGED, where a weight of it would not be finite; with
        STATIONARY, where no weight would move."""
        state, settings, progress = self.state, self.state.settings, self.state.progress
        weights, mass = state.weights, state.mass
        g2: dict[tuple[int, int], float] = {}
        g1: dict[tuple[int, int], float] = {}
        for sample, weight in weighted(self.seen.tail, mass):
            for k, j, i, c in sample.routes:
                g2[k, j] = g2.get((k, j), 0.0) + weight * c
                g1[j, i] = g1.get((j, i), 0.0) + weight * c
        for g in (g2, g1):
            for entry in g:
                g[entry] /= mass
        rows = self._rows() if settings.train_a else {}
        squares = [c * c for c in g2.values()] + [c * c for c in g1.values()] + [row.square for row in rows.values()]
        squared_norm = reduce(add, squares, 0.0)
        if squared_norm == 0:
            progress.status = STATIONARY
            return False
        gamma = step_length(settings, progress, progress.loss, squared_norm)
        if gamma is None:
            moves = moves_between(weights, state.best)
            _copy(weights, state.best)
        else:
            moves = Moves(list(g1), list(g2), list(rows))
            steps = [(weights.w2[k, j], -(gamma * c)) for (k, j), c in g2.items()]
            steps += [(weights.w1[j, i], -(gamma * c)) for (j, i), c in g1.items()]
            moved = [(weight, weight + step) for weight, step in steps]
            moved += [(weights.a[i], weights.a[i] + row.step(gamma)) for i, row in rows.items()]
            if not torch.cat([after.flatten() for _, after in moved]).isfinite().all():
                progress.status = DIVERGED
                return False
            for weight, after in moved:
                weight.copy_(after)
        progress.iteration += 1
        self.follow(moves)
        return True

    def _rows(self) -> dict[int, _Row]:
        """g_A, row by row."""
        terms: dict[int, list[tuple[float, Tensor]]] = {}  # the coefficient of each sample that the row has part in
        for sample, weight in weighted(self.seen.tail, self.state.mass):
            assert sample.x is not None
            of_sample: dict[int, float] = {}
            for _, _, i, c in sample.routes:
                of_sample[i] = of_sample.get(i, 0.0) + weight * c
            for i, c in of_sample.items():
                terms.setdefault(i, []).append((c, sample.x))
        return {i: _Row(of_row, self.state.mass) for i, of_row in terms.items()}


class _Row:
    """A row of g_A, (1/M) Σ c_n x_n. That of one sample is c x: its step is rounded for c, then for each x."""

    def __init__(self, terms: list[tuple[float, Tensor]], mass: float) -> None:
        c, x = terms[0]
        self._dtype = x.dtype
        self._c, self._x = c / mass, x
        if len(terms) > 1:
            self._c, self._x = 1.0, reduce(add, (c * x.double() for c, x in terms)) / mass
        self.square = self._c * self._c * reduce(add, self._x.double().square().tolist())

    def step(self, gamma: float) -> Tensor:
        c = torch.tensor(-(gamma * self._c), dtype=torch.float64, device="cpu")
        return (self._x * c.to(self._x)).to(self._dtype)


def _copy(target: Weights, source: Weights) -> None:
    for ours, theirs in zip(target, source, strict=True):
        ours.copy_(theirs)
