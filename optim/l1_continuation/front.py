"""The Pareto front of loss and ℓ¹ norm: points as they were reached, with the weights of each.

A point dominates another that it equals or betters in both. What is called sparser here has the smaller ℓ¹ norm.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, TypeGuard

from torch import Tensor, nn

from . import dominance, front_file, weights
from .compaction import Compacted, compact

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

Criterion = Literal["val_loss", "one_se"]


@dataclass(frozen=True)
class Point:
    """A network on the path; None stands for what was not measured.

    Attributes:
        loss, l1: the objectives: the mean training loss, and Σ|θ| over the penalised parameters.
        nnz: how many penalised parameters are not 0.
        lam: λ, the weight of the ℓ¹ norm that the point is stationary for.
        phase: where in the walk it was reached: "start", "dense", "sparse", "sweep".
        val_loss, val_error: the mean loss on held-out data, and the standard error of that mean.
        accuracy, val_accuracy: shares of the rows that are classified right.
        epochs, seconds: spent until then.
    """

    loss: float
    l1: float
    nnz: int | None = None
    lam: float | None = None
    phase: str = ""
    val_loss: float | None = None
    val_error: float | None = None
    accuracy: float | None = None
    val_accuracy: float | None = None
    epochs: float | None = None
    seconds: float | None = None


class ParetoFront:
    """Points of a regularization path, dominated ones too, in the order in which they came.

    An index is that of a point in `points`; negative ones count from the end.

    Args:
        points: Points, or pairs (loss, ℓ¹). They come without weights: `load`, `compact` and `sparsity` need those that
            `append` brings.
        model: the module that `load` writes into.
        penalized: the names of the parameters that ℓ¹ counts; None where it counts all.

    Raises:
        TypeError, ValueError: a point is no pair of numbers, one of them is not finite, or its ℓ¹ is negative.
    """

    def __init__(
        self,
        points: Iterable[Point | tuple[float, float]] = (),
        model: nn.Module | None = None,
        *,
        penalized: Iterable[str] | None = None,
    ) -> None:
        if model is not None and not isinstance(model, nn.Module):
            raise TypeError(f"ParetoFront: model is a {type(model).__name__}; expected a torch.nn.Module or None")
        self.model = model
        self.penalized = None if penalized is None else frozenset(penalized)
        self._points = [_point(point, number) for number, point in enumerate(points)]
        self._states: list[weights.State | None] = [None] * len(self._points)
        self._parameters: frozenset[str] | None = None  # of a front from a file, which may have no model

    # ------------------------------------------------------------------------------------------------- the points

    @property
    def points(self) -> tuple[Point, ...]:
        return tuple(self._points)

    def __len__(self) -> int:
        return len(self._points)

    def __iter__(self) -> Iterator[Point]:
        return iter(self.points)

    def __getitem__(self, i: SupportsIndex) -> Point:
        return self._points[self._index("[]", i)]

    def append(self, point: Point | tuple[float, float], state: Mapping[str, Tensor] | None = None) -> None:
        """Add a point, with a copy of its parameters and buffers by name.

        Raises:
            TypeError, ValueError: the point is not one, or the state has other names or shapes than those before.
        """
        point = _point(point, len(self))
        own = None if state is None else self._checked(state)
        self._points.append(point)
        self._states.append(own)

    def _checked(self, state: Mapping[str, Tensor]) -> weights.State:
        try:
            own = weights.copied(state)
        except TypeError as error:
            raise TypeError(f"ParetoFront.append: {error}") from None
        first = self._first_state()
        clause = None if first is None else weights.difference(own, first)
        if clause is not None:
            raise ValueError(f"ParetoFront.append: the state differs from those of the front's other points: {clause}")
        return own

    def _first_state(self) -> weights.State | None:
        return next((state for state in self._states if state is not None), None)

    # ------------------------------------------------------------------------------------------ which point to take

    def _pairs(self) -> list[dominance.Pair]:
        return [(point.loss, point.l1) for point in self._points]

    def non_dominated(self) -> list[int]:
        """The indices of the points that no other dominates, sparsest first; of equal points the first."""
        return dominance.non_dominated(self._pairs())

    def hypervolume(self, ref: tuple[float, float]) -> float:
        """The area between the front and ref = (loss, ℓ¹): that of all pairs below ref which some point dominates.

        It grows with every point that is not dominated. Fronts are compared at one ref.
        """
        try:
            loss, l1 = (float(x) for x in ref)
        except (TypeError, ValueError):
            raise TypeError(f"ParetoFront.hypervolume: ref is {ref!r}; expected a pair (loss, l1)") from None
        if not (math.isfinite(loss) and math.isfinite(l1)):
            raise ValueError(f"ParetoFront.hypervolume: ref is {ref!r}; expected two finite numbers")
        return dominance.hypervolume(self._pairs(), (loss, l1))

    def knee(self) -> int:
        """The index of the non-dominated point farthest below the chord of the front's ends.

        Both axes are scaled to [0, 1] first. Of equals, and of fewer than three points, the sparser is taken.
        """
        self._need_points("knee")
        return dominance.knee(self._pairs())

    def best(self, criterion: Criterion = "val_loss") -> int:
        """The index of the point that validation chooses, dominated ones among the candidates.

        "val_loss": the least; of equals the sparser. "one_se": the sparsest whose val_loss is within one standard error
        (the best point's) of the least, as glmnet's lambda.1se.

        Raises:
            ValueError: the criterion is unknown, or the points have no finite val_loss or the best no val_error.
        """
        if criterion not in ("val_loss", "one_se"):
            raise ValueError(f"ParetoFront.best: {criterion!r}; expected 'val_loss' or 'one_se'")
        self._need_points("best")
        judged = [(p.val_loss, p.l1, i) for i, p in enumerate(self._points) if _is_finite(p.val_loss)]
        if not judged:
            raise ValueError("ParetoFront.best: no point has a finite val_loss; run with a val_loader")
        least, _, best = min(judged)
        if criterion == "val_loss":
            return best
        error = self._points[best].val_error
        if not _is_finite(error):
            raise ValueError(
                f"ParetoFront.best('one_se'): point {best}, the best, has val_error {error}; expected its standard "
                "error, which takes two batches of the val_loader or more; or ask for best('val_loss')"
            )
        return min((l1, loss, i) for loss, l1, i in judged if loss <= least + error)[2]

    # ------------------------------------------------------------------------------------------------- its weights

    def load(self, i: SupportsIndex) -> nn.Module:
        """Write a point's parameters and buffers into the model, and return it.

        Raises:
            IndexError: there is no such point.
            ValueError: the point has no weights, or they do not fit the model, which then stays as it was.
        """
        model, state = self._model("load"), self._state("load", i)
        _must_fit("load", state, model)
        weights.write(state, model)
        return model

    def compact(self, i: SupportsIndex, example_inputs: Any = None) -> Compacted:
        """A smaller network that computes what a point's computes in eval mode, and a report of how it was made.

        Units without incoming or outgoing weights are left out (compaction.py has the rules). The front's model stays
        as it is.

        Args:
            example_inputs: what the model's forward takes, a tensor or a tuple of positional arguments. With them both
                networks are timed and compared.

        Returns:
            (model, report): the report prints as a table; it names the layers that could not be shrunk.

        Raises:
            IndexError, ValueError: as of `load`; or see compaction.compact.
        """
        model, state = self._model("compact"), self._state("compact", i)
        _must_fit("compact", state, model)
        return compact(model, state, example_inputs=example_inputs)

    def sparsity(self, i: SupportsIndex) -> dict[str, float]:
        """The share of zeros in each parameter of a point, by name."""
        state = self._state("sparsity", i)
        names = self._parameter_names()
        return {
            name: int((tensor == 0).sum()) / max(tensor.numel(), 1)
            for name, tensor in state.items()
            if (name in names if names is not None else tensor.is_floating_point())
        }

    def _parameter_names(self) -> frozenset[str] | None:
        return self._parameters if self.model is None else weights.parameter_names(self.model)

    def _model(self, method: str) -> nn.Module:
        if self.model is None:
            raise ValueError(
                f"ParetoFront.{method}: the front has no model; set front.model, or give one to ParetoFront.open"
            )
        return self.model

    def _state(self, method: str, i: SupportsIndex) -> weights.State:
        index = self._index(method, i)
        state = self._states[index]
        if state is None:
            raise ValueError(
                f"ParetoFront.{method}: point {index} came as numbers, without weights; those of a run have them, as "
                "has what append(point, state) adds"
            )
        return state

    def _index(self, method: str, i: SupportsIndex) -> int:
        try:
            index = operator.index(i)
        except TypeError:
            raise TypeError(f"ParetoFront.{method}: the index is a {type(i).__name__}; expected an integer") from None
        if not -len(self) <= index < len(self):
            expected = f"0 to {len(self) - 1}" if len(self) else "none: it is empty"
            raise IndexError(
                f"ParetoFront.{method}: index {index} of a front of {_counted(len(self))}; expected {expected}"
            )
        return index % len(self)

    def _need_points(self, method: str) -> None:
        if not self._points:
            raise ValueError(f"ParetoFront.{method}: the front has no points")

    # ------------------------------------------------------------------------------------------- fronts as a whole

    def merge(self, other: ParetoFront) -> ParetoFront:
        """A front with the points of both, this one's first, for this one's model, or the other's where it has none.

        Raises:
            TypeError: other is no ParetoFront.
            ValueError: their weights differ in names or shapes, or do not fit the model; or their ℓ¹ norms count other
                parameters.
        """
        if not isinstance(other, ParetoFront):
            raise TypeError(f"ParetoFront.merge: got a {type(other).__name__}; expected a ParetoFront")
        ours, theirs = self._first_state(), other._first_state()
        clause = None if ours is None or theirs is None else weights.difference(theirs, ours)
        if clause is not None:
            raise ValueError(f"ParetoFront.merge: the other front is of another network: {clause}")
        model = self.model if self.model is not None else other.model
        for state in (ours, theirs):
            if state is not None and model is not None:
                _must_fit("merge", state, model)
        if ours is not None and theirs is not None and self._counted_by_l1(ours) != other._counted_by_l1(theirs):
            odd = sorted(self._counted_by_l1(ours) ^ other._counted_by_l1(theirs))
            raise ValueError(
                f"ParetoFront.merge: one front's l1 counts {', '.join(odd)}, and the other's does not; expected fronts "
                "of the same `penalize`"
            )
        merged = ParetoFront((), model, penalized=(other if ours is None and theirs is not None else self).penalized)
        merged._points = self._points + other._points
        merged._states = self._states + other._states
        merged._parameters = self._parameter_names() or other._parameter_names()
        return merged

    def _counted_by_l1(self, state: weights.State) -> frozenset[str]:
        return self.penalized if self.penalized is not None else self._parameter_names() or frozenset(state)

    def to_frame(self) -> DataFrame:
        """A pandas DataFrame: a row a point, Point's fields as columns, and `non_dominated`."""
        try:
            import pandas
        except ModuleNotFoundError:
            raise ModuleNotFoundError("ParetoFront.to_frame needs pandas: pip install 'tropigrad[reports]'") from None
        columns = [field.name for field in fields(Point)]
        frame = pandas.DataFrame([asdict(point) for point in self._points], columns=columns)
        front = set(self.non_dominated())
        return frame.assign(non_dominated=[i in front for i in range(len(self))])

    def plot(self, ax: Axes | str | os.PathLike | None = None) -> Figure:
        """Draw loss over ℓ¹ and, where they are known, over nonzeros; returns the matplotlib Figure.

        Dominated points are pale. The knee and the choice of validation (`one_se`, else `val_loss`) are marked with
        their indices.

        Args:
            ax: Axes to draw loss over ℓ¹ in, alone; or the path of a picture, which is written whole. None: a new
                figure, which is not shown.
        """
        from .front_plot import draw  # needs matplotlib

        return draw(self._points, self.non_dominated(), self._marked(), ax)

    def save(self, path: str | os.PathLike) -> Path:
        """Write points and weights into one file, whole or not at all; torch.load(weights_only=True) reads it.

        Raises:
            OSError: the folder is not there, or the disk refuses. A file that was there stays as it was.
        """
        names = self._parameter_names()
        return front_file.save(
            path,
            points=[asdict(point) for point in self._points],
            states=self._states,
            penalized=self.penalized,
            parameters=names,
        )

    @classmethod
    def open(cls, path: str | os.PathLike, model: nn.Module | None = None) -> ParetoFront:
        """Read a file that `save` wrote.

        Args:
            model: the module that `load` writes into; its own weights stay until then.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged or no front, or its weights do not fit the model.
        """
        content = front_file.read(path, {field.name: field.default is MISSING for field in fields(Point)})
        front = cls((Point(**point) for point in content["points"]), model, penalized=content["penalized"])
        front._states = content["states"]
        front._parameters = None if content["parameters"] is None else frozenset(content["parameters"])
        first = front._first_state()
        if first is not None and model is not None:
            _must_fit("open", first, model)
        return front

    def _marked(self) -> dict[str, int]:
        """The points that have a name: the knee, and the choice of validation."""
        if not self._points:
            return {}
        marked = {"knee": self.knee()}
        for criterion in ("one_se", "val_loss"):
            try:
                return {**marked, criterion: self.best(criterion)}
            except ValueError:
                continue  # it was not validated, or on a single batch
        return marked

    def __repr__(self) -> str:
        if not self._points:
            return "ParetoFront: no points yet"
        losses, norms = [p.loss for p in self._points], [p.l1 for p in self._points]
        lines = [
            f"ParetoFront: {_counted(len(self))}, {len(self.non_dominated())} not dominated, "
            f"ℓ¹ {_range(norms)}, loss {_range(losses)}"
        ]
        lines += [f"  {name + ':':<10}{i}, {_described(self._points[i])}" for name, i in self._marked().items()]
        if all(state is None for state in self._states):
            lines.append("  without weights: load, compact and sparsity have none")
        elif self.model is None:
            lines.append("  without a model: set front.model for load and compact")
        return "\n".join(lines)


def _point(point: Any, number: int) -> Point:
    """The point in Python's own numbers, which a file can hold."""
    try:
        if isinstance(point, Point):
            own = Point(**{name: _plain(name, value) for name, value in asdict(point).items()})
        else:
            loss, l1 = point
            own = Point(float(loss), float(l1))
    except (TypeError, ValueError):
        raise TypeError(
            f"ParetoFront: point {number} is {point!r}; expected a Point or a pair (loss, l1) of numbers"
        ) from None
    if not (math.isfinite(own.loss) and math.isfinite(own.l1) and own.l1 >= 0):
        raise ValueError(
            f"ParetoFront: point {number} has loss {own.loss} and l1 {own.l1}; expected finite numbers and l1 >= 0"
        )
    return own


def _plain(name: str, value: Any) -> Any:
    if name == "phase":
        return str(value)
    kind: Any = int if name == "nnz" else float
    return None if value is None and name not in ("loss", "l1") else kind(value)


def _must_fit(method: str, state: weights.State, model: nn.Module) -> None:
    clause = weights.misfit(state, model)
    if clause is not None:
        raise ValueError(
            f"ParetoFront.{method}: the front's weights do not fit the model ({type(model).__name__}): {clause}"
        )


def _is_finite(number: float | None) -> TypeGuard[float]:
    return number is not None and math.isfinite(number)


def _counted(points: int) -> str:
    return f"{points} point{'' if points == 1 else 's'}"


def _range(numbers: list[float]) -> str:
    return f"{min(numbers):.4g} to {max(numbers):.4g}"


def _described(point: Point) -> str:
    parts = [f"loss {point.loss:.4g}", f"ℓ¹ {point.l1:.4g}"]
    parts += [f"{point.nnz:,} nonzeros"] if point.nnz is not None else []
    parts += [f"val_loss {point.val_loss:.4g}"] if point.val_loss is not None else []
    parts += [f"val_accuracy {point.val_accuracy:.2%}"] if point.val_accuracy is not None else []
    return ", ".join(parts)
