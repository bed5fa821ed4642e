"""The command line: exit codes, one-line errors, machine-readable output, and an interruption of a real run."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from tropigrad import __version__
from tropigrad.cli import app
from tropigrad.perf_reports import doctor, report


@pytest.fixture
def tropigrad(monkeypatch):
    """`tropigrad("doctor", "--json")` -> the finished command."""
    monkeypatch.delenv("TROPIGRAD_DATA", raising=False)
    monkeypatch.delenv("TROPIGRAD_BACKEND", raising=False)
    return lambda *arguments: CliRunner().invoke(app, arguments)


def test_version(tropigrad):
    done = tropigrad("--version")
    assert done.exit_code == 0
    assert done.stdout == f"tropigrad {__version__}\n"


def test_help_names_the_commands_and_loads_no_torch():
    code = "import sys, tropigrad.cli; assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("command", ["report", "doctor"])
def test_every_command_explains_itself(tropigrad, command):
    done = tropigrad(command, "--help")
    assert done.exit_code == 0
    assert "--json" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("report", "--nonsense"),
        ("report", "--seed", "x"),
        ("report", "--only", "nonsense"),
        ("report", "--data-dir", "/nowhere"),
    ],
    ids=" ".join,
)
def test_bad_use_is_2_and_writes_nothing(tropigrad, tmp_path, arguments):
    out = ("--out", str(tmp_path / "out")) if arguments[0] == "report" else ()
    done = tropigrad(*arguments, *out)
    assert done.exit_code == 2
    assert "Traceback" not in done.output
    assert not (tmp_path / "out").exists()


def test_an_unknown_name_is_answered_in_one_line_with_the_known(tropigrad, tmp_path):
    done = tropigrad("report", "--only", "nonsense", "--out", str(tmp_path))
    assert done.stderr.strip().count("\n") == 0 or done.stderr.strip().splitlines()[-1].startswith("tropigrad: ")
    assert all(name in done.stderr for name in ("'nonsense'", "maxplus", "tropical_matmul", "forward"))


def test_a_missing_extra_is_named_with_the_fix(tropigrad, monkeypatch):
    monkeypatch.delitem(sys.modules, "tropigrad.perf_reports.report")
    monkeypatch.delattr("tropigrad.perf_reports.report")
    monkeypatch.delitem(sys.modules, "tropigrad.perf_reports.page")
    monkeypatch.delattr("tropigrad.perf_reports.page")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    done = tropigrad("report")
    assert done.exit_code == 2
    assert done.stderr == "tropigrad: the report needs jinja2: pip install 'tropigrad[reports]'\n"


def test_an_out_that_is_a_file_is_2(tropigrad, tmp_path):
    (tmp_path / "out").write_text("mine")
    done = tropigrad("report", "--only", "maxplus", "--out", str(tmp_path / "out"))
    assert done.exit_code == 2
    assert (tmp_path / "out").read_text() == "mine"
    assert "Traceback" not in done.output


@pytest.mark.parametrize("code", [0, 1, 130])
def test_a_report_ends_with_its_summary_and_its_code(tropigrad, tmp_path, monkeypatch, code):
    head = {"kind": "run", "run": "abc", "machine": {"cpu": "a processor", "threads": 2}, "versions": {"torch": "2"}}
    red = {"kind": "gate", "gate": "red", "role": "ours", "op": "o", "workload": "w", "shape_label": "s", "detail": "d"}
    outcome = report.Outcome(tmp_path / "index.html", [head, *([red] if code == 1 else [])], interrupted=code == 130)
    monkeypatch.setattr(report, "run", lambda *a, **k: outcome)
    done = tropigrad("report")
    assert done.exit_code == code
    assert len(done.stdout.splitlines()) == 6
    assert done.stdout.splitlines()[-1] == f"page      {tmp_path / 'index.html'}"
    done = tropigrad("report", "--json")
    assert done.exit_code == code
    assert json.loads(done.stdout)["interrupted"] is (code == 130)


def test_doctor_tells_what_is_on_and_why_the_rest_is_off(tropigrad):
    done = tropigrad("doctor", "--json")
    found = json.loads(done.stdout)
    assert done.exit_code == (1 if found["problems"] else 0)
    assert found["backends"]["cpu"]["torch"] == ""
    assert found["backends"]["cpu"]["gluon"].startswith("Gluon kernels take NVIDIA GPUs")
    assert found["versions"]["tropigrad"] == __version__
    text = tropigrad("doctor", "-v").stdout
    assert "torch on cpu" in text
    assert found["cache"]["folder"] in text


def test_doctor_is_1_where_a_compiler_is_there_but_compiles_nothing(tropigrad, monkeypatch, tmp_path):
    pretender = tmp_path / "c++"
    pretender.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "pretender 1.0" && exit 0\necho "fatal error: no" >&2; exit 1\n'
    )
    pretender.chmod(0o755)
    monkeypatch.setenv("CXX", str(pretender))
    done = tropigrad("doctor", "--json")
    assert done.exit_code == 1
    assert "fatal error: no" in json.loads(done.stdout)["problems"][0]


def test_doctor_is_0_without_a_compiler(tropigrad, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    done = tropigrad("doctor", "--json")
    assert done.exit_code == 0
    assert "no C++ compiler" in json.loads(done.stdout)["backends"]["cpu"]["cpp"]


def test_doctor_names_a_backend_that_means_nothing_and_one_that_is_off(tropigrad, monkeypatch):
    monkeypatch.setenv("TROPIGRAD_BACKEND", "abacus")
    assert "TROPIGRAD_BACKEND is 'abacus'" in tropigrad("doctor").stdout
    monkeypatch.setenv("TROPIGRAD_BACKEND", "gluon")
    done = tropigrad("doctor")
    assert done.exit_code == 1
    assert "forces a backend that is off: Gluon kernels take NVIDIA GPUs" in done.stdout


def test_doctor_leaves_no_probe_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TROPIGRAD_CACHE_DIR", str(tmp_path))
    doctor.examine()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert os.environ["TROPIGRAD_CACHE_DIR"] == str(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_keeps_what_was_measured(tmp_path):
    command = [sys.executable, "-m", "tropigrad", "report", "--quick", "--only", "maxplus", "--out", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "TROPIGRAD_DATA"}
    process = subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    kept = tmp_path / "results.jsonl"
    end = time.monotonic() + 90
    while process.poll() is None and time.monotonic() < end:
        if kept.exists() and '"training"' in kept.read_text():
            process.send_signal(signal.SIGINT)
            break
        time.sleep(0.05)
    stdout, stderr = process.communicate(timeout=90)
    assert process.returncode == 130, stderr
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    assert lines[-1]["kind"] == "run_end"
    assert lines[-1]["interrupted"] is True
    assert "Interrupted." in (tmp_path / "index.html").read_text()
    assert stdout.splitlines()[-1].endswith("index.html")
