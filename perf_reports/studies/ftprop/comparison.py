"""The paper's study: networks of hard thresholds by each rule, beside smooth ones, on MNIST and CIFAR-10.

    python -m tropigrad.perf_reports.studies.ftprop.comparison OUT [--data-dir DIR] [--only NAME] [--quick]

NAME is digits, mnist, convnet4 or convnet8. Each leaves OUT/NAME (what `tropigrad train ftprop` leaves), in which an
interrupted one goes on; then comparison.md, comparison.jsonl and comparison.png of all that OUT holds. Accuracies are
those of the final epoch, never of the best one. On a GPU the schedule is the paper's; on a CPU the convolutional
networks have a short one, on a part of the images, and are named so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....whole_files import replace
from ... import data, output
from ...data import DataError, Dataset
from ...durations import format_duration
from ...environment import machine, versions
from ..runs import CHECKPOINT, ResumeError, write_metrics
from . import drawing
from .methods import FULL_EPOCHS, METHODS, Recipe, device
from .training import last_rows, train
from .verdict import spread, verdict

Record = dict[str, Any]
_MODULE = "tropigrad.perf_reports.studies.ftprop.comparison"


@dataclass(frozen=True)
class Experiment:
    """One network on one data set; per_class: at most so many training samples of each class."""

    dataset: str
    network: str
    epochs: int
    per_class: int | None = None


def experiments(quick: bool = False) -> dict[str, Experiment]:
    """Name → experiment, as long as this machine allows."""
    if quick:
        return {
            "digits": Experiment("digits", "mlp", 2),
            "mnist": Experiment("mnist", "mlp", 1, 20),
            "convnet4": Experiment("cifar10", "convnet4", 1, 4),
            "convnet8": Experiment("cifar10", "convnet8", 1, 4),
        }
    is_full = device().type == "cuda"
    epochs, per_class = (FULL_EPOCHS, None) if is_full else (5, 200)
    return {
        "digits": Experiment("digits", "mlp", 20),
        "mnist": Experiment("mnist", "mlp", 20 if is_full else 3),
        "convnet4": Experiment("cifar10", "convnet4", epochs, per_class),
        "convnet8": Experiment("cifar10", "convnet8", epochs, per_class),
    }


def loaded(experiment: Experiment, folder: Path | None, quick: bool) -> Dataset:
    """
    Raises:
        DataError: the folder does not hold the data set.
    """
    dataset = data.load(experiment.dataset, folder)
    if experiment.per_class is None:
        return dataset
    test = 10 if quick else len(dataset.y_test)
    few = dataset.subset(experiment.per_class, test)
    name = f"{experiment.dataset}, {len(few.y_train):,} of its images"
    return Dataset(few.x_train, few.y_train, few.x_test, few.y_test, name)


def run(experiment: Experiment, dataset: Dataset, out: Path, seeds: int) -> list[Record]:
    """Train all methods, or go on with it; the summary and the rows, as records."""
    recipe = Recipe(experiment.network, METHODS[0], experiment.epochs)
    shown = 0

    def progress(done: int, total: int, what: str) -> None:
        nonlocal shown
        if done > shown:
            shown = done
            print(f"{out.name}: epoch {done} of {total}, {what}", flush=True)

    settings: Record = {"methods": METHODS, "seeds": seeds, "progress": progress}
    try:
        summary = train(dataset, out, recipe, **settings, resume=(out / CHECKPOINT).is_file())
    except ResumeError as error:  # of another setting: it is begun anew
        print(error, flush=True)
        summary = train(dataset, out, recipe, **settings)
    if summary["interrupted"]:
        raise KeyboardInterrupt
    rows = summary.pop("rows")
    del summary["files"], summary["interrupted"]
    return [{"kind": "experiment", "experiment": out.name, **summary}, *({"experiment": out.name, **r} for r in rows)]


# ------------------------------------------------------------------------------------------------ the tables


def table(records: Sequence[Record]) -> str:
    """Markdown: a table an experiment, and whether soft_hinge and sste may be ranked by it."""
    parts = []
    for head in (r for r in records if r["kind"] == "experiment"):
        rows = [r for r in records if r["kind"] == "training" and r["experiment"] == head["experiment"]]
        lasts = last_rows(rows, head["epochs"])
        cells = [["method", "test accuracy, last epoch", "training loss", "a step", "saved for the backward"]]
        cells.append(["---"] * len(cells[0]))
        for name, own in lasts.items():
            losses = [row["loss"] for row in own if row["loss"] is not None]
            steps = [row["step_seconds"] for row in rows if row["rule"] == name]
            cells.append(
                [
                    name,
                    spread([row["test_accuracy"] for row in own]),
                    f"{statistics.mean(losses):.3f}" if losses else "not finite",
                    format_duration(statistics.median(steps)),
                    f"{head['saved_bytes'][name] / 1e6:.3g} MB",
                ]
            )
        told = verdict({name: [row["test_accuracy"] for row in own] for name, own in lasts.items()})
        seeds = f"{head['seeds']} seed{'s' if head['seeds'] > 1 else ''}"
        facts = f"{head['samples']:,} samples, {head['schedule']}; {seeds}, mean ± standard deviation"
        parts.append(f"### {head['network']}, {head['dataset']}\n\n{facts}.")
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in cells))
        parts.append(f"{told}.")
    return "\n\n".join(parts) + "\n"


# ------------------------------------------------------------------------------------------------ the command


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing in OUT, then write its records, table and picture."""
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}", description="Rules of hard thresholds side by side.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-dir", type=Path, help="a folder with mnist and cifar10 (default: TROPIGRAD_DATA)")
    parser.add_argument("--only", choices=tuple(experiments()), help="one experiment")
    parser.add_argument("--epochs", type=int, help="in place of the usual number; needs --only")
    parser.add_argument("--per-class", type=int, help="training samples of each class; needs --only")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a part of each, which shows that all runs")
    asked = parser.parse_args(arguments)
    folder = data.find_data_dir(asked.data_dir)
    if (asked.epochs or asked.per_class) and not asked.only:
        parser.error("--epochs and --per-class are of one experiment; expected --only NAME")
    chosen = experiments(asked.quick)
    if asked.only:
        of_one = chosen[asked.only]
        epochs, per_class = asked.epochs or of_one.epochs, asked.per_class or of_one.per_class
        chosen = {asked.only: Experiment(of_one.dataset, of_one.network, epochs, per_class)}
    elif folder is None:
        chosen = {"digits": chosen["digits"]}
    try:
        for name, experiment in chosen.items():
            records = run(experiment, loaded(experiment, folder, asked.quick), asked.out / name, asked.seeds)
            path = asked.out / name / "records.jsonl"
            if path.is_file() and path.read_text("utf-8").splitlines()[1:] == [json.dumps(r) for r in records]:
                continue  # trained before, on the machine that stands there
            head = {"kind": "run", "experiment": name, "machine": machine(), "versions": versions()}
            write_metrics(path, [head, *records])
    except DataError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on from {asked.out}", file=sys.stderr)
        return 130
    paths = [asked.out / name / "records.jsonl" for name in experiments()]
    records = [json.loads(text) for path in paths if path.is_file() for text in path.read_text("utf-8").splitlines()]
    write_metrics(asked.out / "comparison.jsonl", records)
    written = table(records)
    replace(asked.out / "comparison.md", lambda fresh: fresh.write_text(written, encoding="utf-8"))
    drawing.draw_comparison([r for r in records if r["kind"] == "training"], asked.out / "comparison.png")
    print(written)
    return 0


if __name__ == "__main__":
    output.take_any_encoding()
    sys.exit(main())
