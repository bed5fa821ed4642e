"""One walk along the front of loss and ℓ¹ norm, left in a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ....optim import ParetoFront
from ....optim.l1_continuation.compaction import Compacted
from ....optim.l1_continuation.front import Point
from ....optim.l1_continuation.tracing import describe
from ....whole_files import replace
from ...commands import Progress
from ...data import Dataset
from ..runs import METRICS, MODEL, ResumeError, interruption, write_metrics
from .methods import Recipe, Task, accuracy, network, walk

FRONT, PICTURE, CHECKPOINT = "front.pt", "front.png", "checkpoint"
_TIMED = 256  # samples of the calls that the compact network is timed by
_MULTIPLES = (1, 4, 8)  # of units in the compact network's layers: 16 may take less time than 15


class _Interrupted(Exception):
    pass


def train(
    dataset: Dataset,
    out: Path,
    recipe: Recipe,
    *,
    resume: bool = False,
    progress: Progress = lambda done, total, what: None,
    tell: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Walk the front of a network, and leave it in a folder.

    Writes front.pt (`ParetoFront.open` reads it), metrics.jsonl (a point a line, with its test accuracy), model.pt (the
    knee's network, compact; `state_dict` and `config`), front.png (where matplotlib is installed) and the folder
    checkpoint. Ctrl-C ends after the epoch under way with the points so far in place.

    Args:
        resume: go on from the checkpoint in `out`; otherwise what a run left there is replaced.
        progress: called after each epoch.
        tell: called with a line for each new point.
    Returns:
        The summary: points, knee, choice of validation, compact network, files, whether it was interrupted.
    Raises:
        ValueError: settings that do not exist or do not fit the data; a loss that is not finite.
        ResumeError: no checkpoint to resume, a corrupt one, or one of another setting.
        OSError: `out` cannot be written.
    """
    recipe.check()
    task = Task.of(dataset, recipe)
    model = network(dataset, recipe.seed).to(task.x_test.device)
    tracer = walk(model, dataset, recipe)
    folder = out / CHECKPOINT
    is_there = (folder / "state.pt").is_file()
    if resume and not is_there:
        raise ResumeError(f"{folder}: no checkpoint to resume; leave --resume out, or name the --out of the run")
    out.mkdir(parents=True, exist_ok=True)
    if is_there and not resume:
        for file in folder.iterdir():
            file.unlink()
    with interruption() as interrupted:

        def after_epoch(done: int, total: int, what: str) -> None:
            if done and what == describe(tracer.front[-1]):  # an epoch that ended with a point
                tell(f"point {done} of {total}: {_told(tracer.front[-1])}")
            progress(done, total, what)
            if interrupted.is_set():
                raise _Interrupted

        try:
            front = tracer.run(task.train, task.validation, progress=after_epoch, checkpoint=folder)
            is_done = True
        except _Interrupted:
            front, is_done = tracer.front, False
    config = {"dataset": dataset.name, "features": dataset.features, "classes": dataset.classes, **asdict(recipe)}
    summary: dict[str, Any] = {**config, "reached": len(front), "interrupted": not is_done, "files": []}
    if not len(front):
        return summary
    return summary | _left(front, task, out, config)


def _left(front: ParetoFront, task: Task, out: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Writes the files of a front, and says what stands in them."""
    accuracies = [accuracy(front.load(i), task) for i in range(len(front))]
    rows = [{**asdict(point), "test_accuracy": x} for point, x in zip(front, accuracies, strict=True)]
    knee, chosen = front.knee(), front.best("one_se")
    compact, multiple = _compact(front, knee, task)
    report = compact.report
    front.save(out / FRONT)
    write_metrics(out / METRICS, rows)
    state = {"config": config, "state_dict": compact.model.state_dict(), "point": knee, "layers": dict(report.layers)}
    replace(out / MODEL, lambda path: torch.save(state, path))
    files = [str(out / name) for name in (FRONT, METRICS, MODEL)]
    try:
        front.plot(out / PICTURE)
        files.append(str(out / PICTURE))
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
    total = sum(p.numel() for p in front.model.parameters()) if front.model else 0
    return {
        "non_dominated": len(front.non_dominated()),
        "epochs": front[-1].epochs,
        "seconds": front[-1].seconds,
        "parameters": total,
        "knee": {"point": knee, **rows[knee]},
        "one_se": {"point": chosen, **rows[chosen]},
        "compact": {
            "parameters": report.parameters,
            "multiple_of": multiple,
            "speedup": report.speedup.value if report.speedup else None,
            "speedup_low": report.speedup.low if report.speedup else None,
            "speedup_high": report.speedup.high if report.speedup else None,
            "largest_difference": report.largest_difference,
            "left": dict(report.left),
        },
        "files": files,
    }


def _compact(front: ParetoFront, point: int, task: Task) -> tuple[Compacted, int]:
    """A point's network made smaller, and the multiple that its layers' units are of: the one of the fastest calls.

    The figures are of another timing than the choice, so that they are not those of a lucky one.
    """
    inputs = task.x_test[:_TIMED]

    def speed(multiple: int) -> float:
        speedup = front.compact(point, inputs, multiple_of=multiple).report.speedup
        return speedup.value if speedup else 0.0

    fastest = max(_MULTIPLES, key=speed)
    return front.compact(point, inputs, multiple_of=fastest), fastest


def _told(point: Point) -> str:
    """A point for people, in one line."""
    held_out = f"held out {point.val_loss:.4g}, {point.val_accuracy:.1%} right"
    right = "" if point.accuracy is None else f", {point.accuracy:.1%} right"
    norm = f"l1 {point.l1:.4g}, {point.nnz} nonzeros, lambda {point.lam:.3g}"
    return f"loss {point.loss:.4g}{right}; {held_out}; {norm}"


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """The summary that `train` returned, for people."""
    if "knee" not in summary:
        return [f"{summary['dataset']}: interrupted before the first point; --resume goes on from the checkpoint"]
    knee, chosen, compact = summary["knee"], summary["one_se"], summary["compact"]
    interrupted = "; interrupted, --resume goes on" if summary["interrupted"] else ""
    share = knee["nnz"] / summary["parameters"]
    speed = f"{compact['speedup']:.2f} × as fast"
    if compact["speedup_low"] is not None and compact["speedup_low"] <= 1 <= compact["speedup_high"]:
        speed = f"as fast as before, within the error ({speed})"
    return [
        f"front   {summary['dataset']}, {summary['method']}: {summary['reached']} points, {summary['non_dominated']} "
        f"of them not dominated, {summary['epochs']:g} epochs in {summary['seconds']:.3g} s{interrupted}",
        f"choice  of validation, one standard error: point {chosen['point']}, {chosen['test_accuracy']:.1%} of the "
        f"test right with {chosen['nnz']} of {summary['parameters']} weights",
        f"knee    {knee['test_accuracy']:.1%} accuracy with {share:.1%} of the weights; compact: "
        f"{compact['parameters']} of {summary['parameters']} parameters, {speed}",
        f"files   {'  '.join(summary['files'])}",
    ]
