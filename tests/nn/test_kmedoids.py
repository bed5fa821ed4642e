"""k-medoids: against exhaustive search, its fixed point against every single exchange, and CLARA's sampling."""

import itertools

import pytest
import torch

from tropigrad.nn import chebyshev_distances, kmedoids


def cost(distances, medoids):
    return distances[:, list(medoids)].amin(dim=1).double().sum().item()


def test_distances_are_the_definition():
    x, m = torch.randn(20, 5), torch.randn(7, 5)
    assert torch.equal(chebyshev_distances(x, m), (x[:, None] - m).abs().amax(dim=-1))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("k", [1, 2, 3])
def test_close_to_the_best_of_all_sets(k, seed):
    x = torch.randn(14, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    distances = chebyshev_distances(x, x)
    best = min(cost(distances, medoids) for medoids in itertools.combinations(range(14), k))
    found = kmedoids(x, k)
    assert found.loss == pytest.approx(cost(distances, found.indices.tolist()))
    assert best - 1e-9 <= found.loss <= (1.1 if k > 1 else 1.0) * best + 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_no_single_exchange_improves_the_result(seed):
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(seed))
    distances = chebyshev_distances(x, x)
    found = kmedoids(x, 5)
    medoids = found.indices.tolist()
    assert len(set(medoids)) == 5
    for i, candidate in itertools.product(range(5), range(40)):
        assert cost(distances, [*medoids[:i], candidate, *medoids[i + 1 :]]) >= found.loss * (1 - 1e-6)


def test_swap_mends_what_build_chose():
    # three tight groups on a line; BUILD's first medoid lies in the middle one and two are wanted
    x = torch.tensor([[0.0], [0.1], [0.2], [5.0], [10.0], [10.1], [10.2]])
    found = kmedoids(x, 2)
    assert sorted(found.indices.tolist()) == [1, 5]
    assert found.swaps >= 1
    assert found.samples == 1


def test_clusters_that_are_apart_get_a_medoid_each():
    centres = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0], [50.0, 50.0]])
    x = (centres[:, None] + torch.randn(4, 30, 2)).flatten(0, 1)
    assert sorted((kmedoids(x, 4).indices // 30).tolist()) == [0, 1, 2, 3]


def test_all_points_as_medoids_cost_nothing():
    found = kmedoids(torch.randn(6, 2), 6)
    assert found.loss == 0
    assert sorted(found.indices.tolist()) == list(range(6))


def test_equal_points_still_give_different_medoids():
    found = kmedoids(torch.zeros(6, 2), 4)
    assert found.loss == 0
    assert len(set(found.indices.tolist())) == 4


def test_sampling_is_seeded_and_close():
    x = torch.randn(600, 4, generator=torch.Generator().manual_seed(0))
    whole = kmedoids(x, 6)
    first, second = (kmedoids(x, 6, max_samples=120, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first.indices, second.indices)
    assert first.samples == 5
    assert whole.loss <= first.loss * (1 + 1e-6)
    assert first.loss < 1.15 * whole.loss
    assert first.loss == pytest.approx(cost(chebyshev_distances(x, x), first.indices.tolist()))


@pytest.mark.parametrize(
    ("x", "k", "match"),
    [
        pytest.param(torch.zeros(3, 2), 4, r"k is 4 and x has shape \(3, 2\)", id="more medoids than points"),
        pytest.param(torch.zeros(3, 2), 0, "k is 0", id="no medoid"),
        pytest.param(torch.zeros(3), 1, r"expected x \[n, d\]", id="rank"),
        pytest.param(torch.tensor([[0.0], [float("inf")]]), 1, "finite features", id="infinite"),
        pytest.param(torch.zeros(3, 0), 1, r"x has shape \(3, 0\); expected \[n, d\] with d ≥ 1", id="no features"),
        pytest.param(torch.tensor([[3e38], [-3e38]]), 1, "x spans more than torch.float32 holds", id="too far apart"),
        pytest.param(torch.zeros(3, 2, device="meta"), 1, "x is on meta", id="meta"),
    ],
)
def test_bad_input_is_named(x, k, match):
    with pytest.raises(ValueError, match=match):
        kmedoids(x, k)


@pytest.mark.parametrize("name", ["max_samples", "samples"])
@pytest.mark.parametrize("points", [10, 100])
def test_a_sampling_of_nothing_is_refused(name, points):
    with pytest.raises(ValueError, match=f"{name} is 0; expected at least 1"):
        kmedoids(torch.randn(points, 2), 2, **({"max_samples": 20} | {name: 0}))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        pytest.param({"k": 2.5}, "k is 2.5; expected an integer", id="fraction"),
        pytest.param({"k": True}, "k is True; expected an integer", id="truth"),
        pytest.param({"samples": "5"}, "samples is '5'; expected an integer", id="text"),
        pytest.param({"x": torch.zeros(9, 2).int()}, "x is torch.int32; expected a floating point", id="integers"),
        pytest.param({"x": [[0.0]]}, "x is a list; expected a floating point torch.Tensor", id="list"),
    ],
)
def test_what_is_of_another_type_is_named(options, match):
    with pytest.raises(TypeError, match=match):
        kmedoids(**{"x": torch.randn(9, 2), "k": 2, **options})


@pytest.mark.parametrize("exponent", [60, -60, 120, -110])
def test_rescaled_points_have_the_same_medoids(exponent):
    x, scale = torch.randn(300, 3), 2.0**exponent
    for options in ({}, {"max_samples": 60}):
        one, other = (
            kmedoids(points, 5, generator=torch.Generator().manual_seed(0), **options) for points in (x, scale * x)
        )
        assert torch.equal(one.indices, other.indices)
        assert other.loss == scale * one.loss


def test_another_default_device_changes_nothing():
    x = torch.randn(300, 3)

    def run():
        return [kmedoids(x, 5, max_samples=n, generator=torch.Generator().manual_seed(0)).indices for n in (60, 1000)]

    expected = run()
    with torch.device("meta"):
        found = run()
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
