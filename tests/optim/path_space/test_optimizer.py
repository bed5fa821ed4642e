"""The habits of torch's optimizers, in GSGD and PathSGD, beside torch.optim.SGD: what it takes, they take or refuse."""

import copy
import dataclasses
import io
import pickle
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tropigrad.kernels.path_step import Layer, Options, path_step_ref
from tropigrad.optim import GSGD, BasisPaths, PathSGD


def network():
    """Two chains, 0 → 2 and the first BatchNorm → 5, and a last layer in none."""
    torch.manual_seed(3)
    first = nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU()
    return nn.Sequential(*first, nn.Linear(4, 5), nn.BatchNorm1d(5, affine=False), nn.Linear(5, 3)).double()


X, Y = torch.randn(24, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4)), torch.arange(24) % 3
OURS = {"gsgd": GSGD, "path-sgd": PathSGD}
OPTIMIZERS = {**OURS, "torch-sgd": torch.optim.SGD}


@pytest.fixture(params=OPTIMIZERS)
def kind(request):
    return OPTIMIZERS[request.param]


@pytest.fixture(params=OURS)
def ours(request):
    return OURS[request.param]


def made(kind, model, lr: Any = 0.01, **settings) -> Any:
    of: Any = model.parameters() if kind is torch.optim.SGD else BasisPaths(model)
    return kind(of, lr, **settings)


def train(model, optimizer, steps=3, sign=1.0):
    for _ in range(steps):
        optimizer.zero_grad()
        (sign * functional.cross_entropy(model(X), Y)).backward()
        optimizer.step()
    return model


def same(model, other):
    return all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_the_network_has_two_chains_and_a_plain_layer():
    paths = BasisPaths(network())
    assert [[layer.name for layer in chain.layers] for chain in paths.chains] == [["0", "2"], ["3", "5"]]
    assert [*paths.plain] == ["7.weight", "7.bias"]


# ------------------------------------------------------------------------------------------------ spellings


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"foreach": True},
        {"foreach": False},
        {"fused": True},
        {"fused": False},
        {"foreach": True, "fused": False},
        {"foreach": None, "fused": None},
        {"maximize": False, "differentiable": False},
    ],
    ids=str,
)
def test_spellings_that_torch_takes_change_nothing(kind, settings):
    plain, spelt = network(), network()
    train(plain, made(kind, plain))
    optimizer = made(kind, spelt, **settings)
    train(spelt, optimizer)
    assert same(plain, spelt) or kind is torch.optim.SGD  # whose fused kernel rounds in another way
    for group in optimizer.param_groups:
        assert all(group[name] == value for name, value in settings.items() if value is not None)


def test_capturable_is_taken_and_changes_nothing(ours):
    plain, spelt = network(), network()
    train(plain, made(ours, plain))
    assert same(plain, train(spelt, made(ours, spelt, capturable=True)))


def test_foreach_and_fused_are_refused_together(kind):
    with pytest.raises((ValueError, RuntimeError), match="foreach"):
        made(kind, network(), foreach=True, fused=True)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"differentiable": True}, ValueError, "differentiable is True; expected False: a step works in place"),
        ({"differentiable": None}, TypeError, "differentiable is None; expected True or False"),
        ({"maximize": 1}, TypeError, "maximize is 1; expected True or False"),
        ({"foreach": "yes"}, TypeError, "foreach is 'yes'; expected True, False or None"),
        ({"fused": 0}, TypeError, "fused is 0; expected True, False or None"),
        ({"capturable": None}, TypeError, "capturable is None; expected True or False"),
        ({"lr": torch.ones(2)}, ValueError, r"lr has shape \(2,\); expected a tensor of one number"),
        ({"lr": torch.ones((), requires_grad=True)}, ValueError, r"lr requires a gradient.*lr\.detach\(\)"),
        ({"nesterov": True}, TypeError, "nesterov"),
    ],
    ids=str,
)
def test_spellings_that_are_refused(ours, settings, error, match):
    with pytest.raises(error, match=match):
        made(ours, network(), **settings)


def test_the_settings_are_those_of_torch(kind):
    expected = {*torch.optim.SGD(network().parameters()).defaults} - {"dampening", "nesterov"}
    if kind is PathSGD:
        expected -= {"momentum", "weight_decay"}
    optimizer = made(kind, network())
    assert expected <= {*optimizer.defaults}
    assert all(expected <= {*group} for group in optimizer.param_groups)


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "weight_decay": 0.05}], ids=["plain", "momentum-decay"])
def test_maximize_is_the_step_on_the_loss_negated(kind, settings):
    if kind is PathSGD:
        settings = {}
    up, down = network(), network()
    before = functional.cross_entropy(up(X), Y)
    train(up, made(kind, up, maximize=True, **settings))
    assert same(up, train(down, made(kind, down, **settings), sign=-1.0))
    assert functional.cross_entropy(up(X), Y) > before


@pytest.mark.parametrize(
    "settings",
    [{"maximize": True}, {"momentum": 0.9, "weight_decay": 0.1, "maximize": True}, {"lr": torch.tensor(0.02)}],
    ids=["maximize", "all", "tensor"],
)
def test_plain_parameters_take_the_steps_of_torch(settings):
    model = network()
    theirs: Any = copy.deepcopy(model[7])
    optimizer = made(GSGD, model, **settings)
    sgd = torch.optim.SGD(theirs.parameters(), **{"lr": 0.01, **settings})
    for _ in range(4):
        gradients = [torch.randn_like(p) for p in theirs.parameters()]
        for p, q, g in zip(model[7].parameters(), theirs.parameters(), gradients, strict=True):
            p.grad, q.grad = g, g.clone()
        optimizer.step()
        sgd.step()
    for p, q in zip(model[7].parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-13, atol=1e-13)


# ------------------------------------------------------------------------------------------------ the rate


@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rate_may_be_a_tensor_which_schedulers_fill(kind, shape, dtype):
    if kind is torch.optim.SGD and shape:
        pytest.skip("torch's own broadcasts it")
    lr = torch.full(shape, 2.0**-6, dtype=dtype)
    model, other = network(), network()
    optimizer, its = made(kind, model, lr), made(kind, other, 2.0**-6)
    assert optimizer.param_groups[0]["lr"] is lr
    schedules = [torch.optim.lr_scheduler.ExponentialLR(each, 0.5) for each in (optimizer, its)]
    for _ in range(3):
        train(model, optimizer, 1)
        train(other, its, 1)
        for schedule in schedules:
            schedule.step()
    assert optimizer.param_groups[0]["lr"] is lr
    assert float(lr) == 2.0**-9
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


def test_a_plateau_lowers_every_rate(kind):
    optimizer = made(kind, network())
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    for _ in range(3):
        schedule.step(1.0)
    assert {group["lr"] for group in optimizer.param_groups} == {0.0025}


def test_momentum_is_cycled():
    model = network()
    optimizer = made(GSGD, model, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=6)
    momenta = []
    for _ in range(4):
        momenta.append(optimizer.param_groups[0]["momentum"])
        train(model, optimizer, 1)
        schedule.step()
    assert len({*momenta}) > 2
    assert all(p.isfinite().all() for p in model.parameters())


# ------------------------------------------------------------------------------------------------ param groups


@pytest.mark.parametrize("chains", [(1,), [1], 1], ids=repr)
def test_chains_have_rates_of_their_own(ours, chains):
    """The chain that the group names moves at its rate, the other and the plain layer at the optimizer's."""
    slow, fast, mixed = network(), network(), network()
    for model, optimizer in (
        (slow, made(ours, slow, 0.01)),
        (fast, made(ours, fast, 0.02)),
        (mixed, made(ours, mixed, 0.01, groups=[{"chains": chains, "lr": 0.02}])),
    ):
        train(model, optimizer, 1)
    for name, p in mixed.named_parameters():
        expected = fast if name.startswith(("3", "5")) else slow
        assert torch.equal(p, expected.get_parameter(name))
    assert not same(slow, mixed)


def test_every_chain_in_a_group_is_the_same_as_none(ours):
    plain, grouped = network(), network()
    optimizer = made(ours, grouped, 0.5, groups=[{"chains": [1], "lr": 0.01}, {"chains": [0], "lr": 0.01}])
    optimizer.param_groups[2]["lr"] = 0.01
    assert [len(group["params"]) for group in optimizer.param_groups] == [4, 4, 2]
    assert same(train(plain, made(ours, plain)), train(grouped, optimizer))


def test_groups_have_bounds_and_norms_of_their_own():
    model = network()
    paths = BasisPaths(model).unit_skeleton_()
    optimizer = GSGD(paths, groups=[{"chains": [1], "floor": 10.0, "momentum": 0.9, "maximize": True}])
    assert [group.get("norms") for group in optimizer.param_groups] == [[False], [True], None]
    train(model, optimizer)
    state = [bool(optimizer.state[chain.parameters[0]]) for chain in paths.chains]
    assert state == [False, True]


def test_a_pruned_skeleton_turns_the_norms_of_its_own_group():
    model = network()
    optimizer = GSGD(BasisPaths(model).unit_skeleton_(), 1e-3, groups=[{"chains": [1], "lr": 1e-4}])
    with torch.no_grad():
        model.get_parameter("5.weight")[1, 1] = 0.0
    train(model, optimizer, 1)
    assert [group.get("norms") for group in optimizer.param_groups] == [[False], [True], None]


@pytest.mark.parametrize(
    ("groups", "error", "match"),
    [
        ([{"chains": [2]}], ValueError, r"groups\[0\] names chain 2; expected 0 to 1"),
        ([{"chains": [0]}, {"chains": [1, 0]}], ValueError, r"groups\[1\] names chain 0, which is in a group already"),
        ([{"lr": 0.1}], TypeError, r"groups\[0\] is {'lr': 0.1}; expected a dict with 'chains'"),
        ([{"chains": [0], "rate": 0.1}], TypeError, r"groups\[0\] sets 'rate'; expected some of .*floor.*lr"),
        ([{"chains": [0], "lr": -1.0}], ValueError, "lr is -1.0; expected a positive number"),
        ([{"chains": [0], "foreach": True, "fused": True}], ValueError, "foreach and fused are True"),
        ([{"chains": [0], "differentiable": True}], ValueError, "differentiable is True"),
        ([{"chains": ["0"]}], ValueError, "names chain '0'; expected 0 to 1"),
        ([{"chains": None}], TypeError, r"groups\[0\] has chains None; expected a chain's number, or several"),
        ([{"chains": []}], TypeError, r"groups\[0\] has chains \[\]; expected a chain's number"),
    ],
    ids=str,
)
def test_groups_that_are_refused(ours, groups, error, match):
    with pytest.raises(error, match=match):
        made(ours, network(), groups=groups)


def test_parameters_join_later(kind):
    model, extra = network(), nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = made(kind, model)
    optimizer.add_param_group({"params": [extra], "lr": 0.5})
    assert optimizer.param_groups[-1]["foreach"] is None
    extra.grad = torch.tensor([1.0, -1.0], dtype=torch.float64)
    optimizer.step()
    assert extra.tolist() == [0.5, 1.5]
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [extra]})
    with pytest.raises(TypeError):
        optimizer.add_param_group([extra])  # pyright: ignore


def test_chains_do_not_join_later(ours):
    with pytest.raises(ValueError, match=r"add_param_group got chains.*where the optimizer is made"):
        made(ours, network()).add_param_group({"chains": [0], "lr": 0.1})


# ------------------------------------------------------------------------------------------------ hooks, copies


def test_hooks_are_called_as_by_torch(kind):
    model = network()
    optimizer = made(kind, model)
    seen: list[Any] = []
    optimizer.register_step_pre_hook(lambda its, args, kwargs: seen.append(("before", its is optimizer, args)))
    handle = optimizer.register_step_post_hook(lambda its, args, kwargs: seen.append(("after", its is optimizer, args)))
    optimizer.register_state_dict_pre_hook(lambda its: seen.append("to be saved"))
    optimizer.register_state_dict_post_hook(lambda its, state: {**state, "more": 1})
    optimizer.register_load_state_dict_pre_hook(lambda its, state: {k: v for k, v in state.items() if k != "more"})
    optimizer.register_load_state_dict_post_hook(lambda its: seen.append("loaded"))
    train(model, optimizer, 1)
    state = optimizer.state_dict()
    assert state["more"] == 1
    optimizer.load_state_dict(state)
    handle.remove()
    train(model, optimizer, 1)
    before = ("before", True, (optimizer,))
    assert seen == [before, ("after", True, (optimizer,)), "to be saved", "loaded", before]


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "state-dict"])
def test_copies_with_groups_go_on_as_the_original(ours, way):
    settings: dict[str, Any] = {"momentum": 0.9} if ours is GSGD else {}
    settings["groups"] = [{"chains": [1], "lr": 0.02, "maximize": True}]
    model = network()
    optimizer = made(ours, model, **settings)
    train(model, optimizer)
    if way == "deepcopy":
        other, its = copy.deepcopy((model, optimizer))
    elif way == "pickle":
        other, its = pickle.loads(pickle.dumps((model, optimizer)))
    else:
        file = io.BytesIO()
        torch.save((model.state_dict(), optimizer.state_dict()), file)
        file.seek(0)
        saved, state = torch.load(file, weights_only=True)
        other = network()
        its = made(ours, other, **settings)
        other.load_state_dict(saved)
        its.load_state_dict(state)
    assert same(train(model, optimizer), train(other, its))
    assert [group["lr"] for group in its.param_groups] == [0.01, 0.02, 0.01]


def test_a_state_saved_before_these_settings_were_there_is_loaded(ours):
    model = network()
    optimizer = made(ours, model)
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        for name in ("maximize", "foreach", "capturable", "differentiable", "fused"):
            del group[name]
    optimizer.load_state_dict(state)
    other = network()
    assert same(train(model, optimizer), train(other, made(ours, other)))


def test_a_state_of_other_groups_is_refused(ours):
    """By torch: groups of other sizes."""
    state = made(ours, network(), groups=[{"chains": [1]}]).state_dict()
    with pytest.raises(ValueError, match="parameter group"):
        made(ours, network()).load_state_dict(state)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_are_cleared(kind, set_to_none):
    model = network()
    optimizer = made(kind, model)
    functional.cross_entropy(model(X), Y).backward()
    optimizer.zero_grad(set_to_none)
    assert all(p.grad is None if set_to_none else not cast(Tensor, p.grad).any() for p in model.parameters())


def test_it_prints_its_groups(kind):
    printed = repr(made(kind, network()))
    assert kind.__name__ in printed
    assert "maximize: False" in printed


# ------------------------------------------------------------------------------------------------ no host


def blank(x):
    """A tensor of a device that is not the CPU, without values: asking for one raises."""
    return torch.empty(x.shape, dtype=x.dtype, device="meta")


@pytest.mark.parametrize("tensor_rate", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("maximize", [False, True], ids=["down", "up"])
def test_off_the_cpu_no_step_waits_for_the_host(ours, tensor_rate, maximize):
    """The optimizer's own code; the operator inside is not run here, the next test does that. Capture needs a GPU."""
    model = network()
    settings = {"momentum": 0.9, "weight_decay": 0.1} if ours is GSGD else {}
    optimizer = made(ours, model, maximize=maximize, capturable=True, **settings)
    instead: dict[int, Any] = {id(p): nn.Parameter(blank(p)) for p in model.parameters()}
    parameters, events = [*instead.values()], blank(optimizer._events)
    twin = copy.deepcopy(optimizer, instead | {id(optimizer._events): events})
    if tensor_rate:
        for group in twin.param_groups:
            group["lr"] = blank(torch.ones((), dtype=torch.float64))
    before = [p._version for p in parameters]
    for _ in range(2):
        for p in parameters:
            p.grad = blank(p)
        twin.step()
    assert all(p._version > version for p, version in zip(parameters[-2:], before[-2:], strict=True))
    with pytest.raises(RuntimeError, match="meta"):
        _ = twin.kept  # the control


@pytest.mark.parametrize("norms", [False, True], ids=["skeleton", "norms"])
def test_the_definition_of_the_step_waits_for_no_value(norms):
    chain = BasisPaths(network()).chains[0]

    layers = []
    for layer in chain.layers:
        assert layer.bias is not None
        layers.append(Layer(*[blank(x) for x in (layer.weight,) * 2 + (layer.bias,) * 2 + (layer.weight, layer.bias)]))
    bones = chain.skeleton

    def moved(x):
        if isinstance(x, tuple) and type(x) is tuple:
            return tuple(moved(each) for each in x)
        return x.to("meta") if isinstance(x, torch.Tensor) else x

    fields = {field.name: moved(getattr(bones, field.name)) for field in dataclasses.fields(bones)}
    on_meta = dataclasses.replace(bones, **fields)
    events = torch.empty(3, dtype=torch.int64, device="meta")
    options = Options(torch.empty((), dtype=torch.float64, device="meta"), 0.9, 0.1, norms=norms)
    path_step_ref(layers, on_meta, layers[0].weight.new_empty(bones.runs), events, options)
