"""A path under way, in a folder: `state.pt`, and a file for each point. Every file is replaced as a whole."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...whole_files import replace

_STATE = "state.pt"


class Checkpoint:
    """The folder of one run; what lies there of another model or other settings is refused.

    Args:
        folder: made where it is missing.
        facts: name -> what this run is; they must equal those of the run that is continued.
    """

    def __init__(self, where: str, folder: str | os.PathLike[str], facts: dict[str, Any]) -> None:
        self.where, self.folder, self.facts = where, Path(folder), facts

    def read(self) -> dict[str, Any] | None:
        """The state that was saved last, or None where the run begins.

        Raises:
            ValueError: it is of another model or setting, or no checkpoint.
        """
        path = self.folder / _STATE
        if not path.is_file():
            return None
        try:
            state = torch.load(path, weights_only=True)
            earlier = state["facts"]
        except Exception as error:  # torch.load fails in as many ways as there are ways of breaking a file
            raise ValueError(
                f"{self.where}: {path} is no checkpoint of this class ({type(error).__name__}); expected "
                "another folder, or an empty one"
            ) from None
        other = [
            f"{name} {earlier.get(name)!r}, now {fact!r}"
            for name, fact in self.facts.items()
            if earlier.get(name) != fact
        ]
        if other:
            raise ValueError(
                f"{self.where}: {path} is of another run: {'; '.join(other)}; expected its settings, or another folder"
            )
        return state

    def point(self, index: int) -> dict[str, Tensor]:
        return torch.load(self._path(index), weights_only=True)

    def write_point(self, index: int, weights: dict[str, Tensor]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        replace(self._path(index), lambda path: torch.save(weights, path))

    def write(self, state: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        replace(self.folder / _STATE, lambda path: torch.save({"facts": self.facts, **state}, path))

    def _path(self, index: int) -> Path:
        return self.folder / f"point-{index:04d}.pt"


# ------------------------------------------------------------------------------------------------ random numbers


def random_state(loaders: Iterable[Any]) -> dict[str, Any]:
    """The state of what loaders and layers draw from: torch's generators, Python's, the loaders' own."""
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "python": (version, list(internal), gauss),
        "loaders": [generator.get_state() for generator in _generators(loaders)],
    }


def set_random_state(state: dict[str, Any], loaders: Iterable[Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    for generator, its_state in zip(_generators(loaders), state["loaders"], strict=True):
        generator.set_state(its_state)


def seed_generators(seed: int, loaders: Iterable[Any]) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    for i, generator in enumerate(_generators(loaders)):
        generator.manual_seed(seed + 1 + i)


def _generators(loaders: Iterable[Any]) -> list[torch.Generator]:
    """The loaders' own generators, each once."""
    generators: list[torch.Generator] = []
    for loader in loaders:
        for holder in (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)):
            generator = getattr(holder, "generator", None)
            if isinstance(generator, torch.Generator) and not any(generator is x for x in generators):
                generators.append(generator)
    return generators
