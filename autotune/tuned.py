"""The config of one launch: looked up, never searched for."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import torch

from .device import fingerprint
from .space import Config, Space
from .store import cache_dir, shipped, store

Problem = Mapping[str, int | str | bool]  # {"M": 256, "N": 512, "K": 512, "dtype": "torch.float32"}

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
        override = _overrides.get().get(self.name)
        if override is not None:
            return Choice(override, "override")
        return _look_up(self, tuple(bucket(problem).items()), device, cache_dir())

    def key(self, problem: Problem) -> dict:
        """What an entry is stored under: a changed source or bucket is another key, so a stale config is never used."""
        return {"kernel": self.name, "source": _source_hash(self.source), "problem": bucket(problem)}


@functools.lru_cache(maxsize=4096)
def _look_up(
    tuned: Tuned, problem: tuple[tuple[str, int | str | bool], ...], device: torch.device, root: Path
) -> Choice:
    environment = fingerprint(device)
    key = tuned.key(dict(problem))
    config = store().get(environment, key)
    if config is not None and config in tuned.space:
        return Choice(config, "user cache")
    found = shipped(environment, key)
    if found is not None and found[0] in tuned.space:
        return Choice(*found)
    return Choice(tuned.default(dict(problem)), "default")


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
