"""Tier 3: two revisions timed on one machine, in processes that take turns.

Each round starts a process of either revision, in an order that is drawn, and each process gives one time for each
call: the least of many stretches, in passes over all calls, after warming up. A process a round, as the layout of
memory differs from process to process by more than a call does from call to call. Rounds go on until the interval of
the ratio is narrow:

    ratio = median_r(b_r / a_r),    slower where its bootstrap interval excludes 1 and it is at least 1 + effect

What is slower is measured a second time, and is a regression where it is slower in both.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from ...autotune.timing import Interval, Samples
from ..commands import BadRequest, StageProgress
from ..durations import format_duration
from ..formats import write_json_lines
from .declaration import Declaration

EFFECT = 0.03
WIDTH = 0.008  # of the interval, to either side, at which rounds end
LEAST_ROUNDS, MOST_ROUNDS = 9, 60
_LOOK_EVERY = 3  # rounds: an interval costs more than it tells anew after one
_PASSES, _STRETCHES, _STRETCH_SECONDS = 5, 7, 0.01
Timed = Callable[[int, set[str] | None], Mapping[str, float]]


@dataclass
class Comparison:
    """One call on two revisions."""

    name: str
    before: list[float] = field(default_factory=list)  # seconds, one a round
    after: list[float] = field(default_factory=list)
    effect: float = EFFECT

    @property
    def ratio(self) -> Interval:
        """The time after, in units of that before: the median of the rounds' ratios, in which slow drifts cancel."""
        ratios = tuple(after / before for before, after in zip(self.before, self.after, strict=True))
        return Samples(ratios, tuple(range(len(ratios))), 1).median

    @property
    def is_slower(self) -> bool:
        return self.ratio.low > 1 and self.ratio.value >= 1 + self.effect

    @property
    def is_settled(self) -> bool:
        """Whether more rounds are not needed to tell: the interval is narrow."""
        ratio = self.ratio
        return ratio.high - ratio.low <= 2 * WIDTH * ratio.value


@dataclass
class Verdict:
    """The comparison of one call, and the second one where the first was slower."""

    first: Comparison
    second: Comparison | None = None

    @property
    def is_regression(self) -> bool:
        return self.first.is_slower and self.second is not None and self.second.is_slower


@dataclass
class Outcome:
    """The verdicts, and whether the run was cut short: then a call that was slower once may not have been repeated."""

    verdicts: list[Verdict]
    is_cut_short: bool = False

    @property
    def exit_code(self) -> int:
        """0: none slower; 1: one is slower, twice; 2: cut short, and nothing is known to be slower."""
        if any(v.is_regression for v in self.verdicts):
            return 1
        return 2 if self.is_cut_short or not self.verdicts else 0


def measure(
    repository: Path,
    declaration: Path,
    revisions: tuple[str, str],
    *,
    effect: float = EFFECT,
    budget_s: float = 600.0,
    progress: StageProgress = lambda stage, done, total, what: None,
) -> Outcome:
    """Time the calls of tier 2 of a declaration on two revisions of a repository; the work tree is not touched.

    The declaration is that of the work tree for both revisions, at its own place in each. Ctrl-C ends it with what was
    measured.

    Raises:
        BadRequest: no repository, a revision that git does not know, a declaration outside of it, or a process that
            failed, whose last words are named.
    """
    root = Path(_git(repository, "rev-parse", "--show-toplevel"))
    commits = [_git(root, "rev-parse", "--verify", f"{revision}^{{commit}}") for revision in revisions]
    if not declaration.resolve().is_relative_to(root.resolve()):
        raise BadRequest(f"{declaration} is not in the repository {root}; expected a declaration that is")
    place = declaration.resolve().relative_to(root.resolve())
    with _checked_out(root, commits, declaration, place) as trees:
        return decide(
            lambda which, names: _timed(trees[which], place, names), effect=effect, budget_s=budget_s, progress=progress
        )


def decide(
    timed: Timed,
    *,
    effect: float = EFFECT,
    budget_s: float = math.inf,
    progress: StageProgress = lambda stage, done, total, what: None,
) -> Outcome:
    """The rule alone: a verdict on each call that both sides time, whoever times them.

    Args:
        timed: called with 0 for before or 1 for after, and the names that are asked for, or None for all; returns the
            seconds of each call in one process.
        effect: how much slower is slower, as a share.
        budget_s: the most that the first measurement takes, and the second again.
    """
    first: dict[str, Comparison] = {}
    again: dict[str, Comparison] = {}
    deadline = perf_counter() + budget_s
    is_cut_short = False
    try:
        _rounds(timed, first, None, effect, deadline, "first", progress)
        if slower := {name for name, comparison in first.items() if comparison.is_slower}:
            _rounds(timed, again, slower, effect, deadline + budget_s, "again", progress)
    except KeyboardInterrupt:
        is_cut_short = True
        again = {}  # half a repetition decides nothing
    return Outcome([Verdict(first[name], again.get(name)) for name in sorted(first)], is_cut_short)


def lines(outcome: Outcome) -> list[str]:
    """A line a call: both times, the ratio with its interval, and what is said of it."""
    told = []
    for v in outcome.verdicts:
        ratio, last = v.first.ratio, v.second or v.first
        if v.is_regression:
            said = "SLOWER, twice"
        elif v.second:
            said = "slower once, not when repeated"
        else:
            said = "slower, not repeated" if v.first.is_slower else "no slower"
        before, after = (statistics.median(x) for x in (last.before, last.after))
        told.append(
            f"{v.first.name}: {format_duration(before)} -> {format_duration(after)}, {ratio.value:.3f} x "
            f"({ratio.low:.3f} to {ratio.high:.3f}), {len(v.first.before)} rounds: {said}"
        )
    if outcome.is_cut_short:
        told.append("cut short: what was measured stands above, and decides nothing")
    return told or ["no call is timed on both revisions"]


def write_records(outcome: Outcome, revisions: tuple[str, str], path: Path) -> None:
    """JSON Lines: the samples of each call, a record a measurement, and the verdict."""
    rows: list[dict[str, Any]] = []
    for v in outcome.verdicts:
        for stage, c in (("first", v.first), ("again", v.second)):
            if c:
                seconds = {"before": c.before, "after": c.after, "ratio": vars(c.ratio)}
                rows.append({"kind": "compared", "name": c.name, "stage": stage, **seconds})
    slower = [v.first.name for v in outcome.verdicts if v.is_regression]
    head = {"kind": "comparison", "revisions": revisions, "slower": slower, "is_cut_short": outcome.is_cut_short}
    write_json_lines([head, *rows], path)


def _rounds(
    timed: Timed,
    comparisons: dict[str, Comparison],
    names: set[str] | None,
    effect: float,
    deadline: float,
    stage: str,
    progress: StageProgress,
) -> None:
    """Rounds until all is narrow or the time is over; a round that is cut short leaves nothing in `comparisons`."""
    shuffle = random.Random(0).shuffle
    order = [0, 1]
    for number in range(MOST_ROUNDS):
        if number >= LEAST_ROUNDS and (
            perf_counter() > deadline or (number % _LOOK_EVERY == 0 and all(c.is_settled for c in comparisons.values()))
        ):
            break
        progress(stage, number, MOST_ROUNDS, "ends sooner where all intervals are narrow")
        shuffle(order)
        seconds: list[Mapping[str, float]] = [{}, {}]
        for which in order:
            seconds[which] = timed(which, names)
        for name in seconds[0].keys() & seconds[1].keys():
            comparison = comparisons.setdefault(name, Comparison(name, effect=effect))
            comparison.before.append(seconds[0][name])
            comparison.after.append(seconds[1][name])


def _timed(tree: Path, place: Path, names: set[str] | None) -> dict[str, float]:
    paths = [str(tree / "src"), str(tree), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TRITON_INTERPRET": "0"}
    asked = json.dumps(sorted(names) if names else None)
    command = [sys.executable, "-m", f"{__package__}.timed", str(place), asked]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "nothing was said")
        raise BadRequest(f"{tree.name}: the calls could not be timed: {last}")
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def _checked_out(root: Path, commits: Sequence[str], declaration: Path, place: Path) -> Iterator[list[Path]]:
    """The revisions in folders of their own, with the work tree's declaration."""
    folder = Path(tempfile.mkdtemp(prefix="perf-compare-"))
    trees = [folder / f"{which}-{commit[:12]}" for which, commit in zip(("before", "after"), commits, strict=True)]
    try:
        for tree, commit in zip(trees, commits, strict=True):
            _git(root, "worktree", "add", "--detach", "--quiet", str(tree), commit)
            (tree / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(declaration, tree / place)
        yield trees
    finally:
        for tree in trees:
            if tree.exists():
                _git(root, "worktree", "remove", "--force", str(tree))
        shutil.rmtree(folder, ignore_errors=True)


def _git(where: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(where), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise BadRequest(f"git {' '.join(arguments)}: {done.stderr.strip() or 'failed'}")
    return done.stdout.strip()


def _least_seconds(function: Callable[[], object]) -> float:
    """The least time of a call over several stretches."""
    function()
    begun = perf_counter()
    function()
    calls = max(1, round(_STRETCH_SECONDS / max(perf_counter() - begun, 1e-7)))
    least = float("inf")
    for _ in range(_STRETCHES):
        begun = perf_counter()
        for _ in range(calls):
            function()
        least = min(least, (perf_counter() - begun) / calls)
    return least


def main(arguments: Sequence[str]) -> int:
    names: Any = json.loads(arguments[1])
    calls = [call for call in Declaration.read(Path(arguments[0]), 2).calls if 2 in call.tiers]
    # in passes over all calls: a processor is fast or slow for tenths of a second, more than one call's stretches take
    asked = [call for _ in range(_PASSES) for call in calls if names is None or call.key in names]
    seconds: dict[str, float] = {}
    for call in asked:
        seconds[call.key] = min(_least_seconds(call.function), seconds.get(call.key, math.inf))
    print(json.dumps(seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
