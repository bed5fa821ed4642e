"""The Pareto front: which points it takes, and what it keeps of them."""

import itertools
import math
import os
import random
import re
from typing import Any

import pytest
import torch
from torch import nn

from tropigrad.optim.l1_continuation import front as module

ParetoFront: Any = module.ParetoFront  # some calls below are wrong on purpose
Point: Any = module.Point


def scattered(count, seed, grid=None):
    """Pairs (loss, ℓ¹); on a grid many are equal in one or both."""
    rng = random.Random(seed)
    pairs = [(rng.random() * 2.5, rng.random() * 400) for _ in range(count)]
    return pairs if grid is None else [(round(a * grid) / grid, round(b * grid / 100)) for a, b in pairs]


CLOUDS = [pytest.param(scattered(40, seed, grid), id=f"{seed}-{grid}") for seed in range(3) for grid in (None, 2)]


def network(hidden=4) -> Any:
    return nn.Sequential(nn.Linear(3, hidden), nn.BatchNorm1d(hidden), nn.Tanh(), nn.Linear(hidden, 2))


def walked(count=5, model: Any = None, **options) -> Any:
    """A front of a network whose weights were all different at each point."""
    model = network() if model is None else model
    front = ParetoFront(model=model, **options)
    for i in range(count):
        with torch.no_grad():
            for tensor in (*model.parameters(), model[1].running_mean):
                tensor.normal_().mul_(torch.rand_like(tensor) > 0.1 * i)
        front.append(Point(1 / (1 + i), 10.0 + i, nnz=i, phase="dense", lam=math.inf), model.state_dict())
    return front


# ------------------------------------------------------------------------------------------------ who dominates whom


@pytest.mark.parametrize("pairs", CLOUDS)
def test_non_dominated_are_those_that_no_other_betters(pairs):
    chosen = ParetoFront(pairs).non_dominated()
    better = lambda a, b: a != b and a[0] <= b[0] and a[1] <= b[1]  # noqa: E731
    expected = {i for i, a in enumerate(pairs) if not any(better(b, a) for b in pairs) and pairs.index(a) == i}
    assert set(chosen) == expected
    assert [pairs[i][1] for i in chosen] == sorted(pairs[i][1] for i in chosen)


def area(pairs, ref):
    """Cell by cell of the grid that all coordinates draw."""
    losses, norms = (sorted({*(p[k] for p in pairs if p[k] < ref[k]), ref[k]}) for k in (0, 1))
    return math.fsum(
        (loss_end - loss) * (l1_end - l1)
        for (loss, loss_end), (l1, l1_end) in itertools.product(itertools.pairwise(losses), itertools.pairwise(norms))
        if any(p[0] <= loss and p[1] <= l1 for p in pairs)
    )


@pytest.mark.parametrize("ref", [(2.303, 400), (1.0, 150), (0.0, 0.0)], ids=str)
@pytest.mark.parametrize("pairs", CLOUDS)
def test_hypervolume_is_the_area_by_its_definition(pairs, ref):
    assert ParetoFront(pairs).hypervolume(ref) == pytest.approx(area(pairs, ref), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("pairs", CLOUDS)
def test_hypervolume_is_that_of_moocore(pairs):
    moocore = pytest.importorskip("moocore", reason="moocore computes it too: pip install moocore")
    expected = float(moocore.hypervolume(pairs, ref=(2.303, 400)))
    assert ParetoFront(pairs).hypervolume((2.303, 400)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("pairs", CLOUDS)
def test_hypervolume_grows_with_points_and_only_with_those_that_are_not_dominated(pairs):
    ref = (2.303, 400)
    front = ParetoFront(pairs[:1])
    for i, pair in enumerate(pairs[1:], 1):
        before = front.hypervolume(ref)
        front.append(pair)
        inside = pair[0] < ref[0] and pair[1] < ref[1]
        grows = i in front.non_dominated() and inside
        assert (front.hypervolume(ref) > before) == grows
        assert front.hypervolume(ref) >= before


def test_hypervolume_of_nothing_is_zero():
    assert ParetoFront().hypervolume((1, 1)) == 0
    assert ParetoFront([(1, 1)]).hypervolume((1, 2)) == 0


# ---------------------------------------------------------------------------------------------------- which to take


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        pytest.param([(1, 0), (0.2, 0.2), (0, 1)], 1, id="the corner"),
        pytest.param([(2, 0), (0.4, 20), (0, 100)], 1, id="the corner, whatever the units"),
        pytest.param([(0, 3), (3, 0), (1, 2), (2, 1)], 1, id="on the chord: the sparsest"),
        pytest.param([(1, 0), (0.6, 0.1), (0.1, 0.6), (0, 1)], 1, id="equally far: the sparser"),
        pytest.param([(1, 0), (0.9, 0.9), (0, 1)], 0, id="above the chord"),
        pytest.param([(0, 1), (1, 0)], 1, id="two: the sparser"),
        pytest.param([(1, 1), (2, 2)], 0, id="one that is not dominated"),
        pytest.param([(0.3, 0.3), (1, 0), (0.29, 0.9), (0.2, 0.2), (0, 1)], 3, id="dominated ones do not count"),
    ],
)
def test_knee(pairs, expected):
    assert ParetoFront(pairs).knee() == expected


def test_knee_does_not_depend_on_units_or_order():
    pairs = [(math.exp(-l1 / 30), l1) for l1 in range(1, 200, 7)]
    knee = pairs[ParetoFront(pairs).knee()]
    assert pairs.index(knee) not in (0, len(pairs) - 1)
    order = random.Random(0).sample(range(len(pairs)), len(pairs))
    scaled = [(1000 * pairs[i][0], pairs[i][1] / 64) for i in order]
    assert scaled[ParetoFront(scaled).knee()] == (1000 * knee[0], knee[1] / 64)


def validated(*triples):
    return ParetoFront(Point(1.0, l1, val_loss=val_loss, val_error=val_error) for l1, val_loss, val_error in triples)


def test_best_is_the_least_validation_loss_and_of_equals_the_sparser():
    assert validated((9, 0.5, 0.1), (7, 0.3, 0.1), (5, 0.3, 0.1), (3, 0.9, 0.1), (1, math.nan, None)).best() == 2


@pytest.mark.parametrize(("error", "expected"), [(0.05, 1), (0.1, 1), (0.25, 2), (1.0, 4)])
def test_one_se_is_the_sparsest_within_the_best_ones_standard_error(error, expected):
    others = 10.0  # the standard errors of other points do not count
    front = validated((9, 0.5, others), (7, 0.25, error), (5, 0.5, others), (4, None, None), (3, 1.0, others))
    assert front.best("one_se") == expected


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda f: ParetoFront().knee(), ValueError, "knee: the front has no points"),
        (lambda f: ParetoFront().best(), ValueError, "best: the front has no points"),
        (lambda f: f.best(), ValueError, "no point has a finite val_loss; run with a val_loader"),
        (lambda f: f.best("least"), ValueError, "'least'; expected 'val_loss' or 'one_se'"),
        (lambda f: validated((1, 0.5, None)).best("one_se"), ValueError, "point 0, the best, has val_error None"),
        (lambda f: f.hypervolume(3), TypeError, r"ref is 3; expected a pair \(loss, l1\)"),
        (lambda f: f.hypervolume((1, math.inf)), ValueError, "expected two finite numbers"),
        (lambda f: ParetoFront([(1, 2, 3)]), TypeError, r"point 0 is \(1, 2, 3\); expected a Point or a pair"),
        (lambda f: ParetoFront([("a", 2)]), TypeError, "expected a Point or a pair"),
        (lambda f: f.append((math.nan, 1)), ValueError, "point 3 has loss nan and l1 1.0; expected finite numbers"),
        (lambda f: f.append((1, -1)), ValueError, "l1 >= 0"),
        (lambda f: f.append(Point(1, 1, nnz="many")), TypeError, "expected a Point"),
        (lambda f: ParetoFront(model=3), TypeError, "model is a int; expected a torch.nn.Module"),
        (lambda f: f.merge([(1, 2)]), TypeError, "got a list; expected a ParetoFront"),
    ],
)
def test_bad_input(call, kind, words):
    front = ParetoFront([(1, 1), (2, 2), (3, 3)])
    with pytest.raises(kind, match=words):
        call(front)
    assert len(front) == 3


def test_points_are_what_was_given():
    front = ParetoFront([(1, 2), Point(0.5, 3, phase="sparse")])
    front.append(Point(torch.tensor(0.25), torch.tensor(4.0), nnz=torch.tensor(7)))
    assert front.points == (Point(1, 2), Point(0.5, 3, phase="sparse"), Point(0.25, 4, nnz=7))
    assert list(front) == list(front.points)
    assert len(front) == 3
    assert front[-1] is front.points[2]
    assert type(front[-1].loss) is float


# ------------------------------------------------------------------------------------------------------- its weights


def test_load_writes_weights_and_buffers_of_the_point():
    front = walked()
    states = {}
    for i in range(5):
        assert front.load(i) is front.model
        states[i] = {name: tensor.clone() for name, tensor in front.model.state_dict().items()}
    assert not torch.equal(states[0]["0.weight"], states[1]["0.weight"])
    assert not torch.equal(states[0]["1.running_mean"], states[1]["1.running_mean"])
    front.load(-5)
    for name, tensor in front.model.state_dict().items():
        assert torch.equal(tensor, states[0][name])


def test_points_keep_copies():
    model = network()
    front = ParetoFront(model=model)
    front.append((1, 1), dict(model.named_parameters()) | dict(model.named_buffers()))
    before = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.zero_()
    front.load(0)
    assert torch.equal(model[0].weight, before)
    assert model[0].weight.requires_grad


def test_sparsity_is_the_share_of_zeros_of_each_parameter():
    model = network()
    with torch.no_grad():
        model[0].weight[0] = 0
        model[3].bias.zero_()
    front = ParetoFront(model=model)
    front.append((1, 1), model.state_dict())
    shares = {"0.weight": 0.25, "0.bias": 0, "1.weight": 0, "1.bias": 1, "3.weight": 0, "3.bias": 1}
    assert front.sparsity(0) == shares


@pytest.mark.parametrize("method", ["load", "compact", "sparsity"])
@pytest.mark.parametrize("i", [5, -6, 1000])
def test_an_index_out_of_range_is_named_with_the_length(method, i):
    with pytest.raises(IndexError, match=f"{method}: index {i} of a front of 5 points; expected 0 to 4"):
        getattr(walked(), method)(i)


@pytest.mark.parametrize("method", ["load", "compact", "sparsity"])
def test_what_a_front_without_weights_lacks_is_said(method):
    with pytest.raises(ValueError, match=f"{method}: point 1 came as numbers, without weights"):
        getattr(ParetoFront([(1, 2), (2, 1)], network()), method)(1)
    with pytest.raises(TypeError, match="the index is a float; expected an integer"):
        getattr(walked(), method)(1.0)
    with pytest.raises(IndexError, match="expected none: it is empty"):
        getattr(ParetoFront(model=network()), method)(0)


@pytest.mark.parametrize("method", ["load", "compact"])
@pytest.mark.parametrize(
    ("other", "words"),
    [
        pytest.param(lambda: network(5), r"0.weight has shape \(4, 3\), not \(5, 3\)", id="shape"),
        pytest.param(lambda: nn.Linear(3, 4), "it lacks weight, bias and it has 0.weight, .* besides", id="names"),
        pytest.param(lambda: network().double(), "is torch.float32, and torch.float64 in the model", id="dtype"),
        pytest.param(lambda: network()[:3], "it has 3.weight, 3.bias besides", id="a part"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_and_stays(method, other, words):
    front, model = walked(), other()
    front.model = model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"ParetoFront.{method}: the front's weights do not fit the model .*{words}"):
        getattr(front, method)(0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_front_whose_model_is_missing_says_so():
    front = walked()
    front.model = None
    with pytest.raises(ValueError, match=r"load: the front has no model; set front.model"):
        front.load(0)


@pytest.mark.parametrize(
    ("state", "kind", "words"),
    [
        (lambda: network(5).state_dict(), ValueError, "differs from those of the front's other points: 0.weight has"),
        (lambda: {"a": torch.ones(1)}, ValueError, "it lacks 0.weight, .* and 5 more and it has a besides"),
        (lambda: {"a": 1}, TypeError, "the state has 'a': int; expected names and tensors"),
        (lambda: [torch.ones(1)], TypeError, "the state is a list"),
    ],
    ids=["shapes", "names", "no tensor", "no dict"],
)
def test_a_state_that_is_none_of_the_front_is_refused(state, kind, words):
    front = walked()
    with pytest.raises(kind, match=words):
        front.append((1, 1), state())
    assert len(front) == 5


def test_one_name_of_a_shared_parameter_suffices():
    model: Any = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    front = ParetoFront(model=model)
    front.append((1, 1), dict(model.named_parameters()))
    before = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.zero_()
    assert torch.equal(front.load(0)[1].weight, before)


# ------------------------------------------------------------------------------------------------------------ merged


def test_a_merged_front_contains_both():
    model = network()
    a, b = walked(3, model), walked(4, model)
    merged = a.merge(b)
    assert merged.points == a.points + b.points
    assert merged.model is model
    ref = (2, 20)
    assert merged.hypervolume(ref) >= max(a.hypervolume(ref), b.hypervolume(ref))
    front = {(p.loss, p.l1) for p in (merged[i] for i in merged.non_dominated())}
    assert front <= {(f[i].loss, f[i].l1) for f in (a, b) for i in f.non_dominated()}
    weight = b.load(1)[0].weight.detach().clone()
    merged.load(0)
    assert not torch.equal(model[0].weight, weight)
    assert torch.equal(merged.load(3 + 1)[0].weight, weight)
    assert (len(a), len(b)) == (3, 4)


def test_numbers_can_be_merged_with_a_run():
    merged = ParetoFront([(0.1, 5)]).merge(walked(2))
    assert len(merged) == 3
    merged.load(2)
    with pytest.raises(ValueError, match="point 0 came as numbers"):
        merged.load(0)


def test_fronts_that_do_not_belong_together_are_not_merged():
    with pytest.raises(ValueError, match=r"merge: the other front is of another network: 0.weight has shape \(5, 3\)"):
        walked().merge(walked(model=network(5)))
    with pytest.raises(ValueError, match=r"one front's l1 counts 0.bias, and the other's does not"):
        walked(penalized=["0.weight", "0.bias"]).merge(walked(penalized=["0.weight"]))
    with pytest.raises(ValueError, match="merge: the front's weights do not fit the model"):
        ParetoFront(model=network(5)).merge(walked())
    every_name = [name for name, _ in network().named_parameters()]
    assert len(walked(penalized=every_name).merge(walked())) == 10


# ------------------------------------------------------------------------------------------------------------- files


def test_what_is_saved_is_what_is_opened(tmp_path):
    front = walked(penalized=["0.weight"])
    front.append((7, 7))
    assert front.save(tmp_path / "front.pt") == tmp_path / "front.pt"
    assert os.listdir(tmp_path) == ["front.pt"]
    again = ParetoFront.open(tmp_path / "front.pt")
    assert again.points == front.points
    assert again.penalized == {"0.weight"}
    assert again.model is None
    assert [again.sparsity(i) for i in range(5)] == [front.sparsity(i) for i in range(5)]
    model = network()
    again = ParetoFront.open(tmp_path / "front.pt", model)
    for i in range(5):
        expected = {name: tensor.clone() for name, tensor in front.load(i).state_dict().items()}
        assert all(torch.equal(tensor, expected[name]) for name, tensor in again.load(i).state_dict().items())
    again.save(tmp_path / "again.pt")
    assert repr(ParetoFront.open(tmp_path / "again.pt", front.model)) == repr(front)


def test_an_empty_front_can_be_saved(tmp_path):
    ParetoFront().save(str(tmp_path / "front.pt"))
    assert len(ParetoFront.open(str(tmp_path / "front.pt"))) == 0


def test_saving_leaves_the_old_file_or_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "front.pt"
    ParetoFront([(1, 2)]).save(path)

    def half(content, file):
        file.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half)
        with pytest.raises(OSError, match="No space left"):
            ParetoFront([(3, 4)]).save(path)
    assert os.listdir(tmp_path) == ["front.pt"]
    assert ParetoFront.open(path).points == (Point(1, 2),)


def damaged(path):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def rewritten(**changes):
    return lambda path: torch.save(torch.load(path, weights_only=True) | changes, path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(damaged, "cannot be read .*: it is damaged", id="half"),
        pytest.param(lambda path: path.write_text("loss,l1"), "cannot be read", id="text"),
        pytest.param(lambda path: torch.save([1], path), "holds <class 'list'>; expected a file that", id="list"),
        pytest.param(
            lambda path: torch.save(network().state_dict(), path), "holds a dict with 0.weight, 0.bias", id="a model"
        ),
        pytest.param(rewritten(version=9), "is of version 9; this tropigrad reads 1", id="later"),
        pytest.param(rewritten(states=[]), "it has not one state for every point", id="a state too few"),
        pytest.param(rewritten(points=None), "is damaged", id="no points"),
        pytest.param(rewritten(points=[{"loss": 1, "cost": 2}] * 5), "has points with cost", id="a field too many"),
        pytest.param(rewritten(points=[{"loss": 1.0}] * 5), "is damaged: a point lacks l1", id="a field too few"),
    ],
)
def test_a_file_that_is_no_front_is_named(tmp_path, change, words):
    path = tmp_path / "front.pt"
    walked().save(path)
    change(path)
    with pytest.raises(ValueError, match=f"ParetoFront.open: {re.escape(str(path))} .*{words}|{words}"):
        ParetoFront.open(path)


def test_paths_that_lead_nowhere(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"front.pt is not there; expected a file that ParetoFront.save wrote"):
        ParetoFront.open(tmp_path / "front.pt")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        ParetoFront.open(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*missing; make it first"):
        ParetoFront().save(tmp_path / "missing" / "front.pt")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        ParetoFront().save(tmp_path)


def test_a_file_of_another_model(tmp_path):
    walked().save(tmp_path / "front.pt")
    with pytest.raises(ValueError, match="open: the front's weights do not fit the model"):
        ParetoFront.open(tmp_path / "front.pt", network(5))


# ----------------------------------------------------------------------------------------------------------- for eyes


def test_to_frame_has_a_row_a_point():
    pytest.importorskip("pandas", reason="to_frame makes a pandas DataFrame")
    front = ParetoFront([Point(1, 3, nnz=5, phase="dense"), (2, 4), (3, 1)])
    frame = front.to_frame()
    assert list(frame.loss) == [1, 2, 3]
    assert list(frame.non_dominated) == [True, False, True]
    assert frame.phase[0] == "dense"
    assert list(ParetoFront().to_frame().columns) == list(frame.columns)


def picture():
    """A front with dominated points, a knee and a choice of validation."""
    return ParetoFront(
        Point(math.exp(-l1 / 20) + (l1 == 40) * 0.5, l1, nnz=10 * l1, val_loss=abs(l1 - 60) / 100 + 0.2, val_error=0.11)
        for l1 in range(10, 110, 10)
    )


def test_plot_shows_every_point_and_marks_two():
    pytest.importorskip("matplotlib", reason="matplotlib draws it")
    front = picture()
    figure = front.plot()
    assert [axes.get_xlabel() for axes in figure.axes] == ["ℓ¹ norm", "nonzeros"]
    for axes, column in zip(figure.axes, ("l1", "nnz"), strict=True):
        lines = {line.get_label(): line for line in axes.lines}
        assert list(lines) == [
            "dominated", "front", f"knee: point {front.knee()}", "validation, one s.e.: point 4"
        ]  # fmt: skip
        assert list(lines["dominated"].get_xdata()) == [getattr(front[3], column)]
        assert list(lines["front"].get_xdata()) == [getattr(front[i], column) for i in front.non_dominated()]
        assert list(lines["validation, one s.e.: point 4"].get_ydata()) == [front[4].loss]


def test_plot_writes_pictures_whole(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib draws it")
    picture().plot(tmp_path / "front.png")
    picture().plot(str(tmp_path / "front.svg"))
    assert sorted(os.listdir(tmp_path)) == ["front.png", "front.svg"]
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "front.svg").read_text()


def test_plot_draws_in_axes_and_what_it_cannot_draw_in_is_named():
    matplotlib_figure = pytest.importorskip("matplotlib.figure", reason="matplotlib draws it")
    figure = matplotlib_figure.Figure()
    axes = figure.subplots(1, 2)
    assert picture().plot(axes[0]) is figure
    assert len(axes[0].lines) == 4
    assert not axes[1].lines
    assert len(ParetoFront().plot().axes) == 1
    assert len(ParetoFront([(1, 2), (2, 1)]).plot().axes) == 1
    with pytest.raises(TypeError, match="got a int; expected matplotlib Axes, a path or None"):
        picture().plot(3)


def test_it_says_the_essentials():
    assert repr(ParetoFront()) == "ParetoFront: no points yet"
    assert repr(ParetoFront([(0.5, 3)])).splitlines() == [
        "ParetoFront: 1 point, 1 not dominated, ℓ¹ 3 to 3, loss 0.5 to 0.5",
        "  knee:     0, loss 0.5, ℓ¹ 3",
        "  without weights: load, compact and sparsity have none",
    ]
    lines = repr(picture()).splitlines()
    assert lines[0] == "ParetoFront: 10 points, 9 not dominated, ℓ¹ 10 to 100, loss 0.006738 to 0.6353"
    assert lines[2] == "  one_se:   4, loss 0.08208, ℓ¹ 50, 500 nonzeros, val_loss 0.3"
