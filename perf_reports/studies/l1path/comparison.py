"""The study: fronts of loss and ℓ¹ by the released algorithm, ours, a sweep, and what one would use instead.

    python -m tropigrad.perf_reports.studies.l1path.comparison OUT [--data-dir DIR] [--only NAME] [--quick]

writes OUT/<data set>.jsonl, and comparison.md and fronts.png of all data sets that OUT holds. A front that stands there
already is not computed again. Seconds are processor time on one thread, judging the points included.

Sweep and pruning are given the epochs that held λ took, NSGA-II three evaluations for each of them: an epoch is a pass
forward and one backward, which takes about twice as long.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ....optim import L1Continuation, L1Sweep, ParetoFront
from ....optim.l1_continuation import dominance
from ... import data, output
from ...commands import Progress
from ...data import DataError, Dataset
from ...durations import format_duration
from ...environment import machine, versions
from .. import runs
from ..runs import write_metrics
from ..tables import markdown
from ..threads import one_thread
from . import drawing
from .methods import Recipe, Task, accuracy, network, paper_start
from .released import STORED, Released
from .rivals import Absent, lassonet, magnitude_pruning, nsga2

Record = dict[str, Any]
WALKS = ("released", "mpg", "held", "sweep")
METHODS = ("held", "mpg", "sweep", "released", "pruning", "NSGA-II")
TABLES = ("breast cancer", "wine")
TABLE_METHODS = ("held", "LassoNet")


@dataclass(frozen=True)
class Schedule:
    """How long the walks of a data set are, and where its table looks.

    Attributes:
        dense, sparse: points after the first.
        first_steps, correctors: epochs to the first point and to each other one, of held λ and MPG.
        batch: samples of a mini-batch; None: a tenth of the training samples; 0: all.
        spacing: of MPG and held λ.
        lambdas: the ends of the sweep's grid.
        norms, losses: where the table compares losses and nonzeros; the largest norm is the hypervolume's reference.
        paper: arguments of `Released` that differ from its defaults, and of the predictor of MPG.
    """

    dense: int = 8
    sparse: int = 8
    first_steps: int = 100
    correctors: int = 20
    h: float = 0.1
    batch: int | None = None
    spacing: float = 0.15
    lambdas: tuple[float, float] = (1e-5, 2e-2)
    norms: tuple[float, ...] = (200.0, 300.0, 400.0)
    losses: tuple[float, ...] = (0.5, 0.2, 0.1)
    paper: tuple[tuple[str, Any], ...] = ()

    @property
    def points(self) -> int:
        return 1 + self.dense + self.sparse


SCHEDULES = {
    "iris": Schedule(
        22, 6, 1000, 50, h=0.05, batch=0, lambdas=(1e-4, 0.1), norms=(10.0, 20.0, 40.0),
        paper=(("shrinkage", 5e-3), ("acceleration", 4), ("predictor", "sgd"), ("predictor_lr", 5e-2),
               ("predictor_steps", 300)),
    ),
    "digits": Schedule(6, 13, lambdas=(1e-5, 0.1), norms=(60.0, 100.0, 150.0)),
    "mnist": Schedule(spacing=0.25),  # at 0.15 sixteen points do not reach as far as the sweep's
    "cifar10": Schedule(2, 3, 5, 2, h=0.01, norms=(2000.0, 4000.0, 8000.0), losses=(2.0, 1.8, 1.6),
                        paper=(("predictor_lr", 3e-4), ("predictor_steps", 1), ("shrinkages", 2))),
    **dict.fromkeys(TABLES, Schedule(5, 11, 200, 50, norms=(10.0, 20.0, 40.0), losses=(0.3, 0.15, 0.1))),
}  # fmt: skip


@dataclass(frozen=True)
class Inputs:
    """Where the data is, how many images of MNIST and CIFAR-10 are taken (0: all), and over how many seeds."""

    folder: Path | None
    samples: int = 10_000
    images: int = 1000
    seeds: int = 3
    quick: bool = False

    def names(self) -> list[str]:
        with_files = [name for name in ("mnist", "cifar10") if self.folder and self._is_there(name)]
        return ["iris", "digits", *TABLES, *with_files]

    def _is_there(self, name: str) -> bool:
        assert self.folder is not None
        stem = "train-images*" if name == "mnist" else "data_batch*"
        return any(place.is_dir() and any(place.glob(stem)) for place in (self.folder, self.folder / name))

    def dataset(self, name: str, seed: int) -> Dataset:
        """
        Raises:
            DataError: it is not there.
        """
        if name in TABLES:
            return _table_of_sklearn(name, seed)
        dataset = data.load(name, self.folder, seed)
        most = 200 if self.quick else {"mnist": self.samples, "cifar10": self.images}.get(name, 0)
        if most:
            per_class = max(most // dataset.classes, 1)
            dataset = dataset.subset(per_class, per_class if self.quick else len(dataset.x_test), seed)
        return dataset

    def schedule(self, name: str) -> Schedule:
        own = SCHEDULES[name]
        return replace(own, dense=1, sparse=2, first_steps=3, correctors=2) if self.quick else own


def _table_of_sklearn(name: str, seed: int) -> Dataset:
    try:
        from sklearn import datasets
        from sklearn.model_selection import train_test_split
    except ModuleNotFoundError:
        raise DataError(f"{name} comes with scikit-learn: pip install 'tropigrad[studies]'") from None
    x, y = getattr(datasets, f"load_{name.replace(' ', '_')}")(return_X_y=True)
    parts = train_test_split(x, y, test_size=0.3, stratify=y, random_state=seed)
    x_train, x_test, y_train, y_test = map(np.asarray, parts)
    mean, std = x_train.mean(0), x_train.std(0)
    features = [torch.from_numpy((part - mean) / std).float() for part in (x_train, x_test)]
    labels = [torch.from_numpy(part).long() for part in (y_train, y_test)]
    return Dataset(features[0], labels[0], features[1], labels[1], name)


# ------------------------------------------------------------------------------------------------ one front


def front_of(
    name: str,
    method: str,
    dataset: Dataset,
    schedule: Schedule,
    seed: int,
    budget: int,
    progress: bool | Progress = False,
) -> Record:
    """The front of one method on one data set, as a record.

    Args:
        budget: the epochs that held λ took; sweep, pruning and NSGA-II are given as many.
        progress: of a walk, as in its `run`.

    Raises:
        Absent: the method's package is not installed.
    """
    size = len(dataset.x_train) if schedule.batch == 0 else schedule.batch
    task = Task.of(dataset, Recipe(batch=size, seed=seed))
    model = paper_start(dataset) if name == "iris" else network(dataset, seed)
    began = time.process_time()
    if method == "LassoNet":
        rows = lassonet(task, seed)
        seconds = time.process_time() - began
        front = ParetoFront([(row["loss"], row["l1"]) for row in rows])
        chosen = min(range(len(rows)), key=lambda i: (rows[i]["val_loss"], rows[i]["l1"]))
        return _record(rows, front, chosen, seconds, None)
    front = _walked(method, model, task, dataset, schedule, seed, budget, progress)
    seconds = time.process_time() - began
    rows = []
    for i, point in enumerate(front):
        facts = asdict(point)
        kept = ("loss", "l1", "nnz", "lam", "phase", "val_loss", "accuracy", "epochs")
        own = front.load(i)
        rows.append({
            **{field: facts[field] for field in kept},
            "test_accuracy": accuracy(own, task),
            "features": _features(own),
        })  # fmt: skip
    return _record(rows, front, front.best("val_loss"), seconds, front[-1].epochs)


def _record(rows: list[Record], front: ParetoFront, chosen: int, seconds: float, epochs: float | None) -> Record:
    return {
        "points": rows, "non_dominated": front.non_dominated(), "chosen": chosen, "epochs": epochs, "seconds": seconds
    }  # fmt: skip


def _walked(
    method: str,
    model: nn.Module,
    task: Task,
    dataset: Dataset,
    schedule: Schedule,
    seed: int,
    budget: int,
    progress: bool | Progress,
) -> ParetoFront:
    loss_fn, paper = functional.cross_entropy, dict(schedule.paper)
    length: dict[str, Any] = {"first_steps": schedule.first_steps, "correctors": schedule.correctors}
    # as long as held λ took in all
    equal = {**length, "correctors": max((budget - schedule.first_steps) // (schedule.points - 1), 1)}
    common: dict[str, Any] = {"h": schedule.h, "seed": seed}
    counts: dict[str, Any] = {"dense_points": schedule.dense, "sparse_points": schedule.sparse}
    if method == "released":
        if dataset.name == "iris":  # whose sparse predictor goes to 0 at once
            paper |= {"shrinkages": 10_000, "momentum": False, "ends": (0.1, 1.0)}
            counts = {"dense_points": schedule.points - 3, "sparse_points": 2}
        walk = Released(model, loss_fn, **common, **length, **counts, **paper)
    elif method == "mpg":
        names = ("predictor", "predictor_lr", "predictor_steps", "acceleration")
        predictor = {name: paper[name] for name in names if name in paper}
        if dataset.name == "iris":  # whose first point is so near 0 that shares of its norm are no steps
            predictor |= {"spacing": None, "shrinkage": paper["shrinkage"]}
        settings = {"spacing": schedule.spacing, **length, **counts, **predictor}
        walk = L1Continuation(model, loss_fn, **common, **settings)
    elif method == "held":
        walk = L1Continuation(model, loss_fn, corrector="held", spacing=schedule.spacing, **common, **length, **counts)
    elif method == "sweep":
        least, most = schedule.lambdas
        walk = L1Sweep(model, loss_fn, points=schedule.points, least=least, most=most, **common, **equal)
    elif method == "pruning":
        return magnitude_pruning(model, task, points=schedule.points, **common, **equal)
    else:
        models = [model, *(network(dataset, 1000 * seed + i) for i in range(1, 50))]
        return nsga2(models, task, evaluations=3 * budget, seed=seed)
    return walk.run(task.train, task.validation, progress=progress)


def _features(model: nn.Module) -> int | None:
    """How many inputs the first layer reads, where it is linear."""
    first = next(iter(model.children()))
    return int((first.weight != 0).any(0).sum()) if isinstance(first, nn.Linear) else None


def fronts(name: str, inputs: Inputs, earlier: Sequence[Record] = ()) -> Iterator[Record]:
    """All fronts of a data set, held λ first; those of `earlier` stand as they are. CIFAR-10 has one seed.

    Raises:
        DataError: the data is not there, or `earlier` is of another setting.
    """
    schedule = inputs.schedule(name)
    for seed in range(1 if name == "cifar10" else inputs.seeds):  # whose epochs take seconds
        dataset = inputs.dataset(name, seed)
        setting = json.loads(json.dumps({"rows": len(dataset.x_train), **asdict(schedule)}))
        budget = 0
        for method in TABLE_METHODS if name in TABLES else METHODS:
            head = {"kind": "front", "dataset": name, "method": method, "seed": seed}
            if method == "NSGA-II" and name == "cifar10":
                continue  # 612,778 real numbers, and a second a pass
            stored = [r for r in earlier if all(r.get(field) == value for field, value in head.items())]
            if stored and stored[0]["setting"] != setting:
                raise DataError(f"{name}: the folder holds fronts of another setting; name another folder")
            if stored:
                record = stored[0]
            else:
                try:
                    facts = front_of(name, method, dataset, schedule, seed, budget)
                except Absent as absent:
                    yield {**head, "kind": "absent", "reason": str(absent)}
                    continue
                record = {**head, "setting": setting, "classes": dataset.classes, **facts}
            budget = round(record["epochs"]) if method == "held" else budget
            yield record


# ------------------------------------------------------------------------------------------------ the tables


def table(records: Sequence[Record]) -> str:
    """Markdown: a table for each data set; mean ± standard deviation over seeds; then the authors' stored figures."""
    parts = []
    for name in dict.fromkeys(r["dataset"] for r in records if r["kind"] == "front"):
        own = [r for r in records if r.get("dataset") == name]
        parts.append(_table_of_fronts(name, own) if name not in TABLES else _table_of_tables(name, own))
    return "\n\n".join([*parts, _stored()]) + "\n"


def common_range(rows: Sequence[Record]) -> tuple[float, float]:
    """The norms that all walks of one seed reach, from their sparsest to their densest points."""
    spans = []
    for r in rows:
        if r["method"] in WALKS:
            norms = [r["points"][i]["l1"] for i in r["non_dominated"]]
            spans.append((min(norms), max(norms)))
    if not spans:
        return 0.0, 0.0
    return max(low for low, _ in spans), min(high for _, high in spans)


def shares(rows: Sequence[Record], norm: float) -> dict[tuple[str, int], tuple[float | None, float]]:
    """(method, seed) → the share of hypervolume over the common range of ℓ¹, and that below (ln C, norm)."""
    result: dict[tuple[str, int], tuple[float | None, float]] = {}
    for seed in dict.fromkeys(r["seed"] for r in rows):
        own = [r for r in rows if r["seed"] == seed]
        low, high = common_range(own)
        for r in own:
            worst = math.log(r["classes"])
            pairs = [(p["loss"], p["l1"]) for p in r["points"]]
            whole = dominance.hypervolume(pairs, (worst, norm)) / (worst * norm)
            within = None
            if high > low:
                raised = [(loss, max(l1, low)) for loss, l1 in pairs]
                within = dominance.hypervolume(raised, (worst, high)) / (worst * (high - low))
            result[r["method"], seed] = within, whole
    return result


def _table_of_fronts(name: str, records: list[Record]) -> str:
    rows = [r for r in records if r["kind"] == "front"]
    norms, losses = rows[0]["setting"]["norms"], rows[0]["setting"]["losses"]
    volumes = shares(rows, norms[-1])
    lines = []
    for method in METHODS:
        own = [r for r in rows if r["method"] == method]
        if not own:
            reasons = [r["reason"] for r in records if r["kind"] == "absent" and r["method"] == method]
            lines += [(method, *reasons[:1])] if reasons else []
            continue
        chosen = [r["points"][r["chosen"]] for r in own]
        lines.append((
            method,
            f"{_mean([len(r['non_dominated']) for r in own], '.3g')} of "
            f"{_mean([len(r['points']) for r in own], '.3g')}",
            _mean([r["epochs"] for r in own], ".4g"),
            format_duration(statistics.median(r["seconds"] for r in own)),
            _spread([volumes[method, r["seed"]][0] for r in own]),
            _spread([volumes[method, r["seed"]][1] for r in own]),
            " / ".join(_mean([_least(r, "loss", "l1", norm) for r in own], ".3f") for norm in norms),
            " / ".join(_mean([_least(r, "nnz", "loss", loss) for r in own], ".0f") for loss in losses),
            f"{_mean([p['test_accuracy'] for p in chosen], '.3f')} with {_mean([p['nnz'] for p in chosen], '.0f')}",
        ))  # fmt: skip
    head = (
        "method", "not dominated", "epochs", "time", "hypervolume, common range", f"to ℓ¹ {norms[-1]:g}",
        f"loss at ℓ¹ {_listed(norms)}", f"nonzeros at loss {_listed(losses)}", "validation's choice: test, nonzeros",
    )  # fmt: skip
    ranges = [common_range([r for r in rows if r["seed"] == s]) for s in dict.fromkeys(r["seed"] for r in rows)]
    written = ", ".join(f"{low:.3g} to {high:.3g}" if high > low else "none" for low, high in ranges)
    seeds = len(ranges)
    title = (
        f"{name}, {rows[0]['setting']['rows']:,} training samples, a fifth of them held out; {seeds} "
        f"seed{'s' if seeds > 1 else ''}; common range of ℓ¹: {written}"
    )
    return _table(title, head, lines)


def _table_of_tables(name: str, records: list[Record]) -> str:
    rows = [r for r in records if r["kind"] == "front"]
    lines = []
    for method in TABLE_METHODS:
        own = [r for r in rows if r["method"] == method]
        if not own:
            reasons = [r["reason"] for r in records if r["kind"] == "absent" and r["method"] == method]
            lines += [(method, *reasons[:1])] if reasons else []
            continue
        chosen = [r["points"][r["chosen"]] for r in own]
        few = [point for r in own if (point := _few_features(r))]
        of_few = f"{_spread([p['test_accuracy'] for p in few])} with {_mean([p['features'] for p in few], '.3g')}"
        lines.append((
            method,
            _mean([len(r["points"]) for r in own], ".3g"),
            format_duration(statistics.median(r["seconds"] for r in own)),
            f"{_spread([p['test_accuracy'] for p in chosen])} with {_mean([p['features'] for p in chosen], '.3g')}",
            of_few if few else "no such point",
            _mean([p["nnz"] for p in chosen], ".0f"),
        ))  # fmt: skip
    head = (
        "method", "points", "time", "validation's choice: test, features", "of at most a third of the features",
        "nonzeros",
    )  # fmt: skip
    return _table(f"{name}, {rows[0]['setting']['rows']} training samples", head, lines)


def _few_features(record: Record) -> Record | None:
    """The point of the least held-out loss among those that read at most a third of the features, if there are any."""
    most = max(p["features"] for p in record["points"]) / 3
    few = [p for p in record["points"] if p["features"] <= most]
    return min(few, key=lambda p: p["val_loss"], default=None)


def _least(record: Record, field: str, bounded: str, bound: float) -> float | None:
    return min((p[field] for p in record["points"] if p[bounded] <= bound), default=None)


def _stored() -> str:
    lines = [
        (
            s["data"], s["method"], str(s["points"] or "–"), s["accuracy"],
            f"{s['seconds']} s" if s["seconds"] else "–", s["facts"], s["wrong"],
        )
        for s in STORED
    ]  # fmt: skip
    head = ("data", "method", "points", "training / test accuracy", "time", "", "what is wrong with it")
    return _table("The authors' stored figures, on their machine and all of the data", head, lines)


def _table(title: str, head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    wide = [(*cells, *[""] * (len(head) - len(cells))) for cells in lines]
    return "\n".join([title, "", markdown(head, wide)])


def _listed(numbers: Iterable[float]) -> str:
    return " / ".join(f"{number:g}" for number in numbers)


def _mean(values: Sequence[float | None], form: str) -> str:
    """The mean over the seeds that have a value, and how many have where not all do."""
    there = [value for value in values if value is not None]
    if not there:
        return "–"
    some = "" if len(there) == len(values) else f" ({len(there)} of {len(values)})"
    return f"{statistics.mean(there):{form}}{some}"


def _spread(values: Sequence[float | None]) -> str:
    there = [value for value in values if value is not None]
    if len(there) < 2:
        return _mean(values, ".3f")
    return f"{_mean(values, '.3f')} ± {statistics.stdev(there):.3f}"


# ------------------------------------------------------------------------------------------------ the command


def main(arguments: Sequence[str] | None = None) -> int:
    """Write OUT/<data set>.jsonl, then comparison.md and fronts.png of all data sets that OUT holds."""
    parser = argparse.ArgumentParser(
        prog="python -m tropigrad.perf_reports.studies.l1path.comparison",
        description="Fronts of loss and ℓ¹ norm, method beside method.",
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-dir", type=Path, help="a folder with mnist and cifar10")
    parser.add_argument("--only", choices=tuple(SCHEDULES), help="one data set")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=10_000, help="images of MNIST; 0: all")
    parser.add_argument("--images", type=int, default=1000, help="images of CIFAR-10; 0: all")
    parser.add_argument("--quick", action="store_true", help="a little of each, which shows that all runs")
    asked = parser.parse_args(arguments)
    if asked.seeds < 1 or asked.samples < 0 or asked.images < 0:
        parser.error("expected --seeds of at least 1, and no negative number of images")
    folder = data.find_data_dir(asked.data_dir)
    inputs = Inputs(folder, asked.samples, asked.images, asked.seeds, asked.quick)
    try:
        with one_thread():
            for name in [asked.only] if asked.only else inputs.names():
                _run(name, inputs, asked.out, lambda line: print(line, flush=True))
    except DataError as error:
        parser.error(str(error))
    records = [r for name in SCHEDULES for r in read(_path(asked.out, name))]
    written = table(records)
    runs.replace(asked.out / "comparison.md", lambda fresh: fresh.write_text(written, encoding="utf-8"))
    drawing.draw(records, asked.out / "fronts.png")
    print(written)
    return 0


def _run(name: str, inputs: Inputs, out: Path, tell: Callable[[str], object]) -> None:
    path = _path(out, name)
    earlier = read(path)
    runs_before = [r for r in earlier if r["kind"] == "run"]
    rows = runs_before or [
        {"kind": "run", "machine": machine(), "versions": versions(), "clock": "processor time, one thread"}
    ]
    for record in fronts(name, inputs, earlier):
        out.mkdir(parents=True, exist_ok=True)
        rows.append(record)
        tell(_line(record))
        left = [r for r in earlier if r["kind"] == "front" and not any(_same(r, row) for row in rows)]
        write_metrics(path, [*rows, *left])  # at each: a run that is stopped leaves what it has


def _same(a: Record, b: Record) -> bool:
    return all(a.get(field) == b.get(field) for field in ("kind", "dataset", "method", "seed"))


def _path(out: Path, name: str) -> Path:
    return out / f"{name.replace(' ', '-')}.jsonl"


def read(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []


def _line(record: Record) -> str:
    head = f"{record['dataset']}, seed {record['seed']}, {record['method']}: "
    if record["kind"] == "absent":
        return head + record["reason"]
    epochs = f"{record['epochs']:g} epochs, " if record["epochs"] is not None else ""
    return f"{head}{len(record['points'])} points, {epochs}{format_duration(record['seconds'])}"


if __name__ == "__main__":
    output.take_any_encoding()
    sys.exit(main())
