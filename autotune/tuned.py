"""The config of one launch: looked up, never searched for."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import torch

from .device import fingerprint
from .space import Config, Space
from .store import shipped, store

Problem = Mapping[str, int | str | bool]  # {"M": 256, "N": 512, "K": 512, "dtype": "torch.float32"}

_record: ContextVar[dict[str, Choice] | None] = ContextVar("tropigrad_choices", default=None)
_overrides: ContextVar[Mapping[str, Config]] = ContextVar("tropigrad_config_overrides", default={})  # noqa: B039


@dataclass(frozen=True)
class Choice:
    """A config and where it came from: "override", "user cache", "shipped table of …" or "default"."""

    config: Config
    source: str


@dataclass(frozen=True, eq=False)
class Tuned:
    """A kernel whose config is looked up: its name, its space, its analytic default, and the file its source is in."""

    name: str
    space: Space
    default: Callable[[Problem], Config]
    source: Path

    def config(self, problem: Problem, device: torch.device) -> Config:
        """The config to launch with."""
        return self.choice(problem, device).config

    def choice(self, problem: Problem, device: torch.device) -> Choice:
        """The config to launch with, and why that one. Problems of one bucket share an answer."""
        forced = _overrides.get().get(self.name)
        if forced is None:
            choice = _look_up(self, tuple(problem.items()), device, os.environ.get("TROPIGRAD_CACHE_DIR"))
        else:
            choice = Choice(forced, "override")
        record = _record.get()
        if record is not None:
            record[self.name] = choice
        return choice

    def key(self, problem: Problem) -> dict:
        """What an entry is stored under: a changed source or bucket is another key, so a stale config is never used."""
        return {"kernel": self.name, "source": _source_hash(self.source), "problem": bucket(problem)}


@functools.lru_cache(maxsize=4096)
def _look_up(
    tuned: Tuned, items: tuple[tuple[str, int | str | bool], ...], device: torch.device, cache: str | None
) -> Choice:
    """Read once and remembered. `cache` is part of what it is remembered by: another folder, another answer."""
    problem = dict(items)
    environment = fingerprint(device)
    key = tuned.key(problem)
    config = store().get(environment, key)
    if config is not None and config in tuned.space:
        return Choice(config, "user cache")
    found = shipped(environment, key)
    if found is not None and found[0] in tuned.space:
        return Choice(*found)
    return Choice(tuned.default(problem), "default")


def bucket(problem: Problem) -> dict[str, int | str | bool]:
    """Sizes rounded up to a power of two; everything else as it is."""
    return {
        name: 1 << (value - 1).bit_length() if type(value) is int and value > 0 else value
        for name, value in problem.items()
    }


@functools.cache
def _source_hash(source: Path) -> str:
    return hashlib.sha256(source.read_bytes()).hexdigest()[:16]


@contextmanager
def override(name: str, config: Config) -> Iterator[None]:
    """Runs the kernel `name` with this config inside the block, whatever the tables say."""
    token = _overrides.set({**_overrides.get(), name: config})
    try:
        yield
    finally:
        _overrides.reset(token)


@contextmanager
def recorded() -> Iterator[dict[str, Choice]]:
    """Collects the choices that launches inside the block make, by kernel."""
    choices: dict[str, Choice] = {}
    token = _record.set(choices)
    try:
        yield choices
    finally:
        _record.reset(token)
