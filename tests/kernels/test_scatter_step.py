"""scatter_step against its definition and torch.optim: duplicates first, touched entries alone, nothing on error."""

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tropigrad.autotune import override
from tropigrad.kernels import backend, scatter_step
from tropigrad.kernels.scatter_step import RULES, portable, scatter_step_ref
from tropigrad.kernels.scatter_step.definition import FLOATS

CPU = torch.device("cpu")
BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(bool(why := backend.why_off(name, CPU)), reason=why))
    for name in ("cpp", "torch", "triton")
]
interpreted = pytest.mark.skipif(bool(backend.why_off("triton", CPU)), reason="no interpreter")


def close(x, y, tolerance=1e-5):
    torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


@pytest.fixture(params=BACKENDS)
def name(request, set_backend):
    set_backend(request.param)
    return request.param


# ------------------------------------------------------------------------------------------------ the rules


def test_polyak_moves_by_the_gap_over_the_squared_norm(name):
    w = torch.zeros(4)
    scatter_step(w, torch.tensor([1, 1, 3]), torch.tensor([1.0, 2.0, 4.0]), lr=50.0, rule="polyak")
    assert w.tolist() == [0, -6, 0, -8]  # g = (0, 3, 0, 4), γ = 50 / 25
    scatter_step(w, torch.tensor([0, 0]), torch.tensor([1.0, -1.0]), lr=50.0, rule="polyak")
    assert w.tolist() == [0, -6, 0, -8]  # g = 0


def test_polyak_reaches_the_minimum_of_a_distance():
    """F(w) = ‖w − m‖₁ with F* = 0: one entry a step, as a subgradient of the largest term."""
    m, w = torch.tensor([3.0, -1.0, 2.0]), torch.zeros(3)
    for _ in range(3):
        i = (w - m).abs().argmax().view(1)
        gap = (w - m).abs()[i].squeeze()
        scatter_step(w, i, (w - m)[i].sign(), lr=gap, rule="polyak")
    assert torch.equal(w, m)


@pytest.mark.parametrize("rows", [True, False], ids=["rows", "elements"])
def test_adagrad_is_torch_optim_adagrad(name, rows):
    w = torch.randn(6, 5, dtype=torch.float64)
    reference = torch.nn.Parameter(w.clone())
    optimizer = torch.optim.Adagrad([reference], lr=0.3)
    state = None
    for _ in range(4):
        at = torch.randint(0, 5, (1 if rows else 2, 9))
        values = torch.randn((9, 5) if rows else (9,), dtype=torch.float64)
        state = scatter_step(w, at[0] if rows else tuple(at), values, lr=0.3, rule="adagrad", state=state)
        reference.grad = torch.sparse_coo_tensor(at, values, w.shape, check_invariants=False)
        optimizer.step()
    close(w, reference.detach(), 1e-12)


def test_momentum_is_torch_optim_sgd_where_all_is_touched(name):
    w = torch.randn(7, dtype=torch.float64)
    reference = torch.nn.Parameter(w.clone())
    optimizer = torch.optim.SGD([reference], lr=0.1, momentum=0.8)
    state = None
    for _ in range(4):
        reference.grad = torch.randn(7, dtype=torch.float64)
        order = torch.randperm(7)
        state = scatter_step(w, order, reference.grad[order], lr=0.1, rule="momentum", momentum=0.8, state=state)
        optimizer.step()
    close(w, reference.detach(), 1e-12)


def test_momentum_decays_while_an_entry_rests(name):
    """v after a rest of s steps is βˢ v + g; the weight waits until then."""
    w, state = torch.zeros(2, dtype=torch.float64), {}
    for i in (0, 1, 1, 0):
        before = w.clone()
        scatter_step(w, torch.tensor([i]), torch.ones(1).double(), lr=1.0, rule="momentum", momentum=0.5, state=state)
        assert w[1 - i] == before[1 - i]
    assert state["velocity"].tolist() == [1 + 0.5**3, 1.5]
    assert state["touched"].tolist() == [4, 3]
    assert state["step"] == 4
    assert w.tolist() == [-(1 + 1 + 0.5**3), -2.5]


@given(
    entries=st.lists(st.tuples(st.integers(-1, 3), st.integers(-1, 2), st.integers(-8, 8)), max_size=12),
    rule=st.sampled_from(["sgd", "momentum"]),
    dtype=st.sampled_from(FLOATS),
)
@settings(max_examples=80, deadline=None)
def test_any_list_of_small_integers_is_exact(entries, rule, dtype):
    """Sums of small integers and halves round nowhere: `==`, and the order of the list does not matter."""
    w, expected = (torch.arange(12).view(4, 3).to(dtype) for _ in range(2))
    at = torch.tensor([entry[:2] for entry in entries], dtype=torch.int64).view(-1, 2).T
    values = torch.tensor([entry[2] for entry in entries]).to(dtype)
    scatter_step(w, tuple(at), values, lr=0.5, rule=rule)
    scatter_step_ref(expected, tuple(at), values, lr=0.5, rule=rule)
    assert torch.equal(w, expected)


def test_duplicates_that_cancel_leave_the_bits(name):
    """One by one, 1e8 would swallow the 0.1."""
    w = torch.full((2,), 0.1)
    scatter_step(w, torch.tensor([0, 0]), torch.tensor([1e8, -1e8]), lr=1.0)
    assert torch.equal(w, torch.full((2,), 0.1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sixteen_bits_are_rounded_once(dtype):
    w = torch.full((1,), 256, dtype=dtype)
    scatter_step(w, torch.zeros(512, dtype=torch.int64), torch.full((512,), -0.25, dtype=dtype), lr=1.0)
    assert w.item() == 256 + 128  # in bfloat16 256 + 0.25 is 256


# ------------------------------------------------------------------------------------------------ the list


@pytest.mark.parametrize("bits", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_long_lists_fall_into_buckets(bits, threads):
    """Several buckets, both kinds of table, and the same bits on any number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for R, C in ((50, 40), (5000, 4000)):
            w = torch.randn(R, C, dtype=torch.float64)
            expected = w.clone()
            at = torch.stack([torch.randint(0, size, (60_000,)) for size in (R, C)])
            at[:, :20_000] = at[:, :1]  # a third of the list is one entry
            values = torch.randn(60_000, dtype=torch.float64)
            scatter_step(w, tuple(at.to(bits)), values, lr=0.1)
            expected.index_put_(tuple(at), -0.1 * values, accumulate=True)
            close(w, expected, 1e-10)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("rule", RULES)
def test_rows_that_repeat_much_on_any_number_of_threads(rule):
    if reason := backend.why_off("cpp", CPU):
        pytest.skip(reason)
    rows, values = torch.randint(-1, 300, (4000,)), torch.randn(4000, 17)
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            w, state = torch.ones(300, 17), {}
            for _ in range(2):
                scatter_step(w, rows, values, lr=0.01, rule=rule, state=state)
            found.append(w)
    finally:
        torch.set_num_threads(before)
    expected, state = torch.ones(300, 17), {}
    for _ in range(2):
        state = scatter_step_ref(expected, rows, values, lr=0.01, rule=rule, state=state)
    close(found[0], expected, 1e-4)
    assert all(torch.equal(w, found[0]) for w in found[1:])


CONFIGS = list(portable.STEP.space)


@interpreted
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "config",
    [pytest.param(config, marks=[] if config in (CONFIGS[0], CONFIGS[-1]) else pytest.mark.slow) for config in CONFIGS],
    ids=lambda config: "-".join(f"{key}={value}" for key, value in config.items()),
)
def test_runs_are_cut_into_pieces(config, rule, monkeypatch):
    """One run over several pieces, one that ends at a cut, and short ones: by the sorted kernels, in one order."""
    monkeypatch.setattr(portable, "PIECE", 32)
    rows = torch.tensor([2] * 97 + [0] * 31 + [1, 3, -1, 9, -5])
    rows = rows[torch.randperm(len(rows))]
    values = torch.randn(len(rows), 1, dtype=torch.float64)

    def stepped(config) -> torch.Tensor:
        w, state = torch.zeros(4, 1, 1, dtype=torch.float64), torch.zeros(4, 1, 1, dtype=torch.float64)
        touched, number = torch.zeros(4, 1, dtype=torch.int32), torch.zeros((), dtype=torch.int32)
        clock = (touched, number) if rule == "momentum" else (None, None)
        moment = state if rule in ("momentum", "adagrad") else None
        with override("scatter_step.triton", config):
            portable.step(w, rows, None, values, 0.1, rule, 0.9, 1e-10, moment, *clock, deterministic=True)
        return w

    w = stepped(config)
    assert torch.equal(w, stepped(CONFIGS[1]))
    good = (rows >= 0) & (rows < 4)  # on a GPU the others are masked
    expected = torch.zeros(4, dtype=torch.float64)
    scatter_step_ref(expected, rows[good], values[good, 0], lr=0.1, rule=rule)
    close(w.flatten(), expected, 1e-12)


@interpreted
def test_in_any_order_what_is_out_of_range_is_masked():
    rows = torch.cat([torch.arange(70) % 4, torch.tensor([4, -1, -2, 2**40, -(2**40)])])
    w = torch.zeros(4, 1, 1)
    portable.step(w, rows, None, torch.ones(75, 1), 1.0, "sgd", 0, 0, None, None, None, deterministic=False)
    assert w.flatten().tolist() == [-18, -18, -17, -17]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bad", [(4, 0), (0, 3), (-2, 0), (0, -2), (2**40, 0)], ids=str)
def test_nothing_is_written_when_an_index_is_out_of_range(name, rule, bad):
    w = torch.ones(4, 3)
    state = scatter_step(w, (torch.tensor([0]), torch.tensor([0])), torch.ones(1), lr=0.1, rule=rule)
    before, was = w.clone(), copy.deepcopy(state)
    rows, columns = torch.tensor([[1, 1], bad, [2, 2]]).T
    with pytest.raises(IndexError, match="nothing was written"):
        scatter_step(w, (rows, columns), torch.ones(3), lr=0.1, rule=rule, state=state)
    assert torch.equal(w, before)
    assert all(torch.equal(state[key], was[key]) for key in was)


@pytest.mark.slow
def test_more_than_two_to_the_32_elements():
    """Memory that is reserved and hardly touched."""
    w, far = torch.empty(2**32 + 70_000, dtype=torch.float16), 2**32
    at = torch.tensor([far + 5, 5, far + 5, 2**31, far + 69_999])
    w[at] = 1
    scatter_step(w, at, torch.ones(5, dtype=torch.float16), lr=0.25)
    assert w[at].tolist() == [0.5, 0.75, 0.5, 0.75, 0.75]


# ------------------------------------------------------------------------------------------------ forms of the call


def test_trailing_dimensions_and_strides(name):
    """Rows of a convolution's weights; of a permuted one, whose trailing dimensions have no single stride."""
    base = torch.randn(4, 5, 3, 2)
    indices, rows = torch.tensor([3, 0, 3]), torch.randn(3, 5, 3, 2)
    for w in (base.clone(), base.clone(memory_format=torch.channels_last), base.repeat(2, 1, 1, 1)[::2]):
        expected = w.clone().index_add_(0, indices, rows, alpha=-0.5)
        scatter_step(w, indices, rows, lr=0.5)
        close(w, expected)
    w = base.clone()
    columns = torch.tensor([1, 4, 1])
    expected = w.clone().index_put_((indices, columns), -0.5 * rows[:, 0], accumulate=True)
    scatter_step(w, (indices, columns), rows[:, 0], lr=0.5)
    close(w, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_rate_may_be_a_tensor(name, dtype):
    """On the CPU or the weights' device, of any float dtype."""
    w = torch.zeros(3, dtype=torch.float64)
    scatter_step(w, torch.tensor([1]), torch.ones(1, dtype=torch.float64), lr=torch.tensor(0.1, dtype=dtype))
    assert w[1] == -torch.tensor(0.1, dtype=dtype).double()


def test_weights_and_values_may_be_leaves_of_a_graph(name):
    w, values = torch.nn.Parameter(torch.ones(3)), torch.ones(2, requires_grad=True)
    scatter_step(w, torch.tensor([0, 0]), values, lr=0.5, rule="momentum")
    assert w.tolist() == [0, 1, 1]
    assert w.requires_grad
    assert w.is_leaf


def test_inference_mode(name):
    with torch.inference_mode():
        w = torch.ones(3)
        scatter_step(w, torch.tensor([0, 0]), torch.ones(2), lr=0.5)
        assert w.tolist() == [0, 1, 1]


def test_a_graph_that_saved_the_weights_is_told(name):
    w = torch.ones(3, requires_grad=True)
    loss = (w * w).sum()
    scatter_step(w, torch.tensor([0]), torch.ones(1), lr=0.1)
    assert w.is_leaf
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_state_comes_back():
    """Saved, loaded as weights alone, and continued: as if never interrupted."""

    def run(w, state, steps):
        for k in steps:
            state = scatter_step(w, torch.tensor([k % 3, 1]), torch.ones(2), lr=0.1, rule="momentum", state=state)
        return state

    w, other = torch.zeros(3), torch.zeros(3)
    run(w, None, range(6))
    state = run(other, None, range(3))
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    run(other, torch.load(file, weights_only=True), range(3, 6))
    assert torch.equal(w, other)


def test_an_empty_list_is_a_step_without_touch(name):
    w, state = torch.zeros(2), {}
    nothing = torch.zeros(0, dtype=torch.int64)
    scatter_step(w, torch.tensor([0]), torch.ones(1), lr=1.0, rule="momentum", momentum=0.5, state=state)
    scatter_step(w, nothing, torch.zeros(0), lr=1.0, rule="momentum", momentum=0.5, state=state)
    scatter_step(w, torch.tensor([0]), torch.ones(1), lr=1.0, rule="momentum", momentum=0.5, state=state)
    assert state["velocity"].tolist() == [1.25, 0]


def test_without_a_compiler_the_numbers_are_the_same(set_backend):
    found = []
    for chosen in ("auto", "torch"):
        set_backend(chosen)
        torch.manual_seed(1)
        w, state = torch.randn(9, 4), {}
        for _ in range(3):
            at = torch.randint(-1, 4, (2, 20))
            scatter_step(w, tuple(at), torch.randn(20), lr=0.1, rule="momentum", state=state)
        found.append(w)
    assert torch.equal(*found)
