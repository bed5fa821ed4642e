"""results.jsonl: nothing is lost, nothing is rewritten, and what is read is what was written."""

import json
import math

import pytest

from tropigrad.perf_reports.records import SCHEMA_VERSION, Results, last_run, read


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
