"""A training run in a folder: files that are replaced as a whole, a checkpoint to go on from, Ctrl-C between steps."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

CHECKPOINT, MODEL, METRICS, PLOT = "checkpoint.pt", "model.pt", "metrics.jsonl", "training.png"
CHECKPOINT_SECONDS = 5.0

Progress = Callable[[int, int, str], None]  # (done, total, what is being done)


class ResumeError(ValueError):
    """A run that cannot be taken up again, in one line."""


def read_checkpoint(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    if not path.is_file():
        raise ResumeError(f"{path}: no checkpoint to resume; leave --resume out, or name the --out of the run")
    try:
        state = torch.load(path, weights_only=True)
        found = state["config"]
    except Exception as error:  # torch.load fails in as many ways as there are ways of breaking a file
        raise ResumeError(
            f"{path}: not a checkpoint of this command ({type(error).__name__}); start without --resume"
        ) from None
    other = [
        f"{name} {found.get(name)!r}, asked for {value!r}" for name, value in config.items() if found.get(name) != value
    ]
    if other:
        raise ResumeError(f"{path}: a run of another setting: {'; '.join(other)}")
    return state


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside it, then put in its place: a reader sees the old file or the new one, whole."""
    fresh = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(fresh)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


@contextmanager
def interruption() -> Iterator[threading.Event]:
    """Ctrl-C sets the event, so that an iteration is never left half done; a second one interrupts at once."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted  # signals reach the main thread alone
        return
    before = signal.getsignal(signal.SIGINT)

    def hold(number: int, frame: object) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, hold)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def write_metrics(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """The rows as JSON, one a line."""
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    replace(path, lambda fresh: fresh.write_text(lines, encoding="utf-8"))
