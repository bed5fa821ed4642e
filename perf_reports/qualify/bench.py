"""The items of a qualification, and how each is carried out. Lives in a process that may be lost (worker.py)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from time import perf_counter
from typing import Any

from ... import autotune
from ...autotune.device import default_device
from ...autotune.tunable import Sizes, find
from ...kernels.contract import conformance, qualification
from ...kernels.contract.registry import REGISTRY
from ...kernels.contract.spec import Spec
from ...kernels.runtime import backend, dispatch
from .. import environment, tune
from ..measuring import benchmark, ceilings, gpu_ceilings
from ..records import fails
from .item import Answer, Item

Tell = Callable[[Mapping[str, Any]], None]  # {"record": of results.jsonl} or {"progress": what}

FIRST = "tropical_matmul"  # the op whose configs and whose record are worth the most
_FORCED = re.compile(
    rf"(?:^|\.)({'|'.join(backend.BACKENDS[1:])})(?:-|$)"
)  # "triton-...", "tropical_matmul.triton-..."
BY_DEFAULT = {"cuda": "triton", "xpu": "triton", "cpu": "cpp"}
COSTLY = "opcheck"  # to list its cases takes ten times as long as to list all others: they are one item an op


class Bench:
    """The items for the device that is here, and for these ops, or all."""

    def __init__(self, ops: Sequence[str] = ()) -> None:
        self.device = default_device()
        self.specs = [spec for name, spec in REGISTRY.items() if not ops or name in ops]
        self.gluon_off = backend.why_off("gluon", self.device)
        self._cases: dict[str, conformance.Case] = {}
        self._cells: dict[tuple[str, ...], benchmark.Cell] = {}

    def start(self) -> None:
        """Have ready what the first item would be charged with: the device, and a compiler's quarter of a minute."""
        autotune.why_lost(self.device)
        dispatch.load(compiles=True)

    def facts(self) -> dict[str, Any]:
        """Whatever the parent must know of the device, which it leaves alone."""
        here = autotune.fingerprint(self.device)
        gluon = [] if self.gluon_off else [kernel for spec in self.specs for kernel in spec.tuned.get("gluon", ())]
        return {
            "fingerprint": asdict(here),
            "gluon_off": self.gluon_off,
            "qualification": qualification.record(gluon, self.device, 0) if gluon else None,
            "head": environment.head({}),
        }

    # -------------------------------------------------------------------------------------------- what there is to do

    def plan(self) -> list[Item]:
        """All items, in order: a promise, an op and a shape of each in turn, so that a short time tells of each."""
        first = [spec for spec in self.specs if spec.name == FIRST]
        others = [spec for spec in self.specs if spec.name != FIRST]
        return [
            *self._conformance(),
            Item("ceilings", "ceilings", "ceilings", "ceilings"),
            *(self._tuning(spec, FIRST) for spec in first),
            *self._of_gluon(first),
            *(self._tuning(spec, "tuning") for spec in others),
            *self._of_gluon(others),
            *self._speed(),
            *self._rest(),
        ]

    def _listed(self) -> list[conformance.Case]:
        if not self._cases:
            promises = tuple(
                table.__name__ for table in conformance.TABLES if table.__name__ not in (COSTLY, "repetitions")
            )
            found = conformance.cases(self.device, tuple(spec.name for spec in self.specs), promises)
            if not self.gluon_off:
                found += [case for spec in self.specs if "gluon" in spec.tuned
                          for case in conformance.repetitions(spec, self.device)]  # fmt: skip
            turns: dict[str, int] = {}
            seen: Counter = Counter()
            for case in found:
                turns[case.name] = seen[case.op, case.promise, case.slow]
                seen[case.op, case.promise, case.slow] += 1
            found.sort(key=lambda case: (case.slow, turns[case.name], case.op != FIRST))
            self._cases = {case.name: case for case in found}
        return list(self._cases.values())

    def _backend(self, case: conformance.Case) -> str:
        """The backend that a case forces; "" where it takes the default or, as misuse does, none."""
        forced = _FORCED.search(case.id)
        return forced[1] if forced else ""

    def _is_on(self, case: conformance.Case) -> bool:
        return not case.slow and self._backend(case) in ("", BY_DEFAULT.get(self.device.type, "torch"))

    def _is_of_gluon(self, case: conformance.Case) -> bool:
        return not self.gluon_off and "gluon" in case.id

    def _case(self, stage: str, case: conformance.Case, weight: float = 1.0) -> Item:
        return Item(stage, "case", case.name, case.op, (case.name,), weight)

    def _conformance(self) -> Iterator[Item]:
        for case in self._listed():
            if self._is_on(case):
                yield self._case("conformance", case)

    def _of_gluon(self, specs: Sequence[Spec]) -> Iterator[Item]:
        """The cases that turn Gluon kernels on, and then the tuning of these, which are off until that is committed."""
        for spec in specs:
            if "gluon" not in spec.tuned or self.gluon_off:
                continue
            stage = FIRST if spec.name == FIRST else "tuning"
            proofs = [case for case in self._listed() if case.op == spec.name and self._is_of_gluon(case)]
            for case in proofs:
                yield self._case(stage, case, 1 / len(proofs))
            yield self._tuning(spec, stage, "gluon")

    def _tuning(self, spec: Spec, stage: str, path: str = "auto") -> Item:
        name = f"tuning of {spec.name}" + ("" if path == "auto" else f" ({path})")
        return Item(stage, "tuning", name, spec.name, (spec.name, path))

    def _speed(self) -> Iterator[Item]:
        seen: Counter = Counter()
        turns = {}
        for cell in self._timed():
            about = cell.spec.name, cell.workload.name, cell.label
            self._cells[about] = cell
            turns[about] = seen[about[:2]]
            seen[about[:2]] += 1
        for about in sorted(self._cells, key=lambda about: (turns[about], about[0] != FIRST)):
            yield Item("speed", "speed", f"speed of {', '.join(about)}", about[0], about)

    def _timed(self) -> list[benchmark.Cell]:
        return benchmark.cells(self.specs)

    def _rest(self) -> Iterator[Item]:
        for case in self._listed():
            if not self._is_on(case) and not self._is_of_gluon(case):
                yield self._case("the rest", case)
        for spec in self.specs:
            if COSTLY not in spec.left_out:
                yield Item("the rest", "cases", f"{spec.name}-{COSTLY}", spec.name, (spec.name, COSTLY), 10.0)

    # -------------------------------------------------------------------------------------------- how it is done

    def carry_out(self, item: Item, share_s: float, tell: Tell) -> Answer:
        """Do one item; `tell` is called with its records and its progress."""
        start = perf_counter()
        try:
            answer = self.works()[item.kind](item, share_s, tell)
        except conformance.NotHere as reason:
            answer = Answer("not here", str(reason))
        except Exception as error:  # whatever a kernel did: it is what this is for
            answer = Answer("failed", benchmark.one_line(error))
        if reason := self.why_lost():
            answer = Answer("lost", f"the device's context is spoilt: {reason}")
        return Answer(answer.result, answer.detail, perf_counter() - start)

    def works(self) -> Mapping[str, Callable[[Item, float, Tell], Answer]]:
        """The way to do an item, by kind."""
        return {
            "case": self._run_case,
            "cases": self._run_cases,
            "ceilings": self._measure_ceilings,
            "tuning": self._tune,
            "speed": self._time,
        }

    def why_lost(self) -> str:
        """Why whatever this process did next would fail; "" where nothing stands in the way."""
        return autotune.why_lost(self.device)

    def _run_case(self, item: Item, share_s: float, tell: Tell) -> Answer:
        self._listed()
        self._cases[item.about[0]].run()
        return Answer("passed")

    def _run_cases(self, item: Item, share_s: float, tell: Tell) -> Answer:
        op, promise = item.about
        found = conformance.cases(self.device, (op,), (promise,))
        failed = []
        for case in found:
            tell({"progress": case.name})
            try:
                case.run()
            except conformance.NotHere:
                continue
            except Exception as error:
                failed.append(f"{case.id}: {benchmark.one_line(error)}")
                if self.why_lost():
                    break
        if failed:
            return Answer("failed", f"{len(failed)} of {len(found)}: {failed[0]}")
        return Answer("passed", f"{len(found)} cases")

    def _measure_ceilings(self, item: Item, share_s: float, tell: Tell) -> Answer:
        def progress(done: int, total: int, what: str) -> None:
            tell({"progress": what})

        measured = []
        on_gpu = self.device.type == "cuda"
        for record in (
            gpu_ceilings.measure(self.device, progress=progress)
            if on_gpu
            else ceilings.measure(quick=True, progress=progress)
        ):
            tell({"record": record})
            measured.append(record)
        self.keep_ceilings(measured)
        return Answer("passed")

    def keep_ceilings(self, measured: Sequence[Mapping[str, Any]]) -> None:
        """Note them where `explain` finds them."""
        tune.keep_ceilings(measured, self.device, "tropigrad qualify")

    def _tune(self, item: Item, share_s: float, tell: Tell) -> Answer:
        op, path = item.about
        unfinished = []

        def found(finding: autotune.Finding) -> None:
            if finding.how == "cut off":
                unfinished.append(f"{finding.kernel} at {dict(finding.problem)}")
            tell({"record": _without_rivals(finding)})

        with backend.forcing(path):
            autotune.tune(
                op,
                self._tuned_at(op),
                device=self.device,
                budget_s=share_s,
                progress=lambda done, total, what: tell({"progress": what}),
                into=self.store(),
                found=found,
            )
        if unfinished:
            return Answer("unfinished", f"{len(unfinished)} searches, the first {unfinished[0]}")
        return Answer("passed")

    def store(self) -> autotune.Store:
        """Where tuned configs go."""
        return autotune.store()

    def _tuned_at(self, op: str) -> Mapping[str, Sizes]:
        return find(op).shapes

    def _time(self, item: Item, share_s: float, tell: Tell) -> Answer:
        if not self._cells:
            list(self._speed())
        wrong = ""
        for record in benchmark.measure([self._cells[item.about]], budget_s=share_s, quick=True):
            if record["kind"] == "gate" and fails(record):
                wrong = record["detail"]
            tell({"record": record})
        return Answer("failed", wrong) if wrong else Answer("passed")


def _without_rivals(finding: autotune.Finding) -> dict[str, Any]:
    record = finding.record()
    return record | {"evidence": {k: v for k, v in record["evidence"].items() if k not in ("rivals", "space")}}
