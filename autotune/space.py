"""The configs that a kernel can run with, and what a device forbids of them before anything is compiled."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

Config = Mapping[str, int]  # {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4}

REGISTERS = 255  # that an instruction of a GPU can name


@dataclass(frozen=True)
class Space:
    """A product of named choices: Space({"BLOCK_M": (32, 64), "num_warps": (4, 8)})."""

    choices: Mapping[str, tuple[int, ...]]

    def __iter__(self) -> Iterator[Config]:
        for values in itertools.product(*self.choices.values()):
            yield dict(zip(self.choices, values, strict=True))

    def __contains__(self, config: object) -> bool:
        return (
            isinstance(config, Mapping)
            and config.keys() == self.choices.keys()
            and all(type(config[name]) is int and config[name] in values for name, values in self.choices.items())
        )

    def neighbours(self, config: Config) -> Iterator[Config]:
        """The configs one choice away along one coordinate."""
        for name, values in self.choices.items():
            at = values.index(config[name])
            for other in (at - 1, at + 1):
                if 0 <= other < len(values):
                    yield {**config, name: values[other]}


@dataclass(frozen=True)
class Needs:
    """The least that a config takes, by its author's count."""

    registers: int = 0  # per thread: accumulators and what runs beside them
    shared: int = 0  # bytes per block


@dataclass(frozen=True)
class Limits:
    """The most that one block may take on a device."""

    threads: int
    warp: int
    shared: int  # bytes

    def why_not(self, config: Config, needs: Needs) -> str:
        """Why a config cannot run, or can only run badly; "" where nothing is against it."""
        threads = config.get("num_warps", 1) * self.warp
        if threads > self.threads:
            return f"{threads} threads a block, the device has {self.threads}"
        if needs.shared > self.shared:
            return f"{needs.shared} bytes of shared memory a block, the device has {self.shared}"
        if needs.registers > REGISTERS:
            return f"{needs.registers} registers a thread, an instruction can name {REGISTERS}"
        return ""


@functools.cache
def limits(device: torch.device) -> Limits | None:
    """The launch limits of a GPU; None for a CPU, which has none."""
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    shared = getattr(properties, "shared_memory_per_block_optin", 48 << 10)
    return Limits(getattr(properties, "max_threads_per_block", 1024), getattr(properties, "warp_size", 32), shared)
