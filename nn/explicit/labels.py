"""Reading of labels: unique values of any type that sorts, and each row's index among them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

_NARROW = 1 << 16  # integers in a range up to this are counted rather than sorted


def read_labels(where: str, y: Any, rows: int) -> np.ndarray:
    """The labels of `rows` rows as a NumPy array [N].

    Raises:
        ValueError: y is None, is not one label a row, or holds NaN, infinities or fractions, which are no classes.
    """
    if y is None:
        raise ValueError(f"{where} requires y to be passed, but the target y is None")
    labels = _of_tensor(where, y) if isinstance(y, Tensor) else np.asarray(y)
    if labels.ndim == 2 and labels.shape[1] == 1:
        warnings.warn(
            f"A column-vector y was passed when a 1d array was expected: {where} takes y of shape {labels.shape} as "
            f"({len(labels)},); y.ravel() is that",
            _conversion_warning(),
            stacklevel=4,
        )
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise ValueError(f"{where}: y should be a 1d array, got an array of shape {labels.shape} instead.")
    if len(labels) != rows:
        raise ValueError(f"{where}: y has {len(labels)} labels and x {rows} rows; expected one label a row")
    _check_discrete(where, labels)
    return labels


def _of_tensor(where: str, y: Tensor) -> np.ndarray:
    if y.layout != torch.strided or y.is_nested or y.is_meta:
        kind = "nested" if y.is_nested else y.layout
        raise ValueError(f"{where}: y is a tensor, {kind}, on {y.device}; expected a strided one that holds values")
    y = y.detach().cpu()
    return (y.float() if y.dtype == torch.bfloat16 else y).numpy()  # NumPy has no bfloat16


def _check_discrete(where: str, labels: np.ndarray) -> None:
    if labels.dtype.kind == "c":
        raise ValueError(f"{where}: Unknown label type: y is {labels.dtype}; expected classes")
    if labels.dtype.kind != "f":
        return
    finite = np.isfinite(labels)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        what = "NaN" if np.isnan(labels[row]) else "infinity"
        raise ValueError(f"{where}: Input y contains {what}: row {row}; expected classes")
    whole = labels == np.floor(labels)
    if not whole.all():
        row = int(np.flatnonzero(~whole)[0])
        raise ValueError(
            f"{where}: Unknown label type: continuous. Row {row} of y is {labels[row]}; expected classes: integers, "
            "strings, bools, or floats without fraction"
        )


def classes_and_index(where: str, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The unique labels in their order, and the index of each row's among them, int64.

    Raises:
        ValueError: the labels are of types that do not sort together.
    """
    if labels.dtype.kind in "iu" and len(labels):
        low, high = int(labels.min()), int(labels.max())
        if high - low < _NARROW:
            shifted = (labels.astype(np.int64) if labels.dtype.itemsize < 8 else labels) - labels.dtype.type(low)
            shifted = shifted.astype(np.int64, copy=False)
            values = np.flatnonzero(np.bincount(shifted, minlength=high - low + 1))
            places = np.zeros(high - low + 1, dtype=np.int64)
            places[values] = np.arange(len(values))
            return values.astype(labels.dtype) + labels.dtype.type(low), places[shifted]  # which may wrap, and back
    return unique(where, labels)


def unique(where: str, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    try:
        classes, index = np.unique(labels, return_inverse=True)
    except TypeError as error:
        raise ValueError(f"{where}: Unknown label type: {error}; expected labels that sort together") from error
    return classes, index.astype(np.int64, copy=False)


def index_among(where: str, labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The index of each label among classes, which are sorted.

    Raises:
        ValueError: a label is none of the classes; the message names its row.
    """
    names, each = classes_and_index(where, labels)
    places = np.array([_place(label, classes) for label in names], dtype=np.int64)
    missing = places[each] < 0
    if missing.any():
        row = int(np.flatnonzero(missing)[0])
        shown = ", ".join(map(repr, classes[:10].tolist())) + (", …" if len(classes) > 10 else "")
        raise ValueError(f"{where}: row {row} of y is {labels.tolist()[row]!r}; expected one of the classes {shown}")
    return places[each]


def _place(label: Any, classes: np.ndarray) -> int:
    if _is_text(classes) != isinstance(label, str):
        return -1
    place = int(np.searchsorted(classes, label))
    return place if place < len(classes) and classes[place] == label else -1


def _is_text(classes: np.ndarray) -> bool:
    return classes.dtype.kind in "UT" or (classes.dtype.kind == "O" and isinstance(classes[0], str))


def union(where: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The classes of both, sorted.

    Raises:
        ValueError: one has names and the other numbers.
    """
    if _is_text(a) != _is_text(b):
        raise ValueError(
            f"{where}: the classes are {a[:3].tolist()}… here and {b[:3].tolist()}… there; expected one type of labels"
        )
    return a if np.array_equal(a, b) else unique(where, np.concatenate([a, b]))[0]


def named(classes: np.ndarray, index: Tensor, as_torch: bool) -> Any:
    """The labels of indices: a tensor where that is asked for and can hold them, else a NumPy array."""
    if as_torch and classes.dtype.kind in "biuf":
        return torch.from_numpy(np.ascontiguousarray(classes)).to(index.device)[index]
    return classes[index.cpu().numpy()]


def held_out(index: np.ndarray, fraction: float, seed: int) -> Tensor:
    """[N] bool: which rows are held out: `fraction` of each class, rounded, drawn by seed, but never all of a class."""
    places = torch.from_numpy(index)
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed), device="cpu")
    by_class = order[places[order].sort(stable=True).indices]
    counts = torch.bincount(places)
    rank = torch.arange(len(places), device="cpu") - (counts.cumsum(0) - counts)[places[by_class]]
    quota = torch.minimum((counts.double() * fraction + 0.5).floor().long(), (counts - 1).clamp(min=0))
    held = torch.zeros(len(places), dtype=torch.bool, device="cpu")
    held[by_class] = rank < quota[places[by_class]]
    return held


def _conversion_warning() -> type[Warning]:
    try:
        from sklearn.exceptions import DataConversionWarning  # what those who use scikit-learn filter by
    except ImportError:
        return UserWarning
    return DataConversionWarning
