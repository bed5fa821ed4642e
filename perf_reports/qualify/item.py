"""An item of a qualification, and the file that tells how each began and ended."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Item:
    """A piece of work that can be lost alone; it travels between processes as JSON.

    Attributes:
        stage: one of STAGES.
        kind: "case" | "cases" | "ceilings" | "tuning" | "speed".
        name: unique, and for people.
        group: the op. Once one of its items has ended a process, the others of the stage wait until the rest is done.
        about: what its kind needs to find it again.
        weight: its share of the stage's time, beside the others'.
        limit_s: after which it hangs, where it is not the run's.
    """

    stage: str
    kind: str
    name: str
    group: str
    about: tuple[str, ...] = ()
    weight: float = 1.0
    limit_s: float = 0.0


@dataclass(frozen=True)
class Answer:
    """How an item ended: "passed", "failed", "not here", "lost" with its process, or "unfinished" in its time."""

    result: str
    detail: str = ""
    seconds: float = 0.0

    @property
    def stands(self) -> bool:
        """Whether a resumed run takes it as it is."""
        return self.result in ("passed", "not here")


class Journal:
    """The answers so far, each on the disk as it comes; lines that a kill cut off are dropped."""

    def __init__(self, path: Path) -> None:
        self.answers: dict[str, Answer] = {}
        self.begun: set[str] = set()  # and not ended: a kill, or the end of the time, came first
        for line in _lines(path):
            self._take(line)
        cut_off = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        self._file = path.open("a", encoding="utf-8")
        if cut_off:
            self._file.write("\n")

    def begin(self, item: Item) -> None:
        self._add({"name": item.name, "result": "begun"})

    def end(self, item: Item, answer: Answer) -> None:
        self._add({"name": item.name, **vars(answer), "seconds": round(answer.seconds, 3)})

    def close(self) -> None:
        self._file.close()

    def _add(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()
        self._take(line)

    def _take(self, line: dict[str, Any]) -> None:
        if line["result"] == "begun":
            self.begun.add(line["name"])
            return
        self.begun.discard(line["name"])
        self.answers[line["name"]] = Answer(line["result"], line.get("detail", ""), line.get("seconds", 0.0))


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    if not path.exists():
        return
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue  # a killed process's last line
        if isinstance(line, dict) and {"name", "result"} <= line.keys():
            yield line
