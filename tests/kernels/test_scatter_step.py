"""scatter_step against its definition and torch.optim: duplicates first, touched entries alone, nothing on error."""

import copy
import io
from contextlib import nullcontext
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.parameter import UninitializedParameter

from tropigrad.autotune import override
from tropigrad.kernels import scatter_step
from tropigrad.kernels.runtime import backend
from tropigrad.kernels.runtime.arguments import FLOATS
from tropigrad.kernels.scatter_step import RULES, by_triton, scatter_step_ref
from tropigrad.kernels.scatter_step.definition import ARGUMENTS, fresh_state, options_of

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


CONFIGS = list(by_triton.STEP.space)


@interpreted
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "config",
    [pytest.param(config, marks=[] if config in (CONFIGS[0], CONFIGS[-1]) else pytest.mark.slow) for config in CONFIGS],
    ids=lambda config: "-".join(f"{key}={value}" for key, value in config.items()),
)
def test_runs_are_cut_into_pieces(config, rule, monkeypatch):
    """One run over several pieces, one that ends at a cut, and short ones: by the sorted kernels, in one order."""
    monkeypatch.setattr(by_triton, "PIECE", 32)
    rows = torch.tensor([2] * 97 + [0] * 31 + [1, 3, -1, 9, -5])
    rows = rows[torch.randperm(len(rows))]
    values = torch.randn(len(rows), 1, dtype=torch.float64)

    def stepped(config) -> torch.Tensor:
        w = torch.zeros(4, 1, 1, dtype=torch.float64)
        state = fresh_state(w, rule, 2)
        moment, square, touched, number = map(state.get, ARGUMENTS[rule])
        with override("scatter_step.triton", config):
            options = rule, 0.9, *options_of(rule, None, None), moment, square, touched, number
            by_triton.step(w, rows, None, values, 0.1, *options, deterministic=True)
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
    by_triton.step(w, rows, None, torch.ones(75, 1), 1.0, "sgd", 0, 0, 0, None, None, None, None, deterministic=False)
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


# ------------------------------------------------------------------------------------------------ operands in operands


RULE_STATE = {"momentum": "velocity", "adagrad": "sum"}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("calls", [1, 3], ids=["first", "remembered"])
def test_values_that_are_rows_of_the_weights_count_as_a_copy(name, rule, calls):
    rows = torch.tensor([1, 2, 3, 3])
    w = torch.randn(5, 3)
    expected, states = w.clone(), ({}, {})
    for _ in range(calls):
        scatter_step(w, rows, w[:-1], lr=0.5, rule=rule, state=states[0])
        scatter_step(expected, rows, expected[:-1].clone(), lr=0.5, rule=rule, state=states[1])
        assert torch.equal(w, expected)


@pytest.mark.parametrize("rule", ["momentum", "adagrad"])
def test_values_that_are_rows_of_the_state_count_as_a_copy(name, rule):
    w, (other, moment) = torch.randn(5, 3), (torch.zeros(5, 3), RULE_STATE[rule])
    states = [scatter_step(x, torch.arange(5), torch.ones(5, 3), lr=0.1, rule=rule) for x in (w, other)]
    other.copy_(w)
    scatter_step(w, torch.arange(1, 5), states[0][moment][:-1], lr=0.5, rule=rule, state=states[0])
    scatter_step(other, torch.arange(1, 5), states[1][moment][:-1].clone(), lr=0.5, rule=rule, state=states[1])
    assert torch.equal(w, other)
    assert torch.equal(states[0][moment], states[1][moment])


def test_indices_and_rate_that_lie_in_the_weights_count_as_copies(name):
    """An int64 view of the weights' bytes; a rate that is one of the weights."""
    w = torch.zeros(4, 2, dtype=torch.float64)
    rows = w[2:].view(torch.int64).flatten()
    rows.copy_(torch.tensor([3, 2, 0, 1]))
    expected = w.clone()
    scatter_step(expected, rows.clone(), torch.ones(4, 2).double(), lr=1.0)
    scatter_step(w, rows, torch.ones(4, 2).double(), lr=1.0)
    assert torch.equal(w, expected)
    w = torch.full((3,), 0.5)
    scatter_step(w, torch.tensor([0, 1, 2]), torch.ones(3), lr=w[1])
    assert w.tolist() == [0, 0, 0]


def test_memory_is_compared_and_not_its_owner(name):
    """Two storages on one array."""
    array = np.arange(12, dtype=np.float32).reshape(4, 3)
    w, values = torch.from_numpy(array), torch.from_numpy(array[:-1])
    expected = w.clone()
    scatter_step(expected, torch.tensor([1, 2, 3]), values.clone(), lr=0.5)
    scatter_step(w, torch.tensor([1, 2, 3]), values, lr=0.5)
    assert torch.equal(w, expected)


OVERLAPPING = {
    "expanded": torch.zeros(1, 4).expand(3, 4),
    "windows": torch.zeros(12).as_strided((3, 4), (1, 2)),
    "unfolded": torch.zeros(9).unfold(0, 4, 1),
    "trailing": torch.zeros(30).as_strided((3, 4, 2), (8, 1, 1)),
}


@pytest.mark.parametrize("param", OVERLAPPING.values(), ids=OVERLAPPING)
def test_weights_that_share_memory_are_refused(name, param):
    with pytest.raises(ValueError, match="param's elements share memory"):
        scatter_step(param, torch.tensor([0]), torch.ones(1, *param.shape[1:]), lr=0.1)
    assert not param.any()


def test_weights_with_gaps_are_none_that_share_memory(name):
    """Strides that no order of the dimensions nests, and yet each element has its place: 0, 2, 4, 3, 5, 7."""
    w = torch.zeros(8).as_strided((3, 2), (2, 3))
    scatter_step(w, torch.tensor([2, 0]), torch.ones(2, 2), lr=1.0)
    assert w.tolist() == [[-1, -1], [0, 0], [-1, -1]]


@pytest.mark.parametrize("calls", [1, 3], ids=["first", "remembered"])
@pytest.mark.parametrize("rule", ["momentum", "adagrad"])
def test_a_state_that_shares_memory_with_the_weights_is_refused(name, rule, calls):
    def step(w, state):
        return scatter_step(w, torch.tensor([1]), torch.ones(1, 3), lr=0.1, rule=rule, state=state)

    state: dict[str, torch.Tensor] = {}
    for _ in range(calls):
        w = torch.ones(4, 3)
        state = step(w, state)
    memory = torch.ones(15)
    w, state[RULE_STATE[rule]] = memory[:12].view(4, 3), memory[3:].view(4, 3)
    before = {key: x.clone() for key, x in state.items()}
    with pytest.raises(ValueError, match=r"state shares memory with param or within itself.*nothing was written"):
        step(w, state)
    assert torch.equal(memory, torch.ones(15))
    assert all(torch.equal(state[key], before[key]) for key in state)


def test_a_state_in_a_gap_of_the_weights_is_none_that_shares_memory(name):
    """One buffer for all, as allocators of flat buffers make it."""
    memory = torch.zeros(2, 20)
    w, state = memory[:, :4], {"sum": memory[0, 8:16].view(2, 4)}
    scatter_step(w, torch.tensor([0, 1]), torch.ones(2, 4), lr=1.0, rule="adagrad", state=state)
    assert state["sum"].tolist() == [[1.0] * 4] * 2
    close(w, torch.full((2, 4), -1.0))
    trailing = torch.zeros(4, 2, 6, 5).permute(0, 3, 1, 2)[:, :, :, :4]
    inside = {"sum": trailing.new_zeros(trailing.shape)}
    scatter_step(trailing, torch.tensor([1]), torch.ones(1, 5, 2, 4), lr=1.0, rule="adagrad", state=inside)
    close(trailing[1], torch.full((5, 2, 4), -1.0))
    state = {"sum": trailing.as_strided(trailing.shape, inside["sum"].stride())}
    with pytest.raises(ValueError, match="state shares memory"):
        scatter_step(trailing, torch.tensor([1]), torch.ones(1, 5, 2, 4), lr=1.0, rule="adagrad", state=state)


@pytest.mark.parametrize("where", ["inside", "outside"])
@pytest.mark.parametrize("rule", RULES)
def test_compiled_values_that_are_rows_of_the_weights_count_as_a_copy(rule, where):
    torch._dynamo.reset()

    def step(w, values):
        rows = torch.tensor([1, 2, 3])
        scatter_step(w, rows, w[:-1] if values is None else values, lr=0.5, rule=rule)
        return w + 0

    w = torch.randn(4, 3)
    expected = w.clone()
    scatter_step(expected, torch.tensor([1, 2, 3]), expected[:-1].clone(), lr=0.5, rule=rule)
    values = None if where == "inside" else w[:-1]
    close(torch.compile(step, backend="aot_eager", fullgraph=True)(w, values), expected)
    close(w, expected)


# ------------------------------------------------------------------------------------------------ odd company


@pytest.mark.parametrize("given", [np.float32(0.5), np.float64(0.5), Fraction(1, 2), torch.tensor(0.5)], ids=repr)
def test_numbers_of_any_kind_are_taken(name, given):
    w, expected = torch.ones(3), torch.ones(3)
    half, one, zero = np.float32(0.5), np.int64(1), np.int64(0)
    for _ in range(2):
        odd: Any = {"lr": given, "momentum": half}
        scatter_step(w, torch.tensor([1]), torch.ones(1), rule="momentum", **odd)
        scatter_step(expected, torch.tensor([1]), torch.ones(1), lr=0.5, rule="momentum", momentum=0.5)
    odd = {"lr": one, "eps": zero}
    scatter_step(w, torch.tensor([1]), torch.ones(1), rule="adagrad", **odd)
    scatter_step(expected, torch.tensor([1]), torch.ones(1), lr=1, rule="adagrad", eps=0)
    assert torch.equal(w, expected)


@pytest.mark.parametrize("wide", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("lr", [float("nan"), float("inf"), -float("inf")])
def test_a_rate_that_is_not_finite_is_refused(name, lr, wide):
    w, indices, values = torch.ones(3), torch.tensor([1]), torch.ones(1)
    state = scatter_step(w, indices, values, lr=0.5, rule="momentum")
    before, was = w.clone(), copy.deepcopy(state)
    with pytest.raises(ValueError, match=r"lr is .*; expected a finite number; nothing was written"):
        scatter_step(w, indices, values, lr=torch.tensor(lr) if wide else lr, rule="momentum", state=state)
    assert torch.equal(w, before)
    assert all(torch.equal(state[key], was[key]) for key in was)


MANNERS = {
    "rate-with-gradient": (
        {"lr": torch.tensor(0.1, requires_grad=True)},
        ValueError,
        r"lr requires a gradient.*detach",
    ),
    "rate-array": ({"lr": np.array([0.1])}, TypeError, "lr is a ndarray; expected a number"),
    "momentum-text": ({"momentum": "0.9"}, TypeError, "momentum is a str; expected a number"),
    "momentum-list": ({"momentum": [0.9]}, TypeError, "momentum is a list; expected a number"),
    "eps-infinite": ({"eps": float("inf")}, ValueError, "eps is inf; expected at least 0, and finite"),
    "rule-list": ({"rule": ["sgd"]}, ValueError, r"rule is \['sgd'\]; expected one of"),
    "state-list": ({"state": [1]}, TypeError, "state is a list; expected a dict"),
    "state-number": ({"rule": "adagrad", "state": {"sum": 1.0}}, TypeError, "state's sum is a float; expected a torch"),
    "no-indices": ({"indices": None}, TypeError, "indices is a NoneType; expected a torch.Tensor"),
    "uninitialised": ({"param": UninitializedParameter()}, TypeError, "param is an UninitializedParameter"),
    "uninitialised-values": ({"values": UninitializedParameter()}, TypeError, "values is an UninitializedParameter"),
}


@pytest.mark.parametrize(("changed", "error", "match"), MANNERS.values(), ids=MANNERS)
def test_what_is_not_taken_is_named(changed, error, match):
    w = torch.ones(3)
    given = {"param": w, "indices": torch.tensor([1]), "values": torch.ones(1), "lr": 0.1}
    for _ in range(2):
        with pytest.raises(error, match=f"scatter_step: {match}"):
            scatter_step(**{**given, **changed})
        scatter_step(torch.ones(3), *list(given.values())[1:3], lr=0.1)
    assert torch.equal(w, torch.ones(3))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
def test_nested_tensors_are_named(layout):
    nested = torch.nested.nested_tensor([torch.ones(3), torch.ones(2)], layout=layout)
    with pytest.raises(TypeError, match="scatter_step: values is a nested tensor"):
        scatter_step(torch.ones(4, 3), torch.tensor([0, 1]), nested, lr=0.1)


def test_lazy_negations_have_their_own_sign(name):
    z = torch.randn(3, 4, dtype=torch.complex64)
    w, expected = z.conj().imag, -z.imag
    assert w.is_neg()
    for rule in RULES:
        scatter_step(w, torch.tensor([2, 0]), w[:2], lr=0.5, rule=rule)
        scatter_step(expected, torch.tensor([2, 0]), expected[:2].clone(), lr=0.5, rule=rule)
    assert torch.equal(w, expected)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("how", ["context", "default"])
def test_another_default_device_changes_nothing(name, rule, how):
    w, expected, i, v = torch.ones(3, 2), torch.ones(3, 2), torch.tensor([1, 1]), torch.ones(2, 2)
    scatter_step(expected, i, v, lr=0.5, rule=rule)
    if how == "default":
        torch.set_default_device("meta")
    try:
        with torch.device("meta") if how == "context" else nullcontext():
            state = scatter_step(w, i, v, lr=0.5, rule=rule)
    finally:
        torch.set_default_device(None)
    assert {x.device.type for x in state.values()} <= {"cpu"}
    assert torch.equal(w, expected)


def test_vmap_is_refused_by_name():
    for maps in (0, 2):
        with pytest.raises(NotImplementedError, match=r"scatter_step: vmap does not apply.*a longer list"):
            torch.vmap(lambda w, v: (scatter_step(w, torch.tensor([0]), v, lr=0.1), w)[1])(
                torch.zeros(maps, 4, 3), torch.zeros(maps, 1, 3)
            )


# ------------------------------------------------------------------------------------------------ any scale of numbers


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("power", [60, -60])
@pytest.mark.parametrize("rule", RULES)
def test_a_power_of_two_goes_through_the_step(name, rule, power, dtype):
    """Of sgd and momentum in w and g; of Adagrad, Adam and RMSprop in g, without eps; of Polyak with w, lr by the
    square: bit for bit.
    """
    scale = 2.0**power
    of_w, of_lr = {"polyak": (scale, scale**2), "sgd": (scale, 1.0), "momentum": (scale, 1.0)}.get(rule, (1.0, 1.0))
    options: dict[str, Any] = {"rule": rule, "momentum": 0.5, "decay": 0.5, "eps": 0.0}
    w, i = torch.randn(6, 3, dtype=dtype), torch.tensor([5, 0, 5, 2])
    other, states = w * of_w, ({}, {})
    for _ in range(3):
        g = torch.randn(4, 3, dtype=dtype)
        scatter_step(w, i, g, lr=0.25, state=states[0], **options)
        scatter_step(other, i, g * scale, lr=0.25 * of_lr, state=states[1], **options)
    assert torch.equal(other, w * of_w)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_finite_gradients_leave_finite_weights(name, rule, dtype):
    """From the least subnormal to the largest number, with zeros among them, and no eps."""
    info = torch.finfo(dtype)
    sizes = [info.smallest_normal * info.eps, info.smallest_normal, info.eps, 1.0, 0.25 * info.max, 0.0]
    g = torch.tensor([*sizes, *(-size for size in sizes)], dtype=dtype)
    for indices, values in ((torch.arange(12), g), *((torch.tensor([k]), g[k : k + 1]) for k in range(12))):
        w = torch.ones(12, dtype=dtype)
        lr = {"polyak": float(values.abs().max())}.get(rule, 1.0)
        scatter_step(w, indices, values, lr=lr, rule=rule, eps=0.0)
        assert w.isfinite().all(), (values, w)


def test_adagrad_takes_a_first_step_of_the_rate_however_small_the_gradient(name):
    """√(g²) is 0 where g² is; the step is lr sign(g) all the same. Where g = 0 there is none."""
    w = torch.zeros(3)
    scatter_step(w, torch.tensor([0, 1, 2]), torch.tensor([1e-30, -1e-40, 0.0]), lr=0.5, rule="adagrad", eps=0.0)
    assert w.tolist() == [-0.5, 0.5, 0.0]


def test_polyak_reaches_far_where_gradients_are_small(name):
    """γ = 1 / 1e-60 is no float32; γ g = 1e30 is."""
    w = torch.zeros(2)
    scatter_step(w, torch.tensor([0]), torch.tensor([1e-30]), lr=1.0, rule="polyak")
    torch.testing.assert_close(w, torch.tensor([-1e30, 0.0]))


@pytest.mark.parametrize("rule", RULES)
def test_zeros_keep_the_signs_of_weights(name, rule):
    w = torch.tensor([0.0, -0.0, 1.0])
    scatter_step(w, torch.tensor([0, 1, 2]), torch.zeros(3), lr=0.5, rule=rule, eps=0.0)
    assert torch.equal(w, torch.tensor([0.0, 0.0, 1.0]))
    assert w.signbit().tolist() == [False, True, False]
