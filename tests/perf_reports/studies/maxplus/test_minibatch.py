"""Training by mini-batches: the iterate that is kept, resumption bit for bit, objectives, averages; the search."""

import copy
import dataclasses

import pytest
import torch

from tropigrad.nn import CVaRLoss, LinearMinMax
from tropigrad.perf_reports.data import Dataset, load
from tropigrad.perf_reports.studies.maxplus import methods
from tropigrad.perf_reports.studies.maxplus.minibatch import MiniBatchTraining, judge, search_scale, shifted

from .conftest import HIDDEN, inseparable, separable


def network(data, scale=1.0, *, train_a=True, sparse=False):
    model = LinearMinMax(data.features, HIDDEN, data.classes, train_a=train_a, sparse=sparse)
    generator = torch.Generator().manual_seed(0)
    model.init_kmedoids(data.x_train, data.y_train, scale, margin=scale, generator=generator)
    return model


def inseparable_of(features):
    data = inseparable()
    x, x_test = (torch.nn.functional.pad(part, (0, features - 4)) for part in (data.x_train, data.x_test))
    return Dataset(x, data.y_train, x_test, data.y_test, data.name)


def held_out(data):
    return data.x_test[:20], data.y_test[:20]


def training(data=None, *, model=None, **settings):
    data = inseparable() if data is None else data
    model = network(data, sparse=settings.get("sparse", False)) if model is None else model
    return MiniBatchTraining(model, data, **{"epochs": 4, "batch": 16, "validation": held_out(data), **settings})


def without_seconds(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.mark.parametrize("objective", ["mean", "cvar", "worst"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_every_objective_lowers_the_mean_loss(objective, sparse):
    run = training(separable(), objective=objective, alpha=0.25, epochs=15, sparse=sparse)
    before = run.judge(run.dataset.x_train, run.dataset.y_train)
    run.run()
    assert run.judge(run.dataset.x_train, run.dataset.y_train).mean_loss < before.mean_loss


def test_rows_are_those_of_the_other_methods():
    run = training()
    run.run()
    assert [row["iteration"] for row in run.history] == [0, 1, 2, 3, 4]
    expected = {"kind", "study", "method", "dataset", "iteration", "seconds", "loss", "train_accuracy", "test_accuracy"}
    assert all(expected < row.keys() and row["study"] == methods.NAME for row in run.history)
    assert run.seconds == run.history[-1]["seconds"] > 0


def test_the_iterate_that_is_right_most_often_is_kept():
    run = training(epochs=6, rate=0.03)
    run.run()
    best = max(run.history, key=lambda row: (row["validation_accuracy"], -row["validation_loss"]))
    assert run.best_row == best
    kept = judge(run.model, *held_out(run.dataset), run.loss.temperature)
    assert (kept.accuracy, kept.mean_loss) == (best["validation_accuracy"], best["validation_loss"])


def test_without_validation_the_last_iterate_is_kept():
    run = training(validation=None)
    while not run.is_done:
        run.advance()
    last = copy.deepcopy(run.model.state_dict())
    run.load_best()
    assert all(torch.equal(run.model.state_dict()[name], value) for name, value in last.items())
    assert run.best_row["iteration"] == 4


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="plain"),
        pytest.param({"average": 0.9, "warm_up": 3}, id="averaged"),
        pytest.param({"learn_temperature": True}, id="learned temperature"),
        pytest.param({"end_temperature": 1 / 32, "objective": "cvar", "alpha": 0.3}, id="annealed"),
        pytest.param({"shifts": 1}, id="shifts"),
        pytest.param({"sparse": True}, id="sparse"),
        pytest.param({"sparse": True, "rule": "adagrad"}, id="sparse adagrad"),
        pytest.param({"rule": "rmsprop"}, id="rmsprop"),
    ],
)
def test_a_resumed_run_goes_through_the_same_iterates(tmp_path, settings):
    whole, part = training(**settings), training(**settings)
    whole.run()
    for batches in (None, 2):  # an epoch, then within the next
        part.advance(batches)
        torch.save(part.state_dict(), tmp_path / "state.pt")
        part = training(**settings)
        part.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    part.run()
    assert without_seconds(part.history) == without_seconds(whole.history)
    for ours, theirs in ((part.best, whole.best), (part._averaged, whole._averaged)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_an_epoch_in_parts_is_an_epoch():
    whole, parts = training(), training()
    whole.advance()
    while parts.iteration == 0:
        parts.advance(1)
    assert without_seconds(parts.history) == without_seconds(whole.history)


def test_an_epoch_sees_every_sample_once():
    data = inseparable()
    seen = []

    class Watched(LinearMinMax):
        def forward(self, x):
            seen.append(x.clone())
            return super().forward(x)

    model = Watched(data.features, HIDDEN, data.classes)
    run = training(data, model=model, validation=None)
    seen.clear()
    run.advance()
    order = torch.cat(seen[: run.batches])
    assert len(order) == len(data.y_train)
    assert sorted(order.tolist()) == sorted(data.x_train.tolist())
    assert not torch.equal(order, data.x_train)


def test_judging_leaves_the_weights_and_uses_the_average():
    run = training(average=0.9)
    run.advance()
    before = copy.deepcopy(run.model.state_dict())
    judged = run.judge(run.dataset.x_test, run.dataset.y_test)
    assert all(torch.equal(run.model.state_dict()[name], value) for name, value in before.items())
    run.model.load_state_dict(run._averaged)
    assert judged == judge(run.model, run.dataset.x_test, run.dataset.y_test, run.loss.temperature)


def test_the_losses_of_a_judgement_are_those_of_the_samples():
    data = inseparable()
    model = network(data)
    judged = judge(model, data.x_train, data.y_train, 0.25)
    scores = model(data.x_train)
    assert judged.mean_loss == pytest.approx(CVaRLoss(temperature=0.25)(scores, data.y_train).item(), rel=1e-5)
    assert judged.worst_loss == pytest.approx(CVaRLoss(1e-9, temperature=0.25)(scores, data.y_train).item(), rel=1e-5)


@pytest.fixture
def in_float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def test_scale_temperature_and_rate_go_together(in_float64):
    """f is homogeneous in the weights, and Adam's steps do not depend on the gradient's scale, but for its eps."""
    data = separable()  # in float64: Adam divides a gradient that is nothing but rounding by its own size
    data = dataclasses.replace(data, x_train=data.x_train.double(), x_test=data.x_test.double())
    one = training(data, model=network(data), temperature=0.25, rate=0.01)
    eight = training(data, model=network(data, scale=8.0), temperature=2.0, rate=0.08)
    for run in (one, eight):
        run.advance()
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(eight.model.state_dict()[name], 8 * value, rtol=1e-3, atol=1e-3)


def test_the_temperature_is_annealed_to_its_end():
    run = training(temperature=0.5, end_temperature=0.125, epochs=2)
    temperatures = [row["temperature"] for row in run.history]
    while not run.is_done:
        run.advance()
        temperatures.append(run.loss.temperature)
    assert temperatures[0] == 0.5
    assert 0.125 < temperatures[-1] < 0.16 < temperatures[1] < 0.5


def test_a_learned_temperature_moves():
    run = training(learn_temperature=True)
    run.run()
    assert run.loss.temperature != pytest.approx(1 / 8)


def test_shifted_images_are_the_images_moved():
    x = torch.rand(200, 25)
    moved = shifted(x, 1, torch.Generator().manual_seed(0)).view(-1, 5, 5)
    padded = torch.nn.functional.pad(x.view(-1, 5, 5), (1, 1, 1, 1))
    places = [(i, j) for i in range(3) for j in range(3)]
    of = [[torch.equal(m, p[i : i + 5, j : j + 5]) for i, j in places] for m, p in zip(moved, padded, strict=True)]
    assert all(map(any, of))
    assert torch.tensor(of).any(dim=0).all()  # by every shift


def test_digits_are_learned():
    pytest.importorskip("sklearn", reason="scikit-learn carries the data")
    data = load("digits")
    held = data.x_train[:200], data.y_train[:200]
    rest = Dataset(data.x_train[200:], data.y_train[200:], data.x_test, data.y_test, data.name)
    model = LinearMinMax(64, 100, 10, train_a=True)
    model.init_kmedoids(rest.x_train, rest.y_train, generator=torch.Generator().manual_seed(0))
    before = judge(model, *held, 1 / 8)
    run = MiniBatchTraining(model, rest, epochs=6, rate_of_a=1e-3, average=0.9, validation=held)
    run.run()
    assert run.best_row["validation_accuracy"] > before.accuracy


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        pytest.param({"shifts": 1, "data": inseparable_of(5)}, "shifts of 5 features; expected square", id="shifts"),
        pytest.param({"objective": "median"}, "objective is 'median'; expected mean, cvar, worst", id="objective"),
        pytest.param({"objective": "cvar", "alpha": 0.0}, r"alpha is 0.0; expected a share in \(0, 1\]", id="alpha"),
        pytest.param({"rule": "lion"}, "rule is 'lion'; expected adam", id="rule"),
        pytest.param({"temperature": -1.0}, "temperature is -1", id="temperature"),
        pytest.param({"end_temperature": 0.0}, "temperature is 0", id="end temperature"),
        pytest.param({"rate": 0.0}, "rate is 0.0; expected a positive", id="rate"),
        pytest.param({"rate_of_a": float("nan")}, "rate_of_a is nan", id="rate of A"),
        pytest.param({"epochs": 0}, "epochs is 0", id="epochs"),
        pytest.param({"average": 1.0}, r"average is 1.0; expected a decay in \[0, 1\)", id="average"),
        pytest.param({"learn_temperature": True, "end_temperature": 1.0}, "annealed and to be learned", id="both"),
    ],
)
def test_settings_out_of_range_are_named(settings, match):
    with pytest.raises(ValueError, match=match):
        training(**settings)


def test_a_model_that_is_not_trained_is_named():
    data = separable()
    with pytest.raises(ValueError, match="no parameter of the model requires a gradient"):
        training(data, model=network(data).requires_grad_(False))


# ------------------------------------------------------------------------------------------------ the search


def test_the_search_leaves_the_model_and_takes_the_pair_of_its_best_run():
    data = separable()
    model = network(data)
    before = copy.deepcopy(model.state_dict())
    scale = search_scale(
        model, data, held_out(data), temperatures=(0.5, 0.125), rates=(1e-6, 1e-2), batches=4, batch=16
    )
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    tried = [(trial["temperature"], trial["rate"]) for trial in scale.trials]
    assert tried == [(0.125, 1e-6), (0.125, 1e-2), (0.5, 1e-2)]
    losses = dict(zip(tried, [trial["loss"] for trial in scale.trials], strict=True))
    assert scale.rate == 1e-2, "the other one stays where it began"
    assert losses[scale.temperature, scale.rate] <= losses[0.125, 1e-2] < losses[0.125, 1e-6]


def test_the_search_is_the_same_twice():
    data = separable()
    first, second = (search_scale(network(data), data, held_out(data), batches=2, batch=16) for _ in range(2))
    assert first.trials == second.trials


def test_a_run_that_diverges_loses():
    data = separable()
    scale = search_scale(
        network(data), data, held_out(data), temperatures=(0.125,), rates=(1e38, 1e-3), batches=4, batch=16
    )
    assert scale.rate == 1e-3


@pytest.mark.parametrize(
    ("better", "leaves"), [(1e-2, True), (1.001e-6, False)], ids=["clearly better", "hardly better"]
)
def test_the_usual_pair_is_left_only_for_a_clearly_better_one(better, leaves):
    data = separable()
    settings = {"temperatures": (0.125,), "rates": (1e-6, better), "usual": (0.125, 1e-6), "batches": 24, "batch": 16}
    scale = search_scale(network(data, scale=0.2), data, held_out(data), **settings)
    assert (scale.rate == better) is leaves


def test_a_usual_pair_that_is_not_tried_is_named():
    data = separable()
    with pytest.raises(ValueError, match=r"usual is \(1, 1\); expected one of"):
        search_scale(network(data), data, held_out(data), usual=(1, 1))


def test_the_usual_pair_is_left_where_it_diverges():
    data = separable()
    settings = {"temperatures": (0.125,), "rates": (1e38, 1e-3), "usual": (0.125, 1e38), "batches": 4, "batch": 16}
    assert search_scale(network(data), data, held_out(data), **settings).rate == 1e-3


@pytest.mark.parametrize("name", ["temperatures", "rates"])
def test_a_search_among_nothing_is_named(name):
    data, none = separable(), {name: ()}
    with pytest.raises(ValueError, match=f"0 {name}"):
        search_scale(network(data), data, held_out(data), **none)  # pyright: ignore
