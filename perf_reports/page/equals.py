"""The time to an equal loss, or to an equal test accuracy, of ours and of dense backprop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..durations import format_duration
from . import curves
from .curves import written
from .numbers import TIE, times

Record = Mapping[str, Any]

_TELLING_SHARE, _TELLING_POINTS = 0.05, 0.002  # of a loss, and of accuracy: what is worth a sentence


@dataclass(frozen=True)
class Equal:
    """When two methods of a study first are at the best level that both reach."""

    field: str  # of curves.FIELDS
    level: float
    ours: str
    dense: str
    our_seconds: float
    dense_seconds: float
    our_best: float
    dense_best: float

    @property
    def ratio(self) -> float:
        """How many times longer dense backprop takes."""
        return self.dense_seconds / self.our_seconds

    @property
    def is_gain(self) -> bool:
        return self.ratio > TIE

    @property
    def sentence(self) -> str:
        """One sentence, and a second one where a method goes on from there."""
        level = written(self.field, self.level)
        words = (
            f"To an equal {curves.FIELDS[self.field]} of {level}, {self.ours} takes "
            f"{format_duration(self.our_seconds)} and {self.dense} {format_duration(self.dense_seconds)}: "
            f"{times(self.ratio)} the time{'' if self.is_gain else ', so none is gained'}."
        )
        for name, end in ((self.ours, self.our_best), (self.dense, self.dense_best)):
            if self._is_beyond(end):
                words += f" {name[0].upper()}{name[1:]} goes on to {written(self.field, end)}."
        return words

    def _is_beyond(self, end: float) -> bool:
        if self.field == "loss":
            return end < self.level * (1 - _TELLING_SHARE)
        return end > self.level + _TELLING_POINTS


def at(run: Sequence[Record], study: str, field: str) -> Equal | None:
    """The comparison of a study; None where it did not end, or where both are at the level from the start on."""
    ends = [r for r in run if r["kind"] == "training_summary" and r["study"] == study]
    ours = next((r["method"] for r in ends if r["role"] == "ours"), None)
    dense = next((r["method"] for r in ends if r["role"] == "dense"), None)
    lines = curves.lines_of(run, study, field)
    if ours not in lines or dense not in lines:
        return None
    best, worse = (min, max) if field == "loss" else (max, min)
    our_best, dense_best = (best(row[1] for row in lines[name]) for name in (ours, dense))
    level = worse(our_best, dense_best)
    our_seconds, dense_seconds = (curves.first_at(lines[name], field, level) for name in (ours, dense))
    if not our_seconds or not dense_seconds:  # from the start on
        return None
    return Equal(field, level, ours, dense, our_seconds, dense_seconds, our_best, dense_best)
