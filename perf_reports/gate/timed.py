"""Tier 3: two revisions timed on one machine, in processes that take turns.

Each round starts a process of either revision, in an order that is drawn, and each process gives one time for each
call: the least of several stretches, after warming up. A process a round, as the layout of memory differs from process
to process by more than a call does from call to call. Rounds go on until the interval of the ratio is narrow:

    ratio = median_r(b_r) / median_r(a_r),    slower where its bootstrap interval excludes 1 and it is at least 1.03

What is slower is measured a second time, and is a regression where it is slower in both.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from ...autotune.timing import Interval, Samples
from ..commands import BadRequest, StageProgress
from ..durations import format_duration
from .declaration import Declaration

EFFECT = 1.03
WIDTH = 0.008  # of the interval, to either side, at which rounds end
LEAST_ROUNDS, MOST_ROUNDS = 9, 60
_STRETCHES, _STRETCH_SECONDS = 7, 0.01


@dataclass
class Comparison:
    """One call on two revisions."""

    name: str
    before: list[float] = field(default_factory=list)  # seconds, one a round
    after: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> Interval:
        """The time after, in units of that before."""
        rounds = tuple(range(len(self.before)))
        return Samples(tuple(self.after), rounds, 1).ratio(Samples(tuple(self.before), rounds, 1))

    @property
    def is_slower(self) -> bool:
        return self.ratio.low > 1 and self.ratio.value >= EFFECT

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


def measure(
    repository: Path,
    declaration: Path,
    revisions: tuple[str, str],
    *,
    budget_s: float = 600.0,
    progress: StageProgress = lambda stage, done, total, what: None,
) -> list[Verdict]:
    """Time the calls of tier 2 of a declaration on two revisions of a repository; the work tree is not touched.

    The declaration is that of the work tree for both revisions, at its own place in each.

    Raises:
        BadRequest: no repository, a revision that git does not know, a declaration outside of it, or a process that
            failed, whose last words are named.
    """
    root = Path(_git(repository, "rev-parse", "--show-toplevel"))
    commits = [_git(root, "rev-parse", "--verify", f"{revision}^{{commit}}") for revision in revisions]
    if not declaration.resolve().is_relative_to(root.resolve()):
        raise BadRequest(f"{declaration} is not in the repository {root}; expected a declaration that is")
    place = declaration.resolve().relative_to(root.resolve())
    deadline = perf_counter() + budget_s
    with _checked_out(root, commits, declaration, place) as trees:
        verdicts = [Verdict(c) for c in _rounds(trees, place, None, deadline, "first", progress)]
        if slower := {v.first.name for v in verdicts if v.first.is_slower}:
            again = {c.name: c for c in _rounds(trees, place, slower, deadline + budget_s, "again", progress)}
            for verdict in verdicts:
                verdict.second = again.get(verdict.first.name)
    return verdicts


def lines(verdicts: Sequence[Verdict]) -> list[str]:
    """A line a call: both times, the ratio with its interval, and what is said of it."""
    told = []
    for v in verdicts:
        ratio, last = v.first.ratio, v.second or v.first
        said = "SLOWER, twice" if v.is_regression else "slower once, not when repeated" if v.second else "no slower"
        before, after = (statistics.median(x) for x in (last.before, last.after))
        told.append(
            f"{v.first.name}: {format_duration(before)} -> {format_duration(after)}, {ratio.value:.3f} x "
            f"({ratio.low:.3f} to {ratio.high:.3f}), {len(v.first.before)} rounds: {said}"
        )
    return told


def _rounds(
    trees: Sequence[Path], place: Path, names: set[str] | None, deadline: float, stage: str, progress: StageProgress
) -> list[Comparison]:
    comparisons: dict[str, Comparison] = {}
    shuffle = random.Random(0).shuffle
    order = [0, 1]
    for number in range(MOST_ROUNDS):
        if number >= LEAST_ROUNDS and (perf_counter() > deadline or all(c.is_settled for c in comparisons.values())):
            break
        progress(stage, number, MOST_ROUNDS, "ends sooner where all intervals are narrow")
        shuffle(order)
        seconds: list[dict[str, float]] = [{}, {}]
        for which in order:
            seconds[which] = _timed(trees[which], place, names)
        for name in seconds[0].keys() & seconds[1].keys():
            comparison = comparisons.setdefault(name, Comparison(name))
            comparison.before.append(seconds[0][name])
            comparison.after.append(seconds[1][name])
    return [comparisons[name] for name in sorted(comparisons)]


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
    seconds = {call.key: _least_seconds(call.function) for call in calls if names is None or call.key in names}
    print(json.dumps(seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
