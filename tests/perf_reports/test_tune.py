"""Ceilings that a report or `qualify` measured: `explain` takes them up in the same environment, and in no other."""

import dataclasses
import re

import pytest
import torch

from tropigrad import autotune
from tropigrad.autotune import Ceilings, Work
from tropigrad.autotune.machine.cost import predict, roofline
from tropigrad.perf_reports import tune
from tropigrad.perf_reports.measuring import ceilings
from tropigrad.perf_reports.qualify.bench import Bench
from tropigrad.perf_reports.qualify.item import Item

CPU = torch.device("cpu")
EVERYBODY = torch.get_num_threads()


def measured(name: str, value: float, threads: int = EVERYBODY, unit: str = "G steps/s") -> dict:
    return ceilings.Ceiling(name, threads, value, unit, (value,), "").record()


RECORDS = [
    measured("add_max", 70.0),
    measured("add_max", 40.0, threads=EVERYBODY + 1),
    measured("fma_max", 90.0),
    measured("memory", 12.0, unit="GB/s"),
    {"kind": "left_out", "what": "ceiling mul_max", "reason": "none"},
]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TROPIGRAD_CACHE_DIR", str(tmp_path))


def test_what_qualify_measures_is_what_explain_goes_by(monkeypatch, tmp_path):
    assert tune.ceilings(CPU, torch.float32) == autotune.NOMINAL
    monkeypatch.setattr(ceilings, "measure", lambda **options: iter(RECORDS))
    told: list = []
    answer = Bench(()).carry_out(Item("ceilings", "ceilings", "ceilings", "ceilings"), 1.0, told.append)
    assert answer.result == "passed"
    assert [message["record"] for message in told] == RECORDS
    # a mix is bounded by its best way, with all threads; of float64 nobody measured the steps
    assert tune.ceilings(CPU, torch.float32) == Ceilings({"add_max": 90e9}, 12e9, None)
    assert tune.ceilings(CPU, torch.float64) == Ceilings({}, 12e9, None)

    (launched, *_) = tune.explain("tropical_matmul", {"": {"M": 512, "K": 512, "N": 512}}, torch.float32).launched
    assert launched.prediction.seconds == pytest.approx(512**3 / 90e9)
    (*_, said) = launched.lines()
    assert re.search(
        r"1.49e\+03 µs at the least, by figures measured here \(tropigrad qualify, \d{4}-\d\d-\d\d \d\d:\d\d UTC\)\)$",
        said,
    )
    assert list(autotune.store().entries()) == []  # the figures are no config


def test_another_environment_and_a_damaged_file_know_nothing(monkeypatch):
    tune.keep_ceilings(RECORDS, CPU, "a report")
    here = autotune.fingerprint(CPU)
    (path,) = autotune.store().root.rglob("ceilings.json")
    path.write_text(path.read_text().replace("90.0", "95.0"))
    assert tune.ceilings(CPU, torch.float32) == autotune.NOMINAL
    tune.keep_ceilings(RECORDS, CPU, "a report")
    assert autotune.store().noted(here, "ceilings")
    assert autotune.store().noted(dataclasses.replace(here, torch="0.0"), "ceilings") is None


@pytest.mark.parametrize(
    "content",
    [
        [{"name": "add_max", "threads": EVERYBODY, "value": 90.0}],
        "figures",
        None,
        {"records": 3, "origin": ""},
        {"records": [{"name": "add_max"}], "origin": ""},
        {"records": [{"name": "add_max", "threads": EVERYBODY, "value": "fast"}], "origin": ""},
        {"records": [{"name": "add_max", "threads": EVERYBODY, "value": -1.0}], "origin": ""},
        {"records": [{"name": "add_max", "threads": EVERYBODY, "value": float("inf")}], "origin": ""},
    ],
    ids=["of-before", "text", "nothing", "number", "no-value", "word", "negative", "infinite"],
)
def test_a_whole_file_that_means_nothing_is_no_error(content):
    autotune.store().note(autotune.fingerprint(CPU), "ceilings", content)
    assert tune.ceilings(CPU, torch.float32) == autotune.NOMINAL


def test_roofs_of_which_none_was_measured_leave_the_earlier_ones():
    tune.keep_ceilings(RECORDS, CPU, "a report")
    tune.keep_ceilings(RECORDS[-1:], CPU, "another")
    assert tune.ceilings(CPU, torch.float32).origin.startswith("a report, ")


@pytest.mark.parametrize(
    ("work", "limiter", "figures"),
    [
        (Work(1 << 40, 1, "add_max"), "instructions (add + max)", "figures measured here"),
        (Work(1 << 40, 1, "mul_max"), "instructions (mul + max)", "nominal figures"),
        (Work(1, 1 << 40, "add_max"), "memory bandwidth", "figures measured here"),
        (Work(1, 1, "add_max"), "the call itself", "nominal figures"),
    ],
    ids=["steps", "another-mix", "bytes", "call"],
)
def test_a_limiter_says_what_it_goes_by(work, limiter, figures):
    found = roofline(work, autotune.fingerprint(CPU), CPU, Ceilings({"add_max": 90e9}, 12e9))
    assert (found.limiter, found.figures) == (limiter, figures)


def test_a_gpu_that_was_measured_twice_as_fast_is_predicted_so():
    here = autotune.Fingerprint("a GPU", "9.0", 100, "2.13.0", "3.7.1")
    code = autotune.MachineCode(90, 64, 0, 0, {}, {"FADD": 4, "FMNMX": 8}, "")
    launches, work = [autotune.Launch(code, 800, 128)], Work(1 << 36, 1 << 20, "add_max")
    slow, fast = (predict(launches, work, here, Ceilings(maxima=rate)) for rate in (6e12, 12e12))
    assert slow.seconds == pytest.approx(2 * fast.seconds)
    assert (slow.limiter, slow.figures) == ("ALU pipe", "figures measured here")
    assert predict(launches, work, here).figures == "nominal figures"


def test_a_gpus_16_bit_floats_and_integers_have_ceilings_of_their_own(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(autotune, "fingerprint", lambda device: autotune.Fingerprint("a GPU", "9.0", 132, "2", "3"))
    names = {"add_max": 7.0, "add_max_half": 14.0, "add_max_int": 9.0, "memory": 3000.0, "launch": 4.0}
    tune.keep_ceilings([measured(name, value, threads=0) for name, value in names.items()], gpu, "a report")
    steps = {dtype: tune.ceilings(gpu, dtype).steps for dtype in (torch.float32, torch.float16, torch.int32)}
    assert [found["add_max"] for found in steps.values()] == [7e9, 14e9, 9e9]
    assert tune.ceilings(gpu, torch.float64) == Ceilings({}, 3e12, 4e-6, 7e9)


def test_a_finding_says_how_many_configs_were_left_unforeseen():
    evidence = {"complete": False, "unforeseen": 260}
    finding = autotune.Finding("op.triton", {"M": 64}, {"BLOCK": 16}, {"BLOCK": 16}, evidence, "cut off", stored=False)
    text = tune.lines([finding], table=None)
    assert "  260 configs left unforeseen: there was no time to compile them" in text
    assert tune.as_json([finding], table=None)["findings"][0]["evidence"]["unforeseen"] == 260
