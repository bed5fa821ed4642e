"""Subgradient steps on the worst sample of a linear-min-max network: the definition, which keeps no activations.

    z_n = A x_n,    u_nj = min_i (z_ni + W1_ji),    f_nk = max_j (u_nj + W2_kj),    F = max_n ℓ_n
    I_nj, J_nk, n*: where these are attained, the lowest index at ties

    ℓ_n = max(0, max_{k≠y} (Δ + f_nk) − f_ny)        c_k* = 1, c_y = −1, k* the best rival        hinge
    ℓ_n = log Σ_k exp f_nk − f_ny                    c_k = softmax(f_n)_k − [k = y]               cross-entropy

    g_W2[k, J_k] = c_k,    g_W1[J_k, I_Jk] += c_k,    g_A[I_Jk, :] += c_k x_n*,    W ← W − γ g

at n = n*: at most four entries with the hinge and A fixed. Duplicates add up, and may cancel. z is summed in the order
of the features, each product and sum rounded, and a step is rounded before it is added: so every path to the same
weights gives the same activations, bit for bit.

A step that would leave a weight that is not finite is not taken: nothing is written, and the run has diverged.

Steps: "polyak", γ = (F − L) / ‖g‖², with a level L that starts at the target and is raised by path-based level control
where the iterates travel without getting there; "sqrt", γ = c / (‖g‖ √(t+1)); "power", γ = c / (‖g‖ (t+1)^0.6), for
which Σγ = ∞ and Σγ² < ∞. F is piecewise linear with the hinge and not convex: limit points are stationary at best.

Network and sparse subgradient: Enaieh & Fercoq, arXiv 2603.04133; steps: Nesterov, "Subgradient methods for huge-scale
optimization problems", 2012; level control: Brännlund, 1993, and Nedić & Bertsekas, 2001. The full text of the first
was not available to us; losses, steps and settings are our own.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
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

GOING, MET, ROUNDED, DIVERGED = range(4)  # Progress.status


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


def loss_gradient(f: Tensor, y: int, settings: Settings) -> list[tuple[int, float]]:
    """(k, c_k) of one sample's scores f [K], those that are not 0, by ascending k."""
    if settings.loss == "hinge":
        rivals = f + settings.margin
        rivals[y] = -math.inf
        return sorted([(int(rivals.max(dim=0).indices), 1.0), (y, -1.0)])
    softmax = _log_sum_exp(f.tolist())[1]
    return [(k, c) for k, p in enumerate(softmax) if (c := p - (k == y)) != 0]


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
    times_worst: Tensor  # [training] int64


class Moves(NamedTuple):
    """Weights that moved."""

    leaves: list[tuple[int, int]]  # of W1
    readouts: list[tuple[int, int]]  # of W2
    rows: list[int]  # of A


def moves_between(one: Weights, other: Weights) -> Moves:
    rows, leaves, readouts = ((x != y).nonzero().tolist() for x, y in zip(one, other, strict=True))
    return Moves([(j, i) for j, i in leaves], [(k, j) for k, j in readouts], sorted({i for i, _ in rows}))


class Observation(NamedTuple):
    """All that an iteration needs of the samples."""

    loss: float  # F
    worst: int  # n*
    largest: float  # max |f_n*k|, whose rounding is that of F
    routes: list[tuple[int, int, int, float]]  # (k, J_k, I_Jk, c_k) of n*
    x: Tensor | None  # of n*, where A is trained
    right: int  # validation samples classified rightly; −1 without any


def observe(state: State, losses: Tensor, activations: Activations) -> Observation:
    """losses: ℓ of the training samples; n* is the first that attains their maximum."""
    samples, settings = state.samples, state.settings
    top = losses.max(dim=0)
    n = int(top.indices)
    f = activations.f[n]
    routes = []
    for k, c in loss_gradient(f, int(samples.y[n]), settings):
        j = int(activations.j[n, k])
        routes.append((k, j, int(activations.i[n, j]), c))
    right = -1
    if state.best_right is not None:
        predicted = activations.f[samples.training :].max(dim=1).indices
        right = int((predicted == samples.y[samples.training :]).sum())
    x = samples.x[n] if settings.train_a else None
    return Observation(float(top.values), n, float(f.double().abs().max()), routes, x, right)


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
        progress.loss, progress.worst = seen.loss, seen.worst
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
        rounding = torch.finfo(state.weights.w2.dtype).eps * seen.largest
        near = previous <= progress.loss <= state.settings.target + rounding
        progress.idle = progress.idle + 1 if near else 0
        if not math.isfinite(progress.loss):
            progress.status = DIVERGED
        elif progress.loss <= state.settings.target:
            progress.status = MET
        elif progress.idle >= IDLE:
            progress.status = ROUNDED

    def _advance(self) -> bool:
        """To the next iterate, or nowhere, with the status DIVERGED, where a weight of it would not be finite."""
        state, settings, progress = self.state, self.state.settings, self.state.progress
        weights, x = state.weights, self.seen.x
        g2: list[tuple[int, int, float]] = []
        g1: dict[tuple[int, int], float] = {}
        ga: dict[int, float] = {}
        for k, j, i, c in self.seen.routes:
            g2.append((k, j, c))
            g1[j, i] = g1.get((j, i), 0.0) + c
            ga[i] = ga.get(i, 0.0) + c
        squares = [c * c for _, _, c in g2] + [c * c for c in g1.values()]
        if x is not None:
            x_square = reduce(add, x.double().square().tolist())
            squares += [c * c * x_square for c in ga.values()]
        gamma = step_length(settings, progress, progress.loss, reduce(add, squares))
        if gamma is None:
            moves = moves_between(weights, state.best)
            _copy(weights, state.best)
        else:
            moves = Moves(list(g1), [(k, j) for k, j, _ in g2], [] if x is None else list(ga))
            steps = [(weights.w2[k, j], -(gamma * c)) for k, j, c in g2]
            steps += [(weights.w1[j, i], -(gamma * c)) for (j, i), c in g1.items()]
            moved = [(weight, weight + step) for weight, step in steps]
            if x is not None:
                rows = [
                    (weights.a[i], torch.tensor(-(gamma * c), dtype=torch.float64, device="cpu")) for i, c in ga.items()
                ]
                moved += [(row, row + x * step.to(x)) for row, step in rows]
            if not torch.cat([after.flatten() for _, after in moved]).isfinite().all():
                progress.status = DIVERGED
                return False
            for weight, after in moved:
                weight.copy_(after)
        progress.iteration += 1
        self.follow(moves)
        return True


def _copy(target: Weights, source: Weights) -> None:
    for ours, theirs in zip(target, source, strict=True):
        ours.copy_(theirs)
