"""The dispatcher is left out only where nobody would notice."""

import functools

import pytest
import torch
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from tropigrad import autotune
from tropigrad.kernels import backend, eager, tropical_matmul
from tropigrad.kernels.eager import is_unobserved
from tropigrad.kernels.tropical_matmul.definition import tropical_matmul_ref

A, B = torch.tensor([[1.0, 2.0], [3.0, -4.0]]), torch.tensor([[0.5, 1.0], [2.0, -1.0]])
EXPECTED = (A[:, :, None] + B).amax(1)


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


class Labelled(torch.Tensor):
    pass


def test_an_ordinary_call_is_unobserved():
    assert is_unobserved(A, B)
    assert is_unobserved(torch.nn.Parameter(A))
    with torch.no_grad():
        assert is_unobserved(A)
    with torch.inference_mode():
        assert is_unobserved(A, B * 2)
    assert is_unobserved(torch.ones(2, 2).T, torch.ones(1).expand(3, 3))


@pytest.mark.parametrize("requires_grad", [False, True], ids=["values", "training"])
def test_a_dispatch_mode_sees_the_operator(requires_grad):
    with Seen() as seen:
        c = tropical_matmul(A.clone().requires_grad_(requires_grad), B)
    assert "tropigrad::tropical_matmul" in seen.names
    assert torch.equal(c, EXPECTED)


def test_the_backward_is_seen_too():
    a = A.clone().requires_grad_()
    c = tropical_matmul(a, B)
    with Seen() as seen:
        c.sum().backward()
    assert "tropigrad::tropical_winners_scatter" in seen.names


def test_a_profiler_sees_the_operator():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        tropical_matmul(A, B)
    assert "tropigrad::tropical_matmul" in {event.key for event in profile.key_averages()}


def test_a_trace_holds_the_operator():
    traced = make_fx(lambda a, b: tropical_matmul(a, b))(A, B)
    assert any("tropigrad.tropical_matmul" in str(node.target) for node in traced.graph.nodes)


def test_a_lazy_negation_is_carried_out():
    negated = torch.imag(torch.complex(torch.zeros(2, 2), -A).conj())
    assert negated.is_neg()
    assert not is_unobserved(negated)
    assert torch.equal(tropical_matmul(negated, B), EXPECTED)


def test_a_subclass_stays_one():
    labelled = A.as_subclass(Labelled)
    assert not is_unobserved(labelled)
    assert type(tropical_matmul(labelled, B)) is Labelled


def test_a_default_device_moves_nothing():
    with torch.device("meta"):
        assert torch.equal(tropical_matmul(A, B), EXPECTED)


def test_a_tangent_is_refused_not_dropped():
    with forward_ad.dual_level(), pytest.raises(NotImplementedError):
        tropical_matmul(forward_ad.make_dual(A, torch.ones_like(A)), B)


def test_transforms_and_fakes_are_observed():
    answers = []
    torch.vmap(lambda x: answers.append(is_unobserved(x)) or x)(A)
    with torch._subclasses.FakeTensorMode():
        answers.append(is_unobserved(torch.ones(2)))
    assert answers == [False, False]


# ------------------------------------------------------------------------------------------------ calls seen before


@pytest.mark.parametrize("return_indices", [False, True], ids=["values", "indices"])
@pytest.mark.parametrize("semiring", ["max_plus", "min_plus", "max_times"])
@pytest.mark.parametrize(
    "shapes", [((5, 7), (7, 3)), ((2, 5, 7), (7, 3)), ((2, 5, 7), (2, 7, 3)), ((2, 5, 7), (1, 7, 3))]
)
def test_a_call_seen_before_gives_what_a_new_one_would(shapes, semiring, return_indices):
    for _ in range(3):
        a, b = (torch.randint(-3, 4, shape).float() for shape in shapes)
        values, winners = tropical_matmul_ref(a, b, semiring=semiring)
        got = tropical_matmul(a, b, semiring=semiring, return_indices=return_indices)
        assert torch.equal(got.values if return_indices else got, values)
        assert not return_indices or torch.equal(got.indices, winners)


@pytest.mark.parametrize("semiring", ["max_plus", "max_times"])
@pytest.mark.parametrize("shapes", [((3, 4), (4, 2)), ((2, 3, 4), (4, 2)), ((2, 3, 4), (2, 4, 2))])
def test_a_call_seen_before_has_gradients_of_every_order(shapes, semiring):
    product = functools.partial(tropical_matmul, semiring=semiring)
    for needs in ((True, True), (True, False), (False, True)):
        for _ in range(2):
            a, b = (torch.randn(s, dtype=torch.double, requires_grad=n) for s, n in zip(shapes, needs, strict=True))
            assert torch.autograd.gradcheck(product, (a, b))
            assert torch.autograd.gradgradcheck(product, (a, b))


def test_a_call_seen_before_is_not_mistaken_for_one_that_somebody_watches():
    for _ in range(2):
        tropical_matmul(A, B)
    with Seen() as seen:
        tropical_matmul(A, B)
    assert "tropigrad::tropical_matmul" in seen.names
    negated = torch.imag(torch.complex(torch.zeros(2, 2), -A).conj())
    assert torch.equal(tropical_matmul(negated, B), EXPECTED)
    assert torch.equal(torch.vmap(tropical_matmul)(A.expand(3, 2, 2), B.expand(3, 2, 2)), EXPECTED.expand(3, 2, 2))
    with torch.autocast("cpu"):
        assert tropical_matmul(A, B).dtype == torch.float32
    with pytest.raises(TypeError, match="layout"):
        tropical_matmul(A.to_sparse(), B)
    with autotune.recorded() as choices:
        tropical_matmul(A, B)
    assert choices
    assert torch.equal(tropical_matmul(torch._efficientzerotensor((2, 2)), B), B.amax(0).expand(2, 2))  # pyright: ignore[reportPrivateImportUsage]


def test_a_call_seen_before_obeys_a_forced_backend_and_reload():
    tropical_matmul(A, B)
    with backend.forcing("gluon"), pytest.raises(RuntimeError, match="cannot run"):
        tropical_matmul(A, B)
    label = eager.label(A, B, "tropical_matmul", "max_plus", 1.0, False, "propagate", None)
    assert (eager.recall(label) is None) == bool(backend.why_off("cpp", A.device))
    autotune.reload()
    assert eager.recall(label) is None


def test_calls_seen_before_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(eager, "MOST_CALLS", 3)
    for n in range(1, 9):
        tropical_matmul(A, torch.zeros(2, n))
    assert len(eager._calls) <= 3
