"""The PTX interpreter on programs of a few lines: what it computes, and what it refuses."""

import numpy as np
import pytest

from tropigrad.kernels.contract import ptx_interpreter

THREADS = 64


def run(body: str, *arguments: np.ndarray | int) -> None:
    lines = [f"ld.param.b64 %rd{i}, [f_param_{i}];" for i in range(len(arguments))]
    lines += ["mov.u32 %r0, %tid.x;", "mul.wide.u32 %rd8, %r0, 4;", "add.s64 %rd9, %rd0, %rd8;"]
    lines += [line.strip() + ";" for line in body.strip().splitlines()]
    ptx_interpreter.run(
        ".entry f(\n)\n{\n" + "\n".join(lines) + "\nret;\n// -- End function", arguments, 1, THREADS, 4096
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("div.s32 %r1, -7, 2", -3),
        ("shr.s32 %r1, -8, 1", -4),
        ("shr.u32 %r1, -8, 28", 15),
        ("bfe.u32 %r1, 0xabcd, 4, 8", 0xBC),
        ("prmt.b32 %r1, 0x1111, 0x2222, 0x5410U", 0x22221111),
        ("max.s32 %r1, -5, 3", 3),
        ("add.f32 %r1, 0f3F800000, 0f40000000", 0x40400000),
        ("max.NaN.f32 %r1, 0f7FC00000, 0f40000000", 0x7FC00000),
        ("max.f32 %r1, 0f7FC00000, 0f40000000", 0x40000000),
    ],
)
def test_an_instruction_is_what_the_manual_says(line, expected):
    out = np.zeros(THREADS, np.int32)
    run(f"{line}\nst.global.b32 [%rd9], %r1", out)
    assert (out == expected).all()


COPY = """
    shl.b32 %r1, %r0, 4
    mul.wide.u32 %rd10, %r0, 16
    add.s64 %rd11, %rd1, %rd10
    cp.async.cg.shared.global [%r1], [%rd11], 0x10, 16
    cp.async.commit_group
"""
NEIGHBOUR = "xor.b32 %r2, %r1, 16"
LOAD = "ld.shared.b32 %r3, [%r2]"
STORE = "st.global.b32 [%rd9], %r3"


def test_copies_are_read_after_a_wait_and_a_barrier():
    out, x = np.zeros(THREADS, np.int32), np.arange(4 * THREADS, dtype=np.int32)
    run("\n".join([COPY, "cp.async.wait_group 0", "bar.sync 0", NEIGHBOUR, LOAD, STORE]).replace("\n\n", "\n"), out, x)
    assert (out == 4 * (np.arange(THREADS) ^ 1)).all()


@pytest.mark.parametrize(
    ("waits", "again", "message"),
    [
        (["bar.sync 0"], "", "not waited for"),
        (["cp.async.wait_group 0"], "", "not waited for"),
        (["cp.async.wait_group 0", "bar.sync 0"], COPY, "may still read"),
    ],
    ids=["no wait", "no barrier", "no barrier before the next copy"],
)
def test_races_are_told(waits, again, message):
    out, x = np.zeros(THREADS, np.int32), np.zeros(4 * THREADS, np.int32)
    with pytest.raises(ptx_interpreter.Race, match=message):
        run("\n".join([COPY, *waits, NEIGHBOUR, LOAD, again, STORE]).replace("\n\n", "\n"), out, x)


def test_accesses_outside_of_the_buffers_are_told():
    with pytest.raises(IndexError, match="in no buffer"):
        run("st.global.b32 [%rd9], %r0", np.zeros(THREADS - 1, np.int32))


def test_what_is_not_known_is_refused():
    with pytest.raises(NotImplementedError, match=r"sad\.u32"):
        run("sad.u32 %r1, %r0, %r0, %r0", np.zeros(1, np.int32))
    with pytest.raises(ValueError, match="is not contiguous"):
        run("mov.u32 %r1, %r0", np.zeros((2, 2), np.int32).T)
