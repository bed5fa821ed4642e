"""results.jsonl: what was measured, one JSON object a line, only ever appended to.

Every line carries `schema_version`, `run` (an id shared by the lines of one report), `time` (UTC) and `kind`:

run               the machine, the versions, the git revision, the settings
ceiling           a roof of the machine                                      (ceilings.py)
startup           an import, a first call in a fresh process, a small call   (startup.py)
conformance       how many cases passed and failed                           (qualify.py)
tuning            a kernel's config at one problem, and its gain             (autotune)
training          one logged iteration of a study                            (studies/)
training_summary  one method of a study
gate              whether a contender's results agree with ours
timing            one contender on one workload and shape: raw samples, median, interval
memory            peak memory of our call
left_out          what was not measured, and why
run_end           how the run ended
"""

from __future__ import annotations

import json
import math
import uuid
import warnings
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1


class Results:
    """Appends the records of one run to a file; each line is on the disk when `add` returns."""

    def __init__(self, path: Path) -> None:
        self.run = uuid.uuid4().hex[:12]
        self.records: list[dict[str, Any]] = []
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


def last_run(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The records of the run that was begun last."""
    records = list(records)
    runs = [record["run"] for record in records if record["kind"] == "run"]
    return [record for record in records if runs and record["run"] == runs[-1]]
