"""The front of accuracy against the worst loss: from the mean over the worst share (CVaR) to the worst sample.

    python -m tropigrad.perf_reports.studies.maxplus.front OUT [--data mnist:DIR] [--hidden 200] [--epochs 6] \
        [--iterations 3000] [--seeds S] [--processor-time]

One network, A trained, and two ways along the front. By mini-batches from the medoids, on the mean (α = 1) and on the
worst shares of a batch, down to its worst sample. And on from the solution of the mean, with A then fixed, by
subgradients of the worst sample of all the training data, looked at on the way. All losses are cross-entropies of f / T
over the training samples, at the temperature T that the mean was trained with.

Writes front.jsonl, front.md and front.png; a run that is there (OUT/runs) is not run again.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ....nn import LinearMinMax
from ....optim import WorstSampleSubgradient
from ....whole_files import replace
from ... import data, output
from ...data import DataError, Dataset
from ...durations import format_duration
from ...environment import machine, versions
from ..runs import write_metrics
from ..tables import markdown, spread
from . import minibatch
from .methods import quick_start
from .minibatch import RATE, TEMPERATURE, MiniBatchTraining, judge
from .objectives import AVERAGE, RATE_OVER_A
from .training import hold_out

Record = Mapping[str, Any]

SHARES = (1.0, 0.5, 0.25, 0.1, 0.05, 1 / 128)  # α; the last is the worst sample of a batch
BY_BATCHES, ONWARDS = "mini-batches", "worst sample, from the mean's solution"
LEGEND = """\
Cross-entropies of f / T, T = 1/8, over all training samples; iterates of the mini-batches are those that are right most
often on held-out samples. Mean ± standard deviation over the seeds."""


def moments(iterations: int) -> list[int]:
    """The iterations of the worst sample that are looked at: powers of two, times ten, and the last."""
    return sorted({min(iterations, 10 * 2**i) for i in range(iterations.bit_length())})


def run(dataset: Dataset, hidden: int, epochs: int, iterations: int, seed: int) -> Iterator[dict[str, Any]]:
    """A record (kind "point") a share, and a look at the worst-sample iterates."""
    kept_in, held_out, _ = hold_out(dataset, 0.1, seed)
    assert held_out is not None
    begun, medoids = quick_start(kept_in, hidden, seed, 1.0, 1.0)
    begun.A.requires_grad_(True)

    def point(model: LinearMinMax, way: str, alpha: float | None, seconds: float, iteration: int) -> dict[str, Any]:
        of_training = judge(model, kept_in.x_train, kept_in.y_train, TEMPERATURE)
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
            "train_accuracy": of_training.accuracy,
            "mean_loss": of_training.mean_loss,
            "worst_loss": of_training.worst_loss,
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

    # f is homogeneous in the weights: the cross-entropy of f / T is that of weights divided by T
    sharp = copy.deepcopy(solution)
    sharp.load_state_dict({name: value / TEMPERATURE for name, value in solution.state_dict().items()})
    sharp.A.requires_grad_(False)
    seconds = -minibatch.clock()
    worst = WorstSampleSubgradient(sharp, kept_in.x_train, kept_in.y_train, "sqrt", loss="cross_entropy")
    seconds += minibatch.clock()
    for until in moments(iterations):
        begin = minibatch.clock()
        worst.step(until - worst.iteration)
        seconds += minibatch.clock() - begin
        looked_at = copy.deepcopy(solution)
        looked_at.load_state_dict({name: TEMPERATURE * value for name, value in worst.best.weights.items()})
        yield point(looked_at, ONWARDS, None, seconds, until)
        if worst.status != "going":
            break


def table(records: Sequence[Record]) -> str:
    """Markdown: a row a point of the front."""
    points = [r for r in records if r["kind"] == "point"]
    rows = []
    for way, alpha, iteration in dict.fromkeys((r["way"], r["alpha"], r["iteration"]) for r in points):
        own = [r for r in points if (r["way"], r["alpha"], r["iteration"]) == (way, alpha, iteration)]
        rows.append(
            (
                _label(way, alpha, iteration),
                spread([r["seconds"] for r in own], format_duration),
                spread([r["mean_loss"] for r in own]),
                spread([r["worst_loss"] for r in own], "{:.2f}".format),
                spread([r["train_accuracy"] for r in own]),
                spread([r["test_accuracy"] for r in own]),
            )
        )
    seeds = len({r["seed"] for r in points})
    head = f"{points[0]['data']}, q = {points[0]['hidden']}, A trained, {seeds} seed{'s' * (seeds > 1)}."
    header = ("objective", "time", "mean loss", "worst loss", "training accuracy", "test accuracy")
    return f"{head}\n\n{markdown(header, rows)}\n\n{LEGEND}\n"


def _label(way: str, alpha: float | None, iteration: int) -> str:
    if alpha is None:
        return way if way == "start" else f"… then {iteration:,} iterations on the worst sample, A fixed"
    return "mean" if alpha == 1 else "worst of a batch" if alpha < 0.01 else f"CVaR {100 * alpha:g}%"


def draw(records: Sequence[Record], path: Path) -> None:
    """Test accuracy over the worst loss, a mark a point, a line a way and seed."""
    from matplotlib.ticker import PercentFormatter

    from ...page.figures import COLOR, drawing

    points = [r for r in records if r["kind"] == "point"]
    with drawing(8.2, 5.0) as (figure, panel):
        for way, color, marker in ((BY_BATCHES, "ours", "o"), (ONWARDS, "dense", "s")):
            for seed in dict.fromkeys(r["seed"] for r in points):
                own = [r for r in points if r["seed"] == seed and r["way"] == way]
                if way == ONWARDS:  # it begins at the mean's solution
                    own = [r for r in points if r["seed"] == seed and r["alpha"] == 1] + own
                at = [r["worst_loss"] for r in own], [r["test_accuracy"] for r in own]
                label = way if seed == points[0]["seed"] else None
                panel.plot(*at, marker=marker, color=COLOR[color], linewidth=1.3, markersize=5, label=label, alpha=0.85)
                if seed != points[0]["seed"]:
                    continue
                for r in own:
                    if way == BY_BATCHES or r is own[-1]:
                        short = f"{r['iteration']:,} iterations" if r["alpha"] is None else _label(way, r["alpha"], 0)
                        place = {"xytext": (6, -12), "textcoords": "offset points", "fontsize": 9}
                        panel.annotate(short, (r["worst_loss"], r["test_accuracy"]), color=COLOR[color], **place)
        panel.set_xlabel("worst cross-entropy of the training samples (at T = 1/8)")
        panel.set_title("Test accuracy")
        panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        panel.set_xlim(left=0)
        panel.margins(x=0.12)
        panel.grid()
        figure.legend(loc="outside lower center", ncols=2)
        replace(path, lambda fresh: figure.savefig(fresh, format="png", dpi=140))


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
    parser.add_argument("--iterations", type=int, default=3000, help="on the worst sample")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--processor-time", action="store_true", help="of the CPU: for a machine that others use too")
    asked = parser.parse_args(arguments)
    if min(asked.hidden, asked.epochs, asked.iterations, asked.seeds) < 1:
        parser.error("expected at least 1 hidden unit, epoch, iteration and seed")
    if asked.processor_time:
        minibatch.clock = time.process_time
    head = {"kind": "run", "machine": machine(), "versions": versions()}
    head["clock"] = "processor time" if asked.processor_time else "wall time"
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
