"""The mean of the worst share of the samples: F, its subgradient, and iterates that every memory leaves alike."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tropigrad.optim.worst_sample import Dense, Settings, Sparse
from tropigrad.optim.worst_sample.definition import STATIONARY, mass_of

from .test_iterations import MEMORIES, advance, assert_bounds_hold, assert_same, needs_compiler, run_of
from .test_subgradient import MARGIN, begun, blobs, equal, equal_weights

N = 60  # of run_of
SHARES = (1.0, 0.5, 0.1, 0.03, 0.01, 1 / N)


def losses_of(model, x, y, loss):
    f = model(x)
    if loss == "cross_entropy":
        return torch.nn.functional.cross_entropy(f, y, reduction="none")
    rivals = (f + MARGIN).scatter(1, y[:, None], -math.inf).max(dim=1).values
    return (rivals - f.gather(1, y[:, None]).squeeze(1)).relu()


# ------------------------------------------------------------------------------------------------ the definition


@pytest.mark.parametrize("loss", ["hinge", "cross_entropy"])
@pytest.mark.parametrize("alpha", SHARES)
def test_the_subgradient_is_autograd_s(loss, alpha):
    """A step of known length, beside autograd of the sorted losses' weighted mean through max over a dimension."""
    for seed in range(4):
        options = {"loss": loss, "train_a": True, "step": "sqrt", "length": 1.0, "alpha": alpha}
        ties = loss == "hinge"  # losses that are equal but for another logarithm's rounding have another order
        state = run_of(seed, watched=0, dtype=torch.float64, ties=ties, **options)
        weights = [w.clone().requires_grad_() for w in state.weights]
        a, w1, w2 = weights
        u = (torch.nn.functional.linear(state.samples.x, a)[:, None, :] + w1).min(dim=2).values
        f = (u[:, None, :] + w2).max(dim=2).values
        labels = state.samples.y.long()
        if loss == "hinge":
            rivals = (f + 1.0).scatter(1, labels[:, None], -math.inf).max(dim=1).values
            excess = rivals - f.gather(1, labels[:, None]).squeeze(1)
            losses = torch.where(excess > 0, excess, 0.0)
        else:
            losses = torch.nn.functional.cross_entropy(f, labels, reduction="none")
        mass = max(1.0, alpha * N)
        shares = (mass - torch.arange(N, dtype=torch.float64)).clamp(0, 1)
        objective = (losses.sort(descending=True, stable=True).values * shares).sum() / mass
        expected = torch.autograd.grad(objective, weights)
        norm = math.sqrt(sum(g.square().sum().item() for g in expected))
        before = [w.clone() for w in state.weights]
        dense = Dense(state)
        dense.run(0, torch.zeros(0))
        assert state.progress.loss == pytest.approx(objective.item(), rel=1e-14)
        dense.run(1, torch.zeros(1, dtype=torch.float64))
        for now, then, g in zip(state.weights, before, expected, strict=True):
            torch.testing.assert_close(now, then - g / norm, atol=1e-11, rtol=0)


@pytest.mark.parametrize(
    ("alpha", "samples", "mass"),
    [
        (None, 60, 1.0),
        (1.0, 60, 60.0),
        (0.01, 60, 1.0),
        (0.03, 60, 1.8),
        (0.07, 100, 7.0),  # 7.000000000000001 in float64
        (1 / 49, 49, 1.0),
    ],
)
def test_how_many_samples_are_the_worst_share(alpha, samples, mass):
    assert mass_of(Settings(alpha=alpha), samples) == pytest.approx(mass, rel=1e-15)
    if mass == round(mass):
        assert mass_of(Settings(alpha=alpha), samples) == mass


@pytest.mark.parametrize("loss", ["hinge", "cross_entropy"])
@pytest.mark.parametrize("train_a", [False, True], ids=["A fixed", "A trained"])
@pytest.mark.parametrize("alpha", [1 / N, 0.001, 1e-300])
def test_a_share_of_one_sample_is_the_worst_sample(loss, train_a, alpha):
    for seed in range(4):
        worst, share = (Dense(run_of(seed, loss=loss, train_a=train_a, alpha=of)) for of in (None, alpha))
        assert torch.equal(advance(worst, 60), advance(share, 60))
        assert_same(worst, share)


def test_subgradients_that_cancel_end_the_run():
    """Two equal samples of different classes, scored alike: each step of one is undone by the other."""
    state = run_of(0, N=2, K=2, watched=0, alpha=1.0)
    state.samples.x[1] = state.samples.x[0]
    state.samples.y.copy_(torch.tensor([0, 1]))
    before = copy.deepcopy(state.weights)
    dense = Dense(state)
    advance(dense, 5000)
    assert state.progress.status == STATIONARY
    assert state.progress.loss == 1.0  # Δ, as of scores that are equal
    assert not all(torch.equal(ours, theirs) for ours, theirs in zip(state.weights, before, strict=True))


# ------------------------------------------------------------------------------------------------ caches


VARIANTS = {
    "hinge": {},
    "cross-entropy": {"loss": "cross_entropy"},
    "sqrt": {"step": "sqrt"},
    "power": {"step": "power", "length": 1.5},
    "target": {"target": 0.5, "margin": 3.0},
}
SIZES = {
    "few leaves": {},
    "many leaves": {"p": 70, "q": 33, "K": 7},  # that are entered together
    "several blocks": {"N": 1300, "p": 70, "q": 33, "watched": 600},
    "float64": {"p": 40, "q": 21, "dtype": torch.float64},
}


@needs_compiler
@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("alpha", SHARES)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("ties", [True, False], ids=["ties", "any numbers"])
def test_iterates_equal_the_definition_bit_for_bit(memory, alpha, sizes, ties):
    options = {**sizes, "ties": ties, "alpha": alpha}
    dense, sparse = Dense(run_of(1, **options)), Sparse(run_of(1, **options), memory)
    for iterations in (1, 1, 7, 20):
        assert torch.equal(advance(dense, iterations), advance(sparse, iterations))
        assert_same(dense, sparse)


@needs_compiler
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("ties", [True, False], ids=["ties", "any numbers"])
def test_every_step_equals_the_definition_bit_for_bit(options, ties):
    for seed in range(4):
        for alpha in (0.5, 0.03):
            both = {**options, "ties": ties, "alpha": alpha, "p": 40, "q": 21}
            dense, sparse = Dense(run_of(seed, **both)), Sparse(run_of(seed, **both), "winners")
            for iterations in (1, 40):
                assert torch.equal(advance(dense, iterations), advance(sparse, iterations))
                assert_same(dense, sparse)


@needs_compiler
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    p=st.integers(1, 60),
    q=st.integers(1, 40),
    K=st.integers(2, 5),
    alpha=st.floats(1 / 64, 1),
    ties=st.booleans(),
)
def test_any_network(seed, p, q, K, alpha, ties):
    sizes = {"N": 40, "p": p, "q": q, "K": K, "alpha": alpha, "ties": ties}
    dense = Dense(run_of(seed, **sizes))
    others = [Sparse(run_of(seed, **sizes), memory) for memory in MEMORIES]
    trace = advance(dense, 12)
    for other in others:
        assert torch.equal(trace, advance(other, 12))
        assert_same(dense, other)


@needs_compiler
def test_going_back_to_the_best_is_exact():
    """Contradictory labels: the level is raised, and the iterates go back, which moves most weights."""
    runs = []
    for make in (Dense, lambda state: Sparse(state, "winners")):
        state = run_of(5, ties=False, watched=9, alpha=0.2, p=40, q=21)
        state.samples.x[30:40] = state.samples.x[:10]
        state.samples.y[30:40] = (state.samples.y[:10] + 1) % 3
        runs.append(make(state))
    dense, sparse = runs
    assert torch.equal(advance(dense, 300), advance(sparse, 300))
    assert dense.state.progress.raises >= 2
    assert_same(dense, sparse)


@needs_compiler
@pytest.mark.parametrize("ties", [True, False], ids=["ties", "any numbers"])
def test_what_is_kept_of_the_rivals_holds(ties):
    """No leaf but the winner beats the first bound, none but winner and runner-up the second."""
    sparse = Sparse(run_of(6, N=600, p=60, q=30, ties=ties, alpha=0.3), "winners")
    for _ in range(5):
        advance(sparse, 5)
        assert_bounds_hold(sparse)


@needs_compiler
def test_any_number_of_threads_leaves_the_same_bits():
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            runs.append(Sparse(run_of(3, N=3000, p=40, q=20, ties=False, alpha=0.2), "winners"))
            advance(runs[-1], 25)
    finally:
        torch.set_num_threads(before)
    assert_same(*runs)


# ------------------------------------------------------------------------------------------------ the optimizer


@pytest.mark.parametrize("loss", ["hinge", "cross_entropy"])
@pytest.mark.parametrize("alpha", [1.0, 0.1, 0.03])
def test_the_loss_is_the_mean_of_the_worst_share(loss, alpha):
    model, optimizer = begun(loss=loss, alpha=alpha)
    first = optimizer.loss
    optimizer.step(60)
    x, y = blobs()
    losses = losses_of(model, x, y, loss).double().sort(descending=True).values
    mass = alpha * len(x)
    shares = (mass - torch.arange(len(x), dtype=torch.float64)).clamp(0, 1)
    torch.testing.assert_close(optimizer.loss, (losses * shares).sum().item() / mass, rtol=1e-5, atol=1e-6)
    assert optimizer.best.loss < 0.8 * first


@pytest.mark.parametrize("train_A", [False, True], ids=["A fixed", "A trained"])
def test_a_resumed_run_and_a_copy_go_through_the_same_iterates(train_A):
    x, y = blobs()
    options = {"alpha": 0.1, "train_A": train_A, "validation": (x[:9], y[:9])}
    model, whole = begun(contradictory=True, **options)
    whole.step(11)
    stored, twin = whole.state_dict(), copy.deepcopy(whole)
    expected = whole.step(20)
    other, resumed = begun(contradictory=True, **options)
    resumed.load_state_dict(stored)
    assert torch.equal(resumed.step(20), expected)
    assert equal(model, other)
    assert torch.equal(twin.step(20), expected)
    assert equal(model, twin.model)
    assert equal_weights(twin.model, model.state_dict())


def test_a_state_without_a_share_is_of_the_worst_sample():
    """States that were saved before there were shares."""
    _, optimizer = begun()
    stored = optimizer.state_dict()
    del stored["settings"]["alpha"]
    optimizer.load_state_dict(stored)
    _, other = begun(alpha=0.5)
    with pytest.raises(ValueError, match=r"alpha is None there and 0\.5 here"):
        other.load_state_dict(stored)


@pytest.mark.parametrize("alpha", [0.0, -0.1, 1.0001, math.nan, math.inf], ids=repr)
def test_what_is_no_share_is_refused(alpha):
    with pytest.raises(ValueError, match=f"alpha is {alpha}; expected a share of the samples, more than 0 and at most"):
        begun(alpha=alpha)


@pytest.mark.parametrize("alpha", ["all", True], ids=repr)
def test_what_is_no_number_is_refused(alpha):
    with pytest.raises(TypeError, match=f"alpha is {alpha!r}; expected a number"):
        begun(alpha=alpha)
