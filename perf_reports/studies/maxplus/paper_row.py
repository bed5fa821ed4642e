"""The row of figures reported of the paper, as far as it can be placed: worst-sample cross-entropy on 1,000 images.

    python -m tropigrad.perf_reports.studies.maxplus.paper_row OUT [--data mnist:DIR] [--samples 1000] \
        [--iterations 150000] [--seed S] [--processor-time]

Of Enaieh & Fercoq, arXiv 2603.04133, a public digest reports a maximum loss of about 1.64, an accuracy of about 92 %
beside 69 % by standard training, and 5.6 s that became 0.12 s an iteration. It names no data set, and does not say
whether the accuracy is that of training or of a test. A cross-entropy of 1.64 fits ten classes: a constant answer has
ln 10 = 2.30. This study takes the first 1,000 training images of MNIST, so few that tournament trees of their
candidates fit into memory, trains on their worst cross-entropy, and shows which of its figures come near: F, the
accuracy on the images that it trains on, and that on the whole test set.

Writes paper-row.jsonl, paper-row.md and paper-row.png. A fixed, pixels, steps γ ~ t^-½, the start as k-medoids.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....optim import WorstSampleSubgradient
from ....whole_files import replace
from ... import data, output
from ...data import DataError, Dataset
from ...durations import format_duration
from ...environment import machine, versions
from ..runs import write_metrics
from ..tables import markdown
from . import clock
from .methods import accuracy_of, start

Record = Mapping[str, Any]

SAMPLES, ITERATIONS = 1000, 150_000
REPORTED = {"loss": 1.64, "accuracy": 0.92, "standard_accuracy": 0.69}  # of the digest
LEGEND = """\
F: the worst cross-entropy of the samples trained on. Reported of the paper, by a public digest: a maximum loss of
≈ 1.64, an accuracy of ≈ 92 % (≈ 69 % by standard training). Where its accuracy was taken is not said."""


@dataclass(frozen=True)
class Setting:
    """A network: its hidden units, and λ."""

    hidden: int
    scale: float

    @property
    def name(self) -> str:
        return f"q = {self.hidden}, λ = {self.scale:g}"


SETTINGS = (Setting(300, 8.0), Setting(100, 32.0))


def first(dataset: Dataset, samples: int) -> Dataset:
    """The data with its first training samples alone, and the whole test part."""
    x, y = dataset.x_train[:samples], dataset.y_train[:samples]
    return Dataset(x, y, dataset.x_test, dataset.y_test, f"{dataset.name}, its first {len(y):,} samples")


def moments(iterations: int) -> list[int]:
    """The iterations that are logged: about four an octave of their number, and the last."""
    logged = {0, iterations}
    reached = 1.0
    while reached < iterations:
        logged.add(round(reached))
        reached *= 2**0.25
    return sorted(logged)


def run(dataset: Dataset, setting: Setting, iterations: int, seed: int) -> Iterator[dict[str, Any]]:
    """A record a logged iteration (kind "training"), then one of the whole (kind "training_summary")."""
    model, medoids = start(dataset, setting.hidden, seed, setting.scale, margin=1.0)
    named = {"setting": setting.name, "dataset": dataset.name, "seed": seed}

    def accuracies() -> dict[str, float]:
        return {
            "train_accuracy": accuracy_of(model, dataset.x_train, dataset.y_train),
            "test_accuracy": accuracy_of(model, dataset.x_test, dataset.y_test),
        }

    began = clock.now()
    optimizer = WorstSampleSubgradient(model, dataset.x_train, dataset.y_train, "sqrt", loss="cross_entropy")
    seconds = caches = clock.now() - began
    beginning = {"first_loss": optimizer.loss, **{f"first_{name}": value for name, value in accuracies().items()}}
    for until in moments(iterations):
        began = clock.now()
        if until > optimizer.iteration:
            optimizer.step(until - optimizer.iteration)
        seconds += clock.now() - began
        yield {
            "kind": "training",
            **named,
            "iteration": optimizer.iteration,
            "seconds": seconds,
            "loss": optimizer.loss,
            **accuracies(),
        }
        if optimizer.status != "going":
            break
    best = optimizer.load_best()
    yield {
        "kind": "training_summary",
        **named,
        "hidden": setting.hidden,
        "scale": setting.scale,
        "train_samples": len(dataset.y_train),
        "test_samples": len(dataset.y_test),
        "iterations": optimizer.iteration,
        "status": optimizer.status,
        "seconds": seconds,
        "caches_seconds": caches,
        "seconds_per_iteration": (seconds - caches) / max(1, optimizer.iteration),
        "init_seconds": medoids.seconds,
        **beginning,
        "best_loss": best.loss,
        "best_iteration": best.iteration,
        **accuracies(),  # of the iterate of the least F
    }


def table(records: Sequence[Record]) -> str:
    """Markdown: a row a network, and the row reported of the paper."""
    summaries = [r for r in records if r["kind"] == "training_summary"]
    header = ("network", "iterations", "time", "an iteration", "F", "accuracy on them", "accuracy on the test set")
    rows = [
        (
            r["setting"],
            f"{r['iterations']:,}",
            format_duration(r["seconds"]),
            format_duration(r["seconds_per_iteration"]),
            f"{r['first_loss']:.2f} → {r['best_loss']:.3f}",
            f"{r['first_train_accuracy']:.3f} → {r['train_accuracy']:.3f}",
            f"{r['first_test_accuracy']:.3f} → {r['test_accuracy']:.3f}",
        )
        for r in summaries
    ]
    head = f"{summaries[0]['dataset']}: worst-sample cross-entropy, A fixed, pixels, steps γ ~ t^-½."
    return f"{head}\n\n{markdown(header, rows)}\n\n{LEGEND}\n"


def draw(records: Sequence[Record], path: Path) -> None:
    """F, and both accuracies, over the iterations; what is reported of the paper, as lines across."""
    from matplotlib.ticker import PercentFormatter

    from ...page.figures import COLOR, drawing

    logged = [r for r in records if r["kind"] == "training"]
    settings = list(dict.fromkeys(r["setting"] for r in logged))
    samples = next(r["train_samples"] for r in records if r["kind"] == "training_summary")
    with drawing(9.6, 4.6, ncols=2) as (figure, (loss, accuracy)):  # pyright: ignore
        for setting, color in zip(settings, (COLOR["ours"], COLOR["dense"]), strict=False):
            # the start has no place on a logarithmic axis
            rows = [r for r in logged if r["setting"] == setting and r["iteration"] > 0]
            at = [r["iteration"] for r in rows]
            loss.semilogx(at, [r["loss"] for r in rows], color=color, linewidth=1.6, label=setting)
            for field, style in (("train_accuracy", "-"), ("test_accuracy", "--")):
                accuracy.semilogx(at, [r[field] for r in rows], style, color=color, linewidth=1.6)
        for panel, value, text in (
            (loss, REPORTED["loss"], "reported: ≈ 1.64"),
            (accuracy, REPORTED["accuracy"], "reported: ≈ 92 %"),
        ):
            panel.axhline(value, color=COLOR["muted"], linewidth=1, linestyle=":")
            panel.annotate(
                text,
                (0.02, value),
                xycoords=("axes fraction", "data"),
                xytext=(0, 3),
                textcoords="offset points",
                color=COLOR["muted"],
            )
            panel.grid(axis="y")
            panel.set_xlabel("iteration")
        loss.set_title("Worst cross-entropy F")
        accuracy.set_title("Accuracy")
        for text, style in ((f"on these {samples:,} images", "-"), ("on the test set", "--")):
            accuracy.plot([], [], style, color=COLOR["muted"], linewidth=1.6, label=text)
        accuracy.legend(loc="lower right")
        accuracy.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        accuracy.set_ylim(top=1)
        handles, labels = loss.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        replace(path, lambda fresh: figure.savefig(fresh, format="png", dpi=140))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write OUT/paper-row.jsonl, .md and .png."""
    parser = argparse.ArgumentParser(
        prog="python -m tropigrad.perf_reports.studies.maxplus.paper_row",
        description="Worst-sample cross-entropy on a few images, beside what is reported of the paper.",
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", help="mnist:DIR (default: mnist of TROPIGRAD_DATA), or another data set")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="the first so many training samples")
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    parser.add_argument("--seed", type=int, default=0, help="of the samples that k-medoids draws")
    clock.add_option(parser)
    asked = parser.parse_args(arguments)
    if min(asked.samples, asked.iterations) < 1:
        parser.error(f"got {asked.samples} samples and {asked.iterations} iterations; expected at least 1 of each")
    try:
        dataset = first(data.load(asked.data or "mnist", data.find_data_dir()), asked.samples)
    except DataError as error:
        parser.error(str(error))
    head = {"kind": "run", "machine": machine(), "versions": versions(), "clock": clock.choose(asked)}
    records: list[dict[str, Any]] = [head]
    for setting in SETTINGS:
        for record in run(dataset, setting, asked.iterations, asked.seed):
            records.append(record)
            if record["kind"] == "training_summary":
                print(f"{setting.name}: {record['iterations']:,} iterations, F = {record['best_loss']:.4g}", flush=True)
    asked.out.mkdir(parents=True, exist_ok=True)
    write_metrics(asked.out / "paper-row.jsonl", records)
    written = table(records)
    replace(asked.out / "paper-row.md", lambda fresh: fresh.write_text(written, encoding="utf-8"))
    draw(records, asked.out / "paper-row.png")
    print(written)
    return 0


if __name__ == "__main__":
    output.take_any_encoding()
    sys.exit(main())
