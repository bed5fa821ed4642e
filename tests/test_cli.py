"""The command line: exit codes, one-line errors, machine-readable output, and an interruption of a real run."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from tropigrad import __version__, autotune, cli
from tropigrad.autotune import contest, shipped
from tropigrad.cli import app
from tropigrad.kernels.runtime import native
from tropigrad.kernels.tropical_matmul import by_cpp
from tropigrad.perf_reports import doctor, output, qualify, report, tune


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


@pytest.mark.parametrize(
    "command",
    [
        *("report", "doctor", "tune", "explain", "cache list", "cache verify", "qualify"),
        *("train maxplus", "train gsgd", "train ftprop", "train l1path"),
    ],
)
def test_every_command_explains_itself(tropigrad, command):
    done = tropigrad(*command.split(), "--help")
    assert done.exit_code == 0
    assert "--json" in done.stdout


def test_help_shows_what_stands_in_brackets():
    """rich takes "[default: …]" for markup, and leaves it out."""
    done = CliRunner().invoke(app, ["train", "gsgd", "--help"], env={"COLUMNS": "200"})
    assert "mnist with --data-dir, else digits" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("report", "--nonsense"),
        ("report", "--seed", "x"),
        ("report", "--only", "nonsense"),
        ("report", "--data-dir", "/nowhere"),
        ("tune", "nonsense"),
        ("tune", "tropical_matmul", "--shapes", "M=3"),
        ("tune", "tropical_matmul", "--shapes", "M=3,K=4,N=x"),
        ("tune", "tropical_matmul", "--shapes", "M=3,K=4,N=0"),
        ("tune", "tropical_matmul", "--budget", "soon"),
        ("tune", "tropical_matmul", "--dtype", "float8"),
        ("explain", "nonsense", "M=3"),
        ("explain", "tropical_matmul", "M=3"),
        ("cache",),
        ("qualify", "--budget", "-3s"),
        ("qualify", "--only", "nonsense"),
        ("qualify", "--resume"),
    ],
    ids=" ".join,
)
def test_bad_use_is_2_and_writes_nothing(tropigrad, tmp_path, arguments):
    out = ("--out", str(tmp_path / "out")) if arguments[0] in ("report", "qualify") else ()
    done = tropigrad(*arguments, *out)
    assert done.exit_code == 2
    assert "Traceback" not in done.output
    assert not (tmp_path / "out").exists()


def test_an_unknown_name_is_answered_in_one_line_with_the_nearest(tropigrad, tmp_path):
    done = tropigrad("report", "--only", "tropical_matmull", "--out", str(tmp_path))
    assert done.stderr.strip().count("\n") == 0 or done.stderr.strip().splitlines()[-1].startswith("tropigrad: ")
    assert all(name in done.stderr for name in ("'tropical_matmull'", "'tropical_matmul'", "--list"))


def test_a_missing_extra_is_named_with_the_fix(tropigrad, monkeypatch):
    monkeypatch.delitem(sys.modules, "tropigrad.perf_reports.report")
    monkeypatch.delattr("tropigrad.perf_reports.report")
    monkeypatch.delitem(sys.modules, "tropigrad.perf_reports.page.page")
    monkeypatch.delattr("tropigrad.perf_reports.page.page")
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
    outcome = report.ReportOutcome(
        tmp_path / "index.html", [head, *([red] if code == 1 else [])], code == 130, tmp_path / "results.jsonl"
    )
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
    if found["compiler"]["works"]:
        assert re.search(r"max-plus +[\d.]+ G steps/s at 512³ on one thread, \d+% of the [\d.]+ that its", text)
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


def test_doctor_names_a_backend_that_means_nothing_and_one_that_is_off(tropigrad, set_backend):
    set_backend("abacus")
    assert "TROPIGRAD_BACKEND is 'abacus'" in tropigrad("doctor").stdout
    set_backend("gluon")
    done = tropigrad("doctor")
    assert done.exit_code == 1
    assert "forces a backend that is off: Gluon kernels take NVIDIA GPUs" in done.stdout


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("TROPIGRAD_AUTOTUNE", "abacus", "TROPIGRAD_AUTOTUNE is 'abacus'; expected one of off, replay, tune"),
        ("TROPIGRAD_DATA", "/no/such/folder", "TROPIGRAD_DATA is '/no/such/folder', which is no folder"),
    ],
    ids=["autotune", "data"],
)
def test_doctor_names_a_variable_that_means_nothing(tropigrad, monkeypatch, name, value, match):
    monkeypatch.setenv(name, value)
    done = tropigrad("doctor")
    assert done.exit_code == 1
    assert f"problem: {match}" in done.stdout


@pytest.mark.parametrize("command", ["report", "qualify"])
def test_what_measures_refuses_a_mode_that_means_nothing(tropigrad, monkeypatch, tmp_path, command):
    monkeypatch.setenv("TROPIGRAD_AUTOTUNE", "abacus")
    done = tropigrad(command, "--out", str(tmp_path / "out"))
    assert done.exit_code == 2
    assert "TROPIGRAD_AUTOTUNE is 'abacus'; expected one of off, replay, tune" in done.stderr
    assert not (tmp_path / "out").exists()


def test_doctor_tells_the_processor_and_the_form_of_the_kernels(tropigrad):
    found = json.loads(tropigrad("doctor", "--json").stdout)
    text = tropigrad("doctor").stdout
    assert found["machine"]["cpu"] in text
    if not found["compiler"]["works"]:
        pytest.skip(found["compiler"]["why"])
    assert found["compiler"]["sums"] == ("fma" if native.adds_by_fma() else "addition")
    assert found["compiler"]["vector_bits"] in (128, 256, 512)
    assert f"vectors of {found['compiler']['vector_bits']} bits, sums by {found['compiler']['sums']}" in text


def test_doctor_leaves_no_probe_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TROPIGRAD_CACHE_DIR", str(tmp_path))
    doctor.examine()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert os.environ["TROPIGRAD_CACHE_DIR"] == str(tmp_path)


# ------------------------------------------------------------------------------------------------ any output

COMMANDS = (
    "--help", "report --help", "tune --help", "explain --help", "cache --help", "cache list --help",
    "cache verify --help", "cache clear --help", "qualify --help", "doctor --help", "train --help", "train gsgd --help",
    "train maxplus --help", "train ftprop --help", "explain tropical_matmul M=24 K=40 N=33",
    "explain tropical_matmul M=24 K=40 N=33 --json",
    "doctor -v", "doctor --json", "cache list", "cache verify", "cache list --json", "report --only nonsense×",
    "train maxplus --data iris --iterations 3 --hidden 9 --out {out}",
    "train maxplus --data iris --iterations 3 --hidden 9 --out {out} --json",
    "train ftprop --data iris --epochs 1 --out {out}",
    "train l1path --help",
    "train l1path --data iris --points 2 --first-steps 2 --correctors 1 --out {out}",
)  # fmt: skip


@pytest.fixture
def spoken(monkeypatch):
    """`spoken("ascii", "doctor")` -> exit code, stdout and stderr of the command on streams of that encoding."""

    def run(encoding, *words):
        streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict") for _ in range(2)]
        with monkeypatch.context() as patch:
            patch.delenv("TROPIGRAD_DATA", raising=False)
            patch.setattr(sys, "argv", ["tropigrad", *words])
            for name, stream in zip(("stdout", "stderr"), streams, strict=True):
                patch.setattr(sys, name, stream)
            with pytest.raises(SystemExit) as end:
                cli.run()
        for stream in streams:
            stream.flush()
        return end.value.code or 0, *(stream.buffer.getvalue().decode(encoding) for stream in streams)

    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_speaks_ascii(spoken, tmp_path, command):
    if "iris" in command:
        pytest.importorskip("sklearn", reason="scikit-learn carries the data")
    code, stdout, stderr = spoken("ascii", *command.format(out=tmp_path / "é").split())
    assert code in ((2,) if "nonsense" in command else (0, 1) if "doctor" in command else (0,)), stderr
    assert "PYTHONIOENCODING" not in stdout + stderr  # what rich advises
    if "--json" in command:
        assert json.loads(stdout)
    else:
        assert stdout + stderr


EXPLAIN = ("explain", "tropical_matmul", "M=24", "K=40", "N=33")


@pytest.mark.parametrize(("encoding", "sign"), [("ascii", "us"), ("latin-1", "µs"), ("utf-8", "µs")])
def test_an_output_has_the_signs_that_it_can(spoken, encoding, sign):
    assert f"{sign} at the least" in spoken(encoding, *EXPLAIN)[1]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("text", ["µ × é λ", os.fsdecode(b"/caf\xe9")], ids=["signs", "bytes of a file's name"])
def test_json_is_exact_on_any_output(spoken, monkeypatch, encoding, text):
    monkeypatch.setenv("TROPIGRAD_SIGNS", text)
    assert json.loads(spoken(encoding, *EXPLAIN, "--json")[1])["variables"]["TROPIGRAD_SIGNS"] == text
    assert "TROPIGRAD_SIGNS=" in spoken(encoding, *EXPLAIN)[1]


def test_what_has_no_spelling_is_escaped(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    output.take_any_encoding()
    stream.write("λ ≥ 2 µs, é \udce9")
    stream.flush()
    assert stream.buffer.getvalue() == b"lambda >= 2 us, \\xe9 \\udce9"


@pytest.mark.parametrize(
    ("module", "environment"),
    [
        ("tropigrad", {"PYTHONIOENCODING": "ascii"}),
        ("tropigrad.perf_reports.qualify", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
        ("tropigrad.perf_reports.studies.maxplus.costs", {"PYTHONIOENCODING": "ascii"}),
    ],
    ids=["command", "qualify, C locale", "costs"],
)
def test_programs_start_on_an_ascii_output(module, environment):
    inherited = {name: value for name, value in os.environ.items() if name not in ("LC_ALL", "PYTHONIOENCODING")}
    words = ("train", "maxplus", "--help") if module == "tropigrad" else ("--help",)
    done = subprocess.run([sys.executable, "-m", module, *words], capture_output=True, env=inherited | environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert b"PYTHONIOENCODING" not in done.stdout + done.stderr


# ------------------------------------------------------------------------------------------------ the tuner

SIZES = ("M=24", "K=40", "N=33")


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    """A cache of the test's own, and a C++ kernel that has few configs."""
    monkeypatch.setenv("TROPIGRAD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("TROPIGRAD_AUTOTUNE", raising=False)
    monkeypatch.setattr(contest, "DUEL_S", 0.1)
    default = by_cpp.FORWARD.default({})
    space = autotune.Space({name: (value, *_another(name, value)) for name, value in default.items()})
    monkeypatch.setattr(
        by_cpp, "FORWARD", autotune.Tuned("tropical_matmul.cpp", space, lambda _: default, by_cpp.FORWARD.source)
    )
    autotune.reload()
    yield autotune.store()
    monkeypatch.undo()
    autotune.reload()


def _another(name: str, value: int) -> tuple[int, ...]:
    choices = [choice for choice in by_cpp.FORWARD.space.choices[name] if choice != value]
    return tuple(choices[:1]) if name == next(iter(by_cpp.FORWARD.space.choices)) else ()


def test_tune_then_explain_then_the_cache(tropigrad, own_cache):
    if native.why_no_compiler():
        pytest.skip(native.why_no_compiler())
    done = tropigrad("tune", "tropical_matmul", "--shapes", ",".join(SIZES), "--budget", "60s", "--json")
    assert done.exit_code == 0, done.stderr
    findings = json.loads(done.stdout)["findings"]
    kernels = ["tropical_matmul.cpp"] * 2 + [
        "tropical_winners_scatter.cpp",
        "log_matmul.cpp",
        "log_matmul_backward.cpp",
    ]
    count = len(kernels)
    assert [finding["kernel"] for finding in findings] == kernels
    assert {finding["how"] for finding in findings} == {"tuned"}
    text = tropigrad("tune", "tropical_matmul", "--shapes", ",".join(SIZES), "-v").stdout
    assert text.count("reused: ") == count
    assert "1 timed, 0 rejected" in text

    done = tropigrad("explain", "tropical_matmul", *SIZES)
    assert done.exit_code == 0
    assert done.stdout.count("  source    user cache") == count
    explained = json.loads(tropigrad("explain", "tropical_matmul", *SIZES, "--json").stdout)["launched"]
    assert [found["choice"]["source"] for found in explained] == ["user cache"] * count

    listed = json.loads(tropigrad("cache", "list", "--json").stdout)["entries"]
    assert sorted(entry["kernel"] for entry in listed) == sorted(kernels)
    assert "tropical_matmul.cpp" in tropigrad("cache", "list").stdout
    assert tropigrad("cache", "verify").stdout == f"{count} entries, all whole\n"
    path, _ = next(own_cache.entries())
    path.write_text("{")
    done = tropigrad("cache", "verify", "--json")
    assert done.exit_code == 1
    assert str(path) in json.loads(done.stdout)["problems"][0]
    assert json.loads(tropigrad("cache", "clear", "--json").stdout) == {"removed": count}
    assert list(own_cache.entries()) == []


@pytest.mark.parametrize(
    ("answer", "options", "left", "code"),
    [("n\n", (), 1, 1), ("y\n", (), 0, 0), ("", ("--yes",), 0, 0)],
    ids=["no", "yes", "not asked"],
)
def test_on_a_terminal_the_cache_is_cleared_when_that_was_meant(monkeypatch, own_cache, answer, options, left, code):
    here = autotune.fingerprint(torch.device("cpu"))
    own_cache.put(here, {"kernel": "op", "source": "x", "problem": {}}, {"BLOCK": 16})
    monkeypatch.setattr("tropigrad.cli.tuning.sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)))
    done = CliRunner().invoke(app, ["cache", "clear", *options], input=answer)
    assert done.exit_code == code, done.output
    assert ("Remove 1 entries" in done.stderr) == (not options)
    assert len(list(own_cache.entries())) == left


def test_the_shell_completes():
    done = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"})
    assert "--install-completion" in done.stdout


def test_export_writes_the_table_of_this_device(tropigrad, own_cache, monkeypatch, tmp_path):
    monkeypatch.setattr(shipped, "TABLES", tmp_path / "tables")
    monkeypatch.setattr(tune, "run", lambda plan, **options: [])
    assert tropigrad("tune", "--export").exit_code == 2  # nothing is tuned: no empty table is shipped
    here = autotune.fingerprint(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    own_cache.put(here, {"kernel": "op", "source": "x", "problem": {}}, {"BLOCK": 16})
    done = tropigrad("tune", "--export", "--json")
    assert done.exit_code == 0
    (path,) = (tmp_path / "tables").iterdir()
    assert json.loads(done.stdout)["table"] == str(path)
    assert json.loads(path.read_text())["device"] == here.device


def test_a_wrong_default_is_1(tropigrad, own_cache, monkeypatch):
    def wrong(*args, **kwargs):
        raise autotune.WrongDefault("tropical_matmul.cpp at {}: output 0 differs")

    monkeypatch.setattr(tune, "run", wrong)
    done = tropigrad("tune")
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == "tropigrad: tropical_matmul.cpp at {}: output 0 differs"


def test_an_interrupted_tuning_says_how_to_go_on(tropigrad, own_cache, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(tune, "run", interrupted)
    done = tropigrad("tune")
    assert done.exit_code == 130
    assert "the same command goes on from there" in done.stderr


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, 0),
        ({"failed": ["a case"]}, 1),
        ({"wrong": ["a gate"]}, 1),
        ({"lost": ["a tuning"]}, 1),
        ({"interrupted": True}, 130),
    ],
    ids=["passed", "failed", "wrong", "lost", "interrupted"],
)
def test_qualify_ends_with_its_summary_and_its_code(tropigrad, tmp_path, monkeypatch, changes, code):
    monkeypatch.setattr(
        qualify, "run", lambda *a, **k: qualify.QualificationOutcome(tmp_path, "a GPU", passed=3, **changes)
    )
    done = tropigrad("qualify")
    assert done.exit_code == code
    assert "3 passed" in done.stdout
    assert done.stdout.splitlines()[-1] == f"read first   {tmp_path / '1-summary.md'}"
    assert json.loads(tropigrad("qualify", "--json").stdout)["passed"] == 3


@pytest.mark.parametrize(("complaints", "code"), [([], 0), (["a failure was not named"], 1)], ids=["passed", "failed"])
def test_a_rehearsal_ends_with_its_verdict_and_its_code(tropigrad, tmp_path, monkeypatch, complaints, code):
    outcome = qualify.QualificationOutcome(tmp_path, "a CPU")
    monkeypatch.setattr(
        qualify, "rehearse", lambda *a, **k: qualify.Rehearsal(outcome, {"it hangs": "lost: no end"}, 3, complaints)
    )
    done = tropigrad("qualify", "--rehearse")
    assert done.exit_code == code
    assert "it hangs: lost: no end" in done.stdout
    assert all(line in done.stdout for line in complaints)
    assert json.loads(tropigrad("qualify", "--rehearse", "--json").stdout)["passed"] == (not complaints)


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
    assert any(line.endswith("index.html") for line in stdout.splitlines())
    assert stdout.splitlines()[-1].endswith(f"tropigrad report --resume --out {tmp_path}")
