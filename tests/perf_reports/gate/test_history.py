"""Figures over revisions: changes found and not invented, and the forms that other dashboards read."""

import csv
import json

import numpy as np
import pytest

from tropigrad.perf_reports.commands import BadRequest
from tropigrad.perf_reports.gate import history


def noisy(*levels: float, each: int = 12, seed: int = 0) -> list[float]:
    numbers = np.random.default_rng(seed)
    return [level * float(np.exp(numbers.normal(0, 0.01))) for level in levels for _ in range(each)]


@pytest.fixture
def runs(tmp_path):
    """Twelve runs of a gate and of a report; from the seventh on all is slower by a half."""
    paths = []
    for number in range(12):
        value = 100 if number < 6 else 150
        head = {"kind": "gate", "time": f"2026-01-{number + 1:02}T00:00:00", "git_revision": f"{number:040x}"}
        median = {"value": value * 1e-6, "low": 0, "high": 1}
        timing = {"kind": "timing", "role": "ours", "op": "op", "workload": "forward", "shape_label": "S1"}
        rows = [head, {"kind": "measured", "tier": 0, "of": "k", "target": "sm_90", "figures": {"registers": value}}]
        rows.append({**timing, "median": median})
        paths.append(tmp_path / f"{number}.jsonl")
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"kind": "tim')
    return paths


def test_a_change_is_found_at_its_place():
    (change,) = history.changes(noisy(1.0, 1.1))
    assert change.index == 12
    assert change.ratio == pytest.approx(1.1, rel=0.02)
    assert [c.index for c in history.changes(noisy(1.0, 1.1, 0.9))] == [12, 24]


def test_noise_is_no_change():
    assert sum(bool(history.changes(noisy(1.0, each=40, seed=seed))) for seed in range(20)) == 0
    outliers = noisy(1.0, each=20)
    outliers[5] = outliers[12] = 2.0
    assert history.changes(outliers) == []
    assert history.changes([0.0] * 20) == history.changes([1.0]) == []


def test_runs_of_gates_and_reports_are_series(runs):
    series = history.read(reversed(runs))
    assert {name: len(points) for name, points in series.items()} == {"k, sm_90, registers": 12, "op, forward, S1": 12}
    assert [p.value for p in series["k, sm_90, registers"]] == [100.0] * 6 + [150.0] * 6
    told = history.lines(series)
    assert len(told) == 2
    assert told[0] == f"k, sm_90, registers: 100 -> 150 (1.50 x) at {6:012x}"[:-12] + f"{6:040x}"[:12]


def test_the_picture_and_the_forms_of_other_tools(runs, tmp_path):
    series = history.read(runs)
    history.draw(series, tmp_path / "h.png")
    assert (tmp_path / "h.png").read_bytes().startswith(b"\x89PNG")
    for ending in ("csv", "asv.json", "pytest-benchmark.json"):
        history.export(series, tmp_path / f"h.{ending}")
    rows = list(csv.DictReader((tmp_path / "h.csv").read_text().splitlines()))
    assert (len(rows), rows[0]["name"], float(rows[0]["value"])) == (24, "k, sm_90, registers", 100.0)
    asv = json.loads((tmp_path / "h.asv.json").read_text())
    assert len(asv) == 12
    assert asv[0]["commit_hash"] == f"{0:040x}"
    assert asv[0]["results"]["op, forward, S1"] == [[pytest.approx(1e-4)]]
    saved = json.loads((tmp_path / "h.pytest-benchmark.json").read_text())
    assert {b["name"]: b["stats"]["median"] for b in saved["benchmarks"]}["k, sm_90, registers"] == 150.0
    assert saved["commit_info"]["id"] == f"{11:040x}"


def test_what_is_no_history_is_refused(tmp_path, runs):
    (tmp_path / "other.jsonl").write_text('{"kind": "other"}\n')
    (tmp_path / "list.jsonl").write_text("[1]\n")
    for name, words in (
        ("absent.jsonl", "no such file"), ("other.jsonl", "no timings and no figures"), ("list.jsonl", "line 1"),
    ):  # fmt: skip
        with pytest.raises(BadRequest, match=words):
            history.read([tmp_path / name])
    with pytest.raises(BadRequest, match=r"expected a name in \.parquet"):
        history.export(history.read(runs), tmp_path / "h.xml")
