"""Triton's launches on the interpreter of PTX: kernels of a user's, some with a fault that only a GPU would show.

Run as a script without TRITON_INTERPRET, this file makes these launches and prints what came of them.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tropigrad.perf_reports import ptx

triton = pytest.importorskip("triton", reason="triton is not installed")
tl = triton.language


@triton.jit
def softmax_kernel(x_ptr, y_ptr, columns, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    row, j = tl.program_id(0), tl.arange(0, BLOCK)
    inside = (j < columns) | (not MASKED)
    x = tl.load(x_ptr + row * columns + j, mask=inside, other=-float("inf"))
    e = tl.exp(x - tl.max(x, 0))
    tl.store(y_ptr + row * columns + j, e / tl.sum(e, 0), mask=inside)


@triton.jit
def halve_kernel(x_ptr, log_ptr, WAITS: tl.constexpr):
    """In place; 16 elements of a block of 128 threads, and a sum over what was read, of which copies may be late."""
    i = tl.arange(0, 16)
    x = tl.load(x_ptr + i)
    if WAITS:
        tl.debug_barrier()
    tl.store(x_ptr + i, x / 2)
    tl.store(log_ptr, tl.sum(x, 0))


@triton.jit
def mean_kernel(x_ptr, part_ptr, count_ptr, y_ptr, blocks, SEM: tl.constexpr, BARRIER: tl.constexpr):
    """Of all blocks' parts, by the last block to have written its own."""
    i = tl.program_id(0) * 64 + tl.arange(0, 64)
    tl.store(part_ptr + i, tl.load(x_ptr + i) * 2)
    if BARRIER:
        tl.debug_barrier()
    if tl.atomic_add(count_ptr, 1, sem=SEM) == blocks - 1:
        total = tl.zeros([64], tl.float32)
        for block in range(blocks):
            total += tl.load(part_ptr + block * 64 + tl.arange(0, 64))
        tl.store(y_ptr + tl.arange(0, 64), total)


@triton.jit
def chain_kernel(flag_ptr, y_ptr):
    """Each block waits for the one after it."""
    block = tl.program_id(0)
    while tl.atomic_add(flag_ptr + block + 1, 0, sem="acquire") == 0:
        pass
    tl.store(y_ptr + block, block)
    tl.debug_barrier()
    tl.atomic_xchg(flag_ptr + block, 1, sem="release")


@triton.jit
def sum_kernel(x_ptr, y_ptr):
    """In any order of the blocks, though floats are added."""
    tl.atomic_add(y_ptr, tl.load(x_ptr + tl.program_id(0)), sem="relaxed")


@triton.jit
def types_kernel(x_ptr, y_ptr, z_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x, y = tl.load(x_ptr + i, mask=i < n, other=0), tl.load(y_ptr + i, mask=i < n, other=0)
    tl.store(z_ptr + i, tl.maximum(x + y, y), mask=i < n)


def softmax(masked: bool = True, written: bool = True) -> bool:
    x, y = torch.randn(3, 100), torch.empty(3, 100)
    softmax_kernel[(3,)](x if written else torch.empty(3, 100), y, 100, MASKED=masked, BLOCK=128)
    torch.testing.assert_close(y, x.softmax(1))
    return True


def halve(waits: bool) -> bool:
    x, log = torch.arange(16.0), torch.empty(1)
    halve_kernel[(1,)](x, log, WAITS=waits)
    return torch.equal(x, torch.arange(16.0) / 2) and log.item() == 120


def mean(sem: str = "acq_rel", barrier: bool = True) -> bool:
    x, y = torch.randn(5 * 64).round(), torch.empty(64)
    mean_kernel[(5,)](x, torch.empty(5 * 64), torch.zeros(1, dtype=torch.int32), y, 5, SEM=sem, BARRIER=barrier)
    return torch.equal(y, 2 * x.view(5, 64).sum(0))


def chain() -> bool:
    flags, y = torch.tensor([0, 0, 0, 1], dtype=torch.int32), torch.empty(3, dtype=torch.int32)
    chain_kernel[(3,)](flags, y)
    return y.tolist() == [0, 1, 2] and flags.tolist() == [1] * 4


def total() -> bool:
    x, y = torch.tensor([1e8, 1.0, -1e8, 1.0]), torch.zeros(1)
    sum_kernel[(4,)](x, y)
    return True


def types() -> bool:
    """Each dtype, at views that begin anywhere, whose memory before and behind stays as it is."""
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int16, torch.int8):
        x, y = (torch.arange(300).remainder(11).sub(5).to(dtype)[k : k + 200] for k in (3, 50))
        z = torch.full((300,), 7, dtype=dtype)
        types_kernel[lambda meta: (triton.cdiv(200, meta["BLOCK"]),)](x, y, z[5:205], 200, BLOCK=64)
        if not torch.equal(z[5:205], torch.maximum(x + y, y)) or not (z[:5] == 7).all() or not (z[205:] == 7).all():
            return False
    return True


RIGHT: dict[str, tuple[Callable[[], bool], Any]] = {
    "softmax": (softmax, ptx.ORDERS),
    "softmax, approximations at random": (softmax, ptx.TOGETHER),
    "in place": (lambda: halve(True), ptx.ORDERS),
    "the last block": (mean, ptx.ORDERS),
    "a chain of blocks, all resident": (chain, ptx.Order("interleaved", 4)),
    "a chain of blocks from behind": (chain, ptx.Order("backward")),
    "dtypes and views": (types, ptx.TOGETHER),
}
WRONG: dict[str, tuple[Callable[[], bool], Any, str, str]] = {
    "no mask": (lambda: softmax(masked=False), ptx.TOGETHER, "OutOfBounds", "softmax_kernel, test_launches.py"),
    "an operand that nobody wrote": (lambda: softmax(written=False), ptx.TOGETHER, "UnwrittenRead", "of argument 0"),
    "a late copy": (lambda: halve(False), ptx.TOGETHER, "Race", "no barrier is between. What is read so decides"),
    "no release": (lambda: mean("relaxed"), ptx.TOGETHER, "Race", "no release and acquire is between"),
    "no acquire": (lambda: mean("release"), ptx.TOGETHER, "Race", "no release and acquire is between"),
    "no barrier before": (lambda: mean(barrier=False), ptx.Order("interleaved", 7), "Race", "of argument 1"),
    "a chain of blocks, one resident": (chain, ptx.Order("forward"), "NotResident", "block 0 waits"),
    "a sum of floats": (total, ptx.ORDERS, "OrderDependent", "sum_kernel, test_launches.py"),
}


def result(call: Callable[[], bool], orders: Any, approximations: int | None, capability: int) -> list[Any]:
    torch.manual_seed(0)
    try:
        with ptx.emulated(capability, orders, approximations) as made:
            right = call()
        return ["right" if right else "wrong", str(made)]
    except Exception as error:
        return [type(error).__name__, str(error)]


def main(capability: str) -> None:
    found = {
        name: result(call, orders, 5 if "random" in name else None, int(capability))
        for name, (call, orders, *_) in {**RIGHT, **WRONG}.items()
    }
    print(json.dumps(found))


@pytest.fixture(scope="module", params=[90, 80], ids=["sm_90", "sm_80"])
def found(request):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, __file__, str(request.param)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def test_kernels_compute_what_they_should(found):
    assert {name: found[name][0] for name in RIGHT} == dict.fromkeys(RIGHT, "right"), found


def test_faults_are_told_apart(found):
    for name, (_, _, fault, words) in WRONG.items():
        kind, message = found[name]
        assert kind == fault, f"{name}: {kind}: {message}"
        assert words in message, f"{name}: {message}"


def test_an_interpreting_triton_is_refused():
    if not triton.knobs.runtime.interpret:
        pytest.skip("Triton compiles here")
    with pytest.raises(RuntimeError, match="unset TRITON_INTERPRET"), ptx.emulated():
        pass


def test_numpy_arrays_and_tensors_may_share_memory():
    """A view and its base are one allocation; what lies between two arrays belongs to none."""
    text = """.visible .entry copy(.param .u64 copy_param_0, .param .u64 copy_param_1)
{
.reg .b32 %r<3>;
.reg .b64 %rd<6>;
ld.param.b64 %rd0, [copy_param_0];
ld.param.b64 %rd1, [copy_param_1];
mov.u32 %r0, %tid.x;
mul.wide.u32 %rd2, %r0, 4;
add.s64 %rd3, %rd0, %rd2;
add.s64 %rd4, %rd1, %rd2;
ld.global.b32 %r1, [%rd3];
st.global.b32 [%rd4], %r1;
ret;
}
"""
    base = np.arange(64, dtype=np.int32)
    ptx.run(text, [base[:32], base[32:]], 1, 32)
    assert np.array_equal(base, np.tile(np.arange(32), 2))
    tensor = torch.zeros(32, dtype=torch.int32)
    ptx.run(text, [base[:32], tensor], 1, 32)
    assert torch.equal(tensor, torch.arange(32, dtype=torch.int32))
    with pytest.raises(ptx.OutOfBounds, match="argument 1 of 120 bytes"):
        ptx.run(text, [base, torch.zeros(30, dtype=torch.int32)], 1, 32)


if __name__ == "__main__":
    main(*sys.argv[1:])
