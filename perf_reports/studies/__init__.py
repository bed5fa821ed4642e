"""Each system's experiment, beside dense backprop on the same network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from . import explicit, ftprop, gsgd, l1path, maxplus


@dataclass(frozen=True)
class Study:
    """One experiment as the report runs it and the page shows it."""

    name: str
    compare: Callable[..., Iterable[Mapping[str, Any]]]  # (data_dir, quick, seed, progress) -> records
    loss_title: str  # over its loss curve


# in the order of the report: the shortest first, so that a slow machine leaves out the longest alone
STUDIES = {
    study.NAME: Study(study.NAME, study.compare, study.LOSS_TITLE)
    for study in (explicit, ftprop, l1path, gsgd, maxplus)
}
