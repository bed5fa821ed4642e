"""Sentences on the studies: times to an equal loss or accuracy, memory, fronts; and where nothing is gained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import curves, equals, fronts, speedups
from .numbers import byte_count, times
from .systems import SYSTEMS

Record = Mapping[str, Any]


def of(run: Sequence[Record], study: str) -> list[str]:
    """The sentences that stand over a study's pictures; none where it did not end."""
    reached = [equal.sentence for field in curves.FIELDS if (equal := equals.at(run, study, field))]
    return [*reached, *_saved(run, study), *fronts.sentences(run, study)]


def _saved(run: Sequence[Record], study: str) -> list[str]:
    ends = [r for r in run if r["kind"] == "training_summary" and r["study"] == study and r.get("saved_bytes")]
    if not ends:
        return []
    listed = ", ".join(f"{r['method']} {byte_count(r['saved_bytes'])}" for r in ends)
    return [f"Kept for the backward of a mini-batch: {listed}."]


def no_gains(run: Sequence[Record]) -> list[tuple[str, str]]:
    """(system and data, sentence) of each study that gains nothing in time, or in its front."""
    result = []
    ends = [r for r in run if r["kind"] == "training_summary"]
    datasets = {r["study"]: r["dataset"] for r in ends}
    titles = {system.study: system.title for system in SYSTEMS}
    for study, dataset in datasets.items():
        head = f"{titles.get(study, study)}, {dataset}"
        compared = [equal for field in curves.FIELDS if (equal := equals.at(run, study, field))]
        result += [(head, equal.sentence) for equal in compared if not equal.is_gain]
        if words := fronts.no_gain(run, study):
            result.append((head, words))
        if not compared:
            of_iterations = speedups.groups([r for r in ends if r["study"] == study])
            result += [(head, _slower(group)) for group in of_iterations if group.mean <= 1]
    return result


def _slower(group: speedups.Group) -> str:
    ratio = times(group.mean)
    return f"An iteration of {group.contender} takes {ratio} our time: what is gained there, if anything, is not time."
