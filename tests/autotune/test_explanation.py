"""explain: the whole text, once by heart; and what it says of configs that were passed over."""

import os

import pytest
import torch

from tropigrad import autotune
from tropigrad.autotune import Call, Fingerprint, Prediction, Space, Tunable, Tuned, Work, explain, explanation, tuned

HERE = Fingerprint("a GPU", "9.0", 132, "2.13.0", "3.7.1", "570.1", "12.8", library="0.1.0")
MODULES = [explanation, tuned]
CPU = torch.device("cpu")

OF_THE_DEFAULT = """\
op M=100
device    a GPU, 9.0, 132 units, driver 570.1, ptxas 12.8
versions  tropigrad 0.1.0, torch 2.13.0, triton 3.7.1
cache     /nowhere/tropigrad, environment ENVIRONMENT
variable  TROPIGRAD_CACHE_DIR=/nowhere/tropigrad

op.triton, of forward
  problem   M=100 dtype=float32; bucket M=128 dtype=float32
  config    BLOCK=16 num_warps=4
  source    default
  rivals    none timed
  limiter   instructions (add + max) (predicted: 678 µs at the least, by nominal figures)"""
OF_A_WINNER = """\
op.triton, of forward
  problem   M=100 dtype=float32; bucket M=128 dtype=float32
  config    BLOCK=32 num_warps=8
  source    user cache
  default   BLOCK=16 num_warps=4
  gain      1.5 [1.4, 1.6] × over the default; the default over itself 1 [1.4, 1.6]
  rivals    0.667 × the default's time: BLOCK=32 num_warps=8
            0.9 × the default's time: BLOCK=32 num_warps=4
            0 more timed, 1 rejected
  limiter   instructions (add + max) (predicted: 678 µs at the least, by nominal figures)"""


@pytest.fixture
def op(monkeypatch, tmp_path):
    """An op of one kernel, on a device that is the same everywhere."""
    source = tmp_path / "kernel.cpp"
    source.write_text("")
    space = Space({"BLOCK": (16, 32, 64), "num_warps": (4, 8)})
    kernel = Tuned("op.triton", space, lambda problem: {"BLOCK": 16, "num_warps": 4}, source)

    def calls(shape, dtype, device):
        problem = {"M": shape["M"], "dtype": str(dtype)}
        yield Call(
            "forward", lambda: kernel.config(problem, device), lambda got: None, Work(1 << 30, 1 << 20, "add_max")
        )

    monkeypatch.setitem(autotune.TUNABLE, "op", Tunable("op", {"S": {"M": 100}}, (kernel,), calls))
    for module in MODULES:
        monkeypatch.setattr(module, "fingerprint", lambda device: HERE)
    for name in [name for name in os.environ if name.startswith("TROPIGRAD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TROPIGRAD_CACHE_DIR", "/nowhere/tropigrad")
    autotune.reload()
    return kernel


def test_the_text_of_what_nobody_tuned(op):
    assert str(explain("op", {"M": 100}, device=CPU)).replace(HERE.hash, "ENVIRONMENT") == OF_THE_DEFAULT


def test_the_text_of_what_was_tuned(op, monkeypatch, tmp_path):
    monkeypatch.setenv("TROPIGRAD_CACHE_DIR", str(tmp_path / "cache"))
    interval = {"value": 1.5, "low": 1.4, "high": 1.6}
    rivals = [
        {"config": {"BLOCK": 32, "num_warps": 4}, "ratio": 0.9, "rung": 0, "rejected": ""},
        {"config": {"BLOCK": 32, "num_warps": 8}, "ratio": 0.667, "rung": 2, "rejected": ""},
        {"config": {"BLOCK": 64, "num_warps": 8}, "ratio": 0.0, "rung": -1, "rejected": "_kernel spills 8 bytes"},
    ]
    evidence = {"gain": interval, "noise": interval | {"value": 1.0}, "rivals": rivals}
    autotune.store().put(HERE, op.key({"M": 100, "dtype": "torch.float32"}), rivals[1]["config"], evidence)
    found = explain("op", {"M": 100}, device=CPU)
    assert str(found).split("\n\n")[1] == OF_A_WINNER
    (launched,) = found.launched
    assert launched.rejected == (({"BLOCK": 64, "num_warps": 8}, "_kernel spills 8 bytes"),)
    assert found.as_json()["launched"][0]["kernel"] == "op.triton"


def test_a_config_that_was_passed_over_is_explained(op, monkeypatch, tmp_path):
    monkeypatch.setenv("TROPIGRAD_CACHE_DIR", str(tmp_path / "cache"))
    autotune.store().put(HERE, op.key({"M": 100, "dtype": "torch.float32"}), {"BLOCK": 17, "num_warps": 4})
    with pytest.warns(RuntimeWarning, match="op.triton does not use"):
        text = str(explain("op", {"M": 100}, device=CPU))
    assert "source    default (user cache: {'BLOCK': 17, 'num_warps': 4} is not in the kernel's space)" in text


def test_a_forecast_tells_the_limiter_where_there_is_one(op, monkeypatch):
    def inspector(call, kernel, device):
        assert (call.name, kernel, device) == ("forward", op, CPU)
        return lambda configs, ceilings: [Prediction(1.5, "ALU pipe") for _ in configs]

    monkeypatch.setattr(explanation, "inspector", inspector)
    (launched,) = explain("op", {"M": 100}, device=CPU).launched
    assert launched.prediction == Prediction(1.5, "ALU pipe")


def test_an_op_without_kernels_says_so(monkeypatch):
    calls = lambda shape, dtype, device: [Call("torch", lambda: None, print, Work(1, 1, "add_max"))]  # noqa: E731
    monkeypatch.setitem(autotune.TUNABLE, "op", Tunable("op", {"S": {"M": 100}}, (), calls))
    assert "no kernel with a config: these calls run on torch" in str(explain("op", device=CPU))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"M": 3, "N": 4}, "the shape .* came; expected sizes for M"),
        ([{"N": 3}], "expected sizes for M"),
        ({"M": 0}, "expected positive integers"),
        ({"M": True}, "expected positive integers"),
        ({"S": {"M": 2.0}}, "expected positive integers"),
    ],
    ids=["too-many", "another", "zero", "bool", "float"],
)
def test_shapes_that_are_none_are_named(op, shapes, message):
    with pytest.raises(ValueError, match=message):
        explain("op", shapes, device=CPU)


def test_an_unknown_op_is_answered_with_the_known(op):
    with pytest.raises(ValueError, match="no op named 'nonsense' can be tuned; expected one of: "):
        explain("nonsense")
