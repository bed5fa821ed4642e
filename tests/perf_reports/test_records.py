"""results.jsonl: nothing is lost, nothing is rewritten, and what is read is what was written."""

import json
import math

import pytest

from tropigrad.perf_reports.records import SCHEMA_VERSION, Results, last_run, read, read_what_can_be, standing

from .conftest import front


def test_records_come_back_with_what_every_line_has(tmp_path):
    path = tmp_path / "results.jsonl"
    with Results(path) as kept:
        kept.add({"kind": "run", "words": "ms·µ"})
        kept.add({"kind": "timing", "seconds": (1.0, 2.0)})
    found = read(path)
    assert [record["kind"] for record in found] == ["run", "timing"]
    assert found == kept.records
    assert found[1]["seconds"] == [1.0, 2.0]
    assert all(record["schema_version"] == SCHEMA_VERSION and record["run"] == kept.run for record in found)


def test_a_record_is_on_the_disk_when_add_returns(tmp_path):
    path = tmp_path / "results.jsonl"
    with Results(path) as kept:
        kept.add({"kind": "run"})
        assert len(read(path)) == 1


def test_a_second_run_appends_and_is_the_last(tmp_path):
    path = tmp_path / "results.jsonl"
    for number in range(2):
        with Results(path) as kept:
            kept.add({"kind": "run", "number": number})
            kept.add({"kind": "timing", "number": number})
    first = path.read_text().splitlines()[:2]
    assert [json.loads(line)["number"] for line in first] == [0, 0]
    assert [record["number"] for record in last_run(read(path))] == [1, 1]
    assert last_run([]) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_what_json_has_no_number_for_becomes_null(tmp_path, value):
    with Results(tmp_path / "r.jsonl") as kept:
        kept.add({"kind": "training", "loss": value, "nested": {"list": [value, 1.0]}})
    (record,) = read(tmp_path / "r.jsonl")
    assert record["loss"] is None
    assert record["nested"] == {"list": [None, 1.0]}


def test_a_line_cut_off_by_a_kill_is_dropped_and_swallows_nothing(tmp_path):
    path = tmp_path / "results.jsonl"
    with Results(path) as kept:
        kept.add({"kind": "run", "number": 0})
    with path.open("a") as file:
        file.write('{"schema_version": 1, "kind": "tim')
    with Results(path) as kept:
        kept.add({"kind": "run", "number": 1})
    with pytest.warns(RuntimeWarning, match="line 2 is cut off"):
        found = read(path)
    assert [record["number"] for record in found] == [0, 1]


def test_another_schema_is_refused_by_line(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"schema_version": 99, "kind": "run"}\n')
    with pytest.raises(ValueError, match=r"line 1 has schema_version 99; this version reads 1"):
        read(path)


def lines_of(records):
    return [json.dumps(record) for record in records]


def test_a_whole_file_is_read_without_complaint(run_records, tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text("\n".join(lines_of(run_records)) + "\n")
    reading = read_what_can_be(path)
    assert reading.complaints == []
    assert reading.records == run_records


def test_what_can_be_read_of_a_damaged_file_is_read_and_the_rest_named(run_records, tmp_path):
    path = tmp_path / "results.jsonl"
    lines = lines_of(run_records)
    lines[3] = lines[3][:40]
    lines[7] = "[1, 2]"
    older = {"schema_version": 0, "run": "abc", "kind": "timing", "op": "product", "time_ms": 3.0}
    later = {"schema_version": 2, "run": "abc", "kind": "telemetry"}
    path.write_bytes(("\n".join([*lines, json.dumps(older), json.dumps(later)]) + "\n").encode() + b"\xff\xfe")
    reading = read_what_can_be(path)
    assert len(reading.records) == len(run_records) - 2
    cut, no_record, schema, binary = reading.complaints
    assert cut == "line 4 is cut off, or no JSON"
    assert no_record.startswith("line 8 is no record")
    assert schema.startswith(f"line {len(lines) + 1}, timing: no usable workload, ")
    assert "schema_version 0; this is 1" in schema
    assert binary.startswith(f"line {len(lines) + 3} is cut off")


def test_records_whose_run_has_lost_its_head_get_one(run_records, tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text("\n".join(lines_of(run_records[1:])) + "\n")
    reading = read_what_can_be(path)
    assert len(reading.complaints) == 1
    assert "run abc: the line it began with is missing" in reading.complaints[0]
    assert [record["run"] for record in last_run(reading.records)] == ["abc"] * len(run_records)


def test_a_run_is_named_by_the_beginning_of_its_id():
    records = [{"kind": "run", "run": run} for run in ("abc", "abd", "xyz")]
    assert [r["run"] for r in last_run(records, "ab")] == ["abd"]
    assert last_run(records, "q") == []


def test_a_front_without_its_norms_is_named_and_left_out(tmp_path):
    path = tmp_path / "results.jsonl"
    head, whole = {"kind": "run", "run": "abc"}, front("held λ", "ours", [(2.0, 1.0, 3), (1.0, 2.0, 5)])
    points = [[], [{"loss": 1.0, "l1": None, "nnz": 3}], [1.0], None]
    broken = [{**whole, "run": "abc", "points": value} for value in points]
    path.write_text("\n".join(lines_of([head, {**whole, "run": "abc"}, *broken])) + "\n")
    reading = read_what_can_be(path)
    assert [r["kind"] for r in reading.records] == ["run", "front"]
    assert [line.split(": ")[1][:16] for line in reading.complaints] == ["no usable points"] * 4


def test_of_a_front_that_was_walked_again_the_later_one_stands():
    first, later = (front("held λ", "ours", [(loss, 1.0, 3), (1.0, 2.0, 5)]) for loss in (2.0, 3.0))
    assert standing([first, later]) == [later]


def test_what_was_measured_again_counts_once(run_records):
    timing = next(r for r in run_records if r["kind"] == "timing")
    cell = {name: timing[name] for name in ("op", "workload", "shape_label")}
    budget = {"kind": "left_out", "run": "abc", "reason": "the time was spent", "budget": True, **cell}
    whole = {**budget, "what": "the cell", "contender": None}
    rival = {**budget, "what": "a rival", "contender": "torch.compile"}
    faster = {**timing, "rate": 123.0}
    run = [run_records[0], whole, rival, timing, faster]
    assert standing(run) == [run_records[0], rival, faster]
    assert standing([*run, {**timing, "contender": "torch.compile"}])[1:2] == [faster]
