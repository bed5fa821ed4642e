"""Where a forecast is made, and what becomes of unplannable calls. Real kernels: kernels/contract/test_tuning.py."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from tropigrad.autotune import Call, Choice, Work, forecast, tuning
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
