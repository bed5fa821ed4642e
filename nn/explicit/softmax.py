"""ExplicitSoftmax: a softmax layer on non-negative features, solved from counts. The formulas are in solution.py."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...kernels.runtime.ranks import of_ranks
from .estimator import Classifier
from .labels import classes_and_index, held_out, index_among, read_labels, union
from .ranks import added, check_equal, together
from .rows import Rows, Scaling, read_rows
from .settings import (
    SEARCH,
    check_bool,
    check_choice,
    check_fraction,
    check_number,
    check_searchable,
    check_seed,
)
from .solution import SMOOTHINGS, Counts, Solution, Tuned, count, count_apart, search, solve


@dataclass(frozen=True)
class _Settings:
    """The arguments, checked. None stands for "search"."""

    scaling: Scaling
    smoothing: float | None
    temperature: float | None
    prior: str
    smoothing_prior: str
    validation_fraction: float
    seed: int

    @property
    def searches(self) -> bool:
        return self.smoothing is None or self.temperature is None

    def solve(self, where: str, counts: Counts, classes: np.ndarray, smoothing: float) -> Solution:
        scale = math.inf if self.scaling.scale is None else self.scaling.scale
        return solve(where, counts, classes, smoothing, self.smoothing_prior, scale, self.prior)


@dataclass(frozen=True, eq=False)
class _Fitted:
    where: str
    settings: _Settings
    classes: np.ndarray
    counts: Counts
    smoothing: float | None  # None while a search is due
    temperature: float | None
    is_torch: bool  # what the rows first counted were, and the learned attributes are

    @property
    def n_features(self) -> int:
        return self.counts.features.shape[0]

    @cached_property
    def solution(self) -> Solution:
        """
        Raises:
            ValueError: smoothing or temperature is still to be searched; or smoothing is 0 where a count is 0.
        """
        if self.smoothing is None or self.temperature is None:
            due = [name for name in ("smoothing", "temperature") if getattr(self, name) is None]
            raise ValueError(
                f"{self.where}: {' and '.join(f'{name} is {SEARCH!r}' for name in due)}, and nothing was held out to "
                "search with; call tune(x, y) with rows that were not counted"
            )
        solution = self.settings.solve(self.where, self.counts, self.classes, self.smoothing)
        return solution.over(self.temperature)

    def grown(self, settings: _Settings, classes: np.ndarray, counts: Counts) -> _Fitted:
        """The same with these counts and arguments. What is "search" keeps its last value."""
        return replace(
            self,
            settings=settings,
            classes=classes,
            counts=counts,
            smoothing=self.smoothing if settings.smoothing is None else settings.smoothing,
            temperature=self.temperature if settings.temperature is None else settings.temperature,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "solution"}

    def shown(self, x: Tensor) -> Any:
        return x if self.is_torch else x.cpu().numpy()


class ExplicitSoftmax(Classifier):
    """A softmax layer on non-negative features, solved from one pass of counting: no gradient step.

        F = Xᵀ Y + ε    (D × C, the features' sums in each class)        S_c = Σ_d F_dc

    On rows of sum K the layer's weights are U = log F − (1 − 1/K) log S: multinomial naive Bayes with class prior ∝ S.
    One-hot rows (K = 1) make it the exact optimum of the cross-entropy; other rows do where features are independent
    given the class. Where MultinomialNB stood, `ExplicitSoftmax(normalize=False, prior="count")` is the same model.

    Source: Williams & Zhao, arXiv 2311.07498, 2023. Unigram smoothing, searches and temperature are ours.

    Args:
        scale: K > 0, the sum that rows are scaled to, where normalize is True.
        smoothing: ε ≥ 0, added to each count; or "search": that of 1e-4, 10^-3.5, …, 1e4 with the least cross-entropy
            on rows held out. 0 is allowed where no count is 0.
        temperature: T > 0, which divides logits; or "search": that with the least cross-entropy on rows held out, each
            ε having its own; where all M of those are right, it is as sure as M rows allow. Neither search takes a
            second pass over the rows that were counted.
        offset: o ≥ 0, added to each entry before rows are scaled, in the units of x.
        normalize: rows become K (x + o) / Σ (x + o), in learning and in predicting. False takes them as they are, of
            any sums, the empty row too; then K says nothing, and o must be 0.
        prior: the probability of a class before its features: "mass" is ∝ S, "count" ∝ N, its number of rows.
        smoothing_prior: "uniform": ε in each class; "unigram": ε C p_c in class c, p_c = (N_c + ½) / (N + C/2).
        validation_fraction: what `fit` holds out for a search, of each class, rounded. Once found, those rows are
            counted too.
        seed: draws them.

    Rows x are [N, D] numbers ≥ 0: a NumPy array (memory-mapped too), a list, a torch tensor on any device, or a sparse
    matrix of SciPy or torch, which is never made dense. Labels y are [N] of any type that sorts. Answers come in x's
    kind, device and floating dtype (integers: float32). F is int64 where integers are taken as they are, else float64.

    Attributes, after learning:
        classes_: [C], NumPy.  n_features_in_: D.
        feature_count_: Fᵀ [C, D] without smoothing.  class_count_: N [C].
        smoothing_, temperature_: as given or as found.
        coef_ [C, D], intercept_ [C]: float64; logits = rows @ coef_.T + intercept_, of rows as `normalized` gives them.
            With rows scaled and the prior "mass": Uᵀ / T and 0; else log(F / S)ᵀ / T, and log S / T or log N / T.
        The arrays are NumPy's, or tensors where the rows that were learned first were.

    scikit-learn's conventions hold where that is installed: clone, pipelines, grid searches, tags. The constructor
    takes its arguments as they are; what learns checks them. A call that is refused changes nothing.
    """

    _fitted: _Fitted | None

    def __init__(
        self,
        scale: float = 32.0,
        smoothing: float | str = 1.0,
        *,
        temperature: float | str = 1.0,
        offset: float = 0.0,
        normalize: bool = True,
        prior: str = "mass",
        smoothing_prior: str = "uniform",
        validation_fraction: float = 0.1,
        seed: int = 0,
    ) -> None:
        self.scale = scale
        self.smoothing = smoothing
        self.temperature = temperature
        self.offset = offset
        self.normalize = normalize
        self.prior = prior
        self.smoothing_prior = smoothing_prior
        self.validation_fraction = validation_fraction
        self.seed = seed

    # ------------------------------------------------------------------------------------------- learning

    def fit(self, x: Any, y: Any, *, group: Any = None) -> ExplicitSoftmax:
        """Learns from rows and their labels; forgets what was learned before.

        Args:
            x: [N, D], N ≥ 1.  y: [N].
            group: a process group of torch.distributed. Each rank gives its own rows and learns from all: counts are
                added up, to the bits of one process where they are integers. Every rank makes the call.

        Raises:
            ValueError: an argument of the constructor, or a row or label, does not fit: a row that is negative, not
                finite or, to be scaled, all zero; labels that are fractions; an offset with sparse rows or without
                normalize; a search with nothing held out; smoothing 0 with a count of 0. The message names argument,
                row and value.
            TypeError: one of them is no number.
        """
        name = self._name

        def counted() -> tuple[_Settings, Rows, np.ndarray, Tensor, Tensor | None, Counts, Counts | None]:
            settings = self._checked()
            rows = read_rows(name, x)
            classes, places = classes_and_index(name, read_labels(name, y, len(rows)))
            held = held_out(places, settings.validation_fraction, settings.seed) if settings.searches else None
            index = torch.from_numpy(places)
            kept, out = count_apart(name, rows, index, held, len(classes), settings.scaling)
            return settings, rows, classes, index, held, kept, out

        settings, rows, ours, index, held, kept, out = together(name, group, counted)
        check_equal(name, {"the features": rows.features, "the arguments": settings}, group)
        classes, kept, places = self._shared(ours, kept, group)
        fitted = _Fitted(name, settings, classes, kept, settings.smoothing, settings.temperature, rows.is_torch)
        if held is not None and out is not None:
            _, out, _ = self._shared(ours, out, group)
            total = int(out.rows.sum())
            if total == 0:
                raise ValueError(
                    f"{name}: validation_fraction is {settings.validation_fraction:g}, which holds nothing out of "
                    f"{int(kept.rows.sum())} sample(s) to search with; expected a larger fraction, more rows, or "
                    "numbers for smoothing and temperature"
                )
            targets = torch.from_numpy(places)[index[held]].to(rows.device)
            tuned = self._search(fitted, rows.take(held.nonzero()[:, 0]), targets, group)
            fitted = replace(fitted, counts=kept.plus(out), smoothing=tuned.smoothing, temperature=tuned.temperature)
        fitted.solution  # noqa: B018  where a count and smoothing are 0 this raises
        self._fitted = fitted
        return self

    def partial_fit(self, x: Any, y: Any, classes: Any = None, *, group: Any = None) -> ExplicitSoftmax:
        """Learns from further rows. In any order and division, integers give the bits of one `fit`.

        Args:
            x, y, group: as in `fit`, on which a first call may follow too.
            classes: all labels there are; the first call needs them, later ones may repeat them.

        What is "search" keeps its last value; without one, `tune` has to be called before predicting.

        Raises:
            ValueError: as in `fit`; the features are not as many as before; classes are missing or others, or do not
                hold a label; scale, offset or normalize was changed since.
        """
        name, before = self._name, self._fitted

        def counted() -> tuple[_Settings, Rows, np.ndarray, Counts]:
            settings = self._checked()
            rows = read_rows(name, x)
            names = self._announced(classes)
            if before is not None:
                self._check_features(rows, before.n_features)
                self._check_scaling(before.settings, settings)
            places = index_among(name, read_labels(name, y, len(rows)), names)
            return settings, rows, names, count(name, rows, torch.from_numpy(places), len(names), settings.scaling)

        settings, rows, names, counts = together(name, group, counted)
        facts = {"the features": rows.features, "the arguments": settings, "the classes": names.tolist()}
        check_equal(name, facts, group)
        _, counts, _ = self._shared(names, counts, group)
        if before is None:
            self._fitted = _Fitted(
                name, settings, names, counts, settings.smoothing, settings.temperature, rows.is_torch
            )
        else:
            self._fitted = before.grown(settings, names, self._on_device(before.counts, counts).plus(counts))
        return self

    def merge(self, other: ExplicitSoftmax) -> ExplicitSoftmax:
        """Adds what another has counted, as if its rows had been given here. Classes are those of both.

        What is "search" keeps its value here; without one, `tune` has to be called before predicting.

        Raises:
            TypeError: other is no ExplicitSoftmax.
            ValueError: other has learned nothing; its features, scale, offset or normalize, or the type of its labels,
                are not those here.
        """
        name = self._name
        if not isinstance(other, ExplicitSoftmax):
            raise TypeError(f"{name}: other is a {type(other).__name__}; expected an ExplicitSoftmax")
        theirs = other._fitted
        if theirs is None:
            raise ValueError(f"{name}: other has learned nothing; expected one that was fitted")
        settings = self._checked()
        before = self._fitted
        self._check_scaling(theirs.settings, settings)
        if before is None:
            self._fitted = replace(
                theirs,
                where=name,
                settings=settings,
                smoothing=settings.smoothing,
                temperature=settings.temperature,
            )
            return self
        self._check_scaling(before.settings, settings)
        if theirs.n_features != before.n_features:
            raise ValueError(f"{name}: other has {theirs.n_features} features; expected {before.n_features}, as here")
        classes = union(name, before.classes, theirs.classes)
        added_up = before.counts.among(classes, index_among(name, before.classes, classes)).plus(
            self._on_device(theirs.counts, before.counts).among(classes, index_among(name, theirs.classes, classes))
        )
        self._fitted = before.grown(settings, classes, added_up)
        return self

    def tune(self, x: Any, y: Any, *, group: Any = None) -> ExplicitSoftmax:
        """Finds what is "search", smoothing or temperature or both, by the least cross-entropy on rows not counted.

        Sets smoothing_ and temperature_: each candidate is a logarithm of the counts, so that the rows that were
        counted are not needed again.

        Args:
            x: [M, D], M ≥ 1.  y: [M], of classes_.
            group: as in `fit`.

        Raises:
            ValueError: neither is "search"; x or y does not fit, as in `predict` and `fit`; with the prior "count", y
                holds a class that had no rows. NotFittedError, one of those: nothing was learned.
        """
        name = self._name
        before = self._learned()

        def read() -> tuple[_Settings, Rows, Tensor]:
            settings = self._checked()
            self._check_scaling(before.settings, settings)
            if not settings.searches:
                raise ValueError(
                    f"{name}: smoothing is {settings.smoothing:g} and temperature {settings.temperature:g}, which "
                    f"leaves nothing to tune; expected smoothing={SEARCH!r} or temperature={SEARCH!r}"
                )
            rows = read_rows(name, x)
            self._check_features(rows, before.n_features)
            places = index_among(name, read_labels(name, y, len(rows)), before.classes)
            if settings.prior == "count":
                self._check_possible(before, places)
            for _ in settings.scaling.of(name, rows):  # which raises where a row does not fit
                pass
            return settings, rows, torch.from_numpy(places).to(rows.device)

        settings, rows, targets = together(name, group, read)
        check_equal(name, {"the arguments": settings}, group)
        fitted = replace(before, settings=settings, smoothing=settings.smoothing, temperature=settings.temperature)
        tuned = self._search(fitted, rows, targets, group)
        self._fitted = replace(fitted, smoothing=tuned.smoothing, temperature=tuned.temperature)
        return self

    # ------------------------------------------------------------------------------------------- what was learned

    @property
    def feature_count_(self) -> Any:
        """Fᵀ [C, D], without smoothing: int64 where integers were taken as they are, else float64."""
        fitted = self._attribute("feature_count_")
        return fitted.shown(fitted.counts.features.t())

    @property
    def class_count_(self) -> Any:
        """N [C] int64."""
        fitted = self._attribute("class_count_")
        return fitted.shown(fitted.counts.rows)

    @property
    def smoothing_(self) -> float:
        """ε, as given or as found."""
        return self._number("smoothing")

    @property
    def temperature_(self) -> float:
        """T, as given or as found."""
        return self._number("temperature")

    def _number(self, name: str) -> float:
        value = getattr(self._attribute(f"{name}_"), name)
        if value is None:
            raise AttributeError(f"{self._name} has no {name}_ before it is searched: call tune(x, y)")
        return value

    @property
    def coef_(self) -> Any:
        """[C, D] float64, temperature included."""
        fitted = self._attribute("coef_")
        return fitted.shown(fitted.solution.weight.t())

    @property
    def intercept_(self) -> Any:
        """[C] float64, temperature included."""
        fitted = self._attribute("intercept_")
        return fitted.shown(fitted.solution.bias)

    def to_linear(self, *, dtype: torch.dtype = torch.float32, device: Any = None) -> nn.Linear:
        """The same layer as a torch.nn.Linear, to be fine-tuned: weight coef_, bias intercept_, temperature included.

        It takes rows as `normalized` gives them, and its outputs are logits, for `nn.CrossEntropyLoss`:

            layer = model.to_linear()
            logits = layer(model.normalized(x))

        Args:
            dtype: of its parameters.  device: None is where the counts are.
        """
        return self._learned().solution.to_linear(dtype, device)

    def normalized(self, x: Any) -> Any:
        """Rows as the layer sees them: K (x + o) / Σ (x + o), or x as it is; in x's kind and floating dtype.

        A sparse matrix stays one. Errors are those of `predict`.
        """
        rows = self._read(x)
        scaling = self._fitted.settings.scaling  # pyright: ignore[reportOptionalMemberAccess]
        return rows.answer_rows(part for _, part in scaling.of(self._name, rows))

    # ------------------------------------------------------------------------------------------- parts

    def _logits(self, rows: Rows) -> Iterator[tuple[slice, Tensor]]:
        fitted = self._learned()
        solution = fitted.solution
        for part, seen in fitted.settings.scaling.of(self._name, rows, width=len(fitted.classes)):
            yield part, solution.logits(seen)

    def _search(self, fitted: _Fitted, rows: Rows, targets: Tensor, group: Any) -> Tuned:
        """Smoothing and temperature of the least cross-entropy on rows that `fitted` has not counted."""
        settings, counts = fitted.settings, fitted.counts

        def logits_at(smoothing: float) -> Tensor:
            solution = settings.solve(self._name, counts, fitted.classes, smoothing)
            seen = settings.scaling.of(self._name, rows, width=len(fitted.classes))
            blocks = [solution.logits(block) for _, block in seen]
            return torch.cat(blocks) if blocks else counts.features.new_zeros(0, len(fitted.classes))

        candidates = SMOOTHINGS if settings.smoothing is None else (settings.smoothing,)
        return search(candidates, logits_at, targets, settings.temperature, group)

    def _check_possible(self, fitted: _Fitted, places: np.ndarray) -> None:
        impossible = np.flatnonzero((fitted.counts.rows == 0).cpu().numpy()[places])
        if len(impossible):
            row = int(impossible[0])
            label = fitted.classes.tolist()[places[row]]
            raise ValueError(
                f"{self._name}: row {row} of y is {label!r}, of which no row was counted, and the prior 'count' gives "
                "it probability 0; expected other rows, or prior='mass'"
            )

    def _shared(self, ours: np.ndarray, counts: Counts, group: Any) -> tuple[np.ndarray, Counts, np.ndarray]:
        """All ranks' classes, their counts, and the places of our classes among them."""
        classes = ours
        theirs = of_ranks((ours, counts.features.dtype), group)
        for names, _ in theirs:
            classes = union(self._name, classes, names)
        places = index_among(self._name, ours, classes)
        if group is None:
            return classes, counts, places
        counts = counts.among(classes, places)
        features = counts.features.t().contiguous()
        if any(dtype != torch.int64 for _, dtype in theirs):
            features = features.double()  # exact for counts below 2⁵³
        features, rows = added(features.clone(), group), added(counts.rows.clone(), group)
        return classes, Counts(features.t(), rows), places

    def _announced(self, classes: Any) -> np.ndarray:
        """The classes of partial_fit."""
        before = self._fitted
        if classes is None:
            if before is None:
                raise ValueError(f"{self._name}: classes must be passed on the first call to partial_fit: all labels")
            return before.classes
        if not hasattr(classes, "__len__"):
            raise TypeError(f"{self._name}: classes is a {type(classes).__name__}; expected a list of all labels")
        names, _ = classes_and_index(self._name, read_labels(self._name, classes, len(classes)))
        if before is not None and not np.array_equal(names, before.classes):
            raise ValueError(
                f"{self._name}: classes are {names.tolist()}; expected those of the first call, "
                f"{before.classes.tolist()}, or None"
            )
        if len(names) == 0:
            raise ValueError(f"{self._name}: classes is empty; expected all labels")
        return names

    def _check_scaling(self, before: _Settings, now: _Settings) -> None:
        if before.scaling != now.scaling:
            raise ValueError(
                f"{self._name}: counted so far: {before.scaling}; now: {now.scaling}; expected the same scale, offset "
                "and normalize, or a new fit"
            )

    @staticmethod
    def _on_device(counts: Counts, like: Counts) -> Counts:
        return Counts(counts.features.to(like.features.device), counts.rows.to(like.rows.device))

    def _checked(self) -> _Settings:
        name = self._name
        normalize = check_bool(name, "normalize", self.normalize)
        scale = check_number(name, "scale", self.scale, least=0, open_at_least=True)
        offset = check_number(name, "offset", self.offset, least=0)
        if offset and not normalize:
            raise ValueError(f"{name}: offset is {offset:g} and normalize False; expected offset=0, or normalize=True")
        return _Settings(
            Scaling(scale if normalize else None, offset),
            check_searchable(name, "smoothing", self.smoothing, least=0),
            check_searchable(name, "temperature", self.temperature, least=0, open_at_least=True),
            check_choice(name, "prior", self.prior, ("mass", "count")),
            check_choice(name, "smoothing_prior", self.smoothing_prior, ("uniform", "unigram")),
            check_fraction(name, "validation_fraction", self.validation_fraction),
            check_seed(name, self.seed),
        )
