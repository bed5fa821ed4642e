"""Fragility beyond the conformance suite: exact rational arithmetic, ties, what the network says on both sides."""

from __future__ import annotations

import functools
import itertools
import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from tropigrad import autotune
from tropigrad.kernels import feature_fragility
from tropigrad.kernels.feature_fragility import by_cpp
from tropigrad.kernels.runtime import native

NO_COMPILER = native.why_no_compiler()
compiled = pytest.mark.skipif(bool(NO_COMPILER), reason=NO_COMPILER or "there is a compiler")
BACKENDS = ["torch", pytest.param("cpp", marks=compiled)]
KINDS = ["equal slopes", "slopes of their own", "dense", "sparse"]


def network(seed: int, kind: str, numbers: str, N: int = 2, d: int = 2, q: int = 5, K: int = 3) -> tuple[Tensor, ...]:
    """x, A, W1, W2: small integers, of which many are equal, or normal numbers, of all bits or of few."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*size: int) -> Tensor:
        if numbers == "integers":
            return torch.randint(-3, 4, size, generator=generator).double()
        normal = torch.randn(size, generator=generator, dtype=torch.float64)
        return normal if numbers == "normal" else (64 * normal).round() / 64

    diagonal = torch.eye(d, dtype=torch.float64)
    A = {
        "equal slopes": lambda: 2 * torch.cat([diagonal, -diagonal]),
        "slopes of their own": lambda: torch.cat([diagonal * (drawn(d) + 0.5), diagonal * (drawn(d) - 0.5)]),
        "dense": lambda: drawn(2 * d, d),
        "sparse": lambda: drawn(2 * d, d) * (torch.rand(2 * d, d, generator=generator) < 0.4),
    }[kind]()
    return drawn(N, d), A, drawn(q, 2 * d), drawn(K, q)


def classes_of(x: Tensor, A: Tensor, W1: Tensor, W2: Tensor) -> Tensor:
    """What the network says of x [N, d]."""
    u = ((x @ A.T)[:, None] + W1).amin(2)
    return (u[:, None] + W2).amax(2).argmax(1)


def exactly(tensors: tuple[Tensor, ...], n: int, i: int, box=None) -> tuple[float, int]:
    """Change and class of one feature by rational numbers: the network between all crossings of two of its lines."""
    x, A, W1, W2 = tensors
    point, rows, leaves, units = (
        [[Fraction(v) for v in row] for row in tensor.tolist()] for tensor in (x[n : n + 1], A, W1, W2)
    )
    z = [sum(a * b for a, b in zip(row, point[0], strict=True)) for row in rows]
    slopes = [row[i] for row in rows]

    def class_at(delta: Fraction) -> int:
        moved = [height + slope * delta for height, slope in zip(z, slopes, strict=True)]
        u = [min(v + w for v, w in zip(moved, leaf, strict=True)) for leaf in leaves]
        f = [max(v + w for v, w in zip(u, unit, strict=True)) for unit in units]
        return f.index(max(f))

    lines = {
        (z[r] + leaves[j][r] + unit[j], slopes[r]) for unit in units for j in range(len(leaves)) for r in range(len(z))
    }
    crossings = {(b[0] - a[0]) / (a[1] - b[1]) for a, b in itertools.combinations(lines, 2) if a[1] != b[1]}
    nearest, before = [], class_at(Fraction(0))
    for sign in (1, -1):
        room = math.inf
        if box is not None:
            room = Fraction(box[1]) - point[0][i] if sign > 0 else point[0][i] - Fraction(box[0])
        ends = sorted({Fraction(0)} | {sign * at for at in crossings if 0 < sign * at < room})
        beyond = 2 * ends[-1] + 2 if room == math.inf else room
        for end, following in zip(ends, [*ends[1:], beyond], strict=True):
            other = class_at(Fraction(sign * (end + following) / 2))
            if other != before and end < room:
                nearest.append((float(end), sign, other))
                break
    if not nearest:
        return math.inf, -1
    end, sign, other = min(nearest, key=lambda each: each[0])
    return sign * end, other


@functools.cache
def rational(seed: int, kind: str, numbers: str, n: int, i: int, box) -> tuple[float, int]:
    return exactly(network(seed, kind, numbers, q=4), n, i, box)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("numbers", ["integers", "few bits"])
@pytest.mark.parametrize("kind", KINDS)
def test_rational_arithmetic_says_the_same(kind, numbers, name, set_backend):
    set_backend(name)
    finite = 0
    for seed in range(3):
        tensors = network(seed, kind, numbers, q=4)
        for box in (None, (-4.0, 4.0)):
            change, classes = feature_fragility(*tensors, box=box)
            for n, i in itertools.product(*map(range, change.shape)):
                at, other = rational(seed, kind, numbers, n, i, box)
                assert change[n, i].item() == pytest.approx(at, rel=1e-12, abs=1e-12), (seed, n, i, box)
                assert classes[n, i].item() == other, (seed, n, i, box)
                finite += math.isfinite(at)
    assert finite > 1


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_network_changes_its_mind_there_and_not_before(kind, dtype, name, set_backend):
    """A few units in the last place before the change the class is the old one, all the way; behind it the new one."""
    set_backend(name)
    tensors = tuple(t.to(dtype) for t in network(0, kind, "normal", N=20, d=5, q=30, K=4))
    change, classes = feature_fragility(*tensors)
    wide = tuple(t.double() for t in tensors)
    near = 4 * torch.finfo(dtype).eps if dtype == torch.float32 else 1e-9
    n, i = change.isfinite().nonzero().T
    assert len(n) > 50

    def moved(by: torch.Tensor) -> torch.Tensor:
        x = wide[0][n].clone()
        x[torch.arange(len(n)), i] += by
        return classes_of(x, *wide[1:])

    delta, before = change[n, i].double(), classes_of(*wide)[n]
    assert torch.equal(moved(delta * (1 + near)), classes[n, i])
    for share in (1 - near, 0.99, 0.5, 0.1, -0.5, -0.99, near - 1):
        assert torch.equal(moved(share * delta), before), share


@pytest.mark.parametrize("name", BACKENDS)
def test_features_that_change_nothing_are_not_fragile(name, set_backend):
    """No δ of a grid from −50 to 50 turns a sample by a feature that is said to turn none."""
    set_backend(name)
    tensors = network(3, "slopes of their own", "normal", N=30, d=4, q=12, K=3)
    change, _ = feature_fragility(*tensors, box=(-4.0, 4.0))
    n, i = (~change.isfinite()).nonzero().T
    assert len(n) > 5
    before = classes_of(*tensors)[n]
    for value in torch.linspace(-4, 4, 161, dtype=torch.float64):
        x = tensors[0][n].clone()
        x[torch.arange(len(n)), i] = value
        assert torch.equal(classes_of(x, *tensors[1:]), before), value


@pytest.mark.parametrize("name", BACKENDS)
def test_ties(name, set_backend):
    """Two medoids on a line, x between them: at a tie the lower class holds, and the sign says who lets go."""
    set_backend(name)
    A = torch.tensor([[1.0], [-1.0]])
    W1 = torch.tensor([[-0.0, 0.0], [-2.0, 2.0]])  # −|x|, −|x − 2|
    apart = torch.tensor([[0.0, -9.0], [-9.0, 0.0]])
    change, classes = feature_fragility(torch.tensor([[1.0], [0.0], [2.0]]), A, W1, apart)
    assert change.flatten().tolist() == [0, 1, -1]
    assert classes.flatten().tolist() == [1, 1, 0]
    change, classes = feature_fragility(torch.tensor([[1.0]]), A, W1, apart.flip(0))
    assert change.item() == 0
    assert math.copysign(1, change.item()) == -1, "only a fall lets class 0, of medoid 2, go"
    assert classes.item() == 1
    change, _ = feature_fragility(torch.tensor([[0.0]]), A, W1, apart, box=(0, 1))
    assert change.item() == math.inf, "at the bound the two are equal, and nothing lies beyond it"
    # both ways equally far: up counts
    W1 = torch.tensor([[-0.0, 0.0], [-2.0, 2.0], [2.0, -2.0]])
    change, classes = feature_fragility(
        torch.zeros(1, 1), A, W1, torch.tensor([[0.0, -9, -9], [-9, -9, 0], [-9, 0, -9]])
    )
    assert (change.item(), classes.item()) == (1, 2)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_touch_at_one_point_is_no_change(name, set_backend):
    set_backend(name)
    A = torch.tensor([[1.0], [-1.0], [0.0]])
    flat = [math.inf, math.inf]
    W1 = torch.tensor([[*flat, 0.0], [-1.0, 1.0, 9.0]])  # 0, and −|x − 1|, which reaches it at 1 alone
    touched, own = torch.tensor([[-9.0, 0.0], [0.0, -9.0]]), torch.zeros(1, 1)
    change, classes = feature_fragility(own, A, W1, touched)
    assert (change.item(), classes.item()) == (math.inf, -1)
    W1[1, 1], W1[1, 2] = 2.0, 0.0  # flat at 0 from 1 to 2: there the lower class has it, and the higher has not
    W1[1, 0] = -1.0
    change, classes = feature_fragility(own, A, W1, touched)
    assert (change.item(), classes.item()) == (1, 0)
    change, _ = feature_fragility(own, A, W1, touched.flip(0))
    assert change.item() == math.inf


@compiled
@pytest.mark.parametrize("kind", KINDS)
def test_cpp_as_torch_on_a_wider_network(kind, set_backend):
    tensors = network(1, kind, "normal", N=40, d=16, q=90, K=10)
    for box in (None, (-5.0, 5.0)):
        set_backend("torch")
        expected = feature_fragility(*tensors, box=box)
        set_backend("cpp")
        result = feature_fragility(*tensors, box=box)
        torch.testing.assert_close(result.change, expected.change, rtol=1e-11, atol=1e-11)
        assert torch.equal(result.classes, expected.classes)


@compiled
@pytest.mark.parametrize("kind", KINDS)
def test_every_config_gives_the_same_bits(kind, set_backend):
    set_backend("cpp")
    tensors = network(2, kind, "normal", N=60, d=12, q=40, K=5)
    expected = feature_fragility(*tensors)
    for config in by_cpp.FRAGILITY.space:
        with autotune.override(by_cpp.FRAGILITY.name, config):
            result = feature_fragility(*tensors)
        assert torch.equal(result.change, expected.change), config
        assert torch.equal(result.classes, expected.classes), config


@pytest.mark.parametrize("name", BACKENDS)
def test_scaled_by_a_power_of_two(name, set_backend):
    set_backend(name)
    x, A, W1, W2 = network(5, "slopes of their own", "normal", N=9, d=4, q=12)
    change, classes = feature_fragility(x, A, W1, W2)
    scaled = feature_fragility(8 * x, A, 8 * W1, 8 * W2)
    assert torch.equal(scaled.change, 8 * change)
    assert torch.equal(scaled.classes, classes)
