"""The page: one self-contained HTML file, and the figures beside it, drawn from the records of results.jsonl alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..durations import format_duration
from ..records import last_run
from . import curves, figures, roofline, speedups

Record = Mapping[str, Any]


def build(records: Sequence[Record], out: Path, loss_titles: Mapping[str, str] | None = None) -> Path:
    """Draw the run that was begun last: index.html, *.png and *.svg in `out`.

    Args:
        records: as `records.read` gives them; other runs are left alone.
        loss_titles: study -> the title over its loss curve; "Training loss" where it is not among them.
    Returns:
        The path of index.html.
    Raises:
        ValueError: there is no run among the records.
    """
    run = last_run(records)
    if not run:
        raise ValueError("page: the records hold no run; expected a line of kind 'run', as `tropigrad report` writes")
    out.mkdir(parents=True, exist_ok=True)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        duration=format_duration,
        bytes=byte_count,
        number=number,
        ratio=ratio,
        ratio_interval=ratio_interval,
        percent=percent,
    )
    page = environment.get_template("template.html").render(
        **view(run), **_drawings(run, out, loss_titles or {}), css=Markup(figures.css())
    )
    index = out / "index.html"
    # a reader, or a second report, never meets half a page
    unfinished = index.with_suffix(".html.part")
    unfinished.write_text(page, encoding="utf-8")
    unfinished.replace(index)
    return index


def _drawings(run: Sequence[Record], out: Path, loss_titles: Mapping[str, str]) -> dict[str, Any]:
    def markup(svg: str | None) -> Markup | None:
        return None if svg is None else Markup(svg)

    return {
        "roofline": markup(roofline.draw(run, out)),
        "speedups": markup(speedups.draw(run, out)),
        "training": {
            study: Markup(svg)
            for study in studies(run)
            if (svg := curves.draw(run, study, out, loss_titles.get(study, "Training loss"))) is not None
        },
    }


def studies(run: Sequence[Record]) -> list[str]:
    """Names of the studies in a run."""
    return list(dict.fromkeys(r["study"] for r in run if r["kind"] in ("training", "training_summary")))


def view(run: Sequence[Record]) -> dict[str, Any]:
    """Collect what the template shows, without the drawings."""
    timings = [r for r in run if r["kind"] == "timing"]
    ratios = [r for r in timings if r["ratio"] is not None]
    end = next((r for r in run if r["kind"] == "run_end"), None)
    return {
        "head_record": run[0],
        "interrupted": end is None or end["interrupted"],
        "error": None if end is None else end["error"],
        "elapsed": None if end is None else end["seconds"],
        "tiles": tiles(run),
        "groups": speedups.groups(run),
        "timings": timings,
        "gates": [r for r in run if r["kind"] == "gate"],
        "red": [r for r in run if r["kind"] == "gate" and r["gate"] == "red"],
        "losses": [r for r in ratios if r["ratio"]["low"] <= 1],
        "memory": [r for r in run if r["kind"] == "memory"],
        "startup": [r for r in run if r["kind"] == "startup"],
        "ceilings": [r for r in run if r["kind"] == "ceiling"],
        "points": _points(run),
        "summaries": [r for r in run if r["kind"] == "training_summary"],
        "left_out": [r for r in run if r["kind"] == "left_out"],
    }


def tiles(run: Sequence[Record]) -> list[dict[str, str]]:
    """The few figures that stand at the top: over dense backprop by workload, and the training."""
    entries = []
    for group in speedups.groups(run):
        if group.role == "dense":
            over = (
                f"geometric mean over {len(group.by_shape)} shapes"
                if len(group.by_shape) > 1
                else next(iter(group.by_shape))
            )
            entries.append(
                {
                    "value": speedups.times(group.mean),
                    "label": group.workload,
                    "note": f"as fast as {group.contender}; {over}",
                }
            )
    for r in run:
        if r["kind"] == "training_summary" and r["role"] == "ours":
            label = f"test accuracy, {r['dataset']}"
            entries.append({"value": percent(r["test_accuracy"]), "label": label, "note": r["method"]})
    return entries


def _points(run: Sequence[Record]) -> list[dict[str, Any]]:
    memory = roofline.bandwidth_roof(run)
    rows = []
    for point in roofline.points(run):
        compute = roofline.compute_roof(run, point.mix)
        roof = None if compute is None or memory is None else roofline.attainable(point.intensity, compute, memory)
        rows.append({"point": point, "roof": roof, "share": None if roof is None else point.rate / roof})
    return rows


def byte_count(value: float | None) -> str:
    """Three digits and a unit: 4.19 MB, decimal."""
    if value is None:
        return "–"
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:#.3g}".removesuffix(".") + " " + unit
    return f"{value:.0f} B"


def number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}g}"


def ratio(value: float | None) -> str:
    return "–" if value is None else speedups.times(value)


def ratio_interval(value: Mapping[str, float] | None) -> str:
    return "" if value is None else f"{value['low']:.3g} – {value['high']:.3g}"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"
