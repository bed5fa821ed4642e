"""Figures over revisions: where they changed for good, drawn and exported.

A series is cut where the two sides differ most by ranks: at the cut of the least p of the Mann–Whitney test, if p,
times the number of cuts that were tried, is below 0.01 and the medians differ by at least 3 %; then each side in the
same way. So a single slow run is no change, and three slow runs of ten are not either.

Source of the test: Mann & Whitney, "On a test of whether one of two random variables is stochastically larger than the
other", Annals of Mathematical Statistics 18, 1947.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ...whole_files import replace
from ..commands import BadRequest
from ..formats import write_frame

LEVEL, EFFECT, LEAST = 0.01, 0.03, 4  # of p; of the medians; values on either side of a cut


@dataclass(frozen=True)
class Point:
    """One figure of one run."""

    time: str  # UTC, ISO 8601
    revision: str
    value: float


@dataclass(frozen=True)
class Change:
    """A cut: the figure was `before` up to the point at `index`, and is `after` from there on."""

    index: int
    before: float
    after: float

    @property
    def ratio(self) -> float:
        return self.after / self.before


def read(paths: Iterable[Path]) -> dict[str, list[Point]]:
    """The series of all files, by name, in the order of time: the timings of reports, and the figures of gates.

    Raises:
        BadRequest: a file that is missing or holds neither.
    """
    series: dict[str, list[Point]] = {}
    for path in paths:
        if not path.is_file():
            raise BadRequest(f"{path}: no such file; expected results.jsonl of reports, or --jsonl of gates")
        before = sum(map(len, series.values()))
        revision = time = ""
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
            try:
                record = json.loads(line)
            except ValueError:
                continue  # a killed run's last line
            if not isinstance(record, dict):
                raise BadRequest(f"{path}, line {number}: no record; expected JSON objects, one a line")
            revision, time = record.get("git_revision") or revision, record.get("time") or time
            for name, value in _figures(record):
                series.setdefault(name, []).append(Point(time, revision, value))
        if sum(map(len, series.values())) == before:
            raise BadRequest(f"{path}: it holds no timings and no figures")
    return {name: sorted(points, key=lambda p: p.time) for name, points in series.items()}


def _figures(record: Mapping[str, Any]) -> list[tuple[str, float]]:
    if record.get("kind") == "timing" and record.get("role") == "ours":
        return [(", ".join(record[key] for key in ("op", "workload", "shape_label")), float(record["median"]["value"]))]
    if record.get("kind") == "measured":
        place = f"{record['of']}, {record['target']}"
        return [(f"{place}, {figure}", float(value)) for figure, value in record["figures"].items()]
    return []


def changes(values: Sequence[float]) -> list[Change]:
    """The cuts of a series, in its order."""
    cuts = sorted(_cuts(values, 0))
    edges = [0, *cuts, len(values)]
    medians = [statistics.median(values[a:b]) for a, b in pairwise(edges)]
    return [Change(cut, before, after) for cut, before, after in zip(cuts, medians, medians[1:], strict=False)]


def _cuts(values: Sequence[float], offset: int) -> list[int]:
    from scipy.stats import mannwhitneyu

    tried = range(LEAST, len(values) - LEAST + 1)
    best, least = None, LEVEL
    for cut in tried:
        left, right = values[:cut], values[cut:]
        a, b = statistics.median(left), statistics.median(right)
        if abs(b - a) < EFFECT * abs(a):
            continue
        p = float(mannwhitneyu(left, right, method="asymptotic").pvalue) * len(tried)
        if p < least:
            best, least = cut, p
    if best is None:
        return []
    return [offset + best, *_cuts(values[:best], offset), *_cuts(values[best:], offset + best)]


def draw(series: Mapping[str, Sequence[Point]], path: Path) -> None:
    """A panel a series: its values over revisions, the medians between cuts, the cuts with their ratios."""
    from ..page.figures import COLOR, drawing

    names = sorted(series)
    across = min(3, len(names))
    down = -(-len(names) // across)
    with drawing(4.2 * across, 2.3 * down + 0.4, nrows=down, ncols=across, squeeze=False) as (figure, panels):  # pyright: ignore
        for panel in panels.flat[len(names) :]:
            panel.set_axis_off()
        for panel, name in zip(panels.flat, names, strict=False):
            points = series[name]
            values = [p.value for p in points]
            cuts = changes(values)
            panel.plot(values, "o", color=COLOR["ours"], markersize=3)
            edges = [0, *(c.index for c in cuts), len(values)]
            for a, b in pairwise(edges):
                panel.hlines(statistics.median(values[a:b]), a - 0.4, b - 0.6, color=COLOR["muted"], linewidth=1.4)
            for c in cuts:
                panel.axvline(c.index - 0.5, color=COLOR["dense"], linewidth=1)
                panel.annotate(
                    f"{c.ratio:.2f} ×", (c.index - 0.4, max(values)), fontsize=8, va="top", color=COLOR["dense"]
                )
            ticks = sorted({0, len(values) - 1, *(c.index for c in cuts)})
            panel.set_xticks(ticks, [points[i].revision[:8] or points[i].time[:10] for i in ticks], fontsize=7)
            panel.set_title(name, fontsize=8)
            panel.set_ylim(bottom=0)
        replace(path, lambda fresh: figure.savefig(fresh, format="png", dpi=140))


def lines(series: Mapping[str, Sequence[Point]]) -> list[str]:
    """The changes of all series, a line each; or that there are none."""
    told = []
    for name in sorted(series):
        points = series[name]
        for c in changes([p.value for p in points]):
            at = points[c.index]
            told.append(f"{name}: {c.before:.4g} -> {c.after:.4g} ({c.ratio:.2f} x) at {at.revision[:12] or at.time}")
    return told or [f"no change in {len(series)} series"]


# ------------------------------------------------------------------------------------------------ exports


def export(series: Mapping[str, Sequence[Point]], path: Path) -> None:
    """Write all series, in the form that the ending names: .parquet, .csv, .asv.json or .pytest-benchmark.json.

    Raises:
        BadRequest: another ending; or pandas, or what it needs for parquet, is missing.
    """
    name = path.name
    if name.endswith(".asv.json"):
        text = json.dumps(_as_asv(series), indent=1)
    elif name.endswith(".pytest-benchmark.json"):
        text = json.dumps(_as_pytest_benchmark(series), indent=1)
    elif path.suffix in (".parquet", ".csv"):
        write_frame([{"name": n, **vars(p)} for n, points in sorted(series.items()) for p in points], path)
        return
    else:
        raise BadRequest(f"{path}: expected a name in .parquet, .csv, .asv.json or .pytest-benchmark.json")
    replace(path, lambda fresh: fresh.write_text(text + "\n", encoding="utf-8"))


def _as_asv(series: Mapping[str, Sequence[Point]]) -> list[dict[str, Any]]:
    """A result file of asv, version 2, a revision: its list is split by `commit_hash` into asv's files."""
    revisions: dict[str, dict[str, Any]] = {}
    for name, points in sorted(series.items()):
        for p in points:
            result = revisions.setdefault(
                p.revision,
                {"version": 2, "commit_hash": p.revision, "date": p.time, "params": {}, "python": "",
                 "requirements": {}, "env_vars": {}, "result_columns": ["result"], "results": {}},
            )  # fmt: skip
            result["results"][name] = [[p.value]]
    return list(revisions.values())


def _as_pytest_benchmark(series: Mapping[str, Sequence[Point]]) -> dict[str, Any]:
    """The newest value of each series, in the form that pytest-benchmark saves."""
    last = {name: points[-1] for name, points in series.items() if points}
    newest = max(last.values(), key=lambda p: p.time)

    def stats(value: float) -> dict[str, float | int]:
        same = dict.fromkeys(("min", "max", "mean", "median", "q1", "q3"), value)
        return {**same, "stddev": 0.0, "iqr": 0.0, "rounds": 1, "iterations": 1, "ops": 1 / value if value else 0.0}

    benchmarks = [
        {"group": None, "name": name, "fullname": name, "params": None, "param": None, "extra_info": {},
         "options": {}, "stats": stats(point.value)}
        for name, point in sorted(last.items())
    ]  # fmt: skip
    return {
        "machine_info": {}, "commit_info": {"id": newest.revision, "time": newest.time}, "benchmarks": benchmarks,
        "datetime": newest.time, "version": "4.0.0",
    }  # fmt: skip
