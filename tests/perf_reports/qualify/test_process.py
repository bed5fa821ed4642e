"""A process that answers is heard; however it ends, its parent learns how, and nothing of it stays behind."""

import os
import subprocess
import sys
import textwrap
import time

import pytest

from tropigrad.perf_reports.qualify.process import Lost, Process

ECHO = """
    import json, os, signal, sys, time
    for line in sys.stdin:
        asked = json.loads(line)
        print("no message", file=sys.stderr)
        print(json.dumps({"progress": 1}), flush=True)
        exec(asked["do"])
        print(json.dumps({"end": asked["do"]}), flush=True)
"""


@pytest.fixture
def process():
    made = Process([sys.executable, "-c", textwrap.dedent(ECHO)], os.environ)
    yield made
    made.close()


def test_it_answers_one_request_after_the_other(process):
    for do in ("pass", "x = 1"):
        assert list(process.ask({"do": do}, 30.0)) == [{"progress": 1}, {"end": do}]


@pytest.mark.parametrize(
    ("do", "reason"),
    [
        ("sys.exit('out of it')", "its process ended with 1: out of it"),
        ("os._exit(7)", "its process ended with 7: no message"),
        ("raise OSError('µ is gone')", "its process ended with 1: OSError: µ is gone"),
        pytest.param("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL",
                     marks=pytest.mark.skipif(os.name != "posix", reason="POSIX signals")),
        pytest.param("os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV",
                     marks=pytest.mark.skipif(os.name != "posix", reason="POSIX signals")),
        ("time.sleep(600)", "no end after 1 s"),
    ],
    ids=["exit", "silent exit", "exception", "kill", "crash", "hang"],
)  # fmt: skip
def test_how_it_ended_is_told(process, do, reason):
    list(process.ask({"do": "pass"}, 30.0))
    with pytest.raises(Lost) as error:
        list(process.ask({"do": do}, 1.0 if "sleep" in do else 30.0))
    assert str(error.value) == reason
    assert process._process.poll() is not None


def test_one_that_died_between_two_requests_is_lost_at_the_next(process):
    list(process.ask({"do": "pass"}, 30.0))
    process._process.kill()
    process._process.wait()
    with pytest.raises(Lost, match=r"killed by SIGKILL|ended with"):
        list(process.ask({"do": "pass"}, 30.0))


@pytest.mark.skipif(os.name != "posix", reason="process groups")
def test_what_it_has_started_ends_with_it(process, tmp_path):
    beat = tmp_path / "beat"
    child = (
        f"import time, pathlib\nwhile True: pathlib.Path({str(beat)!r}).write_text(str(time.time())); time.sleep(0.05)"
    )
    list(process.ask({"do": f"import subprocess; subprocess.Popen([sys.executable, '-c', {child!r}])"}, 30.0))
    end = time.monotonic() + 30
    while not beat.exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    process.close()
    time.sleep(0.3)
    last = beat.read_text()
    time.sleep(0.3)
    assert beat.read_text() == last


def test_the_worker_ends_where_nobody_listens_any_more(tmp_path):
    """It must not outlive a parent that was killed, holding the device."""
    command = [sys.executable, "-m", "tropigrad.perf_reports.qualify.worker", '{"ops": [], "rehearses": false}']
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert worker.stdin
    assert worker.stderr
    worker.stdin.close()
    assert worker.wait(timeout=60) == 1
    worker.stderr.close()
