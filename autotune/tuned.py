"""The config of one launch: looked up, and searched for only where that was asked for.

    off      the kernel's own default, whatever was tuned
    replay   override, user's cache, shipped table (this GPU's, then one of its compute capability), default
    tune     as replay; and what would get the default is tuned first

`TROPIGRAD_AUTOTUNE` names the mode of the process, replay where it is unset; `mode(...)` that of a block. While a CUDA
graph is captured every mode is replay.

An answer is remembered under everything that it depends on, so that asking again costs one dictionary look-up. What it
was read from (variables, cache, tables) is read once: `reload()` forgets it all.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import re
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from .device import fingerprint
from .space import Config, Limits, Needs, Space, limits
from .store import shipped, store, tables, warn_once

Problem = Mapping[str, int | str | bool]  # {"M": 256, "N": 512, "K": 512, "dtype": "torch.float32"}
MODES = ("off", "replay", "tune")
MOST_REMEMBERED = 1 << 14  # problems: where shapes never repeat, nothing is gained by keeping them all


@dataclass(frozen=True)
class Choice:
    """A config and where it came from: "override", "user cache", "shipped table of …" or "default"."""

    config: Config
    source: str
    reason: str = ""  # why a config found before this one was passed over


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
        scope = _SCOPE.get()
        if scope is None:
            # its threads are a part of what a CPU's configs were tuned for
            found = _remembered.get((self, device, torch.get_num_threads(), *problem.items()))
            return found or self._resolve(problem, device, _default_mode())
        forced = scope.overrides.get(self.name)
        choice = self._resolve(problem, device, scope.mode or _default_mode()) if forced is None else forced
        if scope.observer is not None:
            scope.observer(self, problem, choice)
        return choice

    def key(self, problem: Problem) -> dict:
        """What an entry is stored under: a changed source or bucket is another key, so a stale config is never used."""
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
        if mode != _default_mode():
            label += (mode,)
        known = _remembered.get(label)
        if known is not None:
            return known
        choice = Choice(self.default(problem), "default") if mode == "off" else self._look_up(problem, device)
        if mode == "tune" and choice.source == "default":
            if capturing(device) or not _tuning.acquire(blocking=False):
                return choice  # not remembered: outside the capture, or when the other thread is done, it is tuned yet
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
        found = (entry.config, "user cache") if entry else shipped(environment, key)
        while found:
            why_not = self.why_not(found[0], problem, limits(device))
            if not why_not:
                return Choice(*found, reason)
            reason = f"{found[1]}: {why_not}"
            warn_once(f"tropigrad: {self.name} does not use the config of the {reason}; tropigrad tune finds another")
            found = shipped(environment, key) if found[1] == "user cache" else None
        return Choice(self.default(problem), "default", reason)

    def _tune(self, problem: Problem, device: torch.device) -> Choice | None:
        """None, and so the default, whatever goes wrong here: a call is never the worse for it."""
        from .tunable import tune_problem  # which imports this file

        try:
            return tune_problem(self, problem, device)
        except Exception as error:
            warn_once(f"tropigrad: {self.name} runs with its default, for tuning it failed: {error}")
            return None


_tuning = threading.Lock()

# ------------------------------------------------------------------------------------------------ keys


def bucket(problem: Problem) -> dict[str, int | str | bool]:
    """Sizes rounded up to a power of two; everything else as it is."""
    return {
        name: 1 << (value - 1).bit_length() if type(value) is int and value > 0 else value
        for name, value in problem.items()
    }


@functools.cache
def source_hash(source: Path) -> str:
    """Of what makes a kernel what it is: its file, and the files that it includes by name.

    Of a Python file the declarations `X = Tuned(...)` are left out: one more config in a space changes no kernel, and
    is to retune nothing but itself.
    """
    if source.suffix == ".py":
        text = source.read_text()
        lines = text.splitlines(keepends=True)
        for node in ast.parse(text).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and _name(node.value) == "Tuned":
                first, last = node.lineno - 1, node.end_lineno or node.lineno
                lines[first:last] = [""] * (last - first)
        content = "".join(lines).encode()
    else:
        content = source.read_bytes()
        for name in re.findall(rb'^\s*#\s*include\s+"([^"]+)"', content, re.MULTILINE):
            content += source_hash((source.parent / name.decode()).resolve()).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def _name(call: ast.Call) -> str:
    return getattr(call.func, "id", getattr(call.func, "attr", ""))


# ------------------------------------------------------------------------------------------------ scopes


@dataclass(frozen=True)
class _Scope:
    mode: str = ""  # "": that of the process
    overrides: Mapping[str, Choice] = field(default_factory=dict)
    observer: Callable[[Tuned, Problem, Choice], None] | None = None


# what the open blocks of `mode`, `override` and `observed` change; None outside
_SCOPE: ContextVar[_Scope | None] = ContextVar("tropigrad_autotune", default=None)
_remembered: dict[tuple[Hashable, ...], Choice] = {}


@contextmanager
def _within(**changes) -> Iterator[None]:
    token = _SCOPE.set(replace(_SCOPE.get() or _Scope(), **changes))
    try:
        with unremembered():
            yield
    finally:
        _SCOPE.reset(token)


@contextmanager
def unremembered() -> Iterator[None]:
    """Tells those of `on_scope` that inside the block, in its thread, a call may be served otherwise than before."""
    for tell in _scope_listeners:
        tell(1)
    try:
        yield
    finally:
        for tell in _scope_listeners:
            tell(-1)


def on_scope(tell: Callable[[int], object]) -> None:
    """Has tell(1) called where a block of `unremembered` opens, and tell(-1) where it ends."""
    _scope_listeners.append(tell)


_scope_listeners: list[Callable[[int], object]] = []


def mode(name: str):
    """`with autotune.mode("off" | "replay" | "tune"):` the mode of the calls inside the block.

    Raises:
        ValueError: another name.
    """
    return _within(mode=_checked(name, "mode"))


@functools.cache
def _default_mode() -> str:
    return _checked(os.environ.get("TROPIGRAD_AUTOTUNE") or "replay", "TROPIGRAD_AUTOTUNE")


def _checked(name: str, what: str) -> str:
    if name not in MODES:
        raise ValueError(f"{what} is {name!r}; expected one of {', '.join(MODES)}")
    return name


def override(name: str, config: Config):
    """Runs the kernel `name` with this config inside the block, whatever the tables say."""
    scope = _SCOPE.get() or _Scope()
    return _within(overrides={**scope.overrides, name: Choice(config, "override")})


def observed(observer: Callable[[Tuned, Problem, Choice], None]):
    """Calls `observer(kernel, problem, choice)` for each launch inside the block."""
    return _within(observer=observer)


@contextmanager
def recorded() -> Iterator[dict[str, Choice]]:
    """Collects the choices that launches inside the block make, by kernel."""
    choices: dict[str, Choice] = {}
    with observed(lambda kernel, problem, choice: choices.__setitem__(kernel.name, choice)):
        yield choices


def reload() -> None:
    """Forgets every remembered config, the tables and the environment variables: the next look-up reads them anew."""
    _remembered.clear()
    for forget in (*_caches, *_dependents):
        forget()


def on_reload(forget: Callable[[], object]) -> None:
    """Has `reload` call this too: for whoever remembers what follows from a config."""
    _dependents.append(forget)


_caches = (_default_mode.cache_clear, source_hash.cache_clear, tables.cache_clear)
_dependents: list[Callable[[], object]] = []


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured: nothing may tune, compile or synchronise then."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
