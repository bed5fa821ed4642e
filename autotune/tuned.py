"""The config of one launch: looked up, and searched for only where that was asked for.

The modes, and what a block changes, are in scope.py. While a CUDA graph is captured every mode is replay.

An answer is remembered under everything that it depends on, so that asking again costs one dictionary look-up. What it
was read from (variables, cache, tables) is read once: `reload()` forgets it all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path

import torch

from .cache import store, warn_once
from .device import capturing, fingerprint
from .keys import Problem, bucket, source_hash
from .scope import SCOPE, Choice, default_mode
from .shipped import shipped, tables
from .space import Config, Limits, Needs, Space, limits

MOST_REMEMBERED = 1 << 14  # problems: where shapes never repeat, nothing is gained by keeping them all


@dataclass(frozen=True, eq=False)
class Tuned:
    """A kernel whose config is looked up: its name, its space, its analytic default, and the file its source is in.

    `needs` counts what a config takes of a GPU: a config beyond the device's limits is neither tried nor replayed.
    """

    name: str
    space: Space
    default: Callable[[Problem], Config]
    source: Path
    needs: Callable[[Problem, Config], Needs] | None = None

    def config(self, problem: Problem, device: torch.device) -> Config:
        """The config to launch with."""
        return self.choice(problem, device).config

    def choice(self, problem: Problem, device: torch.device) -> Choice:
        """The config to launch with, and why that one. Problems of one bucket share an answer."""
        scope = SCOPE.get()
        if scope is None:
            # its threads are a part of what a CPU's configs were tuned for
            remembered = _remembered.get((self, device, torch.get_num_threads(), *problem.items()))
            return remembered or self._resolve(problem, device, default_mode())
        forced = scope.overrides.get(self.name)
        choice = self._resolve(problem, device, scope.mode or default_mode()) if forced is None else forced
        if scope.observer is not None:
            scope.observer(self, problem, choice)
        return choice

    def key(self, problem: Problem) -> dict:
        """The key of an entry. A changed source or bucket is another key, so a stale config is never used."""
        return {"kernel": self.name, "source": source_hash(self.source), "problem": bucket(problem)}

    def why_not(self, config: Config, problem: Problem, bounds: Limits | None) -> str:
        """Why a config cannot run this problem within these limits; "" where nothing is known against it."""
        if config not in self.space:
            return f"{dict(config)} is not in the kernel's space"
        if config.get("threads", 0) > torch.get_num_threads():
            return f"{config['threads']} threads, torch computes with {torch.get_num_threads()}"
        if bounds is None:
            return ""
        return bounds.why_not(config, self.needs(problem, config) if self.needs else Needs())

    def _resolve(self, problem: Problem, device: torch.device, mode: str) -> Choice:
        label: tuple[Hashable, ...] = (self, device, torch.get_num_threads(), *problem.items())
        if mode != default_mode():
            label += (mode,)
        remembered = _remembered.get(label)
        if remembered is not None:
            return remembered
        choice = Choice(self.default(problem), "default") if mode == "off" else self._look_up(problem, device)
        if mode == "tune" and choice.source == "default":
            if capturing(device) or not _tuning.acquire(blocking=False):
                # not remembered: once the capture ends, or the other thread is done, a later call still tunes it
                return choice
            try:
                choice = self._tune(problem, device) or choice
            finally:
                _tuning.release()
        if len(_remembered) >= MOST_REMEMBERED:
            _remembered.clear()
        _remembered[label] = choice
        return choice

    def _look_up(self, problem: Problem, device: torch.device) -> Choice:
        environment, key, reason = fingerprint(device), self.key(problem), ""
        entry = store().get(environment, key)
        best = (entry.config, "user cache") if entry else shipped(environment, key)
        while best:
            config, source = best
            why_not = self.why_not(config, problem, limits(device))
            if not why_not:
                return Choice(config, source, reason)
            reason = f"{source}: {why_not}"
            warn_once(f"tropigrad: {self.name} does not use the config of the {reason}; tropigrad tune finds another")
            best = shipped(environment, key) if source == "user cache" else None
        return Choice(self.default(problem), "default", reason)

    def _tune(self, problem: Problem, device: torch.device) -> Choice | None:
        """Tunes inside the call. None, and so the default, where that fails: tuning never makes a call fail."""
        try:
            return _tuner(self, problem, device)
        except Exception as error:
            warn_once(f"tropigrad: {self.name} runs with its default, for tuning it failed: {error}")
            return None


_tuning = threading.Lock()
_remembered: dict[tuple[Hashable, ...], Choice] = {}


def tune_with(tuner: Tuner) -> None:
    """Names the function that a call tunes by in the mode tune. It is tuning.py's, which lies above this file."""
    global _tuner
    _tuner = tuner


def _no_tuner(kernel: Tuned, problem: Problem, device: torch.device) -> Choice | None:
    raise RuntimeError("no tuner is there; expected tropigrad.autotune.tuning to be imported before the call")


Tuner = Callable[[Tuned, Problem, torch.device], Choice | None]
_tuner: Tuner = _no_tuner


def reload() -> None:
    """Forgets every remembered config, the tables and the environment variables: the next look-up reads them again.

    Whatever `on_reload` was given forgets as well: the kernels then read TROPIGRAD_BACKEND again.
    """
    _remembered.clear()
    for forget in (*_caches, *_dependents):
        forget()


def on_reload(forget: Callable[[], object]) -> None:
    """Has `reload` call `forget` too: for a module that remembers what follows from a config."""
    _dependents.append(forget)


_caches = (default_mode.cache_clear, source_hash.cache_clear, tables.cache_clear)
_dependents: list[Callable[[], object]] = []
