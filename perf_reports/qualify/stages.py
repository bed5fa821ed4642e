"""The order of a qualification: stage by stage, item by item, in a process that is replaced when it is lost."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from json import dumps
from pathlib import Path
from time import perf_counter
from typing import Any

from ...kernels.contract.registry import REGISTRY
from .. import environment
from ..commands import BadRequest, StageProgress
from ..records import Results, read
from . import files
from .item import Answer, Item, Journal
from .outcome import ITEMS, MARK, RESULTS, QualificationOutcome
from .process import Lost, Process

# shares of the budget; what one stage leaves over, the next may use
STAGES = {"conformance": 0.3, "ceilings": 0.05, "tropical_matmul": 0.2, "tuning": 0.2, "speed": 0.17, "the rest": 0.08}
LIMIT_S = 60.0  # an item that takes longer, beyond twice its share where it has one, hangs
START_S = 180.0  # likewise of a process that starts: torch's import, a compiler's run, a driver that wakes up
WORKER = [sys.executable, "-m", f"{__package__}.worker"]
RESTART_S = 15.0  # which even the end of the budget grants
STARTS = 3  # that fail in a row, after which nothing more is tried
LOST_OF_A_GROUP = 3  # items of a stage, after which the others of the group wait for --resume
LOST_GROUPS = 6  # with no answer in between, after which nothing more is tried
WRITE_S = 10.0  # between two writings of the summary while cases run


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
        resume: go on with what an earlier run left in `out`: what failed or was lost there is tried again.
        ops: by default all.
        progress: called with (stage, done, total, what is being done); the stages are those of STAGES.

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
    if (out / MARK).exists():
        raise BadRequest(f"{out} holds a rehearsal; give another folder: --out DIR")
    options = {"ops": list(ops), "rehearses": False}
    return carry_out(out, options, os.environ, budget_s=budget_s, resume=resume, progress=progress)


def carry_out(
    out: Path,
    options: Mapping[str, Any],
    variables: Mapping[str, str],
    *,
    budget_s: float,
    resume: bool,
    progress: StageProgress,
    share_at_most_s: float = float("inf"),
) -> QualificationOutcome:
    """The same, by a worker with these options and variables.

    Args:
        share_at_most_s: of an item's time, where it has a share.
    """
    if (out / RESULTS).exists() != resume:
        what = "holds a run already; --resume goes on with it" if not resume else "holds no run to resume"
        raise BadRequest(f"{out} {what}; or give another folder: --out DIR")
    start = perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    earlier = read(out / RESULTS) if resume else []
    outcome = QualificationOutcome(out, "unknown: no process has told of it")
    with Results(out / RESULTS) as kept, _terminated_as_by_ctrl_c():
        journal = Journal(out / ITEMS)
        crew = _Crew(options, variables)
        made = _Run(start, budget_s, share_at_most_s, earlier, kept, journal, crew, outcome, progress)
        try:
            made.begin(budget_s, resume)
            # a slow start, in which a compiler may run, is charged to all stages alike
            ready, share = perf_counter(), 0.0
            for stage, of in STAGES.items():
                share += of
                made.stage(stage, ready + share * (made.end - ready))
        except KeyboardInterrupt:
            outcome.interrupted = True
        except GivenUp as reason:
            made.failure = str(reason)
        finally:
            crew.close()
            journal.close()
        made.write(is_last=True)
        kept.add({"kind": "run_end", "interrupted": outcome.interrupted, "seconds": perf_counter() - start})
    return outcome


class _Crew:
    """One process at a time, started when it is needed."""

    def __init__(self, options: Mapping[str, Any], variables: Mapping[str, str]) -> None:
        self._command = [*WORKER, dumps(options)]
        self._variables = variables
        self._process: Process | None = None

    def ask(self, request: Mapping[str, Any], limit_s: float) -> Iterator[dict[str, Any]]:
        """Does what Process.ask does; an answer that tells of a lost process raises Lost too."""
        if self._process is None:
            self._process = Process(self._command, self._variables)
        try:
            for message in self._process.ask(request, limit_s):
                answer = message.get("end")
                if isinstance(answer, dict) and answer["result"] == "lost":
                    raise Lost(answer["detail"])
                yield message
        except Lost:
            self.close()
            raise

    @property
    def is_there(self) -> bool:
        return self._process is not None

    def close(self) -> None:
        if self._process:
            self._process.close()
        self._process = None


class GivenUp(Exception):
    """No process survives here; the message says how it showed."""


@dataclass
class _Run:
    start: float
    budget_s: float
    share_at_most_s: float
    earlier: Sequence[Mapping[str, Any]]
    kept: Results
    journal: Journal
    crew: _Crew
    outcome: QualificationOutcome
    progress: StageProgress
    facts: Mapping[str, Any] = field(default_factory=dict)
    items: list[Item] = field(default_factory=list)
    failure: str = ""  # why nothing more was tried
    lost_groups: set[str] = field(default_factory=set)  # since the last answer
    written: float = 0.0

    @property
    def end(self) -> float:
        return self.start + self.budget_s

    def begin(self, budget_s: float, resume: bool) -> None:
        """Learn what the device is, and what there is to do."""
        self._greet()
        self.outcome.device = self.facts["fingerprint"]["device"]
        settings = {"budget_s": budget_s, "resume": resume}
        self.kept.add({**self.facts["head"], "settings": settings})
        try:
            for message in self.crew.ask({"plan": True}, START_S):
                self.items = [Item(**(of | {"about": tuple(of["about"])})) for of in message["plan"]]
        except Lost as reason:
            raise GivenUp(f"the process that lists what there is to do was lost: {reason}") from None
        self.write()

    def _greet(self) -> None:
        """Have a process that is ready: its start is charged to no item."""
        if self.crew.is_there:
            return
        last = ""
        for _ in range(STARTS):
            left = max(RESTART_S, self.end - perf_counter()) if self.facts else START_S
            try:
                for message in self.crew.ask({"start": not self.facts}, min(START_S, left)):
                    self.facts = message.get("facts", self.facts)
                return
            except Lost as reason:
                last = str(reason)
        raise GivenUp(f"the process that does the work does not start: {last}")

    def stage(self, name: str, end: float) -> None:
        """Carry out a stage's items until its time is up; those that ended a process before come last."""
        of_stage = [item for item in self.items if item.stage == name]
        waiting = [item for item in of_stage if not self._stands(item)]
        queue = deque(sorted(waiting, key=self._ended_a_process))
        weight = sum(item.weight for item in queue)
        lost: Counter[str] = Counter()  # items by group
        passed_over: set[str] = set()  # groups, until the others had their turn
        postponed: deque[Item] = deque()
        done = len(of_stage) - len(waiting)
        while queue or postponed:
            left = min(end, self.end) - perf_counter()
            if left <= 0:
                return
            if not queue:
                queue, postponed, passed_over = postponed, deque(), set()
            item = queue.popleft()
            if item.group in passed_over:
                postponed.append(item)
            if lost[item.group] >= LOST_OF_A_GROUP or item.group in passed_over:
                continue
            self._greet()
            self.progress(name, done, len(of_stage), item.name)
            left = min(end, self.end) - perf_counter()
            share = min(self.share_at_most_s, max(0.0, left) * item.weight / max(weight, item.weight))
            weight -= item.weight
            answer = self._carry_out(item, share, partial(self.progress, name, done, len(of_stage)))
            if answer is None:
                return  # the time is up
            done += 1
            self._tell(item, answer)
            if answer.result != "lost":
                self.lost_groups.clear()
                continue
            lost[item.group] += 1
            passed_over.add(item.group)
            self.lost_groups.add(item.group)
            if len(self.lost_groups) >= LOST_GROUPS:
                raise GivenUp(
                    f"items of {', '.join(sorted(self.lost_groups))} were lost one after the other, and none ended "
                    "well in between: nothing more was tried on this device"
                )

    def _stands(self, item: Item) -> bool:
        return item.name in self.journal.answers and self.journal.answers[item.name].stands

    def _ended_a_process(self, item: Item) -> bool:
        answer = self.journal.answers.get(item.name)
        return item.name in self.journal.begun or bool(answer and answer.result == "lost")

    def _carry_out(self, item: Item, share: float, progress: Callable[[str], None]) -> Answer | None:
        """The answer; None where the end of all time came first."""
        limit = item.limit_s or LIMIT_S + (2 * share if item.kind in ("tuning", "speed", "cases") else 0.0)
        left = self.end - perf_counter()
        self.journal.begin(item)
        begun = perf_counter()
        request = {"item": vars(item), "share_s": share}
        try:
            for message in self.crew.ask(request, min(limit, max(left, 0.0))):
                if "record" in message:
                    self.kept.add(message["record"])
                elif "progress" in message:
                    progress(message["progress"])
                else:
                    return Answer(**message["end"])
        except Lost as reason:
            if perf_counter() >= self.end and left < limit:
                return None
            return Answer("lost", str(reason), perf_counter() - begun)
        raise AssertionError("a request ends with an answer or is lost")

    def _tell(self, item: Item, answer: Answer) -> None:
        self.journal.end(item, answer)
        if item.kind != "case" or answer.result == "lost" or perf_counter() - self.written > WRITE_S:
            self.write()

    def write(self, is_last: bool = False) -> None:
        """Write the files for people and for the repository, as far as things stand."""
        self.outcome.count(self.items, self.journal.answers)
        if self.failure:
            self.outcome.wrong.append(self.failure)
        records = [*self.earlier, *self.kept.records]
        if is_last and not self.outcome.interrupted:
            files.draw(records, self.outcome)
        files.write(self.facts, self.items, self.journal.answers, records, self.outcome, perf_counter() - self.start)
        self.written = perf_counter()


@contextmanager
def _terminated_as_by_ctrl_c() -> Iterator[None]:
    """SIGTERM, which `timeout` and batch systems send, ends a run as Ctrl-C does: with its files written."""
    if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
