"""The search for a config:

    prune          what the device's limits forbid
    compile        ahead of time, in parallel (kernels that have machine code to inspect): no spills; ranked by
                   machine/cost.py; what half of the time is not enough for takes no part
    halve          all that is left, timed briefly; the best third, longer; and so on
    descend        from the best, one coordinate at a time, to configs not yet seen
    duel           the best against the default, and the default against itself: what noise looks like

Each rival is first checked against the oracle on the tuning input, and is timed beside the default in turn, so that
what is kept of it is a ratio, which survives a busy machine and a restart. The default is a candidate throughout, and
only the duel can unseat it: the interval of the gain must exclude 1, and the gain exceed what the default shows against
itself. Every measurement goes to the journal at once; a search that was killed, or ran out of time, goes on there.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

import torch

from .cache import Entry, Journal, Store
from .device import fingerprint, why_lost
from .keys import Problem, canonical
from .machine.cost import Prediction
from .scope import mode, override
from .space import Config, limits
from .timing import Interval, Samples, interleaved
from .tuned import Tuned

CANDIDATES = 64  # that are timed at the most before the descent
BATCH = 7  # rivals beside the default in one interleaved run
ROUNDS = (3, 5, 9)  # of a rung of the halving; the last is that of the descent too
SURVIVORS = 3  # of every so many a rung keeps one
MUCH_SLOWER = 3.0  # than the default in its first call: not timed
DUEL_SHARE = 0.2  # of the budget
DUEL_S = 2.0
FORECAST_SHARE = 0.5  # of the time before the duel: the rest is for what was foreseen

Progress = Callable[[int, int, str], None]  # (done, total, what is being done)


class WrongDefault(RuntimeError):
    """The default config's result is not the oracle's: nothing is tuned before that is mended."""


class DeviceLost(RuntimeError):
    """A config has spoilt the device's context: whatever this process tried next would fail, and say nothing of it."""


@dataclass(frozen=True)
class Task:
    """One kernel at one problem, and how a rival is run, proven right and foreseen."""

    kernel: Tuned
    problem: Problem
    device: torch.device
    run: Callable[[], Any]  # launches the kernel, with the config in force
    check: Callable[[Any], None]  # raises AssertionError where the result is not the oracle's
    # for an op that works in place: builds `run` on fresh inputs; `check` is given that call's result
    fresh: Callable[[], Callable[[], Any]] | None = None
    # inspect(configs, deadline=): of each its forecast, why it is out, or None where the deadline came first
    inspect: Callable[..., Sequence[Prediction | str | None]] | None = None


@dataclass(frozen=True)
class Finding:
    """The result of a search."""

    kernel: str
    problem: Problem
    config: Config
    default: Config
    evidence: Mapping[str, Any]
    how: str  # "tuned", "reused", or "cut off" where the budget ended it
    stored: bool = True

    @property
    def gain(self) -> Interval | None:
        """Time of the default / time of the config; None where the two are the same."""
        gain = self.evidence.get("gain")
        return Interval(**gain) if gain else None

    @property
    def noise(self) -> Interval | None:
        """Time of the default / time of the default, measured beside the gain."""
        noise = self.evidence.get("noise")
        return Interval(**noise) if noise else None

    def record(self) -> dict[str, Any]:
        return asdict(self) | {"kind": "tuning"}


@dataclass
class _Rival:
    config: Config
    ratio: float = 0.0  # of its time to the default's; 0 before it is known
    rung: int = -1  # the last one that timed it
    rejected: str = ""

    def record(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Search:
    task: Task
    journal: Journal
    default: Config
    deadline: float
    progress: Progress | None
    rivals: dict[str, _Rival] = field(default_factory=dict)
    default_s: float = 0.0
    unforeseen: set[str] = field(default_factory=set)  # configs that no time was left to compile ahead: no candidates

    def rival(self, config: Config) -> _Rival:
        return self.rivals.setdefault(canonical(config), _Rival(dict(config)))

    @property
    def is_late(self) -> bool:
        return perf_counter() > self.deadline

    def reject(self, rival: _Rival, reason: str) -> None:
        rival.rejected = reason
        self.journal.add(rival.record())

    def called(self, config: Config) -> Callable[[], Any]:
        def call():
            with override(self.task.kernel.name, config), mode("replay"):
                return self.task.run()

        return call

    def check(self, config: Config) -> None:
        with override(self.task.kernel.name, config), mode("replay"):
            result = self.task.fresh()() if self.task.fresh else self.task.run()
        self.task.check(result)

    def prove(self, rival: _Rival) -> bool:
        """Whether a rival's result is the oracle's, and it is not hopelessly slow."""
        start = perf_counter()
        try:
            self.check(rival.config)
            again = perf_counter()
            self.called(rival.config)()
        except AssertionError as error:
            self.reject(rival, f"wrong result: {_first_line(error)}")
        except Exception as error:  # a config that cannot be launched is no rival
            self.reject(rival, f"{type(error).__name__}: {_first_line(error)}")
            if reason := why_lost(self.task.device):
                raise DeviceLost(
                    f"{self.task.kernel.name} at {dict(self.task.problem)} with {rival.config}: {reason}; that config "
                    "is not tried again: the same command in a new process goes on"
                ) from error
        else:
            took = perf_counter() - again
            if self.default_s and took > MUCH_SLOWER * self.default_s and again - start > MUCH_SLOWER * self.default_s:
                rival.ratio, rival.rung = took / self.default_s, 0
                self.journal.add(rival.record())
            return not rival.ratio
        return False

    def time(self, rivals: Sequence[_Rival], rung: int, what: str) -> None:
        """Times those that are right, a batch at a time, until the budget ends."""
        waiting = [rival for rival in rivals if rival.rung < rung and not rival.rejected]
        for first in range(0, len(waiting), BATCH):
            if self.is_late:
                return
            if self.progress:
                self.progress(first, len(waiting), f"{self.task.kernel.name}: {what}")
            batch = [rival for rival in waiting[first : first + BATCH] if rival.rung >= 0 or self.prove(rival)]
            if not batch:
                continue
            calls = {canonical(rival.config): self.called(rival.config) for rival in batch}
            rounds = ROUNDS[min(rung, len(ROUNDS) - 1)]
            timed = interleaved(
                {**calls, "default": self.called(self.default)},
                budget_s=0,
                sample_s=0.002 * rounds,
                min_rounds=rounds,
                max_rounds=rounds,
            )
            # noise only adds: the least of few samples says more than their median
            base = min(timed["default"].seconds)
            self.default_s = min(self.default_s or base, base)
            for rival in batch:
                rival.ratio, rival.rung = min(timed[canonical(rival.config)].seconds) / base, rung
            self.journal.add(*(rival.record() for rival in batch))

    def best(self, rung: int = 0) -> _Rival | None:
        timed = [rival for rival in self.rivals.values() if rival.rung >= rung and not rival.rejected]
        return min(timed, key=lambda rival: rival.ratio, default=None)


def search(
    task: Task, *, store: Store, budget_s: float = 60.0, again: bool = False, progress: Progress | None = None
) -> Finding:
    """Finds a config for a task, and publishes it in the store where it is proven, or where nothing beats the default.

    Args:
        budget_s: seconds; what they cut off is said in the finding, and is done by the next search of the same task.
        again: forget what earlier searches measured.
        progress: called with (done, total, what is being done).

    Raises:
        WrongDefault: the default's own result is not the oracle's.
    """
    start = perf_counter()
    kernel, problem = task.kernel, task.problem
    environment, key, default = fingerprint(task.device), kernel.key(problem), dict(kernel.default(problem))
    journal, entry = store.journal(environment, key), store.get(environment, key)
    space = [canonical(config) for config in kernel.space]
    if entry and not again and entry.evidence.get("complete") and entry.evidence.get("space") == space:
        return Finding(kernel.name, problem, entry.config, default, entry.evidence, "reused")
    if again:
        journal.remove()
    state = _Search(task, journal, default, start + budget_s * (1 - DUEL_SHARE), progress)
    for record in () if again else _measured(entry, journal):
        state.rivals[canonical(record.config)] = record
    if state.is_late:
        return Finding(kernel.name, problem, entry.config if entry else default, default, {}, "cut off", stored=False)
    _prove_default(state)

    candidates = list(_candidates(state))
    state.time(candidates, 0, f"{len(candidates)} configs")
    standing = sorted((r for r in candidates if r.rung >= 0 and not r.rejected), key=lambda rival: rival.ratio)
    for rung in range(1, len(ROUNDS)):
        standing = sorted(standing[: max(1, len(standing) // SURVIVORS)], key=lambda rival: rival.ratio)
        state.time(standing, rung, f"the best {len(standing)}")
        standing.sort(key=lambda rival: (-rival.rung, rival.ratio))
    champion = _descend(state, standing[0]) if standing else None
    complete = not state.is_late and not state.unforeseen
    config, evidence = _duel(state, champion, start + budget_s - perf_counter())
    evidence |= {
        "complete": complete,
        "space": space,
        "problem": dict(problem),
        "default": default,
        "rivals": [rival.record() for rival in state.rivals.values()],
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if state.unforeseen:
        evidence["unforeseen"] = len(state.unforeseen)
    # what had no time to be beaten is not published: it would hide a shipped config
    stored = (complete or config != default) and store.put(environment, key, config, evidence)
    if stored:
        journal.remove()
    return Finding(kernel.name, problem, config, default, evidence, "tuned" if complete else "cut off", stored)


def _measured(entry: Entry | None, journal: Journal) -> Iterator[_Rival]:
    """The rivals that earlier searches of the task measured; records that do not read as such are dropped."""
    for record in (*(entry.evidence.get("rivals", ()) if entry else ()), *journal.read()):
        try:
            rival = _Rival(dict(record["config"]), float(record["ratio"]), int(record["rung"]), str(record["rejected"]))
        except (KeyError, TypeError, ValueError):
            continue
        if rival.ratio > 0 or rival.rejected:
            yield rival


def _prove_default(state: _Search) -> None:
    call = state.called(state.default)
    try:
        state.check(state.default)
    except AssertionError as error:
        raise WrongDefault(f"{state.task.kernel.name} at {dict(state.task.problem)}: {_first_line(error)}") from None
    start = perf_counter()
    call()
    state.default_s = perf_counter() - start


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _candidates(state: _Search) -> Iterator[_Rival]:
    """The configs worth timing: allowed, compiled without a spill, and the best by forecast where there is one."""
    task, kernel = state.task, state.task.kernel
    bounds = limits(task.device)
    fresh = []
    for config in kernel.space:
        rival = state.rival(config)
        if config == state.default or rival.rejected:
            continue
        why_not = kernel.why_not(config, task.problem, bounds)
        if why_not:
            state.reject(rival, why_not)
        else:
            fresh.append(rival)
    if task.inspect:
        if state.progress:
            state.progress(0, len(fresh), f"{kernel.name}: compiling")
        forecast: list[tuple[float, _Rival]] = []
        now = perf_counter()
        deadline = now + FORECAST_SHARE * (state.deadline - now)
        outlooks = task.inspect([rival.config for rival in fresh], deadline=deadline)
        for rival, outlook in zip(fresh, outlooks, strict=True):
            if isinstance(outlook, str):
                state.reject(rival, outlook)
            elif outlook is not None:
                forecast.append((outlook.seconds, rival))
            elif rival.rung >= 0:  # an earlier search measured it, which is worth more
                forecast.append((0.0, rival))
            else:
                state.unforeseen.add(canonical(rival.config))
        fresh = [rival for _, rival in sorted(forecast, key=lambda pair: pair[0])]
    elif len(fresh) > CANDIDATES:  # a spread over the space, the same each time
        fresh = random.Random(0).sample(fresh, len(fresh))
    yield from fresh[:CANDIDATES]


def _descend(state: _Search, champion: _Rival) -> _Rival:
    """Goes from the champion to a quicker neighbour, as long as there is one that was not timed yet."""
    kernel, bounds = state.task.kernel, limits(state.task.device)
    last = len(ROUNDS) - 1
    while champion.config in kernel.space and not state.is_late:
        near = [state.rival(config) for config in kernel.space.neighbours(champion.config)]
        unseen = [
            rival
            for rival in near
            if rival.rung < 0
            and not rival.rejected
            and rival.config != state.default
            and canonical(rival.config) not in state.unforeseen
            and not kernel.why_not(rival.config, state.task.problem, bounds)
        ]
        if not unseen:
            break
        champion.rung = min(champion.rung, last - 1)  # it is timed once more, beside them
        state.time([champion, *unseen], last, "neighbours")
        best = min([champion, *(r for r in unseen if r.rung == last)], key=lambda rival: rival.ratio)
        if best is champion:
            break
        champion = best
    return champion


def _duel(state: _Search, champion: _Rival | None, budget_s: float) -> tuple[Config, dict[str, Any]]:
    """The champion where it beats the default beyond noise, else the default; and the figures."""
    if budget_s <= 0 or champion is None or champion.ratio >= 1:
        return state.default, {}
    if state.progress:
        state.progress(0, 1, f"{state.task.kernel.name}: the best against the default")
    default = state.called(state.default)
    timed: dict[str, Samples] = interleaved(
        {"default": default, "default again": default, "tuned": state.called(champion.config)},
        budget_s=min(budget_s, DUEL_S),
        sample_s=0.01,
        min_rounds=7,
        max_rounds=100,
    )
    gain = timed["default"].ratio(timed["tuned"])
    noise = timed["default"].ratio(timed["default again"])
    evidence = {
        "gain": asdict(gain),
        "noise": asdict(noise),
        "seconds": {name: samples.median.value for name, samples in timed.items()},
        "challenger": dict(champion.config),
    }
    wins = gain.low > 1 and gain.value > max(noise.high, 1 / noise.low)
    return (champion.config if wins else state.default), evidence
