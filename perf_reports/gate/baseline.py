"""The baseline: a JSON file that is committed, and what a new measurement differs from it by.

Figures are kept by the versions that they depend on, so that one file can hold those of several: tier 0 by triton's
version, tier 1 by triton's, tier 2 by Python's and torch's, tier 3 by all three. A measurement is only ever compared
with its own kind.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...whole_files import replace

SCHEMA = 1
# a share of the baseline, and a least amount, that a figure of a tier may grow by
TOLERANCES = {
    # a few more or fewer come from one run to the next, of about one kernel of fifty for sm_100
    (0, "instructions"): (0.01, 4),
    (2, "bytecode instructions"): (0.02, 20),
    (3, "bytecode instructions"): (0.02, 10),
}
Record = Mapping[str, Any]


class BaselineError(ValueError):
    """A baseline that cannot be compared with; the message says why, and what to do."""


@dataclass(frozen=True)
class Difference:
    """One figure that is not as in the baseline."""

    tier: int
    of: str
    target: str
    figure: str
    before: int | None  # None: the baseline does not have it
    after: int | None  # None: it was not measured any more
    verdict: Literal["worse", "better", "within tolerance", "new", "gone"]

    @property
    def change(self) -> str:
        if self.before is None or self.after is None:
            return self.verdict
        if self.before == 0:
            return f"+{self.after}"
        return f"{(self.after - self.before) / self.before:+.1%}"


@dataclass
class Baseline:
    """Figures by kind of environment, kernel or call, and target."""

    figures: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Baseline:
        """Read a baseline.

        Raises:
            BaselineError: there is none, it is no JSON, or it is of another schema.
        """
        if not path.is_file():
            raise BaselineError(f"{path}: no baseline; make one with --update, look at it, and commit it")
        try:
            content = json.loads(path.read_text("utf-8"))
            schema, figures = content["schema"], content["figures"]
        except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise BaselineError(
                f"{path}: no baseline of this gate ({type(error).__name__}); make one with --update"
            ) from error
        if schema != SCHEMA:
            raise BaselineError(
                f"{path}: its schema is {schema!r}, and this version reads {SCHEMA}; make it anew with --update"
            )
        return cls(figures)

    def write(self, path: Path) -> None:
        content = {"schema": SCHEMA, "figures": self.figures}
        text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, lambda fresh: fresh.write_text(text, encoding="utf-8"))

    def compare(self, records: Iterable[Record], versions: Mapping[str, str]) -> list[Difference]:
        """The figures that are not as here, of what was measured.

        Raises:
            BaselineError: a tier was measured under versions that the baseline knows nothing of.
        """
        differences: list[Difference] = []
        by_tier: dict[int, list[Record]] = {}
        for record in records:
            if "figures" in record:
                by_tier.setdefault(record["tier"], []).append(record)
        for tier, measured in sorted(by_tier.items()):
            environment = environment_of(tier, versions)
            known = self.figures.get(environment)
            if known is None:
                others = sorted(e for e in self.figures if e.startswith(f"tier {tier}"))
                held = ", ".join(others) or f"nothing of tier {tier}"
                raise BaselineError(
                    f"the baseline has nothing of {environment}; it has {held}: measure with those versions, or add "
                    "these with --update"
                )
            now = {_place(record): record for record in measured}
            for place in sorted({*known, *now}):
                of, target = place.rsplit(" @ ", 1)
                before, after = known.get(place), now.get(place)
                figures = {*(before or {}), *(after["figures"] if after else {})}
                for figure in sorted(figures):
                    old = None if before is None else before.get(figure, 0)
                    new = None if after is None else after["figures"].get(figure, 0)
                    if old != new:
                        differences.append(
                            Difference(tier, of, target, figure, old, new, _verdict(tier, figure, old, new))
                        )
        return differences

    def updated(self, records: Iterable[Record], versions: Mapping[str, str]) -> Baseline:
        """This baseline with what was measured in the place of what it had under the same versions."""
        figures = {environment: dict(places) for environment, places in self.figures.items()}
        fresh: dict[str, dict[str, dict[str, int]]] = {}
        for record in records:
            if "figures" in record:
                fresh.setdefault(environment_of(record["tier"], versions), {})[_place(record)] = dict(record["figures"])
        return Baseline({**figures, **fresh})


def environment_of(tier: int, versions: Mapping[str, str]) -> str:
    """The versions that figures of a tier depend on."""
    if tier < 2:
        return f"tier {tier}, triton {versions['triton']}"
    python = ".".join(versions["python"].split(".")[:2])
    both = f"tier {tier}, python {python}, torch {versions['torch'].split('+')[0]}"
    return f"{both}, triton {versions['triton']}" if tier == 3 else both


def _place(record: Record) -> str:
    return f"{record['of']} @ {record['target']}"


def _verdict(tier: int, figure: str, before: int | None, after: int | None) -> Any:
    if before is None:
        return "new"
    if after is None:
        return "gone"
    if after < before:
        return "better"
    share, least = TOLERANCES.get((tier, figure), (0.0, 0))
    return "within tolerance" if after - before <= max(share * before, least) else "worse"


def worse(differences: Sequence[Difference]) -> list[Difference]:
    return [d for d in differences if d.verdict == "worse"]
