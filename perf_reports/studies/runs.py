"""A training run in a folder: the loop, a checkpoint to go on from, Ctrl-C between steps, metrics, the model, a plot.

Every file is replaced as a whole.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from ...kernels.runtime.ranks import any_rank, on_all_ranks
from ...whole_files import replace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CHECKPOINT, MODEL, METRICS, PLOT = "checkpoint.pt", "model.pt", "metrics.jsonl", "training.png"
CHECKPOINT_SECONDS = 5.0


class ResumeError(ValueError):
    """A run that cannot be taken up again, in one line."""


class Run:
    """One training run: the rows logged so far, and the folder that it leaves its files in.

    `state` is the checkpoint that a resumed run goes on from; None where the run begins afresh.

    group: whose ranks run together. Rank 0 alone reads and writes files, and tells the others.

    Raises:
        ResumeError: no checkpoint to resume, a corrupt one, or one of another setting.
    """

    def __init__(self, out: Path, config: dict[str, Any], resume: bool, group: dist.ProcessGroup | None = None) -> None:
        self.out, self.config, self.group = out, config, group
        self.leads = group is None or group.rank() == 0
        read = [on_all_ranks("train", group, lambda: self._read() if resume and self.leads else None)]
        if group is not None:
            dist.broadcast_object_list(read, dist.get_global_rank(group, 0), group, device=torch.device("cpu"))
        self.state = read[0]
        self.rows: list[dict[str, Any]] = [] if self.state is None else self.state["rows"]
        self.files: list[str] = []

    def _read(self) -> dict[str, Any]:
        return read_checkpoint(self.out / CHECKPOINT, self.config)

    def go(
        self,
        *,
        is_done: Callable[[], bool],
        advance: Callable[[], None],
        snapshot: Callable[[], tuple[dict[str, Any], dict[str, Any]]],
        plot: Callable[[Sequence[dict[str, Any]], Path], bool],
        tell: Callable[[], None] = lambda: None,
        end: Callable[[], None] = lambda: None,
    ) -> None:
        """Advance until the training is done, or until Ctrl-C; leaves the files in place in either case.

        The ranks of a group call it together, and all end where one of them is interrupted; SIGTERM, which torchrun
        sends on, counts as Ctrl-C then. `snapshot`, `plot` and `end` are called on rank 0.

        Args:
            is_done: asked before every step.
            advance: takes one step, and logs what it should in `rows`.
            snapshot: returns what the checkpoint and the model file hold besides configuration and rows.
            plot: draws the rows to a path; returns whether it could.
            tell: called before every step and after the last one, to show progress.
            end: called after the last step, before the files are written.
        Raises:
            OSError: the folder cannot be written.
        """
        on_all_ranks("train", self.group, lambda: self.leads and self.out.mkdir(parents=True, exist_ok=True))
        saved, took, cpu = time.monotonic(), 0.0, torch.device("cpu")
        with interruption(terminates=self.group is not None) as interrupted:
            while True:
                tell()
                if is_done() or any_rank("train", interrupted.is_set(), self.group, cpu):
                    break
                advance()
                if not self.leads:
                    continue
                # a large checkpoint, which takes long, is written less often
                if (began := time.monotonic()) - saved > CHECKPOINT_SECONDS * max(1.0, 4 * took):
                    self._save(*snapshot())
                    saved = time.monotonic()
                    took = saved - began
            if not self.leads:
                return
            end()
            self._save(*snapshot())
            is_plotted = plot(self.rows, self.out / PLOT)
        names = (MODEL, METRICS, CHECKPOINT, *([PLOT] if is_plotted else []))
        self.files = [str(self.out / name) for name in names]

    def _save(self, training: dict[str, Any], model: dict[str, Any]) -> None:
        checkpoint = {"config": self.config, "rows": self.rows, **training}
        replace(self.out / CHECKPOINT, lambda path: torch.save(checkpoint, path))
        replace(self.out / MODEL, lambda path: torch.save({"config": self.config, **model}, path))
        write_metrics(self.out / METRICS, self.rows)


def read_checkpoint(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Load a checkpoint of this configuration.

    Raises:
        ResumeError: the file is missing, corrupt, or of another setting.
    """
    if not path.is_file():
        raise ResumeError(f"{path}: no checkpoint to resume; leave --resume out, or name the --out of the run")
    try:
        state = torch.load(path, weights_only=True)
        earlier = state["config"]
    except Exception as error:  # torch.load fails in as many ways as there are ways of breaking a file
        raise ResumeError(
            f"{path}: not a checkpoint of this command ({type(error).__name__}); start without --resume"
        ) from None
    other = [
        f"{name} {earlier.get(name)!r}, asked for {value!r}"
        for name, value in config.items()
        if earlier.get(name) != value
    ]
    if other:
        raise ResumeError(f"{path}: a run of another setting: {'; '.join(other)}")
    return state


@contextmanager
def interruption(terminates: bool = False) -> Iterator[threading.Event]:
    """Ctrl-C sets the event, so that an iteration is never left half done; a second one interrupts at once.

    terminates: whether SIGTERM sets it too.
    """
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted  # signals reach the main thread alone
        return
    before = signal.getsignal(signal.SIGINT)

    def hold(number: int, frame: object) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, hold)
    ended_by = signal.getsignal(signal.SIGTERM)
    if terminates:
        signal.signal(signal.SIGTERM, lambda number, frame: interrupted.set())
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
        if terminates:
            signal.signal(signal.SIGTERM, ended_by)


def write_metrics(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """The rows as JSON, one a line."""
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    replace(path, lambda fresh: fresh.write_text(lines, encoding="utf-8"))


def plot(
    rows: Sequence[dict[str, Any]],
    path: Path,
    *,
    loss_title: str,
    unit: str,
    adjust: Callable[[Axes, Axes], object],
) -> bool:
    """Draw the loss, and training and test accuracy, over iterations; returns False where matplotlib is not installed.

    Args:
        unit: what an iteration is called.
        adjust: called with the panels of loss and accuracy before they are saved.
    """
    try:
        from matplotlib.ticker import PercentFormatter

        from ..page.figures import COLOR, drawing
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        return False
    iterations = [row["iteration"] for row in rows]
    with drawing(10, 4.3, ncols=2) as (figure, (loss, accuracy)):  # pyright: ignore
        loss.plot(iterations, [row["loss"] for row in rows], color=COLOR["ours"], linewidth=1.8)
        loss.set_title(loss_title)
        for field, color in (("train_accuracy", COLOR["muted"]), ("test_accuracy", COLOR["ours"])):
            label = field.removesuffix("_accuracy")
            accuracy.plot(iterations, [row[field] for row in rows], color=color, linewidth=1.8, label=label)
        accuracy.set_title("Accuracy")
        accuracy.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        accuracy.legend()
        for panel in (loss, accuracy):
            panel.grid(axis="y")
            panel.set_xlabel(unit)
        adjust(loss, accuracy)
        replace(path, lambda fresh: figure.savefig(fresh, format="png", dpi=160))
    return True
