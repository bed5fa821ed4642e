"""The comparison on iris, digits and MNIST: what an iteration takes, and the time to equal loss and equal accuracy.

    python -m tropigrad.perf_reports.studies.maxplus.comparison iris|digits|mnist:DIR [--seeds S] [--processor-time] \
        [--out DIR]

The five methods of beside_dense.py train from one start, for several seeds. Two moments are sought among the logged
iterates, in seconds of training alone: when F has come down to the least F of the sparse iterations, and when the test
accuracy has come up to that of the iterate they keep. Dense subgradients go through the sparse iterates; where they
were stopped before, they would need as many iterations at their own pace, and a time so computed is marked.

MNIST is not trained on its pixels but on principal components seen along random directions: features.py.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ....whole_files import replace
from ... import data, output
from ...data import DataError
from ...durations import format_duration
from ...environment import machine, versions
from ..runs import write_metrics
from ..tables import spread
from . import clock
from .beside_dense import Setting, compare_on
from .features import view

Record = Mapping[str, Any]

SETTINGS = {
    "iris": Setting(iterations=500, dense_seconds=math.inf, adam_seconds=5.0, hidden=30),
    "digits": Setting(iterations=300, dense_seconds=6.0, adam_seconds=4.0, hidden=300),
    "mnist": Setting(iterations=2000, dense_seconds=20.0, adam_seconds=20.0, hidden=100),
}
DENSE = ("dense autograd", "fused dense")  # whose iterates are the sparse ones
SAME_NETWORK = ("sparse", *DENSE, "mini-batch Adam")  # whose scores, and so F, have one scale
# the figures of Enaieh & Fercoq are from public summaries: the full text was not available to us
LEGEND = """\
Time is training alone, without the start. ≈: the method was stopped before; its iterates are the sparse ones, so it
needs as many iterations at its own pace. An iteration of the last two is an epoch.

| Enaieh & Fercoq, arXiv 2603.04133, as a digest reports it: no data set named | |
|---|---|
| an iteration, dense and sparse | 5.6 s, 0.12 s |
| accuracy, of training or of a test, by the worst-sample loss and by standard training | ≈ 92 %, ≈ 69 % |
| maximum loss | ≈ 1.64 |

What these figures are like: paper_row.py."""


def run(spec: str, seeds: int) -> Iterator[dict[str, Any]]:
    """The records of `compare_on`, seed by seed; a summary also has the two moments.

    Raises:
        DataError: see data.load.
    """
    for seed in range(seeds):
        dataset = data.load(spec, seed=seed)
        setting = SETTINGS[dataset.name]
        seen = view("directions" if dataset.name == "mnist" else "pixels", dataset.x_train, seed)
        dataset = dataset if seen is None else seen.on(dataset)
        yield from with_moments(list(compare_on(dataset, setting, seed)))


def with_moments(records: Sequence[Record]) -> Iterator[dict[str, Any]]:
    """One seed's records; summaries also say when the targets were reached, None where they were not."""
    curves: dict[str, list[Record]] = {}
    for r in records:
        if r["kind"] == "training":
            curves.setdefault(r["method"], []).append(r)
    ours = next(r for r in records if r["kind"] == "training_summary" and r["role"] == "ours")
    sparse = curves[ours["method"]]
    # what all methods can be asked for is what the logged iterates show
    target_loss, target_accuracy = min(r["loss"] for r in sparse), ours["test_accuracy"]
    targets = {
        "loss": lambda r: r["loss"] <= target_loss,
        "accuracy": lambda r: r["test_accuracy"] >= target_accuracy,
    }
    for r in records:
        if r["kind"] == "training":
            yield dict(r)
            continue
        moments: dict[str, Any] = {"target_loss": target_loss, "target_accuracy": target_accuracy}
        for name, is_met in targets.items():
            met = _first(curves[r["method"]], is_met)
            is_computed = met is None and r["method"] in DENSE
            when = None if met is None else met["seconds"]
            if is_computed and (met_by_ours := _first(sparse, is_met)):
                when = met_by_ours["iteration"] * r["seconds_per_iteration"]
            moments |= {f"seconds_to_{name}": when, f"{name}_is_computed": is_computed}
        if r["method"] not in SAME_NETWORK:
            moments["seconds_to_loss"] = None
        yield dict(r) | moments


def _first(rows: Iterable[Record], is_met: Callable[[Record], bool]) -> Record | None:
    return next((row for row in rows if is_met(row)), None)


# ------------------------------------------------------------------------------------------------ the table


def table(records: Iterable[Record]) -> str:
    """One Markdown table a data set: mean ± standard deviation over the seeds."""
    summaries = [r for r in records if r["kind"] == "training_summary"]
    parts = [_part([r for r in summaries if r["dataset"] == name]) for name in _datasets(summaries)]
    return "\n\n".join([*parts, LEGEND]) + "\n"


def _part(summaries: Sequence[Record]) -> str:
    """The table of one data set."""
    ours = [r for r in summaries if r["role"] == "ours"]
    size = ours[0]
    lines = [
        f"{size['dataset']}, N = {size['train_samples']:,}, p = {2 * size['features']:,}, q = {size['hidden']}, "
        f"{len(ours)} seed{'s' if len(ours) > 1 else ''}. To be equalled: F = {_spread(ours, 'target_loss')}, "
        f"test accuracy {_spread(ours, 'target_accuracy')}.",
        "",
        "| method | an iteration | iterations | least F | time to that F | test accuracy | time to that accuracy |",
        "|---|---|---|---|---|---|---|",
    ]
    for method in dict.fromkeys(r["method"] for r in summaries):
        rows = [r for r in summaries if r["method"] == method]
        has_loss = method in SAME_NETWORK
        cells = (
            method,
            _spread(rows, "seconds_per_iteration", format_duration),
            _spread(rows, "iterations", "{:.0f}".format),
            _spread(rows, "best_loss") if has_loss else "another network's",
            _moment(rows, "loss") if has_loss else "",
            _spread(rows, "test_accuracy"),
            _moment(rows, "accuracy"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _datasets(records: Iterable[Record]) -> list[str]:
    return list(dict.fromkeys(r["dataset"] for r in records))


def _spread(rows: Iterable[Record], field: str, written: Callable[[float], str] = "{:.3f}".format) -> str:
    return spread([r[field] for r in rows], written)


def _moment(rows: Sequence[Record], of: str) -> str:
    """When a target was reached: ≈ where that was computed, and in how many seeds, where not in all."""
    reached = [r for r in rows if r[f"seconds_to_{of}"] is not None]
    if not reached:
        return "not reached"
    if not any(r[f"seconds_to_{of}"] for r in reached):
        return "at the start"
    mark = "≈ " if any(r[f"{of}_is_computed"] for r in reached) else ""
    some = "" if len(reached) == len(rows) else f" ({len(reached)} of {len(rows)} seeds)"
    return mark + _spread(reached, f"seconds_to_{of}", _duration) + some


def _duration(value: float) -> str:
    return format_duration(value) if value < 1000 else f"{value / 3600:.1f} h"


# ------------------------------------------------------------------------------------------------ the picture


def draw(records: Sequence[Record], path: Path) -> None:
    """F, and the test accuracy, over training time: a column a data set, a line a method and seed."""
    from ...page.figures import COLOR, drawing

    logged = [r for r in records if r["kind"] == "training"]
    datasets = _datasets(logged)
    methods = list(dict.fromkeys(r["method"] for r in logged))
    colors = dict(zip(methods, ("ours", "dense", "other", "peer", "compiled"), strict=False))
    with drawing(3.4 * len(datasets) + 1, 5.6, nrows=2, ncols=len(datasets), squeeze=False) as (figure, panels):  # pyright: ignore
        for column, dataset in enumerate(datasets):
            rows = [r for r in logged if r["dataset"] == dataset]
            for method, seed in dict.fromkeys((r["method"], r["seed"]) for r in rows):
                # the start, at no time at all, has no place on a logarithmic axis
                line = [r for r in rows if (r["method"], r["seed"]) == (method, seed) and r["seconds"] > 0]
                style = {"color": COLOR[colors[method]], "linewidth": 1.2, "alpha": 0.8}
                for panel, field in zip(panels[:, column], ("loss", "test_accuracy"), strict=True):
                    if field == "loss" and method not in SAME_NETWORK:
                        continue
                    panel.semilogx([r["seconds"] for r in line], [r[field] for r in line], label=method, **style)
            panels[0, column].set_title(dataset)
            panels[0, column].set_ylim(bottom=0)
            panels[1, column].set_xlabel("training time, seconds")
            for panel in panels[:, column]:
                panel.grid(axis="y")
        panels[0, 0].set_ylabel("worst-sample loss F")
        panels[1, 0].set_ylabel("test accuracy")
        labelled = {text: line for line, text in zip(*panels[1, 0].get_legend_handles_labels(), strict=True)}
        figure.legend(list(labelled.values()), list(labelled), loc="outside lower center", ncols=len(methods))
        replace(path, lambda fresh: figure.savefig(fresh, format="png", dpi=140))


# ------------------------------------------------------------------------------------------------ the command


def main(arguments: Sequence[str] | None = None) -> int:
    """Write OUT/<data set>.jsonl, then comparison.md and comparison.png of all data sets that OUT holds."""
    parser = argparse.ArgumentParser(
        prog="python -m tropigrad.perf_reports.studies.maxplus.comparison",
        description="The methods on one data set, over seeds.",
    )
    parser.add_argument("data", help="iris, digits or mnist:DIR")
    parser.add_argument("--seeds", type=int, default=5)
    clock.add_option(parser)
    parser.add_argument("--out", type=Path, default=Path("perf_reports/out"))
    asked = parser.parse_args(arguments)
    name = asked.data.partition(":")[0]
    if name not in SETTINGS or asked.seeds < 1:
        parser.error(f"got {asked.data!r} and {asked.seeds} seeds; expected iris, digits or mnist:DIR, and at least 1")
    head = {"kind": "run", "machine": machine(), "versions": versions(), "clock": clock.choose(asked)}
    rows: list[dict[str, Any]] = [head]
    try:
        for row in run(asked.data, asked.seeds):
            rows.append(row)
            if row["kind"] == "training_summary":
                print(
                    f"seed {row['seed']}, {row['method']}: {row['iterations']} iterations, {row['stopped']}", flush=True
                )
    except DataError as error:
        parser.error(str(error))
    asked.out.mkdir(parents=True, exist_ok=True)
    write_metrics(asked.out / f"{name}.jsonl", rows)
    paths = [asked.out / f"{dataset}.jsonl" for dataset in SETTINGS]
    records = [json.loads(line) for path in paths if path.is_file() for line in path.read_text("utf-8").splitlines()]
    written = table(records)
    replace(asked.out / "comparison.md", lambda fresh: fresh.write_text(written, encoding="utf-8"))
    draw(records, asked.out / "comparison.png")
    print(written)
    return 0


if __name__ == "__main__":
    output.take_any_encoding()
    sys.exit(main())
