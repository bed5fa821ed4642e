"""The outcome of a gate: lines and tables for people, GitHub's summary and annotations, JUnit's XML, JSON Lines."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..formats import write_json_lines, write_xml
from .baseline import Difference, environment_of, worse
from .gate import NOT_MEASURED, Outcome

HEAD = ("", "kernel or call", "target", "figure", "before", "now", "change")
_ORDER = {"worse": 0, "gone": 1, "new": 2, "within tolerance": 3, "better": 4}


def _sorted(differences: Sequence[Difference]) -> list[Difference]:
    return sorted(differences, key=lambda d: (_ORDER[d.verdict], d.tier, d.of, d.target, d.figure))


def _cells(d: Difference) -> tuple[str, ...]:
    before, after = ("–" if x is None else f"{x:,}" for x in (d.before, d.after))
    return d.verdict, d.of, d.target, d.figure, before, after, d.change


def cells(outcome: Outcome) -> list[tuple[str, ...]]:
    """A row of text for each difference, under HEAD; what is worse comes first."""
    return [_cells(d) for d in _sorted(outcome.differences)]


def _change(d: Difference) -> str:
    return f"{d.figure}: {d.before} -> {d.after} ({d.change})"


def verdict(outcome: Outcome) -> str:
    """One line: whether the gate is open."""
    red, measured = len(worse(outcome.differences)), len(outcome.records)
    if red:
        figures = "1 figure is" if red == 1 else f"{red} figures are"
        return f"regression: {figures} worse than in the baseline; {measured} kernels and calls were measured"
    if outcome.exit_code == NOT_MEASURED:
        return f"could not measure: {len(outcome.failures)} of what was asked for; nothing that was measured is worse"
    return f"passed: {measured} kernels and calls, none worse than in the baseline"


def lines(outcome: Outcome, *, is_update: bool = False) -> list[str]:
    """The outcome as plain text: a table of what differs, then what `closing_lines` says."""
    rows = [HEAD, *cells(outcome)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    told = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*([*told, ""] if outcome.differences else []), *closing_lines(outcome, is_update=is_update)]


def closing_lines(outcome: Outcome, *, is_update: bool = False) -> list[str]:
    """The lines below the table: failures, what to do, the verdict."""
    told = [f"not measured: {failure}" for failure in outcome.failures]
    if is_update and not outcome.failures:
        told.append("the baseline is written: look at what differs, and commit it")
    elif any(d.verdict == "new" for d in outcome.differences):
        told.append("what is new is not in the baseline yet: add it with --update")
    return [*told, verdict(outcome)]


def markdown(outcome: Outcome) -> str:
    """The outcome for GitHub's step summary, or a comment."""
    sign = {0: "✅", 1: "❌", 2: "⚠️"}[outcome.exit_code]
    told = [f"### {sign} {verdict(outcome)}", ""]
    if outcome.differences:
        told += [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
        told += [f"| {' | '.join(_cells(d))} |" for d in _sorted(outcome.differences)]
        told.append("")
    told += [f"* not measured: {failure}" for failure in outcome.failures]
    return "\n".join(told) + "\n"


def github_annotations(outcome: Outcome, declaration: Path) -> list[str]:
    """GitHub's workflow commands: an error for what is worse, a warning for what could not be measured."""

    def escaped(text: str) -> str:
        return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")

    red = [f"{d.of}, {d.target}: {_change(d)}" for d in _sorted(worse(outcome.differences))]
    told = [f"::error file={declaration},title=performance::{escaped(text)}" for text in red]
    return told + [f"::warning file={declaration},title=not measured::{escaped(x)}" for x in outcome.failures]


def write_junit(outcome: Outcome, path: Path) -> None:
    """JUnit's XML: a test case for each kernel or call and target.

    It fails where a figure is worse; what could not be measured is an error.
    """
    red = worse(outcome.differences)
    suites = ElementTree.Element("testsuites", name="tropigrad perf gate")
    for tier in sorted({r["tier"] for r in outcome.records}):
        records = [r for r in outcome.records if r["tier"] == tier]
        failed = [r for r in records if _of(red, r)]
        suite = ElementTree.SubElement(
            suites,
            "testsuite",
            name=environment_of(tier, outcome.versions),
            tests=str(len(records)),
            failures=str(len(failed)),
        )
        for record in records:
            case = ElementTree.SubElement(suite, "testcase", classname=record["target"], name=record["of"])
            if found := _of(red, record):
                text = "\n".join(map(_change, found))
                ElementTree.SubElement(case, "failure", message=f"{len(found)} figures are worse").text = text
    if outcome.failures:
        suite = ElementTree.SubElement(
            suites,
            "testsuite",
            name="not measured",
            tests=str(len(outcome.failures)),
            errors=str(len(outcome.failures)),
        )
        for failure in outcome.failures:
            case = ElementTree.SubElement(suite, "testcase", classname="gate", name=failure.split(":")[0])
            ElementTree.SubElement(case, "error", message=failure)
    write_xml(suites, path)


def _of(differences: Sequence[Difference], record: dict[str, Any]) -> list[Difference]:
    place = record["tier"], record["of"], record["target"]
    return [d for d in differences if (d.tier, d.of, d.target) == place]


def write_records(outcome: Outcome, path: Path) -> None:
    """JSON Lines: the versions, what was measured, what differs, what failed, the verdict."""
    head = {"kind": "gate", "time": datetime.now(UTC).isoformat(timespec="seconds"), "git_revision": outcome.revision}
    rows: list[dict[str, Any]] = [{**head, "versions": outcome.versions}]
    rows += [{"kind": "measured", **record} for record in outcome.records]
    rows += [{"kind": "difference", **vars(d)} for d in _sorted(outcome.differences)]
    rows += [{"kind": "not measured", "reason": failure} for failure in outcome.failures]
    rows.append({"kind": "verdict", "exit_code": outcome.exit_code, "text": verdict(outcome)})
    write_json_lines(rows, path)
