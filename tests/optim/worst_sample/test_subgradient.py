"""WorstSampleSubgradient: what it reaches, what it keeps, exact resumption, and what bad input gets."""

import copy
import io
import json
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tropigrad.kernels.runtime import backend, native
from tropigrad.nn import LinearMinMax, WorstSampleLoss
from tropigrad.optim import WorstSampleSubgradient
from tropigrad.optim.worst_sample import by_triton, subgradient

needs_compiler = pytest.mark.skipif(bool(native.why_no_compiler()), reason=native.why_no_compiler())
MARGIN = 4.0


def blobs(contradictory=False):
    """Three clusters that a few hidden units tell apart; or with equal samples of different classes."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.2, 0.2, 0.5, 0.9], [0.8, 0.3, 0.1, 0.2], [0.4, 0.9, 0.8, 0.5]])
    y = torch.arange(60) % 3
    x = (centres[y] + 0.3 * torch.randn(60, 4, generator=generator)).clamp(0, 1)
    if contradictory:
        x, y = torch.cat([x, x[:10]]), torch.cat([y, (y[:10] + 1) % 3])
    return x, y


def begun(contradictory=False, hidden=20, **options):
    x, y = blobs(contradictory)
    model = LinearMinMax(4, hidden, 3)
    model.init_kmedoids(x, y, 64.0, margin=MARGIN)
    return model, WorstSampleSubgradient(model, x, y, margin=MARGIN, **options)


def equal(one, other):
    return all(torch.equal(x, y) for x, y in zip(one.parameters(), other.parameters(), strict=True))


# ------------------------------------------------------------------------------------------------ what it reaches


def test_digits_are_interpolated_and_generalise():
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn carries the data")
    digits = datasets.load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1257], order[1257:]
    model = LinearMinMax(64, 300, 10)
    model.init_kmedoids(x[train], y[train], 64.0, margin=MARGIN)
    optimizer = WorstSampleSubgradient(model, x[train], y[train], margin=MARGIN)
    trace = optimizer.step(1000)
    assert (optimizer.loss, optimizer.status) == (0.0, "target met")
    assert len(trace) == optimizer.iteration < 1000
    assert optimizer.step(5).numel() == 0
    assert WorstSampleLoss(MARGIN)(model(x[train]), y[train]) == 0
    assert (model(x[test]).argmax(dim=1) == y[test]).double().mean() >= 0.95


@pytest.mark.parametrize("step", ["polyak", "sqrt", "power"])
def test_it_does_not_diverge_where_it_cannot_interpolate(step):
    model, optimizer = begun(contradictory=True, step=step)
    trace = optimizer.step(1500)
    assert MARGIN <= optimizer.best.loss == trace.min()
    assert trace[-100:].max() <= trace[0] * 1.01
    optimizer.load_best()
    assert optimizer.loss == optimizer.best.loss
    x, y = blobs(contradictory=True)
    assert WorstSampleLoss(MARGIN)(model(x), y).item() == optimizer.loss
    if step == "polyak":
        assert optimizer.raises > 0
        assert 0 < optimizer.level < optimizer.best.loss


@pytest.mark.parametrize("loss", ["hinge", "cross_entropy"])
@pytest.mark.parametrize("train_A", [False, True], ids=["A fixed", "A trained"])
def test_loss_falls_and_only_what_is_trained_moves(loss, train_A):
    model, optimizer = begun(loss=loss, train_A=train_A)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = optimizer.loss
    optimizer.step(200)
    assert optimizer.best.loss < 0.5 * first
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == ({"A", "W1", "W2"} if train_A else {"W1", "W2"})


@pytest.mark.parametrize("step", ["polyak", "power"])
def test_a_target_ends_the_run(step):
    _, optimizer = begun(target=1.0, step=step)
    optimizer.step(2000)
    assert optimizer.status in ("target met", "within rounding of the target")  # Polyak's steps shrink towards it
    assert optimizer.loss <= 1.0 + 1e-4


@needs_compiler
@pytest.mark.parametrize("memory", ["trees", "winners"])
def test_a_machine_without_a_compiler_gives_the_same(set_backend, memory):
    ours, optimizer = begun(contradictory=True, memory=memory)
    set_backend("torch")
    dense, slow = begun(contradictory=True, memory=memory)
    assert (optimizer.memory, slow.memory) == (memory, "dense")
    assert "every iteration is dense" in slow.why
    assert torch.equal(optimizer.step(80), slow.step(80))
    assert equal(ours, dense)


@pytest.mark.skipif(
    bool(backend.why_off("triton", torch.device("cpu"))), reason="triton's interpreter runs programs on the CPU"
)
@pytest.mark.parametrize("memory", ["program", "graph"])
def test_caches_in_triton_give_the_same(set_backend, monkeypatch, memory):
    if memory == "graph":
        for module in (by_triton, subgradient):
            monkeypatch.setattr(module, "LARGEST", 0)
    x, y = blobs()
    generator = torch.Generator().manual_seed(1)
    runs = []
    for name in ("torch", "triton"):
        set_backend("torch")  # the start is not what is looked at
        model = LinearMinMax(4, 3, 3)
        model.init_kmedoids(x, y, 64.0, margin=MARGIN, generator=generator)
        set_backend(name)
        runs.append((model, WorstSampleSubgradient(model, x, y, margin=MARGIN)))
    (expected, dense), (model, cached) = runs
    assert (dense.memory, cached.memory) == ("dense", memory)
    for n in (3, 6):
        assert torch.equal(dense.step(n), cached.step(n))
        assert equal(expected, model)


@needs_compiler
def test_auto_says_what_and_why():
    _, optimizer = begun()
    assert optimizer.memory == "winners"
    assert "MiB" in optimizer.why


def test_how_it_is_cut_up_does_not_matter():
    one, whole = begun(contradictory=True)
    other, parts = begun(contradictory=True)
    told = []
    expected = whole.step(300, progress=lambda *now: told.append(now))
    assert torch.equal(expected, torch.cat([parts.step(n) for n in (1, 2, 97, 200)]))
    assert equal(one, other)
    assert told[-1] == (300, 300, whole.loss)


# ------------------------------------------------------------------------------------------------ what it keeps


def test_the_best_validation_iterate():
    x, y = blobs()
    model = LinearMinMax(4, 12, 3)
    model.init_kmedoids(x[:40], y[:40], 64.0, margin=MARGIN)
    optimizer = WorstSampleSubgradient(model, x[:40], y[:40], margin=MARGIN, validation=(x[40:], y[40:]))

    def accuracy():
        return (model(x[40:]).argmax(dim=1) == y[40:]).double().mean().item()

    seen = [accuracy()]
    for _ in range(40):
        optimizer.step()
        seen.append(accuracy())
    kept = optimizer.load_best("validation")
    assert kept.accuracy == max(seen) == accuracy()
    assert kept.iteration == seen.index(max(seen))
    assert equal_weights(model, kept.weights)


def equal_weights(model, weights):
    return all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_an_outlier_is_named():
    x, y = blobs()
    y[17] = (y[17] + 1) % 3  # a wrong label
    model = LinearMinMax(4, 6, 3)
    model.init_kmedoids(x, blobs()[1], 64.0, margin=MARGIN)
    optimizer = WorstSampleSubgradient(model, x, y, margin=MARGIN)
    optimizer.step(300)
    worst = optimizer.worst
    assert worst.sample == 17
    assert worst.share == worst.times / (1 + optimizer.iteration)


@pytest.mark.parametrize("memory", ["trees", "winners"])
def test_a_resumed_run_goes_through_the_same_iterates(memory):
    model, whole = begun(contradictory=True, memory=memory)
    whole.step(37)
    stored = io.BytesIO()
    torch.save(whole.state_dict(), stored)
    expected = whole.step(200)
    stored.seek(0)
    other, resumed = begun(contradictory=True, memory=memory)
    resumed.load_state_dict(torch.load(stored, weights_only=True))
    assert torch.equal(resumed.step(200), expected)
    assert equal(model, other)
    assert resumed.best.loss == whole.best.loss
    assert resumed.worst == whole.worst


def pickled(pair):
    return pickle.loads(pickle.dumps(pair))


def saved(pair):
    stored = io.BytesIO()
    torch.save(pair, stored)
    stored.seek(0)
    return torch.load(stored, weights_only=False)


@pytest.mark.parametrize("twin_of", [copy.deepcopy, pickled, saved])
@pytest.mark.parametrize(
    "options",
    [{"memory": "trees"}, {"memory": "winners"}, {"train_A": True, "loss": "cross_entropy"}, {"step": "power"}],
    ids=["trees", "winners", "A trained", "power"],
)
def test_a_copy_goes_through_the_same_iterates(twin_of, options):
    x, y = blobs()
    model, whole = begun(contradictory=True, validation=(x[:9], y[:9]), **options)
    whole.step(37)
    twin, ours = twin_of((model, whole))
    assert ours.model is twin
    assert (ours.memory, ours.why, ours.loss) == (whole.memory, whole.why, whole.loss)
    expected = whole.step(200)
    assert torch.equal(ours.step(200), expected)
    assert equal(model, twin)
    assert ours.worst == whole.worst
    for one, other in ((ours.best, whole.best), (ours.best_validation, whole.best_validation)):
        assert one[:3] == other[:3]
        assert all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())


def test_a_dense_run_is_copied_as_well(set_backend):
    set_backend("torch")
    _, whole = begun(contradictory=True)
    whole.step(5)
    twin = copy.deepcopy(whole)
    assert twin.memory == "dense"
    assert torch.equal(twin.step(20), whole.step(20))


def test_a_copy_knows_what_others_changed_before():
    model, whole = begun()
    whole.step(5)
    model.W2.data[0] += 7.0
    twin = copy.deepcopy(whole)
    assert torch.equal(twin.step(3), whole.step(3))


def test_a_shallow_copy_notices_the_steps_of_the_other():
    model, one = begun(contradictory=True)
    other = copy.copy(one)
    x, y = blobs(contradictory=True)
    for optimizer in (one, other, one):
        optimizer.step(7)
        assert WorstSampleLoss(MARGIN)(model(x), y).item() == optimizer.loss
    assert (one.iteration, other.iteration) == (14, 7)


@pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")  # one process, as is meant
def test_a_distributed_checkpoint_holds_the_run(tmp_path):
    from torch.distributed.checkpoint.state_dict_loader import load
    from torch.distributed.checkpoint.state_dict_saver import save

    model, whole = begun(contradictory=True)
    whole.step(37)
    save({"optimizer": whole}, checkpoint_id=tmp_path, no_dist=True)
    expected = whole.step(100)
    other, resumed = begun(contradictory=True)
    load({"optimizer": resumed}, checkpoint_id=tmp_path, no_dist=True)
    assert torch.equal(resumed.step(100), expected)
    assert equal(model, other)


def test_the_model_is_an_ordinary_module_afterwards():
    model, optimizer = begun()
    versions = model.W1._version
    optimizer.step(20)
    assert model.W1._version > versions  # autograd must see that a saved tensor has changed
    x, y = blobs()
    assert WorstSampleLoss(MARGIN)(model(x), y).item() == optimizer.loss
    clone = LinearMinMax(4, 20, 3)
    clone.load_state_dict(model.state_dict())
    compiled = torch.compile(model, backend="aot_eager")
    exported = torch.export.export(model, (x,)).module()
    for net in (clone, compiled, exported):
        torch.testing.assert_close(net(x), model(x), rtol=0, atol=0)


def in_place(weight):
    with torch.no_grad():
        weight[0] += 7.0


def by_data(weight):
    weight.data[0] += 7.0


def by_numpy(weight):
    weight.detach().numpy()[0] += 7.0


@pytest.mark.parametrize("memory", ["trees", "winners", "dense"])
@pytest.mark.parametrize("name", ["A", "W1", "W2"])
@pytest.mark.parametrize("change", [in_place, by_data, by_numpy])
def test_weights_that_others_change_are_taken_up(set_backend, change, name, memory):
    if memory == "dense":
        set_backend("torch")
    model, optimizer = begun(memory="auto" if memory == "dense" else memory)
    optimizer.step(10)
    change(getattr(model, name))
    optimizer.step(1)
    x, y = blobs()
    assert WorstSampleLoss(MARGIN)(model(x), y).item() == optimizer.loss


def test_labels_that_others_change_later_are_not_ours():
    x, y = blobs()
    y = y.int()
    model = LinearMinMax(4, 6, 3)
    model.init_kmedoids(x, y, 64.0, margin=MARGIN)
    optimizer = WorstSampleSubgradient(model, x, y, margin=MARGIN)
    expected = y.clone()
    y.zero_()
    optimizer.step(3)
    assert WorstSampleLoss(MARGIN)(model(x), expected).item() == optimizer.loss


def test_weights_that_moved_away_are_refused():
    model, optimizer = begun()
    model.W1.data = model.W1.data.clone()
    with pytest.raises(ValueError, match="moved to other memory"):
        optimizer.step()


# ------------------------------------------------------------------------------------------------ several processes

RANK = """
import copy, json, pickle, sys
from datetime import timedelta
import torch, torch.distributed as dist
from tropigrad.nn import LinearMinMax
from tropigrad.optim import WorstSampleSubgradient

folder, rank = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
dist.init_process_group("gloo", f"file://{folder}/meeting", timedelta(seconds=90), 2, rank)
said = {}
for case in torch.load(f"{folder}/cases.pt"):
    model = LinearMinMax(4, 8, 3)
    model.load_state_dict(case["model"])
    own = slice(0, 23) if rank == 0 else slice(23, 45)  # no multiple of anything
    watched = slice(45, 53) if rank == 0 else slice(53, 60)
    x, y = case["x"], case["y"]
    validation = (x[watched], y[watched]) if case["watched"] else None
    optimizer = WorstSampleSubgradient(
        model, x[own], y[own], group=dist.group.WORLD, margin=4.0, validation=validation, **case["options"]
    )
    trace = torch.cat([optimizer.step(n) for n in (1, 299)])
    kept = optimizer.best_validation if validation else optimizer.best
    result = [trace, model.state_dict(), kept, optimizer.worst, optimizer.raises]
    torch.save(result, f"{folder}/{case['name']}-{rank}.pt")
twin = copy.deepcopy(optimizer)
said["twins agree"] = torch.equal(twin.step(20), optimizer.step(20))
model.W2.data[1] -= 50
optimizer.step(5)
said["going"] = optimizer.status == "going"
try:
    pickle.dumps(optimizer)
except TypeError as error:
    said["pickled"] = str(error)
if rank:
    model.W1.data += 1
try:
    optimizer.step(1)
except ValueError as error:
    said["changed"] = str(error)
try:
    WorstSampleSubgradient(model, x[own], y[own], group=dist.group.WORLD)
except ValueError as error:
    said["other weights"] = str(error)
print(json.dumps(said))
"""

SHARED = {
    "winners": ({}, False),
    "trees": ({"memory": "trees"}, False),
    "A-trained": ({"train_A": True, "loss": "cross_entropy"}, True),
    "watched": ({}, True),
    "share": ({"alpha": 0.3}, True),
    "share-A-trained": ({"alpha": 0.3, "train_A": True, "loss": "cross_entropy"}, False),
}


@needs_compiler
@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_go_through_the_iterates_of_one(tmp_path):
    x, y = blobs(contradictory=True)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))  # equal samples on different ranks
    x, y = x[order], y[order]
    cases, expected = [], {}
    for name, (options, watched) in SHARED.items():
        model = LinearMinMax(4, 8, 3)
        model.init_kmedoids(x, y, 64.0, margin=MARGIN)
        start = {of: value.clone() for of, value in model.state_dict().items()}
        cases.append({"name": name, "model": start, "x": x, "y": y, "options": options, "watched": watched})
        validation = (x[45:], y[45:]) if watched else None
        one = WorstSampleSubgradient(model, x[:45], y[:45], margin=MARGIN, validation=validation, **options)
        trace = one.step(300)
        kept = one.best_validation if watched else one.best
        expected[name] = [trace, model.state_dict(), kept, one.worst, one.raises]
    torch.save(cases, tmp_path / "cases.pt")
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, tmp_path, str(rank)], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        said = [json.loads(rank.communicate(timeout=120)[0]) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for name, (trace, weights, kept, worst, raises) in expected.items():
        for rank in range(2):
            theirs = torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=False)
            assert torch.equal(theirs[0], trace)
            assert weights.keys() == theirs[1].keys()
            assert all(torch.equal(value, theirs[1][of]) for of, value in weights.items())
            assert theirs[2][:3] == kept[:3]
            assert all(torch.equal(value, theirs[2].weights[of]) for of, value in kept.weights.items())
            assert (theirs[3], theirs[4]) == (worst, raises)
    assert expected["winners"][4] > 0  # the iterates have gone back to the best
    for of_rank in said:
        assert of_rank["twins agree"]
        assert of_rank["going"]
        assert "a process group cannot be pickled; expected state_dict()" in of_rank["pickled"]
        assert "the ranks have changed the weights differently" in of_rank["changed"]
        assert "ranks 0 and 1 differ in the weights; expected the same model" in of_rank["other weights"]


# ------------------------------------------------------------------------------------------------ bad input


def change(x=None, y=None, model=None, **options):
    good_x, good_y = blobs()
    return WorstSampleSubgradient(
        LinearMinMax(4, 6, 3) if model is None else model,
        good_x if x is None else x,
        good_y if y is None else y,
        **options,
    )


def weights(**change):
    model = LinearMinMax(4, 6, 3)
    for name, value in change.items():
        getattr(model, name).data = value
    return model


@pytest.mark.parametrize(
    ("bad", "error", "match"),
    [
        pytest.param({"x": torch.rand(60, 5)}, ValueError, r"x has shape \(60, 5\); expected \[N, 4\]", id="features"),
        pytest.param({"x": torch.rand(0, 4)}, ValueError, "N ≥ 1", id="empty"),
        pytest.param({"x": torch.rand(60, 4).numpy()}, TypeError, "x is a ndarray; expected a dense torch", id="array"),
        pytest.param({"x": torch.rand(60, 4).to_sparse()}, TypeError, "x is torch.sparse_coo; expected", id="sparse"),
        pytest.param({"y": [0, 1, 2] * 20}, TypeError, "y is a list; expected a dense torch.Tensor", id="list"),
        pytest.param(
            {"validation": torch.rand(2, 4)}, TypeError, r"validation is a Tensor; expected a pair", id="pair"
        ),
        pytest.param({"x": torch.rand(60, 4).double()}, TypeError, "x is torch.float64 on cpu", id="dtype"),
        pytest.param({"x": torch.rand(60, 4).log() * math.inf}, ValueError, "first in row 0", id="infinite"),
        pytest.param({"y": torch.zeros(59).long()}, ValueError, r"y has shape \(59,\)", id="labels"),
        pytest.param({"y": torch.zeros(60)}, TypeError, "y is torch.float32; expected integer", id="float labels"),
        pytest.param({"y": torch.arange(60) % 4}, ValueError, r"y spans \[0, 3\]; expected labels in \[0, 2\]", id="3"),
        pytest.param({"y": torch.zeros(60).long()}, ValueError, "all samples are of class 0", id="one class"),
        pytest.param({"step": "adam"}, ValueError, "step is 'adam'; expected one of 'polyak'", id="step"),
        pytest.param({"memory": "heap"}, ValueError, "memory is 'heap'", id="memory"),
        pytest.param({"loss": "mse"}, ValueError, "loss is 'mse'", id="loss"),
        pytest.param({"margin": "wide"}, TypeError, "margin is 'wide'; expected a number", id="no number"),
        pytest.param({"margin": 1e39}, ValueError, r"margin is 1e\+39; .*positive in torch.float32", id="wide margin"),
        pytest.param({"margin": 1e-50}, ValueError, "margin is 1e-50; .*positive in torch.float32", id="no margin"),
        pytest.param({"margin": 0.0}, ValueError, "margin is 0.0; expected a finite number, positive", id="margin"),
        pytest.param(
            {"target": -1.0}, ValueError, "target is -1.0; expected a finite number, not negative", id="level"
        ),
        pytest.param({"length": math.nan}, ValueError, "length is nan", id="length"),
        pytest.param({"group": 1}, TypeError, "group is a int; expected a torch.distributed", id="group"),
        pytest.param({"model": torch.nn.Linear(4, 3)}, TypeError, "Linear has no tensor A, W1, W2", id="model"),
        pytest.param({"model": weights(W2=torch.rand(3, 5))}, ValueError, r"W2 \(3, 5\)", id="sizes"),
        pytest.param({"model": weights(W1=torch.rand(8, 6).T)}, ValueError, "W1 has strides", id="strides"),
        pytest.param({"model": weights(A=torch.full((8, 4), math.nan))}, ValueError, "A holds NaN", id="NaN"),
        pytest.param({"model": weights(A=torch.full((8, 4), 3e38))}, ValueError, "more than torch.float32", id="A x"),
        pytest.param({"model": LinearMinMax(4, 6, 3, device="meta")}, ValueError, "weights are on meta", id="meta"),
        pytest.param({"model": weights(A=torch.rand(8, 4).double())}, TypeError, "one floating dtype", id="dtypes"),
        pytest.param(
            {"validation": (torch.rand(2, 4), torch.tensor([0, 5]))}, ValueError, r"validation\[1\]", id="val"
        ),
    ],
)
def test_what_does_not_fit_is_named(bad, error, match):
    with pytest.raises(error, match=match):
        change(**bad)


@pytest.mark.parametrize(
    ("n", "error"),
    [(0, ValueError), (2.5, TypeError), (True, TypeError), ("3", TypeError), (None, TypeError)],
    ids=repr,
)
def test_a_step_of_no_number_is_refused(n, error):
    _, optimizer = begun()
    with pytest.raises(error, match=f"step: n is {n!r}; expected"):
        optimizer.step(n)
    assert optimizer.iteration == 0


@pytest.mark.parametrize("integer", [np.int64, np.int32, torch.tensor], ids=["int64", "int32", "tensor"])
def test_any_integer_is_a_number_of_steps(integer):
    _, optimizer = begun()
    assert len(optimizer.step(integer(3))) == 3


def test_numbers_of_numpy_are_settings_that_are_saved_and_loaded():
    _, optimizer = begun(target=np.float64(0.5))
    stored = io.BytesIO()
    torch.save(optimizer.state_dict(), stored)
    stored.seek(0)
    optimizer.load_state_dict(torch.load(stored, weights_only=True))


@needs_compiler
def test_a_memory_that_cannot_fit_is_refused_before_it_is_taken():
    model = LinearMinMax(4, 1 << 14, 3)
    model.A.data, model.W1.data = torch.rand(1 << 15, 4), torch.zeros(1, 1).expand(1 << 14, 1 << 15)
    model.W1.data = torch.zeros(1 << 8, 1 << 15)
    model.W2.data = torch.zeros(3, 1 << 8)
    x = torch.rand(1, 4).expand(1 << 17, 4)
    with pytest.raises(MemoryError, match=r"trees need .* GiB for N = 131072, p = 32768, q = 256, K = 3"):
        WorstSampleSubgradient(model, x, torch.arange(1 << 17) % 3, memory="trees")


def test_half_precision_is_refused_on_the_cpu():
    model = LinearMinMax(4, 6, 3, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match=r"expected torch\.float32 or torch\.float64 on the CPU"):
        WorstSampleSubgradient(model, blobs()[0].bfloat16(), blobs()[1])


@pytest.mark.parametrize("memory", ["trees", "winners", "dense"])
@pytest.mark.parametrize("options", [{}, {"train_A": True}, {"loss": "cross_entropy"}], ids=["hinge", "A", "entropy"])
@pytest.mark.parametrize("step", ["sqrt", "power"])
def test_a_step_beyond_the_dtype_is_held_and_said(set_backend, memory, options, step):
    if memory == "dense":
        set_backend("torch")
    memory = "auto" if memory == "dense" else memory
    model, optimizer = begun(step=step, length=1e39, memory=memory, **options)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(2):
        with pytest.raises(FloatingPointError, match=r"not finite in torch\.float32, and was not taken; load_best"):
            optimizer.step(50)
    assert optimizer.status == "diverged"
    assert optimizer.iteration == 0
    assert equal_weights(model, before)
    optimizer.load_best()
    assert optimizer.status == "going"
    assert math.isfinite(optimizer.loss)


@pytest.mark.parametrize("train_A", [False, True], ids=["A fixed", "A trained"])
@pytest.mark.parametrize("length", [1e30, 1e37, 1e38, 3e38], ids="{:g}".format)
def test_no_length_makes_weights_that_are_not_finite(length, train_A):
    model, optimizer = begun(step="sqrt", length=length, train_A=train_A, contradictory=True)
    try:
        optimizer.step(300)
    except FloatingPointError:
        assert optimizer.status == "diverged"
    assert all(weight.isfinite().all() for weight in model.parameters())
    optimizer.load_best()
    assert math.isfinite(optimizer.loss)


@pytest.mark.parametrize("memory", ["trees", "winners", "dense"])
@pytest.mark.parametrize("step", ["polyak", "sqrt", "power"])
@pytest.mark.parametrize(
    ("dtype", "exponents"),
    [(torch.float32, (60, -60, 110, -100)), (torch.float64, (60, -60, 1000, -1000))],
    ids=["float32", "float64"],
)
def test_rescaled_data_give_rescaled_iterates(set_backend, dtype, exponents, step, memory):
    """Exactly: z, u and f, the margin, F and γ all scale by the same power of two, with the hinge and A fixed."""
    if memory == "dense":
        set_backend("torch")
    runs = []
    for scale in (1.0, *(2.0**exponent for exponent in exponents)):
        x, y = blobs(contradictory=True)
        x, margin = x.to(dtype) * scale, MARGIN * scale
        model = LinearMinMax(4, 10, 3, dtype=dtype)
        model.init_kmedoids(x, y, 64.0, margin=margin)
        options = {"memory": "auto" if memory == "dense" else memory, "step": step}
        optimizer = WorstSampleSubgradient(model, x, y, margin=margin, **options)
        trace = optimizer.step(8 if memory == "dense" else 150)
        runs.append([scale, trace, model.W1.detach(), model.W2.detach(), optimizer.worst, optimizer.raises])
    _, *expected = runs[0]
    for scale, *found in runs[1:]:
        assert all(torch.equal(one, scale * other) for one, other in zip(found[:3], expected[:3], strict=True))
        assert found[3:] == expected[3:]


@pytest.mark.parametrize("place", [1e155, -1e200], ids="{:g}".format)
def test_samples_whose_squares_overflow_are_refused_where_A_is_trained(place):
    x, y = blobs()
    x = x.double()
    x[3, 1] = place
    model = LinearMinMax(4, 6, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="where A is trained, for the squares of a sample to add up: rescale x"):
        WorstSampleSubgradient(model, x, y, train_A=True)
    WorstSampleSubgradient(model, x, y).step(3)


@pytest.mark.parametrize(
    "elsewhere", [lambda: torch.device("meta"), lambda: DefaultDevice("meta")], ids=["context", "default device"]
)
@pytest.mark.parametrize("memory", ["trees", "winners", "dense"])
@pytest.mark.parametrize("options", [{}, {"train_A": True, "loss": "cross_entropy"}, {"step": "sqrt"}], ids=str)
def test_another_default_device_changes_nothing(set_backend, elsewhere, memory, options):
    if memory == "dense":
        set_backend("torch")
    x, y = blobs(contradictory=True)

    def run():
        model = LinearMinMax(4, 20, 3, device="cpu")
        model.init_kmedoids(x, y, 64.0, margin=MARGIN)
        optimizer = WorstSampleSubgradient(
            model, x, y, margin=MARGIN, memory="auto" if memory == "dense" else memory, **options
        )
        traces = [optimizer.step(30)]
        model.W2.data[0] += 7.0
        traces.append(optimizer.step(3))
        optimizer.load_state_dict(optimizer.state_dict())
        traces.append(copy.deepcopy(optimizer).step(3))
        optimizer.load_best()
        return [*traces, *model.state_dict().values(), *optimizer.best.weights.values()]

    expected = run()
    with elsewhere():
        found = run()
    for one, other in zip(found, expected, strict=True):
        assert one.device.type == "cpu"
        assert torch.equal(one, other)


class DefaultDevice:
    def __init__(self, name):
        self.name = name

    def __enter__(self):
        torch.set_default_device(self.name)

    def __exit__(self, *exception):
        torch.set_default_device(None)


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        pytest.param(lambda s: {"weights": s["weights"]}, "expected what state_dict", id="parts"),
        pytest.param(lambda s: s | {"settings": s["settings"] | {"margin": 1.0}}, "margin is 1.0 there", id="margin"),
        pytest.param(
            lambda s: s | {"best": s["best"] | {"W1": torch.zeros(2, 8)}}, r"W1 has shape \(2, 8\)", id="size"
        ),
        pytest.param(lambda s: s | {"times_worst": torch.zeros(3)}, "3 samples there and 60 here", id="samples"),
        pytest.param(lambda s: s | {"best_validation": s["best"]}, "best_validation is missing here", id="validation"),
    ],
)
def test_a_state_of_another_run_changes_nothing(spoil, match):
    model, optimizer = begun()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=match):
        optimizer.load_state_dict(spoil(optimizer.state_dict()))
    assert equal_weights(model, before)
