"""The picture of a training run. It needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import runs
from .methods import LOSS_TITLE


def plot(rows: Sequence[dict[str, Any]], path: Path) -> bool:
    """Draw a run's curves over iterations; returns False where matplotlib is not installed."""
    return runs.plot(
        rows, path, loss_title=LOSS_TITLE, unit="iteration", adjust=lambda loss, _: loss.set_ylim(bottom=0)
    )
