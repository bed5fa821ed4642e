"""The blocks `mode`, `override` and `observed`, and what they change for the launches inside them.

    off      the kernel's own default, whatever was tuned
    replay   override, user's cache, shipped table (this GPU's, then one of its compute capability), default
    tune     as replay; and what would get the default is tuned first

`TROPIGRAD_AUTOTUNE` names the mode of the process, replay where it is unset; `mode(...)` that of a block.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

from .keys import Problem
from .space import Config

MODES = ("off", "replay", "tune")


@dataclass(frozen=True)
class Choice:
    """A config and where it came from: "override", "user cache", "shipped table of …" or "default"."""

    config: Config
    source: str
    reason: str = ""  # why a config found before this one was passed over


# (kernel, problem, choice); the kernel is a Tuned, which lies above this file
Observer = Callable[[Any, Problem, Choice], None]


@dataclass(frozen=True)
class Scope:
    """The changes that the open blocks make together."""

    mode: str = ""  # "": that of the process
    overrides: Mapping[str, Choice] = field(default_factory=dict)
    observer: Observer | None = None


# None outside all blocks
SCOPE: ContextVar[Scope | None] = ContextVar("tropigrad_autotune", default=None)


@contextmanager
def _within(**changes) -> Iterator[None]:
    token = SCOPE.set(replace(SCOPE.get() or Scope(), **changes))
    try:
        with unremembered():
            yield
    finally:
        SCOPE.reset(token)


@contextmanager
def unremembered() -> Iterator[None]:
    """Tells the listeners of `on_scope` that calls inside the block, in its thread, may be served in another way."""
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
def default_mode() -> str:
    """The mode of the process: TROPIGRAD_AUTOTUNE, checked."""
    return _checked(os.environ.get("TROPIGRAD_AUTOTUNE") or "replay", "TROPIGRAD_AUTOTUNE")


def _checked(name: str, what: str) -> str:
    if name not in MODES:
        raise ValueError(f"{what} is {name!r}; expected one of {', '.join(MODES)}")
    return name


def override(name: str, config: Config):
    """Runs the kernel `name` with this config inside the block, whatever the tables say."""
    scope = SCOPE.get() or Scope()
    return _within(overrides={**scope.overrides, name: Choice(config, "override")})


def observed(observer: Observer):
    """Calls `observer(kernel, problem, choice)` for each launch inside the block."""
    return _within(observer=observer)


@contextmanager
def recorded() -> Iterator[dict[str, Choice]]:
    """Collects the choices that launches inside the block make, by kernel."""
    choices: dict[str, Choice] = {}
    with observed(lambda kernel, problem, choice: choices.__setitem__(kernel.name, choice)):
        yield choices
