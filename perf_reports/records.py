"""results.jsonl: what was measured, one JSON object a line, only ever appended to.

Every line carries `schema_version`, `run` (an id shared by the lines of one report), `time` (UTC) and `kind`:

run               the machine, the versions, the git revision, the settings, what is planned
ceiling           a roof of the machine                                      (ceilings.py)
startup           an import, a first call in a fresh process, a small call   (startup.py)
conformance       how many cases passed and failed                           (qualify.py)
tuning            a kernel's config at one problem, and its gain             (autotune)
training          one logged iteration of a study                            (studies/)
training_summary  one method of a study
front             the front of loss and norm that one method of a study walked
gate              whether a contender's results agree with ours
timing            one contender on one workload and shape: raw samples, median, interval
memory            peak memory of our call
growth            time and memory of one call while one size grows           (growth.py)
left_out          what was not measured, and why; `budget` where time was short and --resume goes on
run_end           how the run ended; one more for each time that it was resumed
"""

from __future__ import annotations

import json
import math
import uuid
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .pending import measured

SCHEMA_VERSION = 1


class Results:
    """Appends the records of one run to a file; each line is on the disk when `add` returns.

    Args:
        path: made where it is missing.
        resumed: the records of a run in that file, which goes on; a new run where empty.
    """

    def __init__(self, path: Path, resumed: Iterable[Mapping[str, Any]] = ()) -> None:
        self.records: list[dict[str, Any]] = [dict(record) for record in resumed]
        self.run = self.records[0]["run"] if self.records else uuid.uuid4().hex[:12]
        cut_off = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        self._file = path.open("a", encoding="utf-8")
        if cut_off:
            self._file.write("\n")  # a killed run's last line must not swallow our first

    def add(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Write a record; returns it with the fields that every line has."""
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"schema_version": SCHEMA_VERSION, "run": self.run, "time": stamp, **_finite(record)}
        self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()
        self.records.append(line)
        return line

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def read(path: Path) -> list[dict[str, Any]]:
    """All records of a file. A line that a killed run left half-written is dropped, with a warning.

    Raises:
        ValueError: the file has another schema; the message says which line.
    """
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            warnings.warn(f"{path}: line {number} is cut off and was dropped", RuntimeWarning, stacklevel=2)
            continue
        if record.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(
                f"{path}: line {number} has schema_version {record.get('schema_version')!r}; this version reads "
                f"{SCHEMA_VERSION}: move the file away, or read it with the version that wrote it"
            )
        records.append(record)
    return records


@dataclass(frozen=True)
class Reading:
    """The part of a file that could be read: its records, and a line for each thing that could not be."""

    records: list[dict[str, Any]]
    complaints: list[str]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_interval(value: Any) -> bool:
    return isinstance(value, Mapping) and all(_is_number(value.get(end)) for end in ("value", "low", "high"))


def _or_none(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or is_right(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


def _is_points(value: Any) -> bool:
    numbers = ("loss", "l1", "nnz")
    return _is_list(value) and all(
        isinstance(point, Mapping) and all(_is_number(point.get(name)) for name in numbers) for point in value
    )


_CELL = dict.fromkeys(("op", "workload", "shape_label", "contender", "role"), _is_text)
# kind -> the fields that a page cannot do without, and whether a value will do
_NEEDED: Mapping[str, Mapping[str, Callable[[Any], bool]]] = {
    "run": {},
    "ceiling": {"name": _is_text, "threads": _is_number, "value": _is_number, "unit": _is_text},
    "startup": {"what": _is_text, "seconds": _is_number},
    "training": {"study": _is_text, "method": _is_text, "seconds": _is_number, "loss": _or_none(_is_number)},
    "training_summary": {
        **dict.fromkeys(("study", "method", "role", "dataset", "stopped"), _is_text),
        "iterations": _is_number,
        **dict.fromkeys(("seconds_per_iteration", "final_loss", "test_accuracy"), _or_none(_is_number)),
    },
    "front": {
        **dict.fromkeys(("study", "method", "role", "dataset"), _is_text),
        "seconds": _is_number,
        "points": _is_points,
    },
    "gate": {**_CELL, "gate": _is_text, "detail": _is_text},
    "timing": {
        **_CELL,
        **dict.fromkeys(("gate", "mix"), _is_text),
        **dict.fromkeys(("operations", "bytes", "rate"), _is_number),
        "seconds": _is_list,
        "median": _is_interval,
        "ratio": _or_none(_is_interval),
    },
    "memory": {**_CELL, "peak_bytes": _is_number, "result_bytes": _is_number},
    "growth": {
        **dict.fromkeys(("op", "workload", "letter", "contender", "role"), _is_text),
        "size": _is_number,
        "seconds": _is_number,
        "peak_bytes": _or_none(_is_number),
    },
    "left_out": {"what": _is_text, "reason": _is_text},
    "run_end": {"seconds": _is_number},
}


def read_what_can_be(path: Path) -> Reading:
    """Reads a file that was cut, or written by another version: keeps what a page can be drawn from, names the rest.

    A run whose first line is missing gets one that says no more than that.

    Raises:
        OSError: the file cannot be read.
    """
    records: list[dict[str, Any]] = []
    complaints: list[str] = []
    begun: set[str] = set()
    for number, line in enumerate(path.read_bytes().decode("utf-8", errors="replace").splitlines(), start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            complaints.append(f"line {number} is cut off, or no JSON")
            continue
        if not isinstance(record, dict) or not _is_text(record.get("kind")) or not _is_text(record.get("run")):
            complaints.append(f"line {number} is no record: expected an object with kind and run")
            continue
        needed = _NEEDED.get(record["kind"])
        if needed is None:
            continue  # of another command, or of a later version: not the page's
        wrong = [name for name, will_do in needed.items() if not will_do(record.get(name))]
        if wrong:
            schema = record.get("schema_version")
            older = "" if schema == SCHEMA_VERSION else f" (schema_version {schema!r}; this is {SCHEMA_VERSION})"
            complaints.append(f"line {number}, {record['kind']}: no usable {', '.join(wrong)}{older}")
            continue
        if record["kind"] != "run" and record["run"] not in begun:
            complaints.append(f"run {record['run']}: the line it began with is missing, and the machine with it")
            records.append({"kind": "run", "run": record["run"], "time": str(record.get("time", ""))})
        begun.add(record["run"])
        records.append(record)
    return Reading(records, complaints)


def fails(gate: Mapping[str, Any]) -> bool:
    """Whether a record of kind gate says that ours are not the reference's; a rival's own results fail nothing."""
    return gate["gate"] == "red" and (gate["role"] == "ours" or gate.get("is_reference", False))


def last_run(records: Iterable[Mapping[str, Any]], run: str | None = None) -> list[Mapping[str, Any]]:
    """The records of the run that was begun last, or of the one whose id begins with `run`, as far as they stand.

    Where a run was resumed, what was measured again counts once, as it was measured last.
    """
    records = list(records)
    runs = [r["run"] for r in records if r["kind"] == "run" and (run is None or r["run"].startswith(run))]
    return standing([record for record in records if runs and record["run"] == runs[-1]])


def standing(run: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Records of one run, without those that a later one replaces."""
    run = list(run)
    last = {_subject(record): place for place, record in enumerate(run)}
    timed_again = {
        tuple(r.get(name) for name in ("op", "workload", "shape_label", "contender")): place
        for place, r in enumerate(run)
        if r["kind"] == "timing"
    }
    later = {measured(r): place for place, r in enumerate(run) if r["kind"] in ("training_summary", "growth")}
    result = []
    for place, record in enumerate(run):
        if last[_subject(record)] != place:
            continue
        if record["kind"] == "left_out" and record.get("budget"):
            at = _timed(record, timed_again) if record.get("op") else later.get(record["what"], -1)
            if place < at:
                continue
        result.append(record)
    return result


def _timed(left_out: Mapping[str, Any], timed: Mapping[tuple[Any, ...], int]) -> int:
    """The place of a later timing of what was left out, a contender or a whole cell; −1 where there is none."""
    cell = (left_out["op"], left_out.get("workload"), left_out.get("shape_label"))
    contender = left_out.get("contender")
    return max((p for key, p in timed.items() if key[:3] == cell and contender in (None, key[3])), default=-1)


# of two records of one kind in a run that agree in these, the later one stands
_SUBJECT = {
    **dict.fromkeys(("timing", "memory", "gate"), ("op", "workload", "shape_label", "contender")),
    "growth": ("op", "workload", "letter", "size", "contender"),
    "left_out": ("what",),
    "training": ("study", "method", "seed", "iteration"),
    **dict.fromkeys(("training_summary", "front"), ("study", "method", "seed")),
    "ceiling": ("name", "threads"),
    "startup": ("what",),
    "run_end": (),
}


def _subject(record: Mapping[str, Any]) -> tuple[Any, ...]:
    names = _SUBJECT.get(record["kind"])
    return (id(record),) if names is None else (record["kind"], *(record.get(name) for name in names))
