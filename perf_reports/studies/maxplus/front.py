"""The front of accuracy against the worst loss: from the mean over the worst share (CVaR) to the worst sample.

    python -m tropigrad.perf_reports.studies.maxplus.front OUT [--data mnist:DIR] [--hidden 200] [--epochs 6] \
        [--iterations 3000] [--seeds S] [--processor-time]

One network, A trained by mini-batches, and two kinds of ways along the front. From the medoids, by mini-batches, on the
mean (α = 1) and on the worst shares of a batch, down to its worst sample. And on from the solution of the mean, with A
then fixed, by subgradients of the worst share of all the training samples (CVaR), down to the worst one, and of the
worst hinge, looked at on the way. Cross-entropies are of f / T, at the temperature T that the mean was trained with;
the hinge asks for a margin of 1/4 between the scores f. Each point has both worst losses, over the training samples.

Writes front.jsonl, front.md and front.png; a run that is there (OUT/runs) is not run again.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ....nn import LinearMinMax, WorstSampleLoss
from ....optim import WorstSampleSubgradient
from ....whole_files import replace
from ... import data, output
from ...data import DataError, Dataset
from ...durations import format_duration
from ...environment import machine, versions
from ..runs import write_metrics
from ..tables import markdown, spread
from . import clock
from .methods import quick_start
from .minibatch import RATE, TEMPERATURE, MiniBatchTraining, judge, judge_scores, scores_of
from .objectives import AVERAGE, RATE_OVER_A
from .training import hold_out

Record = Mapping[str, Any]

SHARES = (1.0, 0.5, 0.25, 0.1, 0.05, 1 / 128)  # α; the last is the worst sample of a batch
BY_BATCHES = "mini-batches"
MARGIN = 1 / 4  # Δ of the hinge, in the units of f
LEAST_ACCURACY, MOST_LOSS = 0.92, 0.5  # what a way is hoped to reach: test accuracy, worst hinge beside the mean's
LEGEND = """\
Losses of all training samples: cross-entropies of f / T, T = 1/8, and the worst hinge of margin 1/4. Iterates of the
mini-batches are those that are right most often on held-out samples, the others those of the least loss so far. Mean ±
standard deviation over the seeds."""


class Onwards(NamedTuple):
    """A way on from the mean's solution, by subgradients on the worst share of all training samples, A fixed."""

    name: str
    settings: dict[str, Any]  # of WorstSampleSubgradient
    part: float  # of the iterations that are asked for; an iteration on more samples costs more
    color: str
    marker: str


def _cvar(alpha: float, part: float, color: str, marker: str) -> Onwards:
    settings = {"step": "sqrt", "loss": "cross_entropy", "alpha": alpha}
    return Onwards(f"CVaR {100 * alpha:g}% of all", settings, part, color, marker)


WORST = Onwards("worst of all", {"step": "sqrt", "loss": "cross_entropy"}, 1.0, "dense", "s")
HINGE = Onwards("worst hinge of all", {"step": "polyak", "loss": "hinge", "margin": MARGIN}, 1 / 6, "ink", "D")
ONWARDS = (
    _cvar(0.1, 0.1, "peer", "^"),
    _cvar(0.01, 0.1, "compiled", "v"),
    _cvar(0.001, 0.1, "other", "P"),
    WORST,
    HINGE,
)


def moments(iterations: int) -> list[int]:
    """The iterations of a way onwards that are looked at: powers of two, times ten, and the last."""
    return sorted({min(iterations, 10 * 2**i) for i in range(iterations.bit_length())})


def run(dataset: Dataset, hidden: int, epochs: int, iterations: int, seed: int) -> Iterator[dict[str, Any]]:
    """A record (kind "point") a share, and a look at the worst-sample iterates."""
    kept_in, held_out, _ = hold_out(dataset, 0.1, seed)
    assert held_out is not None
    begun, medoids = quick_start(kept_in, hidden, seed, 1.0, 1.0)
    begun.A.requires_grad_(True)

    def point(
        model: LinearMinMax, way: str, alpha: float | None, seconds: float, iteration: int, loss: float | None = None
    ) -> dict[str, Any]:
        scores = scores_of(model, kept_in.x_train)
        of_training = judge_scores(scores, kept_in.y_train, TEMPERATURE)
        return {
            "kind": "point",
            "data": dataset.name,
            "way": way,
            "alpha": alpha,
            "iteration": iteration,
            "seed": seed,
            "hidden": hidden,
            "seconds": seconds,
            "init_seconds": medoids.seconds,
            "loss": loss,
            "train_accuracy": of_training.accuracy,
            "mean_loss": of_training.mean_loss,
            "worst_loss": of_training.worst_loss,
            "worst_hinge": WorstSampleLoss(MARGIN)(scores, kept_in.y_train).item(),
            "validation_accuracy": judge(model, held_out.x, held_out.y, TEMPERATURE).accuracy,
            "test_accuracy": judge(model, dataset.x_test, dataset.y_test, TEMPERATURE).accuracy,
        }

    yield point(begun, "start", None, 0.0, 0)
    solution = begun
    for alpha in SHARES:
        model = copy.deepcopy(begun)
        training = MiniBatchTraining(
            model,
            kept_in,
            objective="cvar",
            alpha=alpha,
            temperature=TEMPERATURE,
            rate=RATE,
            rate_of_a=RATE / RATE_OVER_A,
            average=AVERAGE,
            epochs=epochs,
            seed=seed,
            validation=(held_out.x, held_out.y),
        )
        training.run()
        solution = model if alpha == 1 else solution
        yield point(model, BY_BATCHES, alpha, training.seconds, epochs)

    for way in ONWARDS:
        # f is homogeneous in the weights: the cross-entropy of f / T is that of weights divided by T
        scale = 1.0 if way.settings["loss"] == "hinge" else TEMPERATURE
        scaled = copy.deepcopy(solution)
        scaled.load_state_dict({name: value / scale for name, value in solution.state_dict().items()})
        seconds = -clock.now()
        optimizer = WorstSampleSubgradient(scaled, kept_in.x_train, kept_in.y_train, train_A=False, **way.settings)
        seconds += clock.now()
        for until in moments(max(1, round(way.part * iterations))):
            seconds -= clock.now()
            optimizer.step(until - optimizer.iteration)
            seconds += clock.now()
            best = optimizer.best
            looked_at = copy.deepcopy(solution)
            looked_at.load_state_dict({name: scale * value for name, value in best.weights.items()})
            yield point(looked_at, way.name, way.settings.get("alpha"), seconds, optimizer.iteration, best.loss)
            if optimizer.status != "going":
                break


def met(records: Sequence[Record]) -> list[Record]:
    """The points of ways onwards that are as right as hoped, at a worst hinge of at most half of the mean's."""
    points = [r for r in records if r["kind"] == "point"]
    means = {r["seed"]: r["worst_hinge"] for r in points if (r["way"], r["alpha"]) == (BY_BATCHES, 1.0)}
    return [
        r for r in points if r["test_accuracy"] >= LEAST_ACCURACY and r["worst_hinge"] <= MOST_LOSS * means[r["seed"]]
    ]


def table(records: Sequence[Record]) -> str:
    """Markdown: a row for each share of the mini-batches, and for the last look at each way onwards."""
    points = [r for r in records if r["kind"] == "point"]
    rows = []
    for way, alpha in dict.fromkeys((r["way"], r["alpha"]) for r in points):
        own = list({r["seed"]: r for r in points if (r["way"], r["alpha"]) == (way, alpha)}.values())
        rows.append(
            (
                _label(way, alpha, max(r["iteration"] for r in own)),
                spread([r["seconds"] for r in own], format_duration),
                spread([r["mean_loss"] for r in own]),
                spread([r["worst_loss"] for r in own], "{:.2f}".format),
                spread([r["worst_hinge"] for r in own]),
                spread([r["train_accuracy"] for r in own]),
                spread([r["test_accuracy"] for r in own]),
            )
        )
    seeds = len({r["seed"] for r in points})
    head = f"{points[0]['data']}, q = {points[0]['hidden']}, A trained, {seeds} seed{'s' * (seeds > 1)}."
    header = ("objective", "time", "mean loss", "worst loss", "worst hinge", "training accuracy", "test accuracy")
    so_many = len({r["seed"] for r in met(records)})
    hope = (
        f"Hoped for: a test accuracy of {LEAST_ACCURACY:.0%} at a worst hinge of no more than half of the mean's. "
        f"Reached with {so_many} of {seeds} seed{'s' * (seeds > 1)}."
    )
    return f"{head}\n\n{markdown(header, rows)}\n\n{LEGEND}\n\n{hope}\n"


def _label(way: str, alpha: float | None, iteration: int) -> str:
    if way == BY_BATCHES and alpha is not None:
        return "mean" if alpha == 1 else "worst of a batch" if alpha < 0.01 else f"CVaR {100 * alpha:g}%"
    return way if way == "start" else f"mean, then {iteration:,} iterations on the {way}, A fixed"


def draw(records: Sequence[Record], path: Path) -> None:
    """Test accuracy over both worst losses, a mark a point, a line a way and seed; shaded what is hoped for."""
    from matplotlib.ticker import PercentFormatter

    from ...page.figures import COLOR, drawing

    points = [r for r in records if r["kind"] == "point" and r["way"] != "start"]
    seeds = list(dict.fromkeys(r["seed"] for r in points))
    with drawing(11.5, 5.4, ncols=2, sharey=True) as (figure, panels):  # pyright: ignore
        for panel, field in zip(panels, ("worst_loss", "worst_hinge"), strict=True):
            for way, color, marker in ((BY_BATCHES, "ours", "o"), *((w.name, w.color, w.marker) for w in ONWARDS)):
                style = {"color": COLOR[color], "linewidth": 1.0}
                named = f"{way}, their worst share" if way == BY_BATCHES else f"on from the mean: {way}"
                for seed in seeds:
                    own = [r for r in points if r["seed"] == seed and r["way"] == way]
                    ends = own if way == BY_BATCHES else own[-1:]
                    if way != BY_BATCHES:  # it begins at the mean's solution
                        own = [r for r in points if r["seed"] == seed and r["alpha"] == 1] + own
                    panel.plot(*_at(own, field), marker=".", markersize=3, alpha=0.45, **style)
                    label = named if seed == seeds[0] else None
                    panel.plot(*_at(ends, field), marker, markersize=6, label=label, **style)
            for r in (r for r in points if r["way"] == BY_BATCHES and r["seed"] == seeds[0]):
                short = {1.0: "mean", SHARES[-1]: "worst"}.get(r["alpha"], f"{r['alpha']:.0%}")
                # the larger shares end near each other
                x, y, side = {1.0: (-8, 2, "right"), 0.5: (7, -11, "left"), 0.1: (-4, 7, "right")}.get(
                    r["alpha"], (8, -1, "left")
                )
                place = {"xytext": (x, y), "textcoords": "offset points", "ha": side, "fontsize": 9}
                panel.annotate(short, (r[field], r["test_accuracy"]), color=COLOR["ours"], **place)
            panel.margins(x=0.12)
            panel.set_xlim(left=0)
            panel.grid()
        panels[0].set_ylabel("test accuracy")
        figure.suptitle(_finding(points), x=0.01, ha="left", fontweight="bold", fontsize=11)
        panels[0].set_xlabel("worst cross-entropy of the training samples (T = 1/8)")
        panels[1].set_xlabel("worst hinge of the training samples (margin 1/4)")
        panels[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        mean = statistics.mean(r["worst_hinge"] for r in points if r["alpha"] == 1)
        top = max(LEAST_ACCURACY, panels[1].get_ylim()[1])
        shade = {"color": COLOR["grid"], "zorder": 0, "linewidth": 0}
        panels[1].fill_between([0, MOST_LOSS * mean], LEAST_ACCURACY, top, **shade)
        panels[1].annotate(
            "hoped for", (0, LEAST_ACCURACY), xytext=(4, 4), textcoords="offset points", color=COLOR["muted"]
        )
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        replace(path, lambda fresh: figure.savefig(fresh, format="png", dpi=140))


def _finding(points: Sequence[Record]) -> str:
    """The way with the least worst loss at its end, beside the mean, of the first seed."""
    own = [r for r in points if r["seed"] == points[0]["seed"]]
    mean = next(r for r in own if r["way"] == BY_BATCHES and r["alpha"] == 1)
    best = min({r["way"]: r for r in own if r["way"] != BY_BATCHES}.values(), key=lambda r: r["worst_loss"])
    return (
        f"{points[0]['data']}, on from the mean by the {best['way']}: worst loss {mean['worst_loss']:.2f} to "
        f"{best['worst_loss']:.2f}, test accuracy from {mean['test_accuracy']:.1%} to {best['test_accuracy']:.1%}"
    )


def _at(records: Sequence[Record], field: str) -> tuple[list[float], list[float]]:
    return [r[field] for r in records], [r["test_accuracy"] for r in records]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the seeds that are missing in OUT, then write front.jsonl, front.md and front.png."""
    parser = argparse.ArgumentParser(
        prog="python -m tropigrad.perf_reports.studies.maxplus.front",
        description="Accuracy against the worst loss, from the mean to the worst sample.",
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", help="mnist:DIR (default: mnist of TROPIGRAD_DATA), or another data set")
    parser.add_argument("--hidden", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--iterations", type=int, default=3000, help="on the worst sample; else a part of them")
    parser.add_argument("--seeds", type=int, default=1)
    clock.add_option(parser)
    asked = parser.parse_args(arguments)
    if min(asked.hidden, asked.epochs, asked.iterations, asked.seeds) < 1:
        parser.error("expected at least 1 hidden unit, epoch, iteration and seed")
    head = {"kind": "run", "machine": machine(), "versions": versions(), "clock": clock.choose(asked)}
    try:
        for seed in range(asked.seeds):
            path = asked.out / "runs" / f"{seed}.jsonl"
            if path.is_file():
                continue
            dataset = data.load(asked.data or "mnist", data.find_data_dir(), seed)
            rows = [head]
            for record in run(dataset, asked.hidden, asked.epochs, asked.iterations, seed):
                rows.append(record)
                label = _label(record["way"], record["alpha"], record["iteration"])
                print(f"seed {seed}, {label}: {record['test_accuracy']:.4f}, {record['worst_loss']:.2f}", flush=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_metrics(path, rows)
    except DataError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on from {asked.out}", file=sys.stderr)
        return 130
    paths = sorted((asked.out / "runs").glob("*.jsonl"), key=lambda path: int(path.stem))
    records = [json.loads(line) for path in paths for line in path.read_text("utf-8").splitlines()]
    write_metrics(asked.out / "front.jsonl", records)
    written = table(records)
    replace(asked.out / "front.md", lambda fresh: fresh.write_text(written, encoding="utf-8"))
    draw(records, asked.out / "front.png")
    print(written)
    return 0


if __name__ == "__main__":
    output.take_any_encoding()
    sys.exit(main())
