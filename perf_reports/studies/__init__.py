"""Each system's experiment, beside dense backprop on the same network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from . import gsgd, maxplus


@dataclass(frozen=True)
class Study:
    """One experiment as the report runs it and the page shows it."""

    name: str
    compare: Callable[..., Iterable[Mapping[str, Any]]]  # (data_dir, quick, seed, progress) -> records
    loss_title: str  # over its loss curve


STUDIES = {
    study.name: study
    for study in (
        Study(maxplus.NAME, maxplus.compare, maxplus.LOSS_TITLE),
        Study(gsgd.NAME, gsgd.compare, gsgd.LOSS_TITLE),
    )
}
