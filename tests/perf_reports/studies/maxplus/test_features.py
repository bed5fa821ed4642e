"""What a max-plus network is shown: principal components, and these along random directions."""

import pytest
import torch

from tropigrad.nn import LinearMinMax, chebyshev_distances
from tropigrad.perf_reports.data import Dataset
from tropigrad.perf_reports.studies import maxplus, runs
from tropigrad.perf_reports.studies.maxplus.features import (
    COMPONENTS,
    DIRECTIONS,
    View,
    principal_directions,
    scaled,
    view,
)


def images(n=200, d=36):
    """Points near a plane of four dimensions."""
    generator = torch.Generator().manual_seed(0)
    plane = torch.randn(4, d, generator=generator)
    return torch.randn(n, 4, generator=generator) @ plane + 0.01 * torch.randn(n, d, generator=generator)


def test_many_directions_make_the_maximum_norm_euclidean():
    x = images()
    b = principal_directions(x, components=4, directions=4000, seed=0)
    largest = chebyshev_distances(x @ b.T, x[:20] @ b.T)
    ratio = largest / torch.cdist(x, x[:20])
    ratio = ratio[torch.cdist(x, x[:20]) > 1.0]
    # of 4,000 directions in four dimensions one is close to any difference
    assert 0.9 < ratio.min() <= ratio.max() < 1.01


def test_a_network_on_the_features_is_one_on_the_pixels():
    """u = −λ ‖B (x − m)‖∞ / width: the network whose A is λ[B; −B] / width, its shift taken up by W1."""
    x, y = images(), torch.arange(200) % 3
    b = principal_directions(x, 4, 30, 0)
    seen = scaled(b, x[:150]).on(Dataset(x[:150], y[:150], x[150:], y[150:], "blobs"))
    width = (x[:150] @ b.T).amax(dim=0).sub((x[:150] @ b.T).amin(dim=0)).max()
    assert seen.x_train.min() == 0
    assert seen.x_train.max() == 1
    model = LinearMinMax(30, 9, 3)
    start = model.init_kmedoids(seen.x_train, seen.y_train, 64.0)
    u = model.min_units(model.linear(seen.x_test))
    distances = chebyshev_distances(x[150:] @ b.T, x[start.medoids] @ b.T)
    torch.testing.assert_close(u, -64.0 * distances / width, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("features", "count"), [("components", COMPONENTS), ("directions", DIRECTIONS)])
def test_features_lie_between_0_and_1_and_keep_the_ratios_of_distances(features, count):
    x = images()
    found = view(features, x, seed=0)
    assert found is not None
    seen = found.of(x)
    assert seen.shape == (200, count)
    assert (seen.min(), seen.max()) == (0, 1)
    torch.testing.assert_close(
        chebyshev_distances(seen, seen[:9]) * found.width, chebyshev_distances(x @ found.b.T, x[:9] @ found.b.T)
    )


def test_principal_components_are_orthonormal_and_keep_most_of_the_variance():
    x = images()
    found = view("components", x, seed=0)
    assert found is not None
    torch.testing.assert_close(found.b @ found.b.T, torch.eye(COMPONENTS), atol=1e-5, rtol=0)
    kept = (x @ found.b[-4:].T).var(dim=0).sum()  # of the plane's four dimensions
    assert kept > 0.999 * x.var(dim=0).sum()


def test_pixels_are_taken_as_they_are():
    assert view("pixels", images(), seed=0) is None


@pytest.mark.parametrize(
    ("features", "x", "match"),
    [
        ("wavelets", images(), "features is 'wavelets'; expected one of pixels, components, directions"),
        ("components", images(d=19), "20 principal components, of 200 samples with 19 features; expected 20 of both"),
        ("directions", images(n=7), "of 7 samples with 36 features"),
    ],
    ids=["unknown", "few features", "few samples"],
)
def test_features_that_do_not_fit_are_refused(features, x, match):
    with pytest.raises(ValueError, match=match):
        view(features, x, seed=0)


def test_a_saved_model_can_be_asked_about_pixels(tmp_path):
    x, y = images(), torch.arange(200) % 3
    dataset = Dataset(x[:150], y[:150], x[150:], y[150:], "blobs")
    summary = maxplus.train(dataset, tmp_path, features="directions", hidden=9, iterations=5)
    saved = torch.load(tmp_path / runs.MODEL, weights_only=True)
    assert (saved["config"]["features"], saved["config"]["in_features"]) == ("directions", DIRECTIONS)
    model = LinearMinMax(DIRECTIONS, 9, 3)
    model.load_state_dict(saved["state_dict"])
    right = model(View(*saved["view"]).of(x[150:])).argmax(dim=1) == y[150:]
    assert right.double().mean() == summary["test_accuracy"]
    again = maxplus.train(dataset, tmp_path, features="directions", hidden=9, iterations=8, resume=True)
    assert again["iterations"] == 8
    with pytest.raises(ValueError, match="features 'directions', asked for 'pixels'"):
        maxplus.train(dataset, tmp_path, hidden=9, iterations=9, resume=True)
