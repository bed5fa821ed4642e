"""The rehearsal of a bad day: the whole command in a process of its own, with nothing but torch, triton and NumPy."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tropigrad.perf_reports import qualify
from tropigrad.perf_reports.commands import BadRequest
from tropigrad.perf_reports.qualify import planted, rehearsal

# a sitecustomize, so that the processes which the command starts lack them too
BLOCKED = ("typer", "rich", "pandas", "matplotlib", "jinja2", "pytest", "scipy", "sklearn", "pyarrow", "onnx", "yaml")
WITHOUT = f"""
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {BLOCKED!r} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rehearsal")
    (folder / "sitecustomize.py").write_text(WITHOUT)
    source = Path(qualify.__file__).parents[2]  # the package's folder, or that of its links
    path = os.pathsep.join([str(folder), str(source.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "tropigrad.perf_reports.qualify", "--rehearse", "--out", str(folder / "out")]
    ended = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=600, encoding="utf-8"
    )
    return folder / "out", ended


def judged(out: Path) -> rehearsal.Rehearsal:
    return rehearsal.judge(qualify.QualificationOutcome(out, "a device"))


def test_it_passes_and_names_every_planted_failure(done):
    out, ended = done
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "rehearsal    passed" in ended.stdout
    summary = (out / qualify.SUMMARY).read_text(encoding="utf-8")
    for stage in planted.STAGES:
        for fault, (_, words) in planted.FAULTS.items():
            name = planted.name_of(stage, fault)
            assert f"{name}: " in ended.stdout
            (line,) = [line for line in summary.splitlines() if line.startswith(f"* {name}: ")]
            assert words in line


def test_everything_else_was_done_in_every_stage(done):
    out, _ = done
    assert judged(out).complaints == []
    items = [json.loads(line) for line in (out / qualify.ITEMS).read_text(encoding="utf-8").splitlines()]
    ended = {item["name"] for item in items if item["result"] != "begun"}
    for op in planted.OPS:
        assert any(name.startswith(f"{op}-") for name in ended)
        assert f"tuning of {op}" in ended
        assert any(name.startswith(f"speed of {op},") for name in ended)
    assert "ceilings" in ended
    assert len(list(out.iterdir())) <= 8


def test_it_says_what_is_not_installed(done):
    assert "matplotlib is not installed" in (done[0] / qualify.SUMMARY).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "before", "after", "complaint"),
    [
        ("5-items.jsonl", "killed by SIGKILL", "it went", "expected 'lost' with 'killed by SIGKILL'"),
        ("5-items.jsonl", '"result": "lost"', '"result": "passed"', "it came to 'passed'"),
        ("5-items.jsonl", '"passed"', '"lost"', "though nothing was planted there"),
        ("1-summary.md", planted.name_of("speed", "hangs"), "something", "1-summary.md does not name it"),
        ("4-results.jsonl", '{"schema_version"', '{"sche', "is no JSON"),
    ],
    ids=["another reason", "not lost", "another item lost", "not named", "half a line"],
)
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_what_is_not_as_it_should_be_fails_it(done, tmp_path, file, before, after, complaint):
    for path in done[0].iterdir():
        text = path.read_text(encoding="utf-8")
        (tmp_path / path.name).write_text(text.replace(before, after) if path.name == file else text, encoding="utf-8")
    verdict = judged(tmp_path)
    assert verdict.exit_code == 1
    assert any(complaint in line for line in verdict.complaints), verdict.complaints


def test_a_rehearsal_and_a_qualification_do_not_share_a_folder(tmp_path):
    (tmp_path / qualify.RESULTS).write_text("")
    with pytest.raises(BadRequest, match="something else than a rehearsal"):
        qualify.rehearse(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / rehearsal.MARK).touch()
    with pytest.raises(BadRequest, match="holds a rehearsal"):
        qualify.run(other)
