"""The dispatcher is left out only where nobody would notice."""

import ctypes
import functools

import pytest
import torch
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from tropigrad import autotune
from tropigrad.kernels import backend, eager, native, tropical_matmul
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


@pytest.fixture(params=["python", "cpp"])
def front(request, monkeypatch):
    """Who remembers: Python, or eager.cpp."""
    monkeypatch.setattr(eager, "_use_compiled", lambda: None)
    monkeypatch.setattr(eager, "_front", eager._python)
    if request.param == "cpp" and not eager.compile():
        pytest.skip("no C++ compiler, or no headers of Python's")
    eager._front.forget()
    yield request.param
    autotune.reload()


remembers = pytest.mark.usefixtures("front")


@remembers
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


@remembers
@pytest.mark.parametrize("semiring", ["max_plus", "max_times"])
@pytest.mark.parametrize("shapes", [((3, 4), (4, 2)), ((2, 3, 4), (4, 2)), ((2, 3, 4), (2, 4, 2))])
def test_a_call_seen_before_has_gradients_of_every_order(shapes, semiring):
    product = functools.partial(tropical_matmul, semiring=semiring)
    for needs in ((True, True), (True, False), (False, True)):
        for _ in range(2):
            a, b = (torch.randn(s, dtype=torch.double, requires_grad=n) for s, n in zip(shapes, needs, strict=True))
            assert torch.autograd.gradcheck(product, (a, b))
            assert torch.autograd.gradgradcheck(product, (a, b))


@remembers
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


@remembers
def test_a_call_seen_before_obeys_a_forced_backend_and_reload():
    tropical_matmul(A, B)
    with backend.forcing("gluon"), pytest.raises(RuntimeError, match="cannot run"):
        tropical_matmul(A, B)
    options = "tropical_matmul", "max_plus", 1.0, False, "propagate", None
    assert (eager.recall(options, (A, B)) is None) == bool(backend.why_off("cpp", A.device))
    autotune.reload()
    assert eager.recall(options, (A, B)) is None


def answer(*tensors):
    return 42


@remembers
def test_what_a_call_depends_on_tells_calls_apart():
    x, options = torch.randn(4, 6), ("op", 1.0, None)
    eager.remember(answer, options, (x, x))
    assert (
        eager.recall(("".join(["o", "p"]), float("1"), None), (torch.randn(4, 6), x)) is answer
    )  # equal, not the same
    others = {
        "options": (("op", 2.0, None), (x, x)),
        "shape": (options, (x, x[:3])),
        "strides": (options, (x, torch.randn(6, 4).T)),
        "dtype": (options, (x, x.double())),
        "tensors": (options, (x,)),
        "gradient": (options, (x, x.clone().requires_grad_())),
    }
    assert {name for name, other in others.items() if eager.recall(*other) is not None} == set()
    with torch.no_grad():
        assert eager.recall(*others["gradient"]) is answer
    with torch.inference_mode():
        assert eager.recall(options, (x * 2, x)) is answer
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        assert eager.recall(options, (x, x)) is None
    finally:
        torch.set_num_threads(before)
    assert eager.recall(options, (x, x)) is answer


@remembers
def test_nothing_is_recalled_or_remembered_where_somebody_looks():
    x = torch.randn(3)
    looked_at = {
        "mode": Seen,
        "profiler": lambda: torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True),
        "tangents": forward_ad.dual_level,
        "config": autotune.recorded,
        "backend": lambda: backend.forcing("torch"),
        "backend everywhere": lambda: backend.forcing("torch", everywhere=True),
        "device": lambda: torch.device("meta"),
    }
    for name, block in looked_at.items():
        with block():
            eager.remember(answer, (name,), (x,))
            assert eager.recall((name,), (x,)) is False, name
        assert eager.recall((name,), (x,)) is None, name
    for other in (
        x.as_subclass(Labelled),
        x.to("meta"),
        x.to_sparse(),
        torch.imag(torch.zeros(3, dtype=torch.cfloat).conj()),
    ):
        assert eager.recall(("op",), (other,)) is False


@remembers
def test_calls_seen_before_do_not_pile_up():
    for n in range(eager.MOST_CALLS + 1):
        eager.remember(answer, (n,), (A,))
    assert eager.recall((0,), (A,)) is None
    assert eager.recall((eager.MOST_CALLS,), (A,)) is answer


@remembers
@pytest.mark.skipif(bool(why := native.why_no_compiler()), reason=why)
def test_a_prepared_call_gives_what_the_kernel_wrote_and_raises_what_it_reports(tmp_path):
    source = tmp_path / "halves.cpp"
    source.write_text(
        """#include <cstdint>
        extern "C" int halves(const int64_t* n, const float* x, float* half, int* doubled, float* unwanted) {
          if (unwanted != nullptr) return 8;
          for (int64_t i = 0; i < *n; ++i) half[i] = x[i] / 2;
          if (doubled != nullptr) for (int64_t i = 0; i < *n; ++i) doubled[i] = x[i] * 2;
          return x[0] < 0 ? 7 : 0;
        }"""
    )
    library = native.library(source)
    assert library is not None
    halves = library.halves
    halves.argtypes = [ctypes.c_void_p] * 5

    def check(status: int) -> None:
        raise ArithmeticError(f"status {status}")

    floats, integers = native.shape_only((3,), torch.float32), native.shape_only((3,), torch.int32)
    x = torch.tensor([1.0, 2.0, 3.0])
    one = eager.prepared(halves, native.integers(3), (floats, None, None), check)
    assert torch.equal(one(x), x / 2)
    two = eager.prepared(halves, native.integers(3), (floats, integers, None), check)
    assert [y.tolist() for y in two(x)] == [[0.5, 1.0, 1.5], [2, 4, 6]]
    with pytest.raises(ArithmeticError, match="status 7"):
        one(-x)
    with pytest.raises(eager.NotPlain):
        one(native.shape_only((3,), torch.float32))


def test_a_thousand_recalled_calls_have_it_compiled_in_the_background_once(front, monkeypatch):
    asked = []
    monkeypatch.setattr(native, "in_background", asked.append)
    monkeypatch.setattr(eager._python, "recalled", 0)
    eager.remember(answer, ("op",), (A,))
    for _ in range(2 * eager.CALLS_BEFORE_COMPILING + 1):
        assert eager.recall(("op",), (A,)) is answer
    assert asked == ([eager.compile] if front == "python" else [])


def test_people_are_told_who_recalls_and_why(front, monkeypatch):
    if front == "cpp":
        assert eager.who_answers() == "C++"
        return
    assert eager.who_answers().startswith("Python")
    monkeypatch.setattr(native, "has_python_headers", lambda: False)
    monkeypatch.setattr(native, "why_no_compiler", lambda: "")
    assert "python3-dev" in eager.who_answers()
