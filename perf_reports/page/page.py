"""The page: one self-contained HTML file, and the figures beside it, drawn from the records of results.jsonl alone."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..durations import format_duration
from ..records import last_run
from . import cost, curves, figures, fronts, growth, numbers, roofline, rows, speedups, statements, systems
from .figures import Drawn

Record = Mapping[str, Any]

UNFINISHED = "unfinished"  # the folder of a page that must not replace one of a finished run
_FINISHED = '<meta name="tropigrad-run" content="finished">'
_BACKGROUND = {
    "machine": {"cpu": "a machine that is not named", "threads": "?"},
    "versions": {"torch": "?"},
    "settings": {"quick": False},
    "environment": {},
    "git_revision": None,
    "time": "",
}


def build(
    records: Sequence[Record],
    out: Path,
    loss_titles: Mapping[str, str] | None = None,
    *,
    draft: bool = False,
    complaints: Sequence[str] = (),
) -> Path:
    """Draw the run that was begun last: index.html, *.png and *.svg, results.csv in `out`.

    Args:
        records: as `records.read` gives them; other runs are left alone.
        loss_titles: study -> the title over its loss curve; "Training loss" where it is not among them.
        draft: of a run that goes on: index.html alone.
        complaints: what the page is to say of its file.
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
        bytes=numbers.byte_count,
        number=numbers.number,
        ratio=numbers.ratio,
        ratio_interval=numbers.ratio_interval,
        percent=numbers.percent,
    )
    if not draft:
        _write_data(run, out)
    end = next((r for r in run if r["kind"] == "run_end"), None)
    is_finished = end is not None and not end.get("interrupted", True)
    page = environment.get_template("template.html").render(
        **view(run),
        **_drawings(run, None if draft else out, loss_titles or {}),
        css=Markup(figures.css()),
        marker=Markup(_FINISHED if is_finished and not draft else ""),
        is_running=draft,
        complaints=complaints,
        downloads=[name for name in ("results.jsonl", "results.csv") if (out / name).is_file()],
    )
    index = out / "index.html"
    # a reader, or a second report, never meets half a page
    unfinished = index.with_suffix(".html.part")
    unfinished.write_text(page, encoding="utf-8")
    unfinished.replace(index)
    return index


def is_finished(out: Path) -> bool:
    """Whether a folder has the page of a finished run."""
    try:
        return _FINISHED in (out / "index.html").read_text(encoding="utf-8", errors="replace")[:2000]
    except OSError:
        return False


def _write_data(run: Sequence[Record], out: Path) -> None:
    (out / "results.csv").write_text(rows.as_csv(run), encoding="utf-8")
    if not (out / "results.jsonl").exists():  # drawn into another folder than that of its file
        lines = (json.dumps(dict(record), ensure_ascii=False) for record in run)
        (out / "results.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def _drawings(run: Sequence[Record], out: Path | None, loss_titles: Mapping[str, str]) -> dict[str, Any]:
    picture = cost.panel(systems.costs(run))
    return {
        "cost": figures.draw_panels([picture] if picture else [], "cost", out),
        "roofline": figures.draw_panels(roofline.panels(run), "roofline", out),
        "speedups": figures.draw_panels(speedups.panels(run), "speedups", out),
        "growth": figures.draw_panels(growth.panels(run), "growth", out),
        "training": {
            study: drawn
            for study in studies(run)
            if (drawn := _training(run, study, out, loss_titles.get(study, "Training loss")))
        },
    }


def _training(run: Sequence[Record], study: str, out: Path | None, loss_title: str) -> list[Drawn]:
    panels = [*curves.panels(run, study, loss_title), *fronts.panels(run, study)]
    return figures.draw_panels(panels, f"training-{study}", out)


def studies(run: Sequence[Record]) -> list[str]:
    """Names of the studies in a run, in the order of the systems; those of no system last."""
    names = dict.fromkeys(r["study"] for r in run if r["kind"] in ("training", "training_summary", "front"))
    order = [system.study for system in systems.SYSTEMS]
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def view(run: Sequence[Record]) -> dict[str, Any]:
    """Collect what the template shows, without the drawings."""
    end = next((r for r in run if r["kind"] == "run_end"), None)
    head = {**_BACKGROUND, **run[0]}
    for part in ("machine", "versions", "settings"):
        head[part] = {**_BACKGROUND[part], **head[part]}
    costs = systems.costs(run)
    single, first_calls = rows.startup(run)
    dataset = {r["study"]: r["dataset"] for r in run if r["kind"] in ("training_summary", "front")}
    order = studies(run)
    summaries = [{"peak_bytes": None, "iteration": "", **r} for r in run if r["kind"] == "training_summary"]
    return {
        "head_record": head,
        "command": rows.command(head),
        "interrupted": end is None or end.get("interrupted", True),
        "error": None if end is None else end.get("error"),
        "elapsed": None if end is None else end["seconds"],
        "verdict": cost.verdict(costs),
        "costs": costs,
        "unmeasured": systems.unmeasured(run),
        "tiles": rows.tiles(run, costs),
        "missing": rows.missing(run),
        "ops": rows.ops(run),
        "red": [r for r in run if r["kind"] == "gate" and r["gate"] == "red"],
        "losses": speedups.losses(run),
        "statements": {study: statements.of(run, study) for study in order},
        "training_losses": statements.no_gains(run),
        "memory": rows.memory(run),
        "memory_how": next((r.get("how", "") for r in run if r["kind"] == "memory"), ""),
        "startup": single,
        "first_calls": first_calls,
        "ceilings": [{"how": "", **r} for r in run if r["kind"] == "ceiling"],
        "growths": growth.growths(run),
        "summaries": sorted(summaries, key=lambda r: order.index(r["study"])),
        "titles": {system.study: system.title for system in systems.SYSTEMS if system.study},
        "dataset": dataset,
        "left_out": rows.left_out(run),
        "slug": lambda text: re.sub(r"\W+", "-", str(text)).strip("-").lower(),
    }
