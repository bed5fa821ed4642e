"""`report --module`: an op of the user's own file goes from there to the page; a file that cannot be used is named."""

import json
import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tropigrad import autotune
from tropigrad.cli import app
from tropigrad.kernels.contract.registry import REGISTRY
from tropigrad.perf_reports import modules
from tropigrad.perf_reports.measuring import benchmark, ceilings
from tropigrad.perf_reports.measuring.memory import Memory

from .conftest import ceiling

PAGE = Path(__file__).parents[2] / "docs" / "your-own-op.md"


@pytest.fixture
def forgotten(monkeypatch):
    """Takes back what a test's files register."""
    monkeypatch.setattr(modules, "_loaded", set())
    tables = [(table, dict(table)) for table in (REGISTRY, autotune.TUNABLE)]
    yield
    for table, before in tables:
        for name in table.keys() - before.keys():
            del table[name]
    sys.modules.pop("mine", None)


@pytest.fixture
def mine(tmp_path, forgotten):
    """The spec of the page on one's own op, in a file; a thousand elements in place of a million."""
    code = re.search(r"^```python\n(.*?)^records = ", PAGE.read_text(), re.M | re.S)
    assert code
    path = tmp_path / "mine.py"
    path.write_text(code[1].replace("1_000_000", "1000"))
    return path


@pytest.fixture
def report(monkeypatch, tmp_path, words_alone):
    """`report("--only", "middle")`: the finished command, into tmp_path/out; nothing of the machine is measured."""
    monkeypatch.setattr(ceilings, "measure", lambda quick, progress: iter([ceiling("memory", 1, 20.0, "GB/s")]))
    monkeypatch.setattr("tropigrad.perf_reports.tune.keep_ceilings", lambda *arguments: None)
    monkeypatch.setattr(benchmark, "_LEAST_S", {False: 0.01, True: 0.01})
    monkeypatch.setattr(benchmark, "peak_memory", lambda call: (call(), Memory(2048, 1024, "made up")))
    monkeypatch.delenv("TROPIGRAD_DATA", raising=False)
    return lambda *words: CliRunner().invoke(app, ["report", *words, "--out", str(tmp_path / "out")])


def test_an_op_of_a_file_goes_from_the_file_to_the_page_and_is_resumed_and_redrawn(report, mine, tmp_path):
    done = report("--module", str(mine), "--only", "middle", "--quick", "--budget", "0.2s")
    assert done.exit_code == 0, done.output
    assert "middle of three forward" in done.stdout
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert lines[0]["settings"]["module"] == [str(mine)]
    assert [(r["op"], r["contender"]) for r in lines if r["kind"] == "timing"] == [
        ("middle", "middle"),
        ("middle", "dense eager"),
    ]
    page = (tmp_path / "out" / "index.html").read_text()
    assert f"tropigrad report --quick --only middle --module {mine}" in page
    resumed = report("--resume")
    assert "nothing was left to measure" in resumed.stdout
    assert "asked for ['json']" in report("--resume", "--module", "json").stderr
    redrawn = CliRunner().invoke(app, ["report", "--redraw", str(tmp_path / "out" / "results.jsonl")])
    assert redrawn.exit_code == 0, redrawn.output


def test_a_list_names_the_ops_of_a_module_by_its_name(report, mine, monkeypatch):
    monkeypatch.chdir(mine.parent)
    assert "  middle\n" in report("--module", "mine", "--list").stdout
    assert "  middle\n" in report("--module", "mine", "--list").stdout  # once is enough


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("nowhere.py", None, "nowhere.py: no such file; expected a Python file"),
        ("no_such_module", None, "no_such_module: it raises ModuleNotFoundError"),
        ("raises.py", "raise ZeroDivisionError('no luck')", "raises.py: it raises ZeroDivisionError: no luck"),
        ("leaves.py", "raise SystemExit(0)", "leaves.py: it raises SystemExit: 0"),
        ("empty.py", "", "empty.py: it registers no op; expected a call of tropigrad.kernels.contract.registry"),
        ("json.py", "", "json.py: it raises ImportError: a module 'json' is loaded already, from "),
    ],
    ids=["missing", "unknown", "raises", "exits", "empty", "taken"],
)
def test_a_module_that_cannot_be_used_is_named_and_nothing_is_written(report, forgotten, tmp_path, name, code, words):
    if code is not None:
        (tmp_path / name).write_text(code)
        name = str(tmp_path / name)
    done = report("--module", name)
    assert done.exit_code == 2
    assert words in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_file_that_raises_after_it_registered_an_op_leaves_none(report, mine):
    mine.write_text(mine.read_text() + "\nraise ValueError('too late')\n")
    assert "it raises ValueError: too late" in report("--module", str(mine)).stderr
    assert "middle" not in REGISTRY
    assert "middle" not in autotune.TUNABLE
