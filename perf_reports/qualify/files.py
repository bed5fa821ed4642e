"""The files of a qualification for people and for the repository: the summary, the record, the table, the picture.

Each is replaced as a whole, after every step: whatever ends the run, they tell how far it came.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ... import autotune, whole_files
from ...autotune.explanation import pairs
from .item import Answer, Item
from .outcome import RECORD, SUMMARY, QualificationOutcome

Records = Sequence[Mapping[str, Any]]


def write(
    facts: Mapping[str, Any],
    items: Sequence[Item],
    answers: Mapping[str, Answer],
    records: Records,
    outcome: QualificationOutcome,
    seconds: float,
) -> None:
    """Write the record, the table and the summary.

    facts: of the device, as the worker told them; empty where none did.
    """
    notes = [*_record(facts, items, answers, outcome.out), *_table(facts, outcome.out)] if facts else []
    _replace(outcome.out / SUMMARY, "\n".join(_summary(records, outcome, notes, seconds)) + "\n")


def _record(facts: Mapping[str, Any], items: Sequence[Item], answers: Mapping[str, Answer], out: Path) -> Iterator[str]:
    """Write the record of the Gluon kernels where all their cases passed; says in any case how things stand."""
    if facts["gluon_off"]:
        yield f"No Gluon kernel can run: {facts['gluon_off']}."
        return
    cases = [item for item in items if item.kind == "case" and "gluon" in item.name]
    passed = [item for item in cases if item.name in answers and answers[item.name].result == "passed"]
    missing = [item for item in cases if item.name not in answers or not answers[item.name].stands]
    if missing or not passed or not facts["qualification"]:
        (out / RECORD).unlink(missing_ok=True)
        if not missing:
            yield "The Gluon kernels stay off: no case of theirs was run."
            return
        answer = answers.get(missing[0].name, Answer("not run"))
        yield (
            f"The Gluon kernels stay off: {len(passed)} of {len(cases)} cases passed, and {missing[0].name} "
            f"{answer.result}{f': {answer.detail}' if answer.detail else ''}."
        )
        return
    record = {**facts["qualification"], "cases": len(passed)}
    _replace(out / RECORD, json.dumps(record, indent=1) + "\n")
    yield f"The Gluon kernels passed {len(passed)} cases: {RECORD}, in kernels/contract/qualified/, turns them on."


def _table(facts: Mapping[str, Any], out: Path) -> Iterator[str]:
    """Write the table of the configs that are tuned for this device."""
    here = autotune.Fingerprint(**facts["fingerprint"])
    store = autotune.Store(Path(facts["store"])) if facts.get("store") else autotune.store()
    entries = store.whole(here)
    if entries:
        table = autotune.export(here, entries, out)
        table.replace(out / f"3-{table.name}")
        yield f"{len(entries)} tuned configs: 3-{table.name}, as autotune/tables/{table.name}, ships them."


def draw(records: Records, outcome: QualificationOutcome) -> None:
    """Draw the roofline; where that fails, the outcome says why, and nothing else is lost."""
    try:
        from ..page import figures, roofline  # need matplotlib

        figures.draw_panels(roofline.panels(records), "roofline", outcome.out)
    except ModuleNotFoundError as error:
        outcome.cut_off.append(f"the roofline's picture: {error.name} is not installed")
    except Exception as error:  # a picture is worth less than what it is drawn from
        outcome.cut_off.append(f"the roofline's picture: {type(error).__name__}: {error}")


def _replace(path: Path, text: str) -> None:
    def put(fresh: Path) -> None:
        fresh.write_text(text, encoding="utf-8")

    whole_files.replace(path, put)


# ------------------------------------------------------------------------------------------------ the summary


def _summary(records: Records, outcome: QualificationOutcome, notes: list[str], seconds: float) -> Iterator[str]:
    yield f"# {outcome.device}"
    yield ""
    run = next((record for record in records if record["kind"] == "run"), None)
    if run:
        versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items() if version)
        yield f"{versions}; revision {run['git_revision']}; {seconds:.0f} s" + (", interrupted" * outcome.interrupted)
        yield ""
    yield from (f"* {line}" for line in notes)
    yield f"* Conformance: {outcome.passed} passed, {len(outcome.failed)} failed, {outcome.not_here.total()} not here."
    yield f"* Of ceilings, tuning and speed {outcome.measured} items are done."
    yield from _lists(outcome)
    yield from ("", "## Ceilings", "", "| | threads | |", "|---|---|---|")
    for r in _last(records, "ceiling", lambda r: (r["name"], r["threads"])):
        yield f"| {r['name']} | {r['threads'] or '–'} | {r['value']:.4g} {r['unit']} |"
    yield from ("", "## Tuned", "", "| kernel | problem | config | over the default | the default over itself |")
    yield "|---|---|---|---|---|"
    for r in _last(records, "tuning", lambda r: (r["kernel"], pairs(r["problem"]))):
        gain, noise = (_interval(r["evidence"].get(name)) for name in ("gain", "noise"))
        yield f"| {r['kernel']} | {pairs(r['problem'])} | {pairs(r['config'])} | {gain} | {noise} |"
    yield from (
        "",
        "## Speed",
        "",
        "| op | workload | shape | contender | ms | over ours |",
        "|---|---|---|---|---|---|",
    )
    for r in _last(records, "timing", lambda r: (r["op"], r["workload"], r["shape_label"], r["contender"])):
        ratio = f"{r['ratio']['value']:.3g}" if r["ratio"] else "–"
        yield (
            f"| {r['op']} | {r['workload']} | {r['shape_label']} | {r['contender']} | "
            f"{r['median']['value'] * 1e3:.3g} | {ratio} |"
        )


def _lists(outcome: QualificationOutcome) -> Iterator[str]:
    for title, lines in (
        ("Failed", outcome.failed),
        ("Wrong results", outcome.wrong),
        ("Lost with their processes", outcome.lost),
        ("Cut off, for --resume", _grouped(outcome.cut_off)),
        ("Not here", [f"{count} cases: {reason}" for reason, count in outcome.not_here.items()]),
    ):
        if lines:
            yield from ("", f"## {title}", *(f"* {line}" for line in lines))


def _last(records: Records, kind: str, subject: Callable[[Mapping[str, Any]], Any]) -> list[Mapping[str, Any]]:
    """The records of a kind; of those on one subject, as a resumed run makes them, the last."""
    return list({subject(r): r for r in records if r["kind"] == kind}.values())


def _grouped(lines: list[str], limit: int = 40) -> list[str]:
    """All of them, the conformance cases by op and promise where there are many."""
    if len(lines) <= limit:
        return lines
    counts = Counter("-".join(line.split("-")[:2]) if line.startswith("conformance ") else line for line in lines)
    return [f"{name} ({count} cases)" if count > 1 else name for name, count in counts.items()]


def _interval(interval: Mapping[str, float] | None) -> str:
    return f"{interval['value']:.3g} [{interval['low']:.3g}, {interval['high']:.3g}]" if interval else "–"
