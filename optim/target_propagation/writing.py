"""Writes a network into the model, and reads back what the model itself answers.

The model's dtype rounds weights, and its own matrix product rounds sums, so a row near a boundary may cross it. Each
layer is therefore written as wide of its rows as it can be, is run, and the layers above are fitted to what it answers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .convex_fit import Rows, fit_units
from .layers import Layers
from .problem import Head, Problem
from .report import head_margin, unit_margins
from .search import Network
from .separability import SEPARABLE, UNDECIDED, Separability, Status

_WIDE = (1e-4, 1e-6)  # ridges: the larger the wider the margin, and the sooner a row is on the wrong side
_LARGEST = 100.0  # of a head's weights: float16 holds what they add up to


@dataclass(frozen=True, eq=False)
class Written:
    """The weights that the model now holds, and its answers."""

    errors: int
    weights: tuple[np.ndarray, ...]  # of each layer as rounded, [D, U], the bias last
    rows: tuple[np.ndarray, ...]  # of each layer, a_n
    z: tuple[np.ndarray, ...]  # of each layer, float64
    signs: tuple[np.ndarray, ...]  # of each hidden layer, ±1, as the model answers
    head_test: Separability | None  # where the head makes errors


@torch.no_grad()
def write(layers: Layers, problem: Problem, network: Network, x: Tensor, tol: float) -> Written:
    """Writes the network's weights.

    Args:
        x: the rows as the model takes them.
    """
    flow = x if layers.flatten is None else layers.flatten(x)
    weights, rows, z, signs = [], [], [], []
    for place, kind in enumerate(problem.hidden):
        inputs = problem.inputs if place == 0 else Rows(_float64(flow), kind.has_bias)
        wanted = kind.signs(network.outputs[place])
        linear, threshold = layers.linears[place], layers.thresholds[place]
        chosen = _widest(linear, inputs, wanted, network.hidden[place])
        _assign(linear, chosen)
        flow = threshold(linear(flow))
        weights.append(chosen)
        rows.append(inputs.a)
        z.append(inputs.a @ chosen)
        signs.append(kind.signs(_float64(flow)))
    inputs = Rows(_float64(flow), problem.head_has_bias)
    linear = layers.linears[-1]
    best: tuple[int, float, np.ndarray] | None = None
    test = None
    for head in _heads(problem, inputs, network):
        errors, margin = _judged(linear, problem, inputs, flow, head)
        if best is None or (errors, -margin) < (best[0], -best[1]):
            best = errors, margin, head
    assert best is not None
    if best[0]:
        test = problem.separability(inputs, tol)
        if test.separator is not None:
            errors, margin = _judged(linear, problem, inputs, flow, _scaled(test.separator))
            if errors < best[0]:
                best = errors, margin, _scaled(test.separator)
    errors, _, head = best
    _judged(linear, problem, inputs, flow, head)
    weights.append(_rounded(linear, head))
    rows.append(inputs.a)
    z.append(inputs.a @ weights[-1])
    return Written(errors, tuple(weights), tuple(rows), tuple(z), tuple(signs), test)


def _heads(problem: Problem, inputs: Rows, network: Network) -> list[np.ndarray]:
    fits: list[Head] = [network.head] if len(network.head.weights) == inputs.a.shape[1] else []
    fits += [problem.fit_head(inputs, ridge, until_separated=False) for ridge in _WIDE]
    return [_scaled(fit.weights) for fit in fits]


def _scaled(weights: np.ndarray) -> np.ndarray:
    return weights * min(1.0, _LARGEST / max(np.abs(weights).max(initial=0.0), 1e-300))


def _judged(linear: nn.Linear, problem: Problem, inputs: Rows, flow: Tensor, head: np.ndarray) -> tuple[int, float]:
    """Errors of the model with this head, and its margin."""
    _assign(linear, _rounded(linear, head))
    answers = _float64(linear(flow))
    rounded = _rounded(linear, head)
    if problem.has_one_output:
        margin = float(
            unit_margins(rounded, inputs.has_bias, inputs.a @ rounded, problem.signs[:, None]).min(initial=np.inf)
        )
    else:
        margin = head_margin(rounded, inputs.has_bias, inputs.a @ rounded, problem.labels)
    return int((~(problem.margins(answers) > 0)).sum()), margin


def _widest(linear: nn.Linear, inputs: Rows, wanted: np.ndarray, present: np.ndarray) -> np.ndarray:
    """The rounded weights of each unit with fewest rows on the wrong side, and then furthest from the nearest."""
    ones = np.ones_like(wanted)
    fits = (fit_units(inputs, wanted, ones, ridge, until_separated=False) for ridge in _WIDE)
    candidates = [present, *(fit.weights for fit in fits)]
    best, best_wrong, best_margin = None, np.zeros(0), np.zeros(0)
    for candidate in candidates:
        norms = np.linalg.norm(candidate, axis=0)
        rounded = _rounded(linear, candidate / np.where(norms > 0, norms, 1))
        z = inputs.a @ rounded
        wrong = ((z > 0) != (wanted > 0)).sum(axis=0)
        margin = unit_margins(rounded, inputs.has_bias, z, wanted)
        if best is None:
            best, best_wrong, best_margin = rounded, wrong, margin
            continue
        is_better = (wrong < best_wrong) | ((wrong == best_wrong) & (margin > best_margin))
        best = np.where(is_better, rounded, best)
        best_wrong, best_margin = np.where(is_better, wrong, best_wrong), np.where(is_better, margin, best_margin)
    assert best is not None
    return best


def _rounded(linear: nn.Linear, weights: np.ndarray) -> np.ndarray:
    return torch.from_numpy(np.ascontiguousarray(weights)).to(linear.weight.dtype).double().numpy()


def _assign(linear: nn.Linear, weights: np.ndarray) -> None:
    values = torch.from_numpy(np.ascontiguousarray(weights))
    if linear.bias is not None:
        linear.bias.copy_(values[-1])
        values = values[:-1]
    linear.weight.copy_(values.t())


def _float64(values: Tensor) -> np.ndarray:
    return values.double().cpu().numpy()


def status_of(margin: float, test: Separability | None) -> Status:
    """Tells of one unit or head what its margin shows, or else what the test came to."""
    if margin > 0:
        return SEPARABLE
    return UNDECIDED if test is None else test.status
