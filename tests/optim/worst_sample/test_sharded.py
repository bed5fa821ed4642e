"""Iterations that real processes share: those of one; checkpoints across numbers of ranks; ranks that are lost."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist

from tropigrad.kernels.runtime import backend
from tropigrad.nn import LinearMinMax
from tropigrad.optim import WorstSampleSubgradient
from tropigrad.optim.worst_sample import is_available

pytestmark = [
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo"),
    pytest.mark.skipif(not is_available(torch.float32), reason="no C++ compiler"),
]

BEGINNING = """
import os, sys, time
from datetime import timedelta
import torch, torch.distributed as dist
from tropigrad.nn import LinearMinMax
from tropigrad.optim import WorstSampleSubgradient

folder, rank, ranks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
"""

ITERATE = (
    BEGINNING
    + """
dist.init_process_group("gloo", f"file://{folder}/meeting-{ranks}", timedelta(seconds=120), ranks, rank)
for case in torch.load(f"{folder}/cases.pt"):
    x, y = case["x"], case["y"]
    model = LinearMinMax(4, 8, 3, dtype=x.dtype)
    model.load_state_dict(case["model"])
    cuts = case["cuts"][ranks]
    own = slice(cuts[rank], cuts[rank + 1])
    optimizer = WorstSampleSubgradient(model, x[own], y[own], group=dist.group.WORLD, margin=4.0, **case["options"])
    assert optimizer.memory == case.get("memory", optimizer.memory)
    if case["state"]:
        optimizer.load_state_dict(case["state"])
    trace = optimizer.step(case["iterations"])
    torch.save([trace, optimizer.state_dict()], f"{folder}/{case['name']}-{rank}.pt")
dist.destroy_process_group()
"""
)


def samples(dtype=torch.float32):
    """60 samples with some equal ones, of different labels: F stays above 0, and ranks tie."""
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(60, 4, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randint(3, (60,), generator=generator)
    y[:3] = torch.arange(3)
    x[40], x[59] = x[5], x[5]
    y[40] = y[59]
    return x, y


def start(x, y):
    model = LinearMinMax(4, 8, 3, dtype=x.dtype)
    model.init_kmedoids(x, y, 64.0, margin=4.0)
    return model


def begun(script, folder, ranks, *arguments, **variables):
    command = [sys.executable, "-c", script, str(folder)]
    return [
        subprocess.Popen(
            [*command, str(rank), str(ranks), *arguments],
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]


def ended(processes, seconds=180):
    try:
        return [(process.communicate(timeout=seconds), process.returncode) for process in processes]
    finally:
        for process in processes:
            process.kill()


CUTS = {2: [0, 37, 60], 3: [0, 1, 42, 60]}  # no multiple of anything; a rank with one sample
OPTIONS = {
    "winners": (torch.float32, {}),
    "float64": (torch.float64, {"step": "sqrt"}),
    "A-trained": (torch.float32, {"train_A": True, "loss": "cross_entropy"}),
    "share": (torch.float32, {"alpha": 0.2}),
}


def assert_equal_states(one, other):
    assert one["progress"] == other["progress"]
    assert torch.equal(one["times_worst"], other["times_worst"])
    for of in ("weights", "best"):
        assert all(torch.equal(value, other[of][name]) for name, value in one[of].items())


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_ranks(tmp_path):
    """100 iterations on 2 ranks, 100 on 3, 100 on one: those of one process, bit for bit."""
    cases, whole = [], {}
    for name, (dtype, options) in OPTIONS.items():
        x, y = samples(dtype)
        model = start(x, y)
        cases.append({"name": name, "x": x, "y": y, "options": options, "cuts": CUTS, "iterations": 100})
        cases[-1] |= {"model": {of: value.clone() for of, value in model.state_dict().items()}, "state": None}
        one = WorstSampleSubgradient(model, x, y, margin=4.0, **options)
        states, trace = [], []
        for _ in range(3):
            trace.append(one.step(100))
            states.append(one.state_dict())
        assert len(trace[-1]) == 100
        whole[name] = trace, states
    for leg, ranks in enumerate((2, 3)):
        torch.save(cases, tmp_path / "cases.pt")
        for (_, errors), code in ended(begun(ITERATE, tmp_path, ranks)):
            assert code == 0, errors
        for case in cases:
            trace, states = whole[case["name"]]
            for rank in range(ranks):
                theirs, state = torch.load(tmp_path / f"{case['name']}-{rank}.pt", weights_only=False)
                assert torch.equal(theirs, trace[leg])
                assert_equal_states(state, states[leg])
            case["state"] = state
    for case in cases:
        model = start(case["x"], case["y"])
        one = WorstSampleSubgradient(model, case["x"], case["y"], margin=4.0, **case["options"])
        one.load_state_dict(case["state"])
        assert torch.equal(one.step(100), whole[case["name"]][0][2])


@pytest.mark.skipif(
    bool(backend.why_off("triton", torch.device("cpu"))), reason="triton's interpreter runs programs on the CPU"
)
def test_two_ranks_in_triton_go_through_the_iterates_of_one_in_cpp(tmp_path):
    """Hinge, and a run that goes back to its best iterate, which is dense."""
    cases, traces, states = [], {}, {}
    for name, options in {"hinge": {}, "power": {"step": "power"}}.items():
        x, y = samples()
        x, y = x[:21], y[:21]
        model = start(x, y)
        weights = {of: value.clone() for of, value in model.state_dict().items()}
        case = {"name": name, "x": x, "y": y, "options": options, "cuts": {2: [0, 9, 21]}, "iterations": 12}
        cases.append({**case, "model": weights, "state": None, "memory": "launch"})
        one = WorstSampleSubgradient(model, x, y, margin=4.0, **options)
        traces[name], states[name] = one.step(12), one.state_dict()
    torch.save(cases, tmp_path / "cases.pt")
    for (_, errors), code in ended(begun(ITERATE, tmp_path, 2, TROPIGRAD_BACKEND="triton")):
        assert code == 0, errors
    for name, trace in traces.items():
        for rank in range(2):
            theirs, state = torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=False)
            assert torch.equal(theirs, trace)
            assert_equal_states(state, states[name])


# ------------------------------------------------------------------------------------------------ ranks that are lost

LOSE = (
    BEGINNING
    + """
from tropigrad.kernels.runtime.ranks import RanksLost

how, lost = sys.argv[4], int(sys.argv[5])
dist.init_process_group("gloo", f"file://{folder}/meeting", timedelta(seconds=9), ranks, rank)
x, y, start = torch.load(f"{folder}/start.pt")
model = LinearMinMax(4, 8, 3)
model.load_state_dict(start)
own = slice(rank * 60 // ranks, (rank + 1) * 60 // ranks)
x, y = x[own].clone(), y[own]
if how == "NaN at the start" and rank == lost:
    x[3, 1] = float("nan")
try:
    optimizer = WorstSampleSubgradient(model, x, y, group=dist.group.WORLD, margin=4.0, train_A=how == "NaN")
    optimizer.step(50)
    torch.save(optimizer.state_dict(), f"{folder}/state-{rank}.pt")
    print("ready", flush=True)
    if how == "NaN" and rank == lost:
        x.fill_(float("nan"))  # as faulty memory would
    begun = time.monotonic()
    while optimizer.status == "going":
        optimizer.step(1)
except (ArithmeticError, RuntimeError, ConnectionError, ValueError) as error:
    print(type(error).__name__, error, flush=True)
    print(time.monotonic() - begun if "begun" in globals() else 0, flush=True)
os._exit(3)
"""
)


def lose(folder, ranks, how, lost, send=None):
    x, y = samples()
    torch.save([x, y, start(x, y).state_dict()], folder / "start.pt")
    processes = begun(LOSE, folder, ranks, how, str(lost))
    if send is not None:
        for process in processes:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == "ready\n", process.stderr.read()
        time.sleep(0.5)
        os.kill(processes[lost].pid, send)
    others = [process for rank, process in enumerate(processes) if rank != lost]
    try:
        said = ended(others, 60)
    finally:
        processes[lost].kill()
        processes[lost].communicate()
    return [(output.splitlines(), errors, code) for (output, errors), code in said]


@pytest.mark.parametrize(
    ("ranks", "lost", "send"),
    [
        pytest.param(4, 2, signal.SIGKILL, id="killed", marks=pytest.mark.slow),
        pytest.param(3, 1, signal.SIGSTOP, id="stopped"),
        pytest.param(2, 0, signal.SIGKILL, id="first-killed"),
    ],
)
def test_a_rank_that_is_lost_is_named_by_all_others(tmp_path, ranks, lost, send):
    for lines, errors, code in lose(tmp_path, ranks, "signal", lost, send):
        assert code == 3, errors
        assert f"RanksLost WorstSampleSubgradient: rank {lost} of {ranks} has died or hung" in lines[0]
        assert "from the last checkpoint" in lines[0]
        assert float(lines[1]) < 9 + 3  # the group's timeout, and what a busy machine adds
    # what was saved goes on through the iterates of a run that lost nobody
    x, y = samples()
    one = WorstSampleSubgradient(start(x, y), x, y, margin=4.0)
    one.step(50)
    other = WorstSampleSubgradient(start(x, y), x, y, margin=4.0)
    survivor = next(rank for rank in range(ranks) if rank != lost)
    other.load_state_dict(torch.load(tmp_path / f"state-{survivor}.pt"))
    assert torch.equal(one.step(100), other.step(100))
    assert_equal_states(one.state_dict(), other.state_dict())


def test_a_rank_that_brings_nan_is_named_by_all_others(tmp_path):
    ((lines, errors, code),) = lose(tmp_path, 2, "NaN at the start", 1)
    assert code == 3, errors
    assert "RankFailed WorstSampleSubgradient: rank 1 of 2 has failed: ValueError" in lines[0]
    assert "x holds NaN or infinite values, first in row 3" in lines[0]


def test_a_loss_that_becomes_nan_names_the_rank(tmp_path):
    ((lines, errors, code),) = lose(tmp_path, 2, "NaN", 1)
    assert code == 3, errors
    assert lines[0] == "ready"
    assert "FloatingPointError WorstSampleSubgradient: after" in lines[1]
    assert ", which is rank 1's, would leave weights that are not finite" in lines[1]
