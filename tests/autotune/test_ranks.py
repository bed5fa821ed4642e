"""Megatron-LM#6966, flashinfer#3186: every rank runs the same configs, or all of them say which differ."""

import json
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from tropigrad import autotune

RANK = """
import json, os, sys
from datetime import timedelta
import torch, torch.distributed as dist
from tropigrad import autotune
from tropigrad.autotune import Space, Tuned

folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", f"file://{folder}/meeting", timedelta(seconds=90), 2, rank)
source = os.path.join(folder, "kernel.cpp")
from pathlib import Path
kernel = Tuned("op.test", Space({"BLOCK": (16, 32)}), lambda problem: {"BLOCK": 16}, Path(source))
cpu, problem, said = torch.device("cpu"), {"M": 5}, {}

def tune():
    autotune.store().put(autotune.fingerprint(cpu), kernel.key(problem), {"BLOCK": 32})

os.environ["TROPIGRAD_CACHE_DIR"] = f"{folder}/shared"
said["before"] = kernel.config(problem, cpu)["BLOCK"]
dist.barrier()
autotune.synchronise(tune)
said["after"] = kernel.config(problem, cpu)["BLOCK"]

os.environ["TROPIGRAD_CACHE_DIR"] = f"{folder}/own-{rank}"
try:
    autotune.synchronise(tune)
except autotune.RanksDiffer as error:
    said["own folders"] = str(error)

def fails():
    raise ValueError("no such op")

try:
    autotune.synchronise(fails)
except RuntimeError as error:
    said["rank 0 fails"] = str(error)
print(json.dumps(said))
"""


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo")
def test_one_rank_tunes_all_read_and_a_difference_names_its_keys(tmp_path):
    (tmp_path / "kernel.cpp").write_text("")
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, tmp_path, str(rank)], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        answers = [json.loads(rank.communicate(timeout=120)[0]) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert answers[0] == answers[1]
    said = answers[0]
    assert (said["before"], said["after"]) == (16, 32)
    assert "1 keys differ between ranks 0 to 1" in said["own folders"]
    assert '"kernel": "op.test"' in said["own folders"]
    assert "TROPIGRAD_CACHE_DIR" in said["own folders"]
    assert said["rank 0 fails"] == "autotune.synchronise: rank 0 failed to tune: ValueError: no such op"


def test_without_ranks_it_says_what_to_call():
    with pytest.raises(RuntimeError, match="is not initialised; call init_process_group first"):
        autotune.synchronise(device=torch.device("cpu"))


TUNED = """
import os
from pathlib import Path
from tropigrad import autotune
from tropigrad.kernels import pack_bits

x = torch.randn(64, 640, generator=torch.Generator().manual_seed(0))
pack_bits(x)  # compiled in the user's folder
compiled = autotune.store().root / "native"
configs = Path(folder) / "configs"
if rank == 0:
    configs.mkdir()
    if compiled.exists():
        (configs / "native").symlink_to(compiled)
dist.barrier()
os.environ["TROPIGRAD_CACHE_DIR"] = str(configs)
autotune.reload()
cpu, findings = torch.device("cpu"), []


def tune():
    findings.extend(autotune.tune("pack_bits", {"M": 64, "K": 640}, device=cpu, budget_s=60.0))


before = pack_bits(x)
autotune.synchronise(tune, device=cpu)
kept = autotune.store().whole(autotune.fingerprint(cpu))
said["found"] = [[one.kernel, one.config] for one in findings if one.stored]
said["read"] = [[entry.key["kernel"], entry.config] for entry in kept]
said["same bits"] = torch.equal(before, pack_bits(x))
"""


@pytest.mark.slow
def test_one_rank_tunes_a_kernel_and_all_read_its_config(run_ranks):
    first, second = run_ranks(2, TUNED)
    assert first["found"]
    assert second["found"] == []
    for said in (first, second):
        assert sorted(map(str, said["read"])) == sorted(map(str, first["found"]))
        assert said["same bits"]


DIES = """
import os, signal
from pathlib import Path
from tropigrad import autotune
try:
    autotune.synchronise(lambda: os.kill(os.getpid(), signal.SIGKILL))
except RuntimeError:
    Path(folder, f"ended-{rank}").touch()
    raise
"""


def test_a_rank_that_dies_while_it_tunes_ends_the_others(run_ranks, tmp_path):
    with pytest.raises(AssertionError):
        run_ranks(2, DIES, tmp_path)
    assert [path.name for path in tmp_path.glob("ended-*")] == ["ended-1"]
