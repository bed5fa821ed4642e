"""Accuracy against training time: each objective on each max-plus network, an MLP and a linear softmax beside them.

    python -m tropigrad.perf_reports.studies.maxplus.accuracy OUT [--data-dir DIR] [--only NAME] [--networks NAME ...] \
        [--epochs E] [--per-class N] [--seeds S] [--quick] [--processor-time]

NAME is digits, mnist, fashion-mnist (MNIST-format files in DIR/fashion-mnist) or cifar10. The objectives are the mean
cross-entropy of a batch, its worst 10 %, its worst 1 % and the worst sample: where A is fixed the worst of all, by
sparse subgradients from the same start; elsewhere that of a batch. A tenth of the training samples is held out, and
the iterate kept that is right most often on it. Each run leaves OUT/NAME/RUN.jsonl, and is not run again where that is
there; then accuracy.jsonl, accuracy.md and accuracy.png of all that OUT holds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ....nn import LinearMinMax
from ....whole_files import replace
from ... import data, output
from ...data import DataError, Dataset
from ...durations import format_duration
from ...environment import machine, versions
from ..runs import write_metrics
from ..tables import markdown, spread
from . import clock, minibatch, networks
from .methods import MARGIN, SCALE, quick_start
from .minibatch import MiniBatchTraining, judge
from .networks import layered, sizes_of
from .objectives import AVERAGE, RATE_OVER_A, WorstSample, rescaled
from .training import hold_out

Record = Mapping[str, Any]
_MODULE = "tropigrad.perf_reports.studies.maxplus.accuracy"

OBJECTIVES: dict[str, float | None] = {"mean": 1.0, "CVaR 10%": 0.1, "CVaR 1%": 0.01, "worst": None}  # α
FIXED, TRAINED = "linear-min-max, A fixed", "linear-min-max, A trained"
MLP, RESIDUAL = "max-plus MLP", "residual max-plus"
BESIDE = {"ReLU MLP": "ReLU MLP", "linear softmax": "linear softmax"}  # by the mean alone
NETWORKS = (FIXED, TRAINED, MLP, RESIDUAL, *BESIDE)
_WORST_ITERATIONS = 2000


@dataclass(frozen=True)
class Experiment:
    """A data set and how long it is trained on; per_class: at most so many training samples of each class."""

    hidden: int
    epochs: int
    per_class: int | None = None
    slower: float = 1.0  # what the usual rates are divided by


EXPERIMENTS = {
    "digits": Experiment(hidden=200, epochs=100),
    "mnist": Experiment(hidden=200, epochs=8),
    "fashion-mnist": Experiment(hidden=200, epochs=8),
    "cifar10": Experiment(hidden=200, epochs=8, slower=10.0),  # at the usual rates, residual networks stay at chance
}
QUICK = Experiment(hidden=20, epochs=2, per_class=20)


def loaded(name: str, experiment: Experiment, folder: Path | None, seed: int) -> Dataset:
    """The data of an experiment.

    Raises:
        DataError: the folder does not hold the data set.
    """
    if name == "fashion-mnist":
        if folder is None:
            raise DataError("fashion-mnist needs a folder: --data-dir DIR with DIR/fashion-mnist")
        dataset = data.read_mnist(folder / name)
    else:
        dataset = data.load(name, folder, seed)
    if experiment.per_class is None:
        return dataset
    few = dataset.subset(experiment.per_class, len(dataset.y_test), seed)
    return Dataset(few.x_train, few.y_train, few.x_test, few.y_test, f"{name}, {len(few.y_train):,} of its samples")


def network(name: str, dataset: Dataset, hidden: int, seed: int) -> tuple[nn.Module, float, float, float]:
    """A network at its start; the temperature and the rate that it is trained with, and the seconds its start took."""
    if name in (FIXED, TRAINED):
        model, medoids = quick_start(dataset, hidden, seed, 1.0, 1.0)
        model.A.requires_grad_(name == TRAINED)
        return model, minibatch.TEMPERATURE, minibatch.RATE, medoids.seconds
    features, classes = dataset.features, dataset.classes
    if name in (MLP, RESIDUAL):
        model = layered("max-plus-mlp" if name == MLP else "residual", features, hidden, classes, seed)
        return model, networks.TEMPERATURE, networks.RATE, 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "ReLU MLP":
            sizes = (features, *sizes_of("max-plus-mlp", hidden, classes))
            layers = [(nn.Linear(i, o, device="cpu"), nn.ReLU()) for i, o in pairwise(sizes)]
            last = nn.Linear(sizes[-1], classes, device="cpu")
            model = nn.Sequential(*(part for layer in layers for part in layer), last)
        else:
            model = nn.Linear(features, classes, device="cpu")
        return model, networks.TEMPERATURE, networks.RATE, 0.0


def run(
    name: str, dataset: Dataset, network_name: str, objective: str, experiment: Experiment, seed: int
) -> Iterator[dict[str, Any]]:
    """A record an epoch, or a logged iteration on the worst sample (kind "training"), then a "training_summary"."""
    kept_in, held_out, _ = hold_out(dataset, 0.1, seed)
    assert held_out is not None
    validation = held_out.x, held_out.y
    hidden = min(experiment.hidden, len(kept_in.y_train))
    model, temperature, rate, init_seconds = network(network_name, kept_in, hidden, seed)
    of_run = {"data": name, "network": network_name, "objective": objective, "seed": seed}
    if network_name == FIXED and objective == "worst" and isinstance(model, LinearMinMax):
        model = rescaled(model, SCALE, MARGIN, 1.0)
        worst = WorstSample(model, kept_in, validation, _WORST_ITERATIONS, {"margin": MARGIN, "train_A": False})
        while not worst.is_done:
            worst.advance_briefly()
        history, best, best_row = worst.history, worst.best, worst.best_row
        temperature, seconds = SCALE * temperature, worst.seconds
    else:
        alpha = OBJECTIVES[objective]
        training = MiniBatchTraining(
            model,
            kept_in,
            objective="mean" if alpha == 1 else "worst" if alpha is None else "cvar",
            alpha=alpha or 1.0,
            temperature=temperature,
            rate=rate / experiment.slower,
            rate_of_a=rate / experiment.slower / RATE_OVER_A,
            average=AVERAGE,
            epochs=experiment.epochs,
            seed=seed,
            validation=validation,
            method=network_name,
        )
        while not training.is_done:
            training.advance()
        history, best, best_row, seconds = training.history, training.best, training.best_row, training.seconds
    for row in history:
        yield {**row, "kind": "training", "dataset": dataset.name, **of_run}
    model.load_state_dict(best)
    on_training = judge(model, kept_in.x_train, kept_in.y_train, temperature)
    on_test = judge(model, dataset.x_test, dataset.y_test, temperature)
    yield {
        "kind": "training_summary",
        "dataset": dataset.name,
        **of_run,
        "hidden": hidden,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "train_samples": len(kept_in.y_train),
        "epochs": history[-1]["iteration"],
        "seconds": seconds,
        "init_seconds": init_seconds,
        "temperature": temperature,
        "kept_iteration": best_row["iteration"],
        "validation_accuracy": best_row["validation_accuracy"],
        "train_accuracy": on_training.accuracy,
        "train_mean_loss": on_training.mean_loss,
        "train_worst_loss": on_training.worst_loss,
        "test_accuracy": on_test.accuracy,
    }


# ------------------------------------------------------------------------------------------------ table and picture


def table(records: Sequence[Record]) -> str:
    """Markdown: for each data set a row a network, with the test accuracy by each objective and the time of a run."""
    summaries = [r for r in records if r["kind"] == "training_summary"]
    parts = []
    for name in dict.fromkeys(r["data"] for r in summaries):
        own = [r for r in summaries if r["data"] == name]
        seeds = len({r["seed"] for r in own})
        head = f"{own[0]['dataset']}, {own[0]['train_samples']:,} training samples, {seeds} seed{'s' * (seeds > 1)}."
        rows = []
        for network_name in (n for n in NETWORKS if any(r["network"] == n for r in own)):
            cells = [network_name]
            of_network = [r for r in own if r["network"] == network_name]
            for objective in OBJECTIVES:
                values = [r["test_accuracy"] for r in of_network if r["objective"] == objective]
                cells.append(spread(values) if values else "")
            means = [r["seconds"] for r in of_network if r["objective"] == "mean"]
            rows.append([*cells, spread(means, format_duration) if means else ""])
        parts.append(f"{head}\n\n{markdown(['network', *OBJECTIVES, 'training time, mean'], rows)}")
    legend = (
        "Test accuracy of the iterate that is right most often on the held-out samples, mean ± standard deviation over "
        "the seeds. Time is training alone."
    )
    return "\n\n".join([*parts, legend]) + "\n"


def draw(records: Sequence[Record], path: Path) -> None:
    """Test accuracy over training time: a row a data set, a column a network, a line an objective and seed."""
    from matplotlib.ticker import NullFormatter, PercentFormatter

    from ...page.figures import COLOR, drawing

    logged = [r for r in records if r["kind"] == "training"]
    datasets = list(dict.fromkeys(r["data"] for r in logged))
    columns = [n for n in (FIXED, TRAINED, MLP, RESIDUAL) if any(r["network"] == n for r in logged)]
    colors = dict(zip(OBJECTIVES, ("ours", "peer", "compiled", "dense"), strict=True))
    beside = {"ReLU MLP": "--", "linear softmax": ":"}
    size = {"nrows": len(datasets), "ncols": len(columns), "squeeze": False, "sharey": "row"}
    with drawing(2.9 * len(columns) + 0.8, 2.7 * len(datasets) + 0.9, **size) as (figure, panels):  # pyright: ignore
        lines = {}
        for line, dataset in enumerate(datasets):
            of_data = [r for r in logged if r["data"] == dataset]
            for column, network_name in enumerate(columns):
                panel = panels[line, column]
                for rival, style in beside.items():
                    for rows in _runs(of_data, rival, "mean"):
                        drawn = panel.plot(*_curve(rows), style, color=COLOR["muted"], linewidth=1)
                        lines.setdefault(rival, drawn[0])
                for objective, color in colors.items():
                    for rows in _runs(of_data, network_name, objective):
                        drawn = panel.plot(*_curve(rows), color=COLOR[color], linewidth=1.3, alpha=0.85)
                        lines.setdefault(objective, drawn[0])
                panel.set_xscale("log")
                panel.xaxis.set_minor_formatter(NullFormatter())
                panel.grid(axis="y")
                panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
                if line == 0:
                    panel.set_title(network_name, fontsize=10.5)
                if line == len(datasets) - 1:
                    panel.set_xlabel("training time, seconds")
            best = max(r["test_accuracy"] for r in of_data)
            panels[line, 0].set_ylim(max(0.0, best - 0.5), min(1.0, best + 0.03))
            panels[line, 0].set_ylabel(f"{dataset}: test accuracy")
        order = [name for name in (*OBJECTIVES, *beside) if name in lines]
        figure.legend([lines[name] for name in order], order, loc="outside lower center", ncols=len(order))
        replace(path, lambda fresh: figure.savefig(fresh, format="png", dpi=140))


def _runs(records: Sequence[Record], network_name: str, objective: str) -> list[list[Record]]:
    own = [r for r in records if (r["network"], r["objective"]) == (network_name, objective)]
    return [[r for r in own if r["seed"] == seed] for seed in dict.fromkeys(r["seed"] for r in own)]


def _curve(rows: Sequence[Record]) -> tuple[list[float], list[float]]:
    # the start, at no time at all, has no place on a logarithmic axis
    shown = [r for r in rows if r["seconds"] > 0]
    return [r["seconds"] for r in shown], [r["test_accuracy"] for r in shown]


# ------------------------------------------------------------------------------------------------ the command


def chosen(quick: bool, only: str | None, epochs: int | None, per_class: int | None) -> dict[str, Experiment]:
    """The experiments that are asked for."""
    names = [only] if only else list(EXPERIMENTS)
    experiments = {}
    for name in names:
        usual = QUICK if quick else EXPERIMENTS[name]
        experiments[name] = dataclasses.replace(
            usual,
            epochs=epochs or usual.epochs,
            per_class=per_class or usual.per_class,
            slower=EXPERIMENTS[name].slower,
        )
    return experiments


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing in OUT, then write its records, table and picture."""
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}", description="Objectives and networks side by side.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-dir", type=Path, help="a folder with mnist, fashion-mnist, cifar10 (or TROPIGRAD_DATA)")
    parser.add_argument("--only", choices=tuple(EXPERIMENTS), help="one data set")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS, metavar="NAME")
    parser.add_argument("--epochs", type=int, help="in place of the usual number")
    parser.add_argument("--per-class", type=int, help="training samples of each class")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a part of each, which shows that all runs")
    clock.add_option(parser)
    asked = parser.parse_args(arguments)
    counts = (asked.seeds, asked.epochs or 1, asked.per_class or 2)
    if min(counts) < 1 or counts[2] < 2:
        parser.error("expected at least 1 seed, 1 epoch and 2 samples of each class")
    folder = data.find_data_dir(asked.data_dir)
    experiments = chosen(asked.quick, asked.only, asked.epochs, asked.per_class)
    if not asked.only:
        there = {"digits": True, "mnist": folder, "cifar10": folder}
        there["fashion-mnist"] = folder and (folder / "fashion-mnist").is_dir()
        experiments = {name: experiment for name, experiment in experiments.items() if there[name]}
    head = {"kind": "run", "machine": machine(), "versions": versions(), "clock": clock.choose(asked)}
    try:
        for seed in range(asked.seeds):
            for name, experiment in experiments.items():
                _run_all(name, experiment, folder, asked.networks, seed, asked.out, head)
    except DataError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on from {asked.out}", file=sys.stderr)
        return 130
    write(asked.out)
    return 0


def _run_all(
    name: str,
    experiment: Experiment,
    folder: Path | None,
    networks: Sequence[str],
    seed: int,
    out: Path,
    head: Record,
    told: Callable[[str], None] = lambda line: print(line, flush=True),
) -> None:
    """Every network by every objective, with one seed; those whose file is there are left as they are."""
    dataset = None
    for network_name in networks:
        for objective in ("mean",) if network_name in BESIDE else OBJECTIVES:
            label = f"{network_name} {objective} {seed}"
            path = out / name / f"{label.translate({ord(sign): None for sign in ',%'}).replace(' ', '-')}.jsonl"
            if path.is_file():
                continue
            dataset = dataset or loaded(name, experiment, folder, seed)
            records = list(run(name, dataset, network_name, objective, experiment, seed))
            path.parent.mkdir(parents=True, exist_ok=True)
            write_metrics(path, [{**head, "data": name}, *records])
            told(f"{name}, {label}: {records[-1]['test_accuracy']:.4f} in {records[-1]['seconds']:.3g} s")


def write(out: Path) -> None:
    """accuracy.jsonl, accuracy.md and accuracy.png of the runs in a folder."""
    paths = [path for name in EXPERIMENTS for path in sorted((out / name).glob("*.jsonl"))]
    records = [json.loads(line) for path in paths for line in path.read_text("utf-8").splitlines()]
    heads = [r for i, r in enumerate(records) if r["kind"] == "run" and r not in records[:i]]
    write_metrics(out / "accuracy.jsonl", heads + [r for r in records if r["kind"] != "run"])
    written = table(records)
    replace(out / "accuracy.md", lambda fresh: fresh.write_text(written, encoding="utf-8"))
    draw(records, out / "accuracy.png")
    print(written)


if __name__ == "__main__":
    output.take_any_encoding()
    sys.exit(main())
