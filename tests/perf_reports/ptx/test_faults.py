"""Planted faults, of each kind that is looked for, and beside each what it should have been, which passes."""

import numpy as np
import pytest

from tropigrad.perf_reports import ptx

SLOT = "shl.b32 %r1, %r0, 2\nxor.b32 %r2, %r1, 128"  # this thread's word of shared memory, and that of another warp
FILL = f"{SLOT}\nst.shared.b32 [%r1], %r0"
RESULT = "st.global.b32 [%rd9], %r3"
# block 0 writes data and raises a flag; block 1 waits for the flag and reads. %rd0: out, %rd1: data, %rd2: flag
HANDED_OVER = """
    setp.ne.s32 %p1, %r100, 0
    @%p1 bra OTHER
    setp.ne.s32 %p2, %r0, 0
    add.s64 %rd10, %rd1, %rd8
    st.global.b32 [%rd10], 7
    {barrier}
    {before}
    @!%p2 atom.global.gpu.{store}.exch.b32 %r4, [%rd2], 1
    bra END
    OTHER:
    atom.global.gpu.{load}.add.u32 %r5, [%rd2], 0
    setp.eq.s32 %p3, %r5, 0
    @%p3 bra OTHER
    {after}
    add.s64 %rd10, %rd1, %rd8
    ld.global.b32 %r3, [%rd10]
    st.global.b32 [%rd9], %r3
    END:
"""
LAST = """
    add.s64 %rd10, %rd1, %rd8
    mad.wide.s32 %rd10, %r100, 256, %rd10
    st.global.b32 [%rd10], %r100
    {barrier}
    mov.b32 %r4, -1
    setp.eq.s32 %p1, %r0, 0
    @%p1 atom.global.gpu.{order}.add.u32 %r4, [%rd2], 1
    @%p1 st.shared.b32 [buffer], %r4
    bar.sync 0
    ld.shared.b32 %r4, [buffer]
    setp.ne.s32 %p2, %r4, 3
    @%p2 bra END
    add.s64 %rd11, %rd1, %rd8
    ld.global.b32 %r3, [%rd11]
    ld.global.b32 %r5, [%rd11+256]
    add.s32 %r3, %r3, %r5
    ld.global.b32 %r5, [%rd11+768]
    add.s32 %r3, %r3, %r5
    st.global.b32 [%rd9], %r3
    END:
"""
COPY = """
    shl.b32 %r1, %r0, 4
    mul.wide.u32 %rd10, %r0, 16
    add.s64 %rd11, %rd1, %rd10
    cp.async.cg.shared.global [%r1], [%rd11], 0x10, 16
    cp.async.commit_group
"""
NEIGHBOUR = "xor.b32 %r2, %r1, 512\nld.shared.b32 %r3, [%r2]"
WAIT, BARRIER = "cp.async.wait_group 0", "bar.sync 0"


def lines(*parts: str) -> str:
    return "\n".join(parts)


def flag() -> np.ndarray:
    return np.zeros(1, np.int32)


def unwritten(count: int) -> np.ndarray:
    return np.full(count, ptx.UNWRITTEN, np.int32)


# ------------------------------------------------------------------------------------------------ nobody has written


def test_shared_memory_that_nobody_wrote(launch, out):
    with pytest.raises(ptx.UnwrittenRead, match=r"byte 0 of shared memory, which nobody has written"):
        launch(lines(SLOT, "ld.shared.b32 %r3, [%r1]", RESULT), out, shared=256)
    launch(lines(FILL, "ld.shared.b32 %r3, [%r1]", RESULT), out, shared=256)
    assert np.array_equal(out, np.arange(64))


def test_half_a_word_that_nobody_wrote(launch, out):
    with pytest.raises(ptx.UnwrittenRead, match=r"byte 2 of shared memory"):
        launch(
            lines(SLOT, "mov.b16 %rs1, 1", "st.shared.b16 [%r1], %rs1", "ld.shared.b32 %r3, [%r1]", RESULT),
            out,
            shared=256,
        )


def test_global_memory_that_nobody_wrote(launch, out):
    x = unwritten(64)
    x[:5] = 0
    read = "add.s64 %rd10, %rd1, %rd8\nld.global.b32 %r3, [%rd10]"
    with pytest.raises(ptx.UnwrittenRead, match=r"thread 5 reads byte 20 of argument 1"):
        launch(lines(read, RESULT), out, x)
    launch(lines("add.s64 %rd10, %rd1, %rd8\nst.global.b32 [%rd10], %r0", read, RESULT), out, x)
    assert np.array_equal(x, np.arange(64))


def test_padding_may_be_copied_and_read_if_nothing_follows(launch, out):
    x = unwritten(256)
    x[:128] = 5
    body = (COPY, WAIT, BARRIER, NEIGHBOUR, "setp.{}.s32 %p1, %r0, 32", "@%p1 st.global.b32 [%rd9], %r3")
    launch(lines(*body).format("ge"), out, x, shared=1024)
    assert (out[32:] == 5).all()
    with pytest.raises(
        ptx.UnwrittenRead, match=r"thread 0 reads byte 512 of shared memory, .* What is read so decides"
    ):
        launch(lines(*body).format("lt"), out, x, shared=1024)


# ------------------------------------------------------------------------------------------------ stray accesses


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("st.global.b32 [%rd9+4], %r0", r"thread 63 .* touches 4 bytes .* argument 0 of 256 bytes, at whose byte 256"),
        ("ld.global.b32 %r1, [%rd9+-4]", r"thread 0 .* at whose byte -4"),
        ("st.global.v2.b32 [%rd9], {%r0, %r0}", r"at whose byte 252|misaligned|no multiple of 8"),
        ("st.shared.b32 [256], %r0", r"at 256 of shared memory, of which a block has 256 bytes"),
        ("ld.global.b32 %r1, [64]", r"outside of every allocation"),
    ],
    ids=["behind", "before", "half behind", "shared", "no pointer"],
)
def test_accesses_outside_of_allocations(launch, out, line, message):
    with pytest.raises((ptx.OutOfBounds, ptx.Misaligned), match=message):
        launch(line, out, shared=256)
    assert not out.any()  # nothing is written where a fault was found


def test_accesses_at_no_multiple_of_their_width(launch):
    x = np.zeros(256, np.int32)
    with pytest.raises(ptx.Misaligned, match=r"whose address is no multiple of 8"):
        launch("st.global.v2.b32 [%rd9], {%r0, %r0}", x)
    with pytest.raises(ptx.Misaligned, match=r"shared memory, no multiple of 4"):
        launch("st.shared.b32 [2], %r0", x, shared=256)
    launch("add.s64 %rd9, %rd9, %rd8\nst.global.v2.b32 [%rd9], {%r0, %r0}", x)
    assert np.array_equal(x[:128], np.repeat(np.arange(64), 2))


# ------------------------------------------------------------------------------------------------ races in a block


def test_a_read_of_another_warps_word_before_the_barrier(launch, out):
    with pytest.raises(
        ptx.Race, match=r"thread 0 reads byte 128 of shared memory, which thread 32 writes at .*no barrier"
    ):
        launch(lines(FILL, "ld.shared.b32 %r3, [%r2]", RESULT), out, shared=256)
    launch(lines(FILL, BARRIER, "ld.shared.b32 %r3, [%r2]", RESULT), out, shared=256)
    assert np.array_equal(out, np.arange(64) ^ 32)


def test_a_write_where_another_warp_still_reads(launch, out):
    body = (FILL, BARRIER, "ld.shared.b32 %r3, [%r2]", "{}", "st.shared.b32 [%r1], 0", RESULT)
    with pytest.raises(ptx.Race, match=r"writes byte \d+ of shared memory, which thread \d+ reads at"):
        launch(lines(*body).replace("{}", ""), out, shared=256)
    launch(lines(*body).replace("{}", BARRIER), out, shared=256)


def test_copies_of_an_element_in_two_warps_of_which_one_stores(launch, out):
    """What Triton makes of a tensor with fewer elements than threads: all load, the first copy stores."""
    body = """and.b32 %r1, %r0, 31
        mul.wide.u32 %rd10, %r1, 4
        add.s64 %rd10, %rd1, %rd10
        ld.global.b32 %r3, [%rd10]
        {}
        add.s32 %r3, %r3, 1
        setp.lt.s32 %p1, %r0, 32
        @%p1 st.global.b32 [%rd10], %r3
        st.global.b32 [%rd9], %r3"""
    x = np.arange(32, dtype=np.int32)
    with pytest.raises(ptx.Race, match=r"writes byte 0 of argument 1, which several threads of a block reads at"):
        launch(body.replace("{}", ""), out, x)
    launch(body.replace("{}", BARRIER), out, x)
    assert np.array_equal(x, np.arange(1, 33))


@pytest.mark.parametrize(
    ("use", "is_fault"),
    [
        ("", False),
        ("add.s32 %r4, %r3, 5\nmov.b32 %r3, %r4\nmov.b32 %r4, 0\nmov.b32 %r3, 0\nst.global.b32 [%rd9], %r3", False),
        ("setp.lt.s32 %p1, %r0, 32\n@%p1 st.global.b32 [%rd9], %r3", False),
        ("shfl.sync.bfly.b32 %r4, %r3, 1, 31, -1\nst.global.b32 [%rd9], %r4", True),
        ("add.s32 %r4, %r3, 5\nst.global.b32 [%rd9], %r4", True),
        ("setp.eq.s32 %p2, %r3, 0\n@%p2 bra END\nEND:", True),
        ("setp.eq.s32 %p2, %r3, 0\nselp.b32 %r4, 1, 2, %p2\nst.global.b32 [%rd9], %r4", True),
        ("setp.eq.s32 %p2, %r3, 0\nmov.b32 %r4, 2\n@%p2 mov.b32 %r4, 1\nst.global.b32 [%rd9], %r4", True),
        ("setp.eq.s32 %p2, %r3, 0\n@%p2 st.global.b32 [%rd9], 1", True),
        ("and.b32 %r4, %r3, 15\nmul.wide.u32 %rd1, %r4, 4\nadd.s64 %rd1, %rd0, %rd1\nst.global.b32 [%rd1], 1", True),
        ("red.global.gpu.relaxed.add.u32 [%rd0], %r3", True),
    ],
    ids=[
        "thrown away", "overwritten", "not by the copies", "shuffled", "stored", "branch", "select", "guarded move",
        "guarded store", "address", "atomic",
    ],
)  # fmt: skip
def test_a_late_copy_is_a_fault_where_its_value_goes_anywhere(launch, out, use, is_fault):
    """Two warps load an element each, of which the first stores: what the second read may be new or old."""
    body = f"""and.b32 %r1, %r0, 31
        mul.wide.u32 %rd10, %r1, 4
        add.s64 %rd10, %rd1, %rd10
        ld.global.b32 %r3, [%rd10]
        add.s32 %r5, %r3, 1
        setp.lt.s32 %p1, %r0, 32
        @%p1 st.global.b32 [%rd10], %r5
        {use}"""
    x = np.arange(32, dtype=np.int32)
    if is_fault:
        with pytest.raises(ptx.Race, match=r"What is read so decides "):
            launch(body, out, x)
    else:
        launch(body, out, x)
        assert np.array_equal(x, np.arange(1, 33))


def test_a_release_in_between_hides_no_reader(launch, out):
    """Thread 40 reads, thread 0 releases, thread 5 reads and writes the same place."""
    body = """setp.eq.s32 %p1, %r0, 0
        @%p1 st.shared.b32 [0], 9
        bar.sync 0
        setp.eq.s32 %p2, %r0, 40
        @%p2 ld.shared.b32 %r3, [0]
        @%p1 red.global.gpu.release.add.u32 [%rd1], 1
        {}
        setp.eq.s32 %p3, %r0, 5
        @%p3 ld.shared.b32 %r4, [0]
        @%p3 st.shared.b32 [0], 8
        @%p2 st.global.b32 [%rd9], %r3"""
    with pytest.raises(ptx.Race, match=r"thread 5 writes byte 0 of shared memory, which several threads"):
        launch(body.replace("{}", ""), out, flag(), shared=16)
    launch(body.replace("{}", BARRIER), out, flag(), shared=16)
    assert out[40] == 9


def test_different_values_to_one_place_by_one_instruction(launch, out):
    with pytest.raises(ptx.Race, match=r"different values"):
        launch("st.global.b32 [%rd0], %r0", out)
    launch("st.global.b32 [%rd0], 5", out)  # the same value by all
    assert out[0] == 5


def test_lanes_of_a_warp_need_its_barrier(launch, out):
    body = (FILL, "{}", "xor.b32 %r2, %r1, 4", "ld.shared.b32 %r3, [%r2]", RESULT)
    with pytest.raises(ptx.Race, match=r"which thread 1 writes"):
        launch(lines(*body).replace("{}", ""), out, shared=256)
    launch(lines(*body).replace("{}", "bar.warp.sync -1"), out, shared=256)
    assert np.array_equal(out, np.arange(64) ^ 1)


# ------------------------------------------------------------------------------------------------ races between blocks


@pytest.mark.parametrize("order", [ptx.Order(), ptx.Order("forward"), ptx.Order("interleaved", 3)], ids=str)
@pytest.mark.parametrize(
    ("barrier", "before", "store", "load", "after", "is_right"),
    [
        (BARRIER, "", "release", "acquire", "", True),
        (BARRIER, "", "acq_rel", "acq_rel", "", True),
        (BARRIER, "fence.acq_rel.gpu", "relaxed", "relaxed", "fence.acq_rel.gpu", True),
        (BARRIER, "", "relaxed", "acquire", "", False),
        (BARRIER, "", "release", "relaxed", "", False),
        ("", "", "release", "acquire", "", False),
        (BARRIER, "fence.acq_rel.gpu", "relaxed", "relaxed", "", False),
    ],
    ids=["release acquire", "both", "fences", "no release", "no acquire", "no barrier before", "no fence after"],
)
def test_a_hand_over_from_block_to_block(launch, out, barrier, before, store, load, after, is_right, order):
    body = HANDED_OVER.format(barrier=barrier, before=before, store=store, load=load, after=after)
    if is_right:
        launch(body, out, unwritten(64), flag(), blocks=2, orders=order)
        assert (out == 7).all()
    else:
        with pytest.raises(
            ptx.Race, match=r"of block 1 reads byte \d+ of argument 1, which thread \d+ of block 0 writes"
        ):
            launch(body, out, unwritten(64), flag(), blocks=2, orders=order)


@pytest.mark.parametrize(
    ("barrier", "order", "is_right"),
    [(BARRIER, "acq_rel", True), ("", "acq_rel", False), (BARRIER, "relaxed", False), (BARRIER, "release", False)],
    ids=["right", "no barrier", "relaxed", "no acquire"],
)
def test_the_last_block_sums_what_all_have_written(launch, out, barrier, order, is_right):
    body = LAST.format(barrier=barrier, order=order)
    arguments = out, unwritten(256), flag()
    if is_right:
        launch(body, *arguments, blocks=4, shared=16, orders=ptx.ORDERS)
        assert (out == 4).all()
    else:
        with pytest.raises(ptx.Race, match=r"no release and acquire is between"):
            launch(body, *arguments, blocks=4, shared=16)


def test_two_blocks_write_one_place(launch, out):
    with pytest.raises(ptx.Race, match=r"of block 1 writes byte 0 of argument 0, which thread 0 of block 0 writes"):
        launch("st.global.b32 [%rd9], %r100", out, blocks=2, orders=ptx.Order("forward"))


def test_a_plain_read_beside_atomic_additions(launch):
    total = flag()
    with pytest.raises(ptx.Race, match=r"reads byte 0 of argument 0, which .* changes atomically"):
        launch(
            "red.global.gpu.relaxed.add.u32 [%rd0], 1\nld.global.b32 %r1, [%rd0]", total, blocks=2, orders=ptx.Order()
        )


# ------------------------------------------------------------------------------------------------ barriers, waits


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("setp.lt.s32 %p1, %r0, 40\n@%p1 bra END\nbar.sync 0\nEND:", r"24 of the 64 threads .* thread 0 has ended"),
        ("setp.lt.s32 %p1, %r0, 40\n@%p1 bra A\nbar.sync 0\nbra END\nA:\nbar.sync 0\nEND:", r"waits at line"),
        (
            "setp.lt.s32 %p1, %r0, 40\n@%p1 bra END\nshfl.sync.bfly.b32 %r1, %r0, 1, 31, -1\nEND:",
            r"all lanes of their warp",
        ),
    ],
    ids=["ended", "at another barrier", "shuffle"],
)
def test_what_not_all_threads_reach(launch, out, body, message):
    with pytest.raises(ptx.NotConverged, match=message):
        launch(body, out)


def test_a_block_that_waits_for_one_that_is_not_resident(launch, out):
    body = HANDED_OVER.format(barrier=BARRIER, before="", store="release", load="acquire", after="")
    with pytest.raises(ptx.NotResident, match=r"block 1 waits for memory to change"):
        launch(body, out, unwritten(64), flag(), blocks=2, orders=ptx.Order("backward"))
    launch(body, out, unwritten(64), flag(), blocks=2, orders=ptx.Order("backward", resident=2))


def test_a_wait_for_what_nobody_does(launch, out):
    with pytest.raises(ptx.WaitsForever, match=r"no block is left"):
        launch(
            "L:\natom.global.gpu.acquire.add.u32 %r1, [%rd1], 0\nsetp.eq.s32 %p1, %r1, 0\n@%p1 bra L",
            out,
            flag(),
            blocks=2,
        )


def test_a_long_loop_is_no_wait(launch, out):
    launch("mov.b32 %r3, 0\nL:\nadd.s32 %r3, %r3, 1\nsetp.lt.s32 %p1, %r3, 3000\n@%p1 bra L\n" + RESULT, out)
    assert (out == 3000).all()


@pytest.mark.parametrize("order", ["backward", "shuffled", "interleaved"])
def test_results_that_depend_on_the_order_of_blocks(launch, order):
    """Sums of float32, of which one is far larger than the others."""
    body = """setp.eq.s32 %p1, %r100, 0
        selp.b32 %r1, 0x4B800000, 0x3F800000, %p1
        setp.eq.s32 %p2, %r0, 0
        @%p2 red.global.gpu.relaxed.add.f32 [%rd0], %r1"""
    total = np.zeros(1, np.float32)
    orders = [ptx.Order("forward"), ptx.Order(order, 5)]
    with pytest.raises(ptx.OrderDependent, match=r"byte 0 of argument 0 differs between the orders forward and "):
        launch(body, total, blocks=8, orders=orders)
    assert total[0] == 0
    launch(body.replace("f32", "u32"), total, blocks=8, orders=orders)


# ------------------------------------------------------------------------------------------------ asynchronous copies


def test_copies_are_read_after_a_wait_and_a_barrier(launch, out):
    x = np.arange(4 * 64, dtype=np.int32)
    launch(lines(COPY, WAIT, BARRIER, NEIGHBOUR, RESULT), out, x, shared=1024)
    assert np.array_equal(out, 4 * (np.arange(64) ^ 32))


@pytest.mark.parametrize(
    ("body", "fault", "message"),
    [
        ((COPY, BARRIER, NEIGHBOUR), ptx.CopyInFlight, "was not waited for"),
        ((COPY, WAIT, NEIGHBOUR, RESULT), ptx.Race, "no barrier is between"),
        ((COPY, WAIT, BARRIER, NEIGHBOUR, COPY), ptx.Race, r"copies to byte \d+ of shared memory, which thread"),
        ((COPY, "cp.async.wait_group 1", BARRIER, NEIGHBOUR), ptx.CopyInFlight, "was not waited for"),
        ((COPY, "st.global.b32 [%rd11], 9", WAIT), ptx.CopyInFlight, "source of an asynchronous copy has changed"),
        ((COPY,), ptx.NotConverged, "a block ends while"),
    ],
    ids=["no wait", "no barrier", "no barrier before the next", "too few waits", "source changed", "never waited for"],
)
def test_copies_that_nobody_waited_for(launch, out, body, fault, message):
    x = np.zeros(4 * 64, np.int32)
    with pytest.raises(fault, match=message):
        launch(lines(*body), out, x, shared=1024)


def test_faults_name_the_line_of_ptx_and_of_source(out):
    """As Triton writes them: .file and .loc."""
    body = """.file 1 "/somewhere" "kernels.py"
.visible .entry stray(.param .u64 stray_param_0)
{
.reg .b64 %rd<3>;
ld.param.b64 %rd0, [stray_param_0];
.loc 1 42 7
st.global.b32 [%rd0+1024], 1;
ret;
}
"""
    with pytest.raises(ptx.OutOfBounds, match=r"^stray, kernels\.py:42 \(line 7 of the PTX: st\.global\.b32") as caught:
        ptx.run(body, [out], 1, 32)
    assert caught.value.instruction is not None
    assert caught.value.instruction.source == "kernels.py:42"
