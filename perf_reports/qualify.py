"""`tropigrad qualify`: everything that a device nobody has used yet must show, in one command that can be resumed.

    conformance   every promise of every op; on a GPU also the Gluon kernels, again and again, against the portable ones
    ceilings      what the device can do at the most
    tuning        every kernel at its standard shapes
    speed         every op at its standard shapes against the materialised definition, beside the roofs

The conformance cases run in a process of their own: one that hangs, or spoils the device's context, costs itself and
not the rest. What is done is on the disk at once, so `--resume` goes on after a kill; what is cut off is listed.
The folder then holds, most important first, at most eight files:

    1-summary.md         what passed, what failed, what was cut off
    2-qualified.json     the record that turns the Gluon kernels on, where they passed: copy it to
                         kernels/contract/qualified/
    3-<gpu>.json         the tuned configs: copy it to autotune/tables/
    4-results.jsonl      every measurement (records.py)
    5-conformance.jsonl  every case
    roofline.png, .svg   where matplotlib is installed

It needs torch and a source tree: `PYTHONPATH=src python -m tropigrad.perf_reports.qualify --budget 8m --out DIR` where
typer is not installed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import torch

from .. import autotune
from ..autotune.device import default_device
from ..autotune.explanation import pairs
from ..kernels.contract import conformance, qualification
from ..kernels.contract.registry import REGISTRY
from ..kernels.runtime import backend
from . import environment, output, tune
from .commands import BadRequest, Progress, StageProgress
from .durations import parse_duration
from .measuring import benchmark, ceilings, gpu_ceilings
from .records import Results, read

SUMMARY, RECORD, RESULTS, CASES = "1-summary.md", "2-qualified.json", "4-results.jsonl", "5-conformance.jsonl"
PHASES = {"conformance": 0.45, "ceilings": 0.05, "tuning": 0.3, "speed": 0.2}  # shares of the budget
CASE_S = 120.0  # a case that takes longer hangs
_TEXT: dict[str, Any] = {"text": True, "encoding": "utf-8", "errors": "replace"}  # of a process, in any locale
POISONED = 3  # exit status of a process whose device context is spoilt


@dataclass
class QualificationOutcome:
    """The result of a qualification."""

    out: Path
    device: str
    passed: int = 0
    failed: list[str] = field(default_factory=list)
    not_here: Counter = field(default_factory=Counter)  # reason -> cases
    cut_off: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)  # tuning or timing met a result that is not the oracle's
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        return 130 if self.interrupted else 1 if self.failed or self.wrong else 0

    def as_json(self) -> dict[str, Any]:
        files = sorted(path.name for path in self.out.iterdir())
        return {**vars(self), "out": str(self.out), "not_here": dict(self.not_here), "files": files}


def run(
    out: Path,
    *,
    budget_s: float = 480.0,
    resume: bool = False,
    ops: Sequence[str] = (),
    progress: StageProgress = lambda stage, done, total, what: None,
) -> QualificationOutcome:
    """Qualify the GPU that is here, or the CPU where there is none.

    Args:
        out: a folder, made where it is missing.
        budget_s: seconds for everything.
        resume: go on with what an earlier run left in `out`.
        ops: by default all.
        progress: called with (stage, done, total, what is being done); the stages are those of PHASES.

    Raises:
        BadRequest: an unknown op; a variable that means nothing; or `out` holds a run and resume is False, or none and
            it is True.
        OSError: `out` cannot be written.
    """
    unknown = sorted({*ops} - {*REGISTRY})
    if unknown:
        raise BadRequest(f"nothing is named {', '.join(unknown)}; expected some of: {', '.join(REGISTRY)}")
    if wrong := environment.wrong_variables():
        raise BadRequest("; ".join(wrong))
    if (out / RESULTS).exists() != resume:
        what = "holds a run already; --resume goes on with it" if not resume else "holds no run to resume"
        raise BadRequest(f"{out} {what}; or give another folder: --out DIR")
    out.mkdir(parents=True, exist_ok=True)
    start, device = perf_counter(), default_device()
    earlier = read(out / RESULTS) if resume else []
    outcome = QualificationOutcome(out, autotune.fingerprint(device).device)
    specs = [spec for name, spec in REGISTRY.items() if not ops or name in ops]
    with Results(out / RESULTS) as kept:
        kept.add(environment.head({"budget_s": budget_s, "resume": resume, "ops": list(ops)}))
        phases = {
            "conformance": lambda left, tell: _conformance(out, tuple(s.name for s in specs), left, outcome, tell),
            "ceilings": lambda left, tell: _ceilings(device, earlier, left, outcome, tell),
            "tuning": lambda left, tell: _tuning(specs, device, left, outcome, tell),
            "speed": lambda left, tell: _speed(specs, earlier, left, outcome, tell),
        }
        share = 0.0
        try:
            for name, phase in phases.items():
                share += PHASES[name]  # what one phase leaves over, the next may use
                left = budget_s * share - (perf_counter() - start)
                for record in phase(left, lambda done, total, what, name=name: progress(name, done, total, what)):
                    kept.add(record)
                # a kill in a later phase leaves what this one told
                _write(out, specs, device, [*earlier, *kept.records], outcome, perf_counter() - start)
        except KeyboardInterrupt:
            outcome.interrupted = True
        records = [*earlier, *kept.records]
        _draw(records, outcome)
        _write(out, specs, device, records, outcome, perf_counter() - start)
        kept.add({"kind": "run_end", "interrupted": outcome.interrupted, "seconds": perf_counter() - start})
    return outcome


# ------------------------------------------------------------------------------------------------ conformance


def cases(device: torch.device, ops: tuple[str, ...]) -> list[conformance.Case]:
    """The conformance suite and the Gluon kernels' repetitions, promise by promise in turn, and last what is slow."""
    suite = conformance.cases(device, ops)
    if not backend.why_off("gluon", device):
        for spec in REGISTRY.values():
            if "gluon" in spec.tuned and (not ops or spec.name in ops):
                suite += conformance.repetitions(spec, device)
    seen: Counter = Counter()
    turns = {}
    for case in suite:  # the promises in turn, so that a short budget tells something of each
        turns[case.name] = seen[case.op, case.promise, case.slow]
        seen[case.op, case.promise, case.slow] += 1
    return sorted(suite, key=lambda case: (case.slow, turns[case.name]))


def _conformance(
    out: Path, ops: tuple[str, ...], left: float, outcome: QualificationOutcome, progress: Progress
) -> Iterator[dict[str, Any]]:
    """Run the cases in processes of their own, and yield one record of the counts."""
    file, end = out / CASES, perf_counter() + left
    names = [case.name for case in cases(default_device(), ops)]
    if file.exists():  # failed cases are given another chance; what was begun and not ended did hang or crash
        _close_begun(file, "the process died, or was stopped", since=0.0)
    retried = {name for name, answer in _answers(file).items() if answer["result"] == "failed"}
    while perf_counter() < end and (waiting := [n for n in names if n not in _answers(file) or n in retried]):
        size = file.stat().st_size if file.exists() else 0
        error = _run_cases(file, ops, waiting, end, lambda done: progress(done, len(names), "conformance"))
        retried.clear()
        if error and (file.stat().st_size if file.exists() else 0) == size:
            outcome.wrong.append(f"the process of the conformance cases does not start: {error}")
            break
    answers = _answers(file)
    for name in names:
        answer = answers.get(name, {"result": "cut off", "detail": ""})
        if answer["result"] == "passed":
            outcome.passed += 1
        elif answer["result"] == "failed":
            outcome.failed.append(f"{name}: {answer['detail']}")
        elif answer["result"] == "not here":
            outcome.not_here[answer["detail"]] += 1
        else:
            outcome.cut_off.append(f"conformance {name}")
    yield {"kind": "conformance", "passed": outcome.passed, "failed": len(outcome.failed), "of": len(names)}


def _run_cases(file: Path, ops: tuple[str, ...], names: list[str], end: float, progress) -> str:
    """One process until it ends, hangs or the time is up; returns its last words where it died."""
    listed = file.with_suffix(".todo")
    listed.write_text(json.dumps({"ops": ops, "names": names}), encoding="utf-8")
    command = [sys.executable, "-m", __spec__.name if __spec__ else __name__, "--cases", str(listed)]
    size, seen = file.stat().st_size if file.exists() else 0, perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **_TEXT) as process:
        try:
            while process.poll() is None:
                sleep(0.2)
                now = file.stat().st_size if file.exists() else 0
                if now != size:
                    size, seen = now, perf_counter()
                    progress(len(_answers(file)))
                if perf_counter() > end:
                    process.kill()
                elif perf_counter() - seen > CASE_S:
                    process.kill()
                    process.wait()
                    _close_begun(file, f"no end after {CASE_S:g} s")
        finally:
            process.kill()
            errors = (process.stderr.read() if process.stderr else "").strip().splitlines()
            listed.unlink(missing_ok=True)
    if perf_counter() >= end:
        _forget_begun(file)
        return ""
    if not process.returncode:
        return ""
    error = errors[-1] if errors else f"it ended with {process.returncode}"
    _close_begun(file, error)
    return error


def _lines(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    records = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # a killed process's last line
    return records


def _answers(file: Path) -> dict[str, dict[str, Any]]:
    return {line["name"]: line for line in _lines(file) if line["result"] != "begun"}


def _note(file: Path, name: str, result: str, detail: str = "", seconds: float = 0.0) -> None:
    with file.open("a", encoding="utf-8") as kept:
        kept.write(json.dumps({"name": name, "result": result, "detail": detail, "seconds": round(seconds, 3)}) + "\n")


def _begun(file: Path) -> str:
    """The case that was begun last, where it has not ended."""
    lines = _lines(file)
    return lines[-1]["name"] if lines and lines[-1]["result"] == "begun" else ""


def _close_begun(file: Path, reason: str, since: float = 0.0) -> None:
    if name := _begun(file):
        _note(file, name, "failed", reason, since)


def _forget_begun(file: Path) -> None:
    """A case that the budget ended is as if it had not begun."""
    if name := _begun(file):
        kept = [
            line
            for line in file.read_text(encoding="utf-8").splitlines(keepends=True)
            if f'"name": "{name}"' not in line
        ]
        file.write_text("".join(kept), encoding="utf-8")


def run_cases(listed: Path) -> int:
    """In a process of its own: runs the cases named in a file, noting each before and after it."""
    wanted = json.loads(listed.read_text(encoding="utf-8"))
    file, names, parent = listed.with_suffix(".jsonl"), {*wanted["names"]}, os.getppid()
    for case in cases(default_device(), tuple(wanted["ops"])):
        if case.name not in names:
            continue
        if os.getppid() != parent:
            return 1  # killed: nobody is left to read, and a resumed run writes here too
        _note(file, case.name, "begun")
        start, result, detail = perf_counter(), "passed", ""
        try:
            case.run()
        except conformance.NotHere as reason:
            result, detail = "not here", str(reason)
        except Exception as error:  # whatever a kernel did: it is what this is for
            text = str(error).strip().splitlines()
            result, detail = "failed", f"{type(error).__name__}: {text[0] if text else ''}"
        _note(file, case.name, result, detail, perf_counter() - start)
        if result == "failed" and _is_poisoned():
            return POISONED
    return 0


def _is_poisoned() -> bool:
    """True where every later call on the GPU would fail too."""
    if not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


# ------------------------------------------------------------------------------------------------ the other phases


def _ceilings(
    device: torch.device, earlier, left: float, outcome: QualificationOutcome, progress: Progress | None
) -> Iterator[Mapping[str, Any]]:
    if any(record["kind"] == "ceiling" for record in earlier):
        return
    if left <= 0:
        outcome.cut_off.append("ceilings")
        return
    measure = gpu_ceilings.measure(device, progress=progress)
    if device.type != "cuda":
        measure = ceilings.measure(quick=True, progress=progress)
    measured = []
    for record in measure:
        yield record
        measured.append(record)
    tune.keep_ceilings(measured, device, "tropigrad qualify")


def _tuning(
    specs, device: torch.device, left: float, outcome: QualificationOutcome, progress: Progress
) -> Iterator[dict[str, Any]]:
    end = perf_counter() + left
    paths = ["auto"]
    if not backend.why_off("gluon", device) and not any("-gluon-" in failed for failed in outcome.failed):
        paths.append("gluon")  # off until its record is committed: its configs are to be ready then
    work = [(spec, path) for path in paths for spec in specs if path == "auto" or "gluon" in spec.tuned]
    for number, (spec, path) in enumerate(work):
        share = (end - perf_counter()) / (len(work) - number)
        what = f"tuning of {spec.name}" + ("" if path == "auto" else f" ({path})")
        if share <= 0:
            outcome.cut_off.append(what)
            continue
        try:
            with backend.forcing(path):
                for finding in autotune.tune(spec.name, device=device, budget_s=share, progress=progress):
                    if finding.how == "cut off":
                        outcome.cut_off.append(f"{what}: {finding.kernel} at {dict(finding.problem)}")
                    yield _without_rivals(finding)
        except autotune.WrongDefault as error:
            outcome.wrong.append(f"{what}: {error}")
        except RuntimeError as error:  # out of memory, a launch that fails: the other ops are still worth knowing
            outcome.wrong.append(f"{what}: {type(error).__name__}: {str(error).splitlines()[0]}")


def _without_rivals(finding: autotune.Finding) -> dict[str, Any]:
    record = finding.record()
    return record | {"evidence": {k: v for k, v in record["evidence"].items() if k not in ("rivals", "space")}}


def _speed(
    specs, earlier, left: float, outcome: QualificationOutcome, progress: Progress
) -> Iterator[Mapping[str, Any]]:
    timed = {(r["op"], r["workload"], r["shape_label"]) for r in earlier if r["kind"] == "timing"}
    chosen = [c for c in benchmark.cells(specs) if (c.spec.name, c.workload.name, c.label) not in timed]
    end = perf_counter() + left
    for number, cell in enumerate(chosen):
        if perf_counter() > end:
            outcome.cut_off += [f"speed of {c.spec.name}, {c.workload.name}, {c.label}" for c in chosen[number:]]
            return
        progress(number, len(chosen), f"{cell.spec.name} {cell.workload.name} {cell.shape_name}")
        share = (end - perf_counter()) / (len(chosen) - number)
        for record in benchmark.measure([cell], budget_s=share, quick=True):
            if record["kind"] == "gate" and record["gate"] == "red" and record["role"] == "ours":
                outcome.wrong.append(f"{cell.spec.name}, {cell.workload.name}, {cell.label}: {record['detail']}")
            yield record


# ------------------------------------------------------------------------------------------------ the files


def _write(out: Path, specs, device: torch.device, records, outcome: QualificationOutcome, seconds: float) -> None:
    notes = []
    gluon = [kernel for spec in specs for kernel in spec.tuned.get("gluon", ())]
    answers = {name: answer["result"] for name, answer in _answers(out / CASES).items() if "gluon" in name}
    proven = [name for name, result in answers.items() if result == "passed"]
    cut_off = [what for what in outcome.cut_off if what.startswith("conformance")]
    missing = [what for what in (*outcome.failed, *outcome.wrong, *cut_off) if "gluon" in what]
    if backend.why_off("gluon", device):
        notes.append(f"No Gluon kernel can run: {backend.why_off('gluon', device)}.")
    elif not gluon or missing or not proven:
        notes.append(f"The Gluon kernels stay off: {missing[0] if missing else 'no case of theirs was run'}.")
    else:
        record = qualification.record(gluon, device, len(proven))
        (out / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        notes.append(
            f"The Gluon kernels passed {len(proven)} cases: {RECORD}, in kernels/contract/qualified/, turns them on."
        )
    here = autotune.fingerprint(device)
    entries = autotune.store().whole(here)
    if entries:
        table = autotune.export(here, entries, out)
        table.replace(out / f"3-{table.name}")
        notes.append(f"{len(entries)} tuned configs: 3-{table.name}, as autotune/tables/{table.name}, ships them.")
    (out / SUMMARY).write_text("\n".join(_summary(records, outcome, notes, seconds)) + "\n", encoding="utf-8")


def _draw(records, outcome: QualificationOutcome) -> None:
    try:
        from .page import figures, roofline  # need matplotlib
    except ModuleNotFoundError as error:
        outcome.cut_off.append(f"the roofline's picture: {error.name} is not installed")
    else:
        figures.draw_panels(roofline.panels(records), "roofline", outcome.out)


def _summary(
    records: Sequence[Mapping[str, Any]], outcome: QualificationOutcome, notes: list[str], seconds: float
) -> Iterator[str]:
    run = next(record for record in records if record["kind"] == "run")
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items() if version)
    yield f"# {outcome.device}"
    yield ""
    yield f"{versions}; revision {run['git_revision']}; {seconds:.0f} s" + (", interrupted" * outcome.interrupted)
    yield ""
    yield from (f"* {line}" for line in notes)
    yield f"* Conformance: {outcome.passed} passed, {len(outcome.failed)} failed, {outcome.not_here.total()} not here."
    for title, lines in (
        ("Failed", outcome.failed),
        ("Wrong results", outcome.wrong),
        ("Cut off by the budget", _grouped(outcome.cut_off)),
        ("Not here", [f"{count} cases: {reason}" for reason, count in outcome.not_here.items()]),
    ):
        if lines:
            yield from ("", f"## {title}", *(f"* {line}" for line in lines))
    yield from ("", "## Ceilings", "", "| | threads | |", "|---|---|---|")
    for r in (r for r in records if r["kind"] == "ceiling"):
        yield f"| {r['name']} | {r['threads'] or '–'} | {r['value']:.4g} {r['unit']} |"
    yield from ("", "## Tuned", "", "| kernel | problem | config | over the default | the default over itself |")
    yield "|---|---|---|---|---|"
    for r in (r for r in records if r["kind"] == "tuning"):
        gain, noise = (_interval(r["evidence"].get(name)) for name in ("gain", "noise"))
        yield f"| {r['kernel']} | {pairs(r['problem'])} | {pairs(r['config'])} | {gain} | {noise} |"
    yield from (
        "",
        "## Speed",
        "",
        "| op | workload | shape | contender | ms | over ours |",
        "|---|---|---|---|---|---|",
    )
    for r in (r for r in records if r["kind"] == "timing"):
        ratio = f"{r['ratio']['value']:.3g}" if r["ratio"] else "–"
        yield (
            f"| {r['op']} | {r['workload']} | {r['shape_label']} | {r['contender']} | "
            f"{r['median']['value'] * 1e3:.3g} | {ratio} |"
        )


def _grouped(lines: list[str], limit: int = 40) -> list[str]:
    """All of them, the conformance cases by op and promise where there are many."""
    if len(lines) <= limit:
        return lines
    counts = Counter("-".join(line.split("-")[:2]) if line.startswith("conformance ") else line for line in lines)
    return [f"{name} ({count} cases)" if count > 1 else name for name, count in counts.items()]


def _interval(interval: Mapping[str, float] | None) -> str:
    return f"{interval['value']:.3g} [{interval['low']:.3g}, {interval['high']:.3g}]" if interval else "–"


def lines(outcome: QualificationOutcome) -> list[str]:
    """The last words, for people."""
    words = f"{outcome.passed} passed, {len(outcome.failed)} failed, {outcome.not_here.total()} not here"
    return [
        f"device       {outcome.device}",
        f"conformance  {words}",
        *(f"FAILED       {line}" for line in (*outcome.failed[:5], *outcome.wrong[:5])),
        f"cut off      {len(outcome.cut_off)}; --resume goes on" if outcome.cut_off else "cut off      nothing",
        f"read first   {outcome.out / SUMMARY}",
    ]


def main() -> int:
    """The command where typer is not installed; and the process that runs the cases."""
    parser = argparse.ArgumentParser(prog="python -m tropigrad.perf_reports.qualify", description=run.__doc__)
    parser.add_argument("--budget", default="8m", help="90s, 8m, 1h")
    parser.add_argument("--out", type=Path, default=Path("qualification"))
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--cases", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.cases:
        return run_cases(asked.cases)
    try:
        outcome = run(
            asked.out,
            budget_s=parse_duration(asked.budget),
            resume=asked.resume,
            progress=lambda stage, done, total, what: print(f"{stage} {done}/{total} {what}", file=sys.stderr),
        )
    except (ValueError, OSError) as error:
        print(f"tropigrad: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines(outcome)))
    return outcome.exit_code


if __name__ == "__main__":
    output.take_any_encoding()
    status = main()
    sys.stdout.flush()
    os._exit(status)  # a spoilt device context can hang at an ordinary exit
