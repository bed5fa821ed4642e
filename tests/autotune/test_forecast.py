"""Where a forecast is made, what becomes of unplannable calls, and when it stops. Real kernels: test_tuning.py."""

import os
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from tropigrad.autotune import Call, Choice, MachineCode, Prediction, Work, forecast, tuning
from tropigrad.autotune.machine import ahead_of_time
from tropigrad.autotune.tunable import Launched
from tropigrad.triton_or_stub import HAS_TRITON

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
CALL = Call("forward", lambda: None, lambda got: None, Work(1, 1, "add_max"))


@pytest.fixture
def nvidia(monkeypatch):
    """A torch and a triton for NVIDIA's GPUs."""
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(forecast, "HAS_TRITON", True)


def test_a_search_goes_by_the_forecast_of_its_call(nvidia, tuned):
    launched = Launched(CALL, tuned, {"M": 5}, Choice({"BLOCK": 16}, "default"))
    assert tuning._task(launched, CPU).inspect is None
    inspect = tuning._task(launched, GPU).inspect
    assert isinstance(inspect, partial)
    assert (inspect.func, inspect.args) == (forecast.forecast, (GPU, CALL, tuned))


@pytest.mark.parametrize("without", ["a GPU", "NVIDIA's", "triton", "foresight"])
def test_elsewhere_there_is_none(nvidia, tuned, monkeypatch, without):
    if without == "NVIDIA's":
        monkeypatch.setattr(torch.version, "hip", "6.2")
    if without == "triton":
        monkeypatch.setattr(forecast, "HAS_TRITON", False)
    call = replace(CALL, is_foreseeable=without != "foresight")
    assert forecast.inspector(call, tuned, CPU if without == "a GPU" else GPU) is None


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
def test_a_call_that_cannot_be_planned_says_why(tuned):
    def run():
        raise ValueError("no such shape")

    assert forecast.forecast(CPU, replace(CALL, run=run), tuned, [{"BLOCK": 16}]) == ["ValueError: no such shape"]


CODE = MachineCode(90, 32, 0, 0, {"FADD": 1}, {"FADD": 1}, "")


@pytest.fixture
def compiler(monkeypatch, tuned):
    """A compiler that takes 1 s a plan on a clock of its own, on one core; and the plans that it was given."""

    class Compiler:
        now, compiled, planned = 0.0, [], []

        def plan(self, name: str) -> ahead_of_time.Plan:
            return ahead_of_time.Plan("kernel", name, 1, 128, 90, lambda: self.compile(name))

        def compile(self, name: str) -> SimpleNamespace:
            self.now += 1.0
            self.compiled.append(name)
            asm = {"ttir": "", "ptx": "", "cubin": b""}  # of what triton.compile returns, the part that is kept
            return SimpleNamespace(asm=asm, metadata=SimpleNamespace(shared=0))

        def plans(self, call) -> list[ahead_of_time.Plan]:
            name = f"kernel-{tuned.config({'M': 5}, CPU)['BLOCK']}"
            self.planned.append(name)
            return [self.plan(name), self.plan("shared")]

    made = Compiler()
    made.compiled, made.planned = [], []
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(ahead_of_time, "machine_codes", lambda compiled, capability: [CODE] * len(compiled))
    monkeypatch.setattr(ahead_of_time, "plan", made.plans)
    for module in (ahead_of_time, forecast):
        monkeypatch.setattr(module, "perf_counter", lambda: made.now)
    return made


def test_what_the_deadline_cuts_off_is_not_compiled_and_has_no_code(compiler):
    plans = [compiler.plan(f"kernel-{number}") for number in range(100)]
    codes = ahead_of_time.compile_all(plans, deadline=2.5)
    # the third began before the deadline, and was let finish
    assert compiler.compiled == list(codes) == ["kernel-0", "kernel-1", "kernel-2"]
    assert len(ahead_of_time.compile_all(plans)) == 100


def test_a_compiler_that_fails_says_so_and_the_rest_goes_on(compiler):
    def failing():
        raise ValueError("no such instruction\nat line 3")

    broken = replace(compiler.plan("broken"), compile=failing)
    codes = ahead_of_time.compile_all([broken, compiler.plan("kernel-0")], deadline=5.0)
    assert codes == {"broken": "kernel does not compile: ValueError: no such instruction", "kernel-0": CODE}


def test_a_config_is_foreseen_where_all_that_it_launches_was_compiled_in_time(compiler, tuned):
    configs = [{"BLOCK": block} for block in (16, 32, 64)]
    foreseen = forecast.forecast(CPU, CALL, tuned, configs, deadline=2.5)
    # one has its own kernel and the shared one, one its own alone in time; two at the most are done in three seconds
    assert sorted(type(outlook).__name__ for outlook in foreseen) == ["NoneType", "Prediction", "Prediction"]
    assert compiler.compiled.count("shared") == 1
    assert all(isinstance(outlook, Prediction) for outlook in forecast.forecast(CPU, CALL, tuned, configs))


def test_after_the_deadline_nothing_is_even_planned(compiler, tuned):
    assert forecast.forecast(CPU, CALL, tuned, [{"BLOCK": 16}], deadline=-1.0) == [None]
    assert not compiler.planned
    assert not compiler.compiled


def test_long_plans_do_not_keep_the_first_configs_from_being_compiled(compiler, tuned, monkeypatch):
    """Planning takes time as well: a deadline leaves some configs whole, and not all of them half done."""
    plans = ahead_of_time.plan

    def slowly(call):
        compiler.now += 0.1
        return plans(call)

    monkeypatch.setattr(ahead_of_time, "plan", slowly)
    foreseen = forecast.forecast(CPU, CALL, tuned, [{"BLOCK": 16 << n} for n in range(200)], deadline=15.0)
    assert sum(isinstance(outlook, Prediction) for outlook in foreseen) > 8
