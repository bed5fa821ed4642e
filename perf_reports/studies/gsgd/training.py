"""One training run of the study's network, left in a folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...commands import Progress
from ...data import Dataset
from ..runs import Run
from .drawing import plot
from .methods import Recipe, Training

# the logs released with the paper, MNIST, the MLP, 300 epochs: first epoch's training loss, last test accuracy
RELEASED = {"gsgd": (0.304, 0.9764), "sgd": (0.441, 0.9737)}


def train(
    dataset: Dataset,
    out: Path,
    recipe: Recipe,
    *,
    epochs: int = 20,
    resume: bool = False,
    progress: Progress = lambda done, total, what: None,
) -> dict[str, Any]:
    """Train one network, and leave it in a folder.

    Writes metrics.jsonl (an epoch a line), model.pt (`state_dict` and `config`; loads with weights_only=True),
    training.png (where matplotlib is installed) and checkpoint.pt; each is replaced as a whole. Ctrl-C ends after the
    mini-batch under way with all of these in place; a run that is resumed goes through the same weights, bit for bit,
    as one that never stopped.

    Args:
        epochs: in all, those before a resumption included.
        resume: go on from the checkpoint in `out`; otherwise what a run left there is replaced.
        progress: called at the start and after each epoch.
    Returns:
        The summary: epochs, losses, accuracies, seconds, whether it was interrupted, the files.
    Raises:
        ValueError: settings that do not exist, or do not fit the data.
        ResumeError: no checkpoint to resume, a corrupt one, or one of another setting.
        OSError: `out` cannot be written.
    """
    if epochs < 1:
        raise ValueError(f"train: epochs is {epochs}; expected at least 1")
    config = {"dataset": dataset.name, "features": dataset.features, "classes": dataset.classes, **asdict(recipe)}
    training = Training(recipe, dataset)
    run = Run(out, config, resume)
    if run.state is not None:
        training.load_state(run.state)
    rows = run.rows

    def advance() -> None:
        row = training.advance()
        if row is not None:
            rows.append(row)
            progress(training.epoch, epochs, f"loss {_number(row['loss'])}, {row['test_accuracy']:.2%} right")

    progress(training.epoch, epochs, f"{recipe.optimizer}, {dataset.name}")
    run.go(
        is_done=lambda: training.epoch >= epochs,
        advance=advance,
        snapshot=lambda: (training.state(), {"state_dict": training.model.state_dict()}),
        plot=plot,
    )
    last = rows[-1] if rows else {"loss": None, "train_accuracy": None, "test_accuracy": training.test_accuracy()}
    return {
        **config,
        "epochs": training.epoch,
        "interrupted": training.epoch < epochs,
        "seconds": training.seconds,
        "first_loss": rows[0]["loss"] if rows else None,
        "final_loss": last["loss"],
        "test_accuracy": last["test_accuracy"],
        "best_test_accuracy": max((row["test_accuracy"] for row in rows), default=None),
        "train_accuracy": last["train_accuracy"],
        "files": run.files,
    }


def _number(loss: float | None) -> str:
    return "not finite" if loss is None else f"{loss:.4g}"


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """The summary that `train` returned, for people; for the MLP on MNIST beside the logs released with the paper."""
    interrupted = "; interrupted, --resume goes on" if summary["interrupted"] else ""
    lines = [
        f"network        {summary['dataset']}: {summary['network']}, by {summary['optimizer']} at {summary['lr']:g}",
        f"epochs         {summary['epochs']} in {summary['seconds']:.3g} s of training{interrupted}",
        f"training loss  {_number(summary['first_loss'])} first epoch, {_number(summary['final_loss'])} last epoch",
        f"test accuracy  {summary['test_accuracy']:.2%}",
    ]
    if summary["dataset"] == "mnist" and summary["network"] == "mlp" and summary["optimizer"] in RELEASED:
        loss, accuracy = RELEASED[summary["optimizer"]]
        lines.append(f"released       {loss:g} first epoch, {accuracy:.2%} after 300")
    return [*lines, f"files          {'  '.join(summary['files'])}"]
