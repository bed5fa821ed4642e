"""The paper's study: explicit solutions alone, as starts of Adam, and as language models, beside what one would use.

    python -m tropigrad.perf_reports.studies.explicit.comparison OUT [--data-dir DIR] [--only NAME] [--quick]

writes OUT/<experiment>.jsonl, and comparison.md and pictures of all experiments that OUT holds. Every arm is tuned on
rows held out from training, none on the test part. Seconds are processor time on one thread, of learning alone.
Without a folder only what scikit-learn's digits and drawn data can tell is told.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....whole_files import replace
from ... import data, output
from ...data import DataError
from ...durations import format_duration
from ...environment import machine, versions
from ...texts import Text, read_speeches, read_text
from ..runs import write_metrics
from ..tables import markdown
from ..threads import one_thread
from . import drawing
from .language import languages, warm_language
from .methods import Record, Split, arms, of_images, of_speeches, signs, tuned
from .warm_starts import after_steps, first_rows, layer_starts, network_starts, optima, pooled, race, topics

# ExplicitSoftmax's settings that `classification` chose on held-out rows, where starts are compared
STARTS: dict[str, dict[str, Any]] = {
    "digits": {"scale": 32.0},
    "mnist": {"scale": 32.0},
    "speakers": {"normalize": False, "prior": "count", "smoothing": 0.03},
    "topics": {"normalize": False, "prior": "count", "smoothing": "search"},
}


@dataclass(frozen=True)
class Inputs:
    """Where the data is; quick: a smaller part of each, and fewer seeds."""

    folder: Path | None
    quick: bool = False

    def images(self, name: str, seed: int) -> Split:
        """
        Raises:
            DataError: no folder, or no MNIST in it.
        """
        if name == "digits":
            dataset, top, valid = data.load("digits", seed=seed), 16, None
        else:
            dataset, top, valid = data.load("mnist", self.folder), 255, 5000
        if self.quick:
            dataset, valid = dataset.subset(60, 20, seed), None
        return of_images(dataset, top, seed, valid)

    def speakers(self, seed: int, most: int | None = None) -> Split:
        """
        Raises:
            DataError: no such text.
        """
        speeches = read_speeches(self.part("tinyshakespeare"))
        return of_speeches(speeches, seed, min(most or 8, 8) if self.quick else most)

    def part(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / name if (self.folder / name).is_dir() else self.folder

    @property
    def seeds(self) -> int:
        return 1 if self.quick else 3

    def splits(self, seed: int) -> Iterator[Split]:
        yield self.images("digits", seed)
        if self.folder is not None:
            yield self.speakers(seed)
            yield self.images("mnist", seed)


def classification(inputs: Inputs) -> Iterator[Record]:
    """Every classifier on digits, speakers and MNIST; the sign of the shift on the speakers."""
    for seed in range(inputs.seeds):
        for split in inputs.splits(seed):
            if seed and split.name == "mnist":
                continue  # whose test part is one
            for arm in arms(split.name.split(",")[0], seed, inputs.quick):
                if seed and ("1000" in arm.name or (split.name == "speakers" and "MLP" in arm.name)):
                    continue  # half a minute each
                yield tuned(arm, split, seed)
            if split.name == "speakers":
                yield from signs(split, seed)


def warm(inputs: Inputs) -> Iterator[Record]:
    """Losses after up to 500 steps of Adam from explicit starts, Xavier's and zero."""
    horizons = (5, 20) if inputs.quick else (10, 100, 500)
    for split in inputs.splits(seed=0):
        name = split.name.split(",")[0]
        starts, rows = layer_starts(split, STARTS[name])
        settings: dict[str, Any] = {"name": split.name, "seeds": inputs.seeds, "horizons": horizons}
        if name == "speakers":  # a step takes as long as fifty of the digits'
            settings |= {"horizons": horizons[:2], "rates": (3e-3, 1e-2, 3e-2, 1e-1), "batch": 128, "seeds": 1}
        yield from after_steps(starts, rows, network="one layer", **settings)
        if name != "speakers":
            hidden = 40 if name == "digits" else 100
            starts, rows = network_starts(split, hidden, {"scale": 32.0})
            yield from after_steps(starts, rows, network=f"H = {hidden}", **settings)
        if name == "digits":
            yield from optima(split, STARTS[name])


def growth(inputs: Inputs) -> Iterator[Record]:
    """Seconds of the explicit solution, and of Adam to its loss, over N, D and C."""
    brief: dict[str, Any] = {"most_seconds": 1.0, "seeds": 1, "batches": (128,)} if inputs.quick else {}
    for split in inputs.splits(seed=0):
        name = split.name.split(",")[0]
        settings = {**STARTS[name], "temperature": "search"}
        if name == "speakers":
            for most in (5, 10, 25, 50, 98)[: 2 if inputs.quick else 5]:
                yield race(inputs.speakers(0, most), settings, facts={"axis": "C"}, **{"most_seconds": 1.5, **brief})
            continue
        yield race(split, settings, facts={"axis": "N"}, **brief)
        if name == "mnist":
            for size in (200,) if inputs.quick else (1000, 4000, 16_000):
                yield race(first_rows(split, size), settings, facts={"axis": "N"}, **brief)
            for by in (2, 4):
                yield race(pooled(split, 28, by), settings, facts={"axis": "D"}, **brief)
    for features, classes in (
        ((50, 5),) if inputs.quick else ((200, 100), (1000, 10), (1000, 100), (1000, 1000), (5000, 100))
    ):
        split = topics(features, classes, 0, rows=500 if inputs.quick else 10_000)
        settings = {**STARTS["topics"], "temperature": "search"}
        limit = {"most_seconds": classes / 500 if classes > 500 else 1.0, **brief}
        yield race(split, settings, facts={"axis": "C" if features == 1000 else "D"}, **limit)


def language(inputs: Inputs) -> Iterator[Record]:
    """Language models of characters and words, and an EmbeddingBag from the former's counts."""
    if inputs.folder is None:
        return
    for name in ("tinyshakespeare", "wikitext-2"):
        if not (inputs.folder / name).is_dir():
            continue
        text = read_text(inputs.folder / name)
        if inputs.quick:
            text = _shortened(text)
        yield from languages(text)
        if text.unit == "characters":
            yield from warm_language(text, horizons=(5, 20) if inputs.quick else (10, 100, 500))


def _shortened(text: Text, vocabulary: int = 300) -> Text:
    """The beginnings of a text's parts, of whose words all but the first are one."""
    parts = (
        part[:size].clip(max=vocabulary - 1)
        for part, size in zip((text.train, text.valid, text.test), (20_000, 3000, 3000), strict=True)
    )
    return Text(*parts, words=text.words[:vocabulary], unit=text.unit, name=text.name)


EXPERIMENTS: dict[str, Callable[[Inputs], Iterable[Record]]] = {
    "classification": classification,
    "warm": warm,
    "growth": growth,
    "language": language,
}


# ------------------------------------------------------------------------------------------------ the tables


def table(records: Sequence[Record]) -> str:
    """Markdown: a table for each data set of each experiment; mean ± standard deviation over seeds."""
    parts = []
    for kind, written in (
        ("classification", _classification),
        ("sign", _signs),
        ("after", _after),
        ("optimum", _optima),
        ("race", _races),
        ("language", _languages),
        ("warm_language", _warm_language),
    ):
        rows = [r for r in records if r["kind"] == kind]
        if rows:
            parts += written(rows)
    return "\n\n".join(parts) + "\n"


def _table(title: str, head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join([title, "", markdown(head, lines)])


def _distinct(rows: Iterable[Record], *fields: str) -> list[Any]:
    values = [tuple(r[field] for field in fields) for r in rows]
    return list(dict.fromkeys(value if len(fields) > 1 else value[0] for value in values))


def _of(rows: Iterable[Record], **facts: Any) -> list[Record]:
    return [r for r in rows if all(r.get(name) == value for name, value in facts.items())]


def _spread(rows: Sequence[Record], field: str, digits: int = 3) -> str:
    values = [r[field] for r in rows]
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def _seconds(rows: Sequence[Record], field: str = "seconds") -> str:
    return format_duration(statistics.median(r[field] for r in rows))


def _classification(rows: list[Record]) -> list[str]:
    head = ("method", "fit", "tuning", "test accuracy", "test CE", "seeds")
    return [
        _table(
            dataset,
            head,
            (
                (
                    method,
                    _seconds(arm),
                    _seconds(arm, "tuning_seconds") if arm[0]["tuning_seconds"] > 1e-3 else "–",
                    _spread(arm, "accuracy"),
                    _spread(arm, "cross_entropy"),
                    str(len(arm)),
                )
                for method in _distinct(_of(rows, dataset=dataset), "method")
                for arm in [_of(rows, dataset=dataset, method=method)]
            ),
        )
        for dataset in _distinct(rows, "dataset")
    ]


def _signs(rows: list[Record]) -> list[str]:
    lines = []
    for sign in _distinct(rows, "sign"):
        parts = [_of(rows, sign=sign, chosen=chosen) for chosen in _distinct(rows, "chosen")]
        lines.append((sign, *(f"{_spread(part, 'accuracy')}, {_spread(part, 'cross_entropy', 2)}" for part in parts)))
    head = ("sign of (K − 1) log S", *(f"held out: {chosen}" for chosen in _distinct(rows, "chosen")))
    return [_table(f"{rows[0]['dataset']}: accuracy and CE by the sign of the shift", head, lines)]


def _after(rows: list[Record]) -> list[str]:
    parts = []
    for dataset, network in _distinct(rows, "dataset", "network"):
        own = _of(rows, dataset=dataset, network=network)
        steps = sorted(_distinct(own, "steps"))
        lines = []
        for start in _distinct(own, "start"):
            cells = []
            for step in steps:
                runs = _of(own, start=start, steps=step)
                if not runs:  # of a run that was stopped
                    cells.append("–")
                    continue
                losses = " / ".join(f"{statistics.mean(r[f] for r in runs):.3f}" for f in ("train_loss", "test_loss"))
                cells.append(f"{losses} / {statistics.mean(r['test_accuracy'] for r in runs):.3f}")
            lines.append((start, *cells))
        head = ("start", *(f"{step} steps" for step in steps))
        parts.append(_table(f"{dataset}, {network}: training CE / test CE / test accuracy", head, lines))
    return parts


def _optima(rows: list[Record]) -> list[str]:
    lines = [
        (r["start"], f"{r['objective_at_start']:.4f}", f"{r['objective']:.8f}", str(r["evaluations"])) for r in rows
    ]
    head = ("start", "at the start", "by L-BFGS", "evaluations")
    return [_table(f"{rows[0]['dataset']}: CE + 1e-4/2 ‖W‖²", head, lines)]


def _races(rows: list[Record]) -> list[str]:
    lines = []
    for r in rows:
        cells = [r["dataset"], f"{r['N']:,}", f"{r['D']:,}", str(r["C"]), format_duration(r["explicit_seconds"])]
        for part in ("train", "valid"):
            cells.append(f"{r[f'{part}_loss']:.3f}")
            if r[f"{part}_seconds"] is None:
                cells += ["not reached", ""]
            else:
                cells.append(f"{format_duration(r[f'{part}_seconds'])}, {r[f'{part}_steps']:g} steps")
                cells.append(f"{r[f'{part}_ratio']:.2g}")
        lines.append(cells)
    head = ("data", "N", "D", "C", "explicit", "training CE", "Adam", "ratio", "held-out CE", "Adam", "ratio")
    return [_table("Time to the loss of the explicit solution", head, lines)]


def _languages(rows: list[Record]) -> list[str]:
    head = ("model", "counting", "searching", "ε", "test CE", "perplexity")
    return [
        _table(
            f"{dataset}, {unit}, V = {V:,}, {tokens:,} tokens",
            head,
            (
                (
                    r["method"],
                    format_duration(r["counting_seconds"]),
                    format_duration(r["searching_seconds"]) if r["searching_seconds"] else "–",
                    f"{r['smoothing']:.2g}" if "smoothing" in r else "–",
                    f"{r['cross_entropy']:.3f}",
                    f"{r['perplexity']:,.4g}",
                )
                for r in _of(rows, dataset=dataset)
            ),
        )
        for dataset, unit, V, tokens in _distinct(rows, "dataset", "unit", "vocabulary", "tokens")
    ]


def _warm_language(rows: list[Record]) -> list[str]:
    steps = sorted(_distinct(rows, "steps"))
    lines = []
    for start in _distinct(rows, "start"):
        own = [_of(rows, start=start, steps=step)[0] for step in steps]
        lines.append((start, *(f"{r['train_loss']:.3f} / {r['test_loss']:.3f}" for r in own)))
    head = ("start", *(f"{step} steps" for step in steps))
    return [_table(f"{rows[0]['dataset']}, cat, K = {rows[0]['radius']}: training CE / test CE", head, lines)]


# ------------------------------------------------------------------------------------------------ the command


def main(arguments: Sequence[str] | None = None) -> int:
    """Write OUT/<experiment>.jsonl, then comparison.md and the pictures of all experiments that OUT holds."""
    parser = argparse.ArgumentParser(
        prog="python -m tropigrad.perf_reports.studies.explicit.comparison",
        description="Explicit solutions of softmax networks beside what one would use.",
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-dir", type=Path, help="a folder with mnist, tinyshakespeare and wikitext-2")
    parser.add_argument("--only", choices=tuple(EXPERIMENTS), help="one experiment")
    parser.add_argument("--quick", action="store_true", help="a part of each, which shows that all runs")
    asked = parser.parse_args(arguments)
    inputs = Inputs(data.find_data_dir(asked.data_dir), asked.quick)
    try:
        with one_thread():
            asked.out.mkdir(parents=True, exist_ok=True)
            for name in [asked.only] if asked.only else EXPERIMENTS:
                rows = [
                    {"kind": "run", "machine": machine(), "versions": versions(), "clock": "processor time, one thread"}
                ]
                for row in EXPERIMENTS[name](inputs):
                    rows.append(row)
                    write_metrics(
                        asked.out / f"{name}.jsonl", rows
                    )  # at each: a run that is stopped leaves what it has
                    print(_line(row), flush=True)
    except DataError as error:
        parser.error(str(error))
    paths = [asked.out / f"{name}.jsonl" for name in EXPERIMENTS]
    records = [json.loads(line) for path in paths if path.is_file() for line in path.read_text("utf-8").splitlines()]
    written = table(records)
    replace(asked.out / "comparison.md", lambda fresh: fresh.write_text(written, encoding="utf-8"))
    drawing.draw(records, asked.out)
    print(written)
    return 0


def _line(row: Record) -> str:
    shown = (f"{name} {value:.4g}" if isinstance(value, float) else f"{value}" for name, value in row.items())
    return ", ".join(shown)


if __name__ == "__main__":
    output.take_any_encoding()
    sys.exit(main())
