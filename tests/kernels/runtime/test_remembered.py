"""What is worked out for a launch is worked out once, and anew wherever it may have changed."""

import pytest
import torch

from tropigrad import autotune
from tropigrad.kernels.runtime import backend, remembered
from tropigrad.kernels.runtime.grid import cdiv, next_power_of_2
from tropigrad.kernels.runtime.implementations import Implementations

CPU = torch.device("cpu")


@pytest.fixture
def worked():
    """A function that is remembered, and the calls that it worked out."""
    calls = []

    @remembered.remembered
    def square(x):
        calls.append(x)
        return x * x

    autotune.reload()
    return square, calls


def test_it_is_worked_out_once(worked):
    square, calls = worked
    assert [square(3), square(3), square(4), square(3)] == [9, 9, 16, 9]
    assert calls == [3, 4]


@pytest.mark.parametrize(
    "block",
    [
        lambda: autotune.mode("off"),
        lambda: autotune.override("a.kernel", {"BLOCK": 1}),
        autotune.recorded,
        lambda: backend.forcing("torch"),
        lambda: backend.forcing("torch", everywhere=True),
    ],
    ids=["mode", "override", "recorded", "forcing", "forcing everywhere"],
)
def test_inside_a_block_nothing_is_remembered_and_nothing_of_it_stays(worked, block):
    square, calls = worked
    square(3)
    with block():
        square(3)
        square(3)
    assert calls == [3, 3, 3]
    square(3)
    square(3)
    assert calls == [3, 3, 3, 3]


def test_where_calls_tune_every_call_asks(worked, monkeypatch):
    square, calls = worked
    monkeypatch.setattr(remembered, "default_mode", lambda: "tune")
    square(3)
    square(3)
    assert calls == [3, 3]


def test_reload_forgets(worked):
    square, calls = worked
    square(3)
    autotune.reload()
    square(3)
    assert calls == [3, 3]


def test_it_does_not_grow_without_end(worked, monkeypatch):
    monkeypatch.setattr(remembered, "MOST_REMEMBERED", 2)
    square, calls = worked
    for x in (1, 2, 3, 3, 1):
        square(x)
    assert calls == [1, 2, 3, 1]


@pytest.fixture
def chosen(monkeypatch):
    """An op, and how often its backend was chosen."""
    autotune.reload()
    asked = []

    def choose(op, device, offered, dtype, *rest):
        asked.append(dtype)
        return "triton" if dtype == torch.float32 else "cpp"

    monkeypatch.setattr(backend, "choose", choose)
    return Implementations("op", cpp=lambda: None, triton=lambda: None), asked


def test_the_backend_of_a_gpu_kernel_is_remembered_until_something_may_change_it(chosen):
    op, asked = chosen
    for _ in range(3):
        assert op.backend_on(CPU, torch.float32) == "triton"
    assert len(asked) == 1
    with backend.forcing("triton"):
        op.backend_on(CPU, torch.float32)
    op.backend_on(CPU, torch.float32)
    assert len(asked) == 3
    autotune.reload()
    op.backend_on(CPU, torch.float32)
    assert len(asked) == 4


def test_another_backend_is_chosen_each_time(chosen):
    op, asked = chosen
    for _ in range(3):
        assert op.backend_on(CPU, torch.float64) == "cpp"
    assert len(asked) == 3


def test_grids_are_what_triton_makes_of_them():
    for x in range(1, 70):
        assert next_power_of_2(x) == 2 ** (x - 1).bit_length()
        assert next_power_of_2(x) >= x > next_power_of_2(x) // 2
        for y in range(1, 20):
            assert cdiv(x, y) * y >= x > (cdiv(x, y) - 1) * y
