"""prune_units: outputs keep their bits, what is removed never wins, and what is left is all that does."""

import copy

import pytest
import torch
from torch import nn

from tropigrad.nn import (
    LinearMinMax,
    MaxPlusLinear,
    MaxPlusMLP,
    MinPlusLinear,
    ResidualMaxPlus,
    prune_units,
)


def whole(model, low=-9, high=9):
    """The model with integer weights: all sums are exact, whatever their order."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randint(low, high, parameter.shape, generator=generator))
    return model


def samples(n=40, d=6):
    return torch.randint(-5, 6, (n, d), generator=torch.Generator().manual_seed(1)).float()


def linear_min_max():
    torch.manual_seed(0)
    return LinearMinMax(6, 30, 3)


CHAINS = {
    "linear-min-max": linear_min_max,
    "linear-min-max, A trained": lambda: whole(LinearMinMax(6, 30, 3, train_a=True), -3, 3),
    "linear-min-max, sparse": lambda: whole(LinearMinMax(6, 30, 3, sparse=True), -3, 3),
    "one block": lambda: whole(MaxPlusMLP(6, 40, 3)),
    "two blocks": lambda: whole(MaxPlusMLP(6, [40, 20], 3)),
    "no bias": lambda: whole(MaxPlusMLP(6, 40, 3, bias=False)),
    "max over min": lambda: whole(nn.Sequential(nn.Linear(6, 30), MinPlusLinear(30, 20), MaxPlusLinear(20, 3))),
    "max over max": lambda: whole(nn.Sequential(nn.Linear(6, 30), MaxPlusLinear(30, 20), MaxPlusLinear(20, 3))),
    "an activation between": lambda: whole(
        nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Dropout(0.5), MaxPlusLinear(30, 3))
    ),
    "nested": lambda: whole(nn.Sequential(nn.Sequential(nn.Linear(6, 30)), nn.Sequential(MaxPlusLinear(30, 3)))),
    "a linear layer on top": lambda: whole(nn.Sequential(nn.Linear(6, 30), MaxPlusLinear(30, 5), nn.Linear(5, 3))),
    "residual": lambda: whole(nn.Sequential(nn.Linear(6, 8), ResidualMaxPlus(8, 40), ResidualMaxPlus(8, 40))),
    "linear-min-max on top": lambda: whole(nn.Sequential(nn.Linear(6, 4), LinearMinMax(4, 30, 3)), -3, 3),
}
chains = pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in CHAINS.items()])


@chains
def test_outputs_keep_their_bits_and_units_go(make):
    model, x = make(), samples()
    before = copy.deepcopy(model.state_dict())
    pruned = prune_units(model, x)
    assert torch.equal(pruned.model.eval()(x), model.eval()(x))
    assert sum(map(len, pruned.removed.values())) > 0
    assert pruned.parameters[1] == sum(p.numel() for p in pruned.model.parameters()) < pruned.parameters[0]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@chains
def test_kept_and_removed_are_all_inputs(make):
    pruned = prune_units(make(), samples())
    for name, wins in pruned.wins.items():
        together = torch.cat([pruned.kept[name], pruned.removed[name]])
        assert together.sort().values.tolist() == list(range(wins.shape[1]))


@chains
def test_nothing_is_left_to_remove(make):
    pruned = prune_units(make(), samples())
    again = prune_units(pruned.model, samples())
    assert not sum(map(len, again.removed.values()))
    assert again.parameters == (pruned.parameters[1], pruned.parameters[1])


@chains
def test_weights_that_never_win_may_be_cleared(make):
    model, x = make(), samples()
    pruned = prune_units(model, x, clear_weights=True)
    assert torch.equal(pruned.model.eval()(x), model.eval()(x))
    parameters = dict(pruned.model.named_parameters())
    for name, winning in pruned.winning_weights.items():
        weight = parameters.get(name, parameters.get(f"{name}.weight"))
        assert weight is not None
        assert int(weight.isfinite().sum()) == winning <= pruned.weights[name] == weight.numel()


def test_most_weights_of_a_linear_min_max_never_win():
    model, x = linear_min_max(), samples()
    pruned = prune_units(model, x, clear_weights=True)
    assert pruned.winning_weights["W1"] < pruned.weights["W1"]
    assert torch.isposinf(pruned.model.W1).sum() == pruned.weights["W1"] - pruned.winning_weights["W1"]
    assert not torch.isneginf(pruned.model.W1).any()


def test_counts_are_those_of_the_winners():
    model, x = linear_min_max(), samples()
    with torch.no_grad():
        u, leaves = (model.linear(x)[:, None, :] + model.W1).min(dim=2)
        units = (u[:, None, :] + model.W2).max(dim=2).indices
    pruned = prune_units(model, x, batch=7)
    for name, winners in (("W1", leaves), ("W2", units)):
        wins = pruned.wins[name]
        expected = torch.stack([torch.bincount(column, minlength=wins.shape[1]) for column in winners.T])
        assert torch.equal(wins, expected)
    assert pruned.kept["W2"].tolist() == units.unique().tolist()
    # leaves are needed by the units that are left, and by no others
    assert pruned.kept["W1"].tolist() == leaves[:, pruned.kept["W2"]].unique().tolist()
    assert [len(p) for p in (pruned.model.A, pruned.model.W1)] == [len(pruned.kept["W1"]), len(pruned.kept["W2"])]
    assert pruned.model.hidden == len(pruned.kept["W2"])


def test_a_start_as_k_medoids_keeps_the_medoids_that_are_nearest_to_a_sample():
    x = torch.rand(200, 6, generator=torch.Generator().manual_seed(0))
    model = LinearMinMax(6, 30, 3)
    start = model.init_kmedoids(x, torch.arange(200) % 3)
    pruned = prune_units(model, x)
    assert len(start.medoids) == len(pruned.kept["W2"]) == 30  # each is the nearest to itself, in its class
    few = x[:9]
    pruned = prune_units(model, few)
    assert len(pruned.kept["W2"]) <= 27
    assert torch.equal(pruned.model(few), model(few))


def test_what_a_pruned_network_makes_of_other_samples_is_bounded_by_the_whole_one():
    model = whole(MaxPlusMLP(6, 40, 3))
    pruned = prune_units(model, samples())
    other = torch.randn(500, 6).round()
    assert (pruned.model(other) <= model(other)).all()  # a max over fewer candidates


def test_a_dense_product_that_rounds_otherwise_keeps_more_units_and_the_bits():
    """Real weights: BLAS may sum a narrow product in another order, which the bits would show."""
    torch.manual_seed(0)
    model, x = MaxPlusMLP(100, 150, 3, lag=0.5), torch.randn(9, 100)
    pruned = prune_units(model, x)
    assert torch.equal(pruned.model(x), model(x))
    assert len(pruned.kept["layers.1"]) < 150


def test_units_of_what_cannot_be_cut_are_kept():
    convolution = nn.Sequential(nn.Conv1d(1, 4, 3), nn.Flatten(), MaxPlusLinear(16, 3))
    features = MaxPlusLinear(6, 3)
    masked = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 16)), MaxPlusLinear(16, 3))
    for model, x in ((convolution, torch.randn(4, 1, 6)), (features, torch.randn(4, 6)), (masked, torch.randn(4, 6))):
        pruned = prune_units(model, x)
        assert torch.equal(pruned.model(x), model(x))
        assert not any(map(len, pruned.removed.values()))
        (name,) = pruned.kept
        assert pruned.winning_weights[name] <= 12


def test_the_mode_and_what_is_trained_stay():
    model = MaxPlusMLP(6, 40, 3)
    model.layers[0].weight.requires_grad_(False)
    pruned = prune_units(model.train(), torch.randn(20, 6)).model
    assert pruned.training
    assert model.training
    assert [p.requires_grad for p in pruned.parameters()] == [False, True, True]
    loss = pruned(torch.randn(5, 6)).sum()
    loss.backward()
    assert pruned.layers[1].weight.grad is not None


def test_it_says_what_it_did():
    pruned = prune_units(whole(MaxPlusMLP(6, 40, 3)), samples())
    kept, winning = len(pruned.kept["layers.1"]), pruned.winning_weights["layers.1"]
    layer, total = pruned.describe()
    assert layer.startswith(f"layers.1: {kept} of 40 inputs are kept, {40 - kept} removed; {winning} of the {3 * kept}")
    assert total == f"{10 * kept} of 400 parameters ({kept / 40:.1%}); outputs on 40 samples unchanged"


# ------------------------------------------------------------------------------------------------ errors


class Crossed(nn.Module):
    """A forward that looks into a chain."""

    def __init__(self, below):
        super().__init__()
        self.chain = nn.Sequential(below, MaxPlusLinear(40, 3))

    def forward(self, x):
        return self.chain(x) + self.chain[0](x).sum(dim=1, keepdim=True)


def test_a_forward_that_uses_units_elsewhere_is_named():
    with pytest.raises(ValueError, match=r"the outputs of Crossed change .* otherwise than one after another"):
        prune_units(whole(Crossed(MinPlusLinear(6, 40))), samples())
    kept = prune_units(whole(Crossed(nn.Linear(6, 40))), samples()).kept  # a linear layer is kept as a whole
    assert len(kept["chain.1"]) == 40


def test_a_layer_in_two_places_is_named():
    layer = MaxPlusLinear(6, 6)
    with pytest.raises(ValueError, match="1 and 3 of Sequential are one layer in two places"):
        prune_units(nn.Sequential(nn.Linear(6, 6), layer, nn.Linear(6, 6), layer), samples())


@pytest.mark.parametrize(
    ("model", "x", "error", "match"),
    [
        pytest.param(None, samples(), TypeError, "model is a NoneType", id="no module"),
        pytest.param(linear_min_max(), [[0.0] * 6], TypeError, "x is a list", id="list"),
        pytest.param(linear_min_max(), torch.zeros(0, 6), ValueError, r"x has shape \(0, 6\)", id="no sample"),
        pytest.param(linear_min_max(), torch.zeros(2, 5), ValueError, r"expected \[\.\.\., 6\]", id="features"),
        pytest.param(nn.Linear(6, 3), samples(), ValueError, "no tropical layer in Linear", id="linear"),
        pytest.param(nn.LSTM(6, 3), samples(), ValueError, "no tropical layer in LSTM", id="LSTM"),
    ],
)
def test_what_cannot_be_pruned_is_named(model, x, error, match):
    with pytest.raises(error, match=match):
        prune_units(model, x)


def test_a_batch_of_none_is_named():
    with pytest.raises(ValueError, match="batch is 0"):
        prune_units(linear_min_max(), samples(), batch=0)


def test_a_pruned_network_does_not_start_anew():
    model = prune_units(linear_min_max(), samples(3)).model
    with pytest.raises(ValueError, match="as prune_units has left it; expected 12"):
        model.init_kmedoids(samples(), torch.arange(40) % 3)
