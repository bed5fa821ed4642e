"""The configs that a kernel can run with."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

Config = Mapping[str, int]  # {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4}


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
