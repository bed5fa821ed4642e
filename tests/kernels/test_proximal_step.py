"""What is special to the proximal steps; tests/conformance asks them for every promise."""

import math

import pytest
import torch

from tropigrad.kernels.proximal_step import held_step, multiobjective_step, multiobjective_step_ref
from tropigrad.kernels.runtime import backend

BACKENDS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            bool(backend.why_off(name, torch.device("cpu"))), reason=backend.why_off(name, torch.device("cpu")) or "on"
        ),
    )
    for name in ("cpp", "triton", "torch")
]
SHAPES = ((20, 30), (40,), (10, 40), ())


@pytest.fixture(params=BACKENDS)
def every_backend(request):
    with backend.forcing(request.param):
        yield request.param


def drawn(shapes=SHAPES, dtype=torch.float64, lam=0.1, seed=0):
    """Weights, some of them 0, and slopes about −λ sign w."""
    generator = torch.Generator().manual_seed(seed)

    def normal(shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    p = [0.05 * normal(shape) * (normal(shape) > -0.5) for shape in shapes]
    d = [lam * (3 * normal(shape) - w.sign()) for shape, w in zip(shapes, p, strict=True)]
    return [x.to(dtype) for x in p], [x.to(dtype) for x in d]


def zeros() -> torch.Tensor:
    return torch.zeros(4, dtype=torch.float64)


def step(p, d, x, state, *, h=0.01, acceleration=2.0, penalized=None):
    multiobjective_step(p, d, x, state, h=h, acceleration=acceleration, penalized=penalized or [True] * len(p))


def slack(p, y, d) -> float:
    """⟨d, y − p⟩ − (‖y‖₁ − ‖p‖₁)"""
    return sum((((b - a) * c).sum() - (b.abs() - a.abs()).sum()).item() for a, b, c in zip(p, y, d, strict=True))


def test_both_objectives_are_promised_the_same_decrease(every_backend):
    p, d = drawn()
    before, x, state = [w.clone() for w in p], [torch.full_like(w, math.nan) for w in p], zeros()
    step(p, d, x, state)
    k, alpha, lam, size = state.tolist()
    assert k == 1
    assert 0 < alpha < 1
    assert lam == pytest.approx((1 - alpha) / alpha, rel=1e-12)
    assert size == pytest.approx(sum(w.abs().sum().item() for w in x), rel=1e-12)
    decrease = sum(w.abs().sum().item() for w in before) - size
    assert decrease > 0
    assert abs(slack(before, x, d)) < 1e-7 * decrease
    assert all(torch.equal(a, b) for a, b in zip(p, x, strict=True))  # the first step has no momentum, nor reads x
    for a, b, slope in zip(before, x, d, strict=True):
        u = a - 0.01 * alpha * slope
        expected = u.sign() * (u.abs() - 0.01 * (1 - alpha)).relu()
        torch.testing.assert_close(b, expected, rtol=0, atol=1e-9)


def test_a_list_is_its_tensors_in_a_row(every_backend):
    p, d = drawn()
    x = [w + 0.01 for w in p]
    flat = [[torch.cat([w.flatten() for w in each])] for each in (p, d, x)]
    state, of_flat = zeros(), zeros()
    for _ in range(3):
        step(p, d, x, state)
        step(flat[0], flat[1], flat[2], of_flat)
    torch.testing.assert_close(state, of_flat, rtol=1e-7, atol=0)
    for each, (row,) in ((p, flat[0]), (x, flat[2])):
        torch.testing.assert_close(torch.cat([w.flatten() for w in each]), row, rtol=0, atol=1e-9)


def test_what_is_not_penalized_takes_a_plain_step(every_backend):
    p, d = drawn()
    before, x, state = [w.clone() for w in p], [w.clone() for w in p], zeros()
    step(p, d, x, state, penalized=[True, False, True, True])
    alpha = state[1].item()
    torch.testing.assert_close(x[1], before[1] - 0.01 * alpha * d[1], rtol=0, atol=1e-15)
    counted = [at for at in range(4) if at != 1]
    assert state[3].item() == pytest.approx(sum(x[at].abs().sum().item() for at in counted), rel=1e-12)
    of_rest = ((x[1] - before[1]) * d[1]).sum().item()
    total = of_rest + slack(*([each[at] for at in counted] for each in (before, x, d)))
    assert abs(total) < 1e-7 * abs(of_rest)


def test_zero_is_a_fixed_point(every_backend):
    _, d = drawn()
    p, x, state = [torch.zeros_like(w) for w in d], [torch.zeros_like(w) for w in d], zeros()
    for _ in range(2):
        step(p, d, x, state)
        assert not any(w.any() for w in (*p, *x))
        assert state[1:].tolist() == [0, math.inf, 0]


def test_a_critical_point_is_a_fixed_point(every_backend):
    """|d| ≤ λ where p is 0, d = −λ sign p elsewhere."""
    p, d = drawn()
    lam = 0.25
    d = [torch.where(w == 0, g.clamp(-lam, lam), -lam * w.sign()) for w, g in zip(p, d, strict=True)]
    before, x, state = [w.clone() for w in p], [w.clone() for w in p], zeros()
    step(p, d, x, state, h=1e-3)
    assert state[2].item() == pytest.approx(lam, rel=1e-6)
    for w, a in zip(p, before, strict=True):
        torch.testing.assert_close(w, a, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("lam", [1e-6, 1e-3, 10.0])
def test_the_weight_is_found(every_backend, lam, dtype):
    """Where all slopes are −λ sign p the root is λ itself; where they scatter widely it is the definition's."""
    p, _ = drawn(((500,),), dtype)
    p = [w + 0.1 * w.sign() + 0.1 * (w == 0) for w in p]
    d = [-lam * w.sign() for w in p]
    state = zeros()
    step([w.clone() for w in p], d, [w.clone() for w in p], state, h=1e-3)
    assert state[2].item() == pytest.approx(d[0].abs()[0].item(), rel=1e-7)
    generator = torch.Generator().manual_seed(1)
    d = [g + 20 * lam * torch.randn(g.shape, generator=generator).to(dtype) * (1 - 0.1) for g in d]
    state, expected = zeros(), zeros()
    step([w.clone() for w in p], d, [w.clone() for w in p], state, h=1e-3)
    multiobjective_step_ref([w.clone() for w in p], d, [w.clone() for w in p], expected, [True], 1e-3, 2.0)
    if 0 < expected[2] < math.inf:
        assert state[2].item() == pytest.approx(expected[2].item(), rel=1e-6)
    else:
        assert state[2] == expected[2]


def test_the_ends_of_alpha(every_backend):
    p = [torch.tensor([1.0, -2.0, 0.5])]
    state, x = zeros(), [p[0].clone()]
    step(p, [p[0].sign() / 2], x, state, h=0.1)  # as L falls so does ‖·‖₁, faster
    assert state[:3].tolist() == [1, 1, 0]
    torch.testing.assert_close(x[0], torch.tensor([0.95, -1.95, 0.45]))
    p, x = [torch.tensor([1.0, -2.0, 0.5])], [torch.zeros(3)]
    step(p, [torch.zeros(3)], x, state, h=0.1)  # L is critical
    assert state[1:3].tolist() == [1, 0]
    assert x[0].tolist() == [1.0, -2.0, 0.5]
    p, x, state = [torch.zeros(3), torch.ones(2)], [torch.zeros(3), torch.ones(2)], zeros()
    step(p, [torch.ones(3), torch.ones(2)], x, state, h=0.1, penalized=[True, False])  # ‖·‖₁ is at its least
    assert state[1:3].tolist() == [0, math.inf]
    assert [w.tolist() for w in p] == [[0, 0, 0], [1, 1]]
    step(p, [torch.ones(3), torch.ones(2)], x, state, h=0.1, penalized=[True, False])  # and again, from that state
    assert state[1:3].tolist() == [0, math.inf]


def test_the_momentum_and_its_restart(every_backend):
    p, d = drawn()
    x, state = [w.clone() for w in p], zeros()
    step(p, d, x, state)
    step(p, d, x, state)  # k = 1: none yet
    assert all(torch.equal(a, b) for a, b in zip(p, x, strict=True))
    old = [w.clone() for w in x]
    step(p, d, x, state)
    assert state[0] == 3
    c = 1 / (2 + 2)
    for w, new, before in zip(p, x, old, strict=True):
        torch.testing.assert_close(w, new + c * (new - before), rtol=0, atol=1e-15)
    x = [torch.zeros_like(w) for w in x]  # so that the momentum leads away from 0
    step(p, d, x, state)
    assert state[0] == 0
    assert all(torch.equal(a, b) for a, b in zip(p, x, strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_where_a_slope_is_not_finite_nothing_is_written_but_nan_into_state(every_backend, value, place):
    p, d = drawn()
    d[place][3] = value
    x, state = [w + 1 for w in p], torch.tensor([3.0, 0.5, 1.0, 7.0], dtype=torch.float64)
    before = [w.clone() for w in (*p, *x)]
    step(p, d, x, state, penalized=[True, False, True, True])
    assert state.isnan().tolist() == [False, True, True, False]
    assert state[0] == 3
    assert state[3] == 7
    assert all(torch.equal(a, b) for a, b in zip((*p, *x), before, strict=True))
    d[place][3] = 0.0
    step(p, d, x, state, penalized=[True, False, True, True])  # and the next step finds its way
    assert state.isfinite().all()


@pytest.mark.skipif(bool(backend.why_off("cpp", torch.device("cpu"))), reason="no C++ compiler")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_any_number_of_threads_gives_the_same_bits(dtype):
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            p, d = drawn(((300, 501), (4097,), (3,)), dtype)
            x, state = [w.clone() for w in p], zeros()
            for _ in range(4):
                step(p, d, x, state)
            held_step(x, d, [0.1 * w for w in p], h=0.01, lam=0.1, penalized=[True, False, True])
            results.append([*p, *x, state])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_orders_in_memory_and_gradients_of_any_strides(every_backend):
    (w, v), _ = drawn(((6, 4), (2, 3, 4, 5)))
    g = [torch.randn(6, 4).double(), torch.randn(2, 3, 4, 5).double()]
    results = []
    for like in (lambda a: a.clone(), lambda a: a.mT.contiguous().mT):
        p, x = [like(w), like(v)], [w.clone(), v.clone()]  # of the second, x lies otherwise than p
        d = [g[0].repeat_interleave(2, 1)[:, ::2], g[1].expand(2, 3, 4, 5)]
        state = zeros()
        for _ in range(3):
            step(p, d, x, state)
        velocity = [torch.zeros_like(a) for a in p]
        held_step(x, d, velocity, h=0.01, lam=0.1, penalized=[True, True])
        results.append([*p, *x, *velocity, state])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_held_steps_end_at_the_lasso(every_backend):
    """Of ½ ‖w − b‖² + λ ‖w‖₁ the least is at soft(b, λ); what is not penalised ends at b."""
    if every_backend == "triton":
        pytest.skip("hundreds of steps take minutes in Triton's interpreter")
    b = torch.linspace(-1, 1, 41, dtype=torch.float64)
    x, v = [torch.zeros(41).double(), torch.zeros(41).double()], [torch.zeros(41).double(), torch.zeros(41).double()]
    lam = torch.tensor([0.25], dtype=torch.float64)
    for _ in range(600):
        held_step(x, [x[0] - b, x[1] - b], v, h=0.05, lam=lam, momentum=0.9, penalized=[True, False])
    torch.testing.assert_close(x[0], b.sign() * (b.abs() - 0.25).relu(), rtol=0, atol=1e-7)
    assert int((x[0] == 0).sum()) >= 9
    torch.testing.assert_close(x[1], b, rtol=0, atol=1e-7)


def test_a_program_sees_what_was_written(every_backend):
    """Parameters that require gradients are written, their versions count it, and torch.compile takes the step."""
    p, d = drawn(((5, 3), (3,)), torch.float32)
    p = [torch.nn.Parameter(w) for w in p]
    x, state = [w.detach().clone() for w in p], zeros()
    saved = p[0].square().sum()
    step(p, d, x, state)
    assert p[0].requires_grad
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.backward()
