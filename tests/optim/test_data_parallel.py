"""Our optimizers under DistributedDataParallel: all ranks alike take the steps of one process."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from tropigrad.nn import MaxPlusLinear
from tropigrad.optim import GSGD, BasisPaths, PathSGD, SparseMaxPlus

# ------------------------------------------------------------------------------------------------ states by name


def network():
    torch.manual_seed(0)
    layers = nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)
    return nn.Sequential(*layers, nn.Tanh(), MaxPlusLinear(3, 3))


def sparse():
    torch.manual_seed(0)
    return nn.Sequential(MaxPlusLinear(5, 8, sparse=True), nn.Linear(8, 3))


def of_rule(rule):
    return sparse, lambda model: SparseMaxPlus(model.parameters(), 0.01, rule)


OPTIMIZERS = {
    "GSGD": (network, lambda model: GSGD(BasisPaths(model), 0.02)),
    "GSGD-momentum": (network, lambda model: GSGD(BasisPaths(model), 0.02, momentum=0.9, weight_decay=0.01)),
    "GSGD-unit": (network, lambda model: GSGD(BasisPaths(model).unit_skeleton_(), 0.02, momentum=0.9)),
    "PathSGD": (network, lambda model: PathSGD(BasisPaths(model), 0.005)),
    **{f"SparseMaxPlus-{rule}": of_rule(rule) for rule in ("sgd", "momentum", "adagrad", "rmsprop", "adam")},
}


def train(model, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(torch.randn(16, 5, generator=generator)), torch.arange(16) % 3)
        loss.backward()
        optimizer.step()


def same(model, other):
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_torch_s_states_by_name_go_both_ways(name, flat):
    """To set a state, torch takes a step at a rate of 0, from gradients of 0: the weights stay as they were loaded."""
    if (name, flat) == ("SparseMaxPlus-momentum", True):
        pytest.skip("torch loads what a step on dense gradients keeps, and that keeps no time of the last touch")
    make_model, make = OPTIMIZERS[name]
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    model = make_model()
    optimizer = make(model)
    train(model, optimizer, 1)
    state = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    other = make_model()
    other_optimizer = make(other)
    other.load_state_dict(model.state_dict())
    set_optimizer_state_dict(other, other_optimizer, state, options=options)
    assert same(model, other)
    for each in ((model, optimizer), (other, other_optimizer)):
        train(*each, 2)
    assert same(model, other)


# ------------------------------------------------------------------------------------------------ ranks

RANK = """
import copy
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from tropigrad.optim import GSGD, BasisPaths, L1Continuation, PathSGD


def trained(model, optimizer, share, batches):
    for x, y in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[share]), y[share]).backward()
        optimizer.step()


class Inside(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).double()

    def forward(self, x):
        return self.layers(x).tanh()


OPTIMIZERS = {
    "GSGD": lambda model: GSGD(BasisPaths(model), 0.02),
    "GSGD-momentum": lambda model: GSGD(BasisPaths(model), 0.02, momentum=0.9, weight_decay=0.01),
    "GSGD-unit": lambda model: GSGD(BasisPaths(model).unit_skeleton_(), 0.02, momentum=0.9),
    "PathSGD": lambda model: PathSGD(BasisPaths(model), 0.005),
}
generator = torch.Generator().manual_seed(1)
batches = [(torch.randn(16, 5, generator=generator).double(), torch.arange(16) % 3) for _ in range(8)]
share = slice(rank * 16 // ranks, (rank + 1) * 16 // ranks)


def weights_of_all(model):
    everywhere = [None] * ranks
    dist.all_gather_object(everywhere, [p.detach() for p in model.parameters()])
    return everywhere


def alike(model):
    first, *others = weights_of_all(model)
    return all(torch.equal(x, y) for other in others for x, y in zip(first, other, strict=True))


def near(model, other):
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.allclose(x, y, rtol=1e-9, atol=1e-12) for x, y in pairs)


for name, make in OPTIMIZERS.items():
    for form in ("ddp", "compiled"):
        alone = Inside()
        trained(alone, make(alone), slice(None), batches)
        model = Inside(seed=rank)  # DistributedDataParallel makes them those of rank 0
        wrapped = DistributedDataParallel(model)
        wrapped = torch.compile(wrapped, backend="eager") if form == "compiled" else wrapped
        optimizer = make(wrapped)
        trained(wrapped, optimizer, share, batches[:5])
        if form == "ddp":  # a state by name, from this wrapper into another
            state = copy.deepcopy(get_optimizer_state_dict(wrapped, optimizer))
            said[f"{name}, names"] = state["param_groups"][0]["params"]
            again, weights = Inside(seed=7 + rank), copy.deepcopy(model.state_dict())
            wrapped, model = DistributedDataParallel(again), again
            optimizer = make(wrapped)
            again.load_state_dict(weights)
            set_optimizer_state_dict(wrapped, optimizer, state)
        trained(wrapped, optimizer, share, batches[5:])
        said[f"{name}, {form}"] = alike(model) and near(model, alone)

model = DistributedDataParallel(Inside())
torch.manual_seed(rank)
x = batches[0][0]
before = model(x)
BasisPaths(model).rescale_()
said["rescaled"] = alike(model) and torch.allclose(model(x), before) and not near(model.module, Inside())


def message(call):
    try:
        return f"none: {call()}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


sharded = fully_shard(Inside(), mesh=init_device_mesh("cpu", (ranks,)))
loss = nn.functional.cross_entropy
said["paths of shards"] = message(lambda: BasisPaths(sharded))
said["continuation of shards"] = message(lambda: L1Continuation(sharded, loss))
"""


@pytest.fixture(scope="module")
def said(run_ranks):
    return run_ranks(2, RANK)


@pytest.mark.parametrize("form", ["ddp", "compiled"])
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if "Sparse" not in name])
def test_two_ranks_take_the_steps_of_one_process(said, name, form):
    """The ranks' weights are equal to the bit; those of one process, whose gradient is one mean, to rounding."""
    assert [of_rank[f"{name}, {form}"] for of_rank in said] == [True, True]


def test_states_have_the_names_of_the_model_that_is_wrapped(said):
    names = [f"layers.{place}.{kind}" for place in (0, 2, 4) for kind in ("weight", "bias")]
    assert all(of_rank["GSGD-momentum, names"] == names for of_rank in said)


def test_ranks_rescale_alike(said):
    assert all(of_rank["rescaled"] for of_rank in said)


def test_shards_are_refused_by_name(said):
    what = (
        "layers.0.weight is a DTensor, whose shards lie on several ranks; expected parameters that each rank has whole"
    )
    for of_rank in said:
        assert f"TypeError: BasisPaths: {what}" in of_rank["paths of shards"]
        assert f"TypeError: L1Continuation: {what}" in of_rank["continuation of shards"]


# ------------------------------------------------------------------------------------------------ the continuation

CONTINUATION = """
import os
from pathlib import Path
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tropigrad.optim import L1Continuation, L1Sweep

loss = nn.functional.cross_entropy
generator = torch.Generator().manual_seed(1)
x, y = torch.randn(32, 5, generator=generator).double(), torch.arange(32) % 3
batches = [(x[i : i + 16], y[i : i + 16]) for i in (0, 16)]
held = [(x[:8] + 0.1, y[:8])]
share = slice(rank * 16 // ranks, (rank + 1) * 16 // ranks)
ours = [(x[share], y[share]) for x, y in batches]
held_here = [(x[4 * rank : 4 * rank + 4], y[4 * rank : 4 * rank + 4]) for x, y in held]


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()


RUNS = {
    "mpg": lambda model: L1Continuation(
        model, loss, first_steps=6, dense_points=2, sparse_points=2, predictor_steps=2, correctors=3),
    "held, by distance": lambda model: L1Continuation(
        model, loss, first_steps=6, dense_points=2, sparse_points=2, correctors=3, corrector="held", spacing=0.1),
    "mpg, by distance": lambda model: L1Continuation(
        model, loss, first_steps=6, dense_points=2, sparse_points=2, predictor_steps=3, correctors=3, spacing=0.1,
        penalize=lambda name: name.endswith("weight")),
    "sweep": lambda model: L1Sweep(model, loss, points=3, first_steps=5, correctors=3),
}


def numbers_of(front):
    return [[p.loss, p.l1, p.val_loss, p.accuracy, p.val_accuracy, p.nnz, p.lam, p.epochs] for p in front.points]



for name, make in RUNS.items():
    alone = make(network()).run(batches, held, progress=False)
    model = DistributedDataParallel(network(seed=rank))
    front = make(model).run(ours, held_here, progress=False)
    everywhere = [None] * ranks
    dist.all_gather_object(everywhere, [numbers_of(front), [p.detach() for p in model.parameters()]])
    (numbers, weights), *others = everywhere
    equal = all(numbers == theirs and all(map(torch.equal, weights, those)) for theirs, those in others)
    said[name] = {"ranks are equal": equal, "alone": numbers_of(alone), "shared": numbers}

made = lambda: RUNS["mpg"](DistributedDataParallel(network(seed=rank)))
whole = made()
whole.run(ours, held_here, progress=False)


class Stop(Exception):
    pass


def stop(done, total, what):
    if done == 2:
        raise Stop


checkpoint = Path(folder) / f"run-{rank}"  # a disk of its own for each rank: the first alone has the files
try:
    made().run(ours, held_here, progress=stop, checkpoint=checkpoint)
except Stop:
    said["files"] = sorted(path.name for path in checkpoint.iterdir()) if checkpoint.exists() else []
front = made().run(ours, held_here, progress=False, checkpoint=checkpoint)
said["goes on"] = numbers_of(front) == numbers_of(whole.front)


def message(call):
    try:
        return f"none: {call()}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


bad = [(x.clone(), y) for x, y in ours]
if rank == 1:
    bad[1][0][0, 0] = float("nan")
run = made()
said["nan"] = message(lambda: run.run(bad, progress=False))
said["fewer"] = message(lambda: made().run(ours[: 2 - rank], progress=False))
blocked = Path(folder) / "blocked"
blocked.write_text("a file")
said["disk"] = message(lambda: made().run(ours, progress=False, checkpoint=blocked))
"""


@pytest.fixture(scope="module")
def fronts(run_ranks):
    return run_ranks(2, CONTINUATION)


@pytest.mark.parametrize("name", ["mpg", "held, by distance", "mpg, by distance", "sweep"])
def test_two_ranks_walk_the_front_of_one_process(fronts, name):
    for said in fronts:
        assert said[name]["ranks are equal"]
        alone, shared = said[name]["alone"], said[name]["shared"]
        assert len(alone) == len(shared) > 2
        for ours, theirs in zip(shared, alone, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-9)


def test_a_run_that_was_stopped_goes_on_bit_for_bit(fronts):
    assert fronts[0]["files"] == ["point-0000.pt", "point-0001.pt", "state.pt"]
    assert fronts[1]["files"] == []  # the first rank alone writes
    assert all(said["goes on"] for said in fronts)


def test_all_ranks_end_together(fronts):
    for said in fronts:
        assert "L1Continuation: the loss is not finite (phase start, point 0, epoch 0, batch 1)" in said["nan"]
        assert "ranks 0 and 1 differ in batches of loader; expected the same model, settings" in said["fewer"]
    assert fronts[0]["disk"].startswith("FileExistsError")
    assert fronts[1]["disk"].startswith("RuntimeError: L1Continuation: rank 0 has failed: FileExistsError")
