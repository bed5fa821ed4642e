"""qualify: a case that crashes or hangs costs itself alone; what is cut off is listed; a kill costs nothing done."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tropigrad.kernels.contract.conformance import Case, NotHere, machines
from tropigrad.kernels.contract.registry import REGISTRY
from tropigrad.kernels.runtime import backend
from tropigrad.perf_reports import qualify, records

CPU = torch.device("cpu")


def quiet(*what) -> None:
    pass


def failing():
    raise AssertionError("7 of 9 differ\nand more")


def absent():
    raise NotHere("no GPU")


@pytest.fixture
def suite(monkeypatch):
    """Five cases of an op that is none; a dictionary that a test may change."""
    runs = {"a": lambda: None, "b": failing, "c": absent, "d": lambda: None, "e": lambda: None}

    def cases(device, ops):
        return [Case("op", "promise", name, lambda name=name: runs[name]()) for name in runs]

    monkeypatch.setattr(qualify, "cases", cases)
    return runs


def in_this_process(file: Path, ops, names, end, progress):
    """What _run_cases does in a process of its own; SystemExit stands for a crash."""
    listed = file.with_suffix(".todo")
    listed.write_text(json.dumps({"ops": ops, "names": names}))
    try:
        qualify.run_cases(listed)
    except SystemExit as crash:
        qualify._close_begun(file, str(crash))
        return str(crash)
    finally:
        listed.unlink()
    return ""


def conformance(out, monkeypatch, budget_s=60.0) -> qualify.QualificationOutcome:
    monkeypatch.setattr(qualify, "_run_cases", in_this_process)
    outcome = qualify.QualificationOutcome(out, "a device")
    list(qualify._conformance(out, (), budget_s, outcome, quiet))
    return outcome


def test_cases_pass_fail_or_cannot_be_told(suite, tmp_path, monkeypatch):
    outcome = conformance(tmp_path, monkeypatch)
    assert outcome.passed == 3
    assert outcome.failed == ["op-promise-b: AssertionError: 7 of 9 differ"]
    assert dict(outcome.not_here) == {"no GPU": 1}
    assert outcome.cut_off == []
    assert outcome.exit_code == 1


def test_a_case_that_kills_its_process_costs_itself_alone(suite, tmp_path, monkeypatch):
    def crashing():
        raise SystemExit("Segmentation fault")

    suite["a"] = crashing
    outcome = conformance(tmp_path, monkeypatch)
    assert outcome.failed == ["op-promise-a: Segmentation fault", "op-promise-b: AssertionError: 7 of 9 differ"]
    assert outcome.passed == 2


def test_no_time_is_no_case_and_all_are_listed(suite, tmp_path, monkeypatch):
    outcome = conformance(tmp_path, monkeypatch, budget_s=0.0)
    assert outcome.cut_off == [f"conformance op-promise-{name}" for name in "abcde"]


def test_a_resumed_run_repeats_what_failed_and_nothing_else(suite, tmp_path, monkeypatch):
    conformance(tmp_path, monkeypatch)
    ran = []
    for name in suite:
        suite[name] = lambda name=name: ran.append(name)
    outcome = conformance(tmp_path, monkeypatch)
    assert ran == ["b"]
    assert (outcome.passed, outcome.failed) == (4, [])


def test_a_case_that_was_under_way_when_all_was_killed_is_told_and_tried_again(suite, tmp_path, monkeypatch):
    file = tmp_path / qualify.CASES
    qualify._note(file, "op-promise-a", "begun")
    file.write_text(file.read_text() + '{"name": "cut o')
    outcome = conformance(tmp_path, monkeypatch)
    assert outcome.passed == 3


def test_a_process_that_cannot_start_is_told_once(suite, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "in_this_process", lambda *what: "ImportError: no torch")
    outcome = conformance(tmp_path, monkeypatch)
    assert outcome.wrong == ["the process of the conformance cases does not start: ImportError: no torch"]
    assert len(outcome.cut_off) == 5


def test_a_case_that_hangs_is_killed(tmp_path, monkeypatch):
    """A real process, that notes a case and then does nothing."""
    program = tmp_path / "program.py"
    program.write_text(
        "import json, sys, time, pathlib\n"
        "listed = pathlib.Path(sys.argv[-1])\n"
        "listed.with_suffix('.jsonl').write_text(json.dumps({'name': 'x', 'result': 'begun'}) + '\\n')\n"
        "time.sleep(600)\n"
    )
    monkeypatch.setattr(qualify, "CASE_S", 0.5)
    popen = subprocess.Popen
    monkeypatch.setattr(
        qualify.subprocess, "Popen", lambda command, **kw: popen([sys.executable, program, *command[3:]], **kw)
    )
    file = tmp_path / qualify.CASES
    qualify._run_cases(file, (), ["x"], time.perf_counter() + 60, quiet)
    assert qualify._answers(file)["x"]["detail"] == "no end after 0.5 s"
    # ended by the budget, it is as if it had not begun
    file.unlink()
    monkeypatch.setattr(qualify, "CASE_S", 60)
    qualify._run_cases(file, (), ["x"], time.perf_counter() + 2, quiet)
    assert qualify._answers(file) == {}


def test_every_promise_has_its_turn_early_and_what_is_slow_comes_last():
    found = qualify.cases(CPU, ("tropical_matmul",))
    quick = [case.promise for case in found if not case.slow]
    assert {*quick[: len({*quick})]} == {*quick}
    assert [case.slow for case in found] == sorted(case.slow for case in found)


def test_gluon_kernels_are_repeated_where_they_can_run(monkeypatch):
    monkeypatch.setattr(backend, "why_off", lambda name, device: "")
    names = [case.name for case in qualify.cases(CPU, ("tropical_matmul",)) if case.promise == "repetitions"]
    assert "tropical_matmul-repetitions-gluon-max_plus-float32-S1-ragged" in names
    assert "tropical_matmul-repetitions-gluon-min_plus-float16-S2-batched" in names
    assert not any("log" in name for name in names)


def test_a_repetition_compares_with_the_portable_kernel(monkeypatch):
    """With torch in the place of both: the sizes, the batches and the comparison are real."""
    asked = []
    forced = machines.forced
    monkeypatch.setattr(backend, "why_off", lambda name, device: "")
    monkeypatch.setattr(machines, "forced", lambda name, device: (asked.append(name), forced("torch", device))[1])
    shape = {"M": 9, "K": 12, "N": 7}
    for batched in (False, True):
        machines._check_repetitions(
            REGISTRY["tropical_matmul"], CPU, {"semiring": "max_plus"}, torch.float32, shape, batched
        )
    assert asked == (["triton"] + ["gluon"] * machines.REPETITIONS) * 2


def test_a_folder_is_begun_once_and_resumed_where_it_was_begun(tmp_path):
    with pytest.raises(qualify.BadRequest, match="holds no run to resume"):
        qualify.run(tmp_path, resume=True)
    (tmp_path / qualify.RESULTS).write_text("")
    with pytest.raises(qualify.BadRequest, match="holds a run already; --resume goes on with it"):
        qualify.run(tmp_path)


def _command(out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "tropigrad.perf_reports.qualify", "--out", str(out), *more]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.slow
def test_killed_in_the_middle_it_resumes_and_leaves_eight_files_at_the_most(tmp_path):
    """The whole command, from the source tree, without typer."""
    out, environment = tmp_path / "out", os.environ | {"TROPIGRAD_CACHE_DIR": str(tmp_path / "cache")}
    cases = out / qualify.CASES
    first = subprocess.Popen(
        _command(out, "--budget", "10m"), env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    )
    end = time.monotonic() + 120
    while time.monotonic() < end and not (cases.exists() and len(qualify._answers(cases)) > 3):
        assert first.poll() is None
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    done_before = qualify._answers(cases)
    assert len(done_before) > 3

    second = subprocess.run(
        _command(out, "--budget", "1s", "--resume"), env=environment, capture_output=True, text=True, timeout=120
    )
    assert second.returncode in (0, 1), second.stderr  # 1: the case that was under way counts as failed until repeated
    files = sorted(path.name for path in out.iterdir())
    assert files[0] == qualify.SUMMARY
    assert len(files) <= 8
    assert qualify.CASES in files
    after = qualify._answers(cases)
    assert {name: after[name] for name in done_before} == done_before
    text = (out / qualify.SUMMARY).read_text()
    assert re.search(r"Conformance: \d+ passed, [01] failed", text)
    assert "## Cut off by the budget" in text
    assert "* ceilings" in text
    assert "tuning of tropical_matmul" in text
    kinds = [record["kind"] for record in records.read(out / qualify.RESULTS)]
    assert kinds.count("run") == 2
    assert kinds[-1] == "run_end"
