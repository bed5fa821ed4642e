"""`tropigrad qualify --rehearse`: a bad day on purpose, on a CPU, before a GPU's time is spent.

The stages, the processes, the files and the resumption are the real ones. Few items are, on small inputs, in C++ and
through Triton's interpreter; among them conformance, tuning and speed each meet one that is wrong, one that hangs, one
that kills its process and one that spoils its device's context. Ctrl-C comes once, and the run is resumed. The
rehearsal passed where each planted failure is named for what it is, and everything else was done.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..commands import BadRequest, StageProgress
from . import stages
from .item import Answer, Journal
from .outcome import ITEMS, MARK, RESULTS, SUMMARY, QualificationOutcome

BUDGET_S = 600.0
SHARE_S = 0.8  # of tuning an op, or of timing a call
FILES = 8


@dataclass
class Rehearsal:
    """The result of a rehearsal: what was planted, how it was told, and what went otherwise than it should."""

    outcome: QualificationOutcome
    planted: dict[str, str] = field(default_factory=dict)  # name -> how it ended
    others: int = 0  # items that were done
    complaints: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return 1 if self.complaints else 0

    def lines(self) -> list[str]:
        """The last words, for people."""
        verdict = f"FAILED: {len(self.complaints)} complaints" if self.complaints else "passed"
        return [
            *(f"{name}: {how}" for name, how in self.planted.items()),
            f"{self.others} other items were done",
            *(f"COMPLAINT    {line}" for line in self.complaints),
            f"rehearsal    {verdict}",
            f"read first   {self.outcome.out / SUMMARY}",
        ]

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "outcome": self.outcome.as_json(), "passed": not self.complaints}


def rehearse(out: Path, *, progress: StageProgress = lambda stage, done, total, what: None) -> Rehearsal:
    """Carry a qualification with planted failures out, and judge it.

    Args:
        out: a folder, made where it is missing; a rehearsal that it holds is replaced.
        progress: as in `run`.

    Raises:
        BadRequest: `out` holds something else.
        OSError: `out` cannot be written.
    """
    if (out / MARK).exists():
        for name in (RESULTS, ITEMS):
            (out / name).unlink(missing_ok=True)
    else:
        if out.exists() and any(out.iterdir()):
            raise BadRequest(f"{out} holds something else than a rehearsal; give another folder: --out DIR")
        out.mkdir(parents=True, exist_ok=True)
        (out / MARK).write_text("What lies here was made by `tropigrad qualify --rehearse`, and tells of no device.\n")
    interrupts = iter([True])

    def interrupted_once(stage: str, done: int, total: int, what: str) -> None:
        progress(stage, done, total, what)
        if done == 1 and next(interrupts, False):
            raise KeyboardInterrupt

    with tempfile.TemporaryDirectory(prefix="tropigrad-rehearsal-") as store:
        options = {"rehearses": True, "store": store, "ops": []}
        settings = {"budget_s": BUDGET_S, "share_at_most_s": SHARE_S}
        first = stages.carry_out(out, options, _variables(), resume=False, progress=interrupted_once, **settings)
        outcome = stages.carry_out(out, options, _variables(), resume=True, progress=progress, **settings)
    rehearsal = judge(outcome)
    if not first.interrupted:
        rehearsal.complaints.append("Ctrl-C after the first item did not end the first run")
    return rehearsal


def judge(outcome: QualificationOutcome) -> Rehearsal:
    """Hold what a rehearsal left in its folder against what was planted."""
    from .planted import FAULTS, STAGES, name_of

    rehearsal, out = Rehearsal(outcome), outcome.out
    journal = Journal(out / ITEMS)
    journal.close()
    answers = dict(journal.answers)
    summary = (out / SUMMARY).read_text(encoding="utf-8")
    for stage in STAGES:
        for fault, (result, words) in FAULTS.items():
            name = name_of(stage, fault)
            answer = answers.pop(name, Answer("no end", "nothing was noted"))
            rehearsal.planted[name] = f"{answer.result}: {answer.detail}"
            if answer.result != result or words not in answer.detail:
                rehearsal.complaints.append(
                    f"{name}: it came to {answer.result!r} ({answer.detail}); expected {result!r} with {words!r}"
                )
            if name not in summary:
                rehearsal.complaints.append(f"{name}: {SUMMARY} does not name it")
    rehearsal.others = len(answers)
    rehearsal.complaints += _of_the_others(outcome, answers)
    rehearsal.complaints += _of_the_files(out)
    return rehearsal


def _variables() -> Mapping[str, str]:
    """The variables of a process without a GPU, with Triton's interpreter, and with nobody's preferences."""
    preferences = ("TROPIGRAD_AUTOTUNE", "TROPIGRAD_BACKEND")
    own = {name: value for name, value in os.environ.items() if name not in preferences}
    return {**own, "CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}


def _of_the_others(outcome: QualificationOutcome, answers: Mapping[str, Answer]) -> Iterator[str]:
    for name, answer in answers.items():
        if not answer.stands and answer.result != "unfinished":
            yield f"{name}: it {answer.result}, though nothing was planted there: {answer.detail}"
    for line in outcome.cut_off:
        if line.split(":")[0].removeprefix("conformance ") not in answers and "picture" not in line:
            yield f"{line}: it was not done"


def _of_the_files(out: Path) -> Iterator[str]:
    files = sorted(path.name for path in out.iterdir() if path.name != MARK)
    if len(files) > FILES or any(name.startswith(".") or name.endswith(".tmp") for name in files):
        yield f"{out} holds {', '.join(files)}; expected {FILES} files at the most, and none half-written"
    for name in (RESULTS, ITEMS):
        for number, line in enumerate((out / name).read_text(encoding="utf-8").splitlines(), start=1):
            try:
                json.loads(line)
            except json.JSONDecodeError:
                yield f"{name}: line {number} is no JSON"
