"""The pictures of the study: the losses from rescaled starts, and a training run's curves. They need matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ....whole_files import replace
from ...commands import Progress
from ...data import Dataset
from .. import runs
from .methods import LOSS_TITLE, Recipe, Training


def draw_starts(
    dataset: Dataset,
    path: Path,
    *,
    spreads: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75),
    epochs: int = 15,
    seed: int = 0,
    progress: Progress = lambda done, total, what: None,
) -> None:
    """Train the MLP by G-SGD and by SGD from one start, rescaled ever more, and draw the losses.

    The picture of what G-SGD is for: its lines lie on each other. Needs matplotlib.

    Args:
        spreads: of log c, one line each.
        progress: called before each training.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    from ...page.figures import COLOR, drawing

    colors = [COLOR[name] for name in ("ours", "dense", "peer", "other", "compiled")]
    with drawing(10, 4.3, ncols=2, sharey=True) as (figure, axes):
        for row, (panel, name) in enumerate(zip(axes, ("gsgd", "sgd"), strict=True)):
            for number, spread in enumerate(spreads):
                progress(row * len(spreads) + number, 2 * len(spreads), f"{name}, spread {spread:g}")
                training = Training(Recipe(optimizer=name, spread=spread, seed=seed), dataset)
                losses = []
                while training.epoch < epochs:
                    epoch = training.advance()
                    if epoch is not None:
                        losses.append(epoch["loss"])
                # thinner towards the last, so that lines on each other can be seen
                width = 1.2 + 1.8 * (len(spreads) - 1 - number)
                color = colors[number % len(colors)]
                panel.plot(range(1, epochs + 1), losses, color=color, linewidth=width, label=f"{spread:g}")
            panel.set_title({"gsgd": "G-SGD", "sgd": "SGD"}[name])
            panel.set(yscale="log", xlabel="epoch")
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            panel.grid(axis="y")
            if name == "gsgd":  # SGD's losses have been seen to leave any range
                low, high = panel.dataLim.intervaly
                panel.set_ylim(low / 2, 4 * high)
        axes[0].set_ylabel(f"training loss, {dataset.name}")
        axes[1].legend(title="spread of log c")
        replace(path, lambda fresh: figure.savefig(fresh, format="png", dpi=160))


def plot(rows: Sequence[dict[str, Any]], path: Path) -> bool:
    """Draw a run's curves over epochs; returns False where matplotlib is not installed or there is no epoch yet."""

    def adjust(loss: Any, accuracy: Any) -> None:
        from matplotlib.ticker import MaxNLocator

        loss.set(yscale="log")
        for panel in (loss, accuracy):
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))

    return bool(rows) and runs.plot(rows, path, loss_title=LOSS_TITLE, unit="epoch", adjust=adjust)
