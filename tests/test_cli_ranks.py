"""`tropigrad train` started several times, as torchrun does: one training, one writer; lost ranks are named."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo"
)
TRAIN = ["-m", "tropigrad", "train"]
WORST = ["maxplus", "--objective", "worst", "--data", "iris", "--step", "sqrt", "--json"]


def torchrun(ranks, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return subprocess.run([*command, *TRAIN, *arguments], capture_output=True, text=True, timeout=240)


def of_the_run(folder):
    """The rows but for the time, and all that the next iterate depends on."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)["optimizer"]
    model = torch.load(folder / "model.pt", weights_only=True)["state_dict"]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows], checkpoint, model


def assert_same_run(one, other):
    rows, checkpoint, model = of_the_run(one)
    others, theirs, their_model = of_the_run(other)
    assert rows == others
    assert checkpoint["progress"] == theirs["progress"]
    for ours, other_weights in ((checkpoint["weights"], theirs["weights"]), (model, their_model)):
        assert all(torch.equal(value, other_weights[name]) for name, value in ours.items())


def alone(out, *arguments):
    subprocess.run([sys.executable, *TRAIN, *WORST, *arguments, "--out", str(out)], check=True, capture_output=True)


def test_two_ranks_leave_what_one_process_leaves(tmp_path):
    done = torchrun(2, *WORST, "--iterations", "60", "--out", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)  # printed once
    assert summary["iterations"] == 60
    alone(tmp_path / "one", "--iterations", "60")
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_a_training_that_is_not_shared_out_is_rank_0s_and_says_so(tmp_path):
    done = torchrun(2, "gsgd", "--data", "iris", "--epochs", "1", "--out", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["dataset"] == "iris"
    assert done.stderr.count("this training is not shared out: rank 0 of 2 does all of it") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lost", "send"),
    [
        pytest.param(1, signal.SIGKILL, id="killed"),
        pytest.param(1, signal.SIGSTOP, id="stopped"),
        pytest.param(0, signal.SIGKILL, id="writer-killed"),
    ],
)
def test_the_other_rank_names_the_lost_one_and_the_checkpoint_goes_on(tmp_path, lost, send):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    out = tmp_path / "lost"
    endless = [*WORST, "--iterations", "100000000", "--timeout", "9", "--out", str(out)]
    processes = []
    for rank in range(2):
        meeting = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {**os.environ, **meeting}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen([sys.executable, *TRAIN, *endless], env=environment, **pipes))
    survivor = processes[1 - lost]
    try:
        limit = time.monotonic() + 120
        while not (out / "checkpoint.pt").exists():
            assert time.monotonic() < limit
            assert survivor.poll() is None, survivor.stderr.read()
            time.sleep(0.2)
        os.kill(processes[lost].pid, send)
        begun = time.monotonic()
        stdout, stderr = survivor.communicate(timeout=60)
        assert time.monotonic() - begun < 9 + 30  # the timeout, and the end of a process on a busy machine
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()
            process.stderr.close()
    assert survivor.returncode == 1, stderr
    assert stdout == ""
    who = f"rank {lost} of 2"
    assert f"tropigrad: rank {1 - lost}: " in stderr
    assert who in stderr.splitlines()[-1]
    assert {path.name for path in out.iterdir()} == {
        "checkpoint.pt",
        "metrics.jsonl",
        "model.pt",
    }  # nothing half-written
    # from the last checkpoint: the iterates of a run that lost nobody
    iterations = str(torch.load(out / "checkpoint.pt")["optimizer"]["progress"]["iteration"] + 100)
    alone(out, "--iterations", iterations, "--resume")
    alone(tmp_path / "whole", "--iterations", iterations)
    resumed, whole = of_the_run(out), of_the_run(tmp_path / "whole")
    assert resumed[1]["progress"] == whole[1]["progress"]
    assert all(torch.equal(value, whole[1]["weights"][name]) for name, value in resumed[1]["weights"].items())
