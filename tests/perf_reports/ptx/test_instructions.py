"""What each instruction computes: the manual's words, and NumPy's or exact rational arithmetic."""

from fractions import Fraction

import numpy as np
import pytest

from tropigrad.perf_reports import ptx
from tropigrad.perf_reports.ptx import values


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("div.s32 %r1, -7, 2", -3),
        ("rem.s32 %r1, -7, 2", -1),
        ("shr.s32 %r1, -8, 1", -4),
        ("shr.s32 %r1, -8, 77", -1),
        ("shr.u32 %r1, -8, 28", 15),
        ("shl.b32 %r1, 1, 32", 0),
        ("shf.l.wrap.b32 %r1, 0x80000001, 0x00000002, 1", 5),
        ("bfe.u32 %r1, 0xabcd, 4, 8", 0xBC),
        ("bfe.s32 %r1, 0xabcd, 4, 8", 0xBC - 256),
        ("bfi.b32 %r1, 0x5, 0xff00, 4, 4", 0xFF50),
        ("prmt.b32 %r1, 0x1111, 0x2222, 0x5410U", 0x22221111),
        ("prmt.b32 %r1, 0x80, 0x2222, 0x8888U", -1),
        ("lop3.b32 %r1, 0xf0f0, 0xcccc, 0xaaaa, 0xca", 0xCACA),
        ("popc.b32 %r1, 0xff01", 9),
        ("clz.b32 %r1, 0x10000", 15),
        ("brev.b32 %r1, 1", -(1 << 31)),
        ("mul.hi.u32 %r1, 0x80000000, 6", 3),
        ("mul.hi.s32 %r1, -1, 5", -1),
        ("mul.lo.s32 %r1, 65536, 65536", 0),
        ("mad.lo.s32 %r1, 3, 5, -1", 14),
        ("add.sat.s32 %r1, 0x7fffffff, 1", 0x7FFFFFFF),
        ("max.s32 %r1, -5, 3", 3),
        ("max.relu.s32 %r1, -5, -3", 0),
        ("max.s16x2 %r1, 0x0001ffff, 0x8000fffe", 0x0001FFFF),
        ("add.s16x2 %r1, 0x0001ffff, 0x00010001", 0x00020000),
        ("add.f32 %r1, 0f3F800000, 0f40000000", 0x40400000),
        ("max.NaN.f32 %r1, 0f7FC00000, 0f40000000", 0x7FFFFFFF),
        ("max.f32 %r1, 0f7FC00000, 0f40000000", 0x40000000),
        ("max.f32 %r1, 0f80000000, 0f00000000", 0),
        ("min.f32 %r1, 0f00000000, 0f80000000", -(1 << 31)),
        ("add.ftz.f32 %r1, 0f00000001, 0f00000001", 0),
        ("add.f32 %r1, 0f00000001, 0f00000001", 2),
        ("add.rz.f32 %r1, 0f3F800000, 0f33FFFFFF", 0x3F800000),
        ("add.rp.f32 %r1, 0f3F800000, 0f33000000", 0x3F800001),
        ("add.f16x2 %r1, 0x3c003c00, 0x40003c00", 0x42004000),
        ("max.NaN.bf16x2 %r1, 0x7fc03f80, 0x3f804000", 0x7FFF4000),
        ("neg.f32 %r1, 0f3F800000", 0xBF800000 - (1 << 32)),
        ("cvt.rzi.s32.f32 %r1, 0fC0200000", -2),
        ("cvt.rni.s32.f32 %r1, 0f40200000", 2),
        ("cvt.rzi.s32.f32 %r1, 0f7F800000", 0x7FFFFFFF),
        ("cvt.rzi.u32.f32 %r1, 0fBF800000", 0),
        ("cvt.rzi.s32.f32 %r1, 0f7FC00000", 0),
        ("cvt.sat.s8.s32 %r1, 300", 127),
        ("cvt.rn.f32.s32 %r1, 16777217", 0x4B800000),
        ("cvt.rz.f32.s32 %r1, 16777219", 0x4B800001),
        ("cvt.rn.bf16x2.f32 %r1, 0f3F800000, 0f40000000", 0x3F804000),
        ("cvt.rn.f16x2.f32 %r1, 0f3F800000, 0f40000000", 0x3C004000),
        ("dp4a.s32.s32 %r1, 0x01ff0203, 0x01010101, 10", 15),
        ("mov.b32 %r1, {1, 2}", 0x20001),
        ("ex2.approx.f32 %r1, 0f40400000", 0x41000000),
        ("lg2.approx.f32 %r1, 0f41000000", 0x40400000),
        ("rcp.approx.f32 %r1, 0f40000000", 0x3F000000),
        ("sqrt.rn.f32 %r1, 0f40800000", 0x40000000),
    ],
)
def test_it_is_what_the_manual_says(launch, out, line, expected):
    launch(f"{line}\nst.global.b32 [%rd9], %r1", out)
    assert (out == expected).all()


@pytest.mark.parametrize(
    ("comparison", "expected"),
    [("lt", 0), ("ltu", 1), ("eq", 0), ("equ", 1), ("ne", 0), ("neu", 1), ("nan", 1), ("num", 0)],
)
def test_comparisons_with_a_nan(launch, out, comparison, expected):
    launch(
        f"setp.{comparison}.f32 %p1, 0f7FC00000, 0f3F800000\nselp.b32 %r1, 1, 0, %p1\nst.global.b32 [%rd9], %r1", out
    )
    assert (out == expected).all()


def test_packed_comparisons_write_both_predicates(launch, out):
    launch(
        "setp.gt.f16x2 %p1|%p2, 0x40003c00, 0x3c003c00\nselp.b32 %r1, 1, 0, %p1\nselp.b32 %r2, 2, 0, %p2\n"
        "or.b32 %r1, %r1, %r2\nst.global.b32 [%rd9], %r1",
        out,
    )
    assert (out == 2).all()


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("bfly.b32 %r1, %r0, 1, 31, -1", lambda t: t ^ 1),
        ("up.b32 %r1, %r0, 3, 0, -1", lambda t: np.where(t % 32 >= 3, t - 3, t)),
        ("down.b32 %r1, %r0, 3, 31, -1", lambda t: np.where(t % 32 < 29, t + 3, t)),
        ("idx.b32 %r1, %r0, 5, 31, -1", lambda t: t // 32 * 32 + 5),
        ("down.b32 %r1, %r0, 3, 0x181f, -1", lambda t: np.where(t % 8 < 5, t + 3, t)),
    ],
)
def test_shuffles_move_within_a_warp(launch, out, mode, expected):
    launch(f"shfl.sync.{mode}\nst.global.b32 [%rd9], %r1", out)
    assert np.array_equal(out, expected(np.arange(64)))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("redux.sync.max.s32 %r1, %r0, -1", lambda t: t // 32 * 32 + 31),
        ("redux.sync.add.s32 %r1, %r0, -1", lambda t: np.where(t < 32, 496, 1520)),
        ("vote.sync.ballot.b32 %r1, %p1, -1", lambda t: np.where(t < 32, 1 << 5, 0)),
    ],
)
def test_warps_reduce_and_vote(launch, out, line, expected):
    launch(f"setp.eq.s32 %p1, %r0, 5\n{line}\nst.global.b32 [%rd9], %r1", out)
    assert np.array_equal(out, expected(np.arange(64)))


def test_threads_that_part_meet_again(launch, out):
    """A loop of as many turns as the thread's number, then a shuffle of all lanes."""
    launch(
        """mov.b32 %r1, 0
        LOOP:
        setp.ge.s32 %p1, %r1, %r0
        @%p1 bra END
        add.s32 %r1, %r1, 1
        bra LOOP
        END:
        shfl.sync.bfly.b32 %r2, %r1, 1, 31, -1
        st.global.b32 [%rd9], %r2""",
        out,
    )
    assert np.array_equal(out, np.arange(64) ^ 1)


def test_vectors_and_bytes_keep_their_signs(launch, out):
    x = np.arange(-128, 128, dtype=np.int8)
    launch(
        "add.s64 %rd10, %rd1, %rd8\nld.global.v4.s8 {%r1, %r2, %r3, %r4}, [%rd10]\nst.global.b32 [%rd9], %r3", out, x
    )
    assert np.array_equal(out, x.reshape(-1, 4)[:, 2])


@pytest.mark.parametrize("kind", ["atom.global.gpu.relaxed.add.u32 %r1,", "red.global.gpu.relaxed.add.u32"])
def test_atomic_additions_of_many_threads_lose_none(launch, kind):
    total = np.zeros(1, np.int32)
    launch(f"{kind} [%rd0], %r0", total, blocks=3)
    assert total[0] == 3 * 64 * 63 // 2


# ------------------------------------------------------------------------------------------------ roundings

RANDOM = np.random.default_rng(0)


def exactly_rounded(exact: Fraction, dtype) -> float:
    """The nearest number of the type, ties to even: between the two neighbours of float64's quotient."""
    near = dtype(exact.numerator / exact.denominator)
    neighbours = [np.nextafter(near, dtype(s)) for s in (-np.inf, np.inf)]
    return min([near, *neighbours], key=lambda x: (abs(Fraction(float(x)) - exact), int(x.view(f"u{x.itemsize}")) & 1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
def test_a_fused_product_and_sum_rounds_once(dtype):
    a, b = (RANDOM.standard_normal(2000).astype(dtype) for _ in range(2))
    c = (-(a * b) * (1 + RANDOM.choice([0, 2.0**-20, 1], 2000))).astype(dtype)  # much cancels
    c[::3] = (RANDOM.standard_normal(667) * 2.0 ** RANDOM.integers(-60, 60, 667)).astype(dtype)
    expected = [
        exactly_rounded(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)), dtype)
        for x, y, z in zip(a, b, c, strict=True)
    ]
    assert np.array_equal(values.fused(a, b, c), np.array(expected, dtype))


@pytest.mark.parametrize(
    ("a", "b", "c", "expected"),
    [
        (np.inf, 0.0, 1.0, np.nan),
        (1e300, 1e300, -np.inf, -np.inf),
        (2.0**-600, 2.0**-600, 2.0**-1074, 2.0**-1074),
        (1e200, 1e200, -1e308, np.inf),
        (-0.0, 1.0, -0.0, -0.0),
    ],
)
def test_fused_at_the_ends_of_the_range(a, b, c, expected):
    with np.errstate(all="ignore"):
        got = values.fused(*(np.array([x]) for x in (a, b, c)))[0]
    assert np.array_equal(got, expected, equal_nan=True)
    assert np.signbit(got) == np.signbit(expected) or np.isnan(expected)


def test_64_bit_integers_become_float32_with_one_rounding():
    x = RANDOM.integers(-(1 << 62), 1 << 62, 3000) >> RANDOM.integers(0, 40, 3000)
    x[:3] = (1 << 54) + 1, (1 << 62) + (1 << 38) + 1, -(1 << 63)
    got = values.convert(x, "s64", "f32", "rn", False)
    assert np.array_equal(got, np.array([exactly_rounded(Fraction(int(n)), np.float32) for n in x]))


def test_bfloat16_rounds_to_even():
    x = RANDOM.standard_normal(3000).astype(np.float32)
    x[::2] = values.from_bf16(values.to_bf16(x[::2])) + np.float32(0)
    back = values.from_bf16(values.to_bf16(x))
    step = np.abs(values.from_bf16(values.to_bf16(x) + np.uint16(1)) - back)
    assert (np.abs(back - x) <= step / 2).all()
    halves = values.from_bf16(np.arange(0x3F80, 0x3FA0, dtype=np.uint16)).view(np.uint32) + np.uint32(0x8000)
    assert (values.to_bf16(halves.view(np.float32)) % 2 == 0).all()


def test_approximations_err_within_what_the_manual_states():
    x = RANDOM.uniform(0.5, 2, 3000).astype(np.float32)
    for name in ("ex2", "rcp", "rsqrt", "sqrt"):
        exact = values.APPROXIMATE[name][0](x.astype(np.float64))
        got = values.Approximations(seed=3)(name, x)
        worst = np.abs(got / exact - 1).max()
        assert 0 < worst <= values.APPROXIMATE[name][1] + 2.0**-24, name
        assert np.array_equal(values.Approximations()(name, x), exact.astype(np.float32)), name


# ------------------------------------------------------------------------------------------------ what is not known


@pytest.mark.parametrize(
    "line",
    ["sad.u32 %r1, %r0, %r0, %r0", "add.rz.f16 %rs1, %rs2, %rs3", "cvt.rna.tf32.f32 %r1, %r0", "bar.arrive 0, 64"],
)
def test_what_is_not_known_names_itself(launch, out, line):
    with pytest.raises(ptx.UnknownInstruction, match=line.split(" ")[0].replace(".", r"\.")) as caught:
        launch(line, out)
    assert "f (line" in str(caught.value)


def test_arguments_that_cannot_be_passed_are_named(launch, out):
    with pytest.raises(TypeError, match="argument 1 is a str"):
        launch("", out, "x")
    frozen = np.zeros(3)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="argument 0 cannot be written"):
        launch("", frozen)
    with pytest.raises(ValueError, match="0 kernels"):
        ptx.run("nothing", [], 1, 32)
