"""Smaller networks that compute the same, and what is said of those that cannot be made smaller."""

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune

from tropigrad.optim.l1_continuation.compaction import CompactionReport
from tropigrad.optim.l1_continuation.compaction import compact as _compact
from tropigrad.optim.l1_continuation.front import ParetoFront


def mlp(*sizes, activation: Any = nn.ReLU, bias=True, norm=False) -> Any:
    layers = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs, bias=bias)]
        layers += [nn.BatchNorm1d(outputs)] if norm else []
        layers += [activation()]
    return nn.Sequential(*layers[: -2 if norm else -1])


def lenet(padding=0, bias=True, padding_mode="zeros", pool: Any = lambda: nn.MaxPool2d(2)) -> Any:
    """For [N, 2, 16, 16]."""
    conv = {"padding": padding, "bias": bias, "padding_mode": padding_mode}
    side = ((16 - 2 + 2 * padding) // 2 - 2 + 2 * padding) // 2
    features = nn.Sequential(
        *(nn.Conv2d(2, 8, 3, **conv), nn.BatchNorm2d(8), nn.ReLU(), pool()),
        *(nn.Conv2d(8, 12, 3, **conv), nn.BatchNorm2d(12), nn.Tanh(), pool()),
    )
    head = nn.Sequential(nn.Linear(12 * side * side, 20, bias=bias), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(0.5))
    return nn.Sequential(features, nn.Flatten(), head, nn.Linear(20, 5))


def compact(model: Any, *args, **options) -> tuple[Any, CompactionReport]:
    return _compact(model, *args, **options)


IMAGES, ROWS = (4, 2, 16, 16), (6, 10)
NETWORKS = {
    "mlp": (lambda: mlp(10, 20, 20, 5), ROWS),
    "without biases": (lambda: mlp(10, 20, 20, 5, bias=False), ROWS),
    "tanh": (lambda: mlp(10, 20, 20, 5, activation=nn.Tanh), ROWS),
    "sigmoid": (lambda: mlp(10, 20, 20, 5, activation=nn.Sigmoid), ROWS),  # a unit without a bias is 1/2
    "elu": (lambda: mlp(10, 20, 20, 5, activation=nn.ELU), ROWS),
    "gelu": (lambda: mlp(10, 20, 20, 5, activation=nn.GELU), ROWS),
    "prelu": (lambda: mlp(10, 20, 20, 5, activation=nn.PReLU), ROWS),
    "prelu of units": (lambda: mlp(10, 20, 20, 5, activation=lambda: nn.PReLU(20)), ROWS),
    "batch norms": (lambda: mlp(10, 20, 20, 5, norm=True), ROWS),
    "batch norms without biases": (lambda: mlp(10, 20, 20, 5, norm=True, bias=False), ROWS),
    "bare batch norm": (
        lambda: nn.Sequential(nn.Linear(10, 9), nn.BatchNorm1d(9, affine=False), nn.Tanh(), nn.Linear(9, 5)),
        ROWS,
    ),
    "in a sequence": (lambda: mlp(10, 20, 20, 5), (3, 7, 10)),
    "a flattened sequence": (
        lambda: nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Flatten(), nn.Linear(56, 5)),
        (3, 7, 10),
    ),
    "a flattened sequence, normed": (
        lambda: nn.Sequential(nn.Linear(10, 8), nn.Flatten(), nn.BatchNorm1d(56), nn.Tanh(), nn.Linear(56, 5)),
        (3, 7, 10),
    ),
    "conv": (lenet, IMAGES),
    "conv without biases": (lambda: lenet(bias=False), IMAGES),
    "padded": (lambda: lenet(1), IMAGES),
    "padded without biases": (lambda: lenet(1, bias=False), IMAGES),
    "padded by reflection": (lambda: lenet(1, padding_mode="reflect"), IMAGES),
    "padded circularly": (lambda: lenet(1, padding_mode="circular"), IMAGES),
    "average pools": (lambda: lenet(1, pool=lambda: nn.AvgPool2d(2)), IMAGES),
    "padded average pools": (lambda: lenet(1, pool=lambda: nn.AvgPool2d(3, 2, padding=1)), IMAGES),
    "padded pools that do not count it": (
        lambda: lenet(1, pool=lambda: nn.AvgPool2d(3, 2, padding=1, count_include_pad=False)),
        IMAGES,
    ),
    "padded max pools": (lambda: lenet(1, pool=lambda: nn.MaxPool2d(3, 2, padding=1)), IMAGES),
    "padded pools and no padded conv": (
        lambda: nn.Sequential(
            *(nn.Conv2d(2, 8, 3), nn.AvgPool2d(3, 2, padding=1), nn.Conv2d(8, 6, 3), nn.Sigmoid()),
            *(nn.AvgPool2d(2, divisor_override=3), nn.Flatten(), nn.Linear(6 * 2 * 2, 5)),
        ),
        IMAGES,
    ),
    "flattened and normed": (
        lambda: nn.Sequential(
            *(nn.Conv2d(2, 4, 3, stride=4), nn.Flatten(), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 5))
        ),
        IMAGES,
    ),
    "pooled to one": (
        lambda: nn.Sequential(
            *(nn.Conv2d(2, 9, 3, padding="same"), nn.ReLU(), nn.Conv2d(9, 7, 1), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 5)),
        ),
        IMAGES,
    ),
    "conv1d": (
        lambda: nn.Sequential(
            *(nn.Conv1d(2, 9, 5), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(9, 7, 3, padding=1), nn.BatchNorm1d(7)),
            *(nn.Tanh(), nn.Flatten(), nn.Linear(42, 5)),
        ),
        (4, 2, 16),
    ),
    "conv3d": (
        lambda: nn.Sequential(
            *(nn.Conv3d(1, 6, 3), nn.BatchNorm3d(6), nn.ReLU(), nn.Conv3d(6, 4, 3), nn.Flatten(), nn.Linear(32, 5))
        ),
        (3, 1, 6, 6, 6),
    ),
}
ALL = pytest.mark.parametrize(("make", "shape"), NETWORKS.values(), ids=NETWORKS)


def thinned(model, share, units):
    """Random zeros, whole rows and columns of units, and random statistics of BatchNorms."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                if module.running_mean is not None and module.running_var is not None:
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 2)
                if module.affine:
                    module.weight.normal_().mul_(torch.rand_like(module.weight) > units)
                    module.bias.normal_()
            elif isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
                weight = module.weight
                weight.mul_(torch.rand_like(weight) > share)
                weight.mul_(
                    (torch.rand_like(weight[:, :1].flatten(1)[:, 0]) > units).view(-1, *[1] * (weight.dim() - 1))
                )
                weight.mul_((torch.rand(weight.shape[1]) > units).view(1, -1, *[1] * (weight.dim() - 2)))
                if module.bias is not None:
                    module.bias.mul_(torch.rand_like(module.bias) > 0.3)
    return model


def same(model, small, shape, tolerance=1e-6):
    """The outputs are equal; returns whether they depend on the input."""
    model, x = copy.deepcopy(model).eval(), torch.randn(shape)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(small(x), expected, rtol=tolerance, atol=tolerance)
        exact = copy.deepcopy(model).double()(x.double())
        torch.testing.assert_close(copy.deepcopy(small).double()(x.double()), exact, rtol=tolerance, atol=tolerance)
    return bool((expected != expected[0]).any())


def idle(model):
    """Names of hidden layers with a unit whose incoming weights are all 0: in a Sequential without padding, none."""
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return [n for n, m in layers[:-1] if len(m.weight) > 1 and (m.weight.flatten(1) == 0).all(1).any()]


# ------------------------------------------------------------------------------------------------- the same outputs


@pytest.mark.parametrize(("share", "units"), [(0.3, 0.0), (0.3, 0.15), (0.8, 0.1), (0.97, 0.5)], ids=str)
@ALL
def test_it_computes_what_the_masked_network_does(make, shape, share, units):
    alive = dropped = 0
    for _ in range(3):
        model = thinned(make(), share, units)
        before = copy.deepcopy(model.state_dict())
        small, report = compact(model)
        alive += same(model, small, shape)
        dropped += any(after < before for before, after in report.layers.values())
        assert not small.training
        assert report.parameters == sum(p.numel() for p in small.parameters())
        assert report.parameters_before == sum(p.numel() for p in model.parameters())
        assert report.parameters <= report.parameters_before
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert alive or share > 0.3, "no network was left whose output depends on its input: the test tests nothing"
    assert dropped or units == 0


@ALL
def test_a_network_without_dead_units_stays_as_it_is(make, shape):
    model = make()
    small, report = compact(model)
    assert all(before == after for before, after in report.layers.values())
    assert report.parameters == report.parameters_before
    assert not report.left
    assert all(torch.equal(a, b) for a, b in zip(small.state_dict().values(), model.state_dict().values(), strict=True))


@ALL
def test_all_units_of_a_layer_dead(make, shape):
    for dead in range(3):
        model = thinned(make(), 0.1, 0)
        layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)]
        with torch.no_grad():
            layers[dead % (len(layers) - 1)].weight.zero_()
        small, _ = compact(model)
        same(model, small, shape)


@ALL
def test_nothing_left_at_all(make, shape):
    model = make()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    small, report = compact(model)
    same(model, small, shape)
    assert all(after == 1 for _, after in report.layers.values())


@ALL
def test_twice_is_once(make, shape):
    once = compact(thinned(make(), 0.9, 0.2))[0]
    twice, report = compact(once)
    assert report.parameters == report.parameters_before
    assert all(before == after for before, after in report.layers.values())
    same(once, twice, shape)


# --------------------------------------------------------------------------------------------------- the units dropped


def sized(report):
    return {name: after for name, (_, after) in report.layers.items()}


def test_units_without_outgoing_weights_go():
    model = mlp(10, 20, 5)
    with torch.no_grad():
        model[2].weight[:, 3:] = 0
    small, report = compact(model)
    assert sized(report) == {"0": 3}
    assert torch.equal(small[0].weight, model[0].weight[:3])
    assert torch.equal(small[2].bias, model[2].bias)
    assert (report.parameters, report.parameters_before) == (3 * 10 + 3 + 3 * 5 + 5, 20 * 10 + 20 + 20 * 5 + 5)
    assert report.bytes == 4 * report.parameters


def test_constant_units_go_into_the_bias_through_the_activation():
    model = mlp(10, 20, 5, activation=nn.Tanh)
    with torch.no_grad():
        model[0].weight[4:] = 0
    small, report = compact(model)
    assert sized(report) == {"0": 4}
    expected = model[2].bias + model[2].weight[:, 4:] @ model[0].bias[4:].tanh()
    torch.testing.assert_close(small[2].bias, expected)


def test_what_a_dropped_unit_empties_goes_too():
    """Units 5 and up of the first layer reach the last through unit 0 of the second alone, which reaches nothing."""
    model = mlp(10, 20, 20, 5)
    with torch.no_grad():
        model[2].weight[1:, 5:] = 0
        model[4].weight[:, 0] = 0
    assert sized(compact(model)[1]) == {"0": 5, "2": 19}
    with (
        torch.no_grad()
    ):  # and onward: unit 7 of the second has one weight, out of a unit of the first that is constant
        model[2].weight[7] = 0
        model[2].weight[7, 2] = 1
        model[0].weight[2] = 0
    small, report = compact(model)
    assert sized(report) == {"0": 4, "2": 18}
    same(model, small, ROWS)


def test_a_scale_of_zero_makes_a_unit_constant():
    model = mlp(10, 20, 5, norm=True)
    with torch.no_grad():
        model[1].weight[6:] = 0
        model[1].bias.normal_()
    small, report = compact(model)
    assert sized(report) == {"0": 6}
    assert small[1].num_features == 6
    assert small[1].running_var.shape == (6,)
    same(model, small, ROWS)


def test_no_unit_without_incoming_weights_is_left():
    for _ in range(10):
        model = thinned(lenet(), 0.95, 0.2)
        assert idle(model)
        assert not idle(compact(model)[0])


def test_zero_padding_keeps_one_constant_unit_for_all():
    model: Any = nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3)
    )
    with torch.no_grad():
        model[0].weight[3:] = 0
        model[0].bias[:] = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, -1.0, -2.0])  # of 5 constant units, 2 are 0
    small, report = compact(model)
    assert sized(report) == {"0": 4, "2": 4}
    assert "0" in report.left
    assert "2 pads with zeros" in report.left["0"]
    same(model, small, IMAGES)
    with torch.no_grad():
        model[0].bias[3:6] = -1
    small, report = compact(model)
    assert sized(report) == {"0": 3, "2": 4}
    assert not report.left
    same(model, small, IMAGES)


def test_a_pool_that_counts_its_padding_keeps_constant_units():
    model: Any = nn.Sequential(nn.Conv2d(2, 8, 3), nn.AvgPool2d(3, 2, padding=1), nn.Conv2d(8, 4, 3))
    with torch.no_grad():
        model[0].weight[3:] = 0
        model[0].bias[5:] = 0
    small, report = compact(model)
    assert sized(report) == {"0": 5}
    assert report.left == {"0": "constant units stay, which 1 makes another at the borders"}
    same(model, small, IMAGES)


def test_an_empty_layer_keeps_one_silent_unit():
    model = mlp(10, 20, 20, 5)
    with torch.no_grad():
        model[2].weight.zero_()
    small, report = compact(model)
    assert sized(report) == {"0": 1, "2": 1}
    assert report.left["2"] == "one unit of no use stays, since a layer cannot be empty"
    same(model, small, ROWS)


def test_a_bias_is_made_where_there_is_none():
    model: Any = nn.Sequential(nn.Linear(10, 20), nn.Sigmoid(), nn.Linear(20, 5, bias=False))
    with torch.no_grad():
        model[0].weight[4:] = 0
    small, _ = compact(model)
    assert small[2].bias is not None
    same(model, small, ROWS)


def test_it_can_be_trained_further():
    model = thinned(lenet(), 0.9, 0.3)
    model[0][0].weight.requires_grad_(False)
    small = compact(model)[0].train()
    small(torch.randn(IMAGES)).square().sum().backward()
    grads = {name: p.grad for name, p in small.named_parameters()}
    assert grads.pop("0.0.weight") is None
    assert all(grad is not None and grad.isfinite().all() for grad in grads.values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_dtypes_are_kept(dtype):
    model = thinned(mlp(10, 20, 20, 5), 0.8, 0.3).to(dtype)
    small = compact(model)[0]
    assert {p.dtype for p in small.parameters()} == {dtype}
    x = torch.randn(ROWS).to(dtype)
    with torch.no_grad():
        tolerance = 1e-14 if dtype == torch.float64 else 0.05
        torch.testing.assert_close(small(x), model(x), rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------------------------------------------- other forwards


class Net(nn.Module):
    """As people write them, with functions in the forward."""

    def __init__(self, flatten):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 8, 3), nn.Conv2d(8, 6, 3)
        self.fc1, self.fc2 = nn.Linear(24, 16), nn.Linear(16, 5)
        self.flatten = flatten

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.avg_pool2d(torch.tanh(self.conv2(x)), 2)
        x = self.flatten(x).relu()
        x = functional.dropout(functional.leaky_relu(self.fc1(x), 0.1), training=self.training)
        return functional.log_softmax(self.fc2(x), dim=1)


@pytest.mark.parametrize(
    "flatten",
    [
        *(lambda x: torch.flatten(x, 1), lambda x: x.flatten(start_dim=1), lambda x: x.view(x.size(0), -1)),
        *(lambda x: x.reshape(x.shape[0], -1), lambda x: x.view((x.size()[0], -1))),
    ],
    ids=["torch.flatten", "flatten", "view", "reshape", "view of a tuple"],
)
def test_functions_in_a_forward(flatten):
    model = thinned(Net(flatten), 0.4, 0.1)
    with torch.no_grad():
        for layer in (model.conv1, model.conv2, model.fc1):
            layer.weight[1] = 0
    small, report = compact(model, example_inputs=torch.randn(IMAGES))
    assert not report.left
    assert set(report.layers) == {"conv1", "conv2", "fc1"}
    assert all(after < before for before, after in report.layers.values())
    assert same(model, small, IMAGES)


class Pools(nn.Module):
    def __init__(self, padding):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 8, 3), nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(8 * 9, 5)
        self.padding = padding

    def forward(self, x):
        x = functional.max_pool2d(self.conv1(x), 3, 2, 1)
        x = functional.avg_pool2d(self.conv2(x), 2, padding=self.padding, count_include_pad=True)
        return self.fc(functional.adaptive_max_pool2d(x, 3).flatten(1))


@pytest.mark.parametrize(("padding", "expected"), [(0, 3), (1, 5)])
def test_pools_in_a_forward(padding, expected):
    model: Any = Pools(padding)
    with torch.no_grad():
        model.conv1.weight[6:] = 0
        model.conv2.weight[3:] = 0
        model.conv2.bias[5:] = 0
    small, report = compact(model)
    assert sized(report) == {"conv1": 6, "conv2": expected}
    assert set(report.left) == ({"conv2"} if padding else set())
    assert same(model, small, IMAGES)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(10, 10) for _ in range(4))

    def forward(self, x):
        x = self.a(x).relu()
        return self.d(x + self.c(self.b(x).relu()))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(10, 10), nn.Linear(10, 5)

    def forward(self, x):
        return self.b(self.a(x) if x.sum() > 0 else x)


class CountsUnits(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(10, 10), nn.Linear(10, 5)

    def forward(self, x):
        return self.b(self.a(x)) * self.a.out_features


class FixedSizes(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3), nn.Linear(4 * 14 * 14, 5)

    def forward(self, x):
        return self.b(self.a(x).view(-1, 4 * 14 * 14))


class DividesByUnits(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(10, 10), nn.Linear(10, 5)

    def forward(self, x):
        x = self.a(x)
        return self.b(x) / x.shape[1]


def shared():
    model = mlp(10, 10, 10, 5)
    model[2].weight = model[0].weight
    return model


def twice():
    layer = nn.Linear(10, 10)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(10, 5))


def hooked():
    model = mlp(10, 10, 10, 5)
    model[1].register_forward_hook(lambda module, inputs, output: output + 1)
    return model


def hooked_layer():
    model = mlp(10, 10, 10, 5)
    model[2].register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    return model


def between(*layers):
    return nn.Sequential(nn.Linear(10, 10), *layers, nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 5))


KEPT = {
    "residual": (
        Residual,
        {"a": "its output is used more than once", "c": "add joins its output with another"},
        {"b"},
    ),
    "control flow": (
        Branching,
        dict.fromkeys("ab", "the forward of Branching cannot be traced by torch.fx (TraceError)"),
        set(),
    ),
    "fixed sizes": (
        FixedSizes,
        {"a": "view follows, with sizes of its own; flatten(1) would do for any number of units"},
        set(),
    ),
    "divides by its units": (DividesByUnits, {"a": "its output is used more than once"}, set()),
    "shared": (
        shared,
        {"0": "it shares a parameter with another module", "2": "it shares a parameter with another module"},
        set(),
    ),
    "used twice": (twice, {"0": "it is used more than once"}, set()),
    "a hook": (hooked, {"0": "1 follows, which has forward hooks"}, {"2"}),
    "a layer's hook": (
        hooked_layer,
        {
            "0": "2 takes its units, and it has forward hooks, which may compute its weights or change its output",
            "2": "it has forward hooks, which may compute its weights or change its output",
        },
        set(),
    ),
    "softmax": (
        lambda: between(nn.Softmax(1)),
        {"0": "1 follows, which is not known to act on each of its units alone"},
        {"2"},
    ),
    "layer norm": (
        lambda: between(nn.LayerNorm(10)),
        {
            "0": "1 follows, which is not known to act on each of its units alone",
            "1": "compact does not know LayerNorm",
        },
        {"2"},
    ),
    "statistics of the batch": (
        lambda: between(nn.BatchNorm1d(10, track_running_stats=False)),
        {
            "0": "1 follows, and it has no running statistics, so a unit depends on the batch",
            "1": "it has no running statistics, so a unit depends on the batch",
        },
        {"2"},
    ),
    "parametrized": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(10, 9)), nn.ReLU(), nn.Linear(9, 5)),
        {"0": "compact does not know ParametrizedLinear"},
        set(),
    ),
    "groups": (
        lambda: nn.Sequential(nn.Conv2d(2, 8, 3), nn.Conv2d(8, 8, 3, groups=4), nn.ReLU(), nn.Conv2d(8, 2, 3)),
        {"0": "1 takes its units, and it has 4 groups", "1": "it has 4 groups"},
        set(),
    ),
    "another dimension": (
        lambda: nn.Sequential(nn.Conv2d(2, 8, 3), nn.Linear(14, 3), nn.Conv2d(8, 2, 3, groups=1)),
        {
            "0": "1 takes its output along another dimension than its units lie in",
            "1": "2 takes its output along another dimension than its units lie in",
        },
        set(),
    ),
    "a pool of units": (
        lambda: nn.Sequential(nn.Linear(10, 10), nn.AvgPool1d(2), nn.Linear(5, 5)),
        {"0": "1 follows, which is not known to act on each of its units alone"},
        set(),
    ),
    "flattens other dimensions": (
        lambda: nn.Sequential(nn.Conv2d(2, 8, 3), nn.Flatten(2), nn.Linear(196, 5)),
        {"0": "1 follows, and flattens dimensions (2, -1)"},
        set(),
    ),
}


@pytest.mark.parametrize(("make", "left", "shrinkable"), KEPT.values(), ids=KEPT)
def test_what_cannot_be_shrunk_is_named_and_left_as_it_is(make, left, shrinkable):
    model = thinned(make(), 0.8, 0.5)
    small, report = compact(model)
    assert {name: why for name, why in report.left.items() if name not in shrinkable} == left
    assert set(report.layers) == shrinkable
    shapes = {name: p.shape for name, p in model.named_parameters()}
    for name in left:
        prefix = f"{name}."
        assert all(p.shape[0] == shapes[n][0] for n, p in small.named_parameters() if n.startswith(prefix))
    if not isinstance(model, Branching):
        shape = IMAGES if isinstance(next(model.children()), nn.Conv2d) else ROWS
        same(model, small, shape)


def test_a_network_that_is_one_layer_has_nothing_to_drop():
    small, report = compact(nn.Linear(10, 5))
    assert report.layers == {}
    assert report.left == {}
    assert str(report) == "55 of 55 parameters, 220 of 220 bytes"
    assert small(torch.zeros(2, 10)).shape == (2, 5)


def test_an_output_that_ends_in_functions_is_no_layer_that_was_left():
    model: Any = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5), nn.LogSoftmax(1))
    assert not compact(model)[1].left


# ------------------------------------------------------------------------------------------------------- the figures


def test_the_report_is_a_table_with_measured_times():
    model = mlp(10, 20, 20, 5)
    with torch.no_grad():
        model[0].weight[3:] = 0
        model[2].weight.zero_()
    small, report = compact(model, example_inputs=torch.randn(ROWS))
    assert report.seconds is not None
    assert report.seconds_before is not None
    assert report.speedup is not None
    assert report.seconds.value > 0
    assert report.speedup.low <= report.speedup.value <= report.speedup.high
    assert report.largest_difference is not None
    assert report.largest_difference <= 1e-6
    lines = str(report).splitlines()
    assert lines[:5] == [
        "0  20 → 1 units",
        "2  20 → 1 units",
        "0  left: one unit of no use stays, since a layer cannot be empty",
        "2  left: one unit of no use stays, since a layer cannot be empty",
        "23 of 745 parameters, 92 of 2,980 bytes",
    ]
    assert lines[5].endswith("at most")
    assert compact(model)[1].seconds is None
    assert not small.training
    assert model.training


def test_the_front_compacts_a_point_and_leaves_its_model_as_it_is():
    model = thinned(lenet(), 0.9, 0.3)
    front = ParetoFront(model=model)
    front.append((1, 1), model.state_dict())
    expected = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.5)
    small, report = front.compact(0, example_inputs=torch.randn(IMAGES))
    same(expected, small, IMAGES)
    assert report.parameters < report.parameters_before
    assert all((p == 0.5).all() for p in model.parameters())
    assert model.training


def test_a_state_is_written_into_the_copy_alone():
    model = mlp(10, 20, 5)
    state = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    small, report = compact(model, state)
    assert sized(report) == {"0": 1}
    assert not small(torch.randn(ROWS)).any()
    assert model[0].weight.all()


def test_several_inputs_and_outputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = mlp(10, 20, 5), mlp(4, 20, 5)

        def forward(self, x, y):
            return {"sum": self.a(x) + self.b(y), "first": (self.a[0].bias.sum(),)}

    model = Two()
    with torch.no_grad():
        model.b[0].weight[6:] = 0
    inputs = torch.randn(3, 10), torch.randn(3, 4)
    small, report = compact(model, example_inputs=inputs)
    assert sized(report) == {"a.0": 20, "b.0": 6}
    torch.testing.assert_close(small(*inputs)["sum"], model(*inputs)["sum"], rtol=1e-6, atol=1e-6)


def pruned():
    model = mlp(10, 10, 10, 5)
    prune.random_unstructured(model[2], "weight", 0.5)
    return model


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: compact(pruned()), ValueError, "Sequential cannot be copied .*prune.remove"),
        (lambda: compact("model"), TypeError, "compact: model is a str; expected a torch.nn.Module"),
        (
            lambda: compact(mlp(10, 20, 5), mlp(10, 9, 5).state_dict()),
            ValueError,
            r"compact: the state does not fit the model \(Sequential\): 0.weight has shape \(9, 10\), not \(20, 10\)",
        ),
        (
            lambda: compact(thinned(CountsUnits(), 0, 0.5), example_inputs=torch.randn(ROWS)),
            ValueError,
            "the forward of CountsUnits depends on a layer's size",
        ),
    ],
    ids=["prune's mask", "no model", "another state", "a forward that counts units"],
)
def test_bad_input(call, kind, words):
    with pytest.raises(kind, match=words):
        call()
