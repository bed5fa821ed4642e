"""The outcome of a qualification: what passed, failed, was lost or cut off; and the last words of the command."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .item import Answer, Item

SUMMARY, RECORD, RESULTS, ITEMS = "1-summary.md", "2-qualified.json", "4-results.jsonl", "5-items.jsonl"
MARK = "0-rehearsal.md"  # lies in the folder of a rehearsal, which tells of no device


@dataclass
class QualificationOutcome:
    """The result of a qualification."""

    out: Path
    device: str
    passed: int = 0  # conformance cases
    failed: list[str] = field(default_factory=list)  # likewise
    not_here: Counter = field(default_factory=Counter)  # reason -> cases
    cut_off: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)  # tuning or timing failed, or met a result that is not the oracle's
    lost: list[str] = field(default_factory=list)  # items that ended their process, or spoilt its device's context
    measured: int = 0  # items of the other stages that are done
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        return 130 if self.interrupted else 1 if self.failed or self.wrong or self.lost else 0

    def count(self, items: Sequence[Item], answers: Mapping[str, Answer]) -> None:
        """Sort the items by how they ended, anew; those without an answer are cut off."""
        self.passed = self.measured = 0
        self.not_here = Counter()
        self.failed, self.cut_off, self.wrong, self.lost = [], [], [], []
        for item in items:
            answer, is_case = answers.get(item.name, Answer("cut off")), item.stage in ("conformance", "the rest")
            told = f"{item.name}: {answer.detail}"
            if answer.result == "passed":
                self.passed += is_case
                self.measured += not is_case
            elif answer.result == "not here":
                self.not_here[answer.detail] += 1
            elif answer.result == "failed":
                (self.failed if is_case else self.wrong).append(told)
            elif answer.result == "lost":
                self.lost.append(told)
            else:
                name = f"conformance {item.name}" if is_case else item.name
                self.cut_off.append(f"{name}: {answer.detail}" if answer.detail else name)

    def as_json(self) -> dict[str, Any]:
        files = sorted(path.name for path in self.out.iterdir())
        return {**vars(self), "out": str(self.out), "not_here": dict(self.not_here), "files": files}


def lines(outcome: QualificationOutcome) -> list[str]:
    """The last words, for people."""
    words = f"{outcome.passed} passed, {len(outcome.failed)} failed, {outcome.not_here.total()} not here"
    on = f"the same command with --resume --out {outcome.out} goes on"
    return [
        f"device       {outcome.device}",
        f"conformance  {words}",
        f"measured     {outcome.measured} of ceilings, tuning and speed",
        *(f"FAILED       {line}" for line in (*outcome.failed[:5], *outcome.wrong[:5])),
        *(f"LOST         {line}" for line in outcome.lost[:5]),
        f"cut off      {len(outcome.cut_off)}; {on}" if outcome.cut_off else "cut off      nothing",
        *([f"interrupted  what is done is kept; {on}"] if outcome.interrupted else []),
        f"read first   {outcome.out / SUMMARY}",
    ]
