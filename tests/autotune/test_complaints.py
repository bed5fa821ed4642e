"""What users of other tuners complain of, each a test under the number of its complaint."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

import tropigrad.kernels
from tropigrad import autotune
from tropigrad.autotune import (
    Entry,
    Fingerprint,
    Space,
    Store,
    Tuned,
    contest,
    fingerprint,
    reload,
    shipped,
    timing,
    tuned,
    tuning,
)
from tropigrad.autotune.keys import canonical
from tropigrad.kernels.runtime.native import why_no_compiler
from tropigrad.kernels.tropical_matmul import by_cpp, tropical_matmul
from tropigrad.kernels.tropical_winners_scatter import by_cpp as winners_scatter

CPU = torch.device("cpu")
HERE = Fingerprint("a GPU", "9.0", 132, "2.13", "3.7")
KEY = {"kernel": "op.triton", "source": "abc", "problem": {"M": 64}}
CONFIG = {"BLOCK": 64}
SHAPE = {"M": 24, "K": 40, "N": 33}

needs_compiler = pytest.mark.skipif(bool(why_no_compiler()), reason=f"no C++ compiler: {why_no_compiler()}")


@pytest.fixture
def few(monkeypatch):
    """Four configs of the C++ kernel, timed briefly."""
    choices = by_cpp.FORWARD.space.choices.items()
    space = Space({name: values[: 2 if index < 2 else 1] for index, (name, values) in enumerate(choices)})
    monkeypatch.setattr(contest, "DUEL_S", 0.1)
    default = {name: values[0] for name, values in space.choices.items()}
    monkeypatch.setattr(
        by_cpp, "FORWARD", few := Tuned(by_cpp.FORWARD.name, space, lambda _: default, by_cpp.FORWARD.source)
    )
    tunable = autotune.TUNABLE["tropical_matmul"]
    kernels = few, winners_scatter.SCATTER
    fewer = autotune.Tunable(tunable.name, tunable.shapes, kernels, tunable.calls)
    monkeypatch.setitem(autotune.TUNABLE, "tropical_matmul", fewer)
    return few


@pytest.fixture
def clock(monkeypatch):
    """A list of one number: the time that the search goes by."""
    now = [0.0]
    for module in (timing, contest):
        monkeypatch.setattr(module, "perf_counter", lambda: now[0])
    return now


def launched() -> autotune.Choice:
    a, b = torch.randn(SHAPE["M"], SHAPE["K"]), torch.randn(SHAPE["K"], SHAPE["N"])
    with autotune.recorded() as choices:
        tropical_matmul(a, b)
    return choices["tropical_matmul.cpp"]


@needs_compiler
def test_triton_1072_what_was_tuned_is_reused(few):
    """By another process: all that is remembered here is forgotten in between."""
    first = autotune.tune("tropical_matmul", SHAPE)
    reload()
    assert [finding.how for finding in first] == ["tuned"] * len(first)
    assert launched().source == "user cache"
    again = autotune.tune("tropical_matmul", SHAPE)
    assert [(f.how, f.config) for f in again] == [("reused", f.config) for f in first]


def test_what_a_budget_does_not_reach_is_said_and_not_called(monkeypatch):
    monkeypatch.setattr(tuning, "launches", lambda *what: pytest.fail("it is called"))
    found = autotune.tune("tropical_matmul", [SHAPE, SHAPE | {"M": 3}], budget_s=-1.0)
    assert [(f.kernel, f.problem["M"], f.how) for f in found] == [
        ("tropical_matmul", 24, "cut off"),
        ("tropical_matmul", 3, "cut off"),
    ]


@needs_compiler
def test_triton_4020_what_was_tuned_travels(few, tmp_path, monkeypatch):
    """An exported table serves a machine with another cache."""
    found = autotune.tune("tropical_matmul", SHAPE)
    here = fingerprint(CPU)
    autotune.export(here, autotune.store().whole(here), tmp_path / "tables")
    monkeypatch.setenv("TROPIGRAD_CACHE_DIR", str(tmp_path / "another"))
    monkeypatch.setattr(shipped, "TABLES", tmp_path / "tables")
    reload()
    assert launched() == autotune.Choice(dict(found[0].config), f"shipped table of {here.device}")


def test_triton_9822_one_more_config_retunes_nothing_but_itself(tmp_path, clock):
    """Neither by its place in the space, nor by the line of the file that declares it."""
    source = tmp_path / "kernel.py"
    calls = []

    def tune(blocks):
        source.write_text(f"import x\nK = Tuned(\n    Space({blocks})\n)\ndef kernel(): ...\n")
        reload()
        kernel = Tuned("op.test", Space({"BLOCK": blocks}), lambda problem: {"BLOCK": 16}, source)

        def run():
            calls.append(kernel.config({"M": 5}, CPU)["BLOCK"])
            clock[0] += 0.01

        calls.clear()
        task = autotune.Task(kernel, {"M": 5}, CPU, run, lambda got: None)
        return autotune.search(task, store=autotune.store(), budget_s=30)

    assert tune((16, 32, 64)).how == "tuned"
    assert {*calls} == {16, 32, 64}
    assert tune((16, 32, 64)).how == "reused"
    assert calls == []
    assert tune((16, 32, 48, 64)).how == "tuned"
    timed = {block: calls.count(block) for block in calls}
    assert timed[48] > 2  # checked, and timed
    assert timed.get(32, 0) + timed.get(64, 0) <= timed[48] + timed[16]  # at the most again in the finals
    source.write_text("import x\nK = Tuned(\n    Space(16, 32)\n)\ndef kernel(): pass\n")
    reload()
    assert autotune.source_hash(source) != autotune.store().whole(fingerprint(CPU))[0].key["source"]


def test_triton_7932_there_is_a_switch_that_skips_tuning_now(monkeypatch):
    monkeypatch.setattr(tuning, "search", lambda *args, **kwargs: pytest.fail("it is tuned"))
    monkeypatch.setenv("TROPIGRAD_AUTOTUNE", "off")
    reload()
    assert launched().source == "default"
    with autotune.mode("tune"), autotune.mode("off"):
        assert launched().source == "default"


def test_helion_1274_tuning_is_as_short_as_its_budget(clock, tmp_path):
    """On a clock that calls alone move: what it takes beyond the budget is less than a batch and the duel's least."""
    source = tmp_path / "kernel.cpp"
    source.write_text("")
    space = Space({"BLOCK": tuple(range(16, 4096, 16))})
    kernel = Tuned("op.test", space, lambda problem: {"BLOCK": 16}, source)

    def run():
        kernel.config({"M": 5}, CPU)
        clock[0] += 0.01

    for budget_s in (1.0, 5.0, 20.0):
        clock[0] = 0.0
        task = autotune.Task(kernel, {"M": 5}, CPU, run, lambda got: None)
        autotune.search(task, store=autotune.store(), budget_s=budget_s, again=True)
        assert clock[0] < budget_s + 1.0


@pytest.mark.parametrize("complaint", ["Megatron-LM#6966", "flashinfer#3186"])
def test_megatron_6966_and_flashinfer_3186_the_same_config_on_every_rank(complaint):
    """Two real processes: test_ranks.py."""
    text = Path(__file__).with_name("test_ranks.py").read_text()
    assert complaint in text


WRITERS = """
import itertools, os, sys
from pathlib import Path
from tropigrad.autotune import Fingerprint, Store
environment = Fingerprint("a GPU", "9.0", 132, "2.13", "3.7")
key = {"kernel": "op.triton", "source": "abc", "problem": {"M": 64}}
root = Path(sys.argv[1])
name = next((number for number in range(1, 8) if os.fork() == 0), 0)
for number in itertools.count():
    assert Store(root).put(environment, key, {"BLOCK": name})
    if number == 100:
        (root / str(name)).touch()
"""


def test_pytorch_119698_no_corruption_under_races(tmp_path):
    """Eight processes write one entry, and are killed in the middle: what is there is whole."""
    store = Store(tmp_path)
    writers = subprocess.Popen(
        [sys.executable, "-c", WRITERS, store.root], start_new_session=True, stdout=subprocess.PIPE
    )
    try:
        while not all((store.root / str(number)).exists() for number in range(8)):
            assert writers.poll() is None
            entry = store.get(HERE, KEY)
            assert entry is None or entry.config["BLOCK"] in range(8)
    finally:
        os.killpg(writers.pid, signal.SIGKILL)
        writers.communicate()  # until the last of the eight is gone: a killed one may yet finish its rename
    entry = store.get(HERE, KEY)
    assert entry
    assert entry.config["BLOCK"] in range(8)
    assert len(store.left_over()) <= 8
    assert store.put(HERE, KEY, CONFIG)
    assert store.get(HERE, KEY) == Entry(KEY, CONFIG, {})


@needs_compiler
def test_triton_10596_nothing_is_tuned_inside_a_capture(few, monkeypatch):
    """The default serves, and is not remembered: outside the capture the same call is tuned."""
    monkeypatch.setattr(tuned, "capturing", lambda device: True)
    with autotune.mode("tune"):
        assert launched().source == "default"
        assert list(autotune.store().entries()) == []
        monkeypatch.setattr(tuned, "capturing", lambda device: False)
        assert launched().source == "user cache"


@needs_compiler
def test_vllm_39822_after_warming_up_a_request_reads_and_searches_nothing(few, monkeypatch):
    autotune.warm_up("tropical_matmul", SHAPE)
    monkeypatch.setattr(os, "open", lambda *args: pytest.fail("the disk is read"))
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: pytest.fail("something is compiled"))
    a, b = torch.randn(SHAPE["M"], SHAPE["K"]), torch.randn(SHAPE["K"], SHAPE["N"], requires_grad=True)
    tropical_matmul(a, b).sum().backward()


@pytest.mark.parametrize(
    "change",
    [{"M": 65}, {"dtype": "torch.float16"}, {"winners": True}, {"aligned": False}, {"deterministic": True}],
    ids=lambda change: next(iter(change)),
)
def test_flashinfer_3363_keys_are_complete(change):
    """Whatever a kernel puts into its problem is in the key, and so is the code it is made of."""
    problem = {"M": 64, "dtype": "torch.float32", "winners": False, "aligned": True, "deterministic": False}
    key = by_cpp.FORWARD.key(problem)
    assert by_cpp.FORWARD.key(problem | change) != key
    assert set(key) == {"kernel", "source", "problem"}
    native = by_cpp.SOURCE.resolve().parents[1].joinpath("runtime/native/native.hpp").read_text()
    assert "in_parallel" in native  # what cpu.cpp includes, and its hash with it: see test_keys.py


@needs_compiler
@pytest.mark.parametrize("where", ["plain", "no_grad", "inference", "vmap", "grad of vmap"])
def test_the_mode_tune_tunes_in_the_call_and_once(few, where):
    a, b = torch.randn(3, SHAPE["M"], SHAPE["K"]), torch.randn(SHAPE["K"], SHAPE["N"])

    def product(x):
        return tropical_matmul(x, b)

    calls = {
        "plain": lambda: tropical_matmul(a[0], b),
        "no_grad": lambda: torch.no_grad()(tropical_matmul)(a[0], b),
        "inference": lambda: torch.inference_mode()(tropical_matmul)(a[0], b),
        "vmap": lambda: torch.func.vmap(product)(a),
        "grad of vmap": lambda: torch.func.grad(lambda x: torch.func.vmap(product)(x).sum())(a),
    }
    expected = calls[where]()
    reload()
    with autotune.mode("tune"), warnings.catch_warnings():
        warnings.simplefilter("error")
        got = calls[where]()
        stored = autotune.store().whole(fingerprint(CPU))
        assert stored
        calls[where]()
    assert torch.equal(got, expected)
    assert autotune.store().whole(fingerprint(CPU)) == stored


def test_tuning_that_fails_in_a_call_is_a_warning_and_the_default(monkeypatch):

    def fails(*args, **kwargs):
        raise OSError("no more threads")

    monkeypatch.setattr(tuning, "search", fails)
    with autotune.mode("tune"), pytest.warns(RuntimeWarning, match="runs with its default, for tuning it failed: no"):
        assert launched().source == "default"


def test_a_problem_that_no_op_leads_to_is_said_and_gets_the_default(tmp_path):
    kernel = Tuned("op.alone", Space({"BLOCK": (16,)}), lambda problem: {"BLOCK": 16}, Path(__file__))
    with autotune.mode("tune"), pytest.warns(RuntimeWarning, match="no registered op leads to op.alone"):
        assert kernel.config({"M": 5}, CPU) == {"BLOCK": 16}


def test_no_kernel_tunes_itself():
    """Every config is resolved here: triton.autotune would compile all of them at the first call."""
    for path in Path(tropigrad.kernels.__file__).resolve().parent.rglob("*.py"):
        assert "@triton.autotune" not in path.read_text(), path


TUNE = """
import sys, torch, tropigrad.kernels
from tropigrad import autotune
from tropigrad.autotune import contest, shipped, timing, tuned, tuning
list(autotune.tune("tropical_matmul", {"M": 24, "K": 40, "N": 33}, budget_s=1000))
"""


@needs_compiler
def test_a_killed_tuning_goes_on_from_what_it_had_measured(tmp_path, monkeypatch):
    same = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # another number is another environment
    tuning = subprocess.Popen([sys.executable, "-c", TUNE], env=same)
    try:
        while sum(journal.read_text().count('"rung": 0') for journal in tmp_path.rglob("journal/*.jsonl")) < 7:
            assert tuning.poll() is None
            time.sleep(0.02)
    finally:
        tuning.kill()
        tuning.wait()
    (journal,) = tmp_path.rglob("journal/*.jsonl")
    known = [json.loads(line) for line in journal.read_text().splitlines() if line.endswith("}")]
    proven, prove = [], contest._Search.prove

    def spied(self, rival):
        proven.append((canonical(self.task.kernel.key(self.task.problem)), rival.config))
        return prove(self, rival)

    monkeypatch.setattr(contest._Search, "prove", spied)
    monkeypatch.setattr(contest, "DUEL_S", 0.1)
    found = autotune.tune("tropical_matmul", SHAPE, budget_s=12)
    assert len(known) >= 7
    assert not [record for record in known if (record["of"], record["config"]) in proven]
    assert proven
    assert found[0].how in ("tuned", "cut off")  # the machine may be busy
