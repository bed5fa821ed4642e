"""Worst-sample iterations: every memory leaves the bits of the dense definition, which is autograd's subgradient."""

import contextlib
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tropigrad import autotune
from tropigrad.kernels.runtime import backend, native
from tropigrad.optim.worst_sample import (
    Dense,
    Samples,
    Settings,
    Sparse,
    State,
    Weights,
    activate,
    beginning,
    by_triton,
)
from tropigrad.optim.worst_sample.captured_loop import Repeated
from tropigrad.optim.worst_sample.definition import (
    DIVERGED,
    MET,
    ROUNDED,
    activate_ref,
    linear,
    loss_gradients,
    sample_losses,
    step_length,
)

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


def assert_bounds_hold(sparse):
    """No leaf but the winner beats the first bound, none but winner and runner-up the second."""
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
@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="polyak"),
        pytest.param({"train_a": True}, id="A trained"),
        pytest.param({"loss": "cross_entropy", "train_a": True}, id="entropy, A trained"),
        pytest.param({"step": "power", "length": 1e38, "train_a": True}, id="long steps"),
    ],
)
def test_near_the_end_of_the_dtype_nothing_is_written_that_is_not_finite(memory, options):
    """All end alike: within the dtype, held before a step beyond it, or with an F beyond it."""
    ends = []
    for seed in range(5):
        runs = []
        for make in (Dense, lambda state: Sparse(state, memory)):
            state = run_of(seed, ties=False, **options)
            half = 2.0**62 if options.get("train_a") else 1.0
            state.samples.x.mul_(2.0**122 / half)
            assert state.best_right is not None
            for of in (state.weights, state.best, state.best_right):
                for w, factor in zip(of, (half, 2.0**124, 2.0**124), strict=True):
                    w.mul_(factor)
            runs.append(make(state))
        dense, sparse = runs
        assert dense.z.isfinite().all()
        torch.testing.assert_close(advance(sparse, 15), advance(dense, 15), rtol=0, atol=0, equal_nan=True)
        assert sparse.state.progress.status == dense.state.progress.status
        for ours, theirs in zip(sparse.state.weights, dense.state.weights, strict=True):
            assert torch.equal(ours, theirs)
            assert ours.isfinite().all()
        ends.append(dense.state.progress.status)
    assert (DIVERGED in ends) == ("length" in options)


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
    sparse = Sparse(run_of(6, N=600, p=20, q=12, ties=ties, **options), "winners")
    for _ in range(5):
        advance(sparse, 15)
        assert_bounds_hold(sparse)


def test_fused_products_activate_as_the_definition():
    state = run_of(4)
    z = linear(state.samples.x, state.weights.a)
    for ours, theirs in zip(activate(z, state.weights), activate_ref(z, state.weights), strict=True):
        assert torch.equal(ours, theirs)


# ------------------------------------------------------------------------------------------------ caches in Triton

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
needs_triton = pytest.mark.skipif(
    bool(backend.why_off("triton", DEVICE)), reason="the kernels need a GPU or triton's interpreter"
)
SMALL: dict[str, Any] = {"N": 22, "watched": 6}
FEW: dict[str, Any] = {"N": 7, "p": 3, "q": 2, "watched": 0}  # the interpreter is slow
TILES = {"BLOCK": 16, "ROWS": 4, "PAIRS": 16, "LEAVES": 8, "num_warps": 4}  # two blocks of SMALL
TINY = {"BLOCK": 8, "ROWS": 2, "PAIRS": 4, "LEAVES": 4, "num_warps": 4}  # several pieces of everything


def on_device(state):
    """The same run where Triton runs."""

    def moved(weights):
        return weights and Weights(*(w.to(DEVICE) for w in weights))

    samples = Samples(state.samples.x.to(DEVICE), state.samples.y.to(DEVICE), state.samples.training)
    kept = moved(state.best), moved(state.best_right)
    return State(
        state.settings, samples, moved(state.weights), *kept, beginning(state.settings), state.times_worst.to(DEVICE)
    )


@pytest.fixture
def caches(monkeypatch):
    """`caches(state, form)`: a loop of one "program", or of "launches"; `tiles` hold until the test ends."""
    with contextlib.ExitStack() as overrides:

        def begun(state, form, tiles=TILES):
            for kernel in (by_triton.PROGRAM, by_triton.ITERATION):
                overrides.enter_context(autotune.override(kernel.name, tiles))
            with monkeypatch.context() as patch:
                patch.setattr(by_triton, "LARGEST", 0 if form == "launches" else 1 << 14)
                return by_triton.Cached(state)

        yield begun


def assert_alike(dense, cached, iterations):
    """The same trace, then the same state, and caches that a dense evaluation would have filled alike."""
    ours, theirs = advance(cached, iterations), advance(dense, iterations)
    assert torch.equal(ours, theirs), (ours, theirs)
    u, i, f, j = dense.activations
    run = cached._run
    for cache, value in ((run.u, u), (run.ut, u.T), (run.i, i.T), (run.f, f.T), (run.j, j.T)):
        assert torch.equal(cache, value.to(cache.dtype))
    weights = dense.state.weights
    for leaves, sign, winner, bound in (
        (dense.z[:, None, :] + weights.w1, 1, i, run.unit_bound),
        (u[:, None, :] + weights.w2, -1, j, run.score_bound),
    ):
        others = (sign * leaves).scatter(2, winner[..., None], math.inf)
        assert (others.min(dim=2).values >= sign * bound.T).all()
    cached.activations = dense.activations
    assert_same(dense, cached)


SLOW = pytest.mark.slow
SOME = {"hinge": (), "cross-entropy": ("launches", True), "power": ("program", False)}  # the others are slow
ON_CACHES = [
    pytest.param(
        form, ties, options, id=f"{name}-{form}-{'ties' if ties else 'any'}",
        marks=() if name in SOME and SOME[name] in ((), (form, ties)) and ties == (form == "launches") else SLOW,
    )
    for name, options in VARIANTS.items()
    if "train_a" not in options
    for form in ("program", "launches")
    for ties in (True, False)
]  # fmt: skip


@needs_triton
@pytest.mark.parametrize(("form", "ties", "options"), ON_CACHES)
def test_caches_leave_the_bits_of_the_definition(caches, form, ties, options):
    def make():
        return on_device(run_of(1, ties=ties, **SMALL, **options))

    dense, cached = Dense(make()), caches(make(), form)
    for iterations in (1, 6):
        assert_alike(dense, cached, iterations)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("form", ["program", "launches"])
@pytest.mark.parametrize("loss", ["hinge", "cross_entropy"])
def test_caches_in_small_pieces(caches, form, loss):
    for seed in range(3):
        sizes: dict[str, Any] = {"N": 30, "p": 9, "q": 7, "K": 5, "watched": 9, "loss": loss}
        if loss == "hinge":  # exp and log of the other are not the same everywhere
            sizes["dtype"] = torch.float64
        dense, cached = Dense(on_device(run_of(seed, **sizes))), caches(on_device(run_of(seed, **sizes)), form, TINY)
        assert_alike(dense, cached, 12)


@needs_triton
@pytest.mark.parametrize("form", ["program", "launches"])
def test_a_resumed_run_goes_on_alike(caches, form):
    dense, cached = Dense(on_device(run_of(2, **FEW))), caches(on_device(run_of(2, **FEW)), form)
    assert_alike(dense, cached, 3)
    assert_alike(dense, caches(cached.state, form), 3)


@needs_triton
@pytest.mark.parametrize("form", ["program", "launches"])
def test_the_host_takes_the_caches_back_to_the_best(caches, form):
    dense = Dense(on_device(run_of(5, ties=False, **FEW)))
    cached = caches(on_device(run_of(5, ties=False, **FEW)), form)
    assert_alike(dense, cached, 3)
    for loop in (dense, cached):
        loop.state.progress.path, loop.state.progress.longest_path = 1.0, 0.5  # no new record: too far
    assert_alike(dense, cached, 4)
    assert dense.state.progress.raises > 0


@needs_triton
@pytest.mark.parametrize("form", ["program", "launches"])
@pytest.mark.parametrize(
    ("status", "options"),
    [
        (MET, {"step": "sqrt", "length": 1.0}),
        (DIVERGED, {"step": "sqrt", "length": 1e39}),
        (ROUNDED, {}),
    ],
    ids=["met", "diverged", "rounded"],
)
def test_how_a_run_on_caches_ends(caches, form, status, options):
    def make():
        state = on_device(run_of(3, ties=False, **FEW, **options))
        if status == MET:
            trace = advance(Dense(on_device(run_of(3, ties=False, **FEW, **options))), 4)
            assert trace.argmin() > 0
            state.settings = Settings(**options, target=float(trace.min()))
        if status == ROUNDED:  # F is above the target by less than its rounding, as it has been for long
            loss = Dense(on_device(run_of(3, ties=False, **FEW))).seen.tail[0].loss
            state.settings = Settings(target=loss * (1 - 1e-12))
            state.progress = beginning(state.settings)
            state.progress.loss = state.progress.best_loss = loss
            state.progress.idle = 98
        return state

    dense, cached = Dense(make()), caches(make(), form)
    assert torch.equal(advance(dense, 5), advance(cached, 5))
    assert dense.state.progress.as_dict() == cached.state.progress.as_dict()
    assert dense.state.progress.status == status
    assert len(advance(cached, 3)) == 0
    for ours, theirs in zip(cached.state.weights, dense.state.weights, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.isfinite().all()


@needs_triton
@pytest.mark.parametrize("form", ["program", "launches"])
def test_a_long_run_is_looked_at_in_between(caches, form, monkeypatch):
    """And its journal, once full, begins anew."""
    monkeypatch.setattr(by_triton, "_LONGEST", 2)
    dense = Dense(on_device(run_of(4, ties=False, **FEW)))
    cached = caches(on_device(run_of(4, ties=False, **FEW)), form)
    lines = len(cached._run.journal)
    assert_alike(dense, cached, 2 * lines + 1)
    assert cached._noted <= lines


@needs_triton
def test_ctrl_c_leaves_whole_iterations_on_caches(caches):
    dense, cached = (
        Dense(on_device(run_of(4, ties=False, **FEW))),
        caches(on_device(run_of(4, ties=False, **FEW)), "program"),
    )
    iterate = cached._iterate

    def interrupted(count):
        iterate(count)
        raise KeyboardInterrupt

    cached._iterate = interrupted
    with pytest.raises(KeyboardInterrupt):
        advance(cached, 3)
    cached._iterate = iterate
    advance(dense, 3)
    assert_alike(dense, cached, 2)


def test_what_has_no_caches_is_dense():
    assert not by_triton.why_not(run_of(0))
    assert "A is trained" in by_triton.why_not(run_of(0, train_a=True))
    assert "torch.float16" in by_triton.why_not(run_of(0, dtype=torch.float16))


def test_repeated_launches_are_counted_where_there_is_no_graph():
    calls = []
    repeated = Repeated(lambda: calls.append(1), torch.device("cpu"))
    for count in (0, 1, 100):
        calls.clear()
        repeated(count)
        assert len(calls) == count


@needs_compiler
@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")
@pytest.mark.parametrize("options", [{}, {"step": "power"}, {"loss": "cross_entropy"}], ids=["", "power", "entropy"])
@pytest.mark.parametrize("N", [300, 20_000], ids=["program", "graph"])
def test_a_gpu_goes_through_the_iterates_of_the_cpu(options, N):
    sizes: dict[str, Any] = {"N": N, "p": 40, "q": 30, "K": 10, "watched": 200, "ties": False, **options}
    ours, theirs = by_triton.Cached(on_device(run_of(7, **sizes)), activate), Sparse(run_of(7, **sizes), "winners")
    if options.get("loss") == "cross_entropy":  # exp and log are each library's own
        torch.testing.assert_close(advance(ours, 40), advance(theirs, 40), rtol=1e-6, atol=0)
        return
    for iterations in (1, 40, 150):  # launches, one graph, several
        assert torch.equal(advance(ours, iterations), advance(theirs, iterations))
        assert ours.state.progress.as_dict() == theirs.state.progress.as_dict()
        for iterate in ("weights", "best", "best_right"):
            for x, y in zip(getattr(ours.state, iterate), getattr(theirs.state, iterate), strict=True):
                assert torch.equal(x.cpu(), y), iterate


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
    both = loss_gradients(f.expand(2, 4), torch.tensor([3, 1]), Settings())
    assert both == [[(1, 1.0), (3, -1.0)], [(1, -1.0), (2, 1.0)]]
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
