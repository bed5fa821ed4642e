"""A run for other tools: its timings as Parquet, its comparisons as Markdown and as JUnit's XML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ...whole_files import replace
from ..formats import write_frame, write_xml
from ..records import fails
from . import numbers, rows, speedups

Record = Mapping[str, Any]

_HEAD = ("op", "workload", "shape", "against", "speedup", "95 %", "results")


def write_timings(run: Sequence[Record], path: Path) -> None:
    """Write a run's timings as Parquet: the columns of results.csv, and run, time, revision, dtype, device, threads."""
    head = {"run": run[0]["run"], "revision": run[0].get("git_revision")}
    write_frame([{**head, **row} for row in rows.timings(run)], path)


def markdown(run: Sequence[Record]) -> str:
    """The comparisons as a table for a pull request or a step summary, those without a gain first."""
    timed = [r for r in run if r["kind"] == "timing" and r["ratio"] is not None]
    red = [r for r in run if r["kind"] == "gate" and r["gate"] == "red"]
    lost = len(speedups.losses(run))
    told = [f"### tropigrad report: {len(timed)} comparisons, {lost} without a sure gain, {len(red)} differ", ""]
    told += [f"| {' | '.join(_HEAD)} |", "|" + "---|" * len(_HEAD)]
    for r in red:
        told.append(f"| {' | '.join(_cell(r))} | – | – | ✗ {r['detail']} |")
    for r in sorted(timed, key=lambda r: r["ratio"]["value"]):
        ratio = r["ratio"]
        words = (*_cell(r), numbers.ratio(ratio["value"]), numbers.ratio_interval(ratio), "✓ agrees")
        told.append(f"| {' | '.join(words)} |")
    return "\n".join(told) + "\n"


def _cell(r: Record) -> tuple[str, str, str, str]:
    return r["op"], r["workload"], r["shape_label"], r["contender"]


def write_markdown(run: Sequence[Record], path: Path) -> None:
    """Write what `markdown` gives."""
    replace(path, lambda fresh: fresh.write_text(markdown(run), encoding="utf-8"))


def write_junit(run: Sequence[Record], path: Path) -> None:
    """Write JUnit's XML: a test case for each comparison of results.

    It fails where ours are not the reference's, and is skipped where a rival's are not ours. No speed fails it.
    """
    gates = [r for r in run if r["kind"] == "gate"]
    root = ElementTree.Element("testsuites", name="tropigrad report")
    for op in dict.fromkeys(r["op"] for r in gates):
        own = [r for r in gates if r["op"] == op]
        failed = [r for r in own if fails(r)]
        suite = ElementTree.SubElement(root, "testsuite", name=op, tests=str(len(own)), failures=str(len(failed)))
        for r in own:
            name = f"{r['shape_label']}: {r['contender']}"
            case = ElementTree.SubElement(suite, "testcase", classname=f"{op}, {r['workload']}", name=name)
            if r["gate"] == "red":
                ElementTree.SubElement(case, "failure" if fails(r) else "skipped", message=r["detail"])
    write_xml(root, path)
