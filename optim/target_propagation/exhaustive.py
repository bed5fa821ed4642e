"""The exhaustive phase: all a small hidden layer can do, so that "infeasible" is a proof.

A dichotomy is a division of the rows in two by one unit. Of N distinct rows only those that are linearly separable can
be realised; a network of one hidden layer with q units is feasible if and only if the head separates the outputs of
some q of these dichotomies. Each test, of a dichotomy and of the head, is confirmed in rational arithmetic.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from math import comb

import numpy as np

from . import exact
from .convex_fit import Rows
from .problem import HiddenLayer, Problem
from .search import Network
from .separability import SEPARABLE, UNDECIDED, Separability, separable_classes

MOST_ROWS = 10
MOST_CHOICES = 20_000


@dataclass(frozen=True, eq=False)
class Exhausted:
    """All choices were tried: the first feasible network, or a proof that there is none."""

    network: Network | None
    dichotomies: int  # separable ones, up to sign where the sign does not matter
    choices: int  # of as many dichotomies as there are units


def exhaust(problem: Problem, tol: float, tell: Callable[[], None] = lambda: None) -> Exhausted | None:
    """Tries all choices of dichotomies; None where there are too many, or one test came to nothing.

    Args:
        problem: without equal rows of different labels.
        tell: called before each test; it may raise to end the phase.
    """
    if len(problem.hidden) != 1 or not problem.hidden[0].has_bias:  # without a bias, z = 0 cannot be moved off 0
        return None
    layer = problem.hidden[0]
    _, places, each = np.unique(problem.x, axis=0, return_index=True, return_inverse=True)
    if len(places) > MOST_ROWS or _choices(len(places), layer.units) > MOST_CHOICES:  # no fewer than N dichotomies
        return None
    rows, labels = Rows(problem.x[places], True), problem.labels[places]
    has_signs = not problem.head_has_bias and layer.below != -layer.above
    dichotomies = _dichotomies(rows, layer.units, has_signs, tol, tell)
    if dichotomies is None:
        return None
    signs = np.array([targets for targets, _ in dichotomies])
    size = min(layer.units, len(dichotomies))  # a dichotomy twice does no more than once
    tests: dict[bytes, bool | None] = {}
    for choice in itertools.combinations(range(len(dichotomies)), size):
        chosen = list(choice) + [choice[-1]] * (layer.units - size)
        codes = signs[chosen].T
        distinct, first, code = np.unique(codes, axis=0, return_index=True, return_inverse=True)
        if (labels[first][code.reshape(-1)] != labels).any():  # equal outputs of different labels
            continue
        key = np.column_stack([distinct, labels[first]]).tobytes()
        if key not in tests:
            tell()
            tests[key] = _is_separable(problem, layer.outputs(distinct), labels[first], tol)
        if tests[key]:
            weights = np.column_stack([dichotomies[n][1] for n in chosen])
            outputs = layer.outputs(codes[each.reshape(-1)])
            return Exhausted(
                _network(problem, weights, outputs, tol), len(dichotomies), _choices_of(dichotomies, layer)
            )
    if None in tests.values():
        return None
    return Exhausted(None, len(dichotomies), _choices_of(dichotomies, layer))


def _choices(dichotomies: int, units: int) -> int:
    return comb(dichotomies + units - 1, units)


def _choices_of(dichotomies: list[tuple[np.ndarray, np.ndarray]], layer: HiddenLayer) -> int:
    return _choices(len(dichotomies), layer.units)


def _dichotomies(
    rows: Rows, units: int, has_signs: bool, tol: float, tell: Callable[[], None]
) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """The separable ones, each [N] ±1 with a unit that realises it; None: too many, or one is undecided."""
    size = len(rows.a)
    listed = []
    for mask in range(2**size if has_signs else 2 ** (size - 1)):
        tell()
        labels = (mask >> np.arange(size)) & 1
        test = _confirmed(rows.a, labels, 2, separable_classes(rows.a, labels, 2, tol=tol))
        if test.status == UNDECIDED:
            return None
        if test.separator is not None:
            listed.append((np.where(labels > 0, 1.0, -1.0), test.separator[:, 1] - test.separator[:, 0]))
            if _choices(len(listed), units) > MOST_CHOICES:
                return None
    return listed


def _is_separable(problem: Problem, outputs: np.ndarray, labels: np.ndarray, tol: float) -> bool | None:
    """Whether some head tells these outputs apart; None where neither could be proved."""
    a = Rows(outputs, problem.head_has_bias).a
    test = _confirmed(a, labels, problem.classes, separable_classes(a, labels, problem.classes, tol=tol))
    return None if test.status == UNDECIDED else test.status == SEPARABLE


def _confirmed(rows: np.ndarray, labels: np.ndarray, classes: int, test: Separability) -> Separability:
    """The test, or "undecided" where rational arithmetic does not bear it out."""
    if test.separator is not None:
        is_proved = exact.separates(rows, labels, test.separator)
    else:
        is_proved = test.certificate is not None and exact.combination(rows, test.certificate) is not None
    return test if is_proved else Separability(UNDECIDED, None, None, test.norm, test.iterations)


def _network(problem: Problem, weights: np.ndarray, outputs: np.ndarray, tol: float) -> Network:
    rows = Rows(outputs, problem.head_has_bias)
    head = problem.fit_head(rows)
    if head.errors:
        separator = problem.separability(rows, tol).separator
        head = head if separator is None else problem.head_of(rows, separator)
    return Network((weights,), (outputs,), head)
