"""FeasibleTargetPropagation: the weights of a hard-threshold network by convex fits and a search, without gradients."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from torch import nn

from .exhaustive import Exhausted, exhaust
from .layers import check_integer, check_tolerance, read_layers, read_problem
from .problem import Problem
from .report import LayerReport, Report, UnitReport, head_margin, unit_margins
from .search import Search
from .separability import separable_unit
from .writing import Written, status_of, write

Progress = Callable[[int, int, int], None]
_TOLD_SECONDS = 0.2  # between two calls of progress


class FeasibleTargetPropagation:
    """Trains a network of hard thresholds by choosing what its hidden units are to answer, and fitting each to that.

        y = head(σ(… σ(x W₁ᵀ + b₁) …)),    σ(z) = above where z > 0, else below

    No gradient passes through σ. But where the hidden outputs H are chosen, each layer is a set of linear units with
    known answers, whose fits are convex. Hidden outputs are *feasible* where the units below can realise them and the
    head above separates them: then the network makes no error. The search proposes targets for the last hidden layer's
    units from the head at its convex optimum,

        T = −sign(∂L/∂H), with weights |∂L/∂H|        L = mean cross-entropy

    fits each unit to its targets by a weighted logistic loss, and takes for H what the fitted units realise, which is
    feasible by construction. It accepts the proposal where the errors of the head at its new optimum fall, or else its
    loss. With several hidden layers the targets of one are passed on to the layer below by the gradient of its own
    convex loss. Where nothing is accepted one unit is kicked (becomes the bisector of a wrong row and a row of another
    class), and where that does not help the search restarts from new random weights.

    Before that, where one hidden layer with biases sees at most 10 distinct rows, and the choices of its q units among
    the n linearly separable dichotomies are at most C(n + q − 1, q) ≤ 20,000, all of them are tried: the answer is
    then a feasible network, or a proof in rational arithmetic that there is none.

    Source: Friesen & Domingos, "Deep Learning as a Mixed Convex-Combinatorial Optimization Problem", ICLR 2018,
    arXiv 1710.11573. Projection, kicks, restarts, the proposal of single rows and the exhaustive phase are ours.

    Args:
        model: nn.Sequential of nn.Linear and hard thresholds in turn, with 1 to 3 thresholds; nn.Flatten() may stand in
            front. A hard threshold is a module with `levels`, two numbers (below, above), such as
            tropigrad.nn.HardThreshold. The last Linear has C ≥ 2 outputs, or one.
        budget: convex fits, at most, ≥ 1: of one layer with all its units, or of the head. The tests of the exhaustive
            phase do not count.
        seed: of the random weights, kicks and restarts. The weights that the model came with are not used.
        tol: a separability test that finds no unit of margin above tol, of rows scaled to norm 1, answers
            "inseparable".

    Attributes, after `fit`:
        feasible: whether the model as written makes no error.
        status: "feasible"; "infeasible": there are no such weights, proved; "not found": the budget is used up.
        errors: rows that the model as written gets wrong, by its own forward. A row is right where the output of its
            label is strictly the largest; with one output, where the output's sign is the label's.
        fits: convex fits made.
        report: of each layer and unit whether it is separable, with a certificate where it is not, and its margin.
    """

    feasible: bool
    status: Literal["feasible", "infeasible", "not found"]
    errors: int
    fits: int
    report: Report

    def __init__(self, model: nn.Module, *, budget: int = 2000, seed: int = 0, tol: float = 1e-9) -> None:
        read_layers(model)
        self.model = model
        self.budget = check_integer("budget", budget, 1)
        self.seed = check_integer("seed", seed, 0)
        self.tol = check_tolerance(tol)

    def fit(self, x: Any, y: Any, *, progress: Progress | None = None) -> FeasibleTargetPropagation:
        """Searches from the start, and writes the best weights: of fewest errors, then of the least loss.

        They are written, and the attributes set, when the search is interrupted too (Ctrl-C, or an exception in
        `progress`), before that goes on to the caller; only where there is no network yet, everything stays as it was.
        The search runs on the CPU in float64; the model's dtype and device stay.

        Args:
            x: [N, in_features] real numbers, or [N, …] behind nn.Flatten(). Rounded to the model's dtype.
            y: [N] integers: labels from 0 to C − 1; with one output 0 and 1, or −1 and 1.
            progress: called with (fits made, budget, fewest errors so far) a few times a second; in the exhaustive
                phase with 0 fits and N errors.
        Returns:
            self
        Raises:
            TypeError: x holds no real numbers, y no integers.
            ValueError: shapes do not fit, there are no rows, a row is not finite, labels are out of range or all equal;
                the model has been changed so that it is no longer one.
        """
        layers = read_layers(self.model)
        rows, problem = read_problem(layers, x, y)
        for name in ("feasible", "status", "errors", "fits", "report"):  # of an earlier fit
            vars(self).pop(name, None)
        tell = _Teller(progress, self.budget)
        search = Search(problem, self.budget, np.random.default_rng(self.seed), tell)
        equal_rows, exhausted = problem.conflict(), None
        try:
            if equal_rows is None:
                exhausted = exhaust(problem, self.tol, lambda: tell(0, len(problem.x)))
            if exhausted is not None and exhausted.network is not None:
                search.best = exhausted.network
            is_proved = exhausted is not None and exhausted.network is None
            search.run(max(problem.least_errors, int(is_proved)))
        finally:
            if search.best is not None:
                written = write(layers, problem, search.best, rows, self.tol)
                self._take(problem, search, written, layers.names, equal_rows, exhausted)
        return self

    def _take(
        self,
        problem: Problem,
        search: Search,
        written: Written,
        names: tuple[str, ...],
        equal_rows: tuple[int, int] | None,
        exhausted: Exhausted | None,
    ) -> None:
        assert search.best is not None
        self.errors, self.fits = written.errors, search.fits
        self.feasible = self.errors == 0
        is_infeasible = equal_rows is not None or (exhausted is not None and exhausted.network is None)
        self.status = "feasible" if self.feasible else "infeasible" if is_infeasible else "not found"
        self.report = Report(
            _reason(self.status, problem, search, written, equal_rows, exhausted),
            tuple(_layer_reports(problem, written, names, self.tol)),
            equal_rows,
            None if exhausted is None else exhausted.dichotomies,
        )


class _Teller:
    """Calls progress a few times a second."""

    def __init__(self, progress: Progress | None, budget: int) -> None:
        self.progress, self.budget = progress, budget
        self.next = time.perf_counter() + _TOLD_SECONDS

    def __call__(self, fits: int, errors: int) -> None:
        if self.progress is not None and time.perf_counter() >= self.next:
            self.progress(fits, self.budget, errors)
            self.next = time.perf_counter() + _TOLD_SECONDS


def _reason(
    status: str,
    problem: Problem,
    search: Search,
    written: Written,
    equal_rows: tuple[int, int] | None,
    exhausted: Exhausted | None,
) -> str:
    assert search.best is not None
    if equal_rows is not None:
        return f"rows {equal_rows[0]} and {equal_rows[1]} are equal and have different labels"
    if status == "infeasible" and exhausted is not None:
        units = problem.hidden[0].units
        return (
            f"proved: none of the {exhausted.choices} choices of {units} among {exhausted.dichotomies} separable "
            "dichotomies of the rows can be separated by the head"
        )
    if status == "feasible":
        return f"feasible after {search.fits} convex fits"
    if written.errors > search.best.head.errors:
        return (
            f"the search ended at {search.best.head.errors} error(s); the model's dtype rounds them to {written.errors}"
        )
    return f"{written.errors} error(s) left after {search.fits} of {search.budget} convex fits"


def _layer_reports(problem: Problem, written: Written, names: tuple[str, ...], tol: float) -> list[LayerReport]:
    reports = []
    for place, kind in enumerate(problem.hidden):
        signs, a = written.signs[place], written.rows[place]
        margins = unit_margins(written.weights[place], kind.has_bias, written.z[place], signs)
        units = []
        for unit, margin in enumerate(margins):
            test = None if margin > 0 else separable_unit(a, signs[:, unit], tol=tol)
            units.append(UnitReport(status_of(margin, test), float(margin), test and test.certificate))
        reports.append(LayerReport(names[place], tuple(units)))
    weights, z = written.weights[-1], written.z[-1]
    if problem.has_one_output:
        margin = float(unit_margins(weights, problem.head_has_bias, z, problem.signs[:, None])[0])
    else:
        margin = head_margin(weights, problem.head_has_bias, z, problem.labels)
    test = written.head_test
    head = UnitReport(status_of(margin, test), margin, test and test.certificate)
    return [*reports, LayerReport(names[-1], (head,))]
