"""Explains why a launch has the config that it has: `explain(op, shapes)`, for people and for a bug report."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .cache import Entry, store
from .device import Fingerprint, default_device, fingerprint
from .forecast import inspector
from .keys import Problem, bucket
from .machine.cost import NOMINAL, Ceilings, Prediction, roofline
from .scope import Choice, mode
from .space import Config
from .tunable import Launched, Tunable, find, launches, shapes_of

RIVALS = 5  # that the text names


@dataclass(frozen=True)
class Explained:
    """One kernel of a call: what it launches with, and why."""

    kernel: str
    call: str
    problem: Problem
    choice: Choice
    default: Config
    rivals: tuple[tuple[Config, float], ...]  # timed configs, and their time as a multiple of the default's
    rejected: tuple[tuple[Config, str], ...]  # and why
    evidence: Mapping[str, Any]
    prediction: Prediction

    def lines(self) -> Iterator[str]:
        yield f"{self.kernel}, of {self.call}"
        yield f"  problem   {pairs(self.problem)}; bucket {pairs(bucket(self.problem))}"
        yield f"  config    {pairs(self.choice.config)}"
        yield f"  source    {self.choice.source}{f' ({self.choice.reason})' if self.choice.reason else ''}"
        if self.choice.config != self.default:
            yield f"  default   {pairs(self.default)}"
        gain = self.evidence.get("gain")
        if gain:
            noise = self.evidence["noise"]
            yield (
                f"  gain      {gain['value']:.3g} [{gain['low']:.3g}, {gain['high']:.3g}] × over the default; "
                f"the default over itself {noise['value']:.3g} [{noise['low']:.3g}, {noise['high']:.3g}]"
            )
        for number, (config, ratio) in enumerate(self.rivals[:RIVALS]):
            yield f"  {'rivals' if number == 0 else '':<9} {ratio:.3g} × the default's time: {pairs(config)}"
        if not self.rivals:
            yield "  rivals    none timed"
        if len(self.rivals) > RIVALS or self.rejected:
            more = max(0, len(self.rivals) - RIVALS)
            yield f"  {'':<9} {more} more timed, {len(self.rejected)} rejected"
        at_least = f"{self.prediction.seconds * 1e6:.3g} µs at the least, by {self.prediction.figures}"
        yield f"  limiter   {self.prediction.limiter} (predicted: {at_least})"


@dataclass(frozen=True)
class Explanation:
    """The launches of an op at some shapes, explained; `str()` is the text."""

    op: str
    shapes: Mapping[str, Mapping[str, int]]
    environment: Fingerprint
    cache: str
    variables: Mapping[str, str]
    launched: tuple[Explained, ...]

    def __str__(self) -> str:
        shapes = ", ".join(pairs(shape) for shape in self.shapes.values())
        here = self.environment
        versions = f"tropigrad {here.library}, torch {here.torch}, triton {here.triton or 'absent'}"
        lines = [
            f"{self.op} {shapes}",
            f"device    {here.device}, {here.capability}, {here.units} units"
            + (f", driver {here.driver}, ptxas {here.ptxas}" if here.driver or here.ptxas else ""),
            f"versions  {versions}",
            f"cache     {self.cache}, environment {here.hash}",
            *(f"variable  {name}={value}" for name, value in self.variables.items()),
        ]
        for explained in self.launched:
            lines += ["", *explained.lines()]
        if not self.launched:
            lines += ["", "no kernel with a config: these calls run on torch"]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """The same for machines."""
        return asdict(self)


def explain(
    op: str,
    shapes: Mapping[str, Mapping[str, int]] | Mapping[str, int] | Sequence[Mapping[str, int]] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    ceilings: Ceilings = NOMINAL,
) -> Explanation:
    """The config of each kernel that an op's calls launch, its source, its rivals' times, and the predicted limiter.

    Makes each call once. Arguments as in `tune`; the limiter goes by what is in `ceilings`, measured on this device for
    this dtype, and by nominal figures for the rest.

    Raises:
        ValueError: an unknown op, or shapes that are not its.
    """
    tunable, device = find(op), device or default_device()
    named = shapes_of(tunable, shapes)
    launched = tuple(one for shape in named.values() for one in _explain(tunable, shape, dtype, device, ceilings))
    variables = {name: value for name, value in sorted(os.environ.items()) if name.startswith("TROPIGRAD_")}
    return Explanation(op, named, fingerprint(device), str(store().root), variables, launched)


def _explain(
    tunable: Tunable, shape, dtype: torch.dtype, device: torch.device, ceilings: Ceilings
) -> Iterator[Explained]:
    with mode("replay"):
        for launched in launches(tunable, shape, dtype, device):
            entry = store().get(fingerprint(device), launched.kernel.key(launched.problem))
            yield _explained(launched, entry, device, ceilings)


def _explained(launched: Launched, entry: Entry | None, device: torch.device, ceilings: Ceilings) -> Explained:
    rivals = [*entry.evidence.get("rivals", ())] if entry else []
    timed = sorted(((r["config"], r["ratio"]) for r in rivals if not r["rejected"] and r["ratio"]), key=lambda r: r[1])
    prediction = roofline(launched.call.work, fingerprint(device), device, ceilings)
    inspect = inspector(launched.call, launched.kernel, device)
    if inspect:
        (forecast,) = inspect([launched.choice.config], ceilings)
        prediction = forecast if isinstance(forecast, Prediction) else prediction
    return Explained(
        launched.kernel.name,
        launched.call.name,
        launched.problem,
        launched.choice,
        dict(launched.kernel.default(launched.problem)),
        tuple(timed),
        tuple((r["config"], r["rejected"]) for r in rivals if r["rejected"]),
        {name: entry.evidence[name] for name in ("gain", "noise", "time") if name in entry.evidence} if entry else {},
        prediction,
    )


def pairs(values: Mapping[str, Any]) -> str:
    """M=256 N=512 dtype=float32"""
    return " ".join(f"{name}={str(value).removeprefix('torch.')}" for name, value in values.items())
