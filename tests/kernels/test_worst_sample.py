"""Worst-sample iterations: every memory leaves the bits of the dense definition, which is autograd's subgradient."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tropigrad.kernels import backend, native
from tropigrad.kernels.worst_sample import Dense, Samples, Settings, Sparse, State, Weights, activate, beginning
from tropigrad.kernels.worst_sample.definition import activate_ref, linear, loss_gradient, sample_losses, step_length
from tropigrad.kernels.worst_sample.portable import Persistent, is_suited

needs_compiler = pytest.mark.skipif(bool(native.why_no_compiler()), reason=native.why_no_compiler())
MEMORIES = ("winners", "trees")


def run_of(seed, N=60, d=3, p=6, q=5, K=3, watched=7, ties=True, dtype=torch.float32, **options):
    """A network and samples of small integers, which tie and cancel all the time, or of any numbers."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        x = 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)
        return (x.round() if ties else x).to(dtype)

    def copy():
        return Weights(*(w.clone() for w in weights))

    weights = Weights(draw(p, d), draw(q, p), draw(K, q))
    x, y = draw(N + watched, d), torch.randint(0, K, (N + watched,), generator=generator, dtype=torch.int32)
    chosen = Settings(**options)
    kept = copy() if watched else None
    times = torch.zeros(N, dtype=torch.int64)
    return State(chosen, Samples(x, y, N), weights, copy(), kept, beginning(chosen), times)


def advance(loop, iterations):
    trace = torch.zeros(iterations, dtype=torch.float64)
    done = loop.run(iterations, trace)
    return trace[:done]


def assert_same(one, other):
    for ours, theirs in zip(one.activations, other.activations, strict=True):
        assert torch.equal(ours, theirs)
    for iterate in ("weights", "best", "best_right"):
        for ours, theirs in zip(getattr(one.state, iterate) or (), getattr(other.state, iterate) or (), strict=True):
            assert torch.equal(ours, theirs), iterate
    assert one.state.progress.as_dict() == other.state.progress.as_dict()
    assert torch.equal(one.state.times_worst, other.state.times_worst)


VARIANTS = {
    "hinge": {},
    "A trained": {"train_a": True},
    "cross-entropy": {"loss": "cross_entropy"},
    "cross-entropy, A trained": {"loss": "cross_entropy", "train_a": True},
    "sqrt": {"step": "sqrt"},
    "power": {"step": "power", "length": 1.5},
    "target": {"target": 2.0, "margin": 3.0},
}


@needs_compiler
@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("ties", [True, False], ids=["ties", "any numbers"])
def test_iterates_equal_the_definition_bit_for_bit(memory, options, ties):
    for seed in range(8):
        dense, sparse = Dense(run_of(seed, ties=ties, **options)), Sparse(run_of(seed, ties=ties, **options), memory)
        for iterations in (1, 1, 7, 60):
            assert torch.equal(advance(dense, iterations), advance(sparse, iterations))
            assert_same(dense, sparse)


@needs_compiler
@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param({"N": 1300, "p": 70, "q": 33, "watched": 600}, id="several blocks"),
        pytest.param({"N": 3, "d": 1, "p": 1, "q": 1, "K": 2, "watched": 0}, id="least"),
        pytest.param({"N": 5, "p": 65, "q": 129, "watched": 1}, id="ragged"),
        pytest.param({"dtype": torch.float64}, id="float64"),
    ],
)
def test_sizes(memory, sizes):
    for train_a in (False, True):
        dense = Dense(run_of(1, **sizes, train_a=train_a))
        sparse = Sparse(run_of(1, **sizes, train_a=train_a), memory)
        assert torch.equal(advance(dense, 30), advance(sparse, 30))
        assert_same(dense, sparse)


@needs_compiler
@pytest.mark.parametrize("memory", MEMORIES)
def test_going_back_to_the_best_is_exact(memory):
    """Contradictory labels: the level is raised again and again, and each time the iterates go back."""
    runs = []
    for make in (Dense, lambda state: Sparse(state, memory)):
        state = run_of(5, ties=False, watched=9)
        state.samples.x[30:40] = state.samples.x[:10]
        state.samples.y[30:40] = (state.samples.y[:10] + 1) % 3
        runs.append(make(state))
    dense, sparse = runs
    assert torch.equal(advance(dense, 700), advance(sparse, 700))
    assert dense.state.progress.raises >= 2
    assert_same(dense, sparse)


@needs_compiler
def test_wide_indices():
    """More leaves than two bytes number."""
    dense, sparse = Dense(run_of(2, N=6, p=1 << 15, q=2)), Sparse(run_of(2, N=6, p=1 << 15, q=2), "winners")
    assert torch.equal(advance(dense, 10), advance(sparse, 10))
    assert sparse._i.dtype == torch.int32
    assert_same(dense, sparse)


@needs_compiler
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), p=st.integers(1, 20), q=st.integers(1, 9), K=st.integers(2, 5), a=st.booleans())
def test_any_network(seed, p, q, K, a):
    sizes: dict[str, Any] = {"N": 20, "p": p, "q": q, "K": K, "train_a": a}
    dense = Dense(run_of(seed, **sizes))
    others = [Sparse(run_of(seed, **sizes), memory) for memory in MEMORIES]
    trace = advance(dense, 25)
    for other in others:
        assert torch.equal(trace, advance(other, 25))
        assert_same(dense, other)


@needs_compiler
def test_any_number_of_threads_leaves_the_same_bits():
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            runs.append(Sparse(run_of(3, N=3000, p=40, q=20, train_a=True, ties=False), "winners"))
            advance(runs[-1], 40)  # 20 units a row of A: enough work for several threads
    finally:
        torch.set_num_threads(before)
    assert_same(*runs)


@needs_compiler
@pytest.mark.parametrize("options", [{}, {"train_a": True}, {"loss": "cross_entropy"}], ids=["", "A", "entropy"])
@pytest.mark.parametrize("ties", [True, False], ids=["ties", "any numbers"])
def test_what_is_kept_of_the_rivals_holds(options, ties):
    """No leaf but the winner beats the first bound, none but winner and runner-up the second."""
    sparse = Sparse(run_of(6, N=600, p=20, q=12, ties=ties, **options), "winners")
    for _ in range(5):
        advance(sparse, 15)
        weights, kept = sparse.state.weights, sparse._buffers
        z = linear(sparse.state.samples.x, weights.a)
        u, i, _, j = sparse.activations
        for leaves, sign, winner, of in (
            (z[:, None, :] + weights.w1, 1, i, "unit"),
            (u[:, None, :] + weights.w2, -1, j, "score"),
        ):
            others = (sign * leaves).scatter(2, winner[..., None], math.inf)
            bound, third, second = (kept[f"{of}_{name}"].T for name in ("bound", "third", "second"))
            assert (others.min(dim=2).values >= sign * bound).all()
            others = others.scatter(2, second.long()[..., None], math.inf)
            assert (others.min(dim=2).values >= sign * third).all()
            assert (sign * bound <= sign * third).all()


def test_fused_products_activate_as_the_definition():
    state = run_of(4)
    z = linear(state.samples.x, state.weights.a)
    for ours, theirs in zip(activate(z, state.weights), activate_ref(z, state.weights), strict=True):
        assert torch.equal(ours, theirs)


# ------------------------------------------------------------------------------------------------ one Triton program

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
needs_triton = pytest.mark.skipif(
    bool(backend.why_off("triton", DEVICE)), reason="the kernel needs a GPU or triton's interpreter"
)


def on_device(state):
    """The same run where Triton runs."""

    def moved(weights):
        return Weights(*(w.to(DEVICE) for w in weights))

    samples = Samples(state.samples.x.to(DEVICE), state.samples.y.to(DEVICE), state.samples.training)
    times, progress = state.times_worst.to(DEVICE), beginning(state.settings)
    return State(state.settings, samples, moved(state.weights), moved(state.best), None, progress, times)


def contradicted(**sizes):
    """Equal samples of different classes: the level must be raised."""
    state = run_of(5, ties=False, watched=0, **sizes)
    third = len(state.samples.x) // 3
    state.samples.x[-third:], state.samples.y[-third:] = state.samples.x[:third], (state.samples.y[:third] + 1) % 3
    return on_device(state)


@needs_triton
@pytest.mark.parametrize(
    ("make", "iterations"),
    [
        pytest.param(lambda: on_device(run_of(0, N=20, watched=0)), 25, id="ties"),
        pytest.param(lambda: on_device(run_of(0, N=20, watched=0, ties=False)), 25, id="any numbers"),
        pytest.param(lambda: on_device(run_of(1, N=9, watched=0, step="sqrt", dtype=torch.float64)), 25, id="sqrt"),
        pytest.param(lambda: on_device(run_of(2, N=600, p=3, q=2, K=2, watched=0)), 5, id="two blocks"),
        pytest.param(lambda: contradicted(N=9, p=3, q=2), 120, id="back to the best"),
    ],
)
def test_a_triton_program_leaves_the_same_bits(make, iterations):
    dense, program = Dense(make()), Persistent(make())
    for n in (1, 1, iterations):
        assert torch.equal(advance(dense, n), advance(program, n))
        assert dense.state.progress.as_dict() == program.state.progress.as_dict()
        for iterate in ("weights", "best"):
            for ours, theirs in zip(getattr(program.state, iterate), getattr(dense.state, iterate), strict=True):
                assert torch.equal(ours, theirs), iterate
        assert torch.equal(dense.state.times_worst, program.state.times_worst)
    if iterations == 120:
        assert program.state.progress.raises > 0


def test_what_a_program_does_not_serve_is_dense():
    assert is_suited(run_of(0, watched=0))
    for options in ({"watched": 1}, {"loss": "cross_entropy"}, {"train_a": True}, {"step": "power"}, {"N": 20_000}):
        assert not is_suited(run_of(0, **{"watched": 0, **options}))


# ------------------------------------------------------------------------------------------------ the definition


@pytest.mark.parametrize("loss", ["hinge", "cross_entropy"])
def test_the_subgradient_is_autograd_s(loss):
    """A step of known length, beside autograd of F through max over a dimension, which takes the first winner."""
    for seed in range(10):
        state = run_of(seed, watched=0, dtype=torch.float64, loss=loss, train_a=True, step="sqrt", length=1.0)
        weights = [w.clone().requires_grad_() for w in state.weights]
        a, w1, w2 = weights
        u = (torch.nn.functional.linear(state.samples.x, a)[:, None, :] + w1).min(dim=2).values
        f = (u[:, None, :] + w2).max(dim=2).values
        labels = state.samples.y.long()
        if loss == "hinge":
            rivals = (f + 1.0).scatter(1, labels[:, None], -math.inf).max(dim=1).values
            losses = (rivals - f.gather(1, labels[:, None]).squeeze(1)).relu()
        else:
            losses = torch.nn.functional.cross_entropy(f, labels, reduction="none")
        expected = torch.autograd.grad(losses.max(dim=0).values, weights)
        norm = math.sqrt(sum(g.square().sum().item() for g in expected))
        before = [w.clone() for w in state.weights]
        Dense(state).run(1, torch.zeros(1, dtype=torch.float64))
        for now, then, g in zip(state.weights, before, expected, strict=True):
            torch.testing.assert_close(now, then - g / norm, atol=1e-12, rtol=0)


def test_the_hinge_has_two_coefficients_and_ties_go_to_the_first():
    f = torch.tensor([1.0, 3.0, 3.0, 0.0])
    assert loss_gradient(f, 3, Settings()) == [(1, 1.0), (3, -1.0)]
    assert loss_gradient(f, 1, Settings()) == [(1, -1.0), (2, 1.0)]
    assert sample_losses(f[None], torch.tensor([3]), Settings(margin=0.5)).item() == 3.5


def test_the_first_steps_are_polyak_s():
    rule, now = Settings(), beginning(Settings())
    now.best_loss = 8.0
    assert step_length(rule, now, 8.0, 4.0) == 8.0 / 4.0
    now.best_loss = 3.0
    assert step_length(rule, now, 3.0, 4.0) == 3.0 / 4.0


def test_travelling_without_descent_raises_the_level_and_returns_to_the_best():
    rule, now = Settings(), beginning(Settings())
    now.best_loss = 8.0
    steps = [step_length(rule, now, 8.0, 4.0) for _ in range(22)]
    assert steps == [2.0] * 21 + [None]
    assert (now.gap, now.raises) == (4.0, 1)
    assert step_length(rule, now, 8.0, 4.0) == (8.0 - 4.0) / 4.0


@pytest.mark.parametrize(("step", "power"), [("sqrt", 0.5), ("power", 0.6)])
def test_open_loop_steps_shrink_as_stated(step, power):
    rule, now = Settings(step=step), beginning(Settings(step=step))
    assert step_length(rule, now, 8.0, 4.0) == 8.0 / 4.0
    now.iteration = 99
    assert step_length(rule, now, 8.0, 4.0) == pytest.approx(8.0 / 4.0 * 100**-power)
