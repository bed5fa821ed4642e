"""scikit-learn's conventions of a classifier, without scikit-learn: parameters, tags, what is asked before fitting.

A constructor stores its arguments as they are; `fit` checks them. All that was learned is one immutable object in
`_fitted`, which is exchanged at the end of a call: one that is refused changes nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .labels import named, read_labels
from .rows import Rows, read_rows


class NotFittedError(ValueError, AttributeError):
    """Raised by an estimator that has learned nothing, where scikit-learn, whose error this is, is not installed."""


def not_fitted_error() -> type[Exception]:
    try:
        from sklearn.exceptions import NotFittedError as Theirs  # what those who use scikit-learn catch
    except ImportError:
        return NotFittedError
    return Theirs


class Classifier:
    """Classes of rows by logits: a subclass gives `_logits`, and `_fitted` with classes and features."""

    _fitted: Any = None

    # ------------------------------------------------------------------------------------------- parameters

    @classmethod
    def _parameters(cls) -> dict[str, Any]:
        """The constructor's parameters and their defaults."""
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
        return {parameter.name: parameter.default for parameter in parameters}

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments, by name."""
        return {name: getattr(self, name) for name in self._parameters()}

    def set_params(self, **params: Any) -> Any:
        """Changes arguments of the constructor, for the next call that learns.

        Raises:
            ValueError: a name is none of them.
        """
        for name in params:
            if name not in self._parameters():
                raise ValueError(
                    f"{self._name}: no parameter {name!r}; expected one of {', '.join(sorted(self._parameters()))}"
                )
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        changed = (
            f"{name}={getattr(self, name)!r}"
            for name, default in self._parameters().items()
            if repr(getattr(self, name)) != repr(default)
        )
        return f"{self._name}({', '.join(changed)})"

    @property
    def _name(self) -> str:
        return type(self).__name__

    # ------------------------------------------------------------------------------------------- scikit-learn

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(poor_score=True),
            input_tags=InputTags(sparse=True, positive_only=True),
        )

    def __sklearn_is_fitted__(self) -> bool:
        return self._fitted is not None

    # ------------------------------------------------------------------------------------------- what was learned

    def _learned(self) -> Any:
        """
        Raises:
            NotFittedError: nothing was learned. It is scikit-learn's where that is installed.
        """
        if self._fitted is None:
            raise not_fitted_error()(f"This {self._name} instance is not fitted yet: call fit first")
        return self._fitted

    def _attribute(self, name: str) -> Any:
        if self._fitted is None:
            raise AttributeError(f"{self._name} has no {name} before it is fitted: call fit first")
        return self._fitted

    @property
    def classes_(self) -> np.ndarray:
        """[C]: the labels, sorted."""
        return self._attribute("classes_").classes

    @property
    def n_features_in_(self) -> int:
        """D."""
        return self._attribute("n_features_in_").n_features

    # ------------------------------------------------------------------------------------------- answers

    def _logits(self, rows: Rows) -> Iterator[tuple[slice, Tensor]]:
        """Blocks of rows, and their logits in the rows' working dtype."""
        raise NotImplementedError

    def _read(self, x: Any) -> Rows:
        fitted = self._learned()
        rows = read_rows(self._name, x, least=0)
        self._check_features(rows, fitted.n_features)
        return rows

    def _check_features(self, rows: Rows, expected: int) -> None:
        if rows.features != expected:
            raise ValueError(
                f"X has {rows.features} features, but {self._name} is expecting {expected} features as input: "
                f"x has shape ({len(rows)}, {rows.features})"
            )

    def _indices(self, rows: Rows) -> Tensor:
        """[N]: the class of the largest logit, of equal ones the first."""
        best = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
        for part, logits in self._logits(rows):
            best[part] = logits.argmax(1)
        return best

    def _answers(self, x: Any, function: Any) -> Any:
        rows = self._read(x)
        out = torch.empty(len(rows), len(self._fitted.classes), dtype=rows.dtype, device=rows.device)
        for part, logits in self._logits(rows):
            out[part] = function(logits)
        return rows.answer(out)

    def predict(self, x: Any) -> Any:
        """The most probable class of each row.

        Args:
            x: [N, D]: an array, a list, a torch tensor, or a sparse matrix of SciPy or torch.
        Returns:
            [N] of `classes_`: a tensor on x's device where x is one and the classes are numbers, else a NumPy array.
        Raises:
            ValueError: x has other features than were learned, or a row that is negative, not finite or, where rows are
                normalised, all zero; the message names the row. NotFittedError, one of those: nothing was learned.
        """
        rows = self._read(x)
        return named(self._fitted.classes, self._indices(rows), rows.is_torch)

    def predict_proba(self, x: Any) -> Any:
        """The probability of each class, softmax of the logits: [N, C].

        In x's kind, device and floating dtype; of integers, float32. Errors are those of `predict`.
        """
        return self._answers(x, lambda logits: logits.softmax(1))

    def predict_log_proba(self, x: Any) -> Any:
        """Logarithms of `predict_proba`, computed as such: [N, C]."""
        return self._answers(x, lambda logits: logits.log_softmax(1))

    def score(self, x: Any, y: Any) -> float:
        """The fraction of rows whose most probable class is their label in y."""
        rows = self._read(x)
        labels = read_labels(self._name, y, len(rows))
        return float(np.mean(named(self._fitted.classes, self._indices(rows), False) == labels))
