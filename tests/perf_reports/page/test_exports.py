"""A run for other tools: a table of timings, Markdown, JUnit's XML; and the options of `report` that write them."""

import importlib.util
import json
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from tropigrad.cli import app
from tropigrad.perf_reports.commands import BadRequest
from tropigrad.perf_reports.formats import write_frame
from tropigrad.perf_reports.page import exports


@pytest.fixture
def compared(run_records):
    """A finished run whose results were compared: ours agrees, a peer does not."""
    gate = {"run": "abc", "kind": "gate", "op": "product", "workload": "forward", "shape_label": "S1 8×8×8"}
    return [
        *run_records,
        {**gate, "contender": "dense eager", "role": "dense", "gate": "green", "is_reference": True, "detail": "same"},
        {**gate, "contender": "a peer", "role": "peer", "gate": "red", "is_reference": False, "detail": "differs by 1"},
    ]


def test_the_markdown_begins_with_what_is_red_then_with_what_loses(compared):
    title, _, head, rule, *lines = exports.markdown(compared).splitlines()
    assert title == "### tropigrad report: 8 comparisons, 4 without a sure gain, 1 differ"
    assert head.count("|") == rule.count("|") == 8
    assert lines[0] == "| product | forward | S1 8×8×8 | a peer | – | – | ✗ differs by 1 |"
    assert lines[1] == "| product | forward | S1 8×8×8 | a peer | 0.800× | 0.72 – 0.88 | ✓ agrees |"
    assert lines[-1].split(" | ")[3:5] == ["dense eager", "40.0×"]


def test_junit_fails_where_ours_differ_and_skips_a_rival_that_does(compared, tmp_path):
    path = tmp_path / "report.xml"
    exports.write_junit(compared, path)
    (suite,) = ElementTree.parse(path).getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("2", "0")
    assert [[part.tag for part in case] for case in suite] == [[], ["skipped"]]
    compared[-2]["gate"] = "red"
    exports.write_junit(compared, path)
    (suite,) = ElementTree.parse(path).getroot()
    assert suite.get("failures") == "1"
    assert [[part.tag for part in case] for case in suite] == [["failure"], ["skipped"]]


def test_a_drawn_again_run_is_exported_too(compared, tmp_path, words_alone):
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in compared))
    words = ("report", "--redraw", str(path), "--markdown", str(tmp_path / "a.md"), "--junit", str(tmp_path / "a.xml"))
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "a.md").read_text() == exports.markdown(compared)
    assert ElementTree.parse(tmp_path / "a.xml").getroot().get("name") == "tropigrad report"
    done = CliRunner().invoke(app, ["report", "--redraw", str(path), "--markdown", str(tmp_path / "no" / "a.md")])
    assert done.exit_code == 2
    assert "expected a file that can be written" in done.stderr


def test_without_pyarrow_parquet_is_refused_before_anything_is_measured(monkeypatch, tmp_path):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "pyarrow" else find_spec(name, *a)
    )
    done = CliRunner().invoke(app, ["report", "--parquet", str(tmp_path / "a.parquet"), "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "pip install 'tropigrad[reports]' pyarrow" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_timings_are_a_table(compared, tmp_path):
    pandas = pytest.importorskip("pandas")
    path = tmp_path / "timings.parquet"
    if importlib.util.find_spec("pyarrow") is None:
        with pytest.raises(BadRequest, match="pip install 'tropigrad"):
            exports.write_timings(compared, path)
        return
    exports.write_timings(compared, path)
    frame = pandas.read_parquet(path)
    assert len(frame) == 16
    assert set(frame["dtype"]) == {"float32"}


def test_a_table_is_written_as_csv_by_its_ending(tmp_path):
    pytest.importorskip("pandas")
    write_frame([{"a": 1, "b": "x"}], tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == "a,b\n1,x\n"
