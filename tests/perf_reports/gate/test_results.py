"""Two results files: a slower call is told, a slower machine is not, and what cannot be compared is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tropigrad.cli import app
from tropigrad.perf_reports.commands import BadRequest
from tropigrad.perf_reports.gate import results

CELLS = ("tropical_matmul", "path_norm", "held_step")


def write(
    path: Path, factors: dict[str, float], *, machine: float = 1.0, cpu: str = "A", seed: int = 0, rivals=("dense",)
):
    """A report's file: each call of ours by its factor, all of it by the machine's."""
    numbers = np.random.default_rng(seed)
    common = {"schema_version": 1, "run": f"run{seed}", "time": "2026-01-01T00:00:00+00:00"}
    records = [{"kind": "run", "machine": {"cpu": cpu, "threads": 2}, "versions": {"torch": f"2.{seed}"}}]
    for op, factor in factors.items():
        for contender in ("tropigrad", *rivals):
            role, scale = ("ours", factor) if contender == "tropigrad" else ("dense", 3.0)
            seconds = (1e-3 * scale * machine * np.exp(numbers.normal(0, 0.02, 25))).tolist()
            records.append(
                {"kind": "timing", "op": op, "workload": "forward", "shape_label": "S", "contender": contender,
                 "role": role, "gate": "green", "mix": "", "operations": 1.0, "bytes": 1.0, "rate": 1.0,
                 "seconds": seconds, "median": dict.fromkeys(("value", "low", "high"), 1.0), "ratio": None}
            )  # fmt: skip
    path.write_text("".join(json.dumps(common | record) + "\n" for record in records))
    return path


@pytest.fixture
def before(tmp_path):
    return write(tmp_path / "before.jsonl", dict.fromkeys(CELLS, 1.0))


def test_a_slower_call_is_told_on_a_machine_that_got_faster(before, tmp_path):
    factors = dict.fromkeys(CELLS, 1.0) | {"path_norm": 1.4}
    outcome = results.compare(before, write(tmp_path / "after.jsonl", factors, machine=0.9, seed=1))
    assert ([c.name for c in outcome.slower], outcome.exit_code) == (["path_norm, forward, S"], 1)
    assert outcome.slower[0].ratio.value == pytest.approx(1.4 * 0.9, rel=0.03)
    assert outcome.slower[0].relative
    assert outcome.slower[0].relative.value == pytest.approx(1.4, rel=0.03)
    told = results.lines(outcome)
    assert "path_norm" in told[0]
    assert told[0].endswith("SLOWER")
    assert told[-2:] == ["torch: 2.0 -> 2.1", "1 of 3 calls slower by 3% or more"]


def test_a_slower_machine_is_no_slower_call(before, tmp_path):
    after = write(tmp_path / "after.jsonl", dict.fromkeys(CELLS, 1.0), machine=1.5, seed=1)
    assert results.compare(before, after).exit_code == 0
    alone = write(tmp_path / "alone.jsonl", dict.fromkeys(CELLS, 1.0), machine=1.5, seed=1, rivals=())
    assert results.compare(before, alone).exit_code == 1  # no rival tells the two apart


def test_the_effect_can_be_chosen_and_what_one_has_alone_is_told(before, tmp_path):
    after = write(tmp_path / "after.jsonl", {"path_norm": 1.06, "new": 1.0}, seed=1)
    assert results.compare(before, after).exit_code == 1
    outcome = results.compare(before, after, effect=0.1)
    assert outcome.exit_code == 0
    assert (outcome.only_before, outcome.only_after) == (
        ["tropical_matmul, forward, S", "held_step, forward, S"],
        ["new, forward, S"],
    )


@pytest.mark.parametrize(
    ("after", "words"),
    [
        pytest.param(lambda path: path, "no such file", id="missing"),
        pytest.param(
            lambda path: write(path, {"path_norm": 1.0}, cpu="B"), "expected one: times of two differ", id="machine"
        ),
        pytest.param(lambda path: write(path, {}), "holds no timing of ours", id="empty"),
        pytest.param(lambda path: write(path, {"new": 1.0}), "share no call", id="nothing shared"),
    ],
)
def test_what_cannot_be_compared_is_refused(before, tmp_path, after, words):
    with pytest.raises(BadRequest, match=words):
        results.compare(before, after(tmp_path / "after.jsonl"))


def test_the_command(before, tmp_path):
    after = write(tmp_path / "after.jsonl", dict.fromkeys(CELLS, 1.0) | {"path_norm": 1.06}, seed=1)
    run = CliRunner().invoke
    done = run(app, ["perf", "compare", str(before), str(after), "--jsonl", str(tmp_path / "c.jsonl")])
    assert done.exit_code == 1
    assert json.loads((tmp_path / "c.jsonl").read_text().splitlines()[0])["slower"] == ["path_norm, forward, S"]
    assert run(app, ["perf", "compare", str(before), str(after), "--fail-if", "10%"]).exit_code == 0
    done = run(app, ["perf", "compare", str(before), str(after), "--fail-if", "much"])
    assert (done.exit_code, "expected a share such as 5%" in done.output) == (2, True)
