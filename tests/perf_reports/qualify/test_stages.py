"""The stages, with real processes that only pretend to work: each item does what its name says."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tropigrad.perf_reports import qualify, records
from tropigrad.perf_reports.commands import BadRequest
from tropigrad.perf_reports.qualify import outcome as outcomes
from tropigrad.perf_reports.qualify import stages
from tropigrad.perf_reports.qualify.item import Answer, Item, Journal

WORKER = """
    import json, os, signal, sys, time
    plan = json.load(open(os.environ["PLAN"]))
    def send(message): print(json.dumps(message), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if "start" in asked:
            if os.path.exists(os.environ["PLAN"] + ".broken"): sys.exit("no driver")
            send({"facts": plan["facts"], "end": True})
        elif "plan" in asked:
            send({"plan": plan["items"], "end": True})
        else:
            name = asked["item"]["name"]
            open(os.environ["PLAN"] + ".log", "a").write(name + chr(10))
            if "hangs" in name: time.sleep(600)
            if "slow" in name: time.sleep(0.3)
            if "dies" in name: os._exit(9)
            roof = {"kind": "ceiling", "name": "memory", "threads": 1, "value": 2.0, "unit": "GB/s"}
            if "ceilings" in name: send({"record": roof})
            result = next((r for r in ("failed", "lost", "unfinished") if r in name), "passed")
            if "absent" in name: result = "not here"
            send({"end": {"result": result, "detail": "" if result == "passed" else "so it is", "seconds": 0.1}})
            if result == "lost": os._exit(3)
"""
FACTS = {
    "fingerprint": {"device": "a device", "capability": "", "units": 1, "torch": "2", "triton": "3"},
    "gluon_off": "there is none",
    "qualification": None,
    "head": {"kind": "run", "versions": {"torch": "2"}, "git_revision": None},
}


class Scene:
    """A plan, and what came of it."""

    def __init__(self, folder: Path):
        self.out, self.plan, self.facts = folder / "out", folder / "plan.json", dict(FACTS)
        self.items: list[Item] = []

    def add(self, stage: str, *names: str, kind: str = "case", limit_s: float = 0.0) -> None:
        """Items whose op is what their name begins with."""
        self.items += [Item(stage, kind, name, name.split("-")[0], (name,), limit_s=limit_s) for name in names]

    def run(self, budget_s=60.0, resume=False, progress=lambda *what: None) -> outcomes.QualificationOutcome:
        self.plan.write_text(json.dumps({"facts": self.facts, "items": [vars(item) for item in self.items]}))
        variables = {**os.environ, "PLAN": str(self.plan)}
        return stages.carry_out(self.out, {}, variables, budget_s=budget_s, resume=resume, progress=progress)

    @property
    def tried(self) -> list[str]:
        log = Path(f"{self.plan}.log")
        return log.read_text().split("\n")[:-1] if log.exists() else []

    @property
    def summary(self) -> str:
        return (self.out / qualify.SUMMARY).read_text()


@pytest.fixture
def scene(tmp_path, monkeypatch):
    monkeypatch.setenv("TROPIGRAD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(stages, "WORKER", [sys.executable, "-c", textwrap.dedent(WORKER)])
    monkeypatch.setattr(stages.files, "draw", lambda records, outcome: None)
    return Scene(tmp_path)


def test_items_pass_fail_or_cannot_be_told(scene):
    scene.add("conformance", "a-1", "a-failed", "b-absent", "b-2")
    scene.add("ceilings", "ceilings", kind="ceilings")
    scene.add("speed", "speed-failed", kind="speed")
    outcome = scene.run()
    assert (outcome.passed, outcome.measured, outcome.device) == (2, 1, "a device")
    assert outcome.failed == ["a-failed: so it is"]
    assert outcome.wrong == ["speed-failed: so it is"]
    assert dict(outcome.not_here) == {"so it is": 1}
    assert outcome.lost == outcome.cut_off == []
    assert outcome.exit_code == 1
    assert "| memory | 1 | 2 GB/s |" in scene.summary
    assert [r["kind"] for r in records.read(scene.out / qualify.RESULTS)] == ["run", "ceiling", "run_end"]


def test_what_is_lost_costs_itself_alone_and_is_named(scene):
    scene.add("conformance", "a-dies", "a-1", "b-lost", "b-1", "c-1")
    scene.add("tuning", "d-hangs", kind="tuning", limit_s=0.5)
    scene.add("tuning", "e-1", kind="tuning")
    outcome = scene.run()
    assert outcome.lost == [
        "a-dies: its process ended with 9",
        "b-lost: so it is",
        "d-hangs: no end after 0.5 s",
    ]
    assert (outcome.passed, outcome.measured, outcome.exit_code) == (3, 1, 1)
    # the others of an op that has just cost a process wait until the rest is done
    assert scene.tried == ["a-dies", "b-lost", "c-1", "a-1", "b-1", "d-hangs", "e-1"]
    assert all(f"* {line}" in scene.summary for line in outcome.lost)


def test_an_op_that_loses_process_after_process_is_left_at_the_third(scene):
    scene.add("conformance", *(f"a-{number}-dies" for number in range(9)), "b-1")
    scene.add("speed", "a-1", "b-2", kind="speed")
    outcome = scene.run()
    assert scene.tried == ["a-0-dies", "b-1", "a-1-dies", "a-2-dies", "a-1", "b-2"]
    assert len(outcome.lost) == 3
    assert outcome.cut_off == [f"conformance a-{number}-dies" for number in range(3, 9)]


def test_where_no_op_survives_nothing_more_is_tried(scene):
    scene.add("conformance", *(f"{op}-dies" for op in "abcdefgh"))
    outcome = scene.run()
    assert len(scene.tried) == stages.LOST_GROUPS
    (why,) = outcome.wrong
    assert "nothing more was tried on this device" in why
    assert f"* {why}" in scene.summary


def test_a_process_that_does_not_start_is_told(scene):
    Path(f"{scene.plan}.broken").touch()
    outcome = scene.run()
    assert outcome.wrong == ["the process that does the work does not start: its process ended with 1: no driver"]
    assert outcome.exit_code == 1
    assert "no driver" in scene.summary


def test_what_the_budget_cuts_off_is_listed_and_not_called_lost(scene):
    scene.add("conformance", "a-1", "a-hangs", "b-1")
    scene.add("speed", "c-1", kind="speed")
    outcome = scene.run(budget_s=3.0)
    assert outcome.lost == []
    assert outcome.cut_off == ["conformance a-hangs", "conformance b-1", "c-1"]
    assert "--resume --out" in "\n".join(qualify.lines(outcome))
    assert "conformance a-hangs" in scene.summary


def test_a_resumed_run_repeats_what_failed_or_was_lost_and_what_cost_a_process_comes_last(scene):
    scene.add("conformance", "a-lost", "b-failed", "c-1", "d-absent", "e-unfinished")
    first = scene.run()
    assert first.cut_off == ["conformance e-unfinished: so it is"]
    del scene.items[-1]
    before = scene.tried
    again = scene.run(resume=True)
    assert scene.tried[len(before) :] == ["b-failed", "a-lost"]
    assert (again.passed, again.failed) == (1, ["b-failed: so it is"])


def test_one_that_was_under_way_when_all_was_killed_is_tried_last(scene):
    scene.out.mkdir()
    (scene.out / qualify.RESULTS).touch()
    (scene.out / qualify.ITEMS).write_text('{"name": "a-1", "result": "begun"}\n{"name": "cut o')
    scene.add("conformance", "a-1", "b-1")
    assert scene.run(resume=True).passed == 2
    assert scene.tried == ["b-1", "a-1"]
    assert [
        json.loads(line)["name"] for line in (scene.out / qualify.ITEMS).read_text().splitlines() if line[-1] == "}"
    ][-1] == "a-1"


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(scene):
    scene.add("conformance", "a-1", "b-1", "c-1")

    def interrupt(stage, done, total, what):
        if what == "b-1":
            raise KeyboardInterrupt

    outcome = scene.run(progress=interrupt)
    assert (outcome.interrupted, outcome.exit_code, outcome.passed) == (True, 130, 1)
    assert outcome.cut_off == ["conformance b-1", "conformance c-1"]
    assert (
        f"interrupted  what is done is kept; the same command with --resume --out {scene.out} goes on"
        in qualify.lines(outcome)
    )
    assert ", interrupted" in scene.summary
    assert scene.run(resume=True).passed == 3


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_batch_systems_signal_is_as_ctrl_c():
    def terminated():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), stages._terminated_as_by_ctrl_c():
        terminated()
    assert signal.getsignal(signal.SIGTERM) is before


def test_shares_are_of_the_time_that_is_left(scene, monkeypatch):
    shares = []
    ask = stages._Crew.ask
    monkeypatch.setattr(
        stages._Crew,
        "ask",
        lambda self, asked, limit: (shares.append(asked.get("share_s")), ask(self, asked, limit))[1],
    )
    scene.items = [Item("tuning", "tuning", name, name, (), weight) for name, weight in (("a", 1.0), ("b", 3.0))]
    scene.run(budget_s=100.0)
    first, second = (share for share in shares if share is not None)
    # three quarters of the budget go to the stages before speed; what is left over, the next may use
    assert 15.0 < first < 75.0 / 4
    assert 60.0 < second < 75.0


@pytest.mark.parametrize(
    ("result", "told"),
    [
        ("passed", "The Gluon kernels passed 2 cases"),
        ("failed", "The Gluon kernels stay off: 1 of 2 cases passed, and a-gluon-2 failed: why"),
        ("lost", "The Gluon kernels stay off: 1 of 2 cases passed, and a-gluon-2 lost: why"),
        ("", "The Gluon kernels stay off: 1 of 2 cases passed, and a-gluon-2 not run."),
    ],
)
def test_the_record_is_there_where_all_gluon_cases_passed_and_else_not(scene, result, told):
    scene.out.mkdir()
    facts = {**FACTS, "gluon_off": "", "qualification": {"schema": 1, "cases": 0}}
    scene.add("tropical_matmul", "a-gluon-1", "a-gluon-2")
    answers = {"a-gluon-1": Answer("passed")} | ({"a-gluon-2": Answer(result, "why")} if result else {})
    outcome = outcomes.QualificationOutcome(scene.out, "a GPU")
    (scene.out / qualify.RECORD).write_text("an older one")
    stages.files.write(facts, scene.items, answers, [], outcome, 1.0)
    assert told in scene.summary
    record = scene.out / qualify.RECORD
    assert record.exists() == (result == "passed")
    assert result != "passed" or json.loads(record.read_text()) == {"schema": 1, "cases": 2}


def test_a_picture_that_cannot_be_drawn_costs_nothing_else(tmp_path, monkeypatch):
    from tropigrad.perf_reports.page import roofline

    def broken(records):
        raise KeyError("no ceiling")

    monkeypatch.setattr(roofline, "panels", broken)
    outcome = outcomes.QualificationOutcome(tmp_path, "a device")
    stages.files.draw([], outcome)
    assert outcome.cut_off == ["the roofline's picture: KeyError: 'no ceiling'"]


def test_the_journal_has_the_last_answer_and_survives_a_line_that_was_cut(tmp_path):
    path, item = tmp_path / "items.jsonl", Item("conformance", "case", "a", "a")
    path.write_text('{"name": "b", "result": "pas')
    for result in ("failed", "passed"):
        journal = Journal(path)
        journal.begin(item)
        journal.end(item, Answer(result, "so", 1.23456))
        journal.close()
    read = Journal(path)
    read.close()
    assert read.answers == {"a": Answer("passed", "so", 1.235)}
    assert read.begun == set()


def test_a_folder_is_begun_once_and_resumed_where_it_was_begun(tmp_path):
    with pytest.raises(BadRequest, match="holds no run to resume"):
        qualify.run(tmp_path, resume=True)
    (tmp_path / qualify.RESULTS).write_text("")
    with pytest.raises(BadRequest, match="holds a run already; --resume goes on with it"):
        qualify.run(tmp_path)


def _command(out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "tropigrad.perf_reports.qualify", "--out", str(out), *more]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.slow
def test_killed_in_the_middle_it_resumes_and_leaves_eight_files_at_the_most(tmp_path):
    """The whole command, from the source tree, without typer."""
    out, environment = tmp_path / "out", os.environ | {"TROPIGRAD_CACHE_DIR": str(tmp_path / "cache")}
    path = out / qualify.ITEMS

    def passed():
        journal = Journal(path)
        journal.close()
        return {name for name, answer in journal.answers.items() if answer.stands}

    first = subprocess.Popen(_command(out, "--budget", "10m"), env=environment, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 240
    while time.monotonic() < end and not (path.exists() and path.read_text().count("passed") > 3):
        assert first.poll() is None
        time.sleep(0.1)
    first.kill()
    first.wait()
    before = passed()
    assert len(before) > 3

    second = subprocess.run(
        _command(out, "--budget", "1s", "--resume"), env=environment, capture_output=True, text=True, timeout=240
    )
    assert second.returncode == 0, second.stderr
    files = sorted(file.name for file in out.iterdir())
    assert files[0] == qualify.SUMMARY
    assert len(files) <= 8
    assert passed() >= before
    text = (out / qualify.SUMMARY).read_text()
    assert "## Cut off, for --resume" in text
    assert "* ceilings" in text
    assert "tuning of tropical_matmul" in text
    kinds = [record["kind"] for record in records.read(out / qualify.RESULTS)]
    assert kinds.count("run") == 2
    assert kinds[-1] == "run_end"
