"""scatter_step against its definition and torch.optim: duplicates first, touched entries alone, nothing on error."""

import copy
import importlib
import io
import math
from contextlib import nullcontext
from fractions import Fraction
from functools import partial
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
from tropigrad.kernels.scatter_step import RULES, by_triton, scatter_step_ref, scatter_steps
from tropigrad.kernels.scatter_step.definition import DECAY, EPS, STATE, Options, State, arranged, fresh_state

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


SCHEDULE = [0.05 * 0.9**t for t in range(30)]


def of_pairs(steps: int, dtype: torch.dtype, rows: bool):
    """Lists of which some entries come twice, whose sums no order changes; gradients of several magnitudes."""
    for _ in range(steps):
        at = torch.stack([torch.randperm(30)[:20] for _ in range(2)])
        at = torch.cat([at, at[:, 5:12]], 1)[:, torch.randperm(27)]
        values = torch.randn((27, 30) if rows else (27,)) * 10.0 ** torch.randint(-3, 3, (27, 1) if rows else (27,))
        yield at[:1] if rows else at, values.to(dtype)


@pytest.mark.parametrize("rows", [True, False], ids=["rows", "elements"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("of_rate", [float, partial(torch.tensor, dtype=torch.float64)], ids=["number", "tensor"])
def test_adam_is_torch_optim_sparse_adam(name, dtype, rows, of_rate):
    """Under a schedule. The state to the bit where weights are its dtype; weights but for torch's square root, which
    MKL rounds wrongly in a fifth of cases. Of 16 bits: as if torch stepped float32 weights that are then rounded.
    """
    steps, wide = 4 if name == "triton" else 30, torch.promote_types(dtype, torch.float32)
    w = torch.randn(30, 30).to(dtype)
    reference = torch.nn.Parameter(w.to(wide))
    optimizer = torch.optim.SparseAdam([reference], lr=1.0, betas=(0.8, 0.95), eps=1e-6)
    state: dict[str, torch.Tensor] = {}
    for lr, (at, values) in zip(SCHEDULE, of_pairs(steps, dtype, rows), strict=False):
        optimizer.param_groups[0]["lr"] = lr
        options: dict[str, Any] = {"rule": "adam", "momentum": 0.8, "decay": 0.95, "eps": 1e-6, "state": state}
        scatter_step(w, at[0] if rows else tuple(at), values, lr=of_rate(lr), **options)
        reference.grad = torch.sparse_coo_tensor(at, values.to(wide), w.shape, check_invariants=False)
        optimizer.step()
        reference.data.copy_(reference.data.to(dtype))
    theirs = optimizer.state[reference]
    assert state["step"] == theirs["step"]
    if name == "triton":  # whose own powers of β differ in the last place
        close(state["mean"], theirs["exp_avg"])
        close(state["square"], theirs["exp_avg_sq"])
    else:
        assert torch.equal(state["mean"], theirs["exp_avg"])
        assert torch.equal(state["square"], theirs["exp_avg_sq"])
    last = torch.finfo(dtype).eps
    torch.testing.assert_close(w.to(wide), reference.detach(), rtol=4 * last, atol=4 * last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_rmsprop_is_torch_optim_rmsprop_where_all_is_touched(name, dtype):
    w = torch.randn(7, 3, dtype=dtype)
    reference = torch.nn.Parameter(w.clone())
    optimizer = torch.optim.RMSprop([reference], lr=1.0, alpha=0.9)
    state = None
    for lr in SCHEDULE[: 4 if name == "triton" else 30]:
        optimizer.param_groups[0]["lr"] = lr
        g = torch.randn(7, 3, dtype=dtype)
        order = torch.randperm(14) % 7  # each row twice, by halves
        state = scatter_step(w, order, g[order] / 2, lr=lr, rule="rmsprop", decay=0.9, state=state)
        reference.grad = g
        optimizer.step()
    assert state is not None
    last = torch.finfo(dtype).eps
    close(state["square"], optimizer.state[reference]["square_avg"], 8 * last)
    close(w, reference.detach(), 32 * last)


@pytest.mark.parametrize("rule", ["adam", "rmsprop"])
def test_what_is_not_listed_rests(name, rule):
    """Weights, means and mean squares: nothing decays in between. Adam's t goes on for all."""
    w, state = torch.zeros(2, dtype=torch.float64), {}
    one = torch.ones(1, dtype=torch.float64)
    options: dict[str, Any] = {"rule": rule, "momentum": 0.5, "decay": 0.75, "eps": 0.0, "state": state}
    scatter_step(w, torch.tensor([0]), one, lr=1.0, **options)
    rested = {key: x[0].clone() for key, x in state.items() if x.dim()}
    for _ in range(3):
        before = w.clone()
        scatter_step(w, torch.tensor([1]), one, lr=1.0, **options)
        assert w[0] == before[0]
        assert all(torch.equal(state[key][0], x) for key, x in rested.items())
    before = w.clone()
    scatter_step(w, torch.tensor([0]), one, lr=1.0, **options)
    v = 0.25 + 0.25 * 0.75
    step = v**-0.5 if rule == "rmsprop" else (1 - 0.75**5) ** 0.5 / (1 - 0.5**5) * 0.75 / v**0.5
    close(before[0] - w[0], torch.tensor(step, dtype=torch.float64), 1e-14)


@pytest.mark.parametrize(
    ("rule", "decay", "eps"), [("adam", 0.999, 1e-8), ("rmsprop", 0.99, 1e-8), ("adagrad", 0, 1e-10)]
)
def test_each_rule_has_its_own_defaults(name, rule, decay, eps):
    w, expected, states = torch.ones(3), torch.ones(3), ({}, {})
    for g in (1e-8, 3e-8):
        scatter_step(w, torch.tensor([1]), torch.tensor([g]), lr=0.5, rule=rule, state=states[0])
        options: dict[str, Any] = {"rule": rule, "decay": decay, "eps": eps, "state": states[1]}
        scatter_step(expected, torch.tensor([1]), torch.tensor([g]), lr=0.5, **options)
    assert torch.equal(w, expected)
    assert w[1] < 1


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
        state = arranged(rule, list(fresh_state(w, rule, 2).values()))
        options = Options(rule, 0.9, DECAY.get(rule, 0.0), EPS.get(rule, 0.0))
        with override("scatter_step.triton", config):
            by_triton.step(w, rows, None, values, 0.1, options, state, deterministic=True)
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
    by_triton.step(w, rows, None, torch.ones(75, 1), 1.0, Options("sgd"), State(), deterministic=False)
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


@pytest.mark.parametrize("rule", [rule for rule in RULES if STATE[rule]])
def test_a_state_comes_back(rule):
    """Saved, loaded as weights alone, and continued: as if never interrupted."""

    def run(w, state, steps):
        for k in steps:
            values = torch.tensor([0.1, 0.7]) * (k + 1)
            state = scatter_step(w, torch.tensor([k % 3, 1]), values, lr=0.1, rule=rule, state=state)
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


RULE_STATE = {"momentum": "velocity", "adagrad": "sum", "adam": "mean", "rmsprop": "square"}


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


@pytest.mark.parametrize("rule", RULE_STATE)
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
@pytest.mark.parametrize("rule", RULE_STATE)
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


def test_means_and_squares_that_share_memory_are_refused(name):
    w, state = torch.ones(4, 3), {}
    scatter_step(w, torch.tensor([1]), torch.ones(1, 3), lr=0.1, rule="adam", state=state)
    before = w.clone()
    state["square"] = state["mean"]
    with pytest.raises(ValueError, match=r"state shares memory with param or within itself.*nothing was written"):
        scatter_step(w, torch.tensor([1]), torch.ones(1, 3), lr=0.1, rule="adam", state=state)
    assert torch.equal(w, before)
    assert state["step"] == 1


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


@pytest.mark.parametrize("rule", ["adam", "rmsprop"])
def test_compiled_steps_are_the_steps(rule):
    """One graph for all steps; the rate is a tensor, the state goes on."""
    torch._dynamo.reset()

    def step(w, rows, values, lr, state):
        scatter_step(w, rows, values, lr=lr, rule=rule, state=state, check_finite=True)
        return w + 0

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    w = torch.randn(4, 3)
    expected, rows = w.clone(), torch.tensor([1, 2, 1])
    state = scatter_step(w, rows, torch.ones(3, 3), lr=0.1, rule=rule)
    other = scatter_step(expected, rows, torch.ones(3, 3), lr=0.1, rule=rule)
    for lr in (0.5, 0.25, 0.125):
        values = torch.randn(3, 3)
        scatter_step(expected, rows, values, lr=lr, rule=rule, state=other)
        assert torch.equal(compiled(w, rows, values, torch.tensor(lr), state), expected)
    assert torch.equal(w, expected)
    assert all(torch.equal(state[key], x) for key, x in other.items())
    with pytest.raises(FloatingPointError, match="nothing was written"):
        compiled(w, rows, torch.full((3, 3), float("nan")), torch.tensor(0.1), state)
    assert torch.equal(w, expected)


# ------------------------------------------------------------------------------------------------ finite steps


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("form", ["elements", "rows", "trailing", "permuted"])
def test_a_step_that_is_not_finite_writes_nothing(name, rule, form):
    """Neither weights nor state, and no step is counted; the entry is named. What is not listed may be anything."""
    w = torch.ones(4, 3, 2, 2) if form in ("trailing", "permuted") else torch.ones(4, 3)
    w = w.to(memory_format=torch.channels_last) if form == "permuted" else w
    w[3] = float("inf")
    rows = torch.tensor([1, 2, 0, 2])
    at: Any = (rows, torch.tensor([0, 2, 1, 1])) if form == "elements" else rows
    values = torch.ones(4) if form == "elements" else torch.ones(4, *w.shape[1:])
    options: dict[str, Any] = {"lr": 0.1, "rule": rule, "check_finite": True}
    state = scatter_step(w, at, values, **options)
    before, was = w.clone(), copy.deepcopy(state)
    values[1] = float("nan")
    entry = r"\[0, 1\]" if rule == "polyak" else r"\[2, 2\]"  # Polyak's norm is that of all
    entry = entry if form == "elements" else r"\[0\]" if rule == "polyak" else r"\[2\]"
    for _ in range(2):
        with pytest.raises(FloatingPointError, match=f"weight at {entry}, or its state, .*; nothing was written"):
            scatter_step(w, at, values, **options, state=state)
        assert torch.equal(w, before)
        assert all(torch.equal(state[key], was[key]) for key in was)
    values[1] = 1
    scatter_step(w, at, values, **options, state=state)
    assert not torch.equal(w, before)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rows", [True, False], ids=["rows", "elements"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_look_changes_no_bit(rule, rows, threads):
    """Over several buckets, with duplicates; and one bad entry of many is met."""
    if reason := backend.why_off("cpp", CPU):
        pytest.skip(reason)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        w, expected, states = torch.ones(3000, 4), torch.ones(3000, 4), ({}, {})
        for _ in range(2):
            index, columns = torch.randint(-1, 3000, (50_000,)), torch.randint(0, 4, (50_000,))
            at = index if rows else (index, columns)
            values = torch.randn((50_000, 4) if rows else (50_000,))
            scatter_step(w, at, values, lr=0.01, rule=rule, state=states[0], check_finite=True)
            scatter_step(expected, at, values, lr=0.01, rule=rule, state=states[1])
            assert torch.equal(w, expected)
        values[49_999] = float("nan")
        index[49_999] = 2999
        with pytest.raises(FloatingPointError, match="nothing was written"):
            scatter_step(w, at, values, lr=0.01, rule=rule, state=states[0], check_finite=True)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(w, expected)
    assert all(torch.equal(states[0][key], x) for key, x in states[1].items())


def test_a_state_beyond_its_dtype_is_not_finite(name):
    """Though the weight would rest: Adagrad's sum is ∞ from then on."""
    w, state = torch.ones(2), {}
    with pytest.raises(FloatingPointError, match=r"weight at \[1\], or its state"):
        scatter_step(w, torch.tensor([1]), torch.tensor([1e30]), lr=1.0, rule="adagrad", state=state, check_finite=True)
    assert w.tolist() == [1, 1]
    assert state["sum"].tolist() == [0, 0]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("g", ["largest", "nan"])
def test_what_rounds_to_infinity_is_not_finite(name, dtype, g):
    """The sum of two is finite in float32 for 16 bits, and the weight is not; a NaN has no rounding."""
    largest = torch.finfo(dtype).max
    w, value = torch.full((2,), -largest, dtype=dtype), largest / 2 if g == "largest" else float("nan")
    with pytest.raises(FloatingPointError):
        scatter_step(w, torch.tensor([0]), torch.tensor([value], dtype=dtype), lr=1.0, check_finite=True)
    assert w.tolist() == [-largest] * 2


def test_a_gradient_of_zero_moves_no_weight_that_is_finite(name):
    for rule in RULES:
        w = torch.tensor([0.0, -0.0, 1.0])
        scatter_step(w, torch.arange(3), torch.zeros(3), lr=0.5, rule=rule, eps=0.0, check_finite=True)
        assert w.tolist() == [0, 0, 1]
        assert w.signbit().tolist() == [False, True, False]
        w[1] = float("inf")
        with pytest.raises(FloatingPointError):
            scatter_step(w, torch.arange(3), torch.zeros(3), lr=0.5, rule=rule, eps=0.0, check_finite=True)


@pytest.mark.parametrize("chosen", ["torch", pytest.param("triton", marks=interpreted)])
def test_where_looking_would_synchronise_nothing_looks(chosen, set_backend, monkeypatch):
    """As on a GPU outside detect_anomaly()."""
    set_backend(chosen)
    monkeypatch.setattr(importlib.import_module("tropigrad.kernels.scatter_step"), "looks_at_values", lambda at: False)
    w = torch.ones(2)
    scatter_step(w, torch.tensor([0]), torch.tensor([float("nan")]), lr=1.0, check_finite=True)
    assert w.isnan().tolist() == [True, False]


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


@pytest.mark.parametrize(("rule", "of_rate"), [("adam", 1.0), ("rmsprop", 0.01**-0.5)])
def test_a_first_step_knows_no_scale(name, rule, of_rate):
    """lr of Adam, lr / √(1 − α) of RMSprop, however small g² is; where g = 0 there is none."""
    w = torch.zeros(3)
    g = torch.tensor([1e-30, -1e-40, 0.0])
    scatter_step(w, torch.tensor([0, 1, 2]), g, lr=0.5, rule=rule, momentum=0.5, eps=0.0)
    close(w, torch.tensor([-0.5 * of_rate, 0.5 * of_rate, 0.0]), 1e-4)


@pytest.mark.parametrize("rule", ["adagrad", "adam", "rmsprop"])
def test_an_entry_whose_square_overflows_rests(name, rule):
    """torch.optim's Adam has ∞ − ∞ there."""
    w, state = torch.ones(1), {}
    scatter_step(w, torch.tensor([0]), torch.tensor([1.0]), lr=0.5, rule=rule, state=state)
    before = w.clone()
    for g in (1e30, 1.0, -1e30):
        scatter_step(w, torch.tensor([0]), torch.tensor([g]), lr=0.5, rule=rule, state=state)
        assert torch.equal(w, before)


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


# ------------------------------------------------------------------------------------------------ several weights


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def several(dtype=torch.float32):
    """Weights of single numbers, of rows and of a vector, with a list of each."""
    weights = [drawn(*shape).to(dtype) for shape in [(7, 5), (6, 300), (9,)]]
    rows, columns = torch.randint(-1, 6, (2, 40), generator=torch.Generator().manual_seed(0))
    indices = [(rows, columns.clamp(0, 4)), (rows.int(),), (rows,)]
    values = [drawn(40, *w.shape[len(at) :]).to(dtype) for w, at in zip(weights, indices, strict=True)]
    return weights, indices, values


def steps_of(weights, indices, values, states, **options):
    defaults = {"lr": 0.125, "momentum": 0.5, "decay": None, "eps": None, "check_finite": True}
    scatter_steps(weights, indices, values, states, **defaults | options)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("check_finite", [False, True])
def test_several_weights_are_stepped_as_one_by_one(rule, dtype, check_finite):
    together, indices, values = several(dtype)
    alone, states, own = [w.clone() for w in together], [{}, {}, {}], [{}, {}, {}]
    for _ in range(2):
        steps_of(together, indices, values, states, rule=rule, check_finite=check_finite)
        for w, at, v, state in zip(alone, indices, values, own, strict=True):
            scatter_step(w, at, v, lr=0.125, rule=rule, momentum=0.5, state=state)
    for w, expected, state, expected_state in zip(together, alone, states, own, strict=True):
        assert torch.equal(w, expected)
        assert state.keys() == expected_state.keys()
        assert all(torch.equal(x, expected_state[name]) for name, x in state.items())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bad", range(3))
@pytest.mark.parametrize("started", [False, True])
def test_of_several_weights_all_are_stepped_or_none(rule, bad, started):
    weights, indices, values = several()
    states = [{}, {}, {}]
    if started:
        steps_of(weights, indices, values, states, rule=rule)
    values[bad].view(-1)[indices[bad][0].tolist().index(3)] = math.nan
    before, kept = copy.deepcopy(weights), copy.deepcopy(states)
    with pytest.raises(FloatingPointError, match=r"of a parameter \(.*nothing was written, of any parameter"):
        steps_of(weights, indices, values, states, rule=rule)
    assert all(torch.equal(w, old) for w, old in zip(weights, before, strict=True))
    assert (
        states == kept
        if not started
        else all(
            torch.equal(x, old[name]) for state, old in zip(states, kept, strict=True) for name, x in state.items()
        )
    )


def test_weights_that_are_each_other_s_are_stepped_one_by_one():
    whole = drawn(4, 4)
    at = torch.tensor([0, 1]), torch.tensor([0, 1])
    ones = torch.ones(2)
    expected = whole.clone()
    for view in (expected, expected.T):
        scatter_step(view, at, ones, lr=0.5, rule="polyak")
    steps_of([whole, whole.T], [at, at], [ones, ones], [{}, {}], lr=0.5, rule="polyak")
    assert torch.equal(whole, expected)
